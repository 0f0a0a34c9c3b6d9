"""The built wheel, installed into an environment of its own and used outside the checkout, is the whole product."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from painting import ROOT

pytestmark = [pytest.mark.triton, pytest.mark.slow]
OURS = ("slime", "_slime_serve")  # what an editable install of this project puts into site-packages begins so


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it, and a folder outside the checkout to work in."""

    wheel: Path
    bin: Path
    folder: Path

    def run(self, program: str, *words: str) -> str:
        """What the environment's program printed; fails with what it wrote to stderr."""
        hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        done = subprocess.run(
            [self.bin / program, *words], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    root = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", root / "dist", ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (root / "dist").glob("*.whl")
    environment = root / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    link_packages(environment / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages")
    made = Installed(wheel=wheel, bin=environment / "bin", folder=root / "elsewhere")
    made.folder.mkdir()
    made.run("python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    return made


def link_packages(packages: Path) -> None:
    """Links to everything installed here but this project: a real environment without downloading torch again."""
    for each in Path(sysconfig.get_path("purelib")).iterdir():
        if not each.name.startswith((*OURS, "__pycache__")):
            (packages / each.name).symlink_to(each)


def test_the_wheel_holds_what_a_checkout_finds_beside_its_packages(installed: Installed) -> None:
    held = set(zipfile.ZipFile(installed.wheel).namelist())
    models = [f"model_repository/{path.parent.name}/1/model.py" for path in (ROOT / "model_repository").glob("*/1")]
    assert len(models) == 3
    wanted = {
        *(f"slime_repository/{model}" for model in models),
        "slime_optimize/embedded/unet/diffusion_pytorch_model.safetensors",
        "slime_optimize/embedded/slime.json",
        "slime_serve/backends/onnxruntime/model.py",
        "slime_client/py.typed",
        *(f"slime_studio/page/{path.name}" for path in (ROOT / "studio" / "slime_studio" / "page").iterdir()),
    }
    assert wanted <= held
    assert not [name for name in held if name.startswith(("tests/", "benchmarks/")) or "__pycache__" in name]


def test_nothing_of_the_checkout_is_imported(installed: Installed) -> None:
    packages = sorted(
        {Path(name).parts[0] for name in zipfile.ZipFile(installed.wheel).namelist() if ".dist-info" not in name}
    )
    assert len(packages) >= 10
    code = "import importlib, sys; print(*(importlib.import_module(name).__file__ for name in sys.argv[1:]), sep='\\n')"
    for path in installed.run("python", "-c", code, *packages).splitlines():
        assert Path(path).is_relative_to(installed.bin.parent), path


def test_its_dependencies_are_all_there(installed: Installed) -> None:
    """What the wheel declares is what this environment has: a dependency that nobody declared would be a chance."""
    assert "No broken requirements" in installed.run("python", "-m", "pip", "check")


def test_served_models_import_the_code_beside_them(installed: Installed, tmp_path: Path) -> None:
    """The server's Python processes find what is installed, but a model's own copy of our code comes first."""
    model = tmp_path / "was" / "3"
    (model / "slime_was").mkdir(parents=True)
    (model / "slime_was" / "__init__.py").write_text("HERE = True\n")
    code = (
        "import sys\nfrom pathlib import Path\nfrom slime_serve.wheel import assemble_python\n"
        f"assemble_python(Path({str(tmp_path / 'python')!r}))"
    )
    installed.run("python", "-c", code)
    ask = f"import sys; sys.path.append({str(model)!r}); import numpy, slime_was, slime_image; print(slime_was.HERE)"
    python = tmp_path / "python" / "bin" / "python3"
    assert subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout == "True\n"


def test_the_demo_runs_to_its_end(installed: Installed) -> None:
    shown = installed.run("slime", "demo", "--steps", "3", "--images", "3")
    assert str(installed.folder / "slime-demo") in shown
    assert "mean IoU" in shown and "3 images over gRPC" in shown
    assert (installed.folder / "slime-demo" / "contact-sheet.png").is_file()
    assert [path.name for path in installed.folder.iterdir()] == ["slime-demo"]

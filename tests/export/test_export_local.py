"""`slime segment --local`: masks without a server, equal to PyTorch's, from what was learned and what was exported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from exporting import Exported
from PIL import Image

from slime_cli.segment import main
from slime_export.proof.parity import random_images

pytestmark = pytest.mark.parametrize("exported", ["sd15"], indirect=True)
# Triton's wheel, and what else is not on every machine; and nobody is called.
WITHOUT_TRITON = """
import socket, sys
sys.modules.update(dict.fromkeys(("tritonserver", "pytriton", "fcntl", "torch")))
def refuse(*_):
    raise AssertionError("no server is to be asked")
socket.socket.connect = refuse
from slime_cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A JPEG that is lying on its side, as cameras write them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (array,) = random_images(np.random.default_rng(4), 1, 96)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array[:64]).save(folder / "side.jpg", exif=exif)
    return folder / "side.jpg"


def test_both_ways_give_pytorchs_masks(
    exported: Exported, shared_repository: Path, photo: Path, tmp_path: Path
) -> None:
    masks = []
    for number, where in enumerate((exported.folder, exported.repository / "car", shared_repository / "car")):
        out = tmp_path / str(number)
        assert main([str(photo.parent), "--local", str(where), "--format", "npz", "--out", str(out)]) == 0
        assert sorted(path.name for path in out.iterdir())[1:] == ["side-overlay.jpg", "side.npz"]
        with np.load(out / "side.npz") as found:
            masks.append(found["mask"])
    assert masks[0].shape == (96, 64)  # as seen
    assert all((mask == masks[0]).mean() >= 0.999 for mask in masks)


def test_no_triton_and_no_torch_is_needed_for_what_was_exported(
    exported: Exported, photo: Path, tmp_path: Path
) -> None:
    words = ["segment", photo, "--local", exported.repository / "car", "--out", tmp_path / "out"]
    command = [sys.executable, "-c", WITHOUT_TRITON, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "side.png").is_file()
    # What was learned needs PyTorch, and says which line installs it.
    words[3] = exported.folder
    done = subprocess.run([*command[:3], *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith(
        "the package of module torch is not installed; run: pip install 'slime-serve[optimize]'\n"
    )


def test_mistakes_are_one_line(
    exported: Exported, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for where, said in (
        (tmp_path / "nothing", "is no segmenter, expected a folder that slime optimize wrote"),
        (exported.repository / "cra", "segmenter cra: is not in repository"),
    ):
        assert main([str(photo), "--local", str(where), "--out", str(tmp_path / "out")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: --local {where}: ") and said in line
    (tmp_path / "text.jpg").write_text("no picture")
    assert main([str(tmp_path / "text.jpg"), "--local", str(exported.folder), "--out", str(tmp_path / "out")]) == 1
    assert "text.jpg: " in capsys.readouterr().err

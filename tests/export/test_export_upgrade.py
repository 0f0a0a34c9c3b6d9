"""Bringing a repository up to date with this project's code: when a version is new, who is re-pinned, who is left.

The networks are a few bytes here where only files matter, and tiny ones that ONNX Runtime runs where masks do.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporting import Exported, Snapshot
from PIL import Image
from publishing import FakeServer, assert_all_or_nothing, assert_servable, assert_taken_back, killed, run

from serving import Asking, served
from slime_export.commands.repository import main
from slime_export.errors import ServerError
from slime_export.options import ExportOptions
from slime_export.pipeline import export
from slime_export.proof import parity
from slime_export.publish import maintenance
from slime_export.publish.maintenance import Outcome, rollback, upgrade
from slime_export.publish.server_control import Server
from slime_repository import config, contents, layout, manifest, record, served_code
from slime_repository.errors import RepositoryError
from slime_repository.record import Check

CODE = (
    b'"""What it does."""\n\nimport math\n\n\ndef area(r):\n    """Return it."""\n    return math.pi * r**2  # exact\n'
)


def quiet(_: str) -> None:
    pass


def loaded(model: Path) -> list[int]:
    """The versions that Triton has of it."""
    policy = config.parsed(layout.config_text(model)).version_policy.latest
    return layout.versions(model)[-policy.num_versions :]


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (CODE.replace(b"# exact", b"# as exact as floats are"), True),
        (CODE.replace(b'"""What it does."""', b'"""Something else,\n\nat length."""\n'), True),
        (CODE.replace(b'    """Return it."""\n', b""), True),
        (CODE.replace(b"math.pi * r**2", b"math.pi * (\n        r ** 2\n    )"), True),
        (CODE.replace(b"r**2", b"r**3"), False),
        (CODE.replace(b"import math", b"import math\nR = 1"), False),
        (CODE + b"def (", False),
    ],
)
def test_the_code_that_runs_counts(other: bytes, same: bool) -> None:
    assert served_code.same_code({"a.py": CODE}, {"a.py": other}) is same
    assert not served_code.same_code({"a.txt": CODE}, {"a.txt": other})
    assert not served_code.same_code({"a.py": CODE}, {"b.py": CODE})


@pytest.mark.parametrize(("change", "version"), [(b"\n# told better\n", 1), (b"\nTOLD = 1\n", 2)])
def test_a_changed_comment_makes_no_new_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: bytes, version: int
) -> None:
    repository, real = tmp_path / "repository", served_code.wanted_files
    run(repository)
    now = {kind: {name: text + change * name.endswith(".py") for name, text in real(kind).items()} for kind in KINDS}
    monkeypatch.setattr(served_code, "wanted_files", lambda kind: now[kind])
    versions = run(repository).versions
    assert (versions.was, versions.preprocess) == (version, version)


KINDS = ("was", "preprocess", "segmenters")


class Code:
    """This project's code as if it changed: each call of `change` gives the served models another number in it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number, real = 0, served_code.wanted_files
        monkeypatch.setattr(
            served_code,
            "wanted_files",
            lambda kind: {**real(kind), "model.py": real(kind)["model.py"] + b"\nCHANGE = %d\n" % self.number},
        )

    def change(self) -> None:
        self.number += 1


class FakeTrial:
    """In place of ONNX Runtime: everything answers as expected but `wrong`."""

    wrong: tuple[str, ...] = ()

    def __init__(self, repository: Path) -> None:
        pass

    def complaint(self, text: str, check: Check, segmenter: str | None = None) -> str | None:
        return "answers wrongly" if any(f'name: "{name}"' in text for name in self.wrong) else None


class Watching(FakeServer):
    """Also fails where an ensemble that serves would miss a model that it is pinned to, after any load."""

    def load(self, model: str) -> None:
        super().load(model)
        folder = self.repository / model
        self.loaded[model] = (loaded(folder), layout.config_text(folder))
        for name, (_, text) in self.loaded.items():
            for used, version in config.pins(text).items():
                assert self.has(used, version), f"{name} misses {used} {version} after a load of {model}"

    def try_out(self, name: str, text: str, check: Check, segmenter: str | None = None) -> float:
        self._note(f"try {name}")
        return 0.25


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> Code:
    monkeypatch.setattr(maintenance, "Trial", FakeTrial)
    return Code(monkeypatch)


@pytest.fixture
def repository(tmp_path: Path, code: Code) -> Path:
    """horse on the first code, car on the second; the third is current, so that publishing is refused."""
    target = tmp_path / "repository"
    run(target, "horse")
    code.change()
    run(target, "car")
    code.change()
    return target


def test_what_publishing_refuses_an_upgrade_clears(repository: Path) -> None:
    with pytest.raises(RepositoryError, match=r"horse still uses version 1 .*repository.py upgrade"):
        run(repository, "car")
    assert upgrade(repository, say=quiet) == [Outcome(name="car", version=2), Outcome(name="horse", version=2)]
    for name in ("car", "horse"):
        pins = layout.pinned(repository / name)
        assert (pins["was"], pins["preprocess"], pins[f"{name}_unet"]) == (3, 3, 1)
    assert_servable(repository)
    assert upgrade(repository, say=quiet) == []
    assert run(repository, "car").versions.was == 3
    assert rollback(repository, "horse", say=quiet) == (1, 3)
    assert_servable(repository)


def test_only_those_that_are_named(repository: Path) -> None:
    with pytest.raises(RepositoryError, match=r"segmenter lorry: not in repository .*; segmenters there: car, horse"):
        upgrade(repository, ["lorry"], say=quiet)
    assert [each.name for each in upgrade(repository, ["horse"], say=quiet)] == ["horse"]
    assert (layout.pinned(repository / "horse")["was"], layout.pinned(repository / "car")["was"]) == (3, 2)
    assert_servable(repository)


def test_a_running_server_never_misses_a_version(tmp_path: Path, code: Code) -> None:
    repository, server = tmp_path / "repository", Watching(tmp_path / "repository")
    for name in ("horse", "car"):
        run(repository, name, server=server)
        code.change()
    server.calls.clear()
    assert len(upgrade(repository, server=server, say=quiet)) == 2
    assert [call for call in server.calls if call.startswith("try")] == ["try car", "try horse"]
    assert server.loaded["was"][0] == server.loaded["preprocess"][0] == [2, 3]
    code.change()
    run(repository, "horse", server=server)
    run(repository, "car", server=server)


def test_one_that_would_answer_otherwise_is_left(
    repository: Path, monkeypatch: pytest.MonkeyPatch, code: Code, snapshot: Callable[[Path], Snapshot]
) -> None:
    monkeypatch.setattr(FakeTrial, "wrong", ("horse",))
    car, horse = upgrade(repository, say=quiet)
    assert (car.version, horse.version, horse.reason) == (2, None, "horse answers wrongly")
    # Its code stays loaded beside that of the others, until they have no use for what lies between.
    assert (layout.pinned(repository / "horse")["was"], loaded(repository / "was")) == (1, [1, 2, 3])
    run(repository, "car")
    assert (layout.pinned(repository / "horse")["was"], loaded(repository / "was")) == (1, [1, 3])
    monkeypatch.setattr(FakeTrial, "wrong", ())
    assert upgrade(repository, say=quiet) == [Outcome(name="horse", version=2)]
    assert loaded(repository / "was") == [1, 3]
    monkeypatch.setattr(FakeTrial, "wrong", ("horse", "car"))
    code.change()
    before = snapshot(repository)
    assert all(each.reason for each in upgrade(repository, say=quiet))
    assert snapshot(repository) == before


def test_one_that_the_server_finds_wrong_is_left(tmp_path: Path, code: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, server = tmp_path / "repository", Watching(tmp_path / "repository")
    for name in ("horse", "car"):
        run(repository, name, server=server)
    code.change()

    def wrong(name: str, *_: object) -> None:
        if name == "car":
            raise ServerError("server fake: car's next version answers with another mask")

    monkeypatch.setattr(server, "try_out", wrong)
    car, horse = upgrade(repository, server=server, say=quiet)
    assert "another mask" in car.reason and horse.version == 2
    for name in ("car", "horse"):
        assert server.has("was", layout.pinned(repository / name)["was"])


@pytest.mark.parametrize("fails_at", ["load preprocess", "load was", "load car", "load horse"])
def test_what_the_server_refuses_is_taken_back(
    tmp_path: Path, code: Code, snapshot: Callable[[Path], Snapshot], fails_at: str
) -> None:
    repository, server = tmp_path / "repository", Watching(tmp_path / "repository")
    for name in ("horse", "car"):
        run(repository, name, server=server)
        code.change()
    loaded = assert_taken_back(server, snapshot, fails_at, lambda: upgrade(repository, server=server, say=quiet))
    assert server.loaded == loaded


def test_a_failure_at_any_step_changes_nothing(
    repository: Path, monkeypatch: pytest.MonkeyPatch, snapshot: Callable[[Path], Snapshot]
) -> None:
    assert_all_or_nothing(repository, snapshot, monkeypatch, lambda: upgrade(repository, say=quiet), least_steps=11)


def test_a_kill_at_any_step_leaves_a_servable_repository(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, codes = 0, {9}
    while codes == {9}:
        step += 1
        copy = shutil.copytree(repository, tmp_path / str(step) / "repository")
        codes = {killed(step, lambda copy=copy: upgrade(copy, say=quiet), monkeypatch)}
        assert manifest.verify(copy)
        for name in layout.segmenters(copy):
            for model, version in layout.pinned(copy / name).items():
                assert version in loaded(copy / model), (name, model)
        upgrade(copy, say=quiet)
        assert_servable(copy)
    assert codes == {0} and step > 10


def made_before_the_names_changed(repository: Path) -> None:
    """As tensors were called then, in every configuration."""
    for path in (*repository.glob("*/config.pbtxt"), *repository.glob("*/*/ensemble.pbtxt")):
        text = path.read_text()
        for new, old in (("POSTPROCESS", "WEIGHTING"), ("GUIDE_IMAGE", "FITTED"), ("PART_MASK", "PRESENT")):
            text = text.replace(new, old)
        path.write_text(text)
    (repository / manifest.FILE).unlink()


def test_a_repository_of_before_the_tensors_were_renamed_is_served_and_not_added_to(
    tmp_path: Path, snapshot: Callable[[Path], Snapshot], capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "repository"
    for _ in range(2):
        run(repository)
    made_before_the_names_changed(repository)
    before = snapshot(repository)
    line = r"made before tensors were renamed .*WEIGHTING.* python export/build.py DIR --repository NEW_REPO"
    for action in (
        lambda: run(repository),
        lambda: run(repository, "horse"),
        lambda: upgrade(repository, say=quiet),
        lambda: layout.encoder_of(repository, "a1" * 32),
    ):
        with pytest.raises(RepositoryError, match=line):
            action()
    assert main(["upgrade", str(repository)]) == 2
    assert "made before tensors were renamed" in capsys.readouterr().err
    assert snapshot(repository) == before
    assert contents.read(repository).segmenters == ("car",)
    assert rollback(repository, "car", say=quiet) == (1, 3)


def older(repository: Path, model: str = "was") -> None:
    """The model's latest version as if its code were older than this project's."""
    folder = repository / model
    path = folder / str(layout.versions(folder)[-1]) / "model.py"
    path.write_text(path.read_text() + "\nOLDER = True\n")
    (repository / manifest.FILE).unlink()
    with maintenance.changing(repository, None, 10.0, quiet):
        pass  # writes a manifest of what is there


@pytest.fixture
def one(exported: Exported, tmp_path: Path) -> Path:
    target = Path(shutil.copytree(exported.repository, tmp_path / "repository"))
    older(target)
    older(target, "preprocess")
    return target


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(("torch", "diffusers", "onnx"{more})))
from slime_export.commands.repository import main
sys.exit(main(sys.argv[1:]))
"""


def alone(*arguments: object, more: str = "") -> subprocess.CompletedProcess[str]:
    """The command in a process that can import neither torch, diffusers nor onnx."""
    words = [sys.executable, "-c", WITHOUT.format(more=more), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("exported", ["sd15"], indirect=True)
def test_an_upgrade_needs_onnx_runtime_alone(one: Path) -> None:
    done = alone("upgrade", one, more=', "onnxruntime"')
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "needs ONNX Runtime, which is missing" in done.stderr
    done = alone("upgrade", one)
    assert (done.returncode, done.stdout) == (0, "car runs the current code, as version 2\n"), done.stderr
    assert layout.pinned(one / "car") == {"preprocess": 2, "vae_encoder": 1, "car_unet": 1, "was": 2}
    assert alone("upgrade", one).stdout == f"{one}: the current code runs already; nothing was changed\n"
    assert_servable(one)


@pytest.mark.parametrize("exported", ["sd15"], indirect=True)
def test_a_mask_that_changes_is_named(
    one: Path, snapshot: Callable[[Path], Snapshot], capsys: pytest.CaptureFixture[str]
) -> None:
    mask = one / "car" / "1" / record.MASK_FILE
    Image.fromarray(np.asarray(Image.open(mask)) + np.uint8(1)).save(mask)
    older(one)
    before = snapshot(one)
    assert main(["upgrade", str(one)]) == 1
    told = capsys.readouterr()
    assert "segmenter car: is left as it is: car answers" in told.err and "of which 0.00 % is as expected" in told.err
    assert snapshot(one) == before
    (one / "car" / "1" / record.IMAGE_FILE).write_bytes(b"no image")
    assert main(["upgrade", str(one)]) == 1
    assert "with the current code (image: got 8 bytes" in capsys.readouterr().err


@pytest.mark.triton
@pytest.mark.usefixtures("without_tracing")
@pytest.mark.parametrize("exported", ["sd15"], indirect=True)
def test_no_request_is_lost(exported: Exported, one: Path) -> None:
    export(ExportOptions(folder=exported.folder, repository=one, name="horse"), quiet)
    assert [layout.pinned(one / name)["was"] for name in ("car", "horse")] == [1, 2]
    older(one)
    older(one, "preprocess")
    (image,) = parity.random_images(np.random.default_rng(3), 1, 64)
    expected = exported.predictor.mask(image)
    with served(one) as server, Asking(server, image) as car, Asking(server, image, "horse") as horse:
        wait_for(car, horse)
        outcomes = upgrade(one, server=Server(server.grpc), say=quiet)
        wait_for(car, horse)
        assert {each.name: each.reason for each in outcomes} == {"car": "", "horse": ""}
        assert [layout.pinned(one / name)["was"] for name in ("car", "horse")] == [3, 3]
    assert not car.errors + horse.errors
    for each in (car, horse):
        assert min((mask == expected).mean() for mask in each.masks) >= 0.999
    assert_servable(one)


def wait_for(*asking: Any) -> None:
    """Until each has had a few more answers."""
    wanted, passed = [len(each.masks) + 5 for each in asking], threading.Event()
    for _ in range(600):
        if all(len(each.masks) >= least for each, least in zip(asking, wanted, strict=True)):
            return
        passed.wait(0.1)
    raise AssertionError("no more answers within a minute")

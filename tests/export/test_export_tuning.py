"""`slime export --tune`: what is tried, what it says, and that the fastest within its limits is what is published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from exporting import Exported, Snapshot

from slime_export import tuning
from slime_export.errors import ExportError
from slime_export.tuning import Tried, fastest
from slime_repository import layout, listing
from slime_repository.openvino_network import CACHE_VARIABLE

ONE_KIND = pytest.mark.parametrize("exported", ["sd15"], indirect=True)


def test_the_fastest_that_may_serve() -> None:
    found = {
        "slow": Tried(changes={}, ms=[9.0, 8.0, 7.0]),
        "fast": Tried(changes={"accelerator": "openvino"}, ms=[5.0, 99.0, 4.0]),
        "wrong": Tried(changes={"precision": "int8"}, ms=[1.0], reason="masks at batch 1 agree on 50 %"),
        "absent": Tried(changes={}, reason="not there"),
    }
    assert fastest(found)[0] == "fast"
    lines = tuning.table(found).splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(found)
    assert "5.0" in lines[3] and "masks at batch 1" in lines[4]
    with pytest.raises(ExportError, match="nothing keeps its limits"):
        fastest({"wrong": found["wrong"]})


@pytest.mark.slow
@pytest.mark.usefixtures("without_tracing")
@ONE_KIND
def test_all_are_tried_and_the_chosen_one_is_published(
    command: ModuleType,
    exported: Exported,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    snapshot: Callable[[Path], Snapshot],
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "_TURNS", 1)
    monkeypatch.setattr(tuning, "_SECONDS", 0.0)
    words = [str(exported.folder), "--repository", str(tmp_path / "repository"), "--tune"]
    before = snapshot(tmp_path / "repository")
    assert command.main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert snapshot(tmp_path / "repository") == before and "published" not in said
    rows = {line.split("  ")[0]: line for line in said.splitlines() if line.startswith(("ONNX Runtime", "OpenVINO"))}
    assert list(rows) == list(tuning.WAYS)
    for name in ("ONNX Runtime", "OpenVINO"):
        assert "can serve" in rows[name] and "100.000 %" in rows[name]
    assert "nothing in these networks gains by it" in rows["ONNX Runtime, rewritten"]
    assert "give --calibration DIR" in rows["ONNX Runtime, int8"]

    monkeypatch.setattr(tuning, "_time", lambda tried, side: tried.ms.append(9.0 - len(tried.changes)))
    assert command.main(words) == 0
    assert "fastest within its limits: OpenVINO (--accelerator openvino), 1.12 times" in capsys.readouterr().out
    assert "car_unet_openvino" in layout.models(tmp_path / "repository")
    assert [row.format for row in listing.rows(tmp_path / "repository")] == ["openvino"]


@ONE_KIND
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tune", "--accelerator", "cpu"), "--tune: chooses --precision and --accelerator itself"),
        (("--tune", "--embedding", "shared"), "--tune: chooses --precision and --accelerator itself"),
        (("--dry-run",), "--dry-run: goes with --tune; give both, or neither"),
    ],
)
def test_options_that_do_not_fit(
    mistake: Callable[..., str], exported: Exported, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    assert said in mistake(tmp_path / "new", 2, exported.folder, *options)

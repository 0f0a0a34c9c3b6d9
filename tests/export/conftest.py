"""Tiny segmenters on tiny backbones, exported once for all tests of this folder."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from exporting import PARTS, Exported, Snapshot, shared_segmenter

import slime_export.graph.onnx_export
from backbones import KINDS, build
from slime_export.options import ExportOptions
from slime_export.pipeline import export
from slime_optimize.backbone import load_backbone
from slime_optimize.method.prediction import load_predictor

# Seeds of embeddings whose masks have a margin: over some random images, each part that they find covers a third of the
# pixels or more, and weights rounded to fp16 change under a thousandth of them. With others a part may cover two
# pixels, which the last bits of another processor's sums take away, and with them a fifth of the mean IoU.
WITH_A_MARGIN = {"sd15": 3, "sd21": 15}
SCRIPT = Path(__file__).resolve().parents[2] / "export" / "build.py"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_segmenter() -> Callable[..., Path]:
    """(folder, kind, parts) -> a segmenter with random embeddings in folder/car, its backbone in folder/backbone."""

    def make(folder: Path, kind: str = "sd15", parts: tuple[str, ...] = PARTS, seed: int = 0) -> Path:
        backbone = load_backbone(build(folder / "backbone", kind, seed))
        colours = tuple((20 * i, 0, 255) for i in range(len(parts)))
        # Random maps are low everywhere: the paper's threshold would leave nothing but background.
        made = shared_segmenter(backbone, WITH_A_MARGIN[kind] + seed, len(parts), {"threshold": 0.01})
        replace(made, parts=parts, colours=colours).save(folder / "car")
        return folder / "car"

    return make


@pytest.fixture(scope="session")
def export_of(tmp_path_factory: pytest.TempPathFactory, make_segmenter: Callable[..., Path]) -> Callable[..., Exported]:
    """(kind) -> its export, which is made once. A fixture with parameters would forget it at each change of kind."""
    return cache(partial(_exported, tmp_path_factory, make_segmenter))


@pytest.fixture(scope="session", params=sorted(KINDS))
def exported(request: pytest.FixtureRequest, export_of: Callable[..., Exported]) -> Exported:
    """Each kind in turn."""
    return export_of(request.param)


def _exported(tmp_path_factory: pytest.TempPathFactory, make_segmenter: Callable[..., Path], kind: str) -> Exported:
    root = tmp_path_factory.mktemp(kind)
    folder = make_segmenter(root, kind)
    lines: list[str] = []
    published, report = export(ExportOptions(folder=folder, repository=root / "repository"), lines.append)
    return Exported(
        kind=kind,
        folder=folder,
        repository=root / "repository",
        predictor=load_predictor(folder),
        published=published,
        report=report,
        lines=lines,
    )


@pytest.fixture(scope="session")
def shared_repository(export_of: Callable[..., Exported], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The segmenter of `exported` for "sd15", published in the shared form. Nothing may write to it."""
    repository = tmp_path_factory.mktemp("shared") / "repository"
    options = ExportOptions(folder=export_of("sd15").folder, repository=repository, embedding="shared")
    export(options, lambda _: None)
    return repository


@pytest.fixture
def without_tracing(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports of the same segmenter take the files that are there, which spares most of their time."""

    def copied(module: Any, signature: Any, folder: Path, external_over: int) -> Path:
        model = "car_unet" if "CROSS" in signature.outputs else "vae_encoder"
        return Path(shutil.copy(exported.repository / model / "1" / "model.onnx", folder))

    monkeypatch.setattr(slime_export.graph.onnx_export, "write", copied)


@pytest.fixture(scope="session")
def snapshot() -> Callable[[Path], Snapshot]:
    """Every path under a folder with its content (None for a folder); what lies beside it counts, too."""

    def take(folder: Path) -> Snapshot:
        found = sorted(folder.rglob("*")) if folder.exists() else []
        inside = {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in found}
        hidden = {f"../{path.name}": None for path in folder.parent.glob(f".{folder.name}*")}
        return inside | hidden | {".": None if folder.exists() else b"missing"}

    return take


@pytest.fixture(scope="session")
def command() -> ModuleType:
    specification = importlib.util.spec_from_file_location("export_build", SCRIPT)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def mistake(
    command: ModuleType, capsys: pytest.CaptureFixture[str], snapshot: Callable[[Path], Snapshot]
) -> Callable[..., str]:
    """(repository, code, *arguments) -> the one line; the repository stays as it was."""

    def run(repository: Path, code: int, *arguments: object) -> str:
        before = snapshot(repository)
        assert command.main([str(each) for each in (*arguments, "--repository", repository)]) == code
        assert snapshot(repository) == before
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: ")
        return line

    return run

"""The command: what it prints, its exit codes, and one clear line for each mistake."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from exporting import Exported

from slime_export.graph import chunking, winograd
from slime_export.graph import inspection as graph
from slime_export.proof import parity, report
from slime_image import decode
from slime_optimize import training_image
from slime_repository import layout, record

ONE_KIND = pytest.mark.parametrize("exported", ["sd15"], indirect=True)


@ONE_KIND
@pytest.mark.usefixtures("without_tracing")
def test_publishing_again_under_the_folders_name(
    command: ModuleType, exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = shutil.copytree(exported.repository, tmp_path / "repository")
    assert command.main([str(exported.folder), "--repository", str(repository)]) == 0
    said = capsys.readouterr().out
    # The VAE encoder is there already.
    assert "tracing the VAE encoder" not in said
    assert all(stage in said for stage in ("loading segmenter", "tracing the UNet: ", "comparing with PyTorch: "))
    assert f"published car version 2 in {repository}" in said
    assert layout.versions(repository / "car_unet") == [1, 2]


@ONE_KIND
@pytest.mark.usefixtures("without_tracing")
def test_the_training_image_goes_along(
    command: ModuleType, exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = shutil.copytree(exported.repository, tmp_path / "repository")
    folder = Path(shutil.copytree(exported.folder, tmp_path / "car"))
    (image,) = parity.random_images(np.random.default_rng(5), 1, 100)
    training_image.save(folder, image, exported.predictor.backbone.image_size)
    for said, version in (("", 2), (f"{folder}: has no training.png; a generated image is tried", 3)):
        assert command.main([str(folder), "--repository", str(repository)]) == 0
        shown = capsys.readouterr().out
        assert said in shown and ("generated" in shown) == bool(said)
        check = record.read(repository / "car" / str(version)).check
        assert check.training_image == (not said)
        assert np.array_equal(check.mask_HW, exported.predictor.mask(decode(check.image)))
        (folder / training_image.FILE).unlink(missing_ok=True)


@ONE_KIND
@pytest.mark.slow
def test_for_a_cpu(
    command: ModuleType,
    exported: Exported,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rewritten, held to the same limits as any fp32 graph, and published for the CPU."""
    small = {"least_channels": 8, "least_tiles": 64}  # the encoder's: so narrow a UNet multiplies rounding
    monkeypatch.setattr(winograd, "rewritten", partial(winograd.rewritten, **small))
    monkeypatch.setattr(chunking, "rewritten", partial(chunking.rewritten, chunk_bytes=1024))
    repository = tmp_path / "repository"
    options = [str(exported.folder), "--repository", str(repository), "--accelerator", "cpu"]
    assert command.main(options) == 0
    assert "comparing the fp32 graphs with PyTorch" in capsys.readouterr().out
    ops = {model: graph.counts(repository / model / "1" / "model.onnx").ops for model in ("vae_encoder", "car_unet")}
    assert ops["vae_encoder"]["ConvTranspose"] > 0
    assert ops["car_unet"]["Softmax"] > 100, "no attention was cut"
    assert all("KIND_CPU" in layout.config_text(repository / model) for model in ops)
    report = json.loads((repository / "car_unet" / "1" / "parity.json").read_text())
    assert report["failures"] == [] and report["limits"]
    assert command.main(options) == 0
    assert "vae_encoder: the repository's own stays" in capsys.readouterr().out


def test_parameters_are_what_the_client_reads(exported: Exported) -> None:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    config = text_format.Parse(layout.config_text(exported.repository / "car"), model_config_pb2.ModelConfig())
    said = {key: value.string_value for key, value in config.parameters.items()}
    segmenter = exported.predictor.segmenter
    assert json.loads(said["parts"]) == list(segmenter.parts)
    assert json.loads(said["colours"]) == [list(colour) for colour in segmenter.colours]
    assert (said["form"], said["image_size"]) == ("baked", "64")
    assert (said["backbone"], said["segmenter"]) == (segmenter.backbone_hash, segmenter.hash)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "the following arguments are required: DIR, --repository"),
        (("car", "--repository", "models", "--maps", "other"), "argument --maps: invalid choice: 'other'"),
        (("car", "--repository", "models", "--key-file", "key"), "--key-file has another name now: --admin-key-file"),
    ],
)
def test_wrong_options_are_one_line(
    command: ModuleType, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SystemExit) as left:
        command.main(words, "slime export")
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}") and line.endswith("slime export --help shows the options")


def test_help_shows_what_people_need_and_help_all_the_rest(
    command: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = {}
    for option in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as left:
            command.main([option], "slime export")
        assert left.value.code == 0
        shown[option] = capsys.readouterr().out
        assert shown[option].startswith("usage: slime export ")
    rest = (
        "--encoder",
        "--calibration",
        "--hardware",
        "--opt-batch",
        "--keep",
        "--wait",
        "TensorRT engines:",
    )
    assert not [each for each in rest if each in shown["--help"]]
    assert all(each in shown["--help-all"] for each in rest)
    main = ("--repository", "--set", "--url", "--data", "--embedding", "--tls-ca")
    assert all(f"  {each} " in shown["--help"] for each in main)


def test_onnx_runtime_that_is_missing_or_old(
    mistake: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package, said in (
        (None, "onnxruntime: cannot be imported"),
        (SimpleNamespace(__version__="1.20.1"), "onnxruntime: got version 1.20.1, expected 1.21 or later"),
    ):
        monkeypatch.setitem(sys.modules, "onnxruntime", package)
        line = mistake(tmp_path / "repository", 2, tmp_path / "car")
        assert said in line and line.endswith("pip install 'slime-serve[export]'")


def test_no_segmenter_there(mistake: Callable[..., str], tmp_path: Path) -> None:
    assert "segmenter.json" in mistake(tmp_path / "repository", 2, tmp_path / "nothing")


def test_bad_name(mistake: Callable[..., str], exported: Exported, tmp_path: Path) -> None:
    line = mistake(tmp_path / "repository", 2, exported.folder, "--name", "was")
    assert line.endswith("give another --name")


def test_backbone_that_changed(
    mistake: Callable[..., str], make_segmenter: Callable[..., Path], exported: Exported, tmp_path: Path
) -> None:
    make_segmenter(tmp_path / "other", exported.kind, seed=1)
    line = mistake(tmp_path / "repository", 2, exported.folder, "--backbone", tmp_path / "other" / "backbone")
    assert "optimise again" in line


def test_repository_of_another_backbone(
    mistake: Callable[..., str], make_segmenter: Callable[..., Path], exported: Exported, tmp_path: Path
) -> None:
    other = make_segmenter(tmp_path, exported.kind, seed=1)
    assert "a repository holds one backbone, give another --repository" in mistake(exported.repository, 2, other)


@pytest.mark.usefixtures("without_tracing")
def test_failed_parity(mistake: Callable[..., str], exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "difference", lambda got, expected: report.Difference(largest=0.5, mean=0))
    line = mistake(exported.repository, 1, exported.folder)
    assert "parity: LATENTS at batch 1 differs by 0.5 of the largest value, expected at most 0.0001" in line


def test_server_that_is_not_there(mistake: Callable[..., str], exported: Exported) -> None:
    line = mistake(exported.repository, 1, exported.folder, "--url", "127.0.0.1:9")
    assert "127.0.0.1:9" in line


def test_random_images_are_images() -> None:
    images = parity.random_images(np.random.default_rng(0), 2, 64)
    assert [(each.shape, each.dtype) for each in images] == [((64, 64, 3), np.dtype(np.uint8))] * 2
    assert all(each.std() > 20 for each in images)

"""One annotated image in, masks over gRPC out, through the commands people type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import backbones
import commands
from painting import PARTS, ROOT, paint
from serving import Served, served
from slime_backbone.dataset import write_split
from slime_backbone.scene import parts_of
from slime_client import Segmenter, SegmenterError
from slime_image import load
from slime_optimize.method.prediction import load_predictor

pytestmark = pytest.mark.triton
AGREEMENT = 0.999  # of the pixels


def run(script: str, *arguments: object) -> str:
    """What the command printed; fails with what it wrote to stderr."""
    done = commands.run([str(ROOT / script), *map(str, arguments)], cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def assert_served_as_in_pytorch(server: Served, folder: Path, images: list[Path]) -> None:
    predictor = load_predictor(folder)
    with Segmenter(server.grpc, folder.name) as segmenter:
        assert segmenter.parts == predictor.segmenter.parts
        for path in images:
            mask = segmenter.segment(path).array
            expected = predictor.mask(load(path))
            assert mask.shape == expected.shape
            assert (mask == expected).mean() >= AGREEMENT


@pytest.mark.parametrize("kind", sorted(backbones.KINDS))
def test_a_stable_diffusion_shaped_folder(kind: str, tmp_path: Path) -> None:
    folder, out, repository = backbones.build(tmp_path / "sd", kind), tmp_path / "blocks", tmp_path / "repository"
    image, mask = paint()
    for name, pixels in (("image", image), ("mask", mask), ("other", paint(1)[0])):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    run(
        "optimize/run.py", "--image", tmp_path / "image.png", "--mask", tmp_path / "mask.png", "--parts", *PARTS,
        "--backbone", folder, "--out", out, "--steps", 8, "--threshold", 0, "--quiet",
    )  # fmt: skip
    run("export/build.py", out, "--repository", repository)
    with served(repository) as server:
        assert_served_as_in_pytorch(server, out, [tmp_path / "image.png", tmp_path / "other.png"])


@pytest.fixture(scope="module")
def embedded_car(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(segmenter, repository, annotated test images): few steps, because only the path matters here."""
    root = tmp_path_factory.mktemp("embedded")
    training = write_split(root / "scenes", "car", "train-1")
    test = write_split(root / "scenes", "car", "validation")
    run(
        "optimize/run.py", "--image", training / "images" / "000.png", "--mask", training / "masks" / "000.png",
        "--parts", *parts_of("car"), "--out", root / "car", "--steps", 20, "--quiet",
    )  # fmt: skip
    run("export/build.py", root / "car", "--repository", root / "repository")
    return root / "car", root / "repository", test


def test_the_embedded_backbone(embedded_car: tuple[Path, Path, Path]) -> None:
    segmenter, repository, test = embedded_car
    with served(repository) as server:
        assert server.segmenters == ("car",)
        assert_served_as_in_pytorch(server, segmenter, sorted((test / "images").glob("*.png")))
        refuses_and_goes_on(server, next((test / "images").glob("*.png")))


def refuses_and_goes_on(server: Served, good: Path) -> None:
    with Segmenter(server.grpc, "car") as segmenter:
        before = segmenter.segment(good).array
        with pytest.raises(SegmenterError) as refused:
            segmenter.segment(b"not an image")
        assert refused.value.code == "INVALID_ARGUMENT"
        assert np.array_equal(segmenter.segment(good).array, before), "the same image gives the same mask"
    with pytest.raises(SegmenterError) as unknown:
        Segmenter(server.grpc, "lorry")
    assert unknown.value.code == "NOT_FOUND"


def test_evaluate_and_no_was(embedded_car: tuple[Path, Path, Path]) -> None:
    segmenter, _, test = embedded_car
    with_was = run("optimize/evaluate.py", segmenter, "--data", test, "--quiet")
    without = run("optimize/evaluate.py", segmenter, "--data", test, "--quiet", "--no-was")
    assert "mean IoU" in with_was and "mean IoU" in without
    assert with_was != without

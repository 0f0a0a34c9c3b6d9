"""The real server on a toy segmenter: right masks, clear refusals, still serving afterwards."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from asking import in_process, picture, refused
from PIL import Image
from toy import add_segmenter, build_repository
from tritonclient import grpc

import slime_was
from serving import Served, png, served
from slime_repository import contract
from slime_repository.contract import Reading

pytestmark = pytest.mark.triton


def test_mask_and_scores_equal_the_same_work_in_process(toy_server: Served, toy_repository: Path) -> None:
    image = picture(123, 77)
    mask, scores = in_process(toy_repository, image)
    answer = toy_server.infer("toy", png(image), ("MASK", "SCORES"))
    assert len(np.unique(mask)) > 2
    assert np.array_equal(answer.as_numpy("MASK"), mask)
    assert np.allclose(answer.as_numpy("SCORES"), scores, atol=1e-6)


def test_segmenters_that_read_and_weigh_otherwise(tmp_path: Path) -> None:
    """Next to the plain one: BGR, in patches, suppressed, rescaled; and along the image's edges."""
    repository = build_repository(tmp_path / "repository")
    published = slime_was.Postprocess(
        threshold=0.2, drop_background=True, suppress_first_part=True, rescale=True, side=32, patches=2, patch_side=0.75
    )
    add_segmenter(repository, "published", Reading(image_size=32, channel_order="bgr", postprocess=published))
    guided = Reading(image_size=32, channel_order="bgr", postprocess=slime_was.Postprocess(side=32, edge_tolerance=0.1))
    add_segmenter(repository, "guided", guided)
    image = picture(90, 61)
    plain, _ = in_process(repository, image)
    with served(repository) as server:
        assert np.array_equal(server.segment("toy", png(image)), plain)
        for name in ("published", "guided"):
            mask, scores = in_process(repository, image, name, "bgr")
            answer = server.infer(name, png(image), ("MASK", "SCORES", "SHARPENED"))
            assert np.mean(answer.as_numpy("MASK") == mask) > 0.999
            assert np.allclose(answer.as_numpy("SCORES"), scores, atol=1e-4)
            enlarged = slime_was.segment(answer.as_numpy("SHARPENED"), 90, 61)
            assert np.array_equal(enlarged, answer.as_numpy("MASK"))
            assert np.mean(mask == plain) < 0.95


def test_mask_alone_or_everything(toy_server: Served) -> None:
    data = png(picture(40, 50))
    assert toy_server.infer("toy", data).as_numpy("SCORES") is None
    with grpc.InferenceServerClient(toy_server.grpc) as client:
        image = grpc.InferInput("IMAGE", [1], "BYTES")
        image.set_data_from_numpy(np.array([data], dtype=object))
        answer = client.infer("toy", [image])
    assert answer.as_numpy("MASK").shape == (40, 50)
    assert answer.as_numpy("SCORES").shape == (5, 8, 8)


def test_turned_photograph(toy_server: Served, toy_repository: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = picture(40, 70)
    mask = toy_server.segment("toy", png(image, exif=exif))
    assert mask.shape == (70, 40)
    assert np.array_equal(mask, in_process(toy_repository, np.rot90(image, -1))[0])


def test_concurrent_requests_of_different_sizes(toy_server: Served, toy_repository: Path) -> None:
    images = [picture(20 + 7 * seed, 90 - 5 * seed, seed) for seed in range(12)]
    with ThreadPoolExecutor(6) as pool:
        masks = list(pool.map(lambda image: toy_server.segment("toy", png(image)), images))
    for image, mask in zip(images, masks, strict=True):
        assert np.mean(mask == in_process(toy_repository, image)[0]) > 0.999


def test_several_requests_run_as_one_batch(toy_server: Served) -> None:
    """Straight to the batching network: the sum of a batch's parts is its whole."""
    latents = np.random.default_rng(0).standard_normal((5, 4, 8, 8)).astype(np.float32)

    def ask(part: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        data = grpc.InferInput("LATENTS", part.shape, "FP32")
        data.set_data_from_numpy(part)
        with grpc.InferenceServerClient(toy_server.grpc) as client:
            return np.asarray(client.infer("toy_unet", [data]).as_numpy("CROSS"))

    with ThreadPoolExecutor(3) as pool:
        parts = list(pool.map(ask, [latents[:2], latents[2:4], latents[4:]]))
    assert np.allclose(np.concatenate(parts), ask(latents), atol=1e-6)


def test_corrupt_image(toy_server: Served) -> None:
    good = png(np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8))
    for data in (b"junk", b"", good[: len(good) // 2]):
        status, message = refused(toy_server, data)
        assert status == "StatusCode.INVALID_ARGUMENT"
        assert "image: " in message


@pytest.mark.parametrize(
    ("height", "width", "says"),
    [
        (10_000, 10_001, "10001 x 10000 = 100.0 megapixels, expected at most 50"),
        (12, 2_000_000, "2000000 x 12 pixels, expected at most 16384 a side"),
    ],
)
def test_large_and_long_images_are_refused_quickly(toy_server: Served, height: int, width: int, says: str) -> None:
    data = png(np.zeros((height, width), np.uint8), compress_level=1)
    start = time.monotonic()
    status, message = refused(toy_server, data)
    assert time.monotonic() - start < 2
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert says in message


def test_unknown_segmenter(toy_server: Served) -> None:
    status, message = refused(toy_server, png(picture(9, 9)), "bicycle")
    assert status == "StatusCode.NOT_FOUND"
    assert "bicycle" in message


def test_client_reads_the_parameters(toy_server: Served) -> None:
    with grpc.InferenceServerClient(toy_server.grpc) as client:
        config = client.get_model_config("toy").config
    assert config.parameters["parts"].string_value == '["background", "ö"]'


def test_publishing_a_new_version_keeps_serving(toy_repository: Path, tmp_path: Path) -> None:
    """The order of the design: new network beside the old, new ensemble over the old, old network retired."""
    repository = tmp_path / "repository"
    shutil.copytree(toy_repository, repository)
    data = png(picture(30, 40))
    with served(repository) as server, grpc.InferenceServerClient(server.grpc) as client:
        before = server.segment("toy", data)
        shutil.copytree(repository / "toy_unet/1", repository / "toy_unet/2")
        client.load_model("toy_unet")
        assert client.is_model_ready("toy_unet", "1")
        assert client.is_model_ready("toy_unet", "2")
        assert np.array_equal(server.segment("toy", data), before)
        versions = contract.Versions(unet=2)
        text = contract.ensemble_config(segmenter="toy", versions=versions, parameters={})
        (repository / "toy/2").mkdir()
        (repository / "toy/config.pbtxt").write_text(text)
        client.load_model("toy")
        assert np.array_equal(server.segment("toy", data), before)
        assert client.get_model_metadata("toy").versions[-1] == "2"
        shutil.rmtree(repository / "toy_unet/1")
        client.load_model("toy_unet")
        assert not client.is_model_ready("toy_unet", "1")
        assert np.array_equal(server.segment("toy", data), before)
    assert not list(repository.rglob("__pycache__"))

"""Asking for masks: every kind of image, what is sent, what comes back."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_triton import FakeTriton
from PIL import Image

import slime_client
from slime_client import Segmenter, SegmenterError, protocol


def test_names_and_colours_come_from_the_server(car: Segmenter) -> None:
    assert car.parts == ("background", "body", "wheel")
    assert car.colours == ((0, 0, 0), (200, 30, 30), (30, 30, 200))
    assert "car" in repr(car)


def test_a_path_and_bytes_are_sent_as_they_are(server: FakeTriton, car: Segmenter, photo: Path) -> None:
    for image in (photo, str(photo), photo.read_bytes()):
        mask = car.segment(image)
        assert mask.array.shape == (10, 20)
        assert mask.array.dtype == np.uint8
        assert mask.array[:, 10:].all()
        assert not mask.array[:, :10].any()
    assert server.received == [photo.read_bytes()] * 3
    assert server.outputs == [["MASK"]] * 3


@pytest.mark.parametrize("compress", [False, True])
def test_an_array_is_sent_exactly_and_once(server: FakeTriton, compress: bool) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
    with Segmenter(server.url, "car", compress=compress) as car:
        for given in (image[::-1], Image.fromarray(image[::-1])):
            assert car.segment(given).array.shape == (7, 9)
    for data in server.received:
        picture = Image.open(io.BytesIO(data))
        assert picture.format == ("PNG" if compress else "PPM")
        np.testing.assert_array_equal(np.asarray(picture), image[::-1])
    assert len(server.received) == 2


def test_raw_pixels_are_what_the_server_decodes(server: FakeTriton, car: Segmenter) -> None:
    slime_image = pytest.importorskip("slime_image")
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    car.segment(image)
    np.testing.assert_array_equal(slime_image.decode(server.received[0]), image)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "YCbCr", "HSV"])
def test_a_pil_image_of_any_mode(car: Segmenter, mode: str) -> None:
    mask = car.segment(Image.new(mode, (6, 4)))
    assert mask.array.shape == (4, 6)
    assert mask.overlay().size == (6, 4)


def test_a_turned_photo_has_one_mask_as_file_and_as_pil_image(car: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(path, exif=exif)
    with Image.open(path) as opened:
        for image in (path, opened):
            mask = car.segment(image)
            assert mask.array.shape == (20, 10)
            assert mask.overlay().size == (10, 20)


def test_scores_are_optional(server: FakeTriton, car: Segmenter, photo: Path) -> None:
    assert car.segment(photo).scores is None
    scores = car.segment(photo, scores=True).scores
    assert scores is not None
    assert scores.shape == (3, 4, 4)
    assert scores.dtype == np.float32
    assert server.outputs[-1] == ["MASK", "SCORES"]


def test_the_mask_may_be_changed(car: Segmenter, photo: Path) -> None:
    mask = car.segment(photo)
    mask.array[0, 0] = 2
    assert mask.array[0, 0] == 2


def test_a_newly_published_segmenter_brings_its_own_parts(server: FakeTriton, car: Segmenter, photo: Path) -> None:
    assert len(car.segment(photo).parts) == 3
    server.models["car"] = {"parts": json.dumps(["background", "door"]), "colours": "[[0,0,0],[1,2,3]]"}
    server.version = "2"
    mask = car.segment(photo)
    assert mask.parts == ("background", "door")
    assert car.colours == ((0, 0, 0), (1, 2, 3))


def test_a_version_replaced_between_two_calls_is_asked_again(server: FakeTriton, car: Segmenter, photo: Path) -> None:
    server.retired.add("1")
    replies = iter(["1", "2"])
    plain = server.mask_of

    def replaced_meanwhile(data: bytes) -> "np.typing.NDArray[np.uint8]":
        server.version = next(replies)
        return plain(data)

    server.mask_of = replaced_meanwhile
    assert car.segment(photo).array.shape == (10, 20)
    assert len(server.received) == 2


def test_live(server: FakeTriton, car: Segmenter) -> None:
    assert car.live()
    server.stop()
    assert not car.live(timeout=1)


def test_a_closed_segmenter_says_so(server: FakeTriton, photo: Path) -> None:
    with Segmenter(server.url, "car") as car:
        pass
    car.close()
    assert not car.live()
    with pytest.raises(SegmenterError, match="closed; make a new Segmenter"):
        car.submit(photo)
    with pytest.raises(SegmenterError, match="closed; make a new Segmenter") as caught:
        car.segment(photo)
    assert caught.value.code == "FAILED_PRECONDITION"


def test_names_on_the_wire_are_the_servers() -> None:
    tensors = pytest.importorskip("slime_was.tensors")
    for name in ("IMAGE", "MASK", "SCORES", "SHARPENED", "SEGMENTER", "DESCRIPTION"):
        assert getattr(tensors, name) == getattr(protocol, name)
    contract = pytest.importorskip("slime_repository.contract")
    assert contract.SEGMENTERS == protocol.SEGMENTERS
    assert contract.IMAGE_SECONDS == protocol.IMAGE_SECONDS


def test_importing_the_client_imports_no_torch_and_no_other_component() -> None:
    code = (
        "import sys, slime_client.cli;"
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'diffusers', 'transformers', 'onnx')"
        " or m.startswith('slime_') and m.split('.')[0] != 'slime_client'])"
    )
    folder = str(Path(slime_client.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": folder}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"

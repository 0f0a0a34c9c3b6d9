"""Every way to fail: one exception, one line, the right code."""

import json
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
from fake_triton import FakeTriton, Refusal
from PIL import Image

from slime_client import Segmenter, SegmenterError
from slime_client.images import MAX_BYTES


def failure(action: Callable[[], Any]) -> SegmenterError:
    """The error of `action`, which must be one line."""
    with pytest.raises(SegmenterError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return caught.value


def refuse(code: grpc.StatusCode, details: str) -> Callable[[bytes], Any]:
    def raise_it(data: bytes) -> Any:
        raise Refusal(code, details)

    return raise_it


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_no_server() -> None:
    url = f"127.0.0.1:{free_port()}"
    error = failure(lambda: Segmenter(url, "car"))
    assert error.code == "UNAVAILABLE"
    assert str(error).startswith(f"{url}: no Triton server answers (Connection refused); start it")


def test_the_server_goes_away(server: FakeTriton, car: Segmenter, photo: Path) -> None:
    server.stop()
    error = failure(lambda: car.segment(photo, timeout=2))
    assert error.code == "UNAVAILABLE"
    assert "no Triton server answers" in str(error)


@pytest.mark.parametrize(
    ("details", "said"),
    [
        ("[request id: 7] Exceeds maximum queue size", "Exceeds maximum queue size"),
        ("Server is stopping, the scheduler accepts nothing", "Server is stopping, the scheduler accepts nothing"),
    ],
)
def test_the_server_is_busy(server: FakeTriton, car: Segmenter, photo: Path, details: str, said: str) -> None:
    server.mask_of = refuse(grpc.StatusCode.UNAVAILABLE, details)
    error = failure(lambda: car.segment(photo, timeout=2))
    assert error.code == "UNAVAILABLE"
    assert f"takes no request now ({said}); try again later" in str(error)


def test_an_unknown_segmenter_lists_those_that_are(server: FakeTriton) -> None:
    server.models["face"] = dict(server.models["car"])
    error = failure(lambda: Segmenter(server.url, "cart"))
    assert error.code == "NOT_FOUND"
    assert str(error) == f"{server.url}: no segmenter 'cart' is served; it serves: car, face"


def test_an_unknown_segmenter_where_the_index_is_closed(server: FakeTriton) -> None:
    server.index_closed = True
    error = failure(lambda: Segmenter(server.url, "cart"))
    assert str(error).endswith("no segmenter 'cart' is served; check the name")


def test_a_server_without_segmenters(server: FakeTriton) -> None:
    del server.models["car"]
    assert str(failure(lambda: Segmenter(server.url, "car"))).endswith("it serves no segmenter")


def test_a_model_that_is_no_segmenter(server: FakeTriton) -> None:
    error = failure(lambda: Segmenter(server.url, "was"))
    assert error.code == "NOT_FOUND"
    assert str(error).endswith("model 'was' is no segmenter: it names no parts; it serves: car")


def test_a_segmenter_unloaded_meanwhile(server: FakeTriton, car: Segmenter, photo: Path) -> None:
    details = "Request for unknown model: 'car' has no available versions"
    server.mask_of = refuse(grpc.StatusCode.UNAVAILABLE, details)
    error = failure(lambda: car.segment(photo))
    assert error.code == "NOT_FOUND"
    assert "no segmenter 'car' is served" in str(error)


@pytest.mark.parametrize(
    "parameters",
    [
        {"parts": "no json", "colours": "[]"},
        {"parts": '["background"]'},
        {"parts": '["background"]', "colours": "[[0, 0, 300]]"},
        {"parts": '["background"]', "colours": "[7]"},
        {"parts": "[]", "colours": "[]"},
        {"parts": json.dumps(["x"] * 257), "colours": json.dumps([[0, 0, 0]] * 257)},
    ],
)
def test_a_segmenter_that_describes_itself_wrongly(server: FakeTriton, parameters: dict[str, str]) -> None:
    server.models["car"] = parameters
    error = failure(lambda: Segmenter(server.url, "car"))
    assert error.code == "INTERNAL"
    assert "publish it again" in str(error)


def test_a_deadline_of_the_segmenter_and_of_one_call(server: FakeTriton, car: Segmenter, photo: Path) -> None:
    server.delay_s = 20
    error = failure(lambda: car.segment(photo, timeout=0.1))
    assert error.code == "DEADLINE_EXCEEDED"
    assert "no answer from segmenter 'car' within 0.1 s" in str(error)
    with Segmenter(server.url, "car", timeout=1) as hasty:
        assert "within 1 s" in str(failure(lambda: hasty.segment(photo)))
    server.delay_s = 0
    assert car.segment(photo).array.any()


def test_a_server_that_accepts_and_says_nothing() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"127.0.0.1:{listener.getsockname()[1]}"
        assert failure(lambda: Segmenter(url, "car", timeout=0.3)).code in ("DEADLINE_EXCEEDED", "UNAVAILABLE")


def test_a_bad_image_names_the_file_and_hides_the_servers_stack(car: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text("no picture")
    error = failure(lambda: car.segment(path))
    assert error.code == "INVALID_ARGUMENT"
    assert str(error) == (f"{path}: refused by segmenter 'car': image: not a JPEG, PNG or WebP; send one of these")
    assert "image bytes: refused" in str(failure(lambda: car.segment(b"no picture")))


def test_the_server_fails_inside(server: FakeTriton, car: Segmenter, photo: Path) -> None:
    server.mask_of = refuse(grpc.StatusCode.INTERNAL, "out of memory " * 100)
    error = failure(lambda: car.segment(photo))
    assert error.code == "INTERNAL"
    assert "see the server's log" in str(error)
    assert len(str(error)) < 600


def test_a_mask_that_is_none(server: FakeTriton, car: Segmenter, photo: Path) -> None:
    server.mask_of = lambda data: np.zeros((10, 20), np.int64)
    error = failure(lambda: car.segment(photo))
    assert error.code == "INTERNAL"
    assert "MASK: got int64 (10, 20) from the server" in str(error)
    server.mask_of = lambda data: np.full((10, 20), 9, np.uint8)
    error = failure(lambda: car.segment(photo))
    assert error.code == "INTERNAL"
    assert "part index 9, expected under 3" in str(error)


def test_local_files(car: Segmenter, tmp_path: Path) -> None:
    missing, folder, huge, empty = (tmp_path / name for name in ("missing.jpg", "folder", "huge.jpg", "empty.jpg"))
    folder.mkdir()
    empty.touch()
    with huge.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    for path, message in {
        missing: "no such file; check the path",
        folder: "not a file; give the path of one image",
        huge: "larger than 1024 MiB",
        empty: "got empty, expected a JPEG, PNG or WebP image",
    }.items():
        error = failure(lambda path=path: car.segment(path))  # type: ignore[misc]
        assert error.code == "INVALID_ARGUMENT"
        assert str(error).startswith(f"{path}: ")
        assert message in str(error)
    assert failure(lambda: car.segment("nul\0name.jpg")).code == "INVALID_ARGUMENT"


def test_a_file_without_permission(car: Segmenter, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests may run as root, whom no permission stops.
    def forbidden(path: Path) -> bytes:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    error = failure(lambda: car.segment(photo))
    assert str(error) == f"{photo}: cannot be read (Permission denied); check its permissions"


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        Image.new("F", (4, 4)),
        Image.new("RGB", (0, 4)),
        b"",
        None,
        7,
    ],
    ids=lambda image: repr(image).partition(" at 0x")[0],
)
def test_what_is_no_image_is_never_sent(server: FakeTriton, car: Segmenter, image: Any) -> None:
    error = failure(lambda: car.segment(image))
    assert error.code == "INVALID_ARGUMENT"
    assert "expected" in str(error)
    assert not server.received


def test_a_truncated_pil_image(car: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as cut:
        error = failure(lambda: car.segment(cut))
    assert error.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("url", ["", "http://localhost:8001", None])
def test_a_bad_url(url: Any) -> None:
    assert "expected host:port" in str(failure(lambda: Segmenter(url, "car")))


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan"), "30"])
def test_a_bad_timeout(server: FakeTriton, timeout: Any) -> None:
    assert "positive number of seconds" in str(failure(lambda: Segmenter(server.url, "car", timeout=timeout)))


@pytest.mark.parametrize("name", ["", "x" * 1_000_000, "\ud800", None, b"car"], ids=lambda name: repr(name)[:12])
def test_a_bad_name(server: FakeTriton, name: Any) -> None:
    error = failure(lambda: Segmenter(server.url, name))
    assert error.code == "INVALID_ARGUMENT"
    assert "published under" in str(error)
    assert len(str(error)) < 400


def test_more_than_a_message_holds(server: FakeTriton, car: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slime_client.images.MAX_BYTES", 1 << 20)
    for image in (bytes(1 << 21), np.zeros((1000, 1000, 3), np.uint8)):
        error = failure(lambda image=image: car.segment(image))  # type: ignore[misc]
        assert error.code == "INVALID_ARGUMENT"
        assert "got 2 MiB, expected at most 1" in str(error)
    assert not server.received


def test_the_error_survives_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(SegmenterError("two\nlines", "INTERNAL")))
    assert (str(error), error.code) == ("two lines", "INTERNAL")

"""More than a thousand malformed inputs beside a load of good ones: the right status each, no path of the server in
any, and the good ones are answered as if nothing were.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from load import Outcome, ask, load
from PIL import Image
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

import slime_was
from processes import stubs_of
from serving import Served, served
from slime_image import ImageError, decode

pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.alone]
FORMATS = ("JPEG", "PNG", "WEBP")
MALFORMED = 1_000
# What no message may tell.
SERVERS_OWN = ("/tmp", "/home", ".py", "Traceback")


@pytest.fixture(scope="module")
def server(toy_repository: Path) -> Iterator[Served]:
    """Whose Python processes live to the end."""
    with served(toy_repository) as server:
        before = stubs_of(server.launcher.pid)
        with load(server.grpc, "toy", clients=1) as outcomes:
            yield server
        assert stubs_of(server.launcher.pid) == before
    assert {outcome.status for outcome in outcomes} == {"OK"}
    assert all(np.array_equal(outcome.mask, outcomes[0].mask) for outcome in outcomes)


def fuzzed(seed: int) -> bytes:
    """A small picture with bytes overwritten, cut off, doubled or put in between."""
    chance = np.random.default_rng(seed)
    buffer = io.BytesIO()
    picture = chance.integers(0, 256, (int(chance.integers(1, 40)), int(chance.integers(1, 40)), 3), np.uint8)
    Image.fromarray(picture).save(buffer, FORMATS[seed % 3])
    data = bytearray(buffer.getvalue())
    place = int(chance.integers(0, len(data)))
    match seed // 3 % 4:
        case 0:
            for at in chance.integers(0, len(data), int(chance.integers(1, 20))):
                data[at] = int(chance.integers(0, 256))
        case 1:
            del data[place:]
        case 2:
            data[place:place] = chance.bytes(int(chance.integers(1, 200)))
        case _:
            data += data[:place]
    return bytes(data)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that promises many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 10_000))
        + chunk(b"IEND", b"")
    )


def is_clean(outcome: Outcome) -> bool:
    return "\n" not in outcome.message and not any(sign in outcome.message for sign in SERVERS_OWN)


def test_fuzzed_pictures(server: Served) -> None:
    """What can be decoded here is answered there."""
    inputs = enough()
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda each: ask(server.grpc, "toy", each[0], 30), inputs))
    for (data, wanted), outcome in zip(inputs, outcomes, strict=True):
        assert outcome.status == wanted, (data, outcome.message)
        assert is_clean(outcome)
    assert {"OK", "INVALID_ARGUMENT"} == {outcome.status for outcome in outcomes}


def enough() -> list[tuple[bytes, str]]:
    """Fuzzed pictures and the status of each, until a thousand have become none; some remain pictures."""
    found: list[tuple[bytes, str]] = []
    while [wanted for _, wanted in found].count("INVALID_ARGUMENT") < MALFORMED:
        data = fuzzed(len(found))
        found.append((data, expected(data)))
    return found


def expected(data: bytes) -> str:
    try:
        decode(data)
    except ImageError:
        return "INVALID_ARGUMENT"
    return "OK"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 1_000_000,
        bomb(50_000, 50_000),
        bomb(2**31 - 1, 2**31 - 1),
        bomb(7_000, 7_000),
        bomb(0, 0),
        b"P6 99999 99999 255 ",
        b"<svg/>",
        b"GIF89a" + bytes(100),
        "é".encode() * 5,
    ],
)
def test_no_pictures(server: Served, data: bytes) -> None:
    outcome = ask(server.grpc, "toy", data, 30)
    assert outcome.status == "INVALID_ARGUMENT"
    assert is_clean(outcome)
    assert outcome.seconds < 10


BYTES = np.array([b"x"], dtype=object)
TENSORS: dict[str, tuple[str, str, npt.NDArray[Any]]] = {
    "two images": ("IMAGE", "BYTES", np.array([b"x", b"x"], dtype=object)),
    "no image": ("IMAGE", "BYTES", np.array([], dtype=object)),
    "nested": ("IMAGE", "BYTES", np.array([[b"x"]], dtype=object)),
    "floats": ("IMAGE", "FP32", np.zeros(1, np.float32)),
    "pixels": ("IMAGE", "UINT8", np.zeros((8, 8, 3), np.uint8)),
    "another name": ("PICTURE", "BYTES", BYTES),
    "giant name": ("I" * 4_000, "BYTES", BYTES),
    "odd name": ("../../etc/passwd", "BYTES", BYTES),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_wrong_tensors(server: Served, kind: str) -> None:
    name, dtype, array = TENSORS[kind]
    outcome = ask_with(server, "toy", name, dtype, array)
    assert outcome == "INVALID_ARGUMENT"


@pytest.mark.parametrize("name", ["bicycle", "x" * 4_000, "../toy", "toy/../toy", "toy%00", "ö"])
def test_wrong_segmenters(server: Served, name: str) -> None:
    assert ask(server.grpc, name, fuzzed(0), 30).status in ("NOT_FOUND", "INVALID_ARGUMENT")


def test_a_name_that_even_the_refusal_cannot_repeat(server: Served) -> None:
    """gRPC's client takes no error text of that length."""
    assert ask(server.grpc, "x" * 100_000, fuzzed(0), 30).status == "RESOURCE_EXHAUSTED"
    assert ask(server.grpc, "toy", fuzzed(0), 30).status == expected(fuzzed(0))


def test_inner_models_refuse_nonsense(server: Served) -> None:
    assert ask_with(server, "vae_encoder", "PIXELS", "FP32", np.zeros((1, 3, 5, 5), np.float32)) == "INVALID_ARGUMENT"
    assert (
        ask_with(server, "vae_encoder", "PIXELS", "FP32", np.zeros((99, 3, 32, 32), np.float32)) == "INVALID_ARGUMENT"
    )
    for size in ([-5, 2**31 - 1], [0, 0], [100_000, 100_000]):
        assert ask_was(server, size) == "INVALID_ARGUMENT"
    assert ask_was(server, [7, 9]) == "OK"


def ask_was(server: Served, size: list[int]) -> str:
    """Maps that fit together, and some size of the mask."""
    postprocess = slime_was.Postprocess(side=32).vector()
    given = {
        "CROSS": np.ones((1, 3, 4, 4), np.float32),
        "SELF": np.ones((1, 16, 16), np.float32),
        "POSTPROCESS": postprocess[np.newaxis],
        "SIZE": np.array(size, np.int32),
    }
    tensors = []
    for name, array in given.items():
        tensors.append(grpc.InferInput(name, array.shape, "INT32" if name == "SIZE" else "FP32"))
        tensors[-1].set_data_from_numpy(array)
    return status_of(server, "was", tensors)


def ask_with(server: Served, model: str, name: str, dtype: str, array: npt.NDArray[Any]) -> str:
    tensor = grpc.InferInput(name, list(array.shape), dtype)
    tensor.set_data_from_numpy(array)
    return status_of(server, model, [tensor])


def status_of(server: Served, model: str, tensors: list[Any]) -> str:
    with grpc.InferenceServerClient(server.grpc) as client:
        try:
            client.infer(model, tensors, client_timeout=30)
        except InferenceServerException as error:
            assert not any(sign in str(error.message()) for sign in SERVERS_OWN)
            return str(error.status()).removeprefix("StatusCode.")
    return "OK"

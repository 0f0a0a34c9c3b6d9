"""Fixtures of the client's tests: a server, a segmenter on it, one photo."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_triton import FakeTriton
from PIL import Image

from slime_client import Segmenter


@pytest.fixture
def server() -> Iterator[FakeTriton]:
    """A running server with the segmenter `car`."""
    server = FakeTriton()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def car(server: FakeTriton) -> Iterator[Segmenter]:
    """The segmenter `car`, connected."""
    with Segmenter(server.url, "car", timeout=10) as segmenter:
        yield segmenter


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A JPEG of 20 x 10 pixels, grey."""
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.full((10, 20, 3), 128, np.uint8)).save(path)
    return path

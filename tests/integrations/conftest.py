"""A small server for what other people's tools ask of the client; each test needs its tool (make test-integrations)."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from fake_triton import FakeTriton

RING = np.zeros((12, 20), np.uint8)
RING[2:10, 3:17] = 1
RING[4:8, 6:12] = 0  # a hole
RING[0, 0] = 2


@pytest.fixture
def ring() -> npt.NDArray[np.uint8]:
    """The mask that the server gives."""
    return RING


@pytest.fixture
def server() -> Iterator[FakeTriton]:
    """A running server whose segmenter `car` finds a ring of part 1 and one pixel of part 2 in every image."""
    server = FakeTriton()
    server.mask_of = lambda data: RING
    server.start()
    yield server
    server.stop()

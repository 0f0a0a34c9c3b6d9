"""A network that takes seconds an image, as Stable Diffusion does on a CPU: with its defaults the client loses none,
the launcher leaves its busy server alone, and it finds one that hangs.

Ten seconds an image would be a test of minutes; three are already too long for what used to be fixed: the encoder's
queue held an image for five seconds, and eight were in flight.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from load import PICTURE
from slow_network import with_slow_encoder
from tritonclient import grpc

from processes import server_of, stubs_of
from serving import served, stop_and_read
from slime_client import Segmenter
from slime_client.cli import main

pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.alone]
IMAGE_S, IMAGES = 3.0, 20


def masks_made(address: str) -> int:
    with grpc.InferenceServerClient(address) as client:
        (statistics,) = client.get_inference_statistics("was").model_stats
    return int(statistics.inference_stats.success.count)


def test_a_slow_network(toy_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = [tmp_path / f"{number}.png" for number in range(IMAGES)]
    for photo in photos:
        photo.write_bytes(PICTURE)
    with served(with_slow_encoder(toy_repository, tmp_path, seconds=IMAGE_S), "--probe", "1") as server:
        pid = server.launcher.pid
        before, made = server_of(pid), masks_made(server.grpc)
        words = ["--url", server.grpc, "--segmenter", "toy", "--out", str(tmp_path / "out"), "--no-overlay"]
        assert main([*words, *map(str, photos)]) == 0
        first = capsys.readouterr().err.splitlines()[0]
        assert first.startswith("about 3") and "s an image here; 2 in flight, and up to 7" in first
        assert len(list((tmp_path / "out").glob("*.png"))) == IMAGES
        assert server_of(pid) == before
        assert masks_made(server.grpc) - made == IMAGES, "a server that computed was probed"

        os.kill(stubs_of(pid)["vae_encoder"][0], signal.SIGSTOP)
        begun = time.monotonic()
        with Segmenter(server.grpc, "toy") as toy:
            # Found, started again, and asked again before the image's deadline.
            assert np.array_equal(toy.segment(photos[0]).array, toy.segment(photos[0]).array)
        assert server_of(pid) != before
        assert time.monotonic() - begun < 24 * IMAGE_S
        assert stop_and_read(server.launcher).count("starting it again") == 1

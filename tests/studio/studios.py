"""What the tests of the studio share: pictures to send, and a studio in a process of its own."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import numpy.typing as npt
from PIL import Image

TOKEN, PORT = "0123456789abcdef" * 3, 8765
SECONDS = 300.0


def encoded(pixels: npt.NDArray[np.uint8], kind: str = "PNG", **options: Any) -> bytes:
    """An array (H,W,3) or (H,W) as the content of a file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def noise(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


class Running:
    """`slime studio` in a process of its own."""

    def __init__(self, project: Path, *words: str) -> None:
        self.project = project
        command = [sys.executable, "-m", "slime_cli", "studio", str(project), "--port", "0", "--no-browser", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        assert self.process.stdout
        line = self.process.stdout.readline()
        found = re.match(r"studio (http://[\d.:]+)/\?token=(\w+) ", line)
        assert found, line
        self.base, self.token = found.groups()
        headers = {"Authorization": f"token {self.token}"}
        self.client = httpx2.Client(base_url=self.base, headers=headers, timeout=60)

    @property
    def page(self) -> str:
        return f"{self.base}/?token={self.token}"

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get("/api/state").json()
        return found

    def job(self, number: int) -> dict[str, Any]:
        return next(job for job in self.state()["jobs"] if job["number"] == number)

    def await_job(self, number: int, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while not wanted(job := self.job(number)):
            assert job["state"] in ("queued", "running") and time.monotonic() < deadline, job
            time.sleep(0.1)
        return job

    def post(self, path: str, facts: dict[str, Any] | None = None) -> dict[str, Any]:
        answer = self.client.post(path, json=facts or {})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def kill(self) -> None:
        """End it as a power cut would, but for its jobs."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._close()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            assert self.process.wait(timeout=SECONDS) == 0
        self._close()

    def _close(self) -> None:
        self.client.close()
        assert self.process.stdout
        self.process.stdout.close()

"""Starting the real server in tests: on free ports, one thread for each network, and always stopped.

with served(repository) as server:
    server.segment("car", png_bytes)
"""

from __future__ import annotations

import io
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from tritonclient import grpc

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "serve" / "launch.py"
FREE_PORTS = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
READY_SECONDS = 120.0
STOP_SECONDS = 40.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running server: its launcher and the addresses (HOST:PORT) and segmenters of its ready line."""

    launcher: subprocess.Popen[str]
    grpc: str
    http: str
    metrics: str
    segmenters: tuple[str, ...]

    def infer(self, segmenter: str, data: bytes, outputs: tuple[str, ...] = ("MASK",)) -> Any:
        """tritonclient's answer to one encoded image; raises its InferenceServerException."""
        image = grpc.InferInput("IMAGE", [1], "BYTES")
        image.set_data_from_numpy(np.array([data], dtype=object))
        wanted = [grpc.InferRequestedOutput(name) for name in outputs]
        with grpc.InferenceServerClient(self.grpc) as client:
            return client.infer(segmenter, [image], outputs=wanted, client_timeout=60)

    def segment(self, segmenter: str, data: bytes) -> npt.NDArray[np.uint8]:
        """The mask (H, W) of one encoded image."""
        mask_HW: npt.NDArray[np.uint8] = self.infer(segmenter, data).as_numpy("MASK")
        return mask_HW


@contextmanager
def served(repository: Path, *arguments: str) -> Iterator[Served]:
    """A server on ``repository`` through serve/launch.py, stopped with SIGTERM at the end. Fails with its stderr."""
    launcher = launch(repository, *arguments)
    try:
        yield _served(launcher)
    finally:
        stop(launcher)


def launch(repository: Path, *arguments: str, ports: tuple[str, ...] = FREE_PORTS) -> subprocess.Popen[str]:
    """serve/launch.py as a process of its own; nothing is waited for."""
    command = [sys.executable, os.fspath(LAUNCH), "--repository", os.fspath(repository), "--threads", "1"]
    return subprocess.Popen([*command, *ports, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def metrics(server: Served) -> dict[str, float]:
    """Value by name and labels, as Triton's endpoint writes them."""
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=10) as answer:
        lines = re.findall(r"^(\w+(?:\{.*\})?) (\S+)$", answer.read().decode(), re.MULTILINE)
    return {name: float(value) for name, value in lines}


def stop(launcher: subprocess.Popen[str], number: int = signal.SIGTERM) -> int:
    """Signal the launcher, wait for it and return its exit code."""
    if launcher.poll() is None:
        launcher.send_signal(number)
    try:
        launcher.communicate(timeout=STOP_SECONDS)
    finally:
        launcher.kill()
    return launcher.returncode


def _served(launcher: subprocess.Popen[str]) -> Served:
    line = first_line(launcher)
    word, *pairs = line.split() or [""]
    if word != "ready":
        raise AssertionError(f"the server did not get ready: {line!r} {stop_and_read(launcher)}")
    said = dict(pair.split("=", 1) for pair in pairs)
    return Served(
        launcher=launcher,
        grpc=said["grpc"],
        http=said["http"],
        metrics=said["metrics"],
        segmenters=tuple(said["segmenters"].split(",")),
    )


def stop_and_read(launcher: subprocess.Popen[str]) -> str:
    """End the launcher and return what it wrote to stderr."""
    if launcher.poll() is None:
        launcher.send_signal(signal.SIGTERM)
    return launcher.communicate(timeout=STOP_SECONDS)[1]


def first_line(launcher: subprocess.Popen[str]) -> str:
    """The launcher's ready line, or "" where it ended or READY_SECONDS passed without one."""
    lines: queue.Queue[str] = queue.Queue()
    assert launcher.stdout is not None
    threading.Thread(target=lambda stdout=launcher.stdout: lines.put(stdout.readline()), daemon=True).start()
    try:
        return lines.get(timeout=READY_SECONDS)
    except queue.Empty:
        return ""


class Asking:
    """Sends one image after the other from a thread of its own, and keeps every answer and error."""

    def __init__(self, server: Served, image: Any, segmenter: str = "car") -> None:
        self.masks: list[Any] = []
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(server, png(image), segmenter))

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self, server: Served, data: bytes, segmenter: str) -> None:
        while not self._stop.is_set():
            try:
                self.masks.append(server.segment(segmenter, data))
            except Exception as error:
                self.errors.append(f"{type(error).__name__}: {error}")


def png(image: npt.NDArray[np.uint8], **options: Any) -> bytes:
    """The array (H, W, 3) or (H, W) as an encoded PNG; ``options`` go to Pillow, e.g. exif."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", **options)
    return buffer.getvalue()

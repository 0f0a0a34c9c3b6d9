"""The same ONNX files behind the server: published into a repository, served by serve/launch.py, asked over gRPC."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.common.served_repository import Networks
from benchmarks.common.server import launched
from benchmarks.pipeline.side import Mask, Stages, Variant
from benchmarks.publishing.variants import UNCHECKED, ExportVariant, Published, Segmenter

from slime_client import Segmenter as Client

NAME = "measured"


class Triton(Variant):
    """From bytes to masks over loopback. The stage `unet` holds all of the time; peak memory is the client's alone."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._threads, self.image_size = options.threads, options.pixels
        self._stack = ExitStack()
        repository = Path(self._stack.enter_context(tempfile.TemporaryDirectory(dir=options.unet.parents[1])))
        variant = ExportVariant(maps="weighted" if options.unet.parent.name.startswith("weighted") else "averaged")
        segmenter, networks = Segmenter.load(options.segmenter), Networks(options.encoder, options.unet)
        published = Published(segmenter=segmenter, check=UNCHECKED, networks=networks, variant=variant)
        published.publish(repository, NAME, None)
        words = ("--no-verify", "--threads", str(options.threads))
        server = self._stack.enter_context(launched(repository, *words))
        self._client = self._stack.enter_context(Client(server.url, NAME))

    @property
    def about(self) -> dict[str, Any]:
        return {"device": "cpu", "threads": self._threads, "versions": {}}

    def masks(self, files: Sequence[bytes], stage: Stages) -> list[Mask]:
        with stage("unet"):
            return [self._client.segment(each, timeout=600).array for each in files]

    def close(self) -> None:
        self._stack.close()

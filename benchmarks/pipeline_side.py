"""One variant of benchmarks.pipeline: a process of its own that holds its models and works when told.

    python -m benchmarks.pipeline_side KIND FOLDER ...

Orders come as lines of JSON on standard input, each answered by one on standard output:

    {"batch": 1, "side": 512}   pictures of that side, from bytes to masks: seconds of each stage; `first`: a seed
    {"save": PATH}              masks of three pictures, as an array in that file
    {"count": true}             multiply-accumulates of one picture, where PyTorch runs it

The first line, before any order, tells what it runs on, and the last, after the input's end, its peak memory. What runs
in ONNX Runtime imports no PyTorch.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
from benchmarks.pictures import encoded

import slime_image

Mask = npt.NDArray[np.uint8]
STAGES = ("fit", "encode", "unet", "postprocess", "mask")
SAVED = (0, 1, 2)  # seeds of the pictures whose masks are compared


class Stages:
    """Seconds by stage; `wait` is called before the clock is read, because a GPU works on behind one's back."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.wait()
        self.seconds[name] += time.perf_counter() - begin

    def wait(self) -> None:
        """Nothing works behind one's back on a CPU."""


class Variant(ABC):
    """One way from bytes to masks. `about` tells what it runs on."""

    image_size: int

    @abstractmethod
    def masks(self, files: Sequence[bytes], stage: Stages) -> list[Mask]:
        """Each image's mask; every step is inside `with stage(NAME)`."""

    @property
    @abstractmethod
    def about(self) -> dict[str, Any]: ...

    def stages(self) -> Stages:
        return Stages()

    def count(self) -> int:
        """Multiply-accumulates of one picture; 0 where the graph's own are counted."""
        return 0

    def peak_bytes(self) -> int:
        return high_water()

    def close(self) -> None:  # noqa: B027  most have nothing
        """What else runs for it is ended."""

    def decoded(self, files: Sequence[bytes]) -> tuple[list[tuple[int, int]], npt.NDArray[np.float32]]:
        """(height, width) of each image, and all fitted, (B,3,S,S)."""
        images = [slime_image.decode(each) for each in files]
        fitted = np.stack([slime_image.fit(image, self.image_size) for image in images])
        return [(image.shape[0], image.shape[1]) for image in images], fitted


@lru_cache(maxsize=64)
def _file(side: int, seed: int) -> bytes:
    return encoded(side, seed)


def serve(variant: Variant, orders: TextIO, answers: TextIO) -> None:
    """Two runs to warm up, as a runtime may plan its memory by the first; then an answer to each order."""
    _run(variant, {})
    _run(variant, {})
    _tell(answers, variant.about | {"loaded_bytes": variant.peak_bytes()})
    for line in orders:
        order = json.loads(line)
        if "save" in order:
            masks = variant.masks([_file(variant.image_size, seed) for seed in SAVED], variant.stages())
            np.save(order["save"], np.stack(masks))
            _tell(answers, {"saved": order["save"]})
        elif "count" in order:
            _tell(answers, {"macs": variant.count()})
        else:
            _tell(answers, {"seconds": _run(variant, order)})
    _tell(answers, {"peak_bytes": variant.peak_bytes()})


def _run(variant: Variant, order: dict[str, Any]) -> dict[str, float]:
    side = order.get("side", variant.image_size)
    first = order.get("first", 0)
    files = [_file(side, seed) for seed in range(first, first + order.get("batch", 1))]
    stage = variant.stages()
    begin = time.perf_counter()
    variant.masks(files, stage)
    return stage.seconds | {"total": time.perf_counter() - begin}


def _tell(answers: TextIO, what: Any) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()


def high_water() -> int:
    """Bytes of the largest resident set this process ever had."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def _variant(options: argparse.Namespace) -> Variant:
    if options.kind == "onnx":
        from benchmarks.pipeline_onnx import Served

        return Served(options)
    if options.kind == "triton":
        from benchmarks.pipeline_triton import Triton

        return Triton(options)
    if options.kind == "product":
        from benchmarks.pipeline_product import Product

        return Product(options)
    from benchmarks.pipeline_torch import KINDS

    return KINDS[options.kind](options)


def main() -> None:
    options = _arguments()
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is not an answer
    variant = _variant(options)
    try:
        serve(variant, sys.stdin, answers)
    finally:
        variant.close()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["published", "torch", "onnx", "triton", "product"])
    parser.add_argument("--segmenter", type=Path, help="of the two in PyTorch")
    parser.add_argument("--backbone", help="where the segmenter's is now")
    parser.add_argument("--encoder", type=Path, help="model.onnx")
    parser.add_argument("--unet", type=Path, help="model.onnx")
    parser.add_argument("--session", default="served", help="options of ONNX Runtime's session, by name")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()

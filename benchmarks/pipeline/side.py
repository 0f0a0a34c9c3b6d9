"""One variant of benchmarks.pipeline: a process of its own that holds its models and works when it is told to.

    python -m benchmarks.pipeline.side KIND ...

Orders come as lines of JSON on standard input, and each is answered by one line on standard output:

    {"batch": 1, "side": 512}   segment pictures of that side: seconds of each stage; `first` is the first one's seed
    {"save": PATH}              write the masks of three pictures, as an array, to that file
    {"count": true}             multiply-accumulates of one picture, where PyTorch runs it

The first line, before any order, says what the side runs on, or why it cannot run; the last, after the input's end, is
its peak memory. Sides that run ONNX Runtime alone import no PyTorch.
"""

from __future__ import annotations

import argparse
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
from benchmarks.common import command_line
from benchmarks.common.pictures import encoded
from benchmarks.common.sides import MissingError, work

import slime_image
from slime_export.machine import peak_bytes

Mask = npt.NDArray[np.uint8]
STAGES = ("fit", "encode", "unet", "postprocess", "mask")
SAVED = (0, 1, 2)  # seeds of the pictures whose masks are compared
TORCH = ("published", "torch", "fp16", "fp16_graph", "fp16_tiny", "fp16_tiny_graph")
KINDS = (*TORCH, "served", "triton", "product")


class Stages:
    """Seconds of each stage. `wait` is called before the clock is read, because a GPU works on asynchronously."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.wait()
        self.seconds[name] += time.perf_counter() - begin

    def wait(self) -> None:
        """Do nothing: on a CPU nothing works asynchronously."""


class Variant(ABC):
    """One way from the bytes of images to their masks. `about` says what it runs on."""

    image_size: int
    too_large: tuple[type[BaseException], ...] = (MemoryError,)  # raised by a batch that memory does not suffice for

    @abstractmethod
    def masks(self, files: Sequence[bytes], stage: Stages) -> list[Mask]:
        """Return each image's mask; every step is inside `with stage(NAME)`."""

    @property
    @abstractmethod
    def about(self) -> dict[str, Any]: ...

    def stages(self) -> Stages:
        return Stages()

    def count(self) -> int:
        """Return the multiply-accumulates of one picture; 0 where those of the graph's file are counted."""
        return 0

    def peak_bytes(self) -> int:
        return peak_bytes()

    def close(self) -> None:  # noqa: B027  most have nothing to end
        """End what else runs for this variant."""

    def decoded(self, files: Sequence[bytes]) -> tuple[list[tuple[int, int]], npt.NDArray[np.float32]]:
        """Return (height, width) of each image, and all of them fitted, (B,3,S,S)."""
        images = [slime_image.decode(each) for each in files]
        fitted = np.stack([slime_image.fit(image, self.image_size) for image in images])
        return [(image.shape[0], image.shape[1]) for image in images], fitted


def serve(variant: Variant, orders: TextIO | None = None, answers: TextIO | None = None) -> None:
    """Warm up with two runs, as a runtime may plan its memory by the first; then answer each order."""

    def run(order: dict[str, Any]) -> dict[str, float]:
        side, first = order.get("side", variant.image_size), order.get("first", 0)
        files = [encoded(side, seed) for seed in range(first, first + order.get("batch", 1))]
        stage, begin = variant.stages(), time.perf_counter()
        variant.masks(files, stage)
        return stage.seconds | {"total": time.perf_counter() - begin}

    def obey(order: dict[str, Any]) -> dict[str, Any]:
        if "save" in order:
            masks = variant.masks([encoded(variant.image_size, seed) for seed in SAVED], variant.stages())
            np.save(order["save"], np.stack(masks))
            return {"saved": order["save"]}
        if "count" in order:
            return {"macs": variant.count()}
        try:
            return {"seconds": run(order)}
        except variant.too_large:
            return {"failed": f"batch {order.get('batch', 1)}: not enough memory"}

    run({})
    run({})
    work(variant.about, obey, lambda: {"peak_bytes": variant.peak_bytes()}, orders, answers)


def opened(options: argparse.Namespace) -> Variant:
    """Return the variant that the options name. Raises MissingError if it cannot run here."""
    if options.kind in TORCH:
        from benchmarks.pipeline import torch_side

        return torch_side.MADE[options.kind](options)
    from benchmarks.pipeline import served_side

    return served_side.MADE[options.kind](options)


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--segmenter", type=Path, help="what PyTorch runs")
    parser.add_argument("--backbone", help="where the segmenter's backbone is now")
    parser.add_argument("--encoder", type=Path, help="model.onnx or model.plan")
    parser.add_argument("--unet", type=Path, help="model.onnx or model.plan")
    parser.add_argument("--pixels", type=int, help="side of the images that the networks in files take")
    parser.add_argument("--openvino", choices=("fp32", "bf16"), help="OpenVINO runs the files, computing in this")
    parser.add_argument("--session", default="served", help="options of ONNX Runtime's session, by name")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    try:
        variant = opened(options)
    except MissingError as error:
        print(json.dumps({"missing": str(error)}), flush=True)
        return
    try:
        serve(variant)
    finally:
        variant.close()


if __name__ == "__main__":
    main()

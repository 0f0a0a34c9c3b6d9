"""How OpenVINO is best given a CPU's cores: threads, streams and batches, for one image and for eight at a time.

    python -m benchmarks.pipeline.streams
    python -m benchmarks.pipeline.streams --precision bf16 --unet build/demo/repository/car_unet/1/model.onnx

A stream runs one batch after the other on its share of the threads; streams run beside each other. Each way computes
the same images by turns in every round; milliseconds are the median of the rounds. The stand-in of
serve/backends runs one stream with all threads: what waits is gathered into a batch. For a small network alone a thread
for each image is faster; behind the server, whose other models want the cores too, it gained nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from benchmarks.common import command_line
from benchmarks.common.sides import ROOT

from slime_export.machine import processor
from slime_optimize.tables import Table
from slime_repository.openvino_network import BF16, FP32, module

_HINTS = {FP32: "f32", BF16: "bf16"}
_AT_ONCE = (1, 8)  # clients
_BATCHES = (1, 2, 4, 8)


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.parser(__doc__)
    parser.add_argument("--unet", type=Path, help="an ONNX file (default: the newest of benchmarks.pipeline)")
    parser.add_argument("--precision", choices=tuple(_HINTS), default=FP32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(argv)
    kept = sorted((ROOT / "build" / "pipeline").glob("*/weighted-6/model.onnx"), key=lambda each: each.stat().st_mtime)
    if not (options.unet or kept):
        parser.error("--unet: got none, and benchmarks.pipeline has kept none; give an exported UNet's ONNX file")
    path = options.unet or kept[-1]
    ways: dict[tuple[int, int, int], Callable[[], None]] = {}
    for streams in range(1, options.threads + 1):
        compiled = opened(path, options.precision, options.threads, streams)
        for images in _AT_ONCE:
            for batch in (each for each in _BATCHES if each <= images):
                ways[images, streams, batch] = way(compiled, images, streams, batch)
    seconds: dict[tuple[int, int, int], list[float]] = {each: [] for each in ways}
    for run in ways.values():
        run()
    for turn in range(options.rounds):
        for key in list(ways) if turn % 2 == 0 else list(reversed(ways)):
            begun = time.perf_counter()
            ways[key]()
            seconds[key].append(time.perf_counter() - begun)
    found = {key: median(each) for key, each in seconds.items()}
    rows = tuple(
        (
            str(images),
            str(streams),
            str(options.threads // streams),
            str(batch),
            f"{1e3 * each:.1f}",
            f"{images / each:.1f}",
        )
        for (images, streams, batch), each in sorted(found.items())
    )
    columns = ("images at once", "streams", "threads of each", "batch", "ms for all", "images a second")
    print(Table(columns=columns, rows=rows).text())
    print(f"{path.parent.name}, {options.precision}, {processor()}, {options.threads} threads, {options.rounds} rounds")
    return 0


def opened(path: Path, precision: str, threads: int, streams: int) -> Any:
    """Compile the network at `path` for so many streams, which share the threads."""
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": streams,
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "ENABLE_CPU_PINNING": False,
    }
    core = module().Core()
    return core.compile_model(core.read_model(str(path)), "CPU", settings)


def way(compiled: Any, images: int, streams: int, batch: int) -> Callable[[], None]:
    """Return what computes `images` images in batches, so many of them beside each other as there are streams."""
    queue = module().AsyncInferQueue(compiled, streams)
    shape = [batch, *(int(each.get_length()) for each in list(compiled.inputs[0].partial_shape)[1:])]
    given = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)

    def run() -> None:
        for _ in range(images // batch):
            queue.start_async({0: given})
        queue.wait_all()

    return run


if __name__ == "__main__":
    sys.exit(main())

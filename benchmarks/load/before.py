"""The server beside an earlier one, by turns: how long a mask takes over gRPC, and how many come a second.

    python -m benchmarks.load.before --before OLD/.venv/bin/python OLD/serve/launch.py --before-repository OLD/models
        --repository repository --images photos/ --segmenter car

OLD is a checkout of an earlier commit with an environment of its own. Both repositories hold the same segmenter, each
exported by its own code; the other side may also be this very code with a repository exported differently. In every
round each server is started, warmed up, asked by one client, then by eight, each in a closed loop on the same cores.
"""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
from benchmarks.common import command_line
from benchmarks.common.server import LAUNCH, Launched, launched
from benchmarks.common.sides import positive, reported
from PIL import Image

from slime_client import Segmenter
from slime_client.mask import Mask
from slime_export.machine import processor
from slime_optimize.tables import Table

WARM_UP_S = 2.0
MANY = 8  # clients
SUFFIXES = (".jpg", ".jpeg", ".png")


def asked(url: str, name: str, images: Sequence[bytes], clients: int, seconds: float) -> tuple[float, float]:
    """Return the median ms of a mask and the masks a second, of clients in a closed loop."""
    took: list[float] = []
    until = time.perf_counter() + seconds

    def client(number: int) -> None:
        with Segmenter(url, name) as segmenter:
            while (begun := time.perf_counter()) < until:
                segmenter.segment(images[number % len(images)])
                took.append(time.perf_counter() - begun)
                number += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    begun = time.perf_counter()
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return 1000 * median(took), len(took) / (time.perf_counter() - begun)


def turn(server: Launched, name: str, images: Sequence[bytes], seconds: float) -> tuple[list[float], list[Mask]]:
    """Return the ms of a mask for one client, masks a second for eight, CPU ms a mask then; and the images' masks."""
    for clients in (1, MANY):
        asked(server.url, name, images, clients, WARM_UP_S)
    alone, _ = asked(server.url, name, images, 1, seconds)
    used = server.cpu_seconds()
    _, rate = asked(server.url, name, images, MANY, seconds)
    used = server.cpu_seconds() - used
    with Segmenter(server.url, name) as segmenter:
        return [alone, rate, 1000 * used / (rate * seconds)], [segmenter.segment(image) for image in images]


def enlarged(path: Path, megapixels: int) -> bytes:
    """Return an image as a JPEG of so many megapixels."""
    buffer = io.BytesIO()
    with Image.open(path) as image:
        times = (1e6 * megapixels / (image.width * image.height)) ** 0.5
        size = (round(times * image.width), round(times * image.height))
        image.convert("RGB").resize(size).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@reported
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.parser(__doc__)
    parser.add_argument("--before", nargs="+", default=LAUNCH, help="the other server's command (default: this code's)")
    parser.add_argument("--before-repository", type=Path, required=True)
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--segmenter", default="car")
    parser.add_argument("--images", type=Path, required=True, help="folder of images, of which a dozen are sent")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    meaning = "enlarge the images to so many megapixels and send them as JPEG, as cameras make them"
    parser.add_argument("--megapixels", type=positive, help=meaning)
    options = parser.parse_args(argv)
    found = sorted(each for each in options.images.iterdir() if each.suffix.lower() in SUFFIXES)[:12]
    if not found:
        parser.error(f"--images {options.images}: got no image, expected some of {', '.join(SUFFIXES)}")
    images = [enlarged(each, options.megapixels) if options.megapixels else each.read_bytes() for each in found]
    sides = {"before": (options.before_repository, options.before), "now": (options.repository, LAUNCH)}
    figures: dict[str, list[list[float]]] = {side: [] for side in sides}
    masks: dict[str, list[Mask]] = {}
    for number in range(options.rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            repository, command = sides[side]
            with launched(repository, command=command) as server:
                measured, masks[side] = turn(server, options.segmenter, images, options.seconds)
            figures[side].append(measured)
            print(f"round {number + 1}, {side}: {measured[0]:.1f} ms, {measured[1]:.1f} a second", flush=True)
    print(table(figures).text())
    same = np.mean([np.mean(a.array == b.array) for a, b in zip(masks["before"], masks["now"], strict=True)])
    print(f"{same:.4%} of the masks' pixels are the same. {processor()}, {options.rounds} rounds of each, medians.")
    return 0


def table(figures: dict[str, list[list[float]]]) -> Table:
    """Return both sides' medians over the rounds, and how many times as fast the side now is, the median of rounds."""
    rows = []
    for index, name in enumerate(("ms of a mask, one client", "masks a second, eight clients", "CPU ms a mask, eight")):
        before, now = ([round_[index] for round_ in figures[side]] for side in ("before", "now"))
        times = median(b / n for b, n in zip(before, now, strict=True))
        rows.append((name, f"{median(before):.1f}", f"{median(now):.1f}", f"{1 / times if index == 1 else times:.2f}"))
    return Table(columns=("figure", "before", "now", "times as good"), rows=tuple(rows))


if __name__ == "__main__":
    sys.exit(main())

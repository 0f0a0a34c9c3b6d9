"""The whole path on one machine, with nothing downloaded: `slime demo`, or `make demo` in a checkout.

ONE annotated car, drawn by this project, becomes a segmenter, an ONNX model, a model repository and a running Triton
server; then 50 images that it never saw are segmented over gRPC. Every step is a `slime` command, printed as it runs.
Everything is written into one folder. A step that was done before, with the same backbone and settings, is skipped.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from slime_backbone.dataset import write_split
from slime_backbone.scene import COUNTS, KINDS
from slime_client import Segmenter
from slime_client.cli import Parser
from slime_optimize.backbone import content_hash, embedded_folder, read_recommended
from slime_optimize.metrics import Report, confusion, report
from slime_optimize.picture import colour_mask, sheet
from slime_optimize.presets import chosen_preset, preset

SHOWN = 16  # images of the contact sheet, two a row
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a served segmenter answered for a folder of annotated images: one entry for each image."""

    parts: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    images: tuple[Path, ...]
    truths: tuple[Pixels, ...]
    masks: tuple[Pixels, ...]
    seconds: tuple[float, ...]

    def report(self) -> Report:
        """Return the IoU by part, over all images."""
        pairs = zip(self.truths, self.masks, strict=True)
        return report([confusion(truth, mask, len(self.parts)) for truth, mask in pairs], self.parts)

    def milliseconds(self, percentile: float) -> float:
        """Return this percentile of the time from sending an image to having its mask."""
        return float(np.percentile(self.seconds, percentile) * 1000)

    def contact_sheet(self) -> Image.Image:
        """Return a picture with image, truth and prediction of SHOWN images, two images to a row."""
        cells = [
            (np.asarray(Image.open(path).convert("RGB")), colour_mask(t, self.colours), colour_mask(m, self.colours))
            for path, t, m in list(zip(self.images, self.truths, self.masks, strict=True))[:SHOWN]
        ]
        rows = [sum(cells[at : at + 2], ()) for at in range(0, len(cells), 2)]
        return sheet(rows, ("image", "truth", "prediction") * min(2, len(cells)), self.parts, self.colours, 128)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the demo; return the exit code."""
    options = _parser(prog).parse_args(argv)
    folder: Path = options.build
    segmenter, repository, picture = (
        folder / "segmenters" / options.kind,
        folder / "repository",
        folder / "contact-sheet.png",
    )
    print(f"everything is written into {folder.resolve()}", flush=True)
    try:
        training, test = (write_split(folder / "partscenes", options.kind, split) for split in ("train-1", "test"))
        optimise(training, segmenter, steps=options.steps)
        export(segmenter, repository)
        if options.stop_after == "export":
            return 0
        with server(repository) as url:
            answers = ask(url, options.kind, test, options.images)
        answers.contact_sheet().save(picture)
    except subprocess.CalledProcessError as error:
        print(f"error: slime {error.cmd[3]} failed with exit code {error.returncode}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {folder}: cannot be written ({error}); give --build another folder", file=sys.stderr)
        return 1
    measured = answers.report()
    latency = f"p50 {answers.milliseconds(50):.1f} ms   p95 {answers.milliseconds(95):.1f} ms"
    print(f"{measured.table()}\n\nmean IoU {measured.mean:.1f} %   {latency}   {len(answers.masks)} images over gRPC")
    print(f"contact sheet: {picture}")
    return 0


def optimise(training: Path, segmenter: Path, *options: object, steps: int | None = None) -> None:
    """Run `slime optimize` on the folder's one annotated image, unless that was done with these settings.

    `steps` replaces the preset's number of steps; `options` are passed on as they are.
    """
    changes = {} if steps is None else {"steps": steps}
    if _is_done(segmenter, changes):
        print(f"{segmenter}: there already", flush=True)
        return
    parts = json.loads((training / "parts.json").read_text())
    image, mask = training / "images" / "000.png", training / "masks" / "000.png"
    given = ("--image", image, "--mask", mask, "--parts", *parts, "--out", segmenter)
    changed = [word for name, value in changes.items() for word in (f"--{name}", value)]
    run("optimize", *given, *changed, *options)


def _is_done(segmenter: Path, changes: dict[str, Any]) -> bool:
    described = segmenter / "segmenter.json"
    if not described.exists():
        return False
    found, backbone = json.loads(described.read_text()), embedded_folder()
    recommended = read_recommended(backbone)
    name, _ = chosen_preset(None, recommended)
    wanted = preset(name, recommended).changed(changes).as_json()
    return bool(found["backbone"]["hash"] == content_hash(backbone) and found["settings"] == wanted)


def export(segmenter: Path, repository: Path) -> None:
    """Run `slime export`, unless the repository has this segmenter already."""
    published, made = repository / segmenter.name / "config.pbtxt", segmenter / "segmenter.json"
    if published.exists() and published.stat().st_mtime > made.stat().st_mtime:
        print(f"{published.parent}: there already", flush=True)
        return
    run("export", segmenter, "--repository", repository)


def run(command: str, *arguments: object) -> None:
    """Run a `slime` command, shown as a person would type it. Raises CalledProcessError when it fails."""
    words = [str(argument) for argument in arguments]
    print("$ slime", command, *words, flush=True)
    subprocess.run(_command(command, *words), check=True)


def _command(name: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "slime_cli", name, *words]


@contextmanager
def server(repository: Path, *more: str) -> Iterator[str]:
    """Run `slime serve` on free ports for as long as the block runs; yields its gRPC address."""
    ports = [word for name in ("grpc", "http", "metrics") for word in (f"--{name}-port", "0")]
    words = ["--repository", str(repository), *ports, *more]
    print("$ slime serve", *words, flush=True)
    command = _command("serve", *words)
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert launcher.stdout is not None
        line = launcher.stdout.readline()
        if not line.startswith("ready "):
            raise subprocess.CalledProcessError(launcher.wait(), command)
        print(line, end="", flush=True)
        yield dict(word.split("=", 1) for word in line.split()[1:])["grpc"]
    finally:
        launcher.send_signal(signal.SIGTERM)
        launcher.wait()


def ask(url: str, name: str, data: Path, count: int | None = None) -> Answers:
    """Segment the first `count` images (default: all) of an annotated folder, one after the other."""
    images = sorted((data / "images").glob("*.png"))[:count]
    masks, seconds = [], []
    with Segmenter(url, name) as segmenter:
        segmenter.segment(images[0])  # the first request pays for what is set up once
        for path in images:
            begun = time.perf_counter()
            masks.append(segmenter.segment(path).array)
            seconds.append(time.perf_counter() - begun)
        parts, colours = segmenter.parts, segmenter.colours
    return Answers(
        parts=tuple(parts),
        colours=tuple(colours),
        images=tuple(images),
        truths=tuple(np.asarray(Image.open(data / "masks" / path.name)) for path in images),
        masks=tuple(masks),
        seconds=tuple(seconds),
    )


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = Parser(prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--kind", choices=list(KINDS), default="car", help="what is drawn (default: car)")
    add("--build", type=Path, default=Path("slime-demo"), metavar="DIR", help="where to write (default: ./slime-demo)")
    add("--steps", type=_positive, metavar="N", help="optimisation steps (default: as the preset says)")
    add("--images", type=_positive, metavar="N", help=f"test images to segment (default: all {COUNTS['test']})")
    add("--stop-after", choices=("export",), help="make the repository, but do not serve it")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"got {text}, expected a whole number of at least 1")
    return int(text)

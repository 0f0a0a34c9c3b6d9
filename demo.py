"""The main job, end to end, with nothing downloaded: `make demo`.

ONE annotated car becomes a segmenter, an ONNX model, a model repository, a running Triton server; then 50
images it never saw are segmented over gRPC. Every step is one of the project's own commands, printed as it
runs. What is done already, with the same backbone and settings, is not done again.
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

import numpy as np
import numpy.typing as npt
from PIL import Image

from slime_backbone.dataset import write_split
from slime_backbone.scene import KINDS
from slime_client import Segmenter
from slime_optimize.backbone import content_hash, embedded_folder, read_recommended
from slime_optimize.metrics import Report, confusion, report
from slime_optimize.picture import colour_mask, sheet
from slime_optimize.presets import preset

ROOT = Path(__file__).resolve().parent
PRESET = "best"
SHOWN = 16  # images of the contact sheet, two a row
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a served segmenter said of a folder of annotated images: one entry for each image."""

    parts: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    images: tuple[Path, ...]
    truths: tuple[Pixels, ...]
    masks: tuple[Pixels, ...]
    seconds: tuple[float, ...]

    def report(self) -> Report:
        pairs = zip(self.truths, self.masks, strict=True)
        return report([confusion(truth, mask, len(self.parts)) for truth, mask in pairs], self.parts)

    def milliseconds(self, percentile: float) -> float:
        return float(np.percentile(self.seconds, percentile) * 1000)

    def contact_sheet(self) -> Image.Image:
        """image | truth | prediction, twice a row."""
        cells = [
            (np.asarray(Image.open(path).convert("RGB")), colour_mask(t, self.colours), colour_mask(m, self.colours))
            for path, t, m in list(zip(self.images, self.truths, self.masks, strict=True))[:SHOWN]
        ]
        rows = [left + right for left, right in zip(cells[::2], cells[1::2], strict=True)]
        return sheet(rows, ("image", "truth", "prediction") * 2, self.parts, self.colours, 128)


def main() -> int:
    options = _arguments()
    build: Path = options.build
    segmenter, picture = build / "segmenters" / options.kind, build / "contact-sheet.png"
    training, test = (write_split(build / "partscenes", options.kind, split) for split in ("train-1", "test"))
    try:
        optimise(training, segmenter)
        export(segmenter, build / "repository")
        if options.stop_after == "export":
            return 0
        with server(build / "repository") as url:
            answers = ask(url, options.kind, test)
    except subprocess.CalledProcessError as error:
        print(f"error: {error.cmd[1]} failed with exit code {error.returncode}", file=sys.stderr)
        return 1
    answers.contact_sheet().save(picture)
    measured = answers.report()
    latency = f"p50 {answers.milliseconds(50):.1f} ms   p95 {answers.milliseconds(95):.1f} ms"
    print(f"{measured.table()}\n\nmean IoU {measured.mean:.1f} %   {latency}   {len(answers.masks)} images over gRPC")
    print(f"contact sheet: {picture}")
    return 0


def optimise(training: Path, segmenter: Path, *options: object) -> None:
    """optimize/run.py on the folder's one annotated image, unless it was done with today's backbone and preset."""
    if _is_done(segmenter):
        print(f"{segmenter}: there already", flush=True)
        return
    parts = json.loads((training / "parts.json").read_text())
    image, mask = training / "images" / "000.png", training / "masks" / "000.png"
    given = ("--image", image, "--mask", mask, "--parts", *parts, "--preset", PRESET, "--out", segmenter)
    run("optimize/run.py", *given, *options)


def _is_done(segmenter: Path) -> bool:
    described = segmenter / "segmenter.json"
    if not described.exists():
        return False
    found, backbone = json.loads(described.read_text()), embedded_folder()
    wanted = preset(PRESET, read_recommended(backbone)).as_json()
    return bool(found["backbone"]["hash"] == content_hash(backbone) and found["settings"] == wanted)


def export(segmenter: Path, repository: Path) -> None:
    """export/build.py, unless the repository has this segmenter already."""
    published, made = repository / segmenter.name / "config.pbtxt", segmenter / "segmenter.json"
    if published.exists() and published.stat().st_mtime > made.stat().st_mtime:
        print(f"{published.parent}: there already", flush=True)
        return
    run("export/build.py", segmenter, "--repository", repository)


def run(script: str, *arguments: object) -> None:
    """One of the project's commands, shown as a person would type it; CalledProcessError when it fails."""
    words = [str(argument) for argument in arguments]
    print("$ python", script, *words, flush=True)
    subprocess.run([sys.executable, str(ROOT / script), *words], check=True)


@contextmanager
def server(repository: Path, *more: str) -> Iterator[str]:
    """serve/launch.py on free ports for as long as the block runs; yields its gRPC address."""
    ports = [word for name in ("grpc", "http", "metrics") for word in (f"--{name}-port", "0")]
    command = [sys.executable, str(ROOT / "serve/launch.py"), "--repository", str(repository), *ports, *more]
    print("$ python serve/launch.py", *command[2:], flush=True)
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


def ask(url: str, name: str, data: Path) -> Answers:
    """Every image of an annotated folder through slime_client, one after the other."""
    images = sorted((data / "images").glob("*.png"))
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


def _arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=list(KINDS), default="car")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "demo", help="where everything is written")
    parser.add_argument("--stop-after", choices=("export",), help="make the repository, but do not serve it")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())

"""The main job, end to end, with nothing downloaded: `make demo`.

ONE annotated car becomes a segmenter, an ONNX model, a model repository, a running Triton server; then 50
images it never saw are segmented over gRPC. Every step is one of the project's own commands, printed as it
runs. What is done already, for the same backbone weights, is not done again.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from slime_backbone.dataset import write_split
from slime_client import Mask, Segmenter
from slime_optimize.backbone import content_hash, embedded_folder
from slime_optimize.metrics import confusion, report
from slime_optimize.picture import colour_mask, sheet

ROOT = Path(__file__).resolve().parent
SHOWN = 8  # rows of the contact sheet


def main() -> int:
    options = _arguments()
    build: Path = options.build
    training = write_split(build / "partscenes", options.kind, "train-1")
    test = write_split(build / "partscenes", options.kind, "test")
    segmenter = build / "segmenters" / options.kind
    try:
        _optimise(training, segmenter)
        _export(segmenter, build / "repository")
        if options.stop_after == "export":
            return 0
        with _server(build / "repository") as url:
            print(_measure(url, options.kind, test, build / "contact-sheet.png"))
    except subprocess.CalledProcessError as error:
        print(f"error: {' '.join(map(str, error.cmd[1:3]))} failed with exit code {error.returncode}", file=sys.stderr)
        return 1
    print(f"contact sheet: {build / 'contact-sheet.png'}")
    return 0


def _optimise(training: Path, segmenter: Path) -> None:
    if _made_with(segmenter) == content_hash(embedded_folder()):
        print(f"{segmenter}: there already")
        return
    parts = json.loads((training / "parts.json").read_text())
    image, mask = training / "images" / "000.png", training / "masks" / "000.png"
    _run("optimize/run.py", "--image", image, "--mask", mask, "--parts", *parts, "--out", segmenter)


def _made_with(segmenter: Path) -> str | None:
    """Content hash of the backbone a finished segmenter belongs to."""
    described = segmenter / "segmenter.json"
    if not described.exists():
        return None
    found: str = json.loads(described.read_text())["backbone"]["hash"]
    return found


def _export(segmenter: Path, repository: Path) -> None:
    published = repository / segmenter.name / "config.pbtxt"
    made = segmenter / "segmenter.json"
    if published.exists() and published.stat().st_mtime > made.stat().st_mtime:
        print(f"{published.parent}: there already")
        return
    _run("export/build.py", segmenter, "--repository", repository)


def _run(script: str, *arguments: object) -> None:
    command = [script, *map(str, arguments)]
    print("$ python", *command, flush=True)
    subprocess.run([sys.executable, ROOT / script, *command[1:]], check=True)


@contextmanager
def _server(repository: Path) -> Iterator[str]:
    """serve/launch.py on free ports for as long as the block runs; yields its gRPC address."""
    command = ["serve/launch.py", "--repository", str(repository), "--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    print("$ python", *command, flush=True)
    launcher = subprocess.Popen([sys.executable, ROOT / command[0], *command[1:]], stdout=subprocess.PIPE, text=True)
    try:
        assert launcher.stdout is not None
        line = launcher.stdout.readline()
        if not line.startswith("ready "):
            raise subprocess.CalledProcessError(launcher.wait(), ["python", *command])
        print(line, end="", flush=True)
        yield dict(word.split("=", 1) for word in line.split()[1:])["grpc"]
    finally:
        launcher.send_signal(signal.SIGTERM)
        launcher.wait()


def _measure(url: str, kind: str, test: Path, picture: Path) -> str:
    """Segment every test image over gRPC; the table of IoU and latency. Writes the contact sheet."""
    rows, counts, seconds = [], [], []
    with Segmenter(url, kind) as segmenter:
        for path in sorted((test / "images").glob("*.png")):
            begun = time.perf_counter()
            mask: Mask = segmenter.segment(path)
            seconds.append(time.perf_counter() - begun)
            truth = np.asarray(Image.open(test / "masks" / path.name))
            counts.append(confusion(truth, mask.array, len(mask.parts)))
            image = np.asarray(Image.open(path).convert("RGB"))
            rows.append((image, colour_mask(truth, mask.colours), colour_mask(mask.array, mask.colours)))
        parts, colours = segmenter.parts, segmenter.colours
    sheet(_in_pairs(rows[: 2 * SHOWN]), ("image", "truth", "prediction") * 2, parts, colours, 128).save(picture)
    p50, p95 = np.percentile(np.array(seconds) * 1000, [50, 95])
    measured = report(counts, parts)
    return f"{measured.table()}\nmean IoU {measured.mean:.1f} %   p50 {p50:.1f} ms   p95 {p95:.1f} ms   ({len(rows)} images over gRPC)"


def _in_pairs(rows: list[tuple[np.ndarray, ...]]) -> list[tuple[np.ndarray, ...]]:
    return [a + b for a, b in zip(rows[::2], rows[1::2], strict=True)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("car", "horse", "face"), default="car")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "demo", help="where everything is written")
    parser.add_argument("--stop-after", choices=("export",), help="make the repository, but do not serve it")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

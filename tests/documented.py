"""Finds the commands that README.md and the pages of docs/ tell people to type, and makes what they need to run.

A command is a line of a block marked bash, or an indented line that begins with one of PROGRAMS.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from painting import ROOT
from slime_backbone.scene import parts_of, scene
from slime_optimize.backbone import embedded_folder
from slime_optimize.segmenter import Segmenter

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "client/README.md",
    "serve/README.md",
    "serve/kubernetes/README.md",
    *sorted(f"docs/{path.relative_to(ROOT / 'docs')}" for path in (ROOT / "docs").rglob("*.md")),
)
PROGRAMS = ("slime", "slime-segment", "python", "pip", "make", "docker", "helm", "kubectl", "ray")
PROGRAMS += ("benchmarks/gpu.sh", "backbone/train.sh")
# What no test runs, and why. Everything else is run, or the test of it fails.
NOT_RUN = {
    r"make \w": "the targets run these tests, or take hours; that they exist is tested",
    r"python3\.11 -m venv|pip install": "installs packages; tests/test_wheel.py installs what is built here",
    r"slime demo$": "tests/test_wheel.py runs it, with fewer steps",
    r"docker ": "needs Docker and NVIDIA's image; tests/serve/test_container.py reads what it would run",
    r"helm |kubectl ": "needs a cluster; tests/serve/test_kubernetes.py renders the chart and runs what it starts",
    r"benchmarks/gpu\.sh|backbone/train\.sh": "needs a GPU",
    r"python export/build\.py .* --tune": "takes minutes; tests/export tries all ways with a tiny segmenter",
    r"python backbone/(train|distil|card)\.py": "takes hours and writes what ships; tests/backbone does it small",
    r"python backbone/scenes\.py --floor-ceiling": "takes minutes; tests/backbone measures bounds of fewer scenes",
    r"(slime |python optimize/)prepare": "needs the data sets; tests/optimize prepares tiny ones in their formats",
    r"grpcurl ": "needs grpcurl and NVIDIA's .proto files; the Python client sends the same messages",
    r"perf_analyzer ": "needs NVIDIA's SDK container; benchmarks.load measures the server here",
    r"slime studio": "serves until it is stopped; tests/studio drives it, in a browser too",
    r"slime repository pull .* --watch": "goes on until it is stopped; tests/export starts it",
    r"export LABEL_STUDIO|ML_BLOCK_LOCAL_IP=": "needs Label Studio; make test-label-studio runs it",
    r"cvat-cli ": "needs a CVAT server; tests/integrations loads and runs what it would",
    r"slime segment rtsp://": "needs a camera; tests/client reads a stream over the network",
    r"ray start|slime fleet .* --address auto": "needs a cluster; tests/fleet starts one of two nodes for the same",
    r"slime import-checkpoint": "needs a checkpoint of gigabytes; tests/optimize converts tiny ones",
}


@dataclass(frozen=True)
class Command:
    """A documented command: the page it stands on, and its words in one line."""

    page: str
    line: str

    @property
    def why_not_run(self) -> str | None:
        """The reason of NOT_RUN, or None for a command that is run."""
        return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, self.line)), None)

    @property
    def needs_torch(self) -> bool:
        """Whether it optimises, exports or evaluates, and so imports PyTorch; those that segment must not need it."""
        return bool(re.match(r"slime (optimize|evaluate|import|export) |python (optimize/|export/build)", self.line))

    def runnable(self, url: str, http: str) -> list[str]:
        """The words to run: without its optional ones, of few steps, on the embedded backbone, at `url` or `http`."""
        words = re.sub(r"\[[^]]*\]", "", self.line).replace('"', "").split()
        stands_for = {"localhost:8001": url, "HOST:PORT": url, "REPO": "repository", "REPOSITORY": "repository"}
        stands_for["s3://models/cars"] = "file://store"
        stands_for["stable-diffusion-v1-5/stable-diffusion-v1-5"] = "embedded"
        words = [stands_for.get(word, word).replace("localhost:8000", http) for word in words]
        if words[0] == "curl":
            return words
        if words[0] == "python":
            words = [sys.executable, str(ROOT / words[1]), *words[2:]]
        else:
            words[0] = str(Path(sys.executable).with_name(words[0]))
        if words[1:3] == ["fleet", "optimize"]:
            words += ["--", "--steps", "2"]
        if words[1].endswith(("optimize", "run.py")):
            words += ["--steps", "2", "--quiet"]
        if words[1].endswith(("export", "build.py")):
            words.append("--force")  # two steps learn nothing, and such a segmenter takes no other's place
        if words[1] == "import":
            words += ["--backbone", "embedded"]
        return words


def commands(page: str) -> list[Command]:
    """Return the page's commands in their order."""
    text = (ROOT / page).read_text()
    fenced = [
        (text[: match.start()].count("\n"), match[1])
        for match in re.finditer(r"^ *```bash\n(.*?)^ *```", text, re.S | re.M)
    ]
    outside = re.sub(r"^ *```.*?^ *```", lambda match: "\n" * match[0].count("\n"), text, flags=re.S | re.M)
    starts = "|".join(re.escape(program) for program in PROGRAMS)
    indented = [
        (outside[: match.start()].count("\n"), match[1])
        for match in re.finditer(rf"^ {{4,}}((?:{starts}) (?:[^\n]*\\\n)*[^\n]*)$", outside, re.M)
    ]
    return [Command(page, line) for _, block in sorted(fenced + indented) for line in _lines(block)]


def _lines(block: str) -> list[str]:
    lines = [line.partition(" #")[0] for line in block.replace("\\\n", " ").splitlines()]
    return [" ".join(line.split()) for line in lines if line.strip() and not line.strip().startswith("#")]


def make_workspace(folder: Path) -> Path:
    """Write into `folder` what the commands of all pages read: pictures, masks, annotated folders, embeddings."""
    parts = list(parts_of("car"))
    for name in ("car.png", "car.jpg", "photo.jpg"):
        Image.fromarray(scene("car", "train-1", 0).image).save(folder / name)
    Image.fromarray(scene("car", "train-1", 0).mask).save(folder / "car-parts.png")
    (folder / "jobs.csv").write_text(f"name,image,mask,parts\ncar-1,car.png,car-parts.png,{' '.join(parts)}\n")
    annotated(folder / "data" / "car", parts)
    for index in range(2):
        for place in ("photos", "more"):
            (folder / place).mkdir(exist_ok=True)
            Image.fromarray(scene("car", "validation", index).image).save(folder / place / f"{index}.jpg")
    with av.open(str(folder / "clip.mp4"), "w") as film:
        stream = film.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 128, "yuv420p"
        for index in range(3):
            image = np.asarray(Image.fromarray(scene("car", "validation", index).image).resize((128, 128)))
            film.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        film.mux(stream.encode(None))
    (folder / "secrets").mkdir()
    (folder / "secrets" / "admin-key").write_text("k" * 32)
    width = json.loads((embedded_folder() / "unet" / "config.json").read_text())["cross_attention_dim"]
    (folder / "published" / "car").mkdir(parents=True)
    for index in range(len(parts) - 1):  # none for the background
        torch.save(torch.randn(1, 1, width), folder / "published" / "car" / f"embedding_{index}.pth")
    return folder


def annotated(folder: Path, parts: Sequence[str]) -> None:
    """Write a folder with images/, masks/ of indices into `parts`, some of a car's parts, and parts.json."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    index_of = np.array([parts.index(name) if name in parts else 0 for name in parts_of("car")], np.uint8)
    drawn = scene("car", "validation", 0)
    Image.fromarray(drawn.image).save(folder / "images" / "a.png")
    Image.fromarray(index_of[drawn.mask]).save(folder / "masks" / "a.png")
    (folder / "parts.json").write_text(json.dumps(list(parts)))


def prepare(command: Command, folder: Path) -> None:
    """Put in place what this command reads under a name that others use too: its mask, or an annotated folder."""
    if named := re.search(r"--image .*--parts ((?:\w+ )+)", command.line):
        count = len(named[1].split())
        Image.fromarray(np.minimum(scene("car", "train-1", 0).mask, count - 1)).save(folder / "car-parts.png")
    sources = "cars|annotations|labelled|unpacked-export|dataset|data/car/test|data/car"
    match = re.search(rf"--data ({sources})\b", command.line)
    if match is None:
        return
    source = folder / match[1]
    shutil.rmtree(source, ignore_errors=True)
    if "--legend" in command.line:
        _coloured(source, folder / "colours.json")
    elif "--parts" in command.line:
        _mask_for_each_part(source)
    elif match[1] == "labelled":
        _labelme(source)
    elif match[1] == "cars":
        annotated(source, parts_of("car"))
    elif match[1] == "dataset":
        _yolo(source)
    elif match[1].startswith("data/car"):  # the segmenter that the pages before have made may have fewer parts
        annotated(source, Segmenter.load(folder / "segmenters" / "car").parts)
    else:
        _coco(source, "instances.json" if match[1] == "annotations" else "result.json")


def _picture(folder: Path) -> npt.NDArray[np.uint8]:
    """Save the training scene as a.jpg; return its mask."""
    folder.mkdir(parents=True)
    drawn = scene("car", "train-1", 0)
    Image.fromarray(drawn.image).save(folder / "a.jpg")
    return drawn.mask


def _coloured(folder: Path, legend: Path) -> None:
    mask = _picture(folder / "images")
    (folder / "masks").mkdir()
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)
    Image.fromarray(colours[np.minimum(mask, 2)]).save(folder / "masks" / "a.png")
    legend.write_text(json.dumps({"#000000": "background", "#ff0000": "body", "#00ff00": "wheel"}))


def _mask_for_each_part(folder: Path) -> None:
    mask = _picture(folder)
    for name in ("body", "wheel"):
        Image.fromarray((mask == parts_of("car").index(name)).astype(np.uint8) * 255).save(folder / f"a_{name}.png")


def _square(mask: npt.NDArray[np.uint8]) -> list[list[float]]:
    rows, columns = np.nonzero(mask == parts_of("car").index("body"))
    left, right, top, bottom = (float(value) for value in (columns.min(), columns.max(), rows.min(), rows.max()))
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def _labelme(folder: Path) -> None:
    mask = _picture(folder)
    shape = {"label": "body", "shape_type": "polygon", "points": _square(mask)}
    size = {"imageHeight": mask.shape[0], "imageWidth": mask.shape[1]}
    (folder / "a.json").write_text(json.dumps({"imagePath": "a.jpg", "imageData": None, "shapes": [shape], **size}))


def _yolo(folder: Path) -> None:
    mask = _picture(folder / "images" / "train")
    (folder / "labels" / "train").mkdir(parents=True)
    shares = [value / side for point in _square(mask) for value, side in zip(point, mask.shape[::-1], strict=True)]
    (folder / "labels" / "train" / "a.txt").write_text(f"0 {' '.join(map(str, shares))}\n")
    (folder / "data.yaml").write_text("names: [body]\n")


def _coco(folder: Path, name: str) -> None:
    mask = _picture(folder)
    region: dict[str, object] = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "iscrowd": 0,
        "area": 1.0,
        "bbox": [0, 0, 1, 1],
    }
    region["segmentation"] = [[value for point in _square(mask) for value in point]]
    picture = {"id": 1, "file_name": "a.jpg", "height": mask.shape[0], "width": mask.shape[1]}
    told = {"images": [picture], "annotations": [region], "categories": [{"id": 1, "name": "body"}]}
    (folder / name).write_text(json.dumps(told))

"""The ONNX files that benchmarks.pipeline measures, made once and kept in a folder; a process of its own makes them.

    python -m benchmarks.pipeline_exports BACKBONE WORK --parts 6 --forms encoder averaged weighted

    WORK/KEY/encoder  tiny_encoder  averaged-6  weighted-6  int8-6     each model.onnx and counts.json
    WORK/KEY/encoder_cpu  weighted_cpu-6                               the same, rewritten for CPUs
    WORK/KEY/segmenter-6                                               random embeddings

KEY is of the backbone and of the code that decides the graphs. Prints, as JSON, where each lies and what is in it, or
the reason why it is missing.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.make_random_backbone import random_segmenter
from benchmarks.pictures import picture
from benchmarks.pipeline_onnx import Served
from benchmarks.pipeline_side import Mask, Stages

from slime_export.graph import counts as graph
from slime_export.graph import lowering
from slime_export.graph import onnx_export as onnx
from slime_export.graph.encoder import Encoder
from slime_export.graph.quantisation import quantised
from slime_export.graph.tracing import encoder_signature, unet_signature
from slime_export.graph.unet import MapsUNet
from slime_export.proof.report import LOWER
from slime_export.publish.record import png
from slime_optimize.backbone import Backbone, load_backbone
from slime_optimize.errors import BackboneError
from slime_optimize.method.predict import Predictor
from slime_optimize.segmenter import Segmenter
from slime_repository.contract import Variant
from slime_was.tensors import LATENTS

FORMS = ("encoder", "tiny_encoder", "averaged", "weighted", "int8", "encoder_cpu", "weighted_cpu")
BY_SEGMENTER = ("averaged", "weighted", "int8", "weighted_cpu")
COUNTS = "counts.json"
_CALIBRATION = range(100, 108)  # seeds of the pictures that an int8 model's ranges are measured on
_GATED_BYTES = 5e8
_TRIED = 4  # pictures
_DECISIVE = (
    *(
        f"slime_export.{name}"
        for name in (
            "calibration",
            "chunking",
            "encoder",
            "onnx",
            "quantise",
            "sensitivity",
            "tracing",
            "unet",
            "winograd",
        )
    ),
    *(f"slime_optimize.{name}" for name in ("attention", "layers", "passes", "processors")),
    "benchmarks.make_random_backbone",
)


class MissingError(RuntimeError):
    """A form that cannot be had here; one line says why."""


@dataclass(frozen=True, kw_only=True)
class Exports:
    """A backbone's folder of models.

    `given`: segmenters by a name of their own; any other name is a number of parts, and means random embeddings.
    `pictures`: what int8 is calibrated on, in place of clouds.
    """

    backbone: Backbone
    folder: Path
    given: Mapping[str, Path] = field(default_factory=dict)
    pictures: Sequence[npt.NDArray[np.uint8]] = ()

    @classmethod
    def of(cls, backbone: Backbone, work: Path, **more: Any) -> Exports:
        folder = work / _key(backbone)
        folder.mkdir(parents=True, exist_ok=True)
        return cls(backbone=backbone, folder=folder, **more)

    def segmenter(self, name: str) -> Path:
        """The folder of the segmenter of that name."""
        if name in self.given:
            return self.given[name]
        folder = self.folder / f"segmenter-{name}"
        if not folder.exists():
            random_segmenter(self.backbone, int(name)).save(folder)
        return folder

    def made(self, variant: str, name: str) -> dict[str, Any]:
        """Where the segmenter's model lies, its MACs and bytes; made if it is not there. Raises MissingError."""
        folder = self.folder / (f"{variant}-{name}" if variant in BY_SEGMENTER else variant)
        if not folder.exists():
            waiting = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(waiting, ignore_errors=True)
            waiting.mkdir()
            print(f"exporting {folder.name}", file=sys.stderr, flush=True)
            self._makers[variant](waiting, name)
            gc.collect()
            (waiting / COUNTS).write_text(json.dumps(asdict(graph.counts(waiting / onnx.FILE))))
            os.replace(waiting, folder)
        counted: dict[str, Any] = json.loads((folder / COUNTS).read_text())
        return {"path": str(folder / onnx.FILE)} | counted

    @property
    def _makers(self) -> dict[str, Callable[[Path, str], None]]:
        return {
            "encoder": lambda folder, _: self._encoder("vae", folder),
            "tiny_encoder": lambda folder, _: self._encoder("tiny", folder),
            "averaged": lambda folder, name: self._unet(folder, name, weighted=False),
            "weighted": lambda folder, name: self._unet(folder, name, weighted=True),
            "int8": self._int8,
            "encoder_cpu": lambda folder, name: self._for_cpu("encoder", folder, name),
            "weighted_cpu": lambda folder, name: self._for_cpu("weighted", folder, name),
        }

    def _encoder(self, encoder: str, folder: Path) -> None:
        try:
            module = Encoder(self.backbone, encoder)
        except BackboneError as error:
            raise MissingError(str(error)) from error
        onnx.write(module, encoder_signature(self.backbone.image_size, self.backbone.latent_size), folder)

    def _unet(self, folder: Path, name: str, *, weighted: bool) -> None:
        variant = Variant(maps="weighted" if weighted else "averaged")
        segmenter = Segmenter.load(self.segmenter(name))
        module = MapsUNet(segmenter, self.backbone, weighted=weighted)
        onnx.write(module, unet_signature(self.backbone.latent_size, variant), folder)

    def _for_cpu(self, variant: str, folder: Path, name: str) -> None:
        source = Path(self.made(variant, name)["path"]).parent
        if lowering.for_cpu(source, folder) == source:
            raise MissingError("no network of this size gains by being rewritten for CPUs")

    def _int8(self, folder: Path, name: str) -> None:
        predictor = Predictor(Segmenter.load(self.segmenter(name)), self.backbone)
        clouds = [picture(self.backbone.image_size, seed) for seed in _CALIBRATION]
        pictures = self.pictures or clouds
        feeds = [{LATENTS: predictor.latents([each]).numpy()} for each in pictures]
        exact = self.made("weighted", name)
        # What hurts is looked for where that takes seconds; for gigabytes of random weights nothing is left in float.
        passes = self._agreeing(exact["path"], name, pictures) if exact["bytes"] < _GATED_BYTES else None
        quantised(Path(exact["path"]), folder, feeds, passes=passes).write()

    def _agreeing(self, exact: str, name: str, pictures: Sequence[npt.NDArray[np.uint8]]) -> Callable[[Path], bool]:
        """Whether a UNet gives the masks of the `exact` one, by the gate that exports are held to."""
        encoder = self.made("encoder", name)["path"]
        files = [png(each) for each in pictures[:_TRIED]]

        def masks(unet: Path | str) -> list[Mask]:
            threads = torch.get_num_threads()
            options = argparse.Namespace(encoder=encoder, unet=unet, device="cpu", threads=threads, session="served")
            return Served(options).masks(files, Stages())

        expected = masks(exact)
        return lambda path: (
            float(np.mean([a == b for a, b in zip(masks(path), expected, strict=True)])) >= LOWER.mask_agreement
        )


def _key(backbone: Backbone) -> str:
    digest = hashlib.sha256(backbone.hash.encode())
    for module in _DECISIVE:
        try:
            found = find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found and found.origin:
            digest.update(Path(found.origin).read_bytes())
    return digest.hexdigest()[:16]


def main() -> None:
    options = _arguments()
    answers, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(options.threads)
    exports = Exports.of(load_backbone(options.backbone), options.work)
    told: dict[str, Any] = {
        "image_size": exports.backbone.image_size,
        "segmenters": {str(parts): str(exports.segmenter(str(parts))) for parts in options.parts},
        "models": {
            f"{variant}-{parts}": _told(exports, variant, str(parts))
            for parts in options.parts
            for variant in options.forms
        },
    }
    json.dump(told, answers)


def _told(exports: Exports, variant: str, name: str) -> dict[str, Any]:
    try:
        return exports.made(variant, name)
    except MissingError as error:
        return {"missing": str(error)}


def _arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", help="embedded, or a folder in diffusers layout")
    parser.add_argument("work", type=Path)
    parser.add_argument("--parts", nargs="+", default=["6"])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()

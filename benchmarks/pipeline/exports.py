"""The files that benchmarks.pipeline measures, made once and kept in a folder; a process of its own makes them.

    python -m benchmarks.pipeline.exports BACKBONE WORK --parts 6 --forms encoder averaged weighted

    WORK/KEY/segmenter-6                                    random embeddings
    WORK/KEY/encoder  tiny_encoder  averaged-6  weighted-6  int8-6
    WORK/KEY/encoder_cpu  weighted_cpu-6                    rewritten for CPUs
    WORK/KEY/encoder_fp16  weighted_fp16-6                  for GPUs
    WORK/KEY/encoder_plan  weighted_plan-6                  TensorRT engines of these, built on this GPU

Each folder has model.onnx or model.plan, and counts.json. KEY depends on the backbone and on the code that decides the
graphs. It prints as JSON where each file lies and what is in it, or the reason why it is missing.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from benchmarks.common import command_line, random_backbone
from benchmarks.common.pictures import picture
from benchmarks.common.sides import MissingError

import slime_export.graph
import slime_optimize.method
from slime_export.errors import EngineError, ExportError
from slime_export.graph import engine_builder, inspection, lowering, onnx_export, precision
from slime_export.graph.networks import Encoder, MapsUNet
from slime_export.graph.quantisation import quantised
from slime_export.graph.runtimes import OnnxModel
from slime_export.graph.tracing import encoder_signature, unet_signature
from slime_export.proof.parity import ExportedSegmenter
from slime_export.proof.report import LOWER
from slime_optimize.backbone import Backbone, load_backbone
from slime_optimize.errors import BackboneError
from slime_optimize.method.prediction import Predictor
from slime_optimize.segmenter import Segmenter
from slime_repository.contract import MAX_BATCH
from slime_repository.openvino_network import BF16, OpenVinoError, OpenVinoNetwork, has_bf16
from slime_repository.variant import Variant
from slime_was.tensors import LATENTS

ENCODERS = ("encoder", "tiny_encoder", "encoder_cpu", "encoder_fp16", "encoder_plan")
UNETS = ("averaged", "weighted", "int8", "weighted_cpu", "weighted_fp16", "weighted_plan")
FORMS = (*ENCODERS, *UNETS)
COUNTS = "counts.json"
_CALIBRATION = range(100, 108)  # seeds of the pictures that an int8 model's ranges are measured on
_GATED_BYTES = 5e8
_TRIED = 4  # pictures
_DECISIVE: tuple[Any, ...] = (slime_export.graph, slime_optimize.method, random_backbone)


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
        digest = hashlib.sha256(backbone.hash.encode())
        for decisive in _DECISIVE:
            path = Path(decisive.__file__)
            for source in sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]:
                digest.update(source.read_bytes())
        folder = work / digest.hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        return cls(backbone=backbone, folder=folder, **more)

    def segmenter(self, name: str) -> Path:
        """Return the folder of the segmenter of that name."""
        if name in self.given:
            return self.given[name]
        folder = self.folder / f"segmenter-{name}"
        if not folder.exists():
            random_backbone.random_segmenter(self.backbone, int(name)).save(folder)
        return folder

    def made(self, form: str, name: str) -> dict[str, Any]:
        """Return where the model lies, its multiply-accumulates and bytes, after making it if it is not there.

        Raises MissingError where this form cannot be had.
        """
        folder = self.folder / (f"{form}-{name}" if form in UNETS else form)
        if not folder.exists():
            waiting = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(waiting, ignore_errors=True)
            waiting.mkdir()
            print(f"exporting {folder.name}", file=sys.stderr, flush=True)
            self._make(form, waiting, name)
            gc.collect()
            if not (waiting / COUNTS).exists():
                (waiting / COUNTS).write_text(json.dumps(asdict(inspection.counts(waiting / onnx_export.FILE))))
            os.replace(waiting, folder)
        counted: dict[str, Any] = json.loads((folder / COUNTS).read_text())
        (path,) = [*folder.glob("model.onnx"), *folder.glob("model.plan")]
        return {"path": str(path)} | counted

    def _make(self, form: str, folder: Path, name: str) -> None:
        base, _, how = form.partition("_")
        if form in ("encoder", "tiny_encoder"):
            try:
                module = Encoder(self.backbone, "tiny" if base == "tiny" else "vae")
            except BackboneError as error:
                raise MissingError(str(error)) from error
            signature = encoder_signature(self.backbone.image_size, self.backbone.latent_size)
            onnx_export.write(module, signature, folder)
        elif form in ("averaged", "weighted"):
            unet = MapsUNet(Segmenter.load(self.segmenter(name)), self.backbone, weighted=form == "weighted")
            variant = Variant(maps="weighted" if form == "weighted" else "averaged")
            onnx_export.write(unet, unet_signature(self.backbone.latent_size, variant), folder)
        elif form == "int8":
            self._int8(folder, name)
        elif how == "cpu":
            source = Path(self.made(base, name)["path"]).parent
            if lowering.for_cpu(source, folder) == source:
                raise MissingError("no network of this size gains by being rewritten for CPUs")
        elif how == "fp16":
            model = onnx.load(self.made(base, name)["path"])
            onnx_export.save(precision.convert(model, "fp16"), folder)
        elif how == "plan":
            source = Path(self.made(f"{base}_fp16", name)["path"])
            try:
                # Kernels are chosen for the largest batch: throughput is what a GPU is measured for.
                times = self.folder / ".tensorrt-timing"
                engine_builder.build(source, folder, engine_builder.Options(opt_batch=MAX_BATCH, timing_cache=times))
            except (ExportError, EngineError) as error:
                raise MissingError(str(error)) from error
            shutil.copy(source.parent / COUNTS, folder)

    def _int8(self, folder: Path, name: str) -> None:
        predictor = Predictor(Segmenter.load(self.segmenter(name)), self.backbone)
        pictures = self.pictures or [picture(self.backbone.image_size, seed) for seed in _CALIBRATION]
        feeds = [{LATENTS: predictor.latents([each]).numpy()} for each in pictures]
        exact = self.made("weighted", name)
        # What hurts is looked for where that takes seconds; for gigabytes of random weights nothing is left in float.
        passes = self._agreeing(exact["path"], name, pictures) if exact["bytes"] < _GATED_BYTES else None
        quantised(Path(exact["path"]), folder, feeds, passes=passes).write()

    def _agreeing(self, exact: str, name: str, pictures: Sequence[npt.NDArray[np.uint8]]) -> Callable[[Path], bool]:
        """Return whether a UNet gives the masks of the `exact` one, by the gate that exports are held to."""
        expected = self.exported(name, exact).masks(pictures[:_TRIED])

        def agrees(path: Path) -> bool:
            pairs = zip(self.exported(name, path).masks(pictures[:_TRIED]), expected, strict=True)
            return float(np.mean([one == other for one, other in pairs])) >= LOWER.mask_agreement

        return agrees

    def exported(self, name: str, unet: Path | str, *, in_bf16: bool = False) -> ExportedSegmenter:
        """Return the segmenter of that name with the file of its UNet, ready to segment on the CPU.

        in_bf16: by OpenVINO, in bf16. Raises MissingError where this machine cannot.
        """
        segmenter, encoder = Segmenter.load(self.segmenter(name)), self.made("encoder", name)["path"]
        settings = segmenter.settings
        postprocess = settings.postprocess(segmenter.image_size)
        networks = [_in_bf16(Path(path)) if in_bf16 else OnnxModel(Path(path)) for path in (encoder, unet)]
        return ExportedSegmenter(networks[0], networks[1], postprocess, settings.channel_order)


def _in_bf16(path: Path) -> OpenVinoNetwork:
    try:
        if has_bf16():
            return OpenVinoNetwork(path, BF16, threads=torch.get_num_threads())
    except OpenVinoError as error:
        raise MissingError(str(error)) from error
    raise MissingError("this processor has no instructions for bf16")


def main() -> None:
    parser = command_line.parser(__doc__)
    parser.add_argument("backbone", help="embedded, or a folder in diffusers layout")
    parser.add_argument("work", type=Path)
    parser.add_argument("--parts", nargs="+", default=["6"])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with redirect_stdout(sys.stderr):
        exports = Exports.of(load_backbone(options.backbone), options.work)
        told: dict[str, Any] = {
            "image_size": exports.backbone.image_size,
            "segmenters": {parts: str(exports.segmenter(parts)) for parts in options.parts},
            "models": {},
        }
        for parts, form in itertools.product(options.parts, options.forms):
            try:
                told["models"][f"{form}-{parts}"] = exports.made(form, parts)
            except MissingError as error:
                told["models"][f"{form}-{parts}"] = {"missing": str(error)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()

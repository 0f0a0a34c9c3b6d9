"""A segmenter's folder to a published model: PyTorch's answers, trace, lower, compare, publish.

Nothing reaches the repository before the comparison has passed. Of PyTorch's model, and the sessions, one at a time is
in memory: Stable Diffusion's weigh gigabytes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from slime_export.graph import counts as graph
from slime_export.graph import engine_builder as tensorrt
from slime_export.graph import lowering, tracing
from slime_export.graph import onnx_export as onnx
from slime_export.graph.calibration import Feeds
from slime_export.graph.counts import Counts
from slime_export.options import ExportOptions
from slime_export.progress import stage
from slime_export.proof import drifting, parity, references
from slime_export.proof.drift import Drift
from slime_export.proof.exported import Exported, mean_iou
from slime_export.proof.references import References
from slime_export.proof.report import EXACT, Report, Score
from slime_export.proof.session import OnnxModel
from slime_export.publish.lock import staging
from slime_export.publish.publication import Candidate, Published, publish
from slime_export.publish.server_control import Server
from slime_export.room import require_room
from slime_export.shared_export import export_shared
from slime_optimize import training_image
from slime_optimize.errors import InputError
from slime_optimize.evaluation import Data, read_data
from slime_optimize.method.predict import Predictor, load_predictor
from slime_optimize.segmenter import Segmenter
from slime_repository import layout
from slime_repository.contract import Variant
from slime_was.tensors import LATENTS

Say = Callable[[str], None]


def export(request: ExportOptions, say: Say = print) -> tuple[Published, Report]:
    """Runs all of it, telling each stage and its seconds through `say`.

    Raises InputError, ExportError, ParityError, EngineError, ServerError, BusyError or OSError, with the repository as
    it was.
    """
    return export_shared(request, say) if request.embedding == "shared" else _Export(request, say).run()


@dataclass(frozen=True, kw_only=True)
class _FromPyTorch:
    """All that the later stages need of PyTorch. `encoder` and `unet` are folders with fp32 models.

    `encoder` is None where the repository has the encoder already. `before`: mean IoU, where there is data.
    """

    segmenter: Segmenter
    variant: Variant
    answers: References
    encoder: Path | None
    unet: Path
    feeds: Feeds
    data: Data | None
    before: float | None
    training: bool


@dataclass(frozen=True, kw_only=True)
class _Lowered:
    """Folders of what will serve, and what is in its graphs; the encoder may be the repository's own."""

    encoder: Path
    unet: Path
    graphs: Mapping[str, Counts]


class _Export:
    """One run of `export`."""

    def __init__(self, request: ExportOptions, say: Say) -> None:
        self.request, self.say = request, say

    def run(self) -> tuple[Published, Report]:
        request, name = self.request, self.request.served_name
        request.check_machine()
        predictor = self._loaded()
        variant = request.variant(predictor.segmenter)
        self._encoder_there(predictor.segmenter, variant)
        data = self._data(predictor)
        server = Server(request.url, request.access) if request.url else None
        with staging(request.repository, request.wait, self.say) as staged:
            work = staged / ".export"
            made = self._from_pytorch(predictor, variant, data, work)
            del predictor
            gc.collect()  # modules and hooks refer to each other
            self._prove_exact(made)
            low = self._lowered(made, work)
            report = self._proven(made, low)
            report.write(low.unet)
            candidate = Candidate(
                name=name,
                segmenter=made.segmenter,
                unet=low.unet,
                encoder=low.encoder if made.encoder else None,
                check=made.answers.check(request.held_to.mask_agreement, made.training),
                variant=variant,
                accelerator=request.accelerator,
            )
            with stage(self.say, f"publishing {name} into {request.repository}"):
                published = publish(
                    request.repository, staged, candidate, server, keep=request.keep, wait_s=request.wait, say=self.say
                )
        return published, report

    def _loaded(self) -> Predictor:
        with stage(self.say, "loading segmenter and backbone"):
            return load_predictor(self.request.folder, backbone=self.request.backbone, tiny=self.request.tiny_encoder)

    def _encoder_there(self, segmenter: Segmenter, variant: Variant) -> Path | None:
        """The repository's own, which other segmenters use as well."""
        repository, model = self.request.repository, variant.encoder_model
        return layout.encoder_of(repository, segmenter.backbone_hash, model, segmenter.tiny_hash)

    def _data(self, predictor: Predictor) -> Data | None:
        source, parts = self.request.evaluate, predictor.segmenter.parts
        if source is None:
            return None
        data = read_data(source, parts)
        if data.parts != parts:
            raise InputError(f"--evaluate {source}: its parts are {', '.join(data.parts)}, expected {', '.join(parts)}")
        return data

    def _from_pytorch(self, predictor: Predictor, variant: Variant, data: Data | None, work: Path) -> _FromPyTorch:
        request, training = self.request, training_image.find(self.request.folder)
        if training is None:
            self.say(f"{request.folder}: has no {training_image.FILE}; a generated image is tried in its place")
        usual = lowering.calibrating(request.calibration, training) if variant.precision == "int8" else []
        require_room(work, predictor.backbone, variant, on_cpu=request.on_cpu)
        # Lower precisions are held to the masks, so they are tried on images of the kind that is to come.
        images = parity.trial_images(predictor, training, *usual)
        with stage(self.say, "running PyTorch, in fp32 and float64"):
            answers = references.answered(predictor, images, weighted=variant.weighted, own_error=True)
        there = self._encoder_there(predictor.segmenter, variant)
        before = None
        if data is not None:
            with stage(self.say, f"measuring PyTorch on {len(data)} images"):
                before = mean_iou(predictor, data)
        encoder = None
        if there and request.accelerator:
            self.say(f"{variant.encoder_model}: the repository's own stays, as it was exported, for all its segmenters")
        if there is None:
            with stage(self.say, "tracing the VAE encoder" if variant.encoder == "vae" else "tracing the tiny encoder"):
                encoder = tracing.trace_encoder(predictor, work / "encoder", request.external_over)
        with stage(self.say, "tracing the UNet"):
            unet = tracing.trace_unet(predictor, variant, work / "unet", request.external_over)
        return _FromPyTorch(
            segmenter=predictor.segmenter,
            variant=variant,
            answers=answers,
            encoder=encoder,
            unet=unet,
            feeds=lowering.feeds_of(predictor, usual),
            data=data,
            before=before,
            training=training is not None,
        )

    def _prove_exact(self, made: _FromPyTorch) -> None:
        """The fp32 graphs that others are made from; they are not published themselves."""
        if self._as_traced(made.variant):
            return
        with stage(self.say, "comparing the fp32 graphs with PyTorch"):
            latents = parity.encoded(made.answers, _onnx(made.encoder)) if made.encoder else None
            comparisons = parity.measured(made.answers, _onnx(made.unet), latents)
        report = Report(comparisons=comparisons, gate=EXACT, own_error=made.answers.own_error)
        if report.failures:
            replace(report, drift=self._drift_from_pytorch(made, report)).require()

    def _lowered(self, made: _FromPyTorch, work: Path) -> _Lowered:
        request, variant = self.request, made.variant
        there = self._encoder_there(made.segmenter, variant)
        with stage(self.say, f"writing {variant.precision}"):
            passes = self._check_of(made, there or made.encoder)
            unet = lowering.lowered(
                made.unet, work / "lowered_unet", variant, made.feeds, request.external_over, passes, cpu=request.on_cpu
            )
            encoder = there or self._lowered_encoder(made, lowering.encoder_variant(variant), work)
            graphs = {each: _counts(folder) for each, folder in (("unet", unet), ("encoder", encoder))}
        if variant.format == "tensorrt":
            options = replace(request.engine, timing_cache=tensorrt.timing_cache(request.repository))
            unet = lowering.built(unet, work / "engine_unet", options, self.say)
            encoder = there or lowering.built(encoder, work / "engine_encoder", options, self.say)
        return _Lowered(
            encoder=encoder, unet=unet, graphs={name: each for name, each in graphs.items() if each is not None}
        )

    def _lowered_encoder(self, made: _FromPyTorch, variant: Variant, work: Path) -> Path:
        assert made.encoder, "traced where the repository has none"
        return lowering.lowered(
            made.encoder, work / "lowered_encoder", variant, (), self.request.external_over, cpu=self.request.on_cpu
        )

    def _check_of(self, made: _FromPyTorch, encoder: Path | None) -> Callable[[Path], bool]:
        """Whether an int8 UNet, served with this fp32 encoder, is within the gate."""
        assert encoder, "traced where the repository has none"
        return lambda path: not self._report(made, _Lowered(encoder=encoder, unet=path.parent, graphs={})).failures

    def _proven(self, made: _FromPyTorch, low: _Lowered) -> Report:
        """The report of what will serve. Raises ParityError past the gate."""
        report = self._report(made, low)
        if report.failures:
            report = replace(report, drift=self._drift(made, report, low))
        self.say(report.table())
        report.require()
        return report

    def _report(self, made: _FromPyTorch, low: _Lowered) -> Report:
        variant, its_variant = made.variant, lowering.encoder_variant(made.variant)
        with stage(self.say, "comparing with PyTorch"):
            latents = parity.encoded(made.answers, lowering.opened(low.encoder, its_variant))
            comparisons = parity.measured(made.answers, lowering.opened(low.unet, variant), latents)
        return Report(
            comparisons=comparisons,
            gate=self.request.held_to,
            variant=variant,
            own_error=made.answers.own_error,
            score=self._score(made, low),
            graphs=low.graphs,
        )

    def _score(self, made: _FromPyTorch, low: _Lowered) -> Score | None:
        if made.data is None or made.before is None:
            return None
        variant, settings = made.variant, made.segmenter.settings
        exported = Exported(
            lowering.opened(low.encoder, lowering.encoder_variant(variant)),
            lowering.opened(low.unet, variant),
            settings.postprocess(made.segmenter.image_size),
            settings.channel_order,
        )
        with stage(self.say, f"measuring the exported models on {len(made.data)} images"):
            after = mean_iou(exported, made.data)
        return Score(before=made.before, after=after, images=len(made.data), source=str(self.request.evaluate))

    def _drift(self, made: _FromPyTorch, report: Report, low: _Lowered) -> Drift | None:
        variant, answers = made.variant, made.answers
        if variant.format == "tensorrt":
            return None  # an engine's insides cannot be read
        if self._as_traced(variant):
            return self._drift_from_pytorch(made, report)
        if report.begins_with(LATENTS) and made.encoder:
            return drifting.encoder_from_fp32(answers, made.encoder, low.encoder, lowering.encoder_variant(variant))
        return drifting.unet_from_fp32(answers, made.unet, low.unet, variant)

    def _as_traced(self, variant: Variant) -> bool:
        """Whether what was traced is what is published."""
        return variant.precision == "fp32" and variant.format == "onnx" and not self.request.on_cpu

    def _drift_from_pytorch(self, made: _FromPyTorch, report: Report) -> Drift | None:
        if not report.begins_with(LATENTS):
            return drifting.unet_from_pytorch(self._loaded(), made.answers, made.unet)
        return drifting.encoder_from_pytorch(self._loaded(), made.answers, made.encoder) if made.encoder else None


def _counts(folder: Path) -> Counts | None:
    """None for a repository's engine."""
    path = folder / onnx.FILE
    return graph.counts(path) if path.exists() else None


def _onnx(folder: Path) -> OnnxModel:
    return OnnxModel(folder / onnx.FILE)

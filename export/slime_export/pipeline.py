"""A segmenter's folder to a published model: PyTorch's answers, trace, lower, compare, publish.

Nothing reaches the repository before the comparison has passed. PyTorch's model and the sessions are in memory one at
a time: Stable Diffusion's weigh gigabytes.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from slime_export.forms import FORMS, Form
from slime_export.graph import engine_builder, inspection, lowering, onnx_export, tracing
from slime_export.graph.runtimes import opened
from slime_export.graph.sensitivity import Feeds
from slime_export.options import ExportOptions
from slime_export.proof import drift, parity, references
from slime_export.proof.references import References
from slime_export.proof.report import EXACT, Drift, Report, Score
from slime_export.publish.lock import staging
from slime_export.publish.publication import Candidate, Published, publish, reading_of
from slime_export.publish.server_control import Server
from slime_export.room import require_room
from slime_optimize import training_image
from slime_optimize.errors import InputError
from slime_optimize.evaluation import Data, read_data
from slime_optimize.method.prediction import Predictor, load_predictor
from slime_optimize.segmenter import Segmenter
from slime_repository import layout
from slime_repository.variant import Variant
from slime_was.tensors import LATENTS

Say = Callable[[str], None]


def export(options: ExportOptions, say: Say = print) -> tuple[Published, Report]:
    """Run all of it, telling each stage and its seconds through `say`.

    Raises InputError, ExportError, ParityError, EngineError, ServerError, BusyError or OSError, with the repository as
    it was.
    """
    return _Export(options, say).run()


@dataclass(frozen=True, kw_only=True)
class _Traced:
    """What the later stages need of PyTorch. `encoder` and `unet` are folders with fp32 models.

    Each may be the repository's own, which is not `new`. `before`: mean IoU in PyTorch, where there is data.
    """

    segmenter: Segmenter
    variant: Variant
    form: Form
    answers: References
    is_training: bool  # whether the first image is the one that the segmenter was learned from
    encoder: Path
    unet: Path
    new_encoder: bool
    new_unet: bool
    feeds: Feeds
    data: Data | None
    before: float | None


class _Export:
    """One run of `export`."""

    def __init__(self, options: ExportOptions, say: Say) -> None:
        self.options, self.say = options, say

    def run(self) -> tuple[Published, Report]:
        options, name = self.options, self.options.served_name
        options.check_machine()
        # What can be refused before the work begins: the server, patches that are never served, another backbone.
        server = Server(options.url, options.access) if options.url else None
        predictor = self._loaded()
        reading_of(predictor.segmenter)
        variant = options.variant(predictor.segmenter)
        form = FORMS[options.embedding](options, predictor.segmenter, variant)
        self._encoder_there(predictor.segmenter, variant)
        data = self._data(predictor)
        with staging(options.repository, options.wait, self.say) as staged:
            work = staged / ".export"
            made = self._traced(predictor, variant, form, data, work)
            del predictor
            gc.collect()  # modules and hooks refer to each other
            if not self._served_as_traced(variant):
                self._prove_exact(made)
            encoder, unet, graphs = self._lowered(made, work)
            report = replace(self._compared(made, encoder, unet), graphs=graphs)
            if report.failures:
                report = replace(report, drift=self._drift(made, report, encoder, unet))
            self.say(report.table())
            report.require()
            if not form.is_shared:  # a group's UNet is not one segmenter's
                report.write(unet)
            candidate = Candidate(
                name=name,
                segmenter=made.segmenter,
                unet=unet if made.new_unet else None,
                encoder=encoder if made.new_encoder else None,
                check=made.answers.check(options.held_to.mask_agreement, made.is_training),
                variant=variant,
                accelerator=options.accelerator,
                shared=form.is_shared,
                settings_changed=report.settings_changed,
            )
            with self._stage(f"publishing {name} into {options.repository}"):
                published = publish(
                    options.repository, staged, candidate, server, keep=options.keep, wait_s=options.wait, say=self.say
                )
        return published, report

    @contextmanager
    def _stage(self, what: str) -> Iterator[None]:
        """Tell the seconds that the block took, once it is through."""
        begun = time.perf_counter()
        yield
        self.say(f"{what}: {time.perf_counter() - begun:.1f} s")

    def _loaded(self) -> Predictor:
        options = self.options
        with self._stage("loading segmenter and backbone"):
            return load_predictor(
                options.folder, backbone=options.backbone, tiny=options.tiny_encoder, changes=options.changes
            )

    def _encoder_there(self, segmenter: Segmenter, variant: Variant) -> Path | None:
        """Return the folder of the repository's own encoder. Raises ExportError where it holds another backbone."""
        repository, model = self.options.repository, variant.encoder_model
        return layout.encoder_of(repository, segmenter.backbone_hash, model, segmenter.tiny_hash)

    def _data(self, predictor: Predictor) -> Data | None:
        source, parts = self.options.evaluate, predictor.segmenter.parts
        if source is None:
            return None
        data = read_data(source, parts)
        if data.parts != parts:
            raise InputError(f"--evaluate {source}: its parts are {', '.join(data.parts)}, expected {', '.join(parts)}")
        return data

    def _traced(self, predictor: Predictor, variant: Variant, form: Form, data: Data | None, work: Path) -> _Traced:
        """Ask PyTorch for its answers and trace the networks that the repository does not have."""
        options, segmenter = self.options, predictor.segmenter
        training = training_image.find(options.folder)
        if training is None:
            self.say(f"{options.folder}: has no {training_image.FILE}; a generated image is tried in its place")
        usual = lowering.calibration_images(options.calibration, training) if variant.precision == "int8" else []
        encoder, unet = self._encoder_there(segmenter, variant), form.unet_there()
        new_encoder, new_unet = encoder is None, unet is None
        if new_unet:
            require_room(work, predictor.backbone, variant, on_cpu=options.on_cpu)
        # Lower precisions are held to the masks, so they are tried on images of the kind that is to come.
        images = parity.trial_images(predictor, training, *usual)
        with self._stage("running PyTorch, in fp32 and float64"):
            answers = references.answered(predictor, images, weighted=variant.weighted, own_error=True)
        before = None
        if data is not None:
            with self._stage(f"measuring PyTorch on {len(data)} images"):
                before = parity.mean_iou(predictor, data)
        if encoder is None:
            with self._stage("tracing the VAE encoder" if variant.encoder == "vae" else "tracing the tiny encoder"):
                encoder = tracing.trace_encoder(predictor, work / "encoder", options.external_over)
        elif options.accelerator:
            self.say(f"{variant.encoder_model}: the repository's own stays, as it was exported, for all its segmenters")
        if unet is None:
            with self._stage(f"tracing {form.unet_name}"):
                unet = form.trace_unet(predictor, work / "unet")
        return _Traced(
            segmenter=segmenter,
            variant=variant,
            form=form,
            answers=answers,
            is_training=training is not None,
            encoder=encoder,
            unet=unet,
            new_encoder=new_encoder,
            new_unet=new_unet,
            feeds=lowering.feeds_of(predictor, usual),
            data=data,
            before=before,
        )

    def _served_as_traced(self, variant: Variant) -> bool:
        return variant.precision == "fp32" and variant.format == "onnx" and not self.options.on_cpu

    def _prove_exact(self, made: _Traced) -> None:
        """Compare the fp32 graphs that others are made from; they are not published themselves."""
        with self._stage("comparing the fp32 graphs with PyTorch"):
            latents = parity.encoded(made.answers, opened(made.encoder)) if made.new_encoder else None
            comparisons = parity.measured(made.answers, made.form.opened(made.unet, "fp32"), latents)
        report = Report(comparisons=comparisons, gate=EXACT, own_error=made.answers.own_error)
        if report.failures:
            replace(report, drift=self._drift_from_pytorch(made, report)).require()

    def _lowered(self, made: _Traced, work: Path) -> tuple[Path, Path, Mapping[str, inspection.Counts]]:
        """Return the folders of the encoder and the UNet that will serve, and what is in their graphs."""
        options, variant, encoder, unet = self.options, made.variant, made.encoder, made.unet
        external_over, on_cpu = options.external_over, options.on_cpu

        def passes(path: Path) -> bool:
            """Whether an int8 UNet, served with the fp32 encoder, is within the gate."""
            return not self._compared(made, encoder, path.parent).failures

        with self._stage(f"writing {variant.precision}"):
            unet = lowering.lowered(unet, work / "lowered_unet", variant, made.feeds, external_over, passes, cpu=on_cpu)
            if made.new_encoder:
                its = lowering.encoder_variant(variant)
                encoder = lowering.lowered(encoder, work / "lowered_encoder", its, (), external_over, cpu=on_cpu)
            files = {name: folder / onnx_export.FILE for name, folder in (("unet", unet), ("encoder", encoder))}
            # The repository's own encoder may be an engine.
            graphs = {name: inspection.counts(path) for name, path in files.items() if path.exists()}
        if variant.format == "tensorrt":
            engine = replace(options.engine, timing_cache=engine_builder.timing_cache(options.repository))
            unet = lowering.built(unet, work / "engine_unet", engine, self.say)
            encoder = (
                lowering.built(encoder, work / "engine_encoder", engine, self.say) if made.new_encoder else encoder
            )
        return encoder, unet, graphs

    def _compared(self, made: _Traced, encoder: Path, unet: Path) -> Report:
        """Compare the networks that will serve with PyTorch, and measure their mean IoU where there is data."""
        variant, settings = made.variant, made.segmenter.settings
        its_precision = lowering.encoder_variant(variant).precision
        with self._stage("comparing with PyTorch"):
            latents = parity.encoded(made.answers, opened(encoder, its_precision))
            comparisons = parity.measured(made.answers, made.form.opened(unet, variant.precision), latents)
        score = None
        if made.data is not None and made.before is not None:
            networks = opened(encoder, its_precision), made.form.opened(unet, variant.precision)
            postprocess = settings.postprocess(made.segmenter.image_size)
            exported = parity.ExportedSegmenter(*networks, postprocess, settings.channel_order)
            with self._stage(f"measuring the exported models on {len(made.data)} images"):
                after = parity.mean_iou(exported, made.data)
            score = Score(before=made.before, after=after, images=len(made.data), source=str(self.options.evaluate))
        return Report(
            comparisons=comparisons,
            gate=self.options.held_to,
            variant=variant,
            own_error=made.answers.own_error,
            score=score,
            settings_changed=self.options.changed(made.segmenter),
        )

    def _drift(self, made: _Traced, report: Report, encoder: Path, unet: Path) -> Drift | None:
        """Find the layer that drifts first in what would serve; None for an engine, whose layers cannot be read."""
        variant, answers = made.variant, made.answers
        if variant.format == "tensorrt":
            return None
        if self._served_as_traced(variant):
            return self._drift_from_pytorch(made, report)
        if report.failures[0].startswith(LATENTS) and made.new_encoder:
            precision = lowering.encoder_variant(variant).precision
            return drift.from_fp32(answers, made.encoder, encoder, precision, encoder=True)
        return drift.from_fp32(answers, made.unet, unet, variant.precision, encoder=False)

    def _drift_from_pytorch(self, made: _Traced, report: Report) -> Drift | None:
        """Find the layer of the fp32 graphs that drifts first from PyTorch."""
        if report.failures[0].startswith(LATENTS):
            is_new = made.new_encoder
            return drift.encoder_from_pytorch(self._loaded(), made.answers, made.encoder) if is_new else None
        return drift.unet_from_pytorch(self._loaded(), made.answers, made.unet, made.form.inputs())

"""A segmenter's folder to a published model: PyTorch's answers, trace, lower, compare, publish.

Nothing reaches the repository before the comparison has passed. PyTorch's model and the sessions are in memory one at
a time: Stable Diffusion's weigh gigabytes.
"""

from __future__ import annotations

import errno
import gc
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from slime_export import machine
from slime_export.forms import FORMS
from slime_export.graph import engine_builder, inspection, lowering, onnx_export, tracing
from slime_export.graph.runtimes import opened
from slime_export.options import ExportOptions
from slime_export.proof import drift, parity, references
from slime_export.proof.report import EXACT, Drift, Report, Score
from slime_export.publish import guard
from slime_export.publish.lock import staging
from slime_export.publish.publication import Candidate, Published, publish, reading_of
from slime_export.publish.server_control import Server
from slime_optimize import training_image
from slime_optimize.backbone import Backbone
from slime_optimize.errors import InputError
from slime_optimize.evaluation import Data, read_data
from slime_optimize.method.prediction import Predictor, load_predictor
from slime_repository import layout
from slime_repository.config import OPENVINO
from slime_repository.variant import Variant
from slime_was.tensors import LATENTS

Say = Callable[[str], None]
# Copies of the UNet's weights: trace and tidied file lie there together for a moment, then a lower precision, or an
# engine, comes beside them.
COPIES = {"fp32": 2.0, "fp16": 2.0, "bf16": 2.0, "int8": 2.5}
ENGINE_COPIES = 1.5
# Some filters become four times as large.
CPU_COPIES = 0.5
# Protobuf, reports, small models.
MARGIN_BYTES = 50_000_000


def export(options: ExportOptions, say: Say = print) -> tuple[Published, Report]:
    """Run all of it, telling each stage and its seconds through `say`.

    Raises InputError, ExportError, ParityError, EngineError, ServerError, BusyError or OSError, with the repository as
    it was.
    """
    return Export(options, say).run()


class Export:
    """One run of `export`, or what `slime_export.tuning` tries.

    `encoder` and `unet` are folders with fp32 models, until they are lowered. Each may be the repository's own, which
    is not new. `before`: mean IoU in PyTorch, where there is data.
    """

    before: float | None = None

    def __init__(self, options: ExportOptions, say: Say, *, tuning: bool = False) -> None:
        self.options, self.say, self.tuning = options, say, tuning

    def begin(self) -> Predictor:
        """Load the segmenter, refuse what can be refused before the work begins, and return what PyTorch runs."""
        options = self.options
        options.check_machine()
        predictor = self._loaded()
        reading_of(predictor.segmenter)  # patches that are never served
        self.segmenter = predictor.segmenter
        self.choose(options)
        self._encoder_there()  # of another backbone
        self.data = self._read_data()
        guard.require_learned(options, self.segmenter, self.say)
        return predictor

    def choose(self, options: ExportOptions) -> None:
        """Let the networks that are lowered and compared from now on be those of these options."""
        self.options, self.variant = options, options.variant(self.segmenter)
        self.encoder_variant = lowering.encoder_variant(self.variant)
        self.form = FORMS[options.embedding](options, self.segmenter, self.variant)

    def run(self) -> tuple[Published, Report]:
        options, name = self.options, self.options.served_name
        if options.accelerator == OPENVINO:
            self.say(f"this machine: {machine.described()}")
        server = Server(options.url, options.access) if options.url else None
        predictor = self.begin()
        with staging(options.repository, options.wait, self.say) as staged:
            work = staged / ".export"
            self.trace(predictor, work)
            del predictor
            gc.collect()  # modules and hooks refer to each other
            if not self._served_as_traced:
                self._prove_exact()
            encoder, unet, graphs = self.lowered(work)
            report = replace(self.compared(encoder, unet), graphs=graphs)
            if report.failures:
                report = replace(report, drift=self._drift(report, encoder, unet))
            self.say(report.table())
            report.require()
            if self.data is not None and report.score is not None:
                guard.require_good(options, report.score.after, self.data, self.say)
            if not self.form.is_shared:  # a group's UNet is not one segmenter's
                report.write(unet)
            candidate = Candidate(
                name=name,
                segmenter=self.segmenter,
                unet=unet if self.new_unet else None,
                encoder=encoder if self.new_encoder else None,
                check=self.answers.check(options.held_to.mask_agreement, self.is_training),
                variant=self.variant,
                accelerator=None if options.accelerator == OPENVINO else options.accelerator,
                shared=self.form.is_shared,
                settings_changed=report.settings_changed,
            )
            with self.stage(f"publishing {name} into {options.repository}"):
                published = publish(
                    options.repository, staged, candidate, server, keep=options.keep, wait_s=options.wait, say=self.say
                )
        return published, report

    @contextmanager
    def stage(self, what: str) -> Iterator[None]:
        """Tell the seconds that the block took, once it is through."""
        begun = time.perf_counter()
        yield
        self.say(f"{what}: {time.perf_counter() - begun:.1f} s")

    def _loaded(self) -> Predictor:
        options = self.options
        with self.stage("loading segmenter and backbone"):
            return load_predictor(
                options.folder, backbone=options.backbone, tiny=options.tiny_encoder, changes=options.changes
            )

    def _encoder_there(self) -> Path | None:
        """Return the folder of the repository's own encoder. Raises ExportError where it holds another backbone.

        None while tuning, because each way has its own.
        """
        made, model = self.segmenter, self.variant.encoder_model
        there = layout.encoder_of(self.options.repository, made.backbone_hash, model, made.tiny_hash)
        return None if self.tuning else there

    def _read_data(self) -> Data | None:
        source, parts = self.options.data, self.segmenter.parts
        if source is None:
            return None
        data = read_data(source, parts)
        if data.parts != parts:
            raise InputError(f"--data {source}: its parts are {', '.join(data.parts)}, expected {', '.join(parts)}")
        return data

    def trace(self, predictor: Predictor, work: Path) -> None:
        """Ask PyTorch for its answers and trace the networks that the repository does not have."""
        options, variant = self.options, self.variant
        training = training_image.find(options.folder)
        self.is_training = training is not None  # whether the first image is the one that the segmenter learned from
        if training is None:
            self.say(f"{options.folder}: has no {training_image.FILE}; a generated image is tried in its place")
        wanted = variant.precision == "int8" or (self.tuning and (options.calibration or self.is_training))
        usual = lowering.calibration_images(options.calibration, training) if wanted else []
        encoder, unet = self._encoder_there(), self.form.unet_there()
        self.new_encoder, self.new_unet = encoder is None, unet is None
        if unet is None:
            require_room(work, predictor.backbone, variant, on_cpu=options.on_cpu)
        # Lower precisions are held to the masks, so they are tried on images of the kind that is to come.
        images = parity.trial_images(predictor, training, *usual)
        with self.stage("running PyTorch, in fp32 and float64"):
            self.answers = references.answered(predictor, images, weighted=variant.weighted, own_error=True)
        if self.data is not None:
            with self.stage(f"measuring PyTorch on {len(self.data)} images"):
                self.before = parity.mean_iou(predictor, self.data)
        if encoder is None:
            with self.stage("tracing the VAE encoder" if variant.encoder == "vae" else "tracing the tiny encoder"):
                encoder = tracing.trace_encoder(predictor, work / "encoder", options.external_over)
        elif options.accelerator and options.accelerator != OPENVINO:
            self.say(f"{variant.encoder_model}: the repository's own stays, as it was exported, for all its segmenters")
        if unet is None:
            with self.stage(f"tracing {self.form.unet_name}"):
                unet = self.form.trace_unet(predictor, work / "unet")
        self.encoder, self.unet, self.feeds = encoder, unet, lowering.feeds_of(predictor, usual)

    @property
    def _served_as_traced(self) -> bool:
        return self.variant.precision == "fp32" and self.variant.format != "tensorrt" and not self.options.on_cpu

    def _prove_exact(self) -> None:
        """Compare the fp32 graphs that others are made from; they are not published themselves."""
        with self.stage("comparing the fp32 graphs with PyTorch"):
            latents = parity.encoded(self.answers, opened(self.encoder, Variant())) if self.new_encoder else None
            comparisons = parity.measured(self.answers, self.form.opened(self.unet, Variant()), latents)
        report = Report(comparisons=comparisons, gate=EXACT, own_error=self.answers.own_error)
        if report.failures:
            replace(report, drift=self._drift_from_pytorch(report)).require()

    def lowered(self, work: Path) -> tuple[Path, Path, Mapping[str, inspection.Counts]]:
        """Return the folders of the encoder and the UNet that will serve, and what is in their graphs."""
        options, variant, encoder = self.options, self.variant, self.encoder
        external_over, on_cpu = options.external_over, options.on_cpu

        def passes(path: Path) -> bool:
            """Whether an int8 UNet, served with the fp32 encoder, is within the gate."""
            return not self.compared(self.encoder, path.parent).failures

        with self.stage(f"writing {variant.precision}"):
            unet = lowering.lowered(
                self.unet, work / "lowered_unet", variant, self.feeds, external_over, passes, cpu=on_cpu
            )
            if self.new_encoder:
                into = work / "lowered_encoder"
                encoder = lowering.lowered(encoder, into, self.encoder_variant, (), external_over, cpu=on_cpu)
            files = {name: folder / onnx_export.FILE for name, folder in (("unet", unet), ("encoder", encoder))}
            # The repository's own encoder may be an engine.
            graphs = {name: inspection.counts(path) for name, path in files.items() if path.exists()}
        if variant.format == "tensorrt":
            engine = replace(options.engine, timing_cache=engine_builder.timing_cache(options.repository))
            unet = lowering.built(unet, work / "engine_unet", engine, self.say)
            if self.new_encoder:
                encoder = lowering.built(encoder, work / "engine_encoder", engine, self.say)
        return encoder, unet, graphs

    def compared(self, encoder: Path, unet: Path) -> Report:
        """Compare the networks that will serve with PyTorch, and measure their mean IoU where there is data."""
        variant, encoder_variant = self.variant, self.encoder_variant
        with self.stage("comparing with PyTorch"):
            latents = parity.encoded(self.answers, opened(encoder, encoder_variant))
            comparisons = parity.measured(self.answers, self.form.opened(unet, variant), latents)
        score = None
        if self.data is not None and self.before is not None:
            networks = opened(encoder, encoder_variant), self.form.opened(unet, variant)
            settings = self.segmenter.settings
            postprocess = settings.postprocess(self.segmenter.image_size)
            exported = parity.ExportedSegmenter(*networks, postprocess, settings.channel_order)
            with self.stage(f"measuring the exported models on {len(self.data)} images"):
                after = parity.mean_iou(exported, self.data)
            score = Score(before=self.before, after=after, images=len(self.data), source=str(self.options.data))
        return Report(
            comparisons=comparisons,
            gate=self.options.held_to,
            variant=variant,
            own_error=self.answers.own_error,
            score=score,
            settings_changed=self.options.changed(self.segmenter),
        )

    def _drift(self, report: Report, encoder: Path, unet: Path) -> Drift | None:
        """Find the layer that drifts first in what would serve; None where its precision is not that of the file."""
        in_file = self.variant.format == "onnx" or self.variant.precision == "int8"
        if self.variant.format == "tensorrt" or not in_file:
            return None
        if self._served_as_traced:
            return self._drift_from_pytorch(report)
        if report.failures[0].startswith(LATENTS) and self.new_encoder:
            precision = self.encoder_variant.precision
            return drift.from_fp32(self.answers, self.encoder, encoder, precision, encoder=True)
        return drift.from_fp32(self.answers, self.unet, unet, self.variant.precision, encoder=False)

    def _drift_from_pytorch(self, report: Report) -> Drift | None:
        """Find the layer of the fp32 graphs that drifts first from PyTorch."""
        if report.failures[0].startswith(LATENTS):
            return drift.encoder_from_pytorch(self._loaded(), self.answers, self.encoder) if self.new_encoder else None
        return drift.unet_from_pytorch(self._loaded(), self.answers, self.unet, self.form.inputs())


def require_room(folder: Path, backbone: Backbone, variant: Variant, *, on_cpu: bool = False) -> None:
    """Raise OSError (no space left) unless the disk of `folder`, or of its nearest parent, has room for the export."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    copies = COPIES[variant.precision] + ENGINE_COPIES * (variant.format == "tensorrt") + CPU_COPIES * on_cpu
    needed = int(copies * sum(each.nbytes for each in backbone.unet.parameters())) + MARGIN_BYTES
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"has {free / 1e9:.2f} GB free, expected {needed / 1e9:.2f} GB for the export; free some, or give a "
            "--repository on another disk; nothing was published",
            str(there),
        )

"""`export/build.py --embedding shared`: the group's graph where it is missing, proof, and the segmenter's file.

The proof is a baked export's: the group's networks, given this segmenter's file, against PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slime_export.errors import ExportError
from slime_export.graph import counts as graph
from slime_export.graph import onnx_export as onnx
from slime_export.graph import tracing
from slime_export.graph.unet import SharedUNet
from slime_export.options import ExportOptions
from slime_export.progress import stage
from slime_export.proof import parity, references
from slime_export.proof.report import Report
from slime_export.proof.session import OnnxModel
from slime_export.publish.lock import Say, staging
from slime_export.publish.publication import Published, ensemble_parameters
from slime_export.publish.server_control import Server
from slime_export.publish.shared_publication import SharedCandidate, publish_shared
from slime_export.shared_form import AsBaked, entry_of, group_of, signature
from slime_optimize import training_image
from slime_optimize.method.predict import Predictor, load_predictor
from slime_repository import layout
from slime_repository.record import Check
from slime_repository.shared_contract import Group


def export_shared(request: ExportOptions, say: Say = print) -> tuple[Published, Report]:
    """As `pipeline.export`; raises what it raises."""
    _require_exact(request)
    return _SharedExport(request, say).run()


def _require_exact(request: ExportOptions) -> None:
    if (request.precision, request.format, request.accelerator) != ("fp32", "onnx", None) or request.evaluate:
        raise ExportError(
            "--embedding shared: is exported as fp32 ONNX alone, and not measured on data; leave out --precision, "
            "--format, --accelerator and --evaluate, or bake the embedding in"
        )


@dataclass(frozen=True, kw_only=True)
class _Networks:
    """Folders with a model.onnx, and whether each was traced for this export."""

    encoder: Path
    unet: Path
    new_encoder: bool
    new_unet: bool


class _SharedExport:
    """One run of `export_shared`."""

    def __init__(self, request: ExportOptions, say: Say) -> None:
        self.request, self.say = request, say

    def run(self) -> tuple[Published, Report]:
        request, name = self.request, self.request.served_name
        with stage(self.say, "loading segmenter and backbone"):
            predictor = load_predictor(request.folder, backbone=request.backbone, tiny=request.tiny_encoder)
        variant = request.variant(predictor.segmenter)
        group = group_of(predictor.segmenter, variant)
        server = Server(request.url, request.access) if request.url else None
        with staging(request.repository, request.wait, self.say) as staged:
            networks = self._networks(predictor, group, staged / ".export")
            report, check = self._proven(predictor, group, networks)
            candidate = SharedCandidate(
                name=name,
                segmenter=predictor.segmenter,
                variant=variant,
                check=check,
                unet=networks.unet if networks.new_unet else None,
                encoder=networks.encoder if networks.new_encoder else None,
            )
            with stage(self.say, f"publishing {name} into {request.repository}"):
                published = publish_shared(
                    request.repository, staged, candidate, server, keep=request.keep, wait_s=request.wait, say=self.say
                )
        return published, report

    def _networks(self, predictor: Predictor, group: Group, work: Path) -> _Networks:
        """The repository's own, or new ones in `work`."""
        request, segmenter = self.request, predictor.segmenter
        encoder = layout.encoder_of(
            request.repository, segmenter.backbone_hash, group.variant.encoder_model, segmenter.tiny_hash
        )
        there = layout.versions(request.repository / group.unet)
        unet = request.repository / group.unet / str(there[-1]) if there else None
        return _Networks(
            encoder=encoder or self._traced_encoder(predictor, work / "encoder"),
            unet=unet or self._traced_unet(predictor, group, work / "unet"),
            new_encoder=encoder is None,
            new_unet=unet is None,
        )

    def _traced_encoder(self, predictor: Predictor, folder: Path) -> Path:
        with stage(self.say, "tracing the encoder"):
            return tracing.trace_encoder(predictor, folder, self.request.external_over)

    def _traced_unet(self, predictor: Predictor, group: Group, folder: Path) -> Path:
        folder.mkdir(parents=True)
        with stage(self.say, f"tracing the UNet of {group.name}"):
            module = SharedUNet(
                predictor.segmenter, predictor.backbone, group.most_parts, weighted=group.variant.weighted
            )
            onnx.write(module, signature(group), folder, self.request.external_over)
        return folder

    def _proven(self, predictor: Predictor, group: Group, networks: _Networks) -> tuple[Report, Check]:
        """Raises ParityError past the gate."""
        training = training_image.find(self.request.folder)
        images = parity.trial_images(predictor, training)
        segmenter = predictor.segmenter
        with stage(self.say, "running PyTorch, in fp32 and float64"):
            answers = references.answered(predictor, images, weighted=group.variant.weighted, own_error=True)
        entry = entry_of(segmenter, group, ensemble_parameters(segmenter))
        with stage(self.say, "comparing with PyTorch"):
            latents = parity.encoded(answers, OnnxModel(networks.encoder / onnx.FILE))
            unet = AsBaked(OnnxModel(networks.unet / onnx.FILE), entry)
            comparisons = parity.measured(answers, unet, latents)
        report = Report(
            comparisons=comparisons,
            gate=self.request.held_to,
            variant=group.variant,
            own_error=answers.own_error,
            graphs={
                "unet": graph.counts(networks.unet / onnx.FILE),
                "encoder": graph.counts(networks.encoder / onnx.FILE),
            },
        )
        self.say(report.table())
        report.require()
        check = answers.check(self.request.held_to.mask_agreement, training is not None)
        return report, check

"""A segmenter's folder to a published model: trace, compare with PyTorch, publish. `export/build.py` runs it.

Nothing reaches the repository before the comparison has passed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from slime_export import layout, onnx, parity
from slime_export.access import Access
from slime_export.encoder import Encoder
from slime_export.errors import ExportError
from slime_export.lock import WAIT_S, staging
from slime_export.onnx import Signature
from slime_export.parity import Image, OnnxModel, Report, Tolerance
from slime_export.record import Check, png
from slime_export.release import KEEP
from slime_export.repository import LATENT_CHANNELS, Candidate, Published, publish
from slime_export.server import Server
from slime_export.unet import MapsUNet
from slime_optimize import training_image
from slime_optimize.predict import Predictor, load_predictor
from slime_was.contract import ACCUMULATED, CROSS, LATENTS, PIXELS, SELF, WEIGHTING, Form, map_names
from slime_was.options import LENGTH

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to export, and where to. `url` is a running server's gRPC endpoint, `access` what it asks for; `backbone`
    replaces the segmenter's own name for the same weights, where they have moved, and `tiny_encoder` the one for its
    tiny encoder; `external_over` is in bytes. `keep`: how many versions of the segmenter stay in the repository;
    `wait`: seconds for another process that is changing it. The form's encoder is the segmenter's, whatever it says
    here."""

    folder: Path
    repository: Path
    name: str = ""  # the folder's name, where it is empty
    url: str | None = None
    access: Access = field(default_factory=Access)
    backbone: str | None = None
    tiny_encoder: str | None = None
    form: Form = field(default_factory=Form)
    keep: int = KEEP
    wait: float = WAIT_S
    tolerance: Tolerance = field(default_factory=Tolerance)
    external_over: int = onnx.EXTERNAL_OVER

    def __post_init__(self) -> None:
        if self.keep < KEEP:
            raise ExportError(f"--keep: got {self.keep}, expected {KEEP} or more: the new version and the one before")

    @property
    def served_name(self) -> str:
        return layout.check_name(self.name or self.folder.resolve().name)


def export(request: Request, say: Say = print) -> tuple[Published, Report]:
    """Runs all of it, telling each stage and its seconds through `say`.

    Raises InputError, ExportError, ParityError, ServerError or OSError, with the repository as it was.
    """
    name = request.served_name
    with _stage(say, "loading segmenter and backbone"):
        predictor = load_predictor(request.folder, backbone=request.backbone, tiny=request.tiny_encoder)
    # A segmenter is served with the encoder that it was made with.
    request = replace(request, form=replace(request.form, encoder=predictor.segmenter.settings.encoder))
    _encoder_there(request, predictor)
    server = Server(request.url, request.access) if request.url else None
    training = training_image.find(request.folder)
    if training is None:
        say(f"{request.folder}: has no {training_image.FILE}; a generated image is tried in its place")
    with staging(request.repository, request.wait, say) as staged:
        encoder = _encoder_there(request, predictor)
        new_encoder = None if encoder else _traced_encoder(request, predictor, staged / ".export" / "encoder", say)
        unet = _traced_unet(request, predictor, staged / ".export" / "unet", say)
        unet_model = OnnxModel(unet / onnx.FILE)
        with _stage(say, "comparing with PyTorch"):
            encode = OnnxModel((encoder or new_encoder or unet) / onnx.FILE)
            report = parity.compare(predictor, encode, unet_model, image=training, tolerance=request.tolerance)
        say(report.table())
        report.require()
        report.write(unet)
        candidate = Candidate(
            name=name,
            segmenter=predictor.segmenter,
            unet=unet,
            encoder=new_encoder,
            check=_check(predictor, training, request.tolerance),
            form=request.form,
        )
        with _stage(say, f"publishing {name} into {request.repository}"):
            published = publish(
                request.repository, staged, candidate, server, keep=request.keep, wait_s=request.wait, say=say
            )
    return published, report


def _encoder_there(request: Request, predictor: Predictor) -> Path | None:
    segmenter = predictor.segmenter
    return layout.encoder_of(
        request.repository, segmenter.backbone_hash, request.form.encoder_model, segmenter.tiny_hash
    )


def _check(predictor: Predictor, training: Image | None, tolerance: Tolerance) -> Check:
    """What the served segmenter has to answer: PyTorch's mask of its training image, or of a generated one."""
    size = predictor.backbone.image_size
    image = training if training is not None else parity.random_images(np.random.default_rng(0), 1, size)[0]
    return Check(
        image=png(image),
        mask_HW=predictor.mask(image),
        agreement=tolerance.mask_agreement,
        training_image=training is not None,
    )


def encoder_signature(predictor: Predictor) -> Signature:
    """Names and sizes of the encoder's input and output."""
    size, latent = predictor.backbone.image_size, predictor.backbone.latent_size
    return Signature(inputs={PIXELS: (3, size, size)}, outputs={LATENTS: (LATENT_CHANNELS, latent, latent)})


def unet_signature(predictor: Predictor, form: Form) -> Signature:
    """Names and sizes of the input and outputs of a UNet of this form.

    The number of parts is left open: Triton describes all versions of a model in one file, and the next version may
    have more parts.
    """
    latent = predictor.backbone.latent_size
    each_part = (-1, latent, latent)
    dims = {CROSS: each_part, ACCUMULATED: each_part, SELF: (latent**2, latent**2), WEIGHTING: (LENGTH,)}
    return Signature(
        inputs={LATENTS: (LATENT_CHANNELS, latent, latent)},
        outputs={name: dims[name] for name in map_names(form)},
    )


def _traced_encoder(request: Request, predictor: Predictor, folder: Path, say: Say) -> Path:
    encoder = request.form.encoder
    with _stage(say, f"tracing the {'VAE' if encoder == 'kl' else 'tiny'} encoder"):
        folder.mkdir(parents=True)
        onnx.write(Encoder(predictor.backbone, encoder), encoder_signature(predictor), folder, request.external_over)
    return folder


def _traced_unet(request: Request, predictor: Predictor, folder: Path, say: Say) -> Path:
    with _stage(say, "tracing the UNet"):
        folder.mkdir(parents=True)
        module = MapsUNet(predictor.segmenter, predictor.backbone, weighted=request.form.weighted)
        onnx.write(module, unet_signature(predictor, request.form), folder, request.external_over)
    return folder


@contextmanager
def _stage(say: Say, what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    say(f"{what}: {time.perf_counter() - start:.1f} s")

"""Segmenters that are published again and again, in either form, and the requests for their masks.

All calls of the benchmarks to slime_export's publishing are here.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.common.pictures import picture
from benchmarks.common.random_backbone import random_segmenter
from benchmarks.common.served_repository import Networks
from tritonclient import grpc

from slime_export.forms import group_of
from slime_export.options import ExportOptions
from slime_export.pipeline import export
from slime_export.publish.changes import linked
from slime_export.publish.lock import staging
from slime_export.publish.maintenance import remove, rollback
from slime_export.publish.publication import Candidate, publish
from slime_export.publish.server_control import Server
from slime_optimize.backbone import Backbone
from slime_optimize.method.prediction import Predictor
from slime_optimize.segmenter import Segmenter
from slime_repository.contract import VAE_ENCODER, unet_name
from slime_repository.record import Check, Mask, png
from slime_repository.shared_contract import Group
from slime_repository.variant import Variant
from slime_was.tensors import DESCRIPTION, IMAGE, MASK, SEGMENTER

NAME = "car"
AGREEMENT = 0.999  # of a mask's pixels
UNCHECKED = Check(image=b"", mask_HW=np.zeros((1, 1), np.uint8), agreement=0.0, training_image=False)


def quiet(line: str) -> None:
    """Say nothing."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A segmenter to publish, in one of the forms. `check`: an image, and PyTorch's mask of it.

    networks: the exported files; those of the shared form are not needed where the repository has its models.
    """

    segmenter: Segmenter
    check: Check
    shared: bool = False
    networks: Networks | None = None
    variant: Variant = field(default_factory=Variant)

    def publish(self, repository: Path, name: str, server: Server | None) -> int:
        """Publish it under `name`; return the version that it got."""
        with staging(repository, say=quiet) as staged:
            files: dict[str, Path] = {}
            if self.networks and not (self.shared and (repository / self._group.unet).exists()):
                for part, path in self.networks._asdict().items():
                    files[part] = linked(path.parent, staged / ".export" / part)
            candidate = Candidate(
                name=name,
                segmenter=self.segmenter,
                unet=files.get("unet"),
                encoder=files.get("encoder"),
                check=self.check,
                variant=self.variant,
                shared=self.shared,
            )
            return publish(repository, staged, candidate, server, say=quiet).version

    def model(self, name: str) -> str:
        """Return the model that is asked for the masks of the segmenter of that name."""
        return self._group.name if self.shared else name

    @property
    def _group(self) -> Group:
        return group_of(self.segmenter, self.variant)


def exported(root: Path, count: int, backbone: Backbone, embedding: str) -> tuple[list[Published], list[float]]:
    """Export `count` segmenters of random embeddings; return them and the seconds that each export took."""
    made, seconds = [], []
    for seed in range(count):
        folder = root / str(seed)
        segmenter = random_segmenter(backbone, 4 + seed, seed)
        segmenter.save(folder / NAME)
        begun = time.perf_counter()
        export(ExportOptions(folder=folder / NAME, repository=folder / "repository", embedding=embedding), say=quiet)
        seconds.append(time.perf_counter() - begun)
        shared = group_of(segmenter, Variant()).unet
        unet = shared if embedding == "shared" else unet_name(NAME)
        files = (folder / "repository" / model / "1" / "model.onnx" for model in (VAE_ENCODER, unet))
        check = checked(segmenter, backbone, 0, AGREEMENT)
        shared_form = embedding == "shared"
        made.append(Published(segmenter=segmenter, check=check, shared=shared_form, networks=Networks(*files)))
    require_different([each.check.mask_HW for each in made])
    return made, seconds


def checked(segmenter: Segmenter, backbone: Backbone, seed: int, agreement: float) -> Check:
    """Return a picture, and what PyTorch answers to it."""
    image_HW3 = picture(backbone.image_size, seed)
    mask_HW: Mask = np.asarray(Predictor(segmenter, backbone).mask(image_HW3), np.uint8)
    return Check(image=png(image_HW3), mask_HW=mask_HW, agreement=agreement, training_image=False)


def require_different(masks: Sequence[Mask]) -> None:
    """Raise SystemExit unless masks differ by ten times what an answer may: a wrong version would look right."""
    for one, other in itertools.combinations(masks, 2):
        if np.equal(one, other).mean() > 1 - 10 * (1 - AGREEMENT):
            raise SystemExit("error: two of the segmenters give nearly the same mask; try other seeds")


class Watched(Server):
    """A server's control that remembers when each load of a model began and ended."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.loads: list[tuple[str, float, float]] = []

    def load(self, model: str) -> None:
        begun = time.perf_counter()
        super().load(model)
        self.loads.append((model, begun, time.perf_counter()))


def rolled_back(repository: Path, name: str, server: Server) -> int:
    """Return the version that the content before got."""
    return rollback(repository, name, server=server, say=quiet)[1]


def removed(repository: Path, name: str, server: Server) -> None:
    remove(repository, name, server, say=quiet)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One request: when it was sent and answered, by which version, with what mask; or its error."""

    begun: float
    ended: float
    version: int = 0
    mask_HW: Mask | None = None
    error: str = ""

    def has(self, expected_HW: Mask) -> bool:
        """Return whether the answer is that mask."""
        if self.mask_HW is None or self.mask_HW.shape != expected_HW.shape:
            return False
        return float(np.equal(self.mask_HW, expected_HW).mean()) >= AGREEMENT


def ask(client: Any, name: str, published: Published) -> Answer:
    """Send one request for the segmenter of that name; errors become part of the answer."""
    model, values, wanted = published.model(name), {IMAGE: published.check.image}, [MASK]
    if model != name:  # in the shared form, answers tell of the segmenter
        values, wanted = values | {SEGMENTER: name.encode()}, [MASK, DESCRIPTION]
    tensors = [grpc.InferInput(each, [1], "BYTES") for each in values]
    for tensor, value in zip(tensors, values.values(), strict=True):
        tensor.set_data_from_numpy(np.array([value], dtype=object))
    outputs = [grpc.InferRequestedOutput(each) for each in wanted]
    begun = time.perf_counter()
    try:
        got = client.infer(model, tensors, outputs=outputs, client_timeout=60)
    except Exception as error:
        return Answer(begun=begun, ended=time.perf_counter(), error=f"{type(error).__name__}: {error}")
    ended = time.perf_counter()
    told = json.loads(got.as_numpy(DESCRIPTION).item()) if DESCRIPTION in wanted else {}
    version = int(told.get("version", got.get_response().model_version))
    return Answer(begun=begun, ended=ended, version=version, mask_HW=got.as_numpy(MASK))

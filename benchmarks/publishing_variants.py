"""What benchmarks.publishing publishes again and again: segmenters that differ, exported once, in either form."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.make_random_backbone import random_segmenter
from benchmarks.pictures import picture

from slime_export.options import ExportOptions
from slime_export.pipeline import export
from slime_export.publish.changes import linked
from slime_export.publish.lock import staging
from slime_export.publish.publication import Candidate, publish
from slime_export.publish.record import Check, Mask, png
from slime_export.publish.server_control import Server
from slime_export.publish.shared_publication import SharedCandidate, publish_shared
from slime_export.shared_form import group_of
from slime_optimize.backbone import Backbone
from slime_optimize.method.predict import Predictor
from slime_optimize.segmenter import Segmenter
from slime_repository.contract import VAE_ENCODER, unet_name
from slime_repository.variant import Variant as ExportVariant

NAME = "car"
AGREEMENT = 0.999  # of a mask's pixels
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Variant(ABC):
    """A segmenter exported into a repository of its own. `check`: an image, and PyTorch's mask of it."""

    repository: Path
    segmenter: Segmenter
    check: Check

    @abstractmethod
    def publish(self, repository: Path, name: str, server: Server | None) -> int:
        """The version it got under `name`."""

    @abstractmethod
    def model(self, name: str) -> str:
        """What is asked for the masks of the segmenter of that name."""

    def linked(self, model: str, staged: Path) -> Path:
        """A network of its own repository, in the staging folder."""
        return linked(self.repository / model / "1", staged / ".export" / model)


class Baked(Variant):
    def publish(self, repository: Path, name: str, server: Server | None) -> int:
        with staging(repository, say=quiet) as staged:
            candidate = Candidate(
                name=name,
                segmenter=self.segmenter,
                unet=self.linked(unet_name(NAME), staged),
                encoder=self.linked(VAE_ENCODER, staged),
                check=self.check,
            )
            return publish(repository, staged, candidate, server, say=quiet).version

    def model(self, name: str) -> str:
        return name


class Shared(Variant):
    def publish(self, repository: Path, name: str, server: Server | None) -> int:
        group = group_of(self.segmenter, ExportVariant())
        with staging(repository, say=quiet) as staged:
            is_there = (repository / group.unet).exists()
            candidate = SharedCandidate(
                name=name,
                segmenter=self.segmenter,
                variant=ExportVariant(),
                unet=None if is_there else self.linked(group.unet, staged),
                encoder=None if is_there else self.linked(VAE_ENCODER, staged),
                check=self.check,
            )
            return publish_shared(repository, staged, candidate, server, say=quiet).version

    def model(self, name: str) -> str:
        return group_of(self.segmenter, ExportVariant()).name


EMBEDDINGS: dict[str, type[Variant]] = {"baked": Baked, "shared": Shared}


def exported(root: Path, count: int, backbone: Backbone, embedding: str) -> tuple[list[Variant], list[float]]:
    """So many with random embeddings, and the seconds that each export took. Raises SystemExit where two are alike."""
    variants, seconds = [], []
    for seed in range(count):
        folder = root / str(seed)
        segmenter = random_segmenter(backbone, 4 + seed, seed)
        segmenter.save(folder / NAME)
        begun = time.perf_counter()
        export(ExportOptions(folder=folder / NAME, repository=folder / "repository", embedding=embedding), say=quiet)
        seconds.append(time.perf_counter() - begun)
        variants.append(
            EMBEDDINGS[embedding](
                repository=folder / "repository", segmenter=segmenter, check=_check(segmenter, backbone)
            )
        )
    require_different([each.check.mask_HW for each in variants])
    return variants, seconds


def _check(segmenter: Segmenter, backbone: Backbone) -> Check:
    image_HW3 = picture(backbone.image_size, 0)
    mask_HW: Mask = np.asarray(Predictor(segmenter, backbone).mask(image_HW3), np.uint8)
    return Check(image=png(image_HW3), mask_HW=mask_HW, agreement=AGREEMENT, training_image=False)


def require_different(masks: Sequence[Mask]) -> None:
    """By ten times what an answer may differ by, or one of the wrong version would look right."""
    for one, other in itertools.combinations(masks, 2):
        if np.equal(one, other).mean() > 1 - 10 * (1 - AGREEMENT):
            raise SystemExit("error: two of the segmenters give nearly the same mask; try other seeds")


def quiet(line: str) -> None:
    pass

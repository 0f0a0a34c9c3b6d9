"""A repository's segmenter in ONNX Runtime, as it serves now: to be measured, or looked at, where no server runs.

Needs neither PyTorch nor the backbone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slime_client import Description
from slime_client.local import LocalSegmenter
from slime_export.publish.trial import Trial
from slime_image import decode
from slime_repository import config as triton_config
from slime_repository import layout, shared_store
from slime_repository.errors import RepositoryError
from slime_repository.record import Mask


def live_version(repository: Path, name: str) -> int | None:
    """Return the version of the segmenter that serves, of either form; None where there is none."""
    if name in shared_store.names(repository):
        return shared_store.versions(repository, name)[-1]
    return layout.live_version(repository / name)


class LiveSegmenter:
    """The segmenter `name` of `repository`, of either form; `threads`: of each network, 0 for one for each core.

    Raises RepositoryError where it is not there, where ONNX Runtime is missing, and, when it segments, for engines.
    """

    batch_size = 1

    def __init__(self, repository: Path, name: str, threads: int = 0) -> None:
        self._segmenter: str | None = None
        shared, baked = shared_store.names(repository), layout.segmenters(repository)
        if name in shared:
            about = dict(shared_store.entry(repository, name).description)
            ensemble, self._segmenter, parts, colours = str(about["model"]), name, about["parts"], about["colours"]
        elif name in baked:
            about = dict(layout.parameters(repository / name))
            ensemble = name
            parts, colours = json.loads(about["parts"]), json.loads(about["colours"])
        else:
            there = ", ".join(sorted([*shared, *baked])) or "none"
            raise RepositoryError(f"segmenter {name}: is not in repository {repository}, expected one of: {there}")
        self._trial = Trial(repository, threads)
        self._pins = triton_config.pins(layout.config_text(repository / ensemble))
        self.about: dict[str, Any] = about
        self.parts: tuple[str, ...] = tuple(parts)
        self.colours: tuple[tuple[int, int, int], ...] = tuple((r, g, b) for r, g, b in colours)

    def mask(self, image_HW3: Mask) -> Mask:
        """Return the mask, uint8 (H,W), of an RGB uint8 image of any size."""
        return self._trial.mask(self._pins, image_HW3, self._segmenter)

    def masks(self, images_HW3: Sequence[Mask], *, use_was: bool = True) -> list[Mask]:
        """Return the masks of several images, as `mask` does."""
        assert use_was, "a served segmenter always uses WAS maps"
        return [self.mask(image) for image in images_HW3]


def local_segmenter(repository: Path, name: str, threads: int = 0) -> LocalSegmenter:
    """Return the segmenter `name` of `repository` as the client takes one of its own process.

    Raises as LiveSegmenter.
    """
    live = LiveSegmenter(repository, name, threads)
    told = Description(name=name, parts=live.parts, colours=live.colours, model=name, about=live.about)
    return LocalSegmenter(description=told, mask_of=lambda image: live.mask(decode(image)))

"""Segments an image with a repository's own networks and this project's current code, in ONNX Runtime.

So a repository can be tried with other code where no server runs it, with neither PyTorch nor the backbone.

Shapes: C crops of the image, S the side of the fitted image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import slime_image
from slime_export.masks import mask_of, of_segmenter
from slime_repository import config as triton_config
from slime_repository import layout, shared_store
from slime_repository.contract import is_encoder, is_preprocess, is_unet
from slime_repository.errors import RepositoryError
from slime_repository.record import Check, Mask
from slime_was.tensors import LATENTS, PIXELS

FILE = "model.onnx"


class Trial:
    """Runs the networks of `repository`, each loaded once. Raises RepositoryError where ONNX Runtime is missing."""

    def __init__(self, repository: Path) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise RepositoryError(
                "repository: trying its segmenters without a server needs ONNX Runtime, which is missing; "
                'pip install "slime-serve[export]", or give the --url of the server that has the repository'
            ) from error
        self._runtime: Any = onnxruntime
        self._repository = repository
        self._sessions: dict[tuple[str, int], Any] = {}

    def complaint(self, config: str, check: Check, segmenter: str | None = None) -> str | None:
        """Return what is wrong with the answer of an ensemble of this configuration; None where it is as expected.

        `segmenter`: which one of a group's is tried. Raises RepositoryError where its networks cannot run here.
        """
        try:
            image_HW3 = slime_image.decode(check.image)
            return check.complaint(self.mask(triton_config.pins(config), image_HW3, segmenter))
        except (ValueError, KeyError) as error:  # of slime_image and slime_was, or of a network with other tensors
            if isinstance(error, RepositoryError):
                raise
            return f"cannot be segmented with the current code ({error})"

    def mask(self, pins: Mapping[str, int], image_HW3: Mask, segmenter: str | None = None) -> Mask:
        """Return the mask, uint8 (H,W), of an RGB uint8 image by the models of these versions.

        `segmenter`: which one of a group's. Raises RepositoryError where its networks cannot run here.
        """
        entry = shared_store.entry(self._repository, segmenter) if segmenter else None
        reading = entry.description if entry else self._reading(next(filter(is_preprocess, pins)))
        fitted_3SS = slime_image.fit(image_HW3, int(reading["image_size"]), str(reading["channel_order"]))
        pixels_C3SS = slime_image.cropped(fitted_3SS, reading["crops"], int(reading["crop_side"]))
        latents = self._run(next(filter(is_encoder, pins)), pins, {PIXELS: pixels_C3SS})[LATENTS]
        given = {LATENTS: latents, **(entry.given(len(latents)) if entry else {})}
        maps = self._run(next(filter(is_unet, pins)), pins, given)
        return mask_of(of_segmenter(maps, entry) if entry else maps, fitted_3SS, image_HW3.shape[:2])

    def _reading(self, model: str) -> dict[str, Any]:
        told = layout.parameters(self._repository / model)
        return {**told, "crops": json.loads(told["crops"]) or [[0, 0]]}

    def _run(self, model: str, pins: Mapping[str, int], inputs: Mapping[str, Any]) -> dict[str, Any]:
        path = self._repository / model / str(pins[model]) / FILE
        if not path.exists():
            raise RepositoryError(f"model {model}: has no {FILE}, and cannot be tried here; give the --url of a server")
        try:
            if (model, pins[model]) not in self._sessions:
                options = self._runtime.SessionOptions()
                options.log_severity_level = 3
                self._sessions[model, pins[model]] = self._runtime.InferenceSession(
                    str(path), options, providers=["CPUExecutionProvider"]
                )
            session = self._sessions[model, pins[model]]
            names = [output.name for output in session.get_outputs()]
            return dict(zip(names, session.run(names, {k: np.asarray(v) for k, v in inputs.items()}), strict=True))
        except Exception as error:  # ONNX Runtime has a dozen kinds of its own
            reason = " ".join(str(error).split())[:200]
            raise RepositoryError(
                f"model {model}: cannot be tried on this machine ({reason}); give the --url of a server"
            ) from error

"""Segments an image with a repository's own networks and this project's current code, in ONNX Runtime or OpenVINO.

So a repository can be tried with other code where no server runs it, with neither PyTorch nor the backbone.

Shapes: C crops of the image, S the side of the fitted image.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import slime_image
from slime_export.masks import mask_of, of_segmenter
from slime_repository import config as triton_config
from slime_repository import layout, shared_store
from slime_repository.contract import is_encoder, is_preprocess, is_unet
from slime_repository.errors import RepositoryError
from slime_repository.openvino_network import OpenVinoNetwork
from slime_repository.record import Check, Mask
from slime_was.tensors import LATENTS, PIXELS

FILE = "model.onnx"
Network = Callable[[Mapping[str, Any]], dict[str, Any]]


class Trial:
    """Runs the networks of `repository`, each loaded once, by what serves them, ONNX Runtime or OpenVINO.

    `threads`: of each network, 0 for one for each core. Raises RepositoryError where ONNX Runtime is missing.
    """

    def __init__(self, repository: Path, threads: int = 0) -> None:
        texts = [layout.config_text(repository / model) for model in layout.models(repository) if is_unet(model)]
        by_onnx = [text for text in texts if triton_config.openvino_precision(text) is None]
        if by_onnx and importlib.util.find_spec("onnxruntime") is None:
            raise RepositoryError(
                "repository: trying its segmenters without a server needs ONNX Runtime, which is missing; "
                'pip install "slime-serve[export]", or give the --url of the server that has the repository'
            )
        self._repository, self._threads = repository, threads
        self._networks: dict[tuple[str, int], Network] = {}

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
        if (model, pins[model]) not in self._networks:
            precision = triton_config.openvino_precision(layout.config_text(self._repository / model))
            self._networks[model, pins[model]] = opened(model, path, precision, self._threads)
        try:
            return self._networks[model, pins[model]]({name: np.asarray(value) for name, value in inputs.items()})
        except Exception as error:  # ONNX Runtime has a dozen kinds of its own
            raise _untried(model, error) from error


def opened(model: str, path: Path, openvino_precision: str | None, threads: int = 0) -> Network:
    """Return the network of a file, in OpenVINO where a precision for it is given; 0 threads: one for each core.

    Raises RepositoryError, which names the model, where it cannot be opened.
    """
    try:
        if openvino_precision is not None:
            return OpenVinoNetwork(path, openvino_precision, threads=threads)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _untried(model, error) from error
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))


def _untried(model: str, error: Exception) -> RepositoryError:
    reason = " ".join(str(error).split())[:200]
    return RepositoryError(f"model {model}: cannot be tried on this machine ({reason}); give the --url of a server")

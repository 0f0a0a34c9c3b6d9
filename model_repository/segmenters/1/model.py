"""Triton model ``segmenters``: a segmenter's name to its description, and with an image to its networks' input.

SEGMENTER to DESCRIPTION (JSON; the list of all names for an empty one), and with IMAGE to PIXELS, SIZE, STARTED,
GUIDE_IMAGE, TEXT, NOISE, PART_MASK and POSTPROCESS, with the segmenter's name and version in it. Arguments only;
slime_store and slime_image work. The tensors' names are those of slime_was.tensors, which is not importable from here.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

import slime_image
import slime_store
from slime_image.intake import Intake


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self.store = slime_store.Store(Path(args["model_repository"]) / parameters["store"]["string_value"])
        codes: dict[type[Exception], int] = {
            slime_store.UnknownSegmenterError: pb_utils.TritonError.NOT_FOUND,
            slime_store.StoreError: pb_utils.TritonError.INTERNAL,
        }
        self.intake = Intake(pb_utils, args, codes)

    def execute(self, requests: list[Any]) -> None:
        """Answer the requests one by one: what a segmenter is at once, an image when its turn comes."""
        for request in requests:
            name, image = (pb_utils.get_input_tensor_by_name(request, each) for each in ("SEGMENTER", "IMAGE"))
            segmenter, wanted = name.as_numpy().item().decode("utf-8", "replace"), request.requested_output_names()
            if image is None:
                self.intake.answer(request, partial(self._described, segmenter))
            else:
                self.intake.admit(request, partial(self._read, image.as_numpy().item(), segmenter, wanted))

    def is_ready(self) -> bool:
        """Answer Triton, from 26.03 on, out of the process itself: one that hangs is then not ready."""
        return True

    def finalize(self) -> None:
        self.intake.close()

    def _described(self, name: str) -> list[Any]:
        return [_text("DESCRIPTION", dict(self.store.get(name).description) if name else self.store.names())]

    def _read(self, data: bytes, name: str, wanted: list[str], started: int) -> list[Any]:
        """Return the image as this segmenter reads it, its embedding for each crop, and its postprocessing."""
        entry = self.store.get(name)
        told = entry.description
        picture = slime_image.picture(data)
        fitted_3SS = slime_image.fit(picture, told["image_size"], told["channel_order"])
        pixels_C3SS = slime_image.cropped(fitted_3SS, told["crops"], told["crop_side"])
        tensors: dict[str, Any] = {
            "PIXELS": pixels_C3SS,
            "SIZE": np.array([picture.height, picture.width], np.int32),
            # An ensemble wants every tensor, so one pixel stands for an image whose edges nothing follows.
            "GUIDE_IMAGE": fitted_3SS if told["guided"] else fitted_3SS[:, :1, :1],
            "STARTED": np.array([started], np.int64),
            # The name as slime_was.options.Postprocess.vector writes it; behind it the version, in no configuration.
            "POSTPROCESS": np.array([[*entry.postprocess, *f"{name}/{told.get('version', '')}".encode()]], np.float32),
            **entry.given(len(pixels_C3SS)),
        }
        answer = [pb_utils.Tensor(name, value) for name, value in tensors.items() if name in wanted]
        return [*answer, *([_text("DESCRIPTION", told)] if "DESCRIPTION" in wanted else [])]


def _text(name: str, value: Any) -> Any:
    return pb_utils.Tensor(name, np.array([json.dumps(value, ensure_ascii=False).encode()], np.object_))

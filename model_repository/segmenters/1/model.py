"""Triton model ``segmenters``: a segmenter's name to its description, and with an image to its networks' input.

SEGMENTER to DESCRIPTION (JSON; the list of all names for an empty one), and with IMAGE to PIXELS, SIZE, STARTED,
GUIDE_IMAGE, TEXT, NOISE, PART_MASK and POSTPROCESS, with the segmenter's name and version in it. Arguments and errors
only; slime_store and slime_image work. The tensors' names are those of slime_was.tensors, which is not importable from
here.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

import slime_image
import slime_store


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self.store = slime_store.Store(Path(args["model_repository"]) / parameters["store"]["string_value"])
        # Kept, because a counter ends with its family.
        self.failures = pb_utils.MetricFamily(
            name="slime_decode_failures_total",
            description="Images that were refused",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self.refused = self.failures.Metric(labels={"model": args["model_name"]})

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def is_ready(self) -> bool:
        """Answer Triton, from 26.03 on, out of the process itself: one that hangs is then not ready."""
        return True

    def _respond(self, request: Any) -> Any:
        if request.is_cancelled():
            return _failed("the request was cancelled", pb_utils.TritonError.CANCELLED)
        try:
            name = pb_utils.get_input_tensor_by_name(request, "SEGMENTER").as_numpy().item().decode("utf-8", "replace")
            image = pb_utils.get_input_tensor_by_name(request, "IMAGE")
            if image is None:
                return self._described(name)
            return _read(image.as_numpy().item(), name, self.store.get(name), request.requested_output_names())
        except slime_store.UnknownSegmenterError as error:
            return _failed(str(error), pb_utils.TritonError.NOT_FOUND)
        except slime_image.ImageError as error:
            self.refused.increment(1)
            return _failed(str(error), pb_utils.TritonError.INVALID_ARG)
        except slime_store.StoreError as error:
            return _failed(str(error), pb_utils.TritonError.INTERNAL)
        except Exception as error:  # Its text could name paths of the server.
            pb_utils.Logger.log_error(f"segmenters: {error!r}")
            return _failed("segmenters: internal error; the server's log has it", pb_utils.TritonError.INTERNAL)

    def _described(self, name: str) -> Any:
        told = dict(self.store.get(name).description) if name else self.store.names()
        return pb_utils.InferenceResponse([_text("DESCRIPTION", told)])


def _read(data: bytes, name: str, entry: slime_store.Entry, wanted: list[str]) -> Any:
    """Return the image as this segmenter reads it, its embedding for each crop, and its postprocessing."""
    started, told = time.monotonic_ns(), entry.description
    picture = slime_image.picture(data)
    fitted_3SS = slime_image.fit(picture, told["image_size"], told["channel_order"])
    pixels_C3SS = slime_image.cropped(fitted_3SS, told["crops"], told["crop_side"])
    tensors: dict[str, Any] = {
        "PIXELS": pixels_C3SS,
        "SIZE": np.array([picture.height, picture.width], np.int32),
        # An ensemble wants every tensor, so one pixel stands for an image whose edges nothing follows.
        "GUIDE_IMAGE": fitted_3SS if told["guided"] else fitted_3SS[:, :1, :1],
        "STARTED": np.array([started], np.int64),
        # As slime_was.options.Postprocess.vector writes a name; the version behind it, which is in no configuration.
        "POSTPROCESS": np.array([[*entry.postprocess, *f"{name}/{told.get('version', '')}".encode()]], np.float32),
        **entry.given(len(pixels_C3SS)),
    }
    answer = [pb_utils.Tensor(name, value) for name, value in tensors.items() if name in wanted]
    return pb_utils.InferenceResponse([*answer, *([_text("DESCRIPTION", told)] if "DESCRIPTION" in wanted else [])])


def _text(name: str, value: Any) -> Any:
    return pb_utils.Tensor(name, np.array([json.dumps(value, ensure_ascii=False).encode()], np.object_))


def _failed(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))

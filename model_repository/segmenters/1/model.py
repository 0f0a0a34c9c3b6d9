"""Triton model ``segmenters``: a segmenter's name to its description, and with an image to its networks' input.

SEGMENTER to DESCRIPTION (JSON; the list of all names for an empty one), and with IMAGE to PIXELS, SIZE, GUIDE_IMAGE,
TEXT, NOISE, PART_MASK and POSTPROCESS. Arguments and errors only; slime_store and slime_image work. The tensors' names
are those of slime_was.tensors, which is not importable from here.
"""

from __future__ import annotations

import json
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
        self.metrics = _Metrics(args["model_name"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        if request.is_cancelled():
            return _failed("the request was cancelled", pb_utils.TritonError.CANCELLED)
        try:
            name = pb_utils.get_input_tensor_by_name(request, "SEGMENTER").as_numpy().item().decode("utf-8", "replace")
            image = pb_utils.get_input_tensor_by_name(request, "IMAGE")
            if image is None:
                return self._described(name)
            entry = self.store.get(name)
            self.metrics.asked(name)
            return _read(image.as_numpy().item(), entry, request.requested_output_names())
        except slime_store.UnknownSegmenterError as error:
            return _failed(str(error), pb_utils.TritonError.NOT_FOUND)
        except slime_image.ImageError as error:
            self.metrics.refused.increment(1)
            return _failed(str(error), pb_utils.TritonError.INVALID_ARG)
        except slime_store.StoreError as error:
            return _failed(str(error), pb_utils.TritonError.INTERNAL)
        except Exception as error:  # Its text could name paths of the server.
            pb_utils.Logger.log_error(f"segmenters: {error!r}")
            return _failed("segmenters: internal error; the server's log has it", pb_utils.TritonError.INTERNAL)

    def _described(self, name: str) -> Any:
        told = dict(self.store.get(name).description) if name else self.store.names()
        return pb_utils.InferenceResponse([_text("DESCRIPTION", told)])


class _Metrics:
    """Counters at Triton's metrics endpoint: requests by segmenter, where Triton knows only their group's ensemble.

    Only names that the store has are counted, so that their number stays small.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._requests = _counter("slime_segmenter_requests_total", "Masks asked of a shared segmenter")
        self._of: dict[str, Any] = {}
        self._failures = _counter("slime_decode_failures_total", "Images that were refused")
        self.refused = self._failures.Metric(labels={"model": model})

    def asked(self, segmenter: str) -> None:
        if segmenter not in self._of:
            self._of[segmenter] = self._requests.Metric(labels={"model": self._model, "segmenter": segmenter})
        self._of[segmenter].increment(1)


def _counter(name: str, description: str) -> Any:
    return pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)


def _read(data: bytes, entry: slime_store.Entry, wanted: list[str]) -> Any:
    """Return the image as this segmenter reads it, its embedding for each crop, and its postprocessing."""
    told = entry.description
    image_HW3 = slime_image.decode(data)
    fitted_3SS = slime_image.fit(image_HW3, told["image_size"], told["channel_order"])
    pixels_C3SS = slime_image.cropped(fitted_3SS, told["crops"], told["crop_side"])
    tensors = {
        "PIXELS": pixels_C3SS,
        "SIZE": np.array(image_HW3.shape[:2], np.int32),
        # An ensemble wants every tensor, so one pixel stands for an image whose edges nothing follows.
        "GUIDE_IMAGE": fitted_3SS if told["guided"] else fitted_3SS[:, :1, :1],
        "POSTPROCESS": entry.postprocess[np.newaxis],
        **entry.given(len(pixels_C3SS)),
    }
    answer = [pb_utils.Tensor(name, value) for name, value in tensors.items() if name in wanted]
    return pb_utils.InferenceResponse([*answer, *([_text("DESCRIPTION", told)] if "DESCRIPTION" in wanted else [])])


def _text(name: str, value: Any) -> Any:
    return pb_utils.Tensor(name, np.array([json.dumps(value, ensure_ascii=False).encode()], np.object_))


def _failed(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))

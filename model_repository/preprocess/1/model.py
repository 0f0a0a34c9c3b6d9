"""Triton model ``preprocess``: encoded image to the networks' input. Arguments and errors only; slime_image works.

IMAGE (bytes) to PIXELS (crops, 3, S, S), SIZE (height, width upright), and where they are asked for STARTED, when this
began, and GUIDE_IMAGE (3, S, S).
The tensors' names are those of slime_was.tensors, which is not importable from here.
"""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

import slime_image
from slime_image import admission

# As Triton says it of a model's queue.
_FULL = f"Exceeds maximum queue size: {admission.MOST} images are under way; try again after a random pause"


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        values = {name: value["string_value"] for name, value in parameters.items()}
        self.image_size, self.crop_side = int(values["image_size"]), int(values["crop_side"])
        self.channel_order = values["channel_order"]
        self.crops = json.loads(values["crops"]) or [[0, 0]]
        self.metrics = _Metrics(args["model_name"])
        self.places = admission.Places(admission.shared_file())

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests one by one, because each image has a size of its own."""
        return [self._respond(request) for request in requests]

    def is_ready(self) -> bool:
        """Answer Triton, from 26.03 on, out of the process itself: one that hangs is then not ready."""
        return True

    def _respond(self, request: Any) -> Any:
        if request.is_cancelled():
            return _failed("the request was cancelled", pb_utils.TritonError.CANCELLED)
        try:
            started = time.monotonic_ns()
            if not self.places.take(started):
                self.metrics.refused.increment(1)
                return _failed(_FULL, pb_utils.TritonError.UNAVAILABLE)
            data = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
            begun = started / 1e9
            picture = slime_image.picture(data.item())
            begun = self.metrics.took("decode", begun)
            fitted_3SS = slime_image.fit(picture, self.image_size, self.channel_order)
            pixels_C3SS = slime_image.cropped(fitted_3SS, self.crops, self.crop_side)
            self.metrics.took("fit", begun)
        except slime_image.ImageError as error:
            self.metrics.failures.increment(1)
            return _failed(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:  # Its text could name paths of the server.
            pb_utils.Logger.log_error(f"preprocess: {error!r}")
            return _failed("preprocess: internal error; the server's log has it", pb_utils.TritonError.INTERNAL)
        size = np.array([picture.height, picture.width], np.int32)
        answer = [pb_utils.Tensor("PIXELS", pixels_C3SS), pb_utils.Tensor("SIZE", size)]
        wanted = request.requested_output_names()
        if "STARTED" in wanted:
            answer.append(pb_utils.Tensor("STARTED", np.array([started], np.int64)))
        if "GUIDE_IMAGE" in wanted:
            answer.append(pb_utils.Tensor("GUIDE_IMAGE", fitted_3SS))
        return pb_utils.InferenceResponse(answer)


class _Metrics:
    """Counters at Triton's metrics endpoint."""

    def __init__(self, model: str) -> None:
        # Kept, because a counter ends with its family.
        self.families = [
            _counter("slime_stage_seconds_total", "Time in a stage of a Python model"),
            _counter("slime_decode_failures_total", "Images that were refused"),
            _counter("slime_overload_refusals_total", "Images that were refused because too many are under way"),
        ]
        seconds, failures, refused = self.families
        self.stages = {stage: seconds.Metric(labels={"model": model, "stage": stage}) for stage in ("decode", "fit")}
        self.failures = failures.Metric(labels={"model": model})
        self.refused = refused.Metric(labels={"model": model})

    def took(self, stage: str, begun: float) -> float:
        """Count the time since `begun` to a stage, and return now, when the next stage begins."""
        now = time.monotonic()
        self.stages[stage].increment(now - begun)
        return now


def _counter(name: str, description: str) -> Any:
    return pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)


def _failed(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))

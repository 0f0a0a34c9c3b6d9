"""Triton model ``preprocess``: IMAGE bytes to PIXELS, SIZE, GUIDE_IMAGE. The work is slime_image's."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

import slime_image


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        values = {name: value["string_value"] for name, value in parameters.items()}
        self.image_size = int(values["image_size"])
        self.channel_order = values["channel_order"]
        self.crops = json.loads(values["crops"]) or [[0, 0]]
        self.crop_side = int(values["crop_side"])
        self.metrics = _Metrics(args["model_name"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        if request.is_cancelled():
            return _failed("the request was cancelled", pb_utils.TritonError.CANCELLED)
        try:
            # One by one, because each image has a size of its own.
            data = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
            begun = time.monotonic()
            image_HW3 = slime_image.decode(data.item())
            begun = self.metrics.took("decode", begun)
            fitted_3SS = slime_image.fit(image_HW3, self.image_size, self.channel_order)
            pixels_C3SS = slime_image.cropped(fitted_3SS, self.crops, self.crop_side)
            self.metrics.took("fit", begun)
        except slime_image.ImageError as error:
            self.metrics.failures.increment(1)
            return _failed(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:  # Its text could name paths of the server.
            pb_utils.Logger.log_error(f"preprocess: {error!r}")
            return _failed("preprocess: internal error; the server's log has it", pb_utils.TritonError.INTERNAL)
        size = np.array(image_HW3.shape[:2], np.int32)
        answer = [pb_utils.Tensor("PIXELS", pixels_C3SS), pb_utils.Tensor("SIZE", size)]
        if "GUIDE_IMAGE" in request.requested_output_names():
            answer.append(pb_utils.Tensor("GUIDE_IMAGE", fitted_3SS))
        return pb_utils.InferenceResponse(answer)


class _Metrics:
    def __init__(self, model: str) -> None:
        self.families = []  # A metric ends with its family.
        seconds = self._family("slime_stage_seconds_total", "Time in a stage of a Python model")
        self.stages = {stage: seconds.Metric(labels={"model": model, "stage": stage}) for stage in ("decode", "fit")}
        failures = self._family("slime_decode_failures_total", "Images that were refused")
        self.failures = failures.Metric(labels={"model": model})

    def _family(self, name: str, description: str) -> Any:
        self.families.append(
            pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)
        )
        return self.families[-1]

    def took(self, stage: str, begun: float) -> float:
        """Now, which the next stage begins with."""
        now = time.monotonic()
        self.stages[stage].increment(now - begun)
        return now


def _failed(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))

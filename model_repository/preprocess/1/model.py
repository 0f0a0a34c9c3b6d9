"""Triton model ``preprocess``: encoded image to the networks' input. Arguments only; slime_image works.

IMAGE (bytes) to PIXELS (crops, 3, S, S), SIZE (height, width upright), and where they are asked for STARTED, when the
request came, and GUIDE_IMAGE (3, S, S).
The tensors' names are those of slime_was.tensors, which is not importable from here.
"""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

import slime_image
from slime_image.intake import Intake, counters


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        values = {name: value["string_value"] for name, value in parameters.items()}
        self.image_size, self.crop_side = int(values["image_size"]), int(values["crop_side"])
        self.channel_order = values["channel_order"]
        self.crops = json.loads(values["crops"]) or [[0, 0]]
        self.intake = Intake(pb_utils, args)
        # Kept, because a counter ends with its family.
        self.seconds = counters(pb_utils, "slime_stage_seconds_total", "Time in a stage of a Python model")
        self.stages = {
            stage: self.seconds.Metric(labels={"model": args["model_name"], "stage": stage})
            for stage in ("decode", "fit")
        }

    def execute(self, requests: list[Any]) -> None:
        """Answer the requests one by one, because each image has a size of its own."""
        for request in requests:
            data = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy().item()
            self.intake.admit(request, partial(self._read, data, request.requested_output_names()))

    def is_ready(self) -> bool:
        """Answer Triton, from 26.03 on, out of the process itself: one that hangs is then not ready."""
        return True

    def finalize(self) -> None:
        self.intake.close()

    def _read(self, data: bytes, wanted: list[str], started: int) -> list[Any]:
        begun = time.monotonic()
        picture = slime_image.picture(data)
        begun = self._took("decode", begun)
        fitted_3SS = slime_image.fit(picture, self.image_size, self.channel_order)
        pixels_C3SS = slime_image.cropped(fitted_3SS, self.crops, self.crop_side)
        self._took("fit", begun)
        size = np.array([picture.height, picture.width], np.int32)
        answer = [pb_utils.Tensor("PIXELS", pixels_C3SS), pb_utils.Tensor("SIZE", size)]
        if "STARTED" in wanted:
            answer.append(pb_utils.Tensor("STARTED", np.array([started], np.int64)))
        if "GUIDE_IMAGE" in wanted:
            answer.append(pb_utils.Tensor("GUIDE_IMAGE", fitted_3SS))
        return answer

    def _took(self, stage: str, begun: float) -> float:
        """Count the time since `begun` to a stage, and return now, when the next stage begins."""
        now = time.monotonic()
        self.stages[stage].increment(now - begun)
        return now

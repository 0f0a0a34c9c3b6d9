"""Triton model ``was``: attention maps to MASK and SCORES. Arguments and errors only; the work is slime_was."""

from __future__ import annotations

import time
from typing import Any

import triton_python_backend_utils as pb_utils

import slime_was
from slime_was import tensors

# As many as a picture may have that `preprocess` reads; others are asked for by nobody who sends one.
_MAX_PIXELS = 50_000_000


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.metrics = _Metrics(args["model_name"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        if request.is_cancelled():
            return _failed("the request was cancelled", pb_utils.TritonError.CANCELLED)
        try:
            return _mask(request, self.metrics)
        except ValueError as error:
            return _failed(f"was: {error}", pb_utils.TritonError.INVALID_ARG)
        except Exception as error:  # Its text could name paths of the server.
            pb_utils.Logger.log_error(f"was: {error!r}")
            return _failed("was: internal error; the server's log has it", pb_utils.TritonError.INTERNAL)


class _Metrics:
    """Sums; their rates, divided by that of `masks`, are means. Of requests alone, not of what the segmenter is called:
    nothing in a request tells; Triton counts those of each ensemble, `nv_inference_count{model="NAME"}`."""

    def __init__(self, model: str) -> None:
        self.families = []  # A metric ends with its family.
        seconds = self._family("slime_stage_seconds_total", "Time in a stage of a Python model")
        self.stages = {
            stage: seconds.Metric(labels={"model": model, "stage": stage}) for stage in ("weight", "sharpen", "segment")
        }
        self.masks, self.foreground, self.margin = (
            self._family(name, description).Metric(labels={"model": model})
            for name, description in (
                ("slime_masks_total", "Masks given out"),
                ("slime_foreground_total", "Sum of the masks' shares of foreground, 0 to 1 each"),
                ("slime_margin_total", "Sum of the masks' argmax margins, 0 to 1 each"),
            )
        )

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

    def answered(self, mask_HW: Any, scores_Khw: Any) -> None:
        self.masks.increment(1)
        self.foreground.increment(slime_was.foreground(mask_HW))
        self.margin.increment(slime_was.margin(scores_Khw))


def _mask(request: Any, metrics: _Metrics) -> Any:
    vector_CX, size = (_tensor(request, name) for name in (tensors.POSTPROCESS, tensors.SIZE))
    cross_CKhw, attended = _maps(request)
    height, width = map(int, size)
    if height < 1 or width < 1 or height * width > _MAX_PIXELS:
        raise ValueError(f"mask: got {height} x {width} pixels, expected 1 to {_MAX_PIXELS}")
    postprocess = slime_was.Postprocess.from_vector(vector_CX[0])
    fitted = _tensor(request, tensors.GUIDE_IMAGE)
    begun = time.monotonic()
    scores_Khw = slime_was.scores(cross_CKhw, attended, postprocess)
    begun = metrics.took("weight", begun)
    guided_KGG = slime_was.sharpened(scores_Khw, postprocess, fitted)
    begun = metrics.took("sharpen", begun)
    mask_HW = slime_was.segment(guided_KGG, height, width)
    metrics.took("segment", begun)
    metrics.answered(mask_HW, scores_Khw)
    answer = [pb_utils.Tensor(tensors.MASK, mask_HW)]
    # 77 maps of 64 x 64 are more than a compressed mask: copied only for those who ask.
    if tensors.SCORES in request.requested_output_names():
        answer.append(pb_utils.Tensor(tensors.SCORES, scores_Khw))
    return pb_utils.InferenceResponse(answer)


def _maps(request: Any) -> tuple[Any, Any]:
    """CROSS, and what the UNet gave out beside it: its self-attention, or what it accumulated from it."""
    cross_CPhw, self_CNN, was_CPhw, present_CP = (
        _tensor(request, name) for name in (tensors.CROSS, tensors.SELF, tensors.ACCUMULATED, tensors.PART_MASK)
    )
    if (self_CNN is None) == (was_CPhw is None):
        got = "neither" if self_CNN is None else "both"
        raise ValueError(f"maps: got {got} of {tensors.SELF} and {tensors.ACCUMULATED}, expected one of them")
    # A shared UNet has rooms for more parts than the segmenter; those that are there come first.
    parts = len(cross_CPhw[0]) if present_CP is None else int(present_CP[0].sum())
    return cross_CPhw[:, :parts], self_CNN if was_CPhw is None else was_CPhw[:, :parts]


def _tensor(request: Any, name: str) -> Any:
    """An input as a numpy array, or None where it was left out."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def _failed(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))

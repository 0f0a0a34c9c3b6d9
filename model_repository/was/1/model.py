"""Triton model ``was``: one image's attention maps to its mask. Arguments and errors only; slime_was works.

CROSS (crops, K, h, w), and SELF (crops, N, N) or ACCUMULATED (crops, K, h, w), with POSTPROCESS (crops, LENGTH),
SIZE (2,), and maybe GUIDE_IMAGE (3, S, S) and PART_MASK (crops, K), to MASK (H, W) uint8 and SCORES (K, h, w).
"""

from __future__ import annotations

import time
from typing import Any

import triton_python_backend_utils as pb_utils

import slime_was
from slime_was import tensors

# As many as a picture may have that `preprocess` reads; no client that sends one asks for more.
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
    """Counters at Triton's metrics endpoint: sums, whose rates divided by that of the masks are means.

    They are of all segmenters together, because nothing in a request says which one it is for. Triton itself counts the
    requests of each ensemble, `nv_inference_count{model="NAME"}`.
    """

    def __init__(self, model: str) -> None:
        # Kept, because a counter ends with its family.
        self.families = [
            _counter("slime_stage_seconds_total", "Time in a stage of a Python model"),
            _counter("slime_masks_total", "Masks given out"),
            _counter("slime_foreground_total", "Sum of the masks' shares of foreground, 0 to 1 each"),
            _counter("slime_margin_total", "Sum of the masks' argmax margins, 0 to 1 each"),
        ]
        seconds, *others = self.families
        stages = ("weight", "sharpen", "segment")
        self.stages = {stage: seconds.Metric(labels={"model": model, "stage": stage}) for stage in stages}
        self.masks, self.foreground, self.margin = (family.Metric(labels={"model": model}) for family in others)

    def took(self, stage: str, begun: float) -> float:
        """Count the time since `begun` to a stage, and return now, when the next stage begins."""
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
    guide_3SS = _tensor(request, tensors.GUIDE_IMAGE)
    begun = time.monotonic()
    scores_Khw = slime_was.scores(cross_CKhw, attended, postprocess)
    begun = metrics.took("weight", begun)
    sharpened_KGG = slime_was.sharpened(scores_Khw, postprocess, guide_3SS)
    begun = metrics.took("sharpen", begun)
    mask_HW = slime_was.segment(sharpened_KGG, height, width)
    metrics.took("segment", begun)
    metrics.answered(mask_HW, scores_Khw)
    answer = [pb_utils.Tensor(tensors.MASK, mask_HW)]
    # Only where they are asked for, because 77 maps of 64 x 64 are more than a compressed mask.
    if tensors.SCORES in request.requested_output_names():
        answer.append(pb_utils.Tensor(tensors.SCORES, scores_Khw))
    return pb_utils.InferenceResponse(answer)


def _maps(request: Any) -> tuple[Any, Any]:
    """Return CROSS, and the UNet's other output: its self-attention, or what it accumulated from it."""
    cross_CPhw, self_CNN, accumulated_CPhw, taken_CP = (
        _tensor(request, name) for name in (tensors.CROSS, tensors.SELF, tensors.ACCUMULATED, tensors.PART_MASK)
    )
    if (self_CNN is None) == (accumulated_CPhw is None):
        got = "neither" if self_CNN is None else "both"
        raise ValueError(f"maps: got {got} of {tensors.SELF} and {tensors.ACCUMULATED}, expected one of them")
    # A shared UNet has slots for more parts than the segmenter; those that are taken come first.
    parts = len(cross_CPhw[0]) if taken_CP is None else int(taken_CP[0].sum())
    return cross_CPhw[:, :parts], self_CNN if accumulated_CPhw is None else accumulated_CPhw[:, :parts]


def _tensor(request: Any, name: str) -> Any:
    """Return an input as a numpy array, or None where it was left out."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def _counter(name: str, description: str) -> Any:
    return pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)


def _failed(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))

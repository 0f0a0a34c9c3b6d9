"""Triton model ``was``: one image's attention maps to its mask. Arguments and errors only; slime_was works.

CROSS (crops, K, h, w), and SELF (crops, N, N) or ACCUMULATED (crops, K, h, w), with POSTPROCESS (crops, LENGTH),
SIZE (2,), and maybe STARTED, GUIDE_IMAGE (3, S, S) and PART_MASK (crops, K), to MASK (H, W) uint8, SCORES (K, h, w)
and SHARPENED (K, G, G), whose argmax is the mask once they are enlarged.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

import slime_was
from slime_was import tensors
from slime_was.admission import Finished
from slime_was.options import name_in

# As many as a picture may have that `preprocess` reads; no client that sends one asks for more.
_MAX_PIXELS, _MAX_SIDE = 50_000_000, 16_384
# From a mask in a few milliseconds to Stable Diffusion on a CPU.
_SECONDS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]
_VERSION = re.compile(r'key: "version"\s+value \{\s+string_value: "(\d+)"')


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self.metrics = _Metrics(args["model_name"], Path(args["model_repository"]).parent)
        self.finished = Finished()

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def is_ready(self) -> bool:
        """Answer Triton, from 26.03 on, out of the process itself: one that hangs is then not ready."""
        return True

    def _respond(self, request: Any) -> Any:
        started = _tensor(request, tensors.STARTED)
        if started is not None:  # Its place is free from now on, whatever becomes of it.
            self.finished.note(int(started[0]))
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
    """What stands at Triton's metrics endpoint of each segmenter and version; means are rates divided by that of masks.

    Triton counts the requests of an ensemble too, but under version 1 whichever answers.
    """

    def __init__(self, model: str, repository: Path) -> None:
        # Kept, because a metric ends with its family.
        self._seconds = _family("slime_stage_seconds_total", "Time in a stage of a Python model")
        self._families = [
            _family("slime_masks_total", "Masks given out"),
            _family("slime_foreground_total", "Sum of the masks' shares of foreground, 0 to 1 each"),
            _family("slime_margin_total", "Sum of the masks' argmax margins, 0 to 1 each"),
        ]
        self._latency = pb_utils.MetricFamily(
            name="slime_request_seconds",
            description="Time from when an image came to its mask",
            kind=pb_utils.MetricFamily.HISTOGRAM,
        )
        stages = ("weight", "sharpen", "segment")
        self.stages = {stage: self._seconds.Metric(labels={"model": model, "stage": stage}) for stage in stages}
        self._versions = _Versions(repository)
        self._of: dict[tuple[str, str], list[Any]] = {}

    def took(self, stage: str, begun: float) -> float:
        """Count the time since `begun` to a stage, and return now, when the next stage begins."""
        now = time.monotonic()
        self.stages[stage].increment(now - begun)
        return now

    def answered(self, segmenter: str, mask_HW: Any, scores_Khw: Any, started: Any) -> None:
        """Count a mask of a segmenter, named as its POSTPROCESS does, that was `started` to be made then."""
        name, _, version = segmenter.partition("/")
        if name.startswith("."):  # On trial, before it is published.
            return
        key = (name or "unknown", version or self._versions.live(name))
        if key not in self._of:
            labels = dict(zip(("segmenter", "version"), key, strict=True))
            counters = [family.Metric(labels=labels) for family in self._families]
            self._of[key] = [*counters, self._latency.Metric(labels=labels, buckets=_SECONDS)]
        masks, foreground, margin, latency = self._of[key]
        masks.increment(1)
        foreground.increment(slime_was.foreground(mask_HW))
        margin.increment(slime_was.margin(scores_Khw))
        if started is not None:
            latency.observe((time.monotonic_ns() - int(started[0])) / 1e9)


class _Versions:
    """Tells which version of a segmenter with a network of its own serves, as its ensemble's configuration says it."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._known: dict[str, tuple[int, str]] = {}

    def live(self, name: str) -> str:
        """Return the version, "" where it is not known; the file is read again when it has changed."""
        path = self._repository / name / "config.pbtxt"
        try:
            changed = path.stat().st_mtime_ns
            if self._known.get(name, (0, ""))[0] != changed:
                found = _VERSION.search(path.read_text(encoding="utf-8"))
                folders = [int(each.name) for each in path.parent.iterdir() if each.name.isdecimal()]
                # Configurations that were written before versions were told in them: the last one serves.
                self._known[name] = (changed, found[1] if found else str(max(folders, default="")))
            return self._known[name][1]
        except (OSError, ValueError):
            return ""


def _mask(request: Any, metrics: _Metrics) -> Any:
    vector_CX, size = (_tensor(request, name) for name in (tensors.POSTPROCESS, tensors.SIZE))
    cross_CKhw, attended = _maps(request)
    height, width = map(int, size)
    if min(height, width) < 1 or max(height, width) > _MAX_SIDE or height * width > _MAX_PIXELS:
        raise ValueError(
            f"mask: got {height} x {width} pixels, expected 1 to {_MAX_SIDE} a side and at most {_MAX_PIXELS}"
        )
    postprocess = slime_was.Postprocess.from_vector(vector_CX[0])
    guide_3SS, started = (_tensor(request, name) for name in (tensors.GUIDE_IMAGE, tensors.STARTED))
    begun = time.monotonic()
    scores_Khw = slime_was.scores(cross_CKhw, attended, postprocess)
    begun = metrics.took("weight", begun)
    sharpened_KGG = slime_was.sharpened(scores_Khw, postprocess, guide_3SS)
    begun = metrics.took("sharpen", begun)
    mask_HW = slime_was.segment(sharpened_KGG, height, width)
    metrics.took("segment", begun)
    metrics.answered(name_in(vector_CX[0]), mask_HW, scores_Khw, started)
    answer = [pb_utils.Tensor(tensors.MASK, mask_HW)]
    # Only where they are asked for, because 77 maps of 64 x 64 are more than a compressed mask.
    if tensors.SCORES in request.requested_output_names():
        answer.append(pb_utils.Tensor(tensors.SCORES, scores_Khw))
    if tensors.SHARPENED in request.requested_output_names():
        answer.append(pb_utils.Tensor(tensors.SHARPENED, sharpened_KGG))
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


def _family(name: str, description: str) -> Any:
    return pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.COUNTER)


def _failed(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))

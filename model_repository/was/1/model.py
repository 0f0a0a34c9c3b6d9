"""Triton model ``was``: attention maps to MASK and SCORES. Arguments and errors only; the work is slime_was."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

import slime_was
from slime_was import contract


class TritonPythonModel:
    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        if request.is_cancelled():
            return _failed("the request was cancelled", pb_utils.TritonError.CANCELLED)
        try:
            return _mask(request)
        except ValueError as error:
            return _failed(f"was: {error}", pb_utils.TritonError.INVALID_ARG)
        except Exception as error:  # Its text could name paths of the server.
            pb_utils.Logger.log_error(f"was: {error!r}")
            return _failed("was: internal error; the server's log has it", pb_utils.TritonError.INTERNAL)


def _mask(request: Any) -> Any:
    vector_CX, size = (_tensor(request, name) for name in (contract.WEIGHTING, contract.SIZE))
    cross_CKhw, attended = _maps(request)
    weighting = slime_was.Weighting.from_vector(vector_CX[0])
    fitted = _tensor(request, contract.FITTED)
    scores_Khw = slime_was.scores(cross_CKhw, attended, weighting)
    guided_KGG = slime_was.sharpened(scores_Khw, weighting, fitted)
    mask_HW = slime_was.segment(guided_KGG, int(size[0]), int(size[1]))
    answer = [pb_utils.Tensor(contract.MASK, mask_HW)]
    # 77 maps of 64 x 64 are more than a compressed mask: copied only for those who ask.
    if contract.SCORES in request.requested_output_names():
        answer.append(pb_utils.Tensor(contract.SCORES, scores_Khw))
    return pb_utils.InferenceResponse(answer)


def _maps(request: Any) -> tuple[Any, Any]:
    """CROSS, and what the UNet gave out beside it: its self-attention, or what it accumulated from it."""
    cross_CPhw, self_CNN, was_CPhw, present_CP = (
        _tensor(request, name) for name in (contract.CROSS, contract.SELF, contract.ACCUMULATED, contract.PRESENT)
    )
    if (self_CNN is None) == (was_CPhw is None):
        got = "neither" if self_CNN is None else "both"
        raise ValueError(f"maps: got {got} of {contract.SELF} and {contract.ACCUMULATED}, expected one of them")
    # A shared UNet has rooms for more parts than the segmenter; those that are there come first.
    parts = len(cross_CPhw[0]) if present_CP is None else int(present_CP[0].sum())
    return cross_CPhw[:, :parts], self_CNN if was_CPhw is None else was_CPhw[:, :parts]


def _tensor(request: Any, name: str) -> Any:
    """An input as a numpy array, or None where it was left out."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def _failed(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))

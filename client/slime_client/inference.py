"""One image to one mask, in-band or through shared memory. Steps; knows nothing of versions and their parts.

Letters in names: H, W pixels of the image as seen, K parts, h, w the score maps.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slime_client import names, protocol
from slime_client.description import Description
from slime_client.errors import SegmenterError
from slime_client.images import EncodedImage
from slime_client.memory import Region, Regions
from slime_client.retry import Deadline
from slime_client.server import Server
from slime_client.steps import Steps

_ALIGNMENT = 64


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What came back.

    Attributes:
        version: of the model that answered.
        said: the segmenter's description at that moment, in shared form; else "".
        mask_HW: uint8.
        scores_Khw: float32, where asked for.
    """

    version: str
    said: str
    mask_HW: npt.NDArray[np.uint8]
    scores_Khw: npt.NDArray[np.float32] | None


def infer(
    server: Server, regions: Regions, segmenter: Description, image: EncodedImage, scores: bool, deadline: Deadline
) -> Steps[Answered]:
    """Ask for one mask.

    Raises:
        SegmenterError: what the server said, or INTERNAL for an answer that is none.
    """
    region = yield from regions.lend(_room(image), deadline)
    if region is None:
        return (yield from _through(None, server, segmenter, image, scores, deadline))
    try:
        answered = yield from _through(region, server, segmenter, image, scores, deadline)
    except BaseException as error:
        regions.retire(region)
        if not isinstance(error, SegmenterError) or region.name not in str(error):
            raise
        # The server was started again, and with it went what it knew of our memory.
        regions.forbid()
        return (yield from _through(None, server, segmenter, image, scores, deadline))
    regions.give_back(region)
    return answered


def _through(
    region: Region | None,
    server: Server,
    segmenter: Description,
    image: EncodedImage,
    scores: bool,
    deadline: Deadline,
) -> Steps[Answered]:
    request = _request(segmenter, image, scores, region)
    answer = yield from server.ask("ModelInfer", request, deadline, segmenter=segmenter.name, subject=image.label)
    start = _mask_offset(image)
    elsewhere = region.memory[start : start + image.pixels] if region else b""
    return Answered(
        version=answer.model_version,
        said=protocol.text(answer, names.DESCRIPTION) if segmenter.form == names.SHARED else "",
        mask_HW=protocol.output(answer, names.MASK, np.uint8, 2, elsewhere),
        scores_Khw=protocol.output(answer, names.SCORES, np.float32, 3) if scores else None,
    )


def _request(segmenter: Description, image: EncodedImage, scores: bool, region: Region | None) -> Any:
    shared = segmenter.form == names.SHARED
    inputs = {names.IMAGE: None if region else image.data}
    inputs |= {names.SEGMENTER: segmenter.name.encode()} if shared else {}
    outputs = [names.MASK] + [names.SCORES] * scores + [names.DESCRIPTION] * shared
    request = protocol.infer(segmenter.model, inputs, outputs)
    if region:
        _point(request, region, image)
    return request


def _point(request: Any, region: Region, image: EncodedImage) -> None:
    """The image in the region, and room for its mask behind it where its size is known beforehand."""
    element = protocol.element(image.data)
    size = len(element)
    region.memory[:size] = element
    region.point(request.inputs[0], 0, size)
    if image.pixels:
        region.point(request.outputs[0], _mask_offset(image), image.pixels)


def _room(image: EncodedImage) -> int:
    return _mask_offset(image) + image.pixels


def _mask_offset(image: EncodedImage) -> int:
    return -(-(len(image.data) + 4) // _ALIGNMENT) * _ALIGNMENT

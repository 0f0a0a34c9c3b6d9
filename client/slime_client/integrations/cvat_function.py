"""A detection function for CVAT: `cvat-cli task auto-annotate` asks a served segmenter for the parts of every frame.

    cvat-cli task auto-annotate TASK --function-module slime_client.integrations.cvat_function \\
        -p url=str:localhost:8001 -p segmenter=str:car

It runs on one's own machine, with any edition of CVAT. The task's labels are matched by name to the segmenter's parts;
the background is no label. A part is one mask, or with `--conv-mask-to-poly` one polygon for each of its pieces: CVAT's
polygons have no holes. Needs the extra `cvat`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from slime_client.blocking import Segmenter
from slime_client.formats import polygons

if TYPE_CHECKING:
    from PIL import Image

try:
    import contourpy  # noqa: F401
    import cvat_sdk.auto_annotation as cvat
    from cvat_sdk.masks import encode_mask
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"slime_client.integrations.cvat_function needs {error.name}; run: pip install 'slime-serve[cvat]'",
        name=error.name,
    ) from error

_CORNERS = 3  # of the smallest polygon


class Parts:
    """The detection function, of cvat_sdk.auto_annotation's protocol: `spec` names the labels, `detect` finds them."""

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter
        labels = [cvat.label_spec(name, index) for index, name in enumerate(segmenter.parts) if index]
        self.spec = cvat.DetectionFunctionSpec(labels=labels)

    def detect(self, context: Any, image: Image.Image) -> Sequence[Any]:
        """Return the shapes of one frame, of the parts that it shows.

        Raises:
            SegmenterError: UNAVAILABLE, DEADLINE_EXCEEDED, …: what the server, or the way there, ended with.
        """
        mask_HW = self._segmenter.segment(image).array
        shapes = _polygons if context.conv_mask_to_poly else _masks
        return [shape for index in np.unique(mask_HW) if index for shape in shapes(int(index), mask_HW == index)]


def create(url: str = "localhost:8001", segmenter: str = "") -> Parts:
    """Return the detection function of a served segmenter; `cvat-cli` calls this with its `-p` options.

    Raises:
        SegmenterError: NOT_FOUND where the server has no such segmenter, UNAVAILABLE where none answers, …
    """
    return Parts(Segmenter(url, segmenter))


def _masks(index: int, inside_HW: npt.NDArray[np.bool_]) -> list[Any]:
    return [cvat.mask(index, encode_mask(inside_HW))]


def _polygons(index: int, inside_HW: npt.NDArray[np.bool_]) -> list[Any]:
    rings = [outer[:-1] for outer, *_holes in polygons(inside_HW)]
    return [
        cvat.polygon(index, [value for corner in ring for value in corner]) for ring in rings if len(ring) >= _CORNERS
    ]

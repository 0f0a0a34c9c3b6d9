"""The optical flow between two frames: where each point of one is in the other, and how far that is to be trusted.

OpenCV's DIS, there and back, of small grey pictures. Trust is 1 - doubt where the way there and back comes back, and
the colours there are the same; less where they are not, and 0 outside the picture.

Letters in names: H, W pixels of the frame, F = 256 the side that the flow is of, g the grid that is worked on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# The flow is of pictures of this side: finer ones cost more and are followed no better.
_FLOW_SIDE = 256
_RETURN = 1 / 64  # of the picture's side: how far from where it began the way there and back may end
_CUT_SIDE = 16  # of the thumbnails that tell a cut


@dataclass(frozen=True, kw_only=True)
class View:
    """A frame's picture as the flow reads it, grey, uint8 (256, 256), and its colours in the grid, uint8 (g, g, 3)."""

    grey_FF: npt.NDArray[np.uint8]
    colours_gg3: npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Link:
    """Where each point of one frame's grid is in another's, x and y (g, g, 2), and how far that is to be trusted."""

    places_gg2: Floats
    trust_gg: Floats


def view_of(image_HW3: npt.NDArray[np.uint8], side: int) -> View:
    """Return what the flow reads of a picture (H, W, 3), with its colours in a grid of `side` points a side."""
    import cv2

    seen = cv2.resize(image_HW3, (_FLOW_SIDE, _FLOW_SIDE), interpolation=_interpolation(image_HW3))
    colours = cv2.resize(image_HW3, (side, side), interpolation=cv2.INTER_AREA)
    return View(grey_FF=cv2.cvtColor(seen, cv2.COLOR_RGB2GRAY), colours_gg3=colours)


def _interpolation(image_HW3: npt.NDArray[np.uint8]) -> int:
    import cv2

    return int(cv2.INTER_LINEAR if min(image_HW3.shape[:2]) < _FLOW_SIDE else cv2.INTER_AREA)


def is_cut(before: View, now: View, least: float) -> bool:
    """Return whether a film was cut between two frames, by their thumbnails."""
    import cv2

    thumbnails = [
        cv2.resize(each.colours_gg3, (_CUT_SIDE, _CUT_SIDE), interpolation=cv2.INTER_AREA) for each in (before, now)
    ]
    return float(cv2.absdiff(*thumbnails).mean()) > least


def links(before: View, now: View, doubt: float, colours: float) -> tuple[Link, Link]:
    """Return the ways from a frame back to the one before it, and from that one on to it."""
    import cv2

    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    side = len(now.colours_gg3)
    ways = []
    for here, there in ((now, before), (before, now)):
        fine_FF2 = flow.calc(here.grey_FF, there.grey_FF, None)
        ways.append(cv2.resize(fine_FF2, (side, side), interpolation=cv2.INTER_AREA) * (side / _FLOW_SIDE))
    back, onward = ways
    return _link(back, onward, now, before, doubt, colours), _link(onward, back, before, now, doubt, colours)


def _link(there_gg2: Floats, back_gg2: Floats, here: View, other: View, doubt: float, colours: float) -> Link:
    """Return the link by a flow, from the flow the other way and the pictures of both frames."""
    import cv2

    side = len(there_gg2)
    places_gg2 = there_gg2 + np.moveaxis(np.indices((side, side), np.float32)[::-1], 0, -1)
    seen_gg3, returned_gg2 = (
        cv2.remap(each, places_gg2, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for each in (other.colours_gg3, back_gg2)
    )
    # Of neighbouring points together, because every frame has its own noise.
    difference_gg = cv2.blur(cv2.absdiff(seen_gg3, here.colours_gg3).mean(-1, dtype=np.float32), (3, 3))
    astray_gg = ((there_gg2 + returned_gg2) ** 2).sum(-1)
    apart_gg = (difference_gg / colours) ** 2 + astray_gg / (_RETURN * side) ** 2
    inside_gg = ((places_gg2 > -0.5) & (places_gg2 < side - 0.5)).all(-1)
    trust_gg = (1 - doubt) * np.exp(-apart_gg) * inside_gg
    return Link(places_gg2=places_gg2, trust_gg=trust_gg.astype(np.float32))

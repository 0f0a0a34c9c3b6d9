"""Labels of one frame after another, made consistent, from the scores of each frame alone.

"mean" keeps an exponential mean of the scores. "flow" asks of each point of the picture which part it is, given that
things stay what they are while they move: a hidden Markov model along the optical flow, whose states are the parts.

    prior     ~ share^(weight rarity)          share: how much of the frames so far shows the part
    evidence_t = scores_t^weight / prior
    before_t   = trust warp(belief_t-1) + (1 - trust) prior        carried along the flow
    belief_t   ~ before_t * evidence_t
    after_t    = the same from the frames that follow, at least `ahead` of them, with 1 / K for the prior
    known_t    ~ before_t * evidence_t * after_t
    label      = argmax median(known_t, warp(known_t-1), warp(known_t+1))

So a frame that is sure weighs more than one that is not, and a label changes once enough frames have spoken against it.
With `rarity`, a small part that some frames see is not outvoted by the large one around it. With no other frame to ask,
the label is the frame's own. The median, of each part, leaves out what both neighbours contradict. `trust` is 1 - doubt
where the flow to the other frame and back comes back, and the colours there are the same, and 0 where something was
covered or came into sight. After a cut nothing is carried on. The flow is OpenCV's DIS, of the extra `video`.

Letters in names: H, W pixels of the frame, K parts, h, w the scores' grid, g the grid that is worked on.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from slime_client.errors import FAILED_PRECONDITION, SegmenterError
from slime_client.video.flow import Floats, Link, View, is_cut, links, view_of

Smooth: TypeAlias = Literal["none", "mean", "flow"]
Labels: TypeAlias = npt.NDArray[np.uint8]

# Elements of the scores that are worked on, at most: of 8 parts, 256 x 256. Finer scores are reduced.
_MOST_ELEMENTS = 1 << 19
TOGETHER = 8  # frames that are decided in one pass back over those that wait, which costs as many steps as wait
_LEAST = 1e-3  # of the best part's score, and of the clip: no frame rules a part out for ever


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much frames say of each other; chosen on clips of PartScenes in motion (docs/video-consistency.md).

    share: "mean" takes this much of the newest frame's scores.
    weight: the power of a frame's scores in "flow"; with less, labels stick more.
    rarity: how much more the scores of parts count that little of the clip shows; 0 for no more.
    doubt: the share of a point's history that is forgotten from frame to frame.
    colours: the difference of colour, of 255 levels, at which a point is hardly taken for the same any more.
    ahead: "flow" decides a frame when so many, and up to 7 more, have followed; 0 decides at once, for live sources.
    cut: the mean difference of two frames' thumbnails, of 255 levels, that begins anew. Frames of one clip for choosing
        differ by up to 7, and those of two by 44 and more.
    """

    share: float = 0.7
    weight: float = 0.3
    rarity: float = 0.05
    doubt: float = 0.01
    colours: float = 40.0
    ahead: int = 24
    cut: float = 20.0


@dataclass(kw_only=True)
class _Step:
    """A frame that waits for those after it: what came before says of its points, what it says, the way to the next."""

    before_ggK: Floats
    evidence_ggK: Floats
    size: tuple[int, int]
    back: Link | None = None
    onward: Link | None = None


class Smoother:
    """Makes the labels of one frame after another consistent; one object for each clip, all frames of one size.

        masks = smoother(image, scores)     # of the frames that are decided now: none, one or several, in order
        masks = smoother.rest()             # of those that wait: at the end, and where a run may be taken up again

    "none" and "mean" decide at once. The same frames give the same masks. "mean" and "flow" need OpenCV.

    Raises:
        SegmenterError: FAILED_PRECONDITION where OpenCV is missing.
    """

    def __init__(self, how: Smooth, settings: Settings | None = None) -> None:
        if how != "none" and importlib.util.find_spec("cv2") is None:
            message = f"smooth {how}: OpenCV is missing; pip install 'slime-serve[video]'"
            raise SegmenterError(message, FAILED_PRECONDITION)
        self._how, self._settings = how, settings or Settings()
        self._waiting: list[_Step] = []
        # Of the frame before: its picture, and its scores' mean or what is believed of its points.
        self._view: View | None = None
        self._belief: Floats | None = None
        self._decided_ggK: Floats | None = None  # what is known of the last frame that was decided, if the next waits
        self._shown_K: npt.NDArray[np.int64] | None = None  # points of each part, in all frames so far

    def __call__(self, image: npt.NDArray[np.uint8], scores: Floats) -> list[Labels]:
        """Return the masks, uint8 (H, W), of the frames that are decided now.

        image: uint8 (H, W, 3). scores: float32 (K, h, w), of which the frame's own mask is the argmax once enlarged.
        """
        size = (image.shape[0], image.shape[1])
        if self._how == "none":
            return [_mask(np.moveaxis(scores, 0, -1), size)]
        scores_ggK = _reduced(scores)
        view, decided = view_of(image, len(scores_ggK)), []
        if self._view is not None and is_cut(self._view, view, self._settings.cut):
            decided = self.rest()
            self._belief = self._shown_K = None
        if self._how == "mean":
            before, share = self._belief, self._settings.share
            self._belief = scores_ggK if before is None else (1 - share) * before + share * scores_ggK
            decided.append(_mask(self._belief, size))
        else:
            self._follow(view, scores_ggK, size)
            together = max(1, min(self._settings.ahead, TOGETHER))
            if len(self._waiting) == self._settings.ahead + together:
                decided += self._decided(together)
        self._view = view
        return decided

    def rest(self) -> list[Labels]:
        """Return the masks of the frames that wait, decided by what is known; those that follow go on from them."""
        masks, self._decided_ggK = self._decided(len(self._waiting)), None
        return masks

    def history(self) -> dict[str, npt.NDArray[Any]]:
        """Return what the frames so far leave behind for those that follow, as arrays by name; none before the first.

        Raises ValueError while frames wait: take the `rest` first.
        """
        if self._waiting:
            raise ValueError(f"smoothing: {len(self._waiting)} frames wait, expected none; take the rest first")
        if self._view is None or self._belief is None:
            return {}
        seen = {"grey": self._view.grey_FF, "colours": self._view.colours_gg3}
        return {"belief": self._belief, **seen, **({} if self._shown_K is None else {"shown": self._shown_K})}

    def go_on(self, history: Mapping[str, npt.NDArray[Any]]) -> None:
        """Continue as after the frames that left `history` behind."""
        if history:
            self._belief, self._shown_K = history["belief"], history.get("shown")
            self._view = View(grey_FF=history["grey"], colours_gg3=history["colours"])

    def _follow(self, view: View, scores_ggK: Floats, size: tuple[int, int]) -> None:
        """Carry the belief on to a frame, and let the frame wait."""
        evidence_ggK, prior_K = self._evidence(scores_ggK)
        back = None
        if self._view is None or self._belief is None:
            before_ggK = np.broadcast_to(prior_K, scores_ggK.shape)
        else:
            back, onward = links(self._view, view, self._settings.doubt, self._settings.colours)
            before_ggK = _carried(self._belief, back, prior_K)
            if self._waiting:
                self._waiting[-1].onward = onward
        self._belief = _normalised(before_ggK * evidence_ggK)
        self._waiting.append(_Step(before_ggK=before_ggK, evidence_ggK=evidence_ggK, size=size, back=back))

    def _evidence(self, scores_ggK: Floats) -> tuple[Floats, Floats]:
        """Return what a frame says of its points, and what is expected of a point of which nothing is known."""
        shown_K = np.bincount(scores_ggK.argmax(-1).ravel(), minlength=scores_ggK.shape[-1])
        self._shown_K = shown_K if self._shown_K is None else self._shown_K + shown_K
        weight, share_K = self._settings.weight, self._shown_K / self._shown_K.sum()
        prior_K = ((share_K + _LEAST) ** (weight * self._settings.rarity)).astype(np.float32)
        best_gg1 = np.maximum(scores_ggK.max(-1, keepdims=True), 1e-12)
        evidence_ggK = np.power(np.maximum(scores_ggK / best_gg1, _LEAST), np.float32(weight)) / prior_K
        return evidence_ggK, prior_K / prior_K.sum()

    def _decided(self, count: int) -> list[Labels]:
        """Return the masks of the first frames that wait, which then wait no more; all that wait have a say."""
        known: list[Floats] = []  # of each frame that waits, as far as the one after those that are decided
        message_ggK: Floats | None = None  # of a frame and all after it
        for place, step in reversed(list(enumerate(self._waiting))):
            said_ggK = step.evidence_ggK
            if message_ggK is not None and step.onward is not None:
                nothing_K = np.full(said_ggK.shape[-1], 1 / said_ggK.shape[-1], np.float32)
                said_ggK = said_ggK * _carried(message_ggK, step.onward, nothing_K)
            if place <= count:
                known.insert(0, _normalised(step.before_ggK * said_ggK))
            message_ggK = _normalised(said_ggK)
        masks: list[Labels] = []
        for step, own_ggK, next_ggK in zip(self._waiting[:count], known, [*known[1:], None], strict=False):
            sure_ggK, last_ggK = own_ggK, self._decided_ggK
            if last_ggK is not None and step.back is not None and next_ggK is not None and step.onward is not None:
                others = _carried(last_ggK, step.back, own_ggK), _carried(next_ggK, step.onward, own_ggK)
                sure_ggK = _median(own_ggK, *others)
            masks.append(_mask(sure_ggK, step.size))
            self._decided_ggK = own_ggK
        del self._waiting[:count]
        return masks


def _median(a: Floats, b: Floats, c: Floats) -> Floats:
    """Return the one in the middle of three, of each element."""
    middle: Floats = np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))
    return middle


def _carried(belief_ggK: Floats, link: Link, otherwise_K: Floats) -> Floats:
    """Return the belief about another frame's points as that about a frame's, or `otherwise` where the link is bad."""
    import cv2

    moved_ggK = cv2.remap(belief_ggK, link.places_gg2, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    trust_gg1 = link.trust_gg[..., None]
    carried: Floats = trust_gg1 * moved_ggK.reshape(belief_ggK.shape) + (1 - trust_gg1) * otherwise_K
    return carried


def _reduced(scores_Khw: Floats) -> Floats:
    """Return scores (g, g, K) on a square grid of the larger of their sides, or of the largest that is worked on."""
    import cv2

    side = max(1, min(max(scores_Khw.shape[1:]), int((_MOST_ELEMENTS / len(scores_Khw)) ** 0.5)))
    if scores_Khw.shape[1:] != (side, side):
        scores_Khw = np.stack([cv2.resize(each, (side, side), interpolation=cv2.INTER_AREA) for each in scores_Khw])
    return np.ascontiguousarray(np.moveaxis(scores_Khw, 0, -1))


def _normalised(weights_ggK: Floats) -> Floats:
    """Return weights that sum to 1 at each point."""
    normalised: Floats = weights_ggK / (weights_ggK @ np.ones((weights_ggK.shape[-1], 1), np.float32))
    return normalised


def _mask(scores_ggK: Floats, size: tuple[int, int]) -> Labels:
    """Return the best part of each pixel, uint8 (H, W), of scores enlarged bilinearly; ties go to the lowest number."""
    import cv2

    mask_HW, best_HW = np.zeros(size, np.uint8), np.full(size, -np.inf, np.float32)
    for part in range(scores_ggK.shape[-1]):
        scores_HW = cv2.resize(np.ascontiguousarray(scores_ggK[..., part]), size[::-1], interpolation=cv2.INTER_LINEAR)
        better_HW = scores_HW > best_HW
        mask_HW[better_HW] = part
        np.maximum(best_HW, scores_HW, out=best_HW)
    return mask_HW

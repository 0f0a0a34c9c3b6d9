"""How still and how right a film's masks are: VC, TC, flicker, and DAVIS's J and F. Numbers only; it segments nothing.

Read mIoU beside each figure of consistency: an empty mask is perfectly consistent.

Legend: T frames, H, W image sides, P parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_dilation

from slime_backbone.motion import Clip, warped
from slime_optimize.metrics import confusion, report

Labels = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]
Figures = dict[str, float]


def measured(clips: Sequence[Clip], masks: Sequence[Labels], *, davis: bool = True) -> Figures:
    """Return the figures of a class's clips with these masks; J and F, which take the longest, only with `davis`."""
    parts = clips[0].parts
    pairs = list(zip(clips, masks, strict=True))
    frames = [frame for clip, of_clip in pairs for frame in zip(clip.masks, of_clip, strict=True)]
    same = sum(temporal_confusion(of_clip, clip.flows, clip.hidden, len(parts)) for clip, of_clip in pairs)
    found = {
        "miou": report([confusion(*frame, len(parts)) for frame in frames], parts).mean,
        "vc8": mean(video_consistency(clip.masks, of_clip, 8) for clip, of_clip in pairs),
        "vc16": mean(video_consistency(clip.masks, of_clip, 16) for clip, of_clip in pairs),
        "tc": mean_iou(np.asarray(same)),
        "flicker": mean(flicker(of_clip) for _, of_clip in pairs),
        "false_flicker": mean(flicker(of_clip, clip.masks) for clip, of_clip in pairs),
    }
    if davis:
        both = [region_and_contour(clip.masks, of_clip, len(parts)) for clip, of_clip in pairs]
        found |= {"j": mean(region for region, _ in both), "f": mean(contour for _, contour in both)}
    return _rounded(found)


def over_kinds(of_kinds: Mapping[str, Figures]) -> Figures:
    """Return the mean of each figure over the classes."""
    of_each = list(of_kinds.values())
    return _rounded({name: mean(figures[name] for figures in of_each) for name in of_each[0]})


def _rounded(figures: Figures) -> Figures:
    return {name: round(value, 3) for name, value in figures.items()}


def video_consistency(truth_THW: Labels, masks_THW: Labels, window: int) -> float:
    """Return VC_window in per cent (VSPW): of the pixels whose true label stays through a window, those whose label
    in the masks stays, too; the mean over the windows. NaN where no window fits."""
    shares = []
    for first in range(len(truth_THW) - window + 1):
        still_HW, held_HW = ((each[first : first + window] == each[first]).all(0) for each in (truth_THW, masks_THW))
        if still_HW.any():
            shares.append(float(held_HW[still_HW].mean()))
    return 100 * float(np.mean(shares)) if shares else float("nan")


def temporal_confusion(
    masks_THW: Labels, flows_THW2: npt.NDArray[np.float32], hidden_THW: Bools, parts: int
) -> npt.NDArray[np.int64]:
    """Return pixels by [label in a frame, label of the same point in the next], (P, P), hidden points left out."""
    total_PP = np.zeros((parts, parts), np.int64)
    for t, (flow_HW2, hidden_HW) in enumerate(zip(flows_THW2, hidden_THW, strict=True)):
        seen = ~hidden_HW
        total_PP += confusion(masks_THW[t][seen], warped(masks_THW[t + 1], flow_HW2)[seen], parts)
    return total_PP


def mean_iou(confusion_PP: npt.NDArray[np.int64]) -> float:
    """Return the mean IoU in per cent, over the parts that there are: TC, of `temporal_confusion` over all clips."""
    both_P = np.diag(confusion_PP)
    either_P = confusion_PP.sum(0) + confusion_PP.sum(1) - both_P
    return 100 * float((both_P[either_P > 0] / either_P[either_P > 0]).mean())


def flicker(masks_THW: Labels, truth_THW: Labels | None = None) -> float:
    """Return A-B-A changes: pixels that have another label for one frame only, per 1,000 pixels and frame.

    With the truth, those apart where it changes in the same way itself, as under what passes quickly.
    """
    changed = _there_and_back(masks_THW)
    return 1000 * float((changed if truth_THW is None else changed & ~_there_and_back(truth_THW)).mean())


def _there_and_back(masks_THW: Labels) -> Bools:
    before, now, after = masks_THW[:-2], masks_THW[1:-1], masks_THW[2:]
    changed: Bools = (before == after) & (now != before)
    return changed


def region_and_contour(truth_THW: Labels, masks_THW: Labels, parts: int) -> tuple[float, float]:
    """Return J and F in per cent as DAVIS has them: the mean over frames, then over parts, the background apart.

    A part that neither truth nor mask shows in a frame counts as found there. Parts that the truth never shows in the
    clip are left out.
    """
    shown = [part for part in range(1, parts) if (truth_THW == part).any()]
    pairs = [
        [(truth == part, mask == part) for truth, mask in zip(truth_THW, masks_THW, strict=True)] for part in shown
    ]
    regions = [np.mean([_overlap(*pair) for pair in of_part]) for of_part in pairs]
    contours = [np.mean([contour_accuracy(*pair) for pair in of_part]) for of_part in pairs]
    return 100 * float(np.mean(regions)), 100 * float(np.mean(contours))


def contour_accuracy(truth_HW: Bools, mask_HW: Bools, tolerance: float = 0.008) -> float:
    """Return the F-measure of the outlines, 0 to 1: a point is right within `tolerance` of the image's diagonal."""
    reach = int(np.ceil(tolerance * np.linalg.norm(truth_HW.shape)))
    disk = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) <= reach
    true_HW, found_HW = _outline(truth_HW), _outline(mask_HW)
    if not true_HW.any() or not found_HW.any():
        return float(true_HW.any() == found_HW.any())
    precision = binary_dilation(true_HW, disk)[found_HW].mean()
    recall = binary_dilation(found_HW, disk)[true_HW].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _outline(region_HW: Bools) -> Bools:
    """Return the pixels that differ from their neighbour to the right, below, or right below."""
    padded = np.pad(region_HW, ((0, 1), (0, 1)), mode="edge")
    here = padded[:-1, :-1]
    outline: Bools = (here != padded[:-1, 1:]) | (here != padded[1:, :-1]) | (here != padded[1:, 1:])
    return outline


def _overlap(truth_HW: Bools, mask_HW: Bools) -> float:
    either = (truth_HW | mask_HW).sum()
    return float((truth_HW & mask_HW).sum() / either) if either else 1.0

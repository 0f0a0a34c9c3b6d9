"""Smoothing of the labels of a clip: flicker goes, motion is followed, cuts begin anew, and a run can be taken up."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pytest

from slime_client import SegmenterError
from slime_client.video import smoothing
from slime_client.video.smoothing import Settings, Smooth, Smoother

pytest.importorskip("cv2")
Frame = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]
SIDE, FRAMES = 64, 20


def textured(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> npt.NDArray[np.uint8]:
    """Blocks of 4 x 4 pixels of random colours, so that there is something to follow."""
    blocks = np.random.default_rng(seed).integers(0, 256, (-(-size[0] // 4), -(-size[1] // 4), 3), np.uint8)
    return blocks.repeat(4, 0).repeat(4, 1)[: size[0], : size[1]]


def truths(step: int = 2) -> list[npt.NDArray[np.uint8]]:
    """A square of part 1 that goes to the right."""
    masks = []
    for t in range(FRAMES):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[20:40, step * t : step * t + 20] = 1
        masks.append(mask)
    return masks


def film(parts: int = 2, step: int = 2, wrong: float = 0.0) -> list[Frame]:
    """The square in a texture of its own before another one; scores are of the truth, for a share of pixels not."""
    chance, ground, square = np.random.default_rng(0), textured(1), textured(2, (20, 20))
    frames = []
    for t, mask in enumerate(truths(step)):
        image = ground.copy()
        image[20:40, step * t : step * t + 20] = square
        flipped = np.where(chance.random(mask.shape) < wrong, 1 - mask, mask)
        scores = np.full((parts, SIDE, SIDE), 0.2, np.float32)
        np.put_along_axis(scores, flipped[None].astype(np.int64), 0.6, 0)
        frames.append((image, scores))
    return frames


def smoothed(how: Smooth, frames: Iterable[Frame], settings: Settings | None = None) -> list[npt.NDArray[np.uint8]]:
    smoother = Smoother(how, settings)
    return [mask for frame in frames for mask in smoother(*frame)] + smoother.rest()


def wrong(masks: list[npt.NDArray[np.uint8]]) -> float:
    """The share of pixels that are not the truth's, over all frames but the first few."""
    pairs = zip(masks[3:], truths()[3:], strict=True)
    return float(np.mean([(mask != truth).mean() for mask, truth in pairs]))


def test_none_is_the_best_part_of_each_pixel() -> None:
    frames = film(wrong=0.1)
    for mask, (_, scores) in zip(smoothed("none", frames), frames, strict=True):
        np.testing.assert_array_equal(mask, scores.argmax(0))


def test_flow_follows_what_moves_and_leaves_wrong_labels_out() -> None:
    frames = film(wrong=0.1)
    single, mean, flow = (smoothed(how, frames) for how in ("none", "mean", "flow"))
    assert len(flow) == FRAMES and all(mask.dtype == np.uint8 and mask.shape == (SIDE, SIDE) for mask in flow)
    assert wrong(single) == pytest.approx(0.1, abs=0.01)
    assert wrong(flow) < 0.02 < wrong(mean)
    assert wrong(smoothed("flow", frames, Settings(ahead=0))) < 0.04


def test_mean_takes_its_share_of_each_frame() -> None:
    image, now = textured(1), np.array([0.8, 0.2], np.float32).reshape(2, 1, 1) + np.zeros((2, SIDE, SIDE), np.float32)
    smoother = Smoother("mean", Settings(share=0.25))
    assert [int(smoother(image, scores)[0].max()) for scores in (now, *[now[::-1]] * 4)] == [0, 0, 0, 1, 1]


def test_frames_are_decided_in_order_and_soon() -> None:
    """As many as `ahead` to twice as many wait, no more, however long the clip is."""
    smoother, given = Smoother("flow", Settings(ahead=3)), 0
    for taken, frame in enumerate(film(), 1):
        given += len(smoother(*frame))
        assert 3 <= taken - given < 6 or taken < 6
    assert given + len(smoother.rest()) == FRAMES
    at_once = Smoother("flow", Settings(ahead=0))
    assert [len(at_once(*frame)) for frame in film()] == [1] * FRAMES


def test_what_both_neighbours_contradict_gives_way_and_thin_things_that_pass_do_not() -> None:
    """With so much weight each frame's own scores decide; a label that one frame alone has is left out even so."""
    sure = Settings(weight=3.0)
    frames = [(image, np.where(scores > 0.5, 1.0, 0.01).astype(np.float32)) for image, scores in film()]
    flipped = [(image, scores.copy()) for image, scores in frames]
    flipped[10][1][:, 50:60, 30:40] = flipped[10][1][::-1, 50:60, 30:40]
    before, at, after = (mask[50:60, 30:40] for mask in smoothed("flow", flipped, sure)[9:12])
    assert not before.any() and not at.any() and not after.any()

    ground, line = np.full((SIDE, SIDE, 3), 200, np.uint8), []
    for t in range(FRAMES):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[10:50, 3 * t : 3 * t + 2] = 1
        scores = np.stack([1.0 - 0.99 * mask, 0.01 + 0.99 * mask]).astype(np.float32)
        line.append((np.where(mask[..., None], np.uint8(20), ground), scores))
    kept = [
        (found * scores.argmax(0)).sum() / 80
        for found, (_, scores) in zip(smoothed("flow", line, sure), line, strict=True)
    ]
    assert min(kept) > 0.9


@pytest.mark.parametrize("how", ["mean", "flow"])
def test_a_cut_begins_anew(how: Smooth) -> None:
    """The frame after a cut has its own labels, although every frame before said something else."""
    before, after = film()[:6], (255 - textured(9) // 3, film()[0][1][::-1].copy())
    masks = smoothed(how, [*before, after], Settings(share=0.1))
    np.testing.assert_array_equal(masks[-1], after[1].argmax(0))
    np.testing.assert_array_equal(masks[-2], smoothed(how, before, Settings(share=0.1))[-1])


@pytest.mark.parametrize("how", ["none", "mean", "flow"])
def test_a_run_taken_up_gives_the_same_masks(how: Smooth) -> None:
    frames = film(wrong=0.1)
    whole, first = Smoother(how), Smoother(how)
    expected = [mask for frame in frames[:8] for mask in whole(*frame)] + whole.rest()
    expected += [mask for frame in frames[8:] for mask in whole(*frame)] + whole.rest()
    masks = [mask for frame in frames[:8] for mask in first(*frame)] + first.rest()
    later = Smoother(how)
    later.go_on({name: array.copy() for name, array in first.history().items()})
    masks += [mask for frame in frames[8:] for mask in later(*frame)] + later.rest()
    np.testing.assert_array_equal(masks, expected)


def test_history_while_frames_wait_is_refused() -> None:
    smoother = Smoother("flow")
    assert smoother.history() == {} and smoother(*film()[0]) == []
    with pytest.raises(ValueError, match="1 frames wait, expected none"):
        smoother.history()


@pytest.mark.parametrize("size", [(48, 80), (300, 200)])
def test_scores_of_another_grid_and_many_parts(size: tuple[int, int]) -> None:
    """A grid that is too fine for so many parts is reduced; masks have the frame's size."""
    frames = [(textured(1, size), np.eye(77, dtype=np.float32)[:, :, None].repeat(90, 2)) for _ in range(3)]
    for how in ("none", "mean", "flow"):
        for mask in smoothed(how, frames):
            assert mask.shape == size and len(np.unique(mask)) > 0.6 * min(77, size[0])
            assert (np.diff(mask[:, 0].astype(int)) >= 0).all()


def test_without_opencv_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoothing.importlib.util, "find_spec", lambda name: None)
    assert Smoother("none").rest() == []
    with pytest.raises(SegmenterError, match=r"OpenCV is missing; pip install 'slime-serve\[video\]'"):
        Smoother("flow")

"""What may be added to plain WAS: each against its definition, for numpy and torch inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from slime_was import Postprocess, accumulate, scores, segment, sharpened
from slime_was.guided import joint_bilateral
from slime_was.interpolation import enlarge, extremes
from slime_was.options import name_in

Floats = np.ndarray[Any, Any]
SIDE = 16


def random(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def attention(pixels: int, crops: int = 1) -> Floats:
    """Rows sum to 1, as a softmax's do."""
    rows = random(crops, pixels, pixels) ** 8
    return rows / rows.sum(-1, keepdims=True)


def both(cross: Floats, self_: Floats, postprocess: Postprocess) -> Floats:
    """The scores from numpy, after a look that torch's are the same."""
    result = scores(cross, self_, postprocess)
    from_torch = scores(torch.from_numpy(cross), torch.from_numpy(self_), postprocess)
    np.testing.assert_allclose(from_torch.numpy(), result, rtol=1e-4, atol=1e-5)
    return result


def test_plain_scores_are_equation_6() -> None:
    cross, self_ = random(1, 3, 4, 2), attention(8)
    expected = accumulate(cross.reshape(1, 3, 8), self_).reshape(3, 4, 2)
    assert np.array_equal(both(cross, self_, Postprocess()), expected)


@pytest.mark.parametrize("rescale", [False, True])
def test_maps_that_were_accumulated_before_give_the_same_scores(rescale: bool) -> None:
    cross, self_ = random(1, 3, 4, 2), attention(8)
    postprocess = Postprocess(threshold=0.2, rescale=rescale, side=SIDE)
    was = accumulate(cross.reshape(1, 3, 8), self_).reshape(cross.shape)
    assert np.array_equal(both(cross, was, postprocess), both(cross, self_, postprocess))
    with pytest.raises(ValueError, match=r"maps: got cross-attention \(1, 3, 4, 2\) with \(1, 3, 2, 4\)"):
        scores(cross, was.reshape(1, 3, 2, 4), postprocess)


@pytest.mark.parametrize("drop_background", [False, True])
def test_parts_under_the_threshold_score_nothing(drop_background: bool) -> None:
    cross, self_ = random(1, 4, 2, 2), attention(4)
    cross[0, :, 0, 0] = (0.1, 0.1, 0.19, 0.2)
    cross[0, :3] = np.minimum(cross[0, :3], cross[0, :3, :1, :1])
    result = both(cross, self_, Postprocess(threshold=0.2, drop_background=drop_background))
    assert result.any((1, 2)).tolist() == [not drop_background, False, False, True]


def test_the_first_kept_part_is_suppressed_under_its_mean() -> None:
    cross, self_ = random(1, 3, 4, 4), attention(16)
    cross[0, 0] *= 0.1  # dropped, so that the first kept is part 1
    postprocess = Postprocess(threshold=0.2, drop_background=True, suppress_first_part=True)
    expected = cross.copy()
    expected[0, 1][expected[0, 1] <= expected[0, 1].mean()] = 0
    expected[0, 0] = 0
    assert np.allclose(both(cross, self_, postprocess), accumulate(expected.reshape(1, 3, 16), self_).reshape(3, 4, 4))


@pytest.mark.parametrize("side", [4, 7, 16, 33])
def test_extremes_are_those_of_the_whole_enlargement(side: int) -> None:
    maps = random(3, 4, 4)
    low, high = extremes(maps, side, side)
    enlarged = enlarge(maps, side, side)
    np.testing.assert_allclose(low[:, 0, 0], enlarged.min((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(high[:, 0, 0], enlarged.max((1, 2)), rtol=1e-6)


def test_rescaled_scores_span_their_cross_maps() -> None:
    cross, self_ = random(1, 3, 4, 4), attention(16)
    cross[0, 2] = 0.5  # flat: nothing to span
    enlarged = enlarge(both(cross, self_, Postprocess(rescale=True, side=SIDE)), SIDE, SIDE)
    np.testing.assert_allclose(enlarged[:2].min((1, 2)), cross[0, :2].min((1, 2)), rtol=1e-4)
    np.testing.assert_allclose(enlarged[:2].max((1, 2)), cross[0, :2].max((1, 2)), rtol=1e-4)
    assert np.isfinite(enlarged).all()


def test_patches_are_means_over_the_crops_that_kept_the_part() -> None:
    postprocess = Postprocess(patches=2, patch_side=0.75, side=SIDE, threshold=0.5)
    assert postprocess.crops == ((0, 0), (0, 4), (4, 0), (4, 4))
    cross = np.ones((4, 2, 4, 4), np.float32)
    cross[:, 1] = np.array([0.9, 0.6, 0.1, 0.8], np.float32)[:, None, None]
    result = both(cross, attention(16, crops=4), postprocess)
    assert result.shape == (2, SIDE, SIDE)
    np.testing.assert_allclose(result[0], 1, rtol=1e-4)
    # Top left: the first crop alone; in the middle three of the four; bottom left: the crop that dropped the part.
    np.testing.assert_allclose(result[1, [0, 8, 15], [0, 8, 0]], [0.9, (0.9 + 0.6 + 0.8) / 3, 0], rtol=1e-3)


def test_guided_edges_follow_the_image() -> None:
    """Two flat halves whose edge lies inside a sample of the map; the scores alone put it elsewhere."""
    image = -np.ones((3, 32, 32), np.float32)
    image[:, :, 14:] = 1
    coarse = np.zeros((2, 8, 8), np.float32)
    coarse[0, :, :4], coarse[1, :, 4:] = 1, 1
    bilinear = enlarge(coarse, 32, 32).argmax(0)[0]
    guided = joint_bilateral(coarse, image, 0.1)
    assert int((bilinear == 0).sum()) == 16
    assert int((guided.argmax(0)[0] == 0).sum()) == 14
    from_torch = joint_bilateral(torch.from_numpy(coarse), torch.from_numpy(image), 0.1)
    np.testing.assert_allclose(from_torch.numpy(), guided, rtol=1e-4, atol=1e-5)


def test_a_loose_guide_is_a_blur_and_no_more() -> None:
    image, coarse = 2 * random(3, 32, 32) - 1, np.ones((2, 8, 8), np.float32)
    np.testing.assert_allclose(joint_bilateral(coarse, image, 0.1), 1, rtol=1e-5)


def by_definition(coarse: Floats, image: Floats, tolerance: float, step: int) -> Floats:
    """Kopf's equation, pixel by pixel; the sizes are those of the image."""
    parts, samples = coarse.shape[:2]
    colours = (image + 1) / 2
    cells = colours.reshape(3, samples, step, samples, step).mean((2, 4))
    result = np.zeros((parts, samples * step, samples * step))
    for row, column in np.ndindex(*result.shape[1:]):
        weights = 0.0
        for y, x in np.ndindex(3, 3):
            at = [min(max(each // step + by - 1, 0), samples - 1) for each, by in ((row, y), (column, x))]
            centre = [(each // step + by - 1 + 0.5) * step - 0.5 for each, by in ((row, y), (column, x))]
            apart = ((row - centre[0]) ** 2 + (column - centre[1]) ** 2) / step**2
            unlike = ((colours[:, row, column] - cells[:, at[0], at[1]]) ** 2).sum()
            weight = np.exp(-apart / (2 * 0.7**2) - min(unlike / (2 * tolerance**2), 60))
            result[:, row, column] += weight * coarse[:, at[0], at[1]]
            weights += weight
        result[:, row, column] /= weights
    return result


@pytest.mark.parametrize("tolerance", [0.2, 0.001])
def test_guided_scores_are_joint_bilateral_upsampling(tolerance: float) -> None:
    """The lower tolerance finds no sample like a pixel, so that distance alone decides."""
    image = 2 * random(3, 12, 12) - 1
    coarse = np.stack([random(4, 4), random(4, 4, seed=1) - 5])  # the first wins everywhere: no specks
    guided = joint_bilateral(coarse, image, tolerance)
    np.testing.assert_allclose(guided, by_definition(coarse, image, tolerance, 3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("pixels", "left"),
    [
        ([(5, 5)], 0),
        ([(5, 5), (6, 6)], 0),
        ([(5, 5), (5, 6)], 0),
        ([(0, 0), (15, 14), (15, 15)], 0),
        ([(5, 5), (5, 6), (6, 6)], 3),
    ],
    ids=["one", "corner to corner", "pair", "edges", "three"],
)
def test_specks_of_one_or_two_pixels_are_taken_in(pixels: list[tuple[int, int]], left: int) -> None:
    image, coarse = -np.ones((3, 16, 16), np.float32), np.ones((2, 16, 16), np.float32)
    coarse[1] = 0
    for row, column in pixels:  # a sample for each pixel, of a colour of its own, so that it keeps its score
        image[:, row, column] = 1
        coarse[1, row, column] = 3
    assert int(joint_bilateral(coarse, image, 0.05).argmax(0).sum()) == left


def test_guided_masks_of_numpy_and_torch_are_equal() -> None:
    for seed in range(5):
        coarse, image = random(6, 32, 32, seed=seed), 2 * random(3, 128, 128, seed=seed + 9) - 1
        mask = segment(joint_bilateral(coarse, image, 0.1), 100, 150)
        from_torch = segment(joint_bilateral(torch.from_numpy(coarse), torch.from_numpy(image), 0.1), 100, 150)
        assert np.array_equal(from_torch.numpy(), mask)


def test_patches_are_guided_as_far_as_their_samples_lie_apart() -> None:
    """The image's edge lies three pixels from that of the merged scores, less than a sample's width of 4 pixels."""
    postprocess = Postprocess(side=64, patches=2, patch_side=0.625, edge_tolerance=0.1)
    image = -np.ones((3, 64, 64), np.float32)
    image[:, :, 29:] = 1
    cross = np.zeros((4, 2, 10, 10), np.float32)
    for crop, (_, start) in enumerate(postprocess.crops):
        right = start + 4 * np.arange(10) >= 32
        cross[crop, 0], cross[crop, 1] = ~right, right
    merged = scores(cross, np.repeat(np.eye(100, dtype=np.float32)[None], 4, 0), postprocess)
    assert merged.shape == (2, 16, 16)
    assert (sharpened(merged, postprocess, image).argmax(0) == (np.arange(64) >= 29)).all()


def test_large_images_guide_at_four_pixels_a_sample() -> None:
    assert joint_bilateral(random(2, 4, 4), random(3, 64, 64), 0.1).shape == (2, 16, 16)


def test_scores_are_sharpened_where_the_image_guides() -> None:
    coarse, image = random(3, 4, 4), random(3, 16, 16)
    assert sharpened(coarse, Postprocess(), None) is coarse
    assert np.array_equal(
        sharpened(coarse, Postprocess(edge_tolerance=0.1), image), joint_bilateral(coarse, image, 0.1)
    )
    with pytest.raises(ValueError, match="got no image"):
        sharpened(coarse, Postprocess(edge_tolerance=0.1), None)


def test_maps_that_do_not_belong_together_are_named() -> None:
    with pytest.raises(ValueError, match=r"with \(1, 9, 9\), expected self-attention \(1, 8, 8\)"):
        scores(random(1, 3, 4, 2), random(1, 9, 9), Postprocess())
    with pytest.raises(ValueError, match="got 2 crops, expected 1"):
        scores(random(2, 3, 4, 2), random(2, 8, 8), Postprocess())


def test_weighting_travels_as_a_vector() -> None:
    postprocess = Postprocess(
        threshold=0.2, rescale=True, side=128, patches=2, patch_side=400 / 512, edge_tolerance=0.07
    )
    for name in ("", "car-2"):
        assert Postprocess.from_vector(postprocess.vector(name)) == postprocess
        assert name_in(postprocess.vector(name)) == name
    with pytest.raises(ValueError, match="export the segmenter again"):
        Postprocess.from_vector(np.zeros(1, np.float32))


@pytest.mark.parametrize(
    "change", [{"threshold": 2.0}, {"side": 0}, {"patches": 2, "patch_side": 0.4}, {"edge_tolerance": -1.0}]
)
def test_values_out_of_range(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="postprocess: got"):
        Postprocess(**change)

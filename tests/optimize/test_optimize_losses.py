"""The losses against formulas written out pixel by pixel, and views that keep image and mask together."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from slime_optimize import Settings
from slime_optimize.method.augmentation import View, apply_view, draw_view, part_points
from slime_optimize.method.losses import Answer, class_weights, logit_cross_entropy, losses, map_cross_entropy, was_loss

B, P, H, W = 2, 4, 3, 5


@pytest.fixture
def mask() -> Tensor:
    mask = torch.randint(0, 3, (B, H, W), generator=torch.Generator().manual_seed(0))
    mask[0, 0, :3] = torch.tensor([0, 1, 2])
    return mask  # part 3 is absent


@pytest.fixture
def maps() -> Answer:
    chance = torch.Generator().manual_seed(1)
    logits = torch.randn(B, 77, H, W, generator=chance)
    return Answer(
        cross_BPhw=logits.softmax(1)[:, :P],
        logits_BPhw=logits[:, :P],
        was_BPhw=torch.rand(B, P, H, W, generator=chance),
        predicted_B4hw=torch.randn(B, 4, H, W, generator=chance),
    )


def naive_cross_entropy(probs: Tensor, mask: Tensor) -> float:
    """Every part weighs all pixels / its pixels; so each part that is there counts the same."""
    pixels = [(b, y, x) for b in range(B) for y in range(H) for x in range(W)]
    total = weights = 0.0
    for b, y, x in pixels:
        part = int(mask[b, y, x])
        weight = len(pixels) / sum(int(mask[at]) == part for at in pixels)
        total -= weight * math.log(float(probs[b, part, y, x]))
        weights += weight
    return total / weights


def test_class_weights(mask: Tensor) -> None:
    weights = class_weights(mask, P)
    assert weights[3] == 0
    assert weights[1] == pytest.approx(mask.numel() / int((mask == 1).sum()))


def test_cross_entropy_over_all_tokens(maps: Answer, mask: Tensor) -> None:
    expected = naive_cross_entropy(maps.cross_BPhw, mask)
    assert float(map_cross_entropy(maps.cross_BPhw, mask, class_weights(mask, P))) == pytest.approx(expected, rel=1e-4)


def test_cross_entropy_over_the_parts(maps: Answer, mask: Tensor) -> None:
    expected = naive_cross_entropy(maps.logits_BPhw.softmax(1), mask)
    assert float(logit_cross_entropy(maps.logits_BPhw, mask, class_weights(mask, P))) == pytest.approx(
        expected, rel=1e-4
    )


def test_was_loss_is_a_sum_over_parts_of_means_over_pixels(maps: Answer, mask: Tensor) -> None:
    expected = 0.0
    for part in range(P):
        expected += float(((maps.was_BPhw[:, part] - (mask == part).float()) ** 2).mean())
    assert float(was_loss(maps.was_BPhw, mask)) == pytest.approx(expected, rel=1e-5)
    assert float(was_loss(maps.was_BPhw, mask, "sum")) == pytest.approx(expected * H * W, rel=1e-5)


@pytest.mark.parametrize("kind", ["maps", "logits"])
def test_total_is_equation_8(maps: Answer, mask: Tensor, kind: str) -> None:
    target = torch.zeros(B, 4, H, W)
    result = losses(maps, mask, target, Settings(alpha=0.5, beta=0.1, cross_entropy=kind))
    diffusion = float((maps.predicted_B4hw**2).mean())
    assert float(result.diffusion) == pytest.approx(diffusion, rel=1e-5)
    expected = float(result.cross_entropy) + 0.5 * float(result.was) + 0.1 * diffusion
    assert float(result.total) == pytest.approx(expected, rel=1e-5)


def test_a_map_of_zero_keeps_the_loss_finite(mask: Tensor) -> None:
    assert math.isfinite(float(map_cross_entropy(torch.zeros(B, P, H, W), mask, class_weights(mask, P))))


def grid_image(side: int = 32) -> tuple[Tensor, Tensor]:
    """An image whose channels are its own coordinates and a mask that follows from them."""
    line = (torch.arange(side) + 0.5) * 2 / side - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y, torch.zeros_like(x)]), (x > 0).long() + 2 * (y > 0).long()


def test_the_whole_view_changes_nothing() -> None:
    pixels, mask = grid_image()
    seen, labels = apply_view(View(), pixels, mask)
    torch.testing.assert_close(seen, pixels, rtol=0, atol=1e-5)
    assert torch.equal(labels, mask)


def test_mirror_and_crop() -> None:
    pixels, mask = grid_image()
    seen, labels = apply_view(View(mirrored=True), pixels, mask)
    torch.testing.assert_close(seen, pixels.flip(2), rtol=0, atol=1e-5)
    assert torch.equal(labels, mask.flip(1))
    seen, labels = apply_view(View(side=0.5, centre=(0.5, -0.5)), pixels, mask)
    assert bool((seen[0] > -0.05).all()) and bool((seen[1] < 0.05).all())
    assert bool((labels == 1).all())


def test_image_and_mask_turn_together() -> None:
    pixels, mask = grid_image()
    view = View(angle=0.5, side=0.6, centre=(0.1, -0.2), mirrored=True)
    seen, labels = apply_view(view, pixels, mask)
    expected = (seen[0] > 0).long() + 2 * (seen[1] > 0).long()
    assert float((labels == expected).float().mean()) > 0.95


def test_share_of_a_part_inside_a_view() -> None:
    mask = torch.zeros(32, 32, dtype=torch.long)
    mask[:16, 16:] = 1  # the upper right quarter
    points = part_points(mask, 1)
    assert len(points) == 256
    assert View().shows(points) == 1
    assert View(side=0.5, centre=(0.5, -0.5)).shows(points) == 1
    assert View(side=0.5, centre=(-0.5, -0.5)).shows(points) == 0
    assert View(side=0.5, centre=(0.0, -0.5)).shows(points) == pytest.approx(0.5)


def test_drawn_views_show_the_part_and_follow_the_seed() -> None:
    mask = torch.zeros(64, 64, dtype=torch.long)
    mask[6:10, 6:10] = 1
    points, settings = part_points(mask, 1), Settings()
    chance = torch.Generator().manual_seed(3)
    views = [draw_view(settings, chance, points) for _ in range(40)]
    assert sum(view.shows(points) > 0.3 for view in views) >= 38
    assert all(0.5 <= view.side <= 1 and abs(view.angle) <= math.radians(30) for view in views)
    chance.manual_seed(3)
    assert [draw_view(settings, chance, points) for _ in range(40)] == views


def test_blur_keeps_the_mean_and_the_size() -> None:
    pixels = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    seen, _ = apply_view(View(sigma=1.5 / 32), pixels, torch.zeros(32, 32, dtype=torch.long))
    assert seen.shape == pixels.shape
    assert float(seen.std()) < 0.5 * float(pixels.std())
    assert float(seen.mean()) == pytest.approx(float(pixels.mean()), abs=0.01)

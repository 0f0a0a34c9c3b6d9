"""PartScenes in motion: clips are always the same, move, and their flow and occlusion are exact."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from slime_backbone import motion, scene
from slime_backbone.motion import Clip, clip, warped
from slime_backbone.scene import KINDS, parts_of


@pytest.fixture(scope="module", params=list(KINDS))
def film(request: pytest.FixtureRequest) -> Clip:
    return clip(request.param, "choosing", 0, frames=12, size=256)


def test_a_clip_is_images_masks_and_ways_of_one_object(film: Clip) -> None:
    assert (film.images.shape, film.images.dtype) == ((12, 256, 256, 3), np.uint8)
    assert (film.masks.shape, film.masks.dtype) == ((12, 256, 256), np.uint8)
    assert 0 < film.masks.max() < len(film.parts)
    assert (film.flows.shape, film.flows.dtype) == ((11, 256, 256, 2), np.float32)
    assert (film.hidden.shape, film.hidden.dtype) == ((11, 256, 256), bool)
    assert 1 < np.abs(film.flows).max() < 32


def test_the_mask_of_the_next_frame_warped_back_is_the_mask(film: Clip) -> None:
    """Where nothing was hidden, and no border of parts is nearer than the rounding of a warp to whole pixels."""
    still, moved = 0, 0
    for t, (flow, hidden) in enumerate(zip(film.flows, film.hidden, strict=True)):
        mask, following = film.masks[t], film.masks[t + 1]
        around = [np.roll(mask, (down - 1, right - 1), (0, 1)) for down, right in np.ndindex(3, 3)]
        inside = (np.stack(around) == mask).all(0) & ~hidden
        moved += int((warped(following, flow) != mask)[inside].sum())
        still += int((following != mask)[inside].sum())
        assert (warped(following, flow) != mask)[~hidden].mean() < 0.02
    assert moved <= 1e-4 * film.masks.size
    assert still > 10 * moved  # Without the flow, the masks differ.


def test_what_is_hidden_is_covered_or_outside(film: Clip) -> None:
    """Colours follow the flow where nothing is hidden, and not where something is: of the images, flow apart."""
    images = film.images.astype(np.float32)
    apart = [
        np.abs(np.stack([warped(following[..., c], flow) for c in range(3)], -1) - image).mean(-1)
        for image, following, flow in zip(images[:-1], images[1:], film.flows, strict=True)
    ]
    assert 0 < film.hidden.mean() < 0.1
    assert np.stack(apart)[~film.hidden].mean() < 12
    assert np.stack(apart)[film.hidden].mean() > 3 * np.stack(apart)[~film.hidden].mean()


def test_clips_are_the_same_for_ever_and_of_no_other_split() -> None:
    once, again = (clip("car", "testing", 2, frames=3, size=32) for _ in range(2))
    np.testing.assert_array_equal(once.images, again.images)
    first = {split: clip("car", split, 2, frames=3, size=32).images[0].tobytes() for split in motion.SPLITS}
    assert len(set(first.values())) == len(motion.SPLITS)
    assert len({*motion.SPLITS.values(), *scene.SPLITS.values()}) == len(motion.SPLITS) + len(scene.SPLITS)


def test_clips_are_written_as_frames(
    tmp_path: Path, scenes_script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(motion, "COUNTS", {"testing": 1})
    assert scenes_script.main(["--video", "--out", str(tmp_path), "--kinds", "horse"]) == 0
    folder, drawn = tmp_path / "horse" / "testing" / "000", clip("horse", "testing", 0)
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "images" / "047.png")), drawn.images[47])
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "masks" / "001.png")), drawn.masks[1])
    with np.load(folder / "motion.npz") as kept:
        np.testing.assert_array_equal(kept["flows"], drawn.flows)
        np.testing.assert_array_equal(kept["hidden"], drawn.hidden)
    assert json.loads((folder / "parts.json").read_text()) == list(parts_of("horse"))
    with pytest.raises(SystemExit):
        scenes_script.main(["--video", "--floor-ceiling"])
    assert "--video: got no folder, expected --out FOLDER" in capsys.readouterr().err

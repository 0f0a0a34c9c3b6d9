"""Files that other tools wrote with their own exporters; tools/README.md says which."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from slime_optimize.data.annotations import read

TOOLS = Path(__file__).with_name("tools")
PARTS = ("background", "body", "rear wheel")
SHAPE = (36, 48)
# These draw outlines through the centres of pixels, half a pixel inside what was painted; FiftyOne's COCO simplifies
# them besides: how many pixels from the edge on they are right.
EDGE = {"fiftyone-coco": 2, "fiftyone-yolo": 1, "label-studio-brush-to-coco": 1, "supervision-coco": 1}
EDGE |= {"supervision-yolo": 1}


def scene(edge: int) -> npt.NDArray[np.uint8]:
    """The mask of tools/make.py; the body with so many pixels more to the right and below."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[6 : 24 + edge, 4 : 40 + edge] = 1
    mask[18:30, 8:16] = 2
    return mask


def certain(mask: npt.NDArray[np.uint8], edge: int) -> npt.NDArray[np.bool_]:
    """Where all pixels at most so far away are of the same part."""
    steps = range(-edge, edge + 1)
    around = np.stack([np.roll(mask, (down, right), (0, 1)) for down in steps for right in steps])
    return np.asarray((around == mask).all(axis=0))


@pytest.mark.parametrize("tool", sorted(path.name for path in TOOLS.iterdir() if path.is_dir()))
@pytest.mark.parametrize("named", [True, False])
def test_what_the_tool_painted(tmp_path: Path, tool: str, named: bool) -> None:
    folder = shutil.copytree(TOOLS / tool, tmp_path / tool)
    found = read(folder, PARTS if named or tool == "fiftyone-masks" else None)
    (example,) = found.examples
    assert found.parts == PARTS and example.image_HW3.shape == (*SHAPE, 3)
    mask = scene(1 if tool == "labelme" else 0)  # LabelMe paints the pixels under the outline too
    counts = certain(mask, EDGE.get(tool, 0))
    assert np.array_equal(example.mask_HW[counts], mask[counts])

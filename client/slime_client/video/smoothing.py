"""Labels of one frame after another, made consistent."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

Smooth: TypeAlias = Literal["none", "mean", "flow"]


class Smoother:
    """Makes the labels of one frame after another consistent. One object for each clip."""

    def __init__(self, how: Smooth) -> None:
        if how != "none":
            raise NotImplementedError(how)

    def history(self) -> dict[str, npt.NDArray[Any]]:
        """Return what the frames so far leave behind for those that follow, as arrays by name."""
        return {}

    def go_on(self, history: Mapping[str, npt.NDArray[Any]]) -> None:
        """Continue as after the frames that left `history` behind."""

    def __call__(self, image: npt.NDArray[np.uint8], scores: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """Return the mask, uint8 (H, W), of an image (H, W, 3) with its scores (K, h, w), enlarged to its size."""
        size = (image.shape[1], image.shape[0])
        maps = [np.asarray(Image.fromarray(each).resize(size, Image.Resampling.BILINEAR)) for each in scores]
        mask: npt.NDArray[np.uint8] = np.stack(maps).argmax(0).astype(np.uint8)
        return mask

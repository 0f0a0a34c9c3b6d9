"""Pixels of any size to the square the network reads, and masks alike. Squashed, as in the paper's evaluation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image


def fit(image_HW3: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.float32]:
    """The network's input: float32 (3, size, size) in [-1, 1], RGB, from uint8 (H, W, 3).

    The whole image is squashed to the square; bicubic, antialiased where it shrinks; untouched where it has the
    size already. Raises ValueError for other shapes, dtypes or a size under 1.
    """
    if image_HW3.ndim != 3 or image_HW3.shape[2] != 3 or image_HW3.dtype != np.uint8:
        raise ValueError(f"image: got {image_HW3.dtype} {image_HW3.shape}, expected uint8 (H, W, 3)")
    _check(size)
    pixels_SS3 = image_HW3
    if image_HW3.shape[:2] != (size, size):
        resized = Image.fromarray(image_HW3).resize((size, size), Image.Resampling.BICUBIC)
        pixels_SS3 = np.asarray(resized)
    pixels_3SS = np.ascontiguousarray(pixels_SS3.transpose(2, 0, 1), dtype=np.float32)
    pixels_3SS /= np.float32(127.5)
    pixels_3SS -= np.float32(1.0)
    return pixels_3SS


def fit_mask(mask_HW: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """A mask of part numbers squashed to uint8 (size, size) by the nearest pixel, so that no new numbers appear."""
    if mask_HW.ndim != 2 or mask_HW.dtype != np.uint8:
        raise ValueError(f"mask: got {mask_HW.dtype} {mask_HW.shape}, expected uint8 (H, W)")
    _check(size)
    return np.array(Image.fromarray(mask_HW).resize((size, size), Image.Resampling.NEAREST))


def _check(size: int) -> None:
    if size < 1:
        raise ValueError(f"size: got {size}, expected at least 1")

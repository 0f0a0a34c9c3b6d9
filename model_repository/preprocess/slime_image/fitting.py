"""Fits images and masks of any size to the square that the networks read, squashed as in the paper's evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

CHANNEL_ORDERS = ("rgb", "bgr")


def fit(image: npt.NDArray[np.uint8] | Image.Image, size: int, channel_order: str = "rgb") -> npt.NDArray[np.float32]:
    """Return the networks' input: float32 (3, size, size) in [-1, 1], from uint8 RGB (H, W, 3) or an RGB picture.

    The whole image is squashed to the square; bicubic, antialiased where it shrinks; untouched where it has the
    size already. `channel_order` "bgr" is for embeddings learned on images read that way round. Raises ValueError
    for other shapes, dtypes, modes, orders or a size under 1.
    """
    if channel_order not in CHANNEL_ORDERS:
        raise ValueError(f"channel order: got {channel_order!r}, expected one of {', '.join(CHANNEL_ORDERS)}")
    _check(size)
    picture = image if isinstance(image, Image.Image) else _picture(image)
    if picture.mode != "RGB":
        raise ValueError(f"image: got a picture of mode {picture.mode}, expected RGB")
    pixels_SS3 = np.asarray(
        picture if picture.size == (size, size) else picture.resize((size, size), Image.Resampling.BICUBIC)
    )
    channels_3SS = pixels_SS3.transpose(2, 0, 1)
    ordered_3SS = channels_3SS[::-1] if channel_order == "bgr" else channels_3SS
    pixels_3SS = np.ascontiguousarray(ordered_3SS, dtype=np.float32)
    pixels_3SS /= np.float32(127.5)
    pixels_3SS -= np.float32(1.0)
    return pixels_3SS


def fit_mask(mask_HW: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Return a mask of part numbers squashed to uint8 (size, size), by the nearest pixel so that no number is new."""
    if mask_HW.ndim != 2 or mask_HW.dtype != np.uint8:
        raise ValueError(f"mask: got {mask_HW.dtype} {mask_HW.shape}, expected uint8 (H, W)")
    _check(size)
    return np.array(Image.fromarray(mask_HW).resize((size, size), Image.Resampling.NEAREST))


def cropped(
    pixels_3SS: npt.NDArray[np.float32], corners: Sequence[tuple[int, int]], side: int
) -> npt.NDArray[np.float32]:
    """Return square crops of a fitted image, each enlarged bilinearly to its size: float32 (crops, 3, S, S).

    corners: (top, left) of each in pixels, side: of the crops. A crop as large as the image is the image.
    """
    size = pixels_3SS.shape[-1]
    if side == size:
        return np.repeat(pixels_3SS[np.newaxis], len(corners), axis=0)
    crops = [pixels_3SS[:, top : top + side, left : left + side] for top, left in corners]
    return np.stack([np.stack([_enlarged(channel, size) for channel in crop]) for crop in crops])


def _picture(image_HW3: npt.NDArray[np.uint8]) -> Image.Image:
    if image_HW3.ndim != 3 or image_HW3.shape[2] != 3 or image_HW3.dtype != np.uint8:
        raise ValueError(f"image: got {image_HW3.dtype} {image_HW3.shape}, expected uint8 (H, W, 3)")
    return Image.fromarray(image_HW3)


def _enlarged(channel_ss: npt.NDArray[np.float32], size: int) -> npt.NDArray[np.float32]:
    picture = Image.fromarray(np.ascontiguousarray(channel_ss))
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR), np.float32)


def _check(size: int) -> None:
    if size < 1:
        raise ValueError(f"size: got {size}, expected at least 1")

"""A mask: which part every pixel of an image belongs to, how to look at it and how to keep it.

Letters in names: H, W pixels of the image as seen (EXIF-oriented), K parts, h, w the score maps.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from slime_client.errors import FAILED_PRECONDITION, SegmenterError
from slime_client.images import EncodedImage, ImageLike, bad, decode, encode, saved, write_file

Colour = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mask:
    """One image's parts.

    Attributes:
        array: uint8 (H, W), indices into `parts`; H, W are the image's as seen, EXIF orientation applied.
        parts: the K part names, background first.
        colours: K colours (r, g, b), each 0..255, in the order of `parts`.
        scores: float32 (K, h, w), the parts' maps at the segmenter's own resolution, or None when not asked for.
        source: the image that was segmented, for `overlay`, or None.

    Raises:
        SegmenterError: INVALID_ARGUMENT when the array and the parts do not fit together.
    """

    array: npt.NDArray[np.uint8]
    parts: tuple[str, ...]
    colours: tuple[Colour, ...]
    scores: npt.NDArray[np.float32] | None = None
    source: EncodedImage | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.array.dtype != np.uint8 or self.array.ndim != 2 or self.array.size == 0:
            raise bad("mask", f"{self.array.dtype} {self.array.shape}", "uint8 (H, W)")
        if len(self.colours) != len(self.parts):
            raise bad("mask", f"{len(self.colours)} colours", f"{len(self.parts)}, one for each part")
        if int(self.array.max()) >= len(self.parts):
            raise bad("mask", f"part index {self.array.max()}", f"under {len(self.parts)}, the number of parts")

    def overlay(self, image: ImageLike | None = None, *, opacity: float = 0.55) -> Image.Image:
        """Return the image with its parts tinted; the background stays as it is.

        Args:
            image: what to draw on, of the mask's size as seen; without it, the image that was segmented.
            opacity: 0 shows the image only, 1 the parts' flat colours.

        Returns:
            RGB, of the mask's size.

        Raises:
            SegmenterError: INVALID_ARGUMENT for an unreadable image or another size; FAILED_PRECONDITION when
                there is no image to draw on.
        """
        source = self.source if image is None else encode(image)
        if source is None:
            raise SegmenterError("overlay: this mask carries no image; pass one: overlay(image)", FAILED_PRECONDITION)
        below = decode(source)
        height, width = self.array.shape
        if below.size != (width, height):
            raise bad(source.label, f"{below.width} x {below.height} pixels", f"{width} x {height}, the mask's size")
        tinted = Image.blend(below, self.picture().convert("RGB"), opacity)
        return Image.composite(tinted, below, Image.fromarray((self.array > 0).astype(np.uint8) * 255))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a palette PNG: pixel values are part indices, the palette holds the colours.

        Raises:
            SegmenterError: INVALID_ARGUMENT when the name does not end in .png or cannot be written.
        """
        target = Path(path)
        if target.suffix.lower() != ".png":
            raise bad(str(target), f"suffix {target.suffix!r}", ".png, which keeps part indices exact")
        write_file(target, saved(self.picture(), "PNG"))

    def picture(self) -> Image.Image:
        """Return a palette image of the part numbers, in the parts' colours."""
        picture = Image.fromarray(self.array).convert("L")
        picture.putpalette([channel for colour in self.colours for channel in colour])
        return picture

"""Reads images: decoding, EXIF orientation, fitting and normalising, once for training, export and the server.

Needs Pillow and numpy; Python 3.10 and later. It lies beside the server's model so that Triton can import it.
"""

from slime_image.decoding import (
    FILE_FORMATS,
    FORMATS,
    MAX_BYTES,
    MAX_PIXELS,
    ImageError,
    decode,
    load,
    opened,
    picture,
)
from slime_image.fitting import CHANNEL_ORDERS, cropped, fit, fit_mask

__all__ = [
    "CHANNEL_ORDERS",
    "FILE_FORMATS",
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "ImageError",
    "cropped",
    "decode",
    "fit",
    "fit_mask",
    "load",
    "opened",
    "picture",
]

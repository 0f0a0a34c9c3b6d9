"""A napari widget that asks a served segmenter for the parts of an image layer: Plugins > SLiMe Serve > Segment.

The parts come as a Labels layer of the image's size in the segmenter's colours, which napari's brush can correct. Give
the corrected layer, saved as PNG, to `slime optimize` as a mask. Needs the extra `napari`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from slime_client.blocking import Segmenter
from slime_client.errors import INVALID_ARGUMENT, SegmenterError

if TYPE_CHECKING:
    from napari.layers import Image
    from napari.types import LayerDataTuple

_CHANNELS = (3, 4)


def segment(image: Image, url: str = "localhost:8001", segmenter: str = "") -> LayerDataTuple:
    """Return a Labels layer of the parts of an image layer, as a tuple of data, options and kind.

    The layer is RGB or RGBA (H,W,3 or 4), or grey (H,W); what is not uint8 is scaled by its contrast limits.

    Raises:
        SegmenterError: INVALID_ARGUMENT for a layer of another shape; else what the server ended with.
    """
    with Segmenter(url, segmenter) as served:
        mask = served.segment(_pixels(image))
    colours: dict[int | None, Any] = {None: "transparent", 0: "transparent"}
    colours |= {index: np.array([*colour, 255]) / 255 for index, colour in enumerate(mask.colours) if index}
    options = {
        "name": f"{image.name}: {segmenter}",
        "scale": image.scale[-2:],
        "translate": image.translate[-2:],
        "colormap": colours,
        "features": {"part": list(mask.parts)},
    }
    return mask.array, options, "labels"


def widget() -> Any:
    """Return the widget: `segment` with a field for each argument. Raises ModuleNotFoundError without the extra."""
    try:
        from magicgui import magicgui
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"slime_client.integrations.napari_widget needs {error.name}; run: pip install 'slime-serve[napari]'",
            name=error.name,
        ) from error
    return magicgui(segment, call_button="Segment")


def _pixels(image: Image) -> npt.NDArray[np.uint8]:
    data = np.asarray(image.data)
    colour = bool(image.rgb) and data.ndim == 3 and data.shape[2] in _CHANNELS
    if not colour and data.ndim != 2:
        raise SegmenterError(
            f"layer {image.name!r}: is of shape {data.shape}, expected a plane (height, width), or RGB of it; "
            "choose one plane of a stack",
            INVALID_ARGUMENT,
        )
    if data.dtype != np.uint8:
        low, high = (0.0, 1.0) if colour and data.dtype.kind == "f" else map(float, image.contrast_limits)
        data = (
            np.clip((data.astype(np.float64) - low) * (255 / max(high - low, 1e-12)), 0, 255).round().astype(np.uint8)
        )
    return np.ascontiguousarray(data[..., :3] if colour else np.repeat(data[..., None], 3, axis=2))

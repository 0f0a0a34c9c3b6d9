"""A served segmenter as a FiftyOne model: `dataset.apply_model(model, label_field="parts")`.

    import fiftyone as fo
    from slime_client.integrations.fiftyone_model import SegmenterModel

    with SegmenterModel("localhost:8001", "car") as model:
        dataset.apply_model(model, label_field="parts")
        dataset.mask_targets["parts"] = model.mask_targets
        dataset.save()

Needs the extra `fiftyone`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from slime_client.blocking import Segmenter

try:
    import fiftyone.core.labels as labels
    import fiftyone.core.models as models
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"slime_client.integrations.fiftyone_model needs {error.name}; run: pip install 'slime-serve[fiftyone]'",
        name=error.name,
    ) from error


class SegmenterModel(models.Model):  # type: ignore[misc]
    """A model that gives each image a `fiftyone.Segmentation`, whose pixels are part numbers, background 0.

    Attributes:
        mask_targets: the parts' names by their numbers, as FiftyOne's datasets take them, background left out.

    Raises:
        SegmenterError: NOT_FOUND where the server has no such segmenter, UNAVAILABLE where none answers, …
    """

    def __init__(self, url: str, segmenter: str, **options: Any) -> None:
        self._segmenter = Segmenter(url, segmenter, **options)
        self.mask_targets = {index: name for index, name in enumerate(self._segmenter.parts) if index}

    @property
    def media_type(self) -> str:
        """What it reads."""
        return "image"

    def predict(self, arg: npt.NDArray[np.uint8]) -> labels.Segmentation:
        """Return the parts of one image, uint8 (H,W,3) RGB. Raises SegmenterError as `Segmenter.segment` does."""
        return labels.Segmentation(mask=self._segmenter.segment(arg).array)

    def __exit__(self, *_: object) -> None:
        self._segmenter.close()

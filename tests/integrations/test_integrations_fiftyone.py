"""The model gives FiftyOne's own labels; a data set gets them by `apply_model`, where FiftyOne finds its MongoDB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from fake_triton import FakeTriton
from PIL import Image

fiftyone = pytest.importorskip("fiftyone", reason="needs the extra fiftyone: make test-integrations")
Mask = npt.NDArray[np.uint8]


def test_what_it_predicts(server: FakeTriton, ring: Mask) -> None:
    from fiftyone.core.models import Model

    from slime_client.integrations.fiftyone_model import SegmenterModel

    with SegmenterModel(server.url, "car") as model:
        assert isinstance(model, Model) and model.media_type == "image"
        found = model.predict(np.zeros((12, 20, 3), np.uint8))
    assert isinstance(found, fiftyone.Segmentation) and np.array_equal(found.mask, ring)
    assert model.mask_targets == {1: "body", 2: "wheel"}


def test_applied_to_a_data_set(server: FakeTriton, ring: Mask, tmp_path: Path) -> None:
    from slime_client.integrations.fiftyone_model import SegmenterModel

    for name in ("a", "b"):
        Image.new("RGB", (20, 12)).save(tmp_path / f"{name}.png")
    try:
        dataset = fiftyone.Dataset.from_images_dir(str(tmp_path))
    except fiftyone.core.config.FiftyOneConfigError:
        pytest.skip("FiftyOne finds no MongoDB here; set FIFTYONE_DATABASE_URI")
    with SegmenterModel(server.url, "car") as model:
        dataset.apply_model(model, label_field="parts")
        dataset.mask_targets["parts"] = model.mask_targets
    dataset.save()
    assert [np.array_equal(sample["parts"].mask, ring) for sample in dataset] == [True, True]
    assert fiftyone.load_dataset(dataset.name).mask_targets["parts"] == {1: "body", 2: "wheel"}
    dataset.delete()

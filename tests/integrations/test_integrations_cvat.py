"""The detection function as CVAT's own command loads it, and its shapes as CVAT's own code checks and decodes them."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt
import pytest
from fake_triton import FakeTriton
from PIL import Image

common = pytest.importorskip("cvat_cli._internal.common", reason="needs the extra cvat: make test-integrations")
Mask = npt.NDArray[np.uint8]

from cvat_sdk import masks, models  # noqa: E402
from cvat_sdk.auto_annotation import driver  # noqa: E402

PICTURE = Image.new("RGB", (20, 12))


def loaded(server: FakeTriton) -> driver.DetectionFunction:
    given = common.parse_function_parameter
    parameters = dict(given(each) for each in (f"url=str:{server.url}", "segmenter=str:car"))
    return common.FunctionLoader("slime_client.integrations.cvat_function", None, parameters).load()


def found(server: FakeTriton, *, polygons: bool) -> list[models.LabeledShapeRequest]:
    """What CVAT would store, for a task whose labels are numbered otherwise than the segmenter's parts."""
    function = loaded(server)
    facts = {"type": "any", "attributes": [], "sublabels": []}
    labels = [models.Label(id=number, name=name, **facts) for number, name in ((70, "wheel"), (71, "body"))]
    mapper = driver._AnnotationMapper(
        logging.getLogger(), function.spec.labels, labels, allow_unmatched_labels=False, conv_mask_to_poly=polygons
    )
    context = driver._DetectionFunctionContextImpl(frame_name="frame.jpg", conv_mask_to_poly=polygons)
    _tags, shapes = mapper.validate_and_remap(function.detect(context, PICTURE), 5)
    return shapes


def test_masks(server: FakeTriton, ring: Mask) -> None:
    shapes = found(server, polygons=False)
    assert [(shape.type.value, shape.label_id, shape.frame) for shape in shapes] == [("mask", 71, 5), ("mask", 70, 5)]
    for index, shape in enumerate(shapes, 1):
        decoded = masks.decode_mask(shape.points, image_width=20, image_height=12)
        assert np.array_equal(decoded, ring == index)


def test_polygons(server: FakeTriton) -> None:
    shapes = found(server, polygons=True)
    assert {shape.type.value for shape in shapes} == {"polygon"}
    outer = np.reshape(shapes[0].points, (-1, 2))
    assert outer.min(0).tolist() == pytest.approx([3, 2], abs=0.5)
    assert outer.max(0).tolist() == pytest.approx([17, 10], abs=0.5)


def test_nothing_is_there(server: FakeTriton) -> None:
    server.mask_of = lambda data: np.zeros((12, 20), np.uint8)
    assert found(server, polygons=False) == []

"""The widget as napari finds it by its manifest, and the layer that it makes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from fake_triton import FakeTriton

napari = pytest.importorskip("napari", reason="needs the extra napari: make test-integrations")
Mask = npt.NDArray[np.uint8]


def test_found_by_its_manifest() -> None:
    from npe2 import PluginManager

    manager = PluginManager()
    manager.discover()
    manager.activate("slime-serve")
    (contribution,) = manager.get_manifest("slime-serve").contributions.widgets
    assert manager.commands.get(contribution.command).__name__ == "widget"


def test_a_layer_of_parts(server: FakeTriton, ring: Mask) -> None:
    from slime_client.integrations.napari_widget import segment

    image = napari.layers.Image(np.zeros((12, 20, 3), np.uint8), name="photo", scale=(2, 2), rgb=True)
    data, options, kind = segment(image, server.url, "car")
    made = napari.layers.Layer.create(data, options, kind)
    assert isinstance(made, napari.layers.Labels)
    assert np.array_equal(made.data, ring) and made.name == "photo: car" and made.scale.tolist() == [2, 2]
    assert (np.array(made.get_color(1)) * 255).round().tolist() == [200, 30, 30, 255]
    assert list(made.features["part"]) == ["background", "body", "wheel"]


@pytest.mark.parametrize("shape", [(12, 20), (12, 20, 4)])
@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_what_a_layer_may_hold(server: FakeTriton, shape: tuple[int, ...], kind: type[np.generic]) -> None:
    from slime_client.integrations.napari_widget import segment

    data = (np.random.default_rng(0).random(shape) * (1 if kind is np.float32 else 65535)).astype(kind)
    assert segment(napari.layers.Image(data, rgb=len(shape) == 3), server.url, "car")[0].shape == (12, 20)


def test_a_stack_is_refused(server: FakeTriton) -> None:
    from slime_client import SegmenterError
    from slime_client.integrations.napari_widget import segment

    with pytest.raises(SegmenterError, match="choose one plane of a stack"):
        segment(napari.layers.Image(np.zeros((5, 12, 20), np.uint8)), server.url, "car")

"""The loop: the same seed gives the same embeddings, losses fall, and prediction fits what was stored."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from painting import PARTS, paint
from slime_optimize import Backbone, BackboneError, InputError, Layers, Predictor, Segmenter, Settings, attention_maps
from slime_optimize.data.annotations import Example
from slime_optimize.errors import OptimisationError
from slime_optimize.method.augmentation import views
from slime_optimize.method.run import initial_text
from slime_optimize.method.training import optimise
from slime_was import scores, segment

SHORT = Settings(steps=4)


def learn(backbone: Backbone, example: Example, settings: Settings = SHORT, seed: int = 0) -> Segmenter:
    return optimise(backbone, [example], PARTS, settings, seed=seed, progress=False)


def test_same_seed_same_embeddings(backbone: Backbone, example: Example) -> None:
    first, second = learn(backbone, example), learn(backbone, example)
    assert torch.equal(first.text_embedding, second.text_embedding)
    assert torch.equal(first.noise, second.noise)
    assert first.hash == second.hash
    other = learn(backbone, example, seed=1)
    assert not torch.equal(first.embeddings, other.embeddings)
    assert not torch.equal(first.noise, other.noise)


def test_views_do_not_depend_on_how_many_are_encoded_ahead(
    backbone: Backbone, example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = learn(backbone, example)
    monkeypatch.setattr("slime_optimize.method.augmentation._PIXELS_AT_ONCE", 1)
    torch.testing.assert_close(learn(backbone, example).embeddings, expected.embeddings, rtol=1e-3, atol=1e-3)


def test_views_used_again_are_encoded_once(
    backbone: Backbone, example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = type(backbone).encode

    def counted(self: Backbone, pixels: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        encoded.append(len(pixels))
        return encode(self, pixels, *given, **named)

    monkeypatch.setattr(type(backbone), "encode", counted)
    settings = SHORT.changed({"steps_per_view": 3, "batch_size": 2})
    whole = [latents for latents, _ in views(backbone, [example], settings, 0, 7)]
    assert sum(encoded) == 2 * 3
    assert [torch.equal(a, b) for a, b in pairwise(whole)] == [True, True, False, True, True, False]
    again = [latents for latents, _ in views(backbone, [example], settings, 0, 7, first=4)]
    assert len(again) == 3 and all(torch.equal(a, b) for a, b in zip(again, whole[4:], strict=True))


def test_only_the_parts_rows_are_learned(backbone: Backbone, example: Example) -> None:
    start = initial_text(backbone, SHORT, 3)
    fewer = initial_text(backbone, SHORT.changed({"prompt_times": "parts"}), 3)
    assert torch.equal(fewer, backbone.encode_text("part part part").float()) and not torch.equal(fewer, start)
    after = learn(backbone, example).text_embedding
    changed = (start != after).any(-1)[0].nonzero().flatten().tolist()
    assert changed == [1, 2]


@pytest.mark.parametrize("kind", ["maps", "logits"])
def test_losses_fall(loaded: dict[str, Backbone], example: Example, kind: str) -> None:
    still = {"flip": 0.0, "crop": (1.0, 1.0), "rotation": 0.0, "t_opt": (50, 50), "cross_entropy": kind}
    first = learn(loaded["sd21"], example, Settings(steps=1).changed(still)).metrics["losses"]
    last = learn(loaded["sd21"], example, Settings(steps=40).changed(still)).metrics["losses"]
    assert last["ce"] < first["ce"] - 0.1


def test_several_images_and_views_per_step(loaded: dict[str, Backbone]) -> None:
    examples = [Example(name=str(i), image_HW3=paint(i)[0], mask_HW=paint(i)[1], digest=str(i)) for i in range(3)]
    settings = Settings(epochs=2, batch_size=2)
    made = optimise(loaded["sd15"], examples, PARTS, settings, progress=False)
    assert made.training_images == ("0", "1", "2")
    assert made.metrics["training"]["images"] == 3


def test_bad_runs_end_in_one_line(loaded: dict[str, Backbone], example: Example) -> None:
    with pytest.raises(OptimisationError, match="try a learning rate under"):
        learn(loaded["sd15"], example, Settings(steps=5, learning_rate=1e37))
    with pytest.raises(BackboneError, match="not in this UNet"):
        learn(loaded["sd15"], example, Settings(layers=Layers(cross=("nowhere.attn2",))))
    with pytest.raises(InputError, match="got no image"):
        optimise(loaded["sd15"], [], PARTS, SHORT, progress=False)


def test_prediction_is_the_servers_arithmetic(backbone: Backbone, example: Example) -> None:
    """Masks by the averaged maps and slime_was alone, as the served graph computes them."""
    segmenter = replace(learn(backbone, example), settings=SHORT.changed({"threshold": 0.3}))
    predictor = Predictor(segmenter, backbone)
    latents = predictor.latents([example.image_HW3])
    t_test = torch.tensor(segmenter.settings.t_test)
    noised = backbone.add_noise(latents, segmenter.noise, t_test)
    with torch.no_grad():
        maps = attention_maps(backbone.unet, noised, t_test, segmenter.text_embedding, 3, segmenter.settings.layers)
    postprocess = segmenter.settings.postprocess(backbone.image_size)
    expected = scores(maps.cross_BPhw.numpy(), maps.self_BNN.numpy(), postprocess)
    mask = segment(expected, 70, 90)
    assert mask.shape == example.mask_HW.shape and mask.dtype == np.uint8
    assert float((predictor.mask(example.image_HW3) == mask).mean()) >= 0.999
    np.testing.assert_allclose(predictor.scores([example.image_HW3])[0], expected, atol=1e-5)


def test_images_of_any_sizes_in_batches(loaded: dict[str, Backbone], example: Example) -> None:
    predictor = Predictor(learn(loaded["sd15"], example), loaded["sd15"])
    images = [example.image_HW3[: 30 + i, : 50 - i] for i in range(10)]
    masks = predictor.masks(images, use_was=False)
    assert [mask.shape for mask in masks] == [image.shape[:2] for image in images]
    assert float((predictor.mask(images[9], use_was=False) == masks[9]).mean()) >= 0.999


def test_another_backbone_is_refused(loaded: dict[str, Backbone], example: Example) -> None:
    made = learn(loaded["sd15"], example)
    with pytest.raises(BackboneError, match="optimise again"):
        Predictor(made, loaded["sd21"])

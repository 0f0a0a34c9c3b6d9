"""The maps are the UNet's own attention, and WAS without an N x N map equals eq. 6 with one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from slime_optimize import Backbone, BackboneError, InputError, Layers, attend, attention_maps
from slime_optimize.method.attention import weighted_maps
from slime_optimize.method.processors import AttentionStore, WholeMaps, accumulate_pairs, install
from slime_was import accumulate

PARTS = 5
T = torch.tensor(100)


@pytest.fixture
def inputs(backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Latents of batch 3, text of batch 1."""
    chance = torch.Generator().manual_seed(0)
    side = backbone.latent_size
    latents = torch.randn(3, 4, side, side, generator=chance)
    return latents, torch.randn(1, 77, backbone.text_width, generator=chance)


def test_processors_do_not_change_the_unets_output(backbone: Backbone, inputs: tuple[Tensor, Tensor]) -> None:
    latents, text = inputs
    with torch.no_grad():
        before = backbone.unet(latents, T, encoder_hidden_states=text.expand(3, -1, -1)).sample
        maps = attend(backbone.unet, latents, T, text, PARTS, Layers())
        after = backbone.unet(latents, T, encoder_hidden_states=text.expand(3, -1, -1)).sample
    torch.testing.assert_close(maps.predicted_B4hw, before, rtol=1e-4, atol=1e-5)
    assert torch.equal(before, after)


def test_full_self_attention_does_not_change_the_output(backbone: Backbone, inputs: tuple[Tensor, Tensor]) -> None:
    latents, text = inputs
    before = dict(backbone.unet.attn_processors)
    with torch.no_grad():
        expected = backbone.unet(latents, T, encoder_hidden_states=text.expand(3, -1, -1)).sample
        empty = AttentionStore(layers=Layers(), num_parts=PARTS, size=(16, 16))
        store = install(backbone.unet, empty, WholeMaps)
        found = backbone.unet(latents, T, encoder_hidden_states=text).sample
    backbone.unet.set_attn_processor(before)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert set(store.cross) == set(Layers().cross) and store.self_mean.shape == (3, 256, 256)
    store.clear()
    assert not store.cross and store.self_ is None


def test_maps_sum_to_one(backbone: Backbone, inputs: tuple[Tensor, Tensor]) -> None:
    latents, text = inputs
    with torch.no_grad():
        maps = attention_maps(backbone.unet, latents, T, text, 77, Layers())
    pixels = backbone.latent_size**2
    assert maps.cross_BPhw.shape == (3, 77, backbone.latent_size, backbone.latent_size)
    assert maps.self_BNN.shape == (3, pixels, pixels)
    torch.testing.assert_close(maps.cross_BPhw.sum(1), torch.ones(3, 16, 16))
    torch.testing.assert_close(maps.self_BNN.sum(-1), torch.ones(3, pixels))


def test_cross_maps_are_the_layers_own(backbone: Backbone, inputs: tuple[Tensor, Tensor]) -> None:
    """Recomputed from a layer's inputs with diffusers' own get_attention_scores, resized and averaged."""
    latents, text = inputs
    seen: dict[str, Tensor] = {}
    hooks = []
    for name in Layers().cross:
        module = backbone.unet.get_submodule(name)

        def remember(attn: torch.nn.Module, args: tuple[Tensor], name: str = name) -> None:
            query = attn.head_to_batch_dim(attn.to_q(args[0]))  # type: ignore[operator]
            key = attn.head_to_batch_dim(attn.to_k(text.expand(3, -1, -1)))  # type: ignore[operator]
            scores = attn.get_attention_scores(query, key)  # type: ignore[operator]
            seen[name] = scores.view(3, -1, *scores.shape[1:]).mean(1).transpose(1, 2)

        hooks.append(module.register_forward_pre_hook(remember))
    with torch.no_grad():
        maps = attention_maps(backbone.unet, latents, T, text, PARTS, Layers())
    for hook in hooks:
        hook.remove()
    resized = []
    for layer in seen.values():
        side = int(layer.shape[-1] ** 0.5)
        resized.append(torch.nn.functional.interpolate(layer.reshape(3, 77, side, side), (16, 16), mode="bilinear"))
    expected = torch.stack(resized).mean(0)[:, :PARTS]
    torch.testing.assert_close(maps.cross_BPhw, expected, rtol=1e-4, atol=1e-6)


def test_was_equals_the_accumulated_maps(backbone: Backbone, inputs: tuple[Tensor, Tensor]) -> None:
    latents, text = inputs
    with torch.no_grad():
        full = attention_maps(backbone.unet, latents, T, text, PARTS, Layers())
        light = attend(backbone.unet, latents, T, text, PARTS, Layers())
        was = light.accumulate(light.cross_BPhw)
    torch.testing.assert_close(light.cross_BPhw, full.cross_BPhw)
    torch.testing.assert_close(light.logits_BPhw, full.logits_BPhw)
    expected = accumulate(full.cross_BPhw.flatten(2), full.self_BNN)
    torch.testing.assert_close(was.flatten(2), expected, rtol=1e-4, atol=1e-6)


def test_maps_over_the_parts_alone(backbone: Backbone, inputs: tuple[Tensor, Tensor]) -> None:
    latents, text = inputs
    with torch.no_grad():
        full = attention_maps(backbone.unet, latents, T, text, PARTS, Layers())
        light = attend(backbone.unet, latents, T, text, PARTS, Layers(), over_parts=True)
        was = light.accumulate(light.cross_BPhw)
    expected = accumulate(full.logits_BPhw.softmax(1).flatten(2), full.self_BNN)
    torch.testing.assert_close(was.flatten(2), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("parts", [1, 7, 8, 20])
def test_parts_beyond_the_head_width_ride_in_groups(parts: int) -> None:
    chance = torch.Generator().manual_seed(1)
    query, key = (torch.randn(2, 3, 16, 8, generator=chance) for _ in range(2))
    cross = torch.rand(2, parts, 4, 4, generator=chance)
    probs = (query @ key.transpose(-1, -2)).softmax(-1).mean(1)
    expected = accumulate(cross.flatten(2), probs).reshape(cross.shape)
    torch.testing.assert_close(accumulate_pairs(query, key, cross), expected)


def test_maps_depend_on_nothing_else_in_the_batch(backbone: Backbone, inputs: tuple[Tensor, Tensor]) -> None:
    latents, text = inputs
    with torch.no_grad():
        maps = [attend(backbone.unet, each, T, text, PARTS, Layers()) for each in (latents, latents[1:2])]
        together, alone = (each.accumulate(each.cross_BPhw) for each in maps)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-6)


def test_gradients_reach_the_text(backbone: Backbone, inputs: tuple[Tensor, Tensor]) -> None:
    latents, text = inputs
    for maps_of in (attention_maps, attend):
        leaf = text.clone().requires_grad_(True)
        maps = maps_of(backbone.unet, latents[:1], T, leaf, PARTS, Layers())
        torch.autograd.backward(maps.cross_BPhw[:, 1].sum())
        assert leaf.grad is not None and bool(leaf.grad[0, 1].abs().sum() > 0)


def test_unknown_layer_lists_what_exists(backbone: Backbone) -> None:
    layers = Layers(cross=("up_blocks.9.attentions.0.transformer_blocks.0.attn2",))
    with pytest.raises(BackboneError, match=r"up_blocks\.9.*up_blocks\.2\.attentions\.\[0,1,2\]") as caught:
        layers.validate(backbone.unet)
    assert "\n" not in str(caught.value)


def test_self_layer_below_the_top_level_is_refused(backbone: Backbone, inputs: tuple[Tensor, Tensor]) -> None:
    layers = Layers(self_=("up_blocks.2.attentions.0.transformer_blocks.0.attn1",))
    for maps_of in (attention_maps, attend):
        with pytest.raises(BackboneError, match="64 positions, expected the latents' 16x16"):
            maps_of(backbone.unet, *_one(inputs), PARTS, layers)


@pytest.mark.parametrize("cross", [(), ("a.attn1",), ("a.attn2", "a.attn2")])
def test_layer_names_are_checked(cross: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="cross layer"):
        Layers(cross=cross)


def _one(inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return inputs[0][:1], T, inputs[1]


LATE = "up_blocks.3.attentions.{}.transformer_blocks.0.attn2"


@pytest.mark.parametrize("late", [(), (0,), (1,), (0, 2)], ids=str)
@pytest.mark.parametrize("over_parts", [False, True])
def test_cross_maps_ride_through_the_layers_that_come_after_them(
    backbone: Backbone, inputs: tuple[Tensor, Tensor], late: tuple[int, ...], over_parts: bool
) -> None:
    layers = Layers(cross=(*Layers().cross, *(LATE.format(each) for each in late)))
    given = (backbone.unet, inputs[0], T, inputs[1], PARTS, layers)
    with torch.no_grad():
        cross, was = weighted_maps(*given, over_parts=over_parts)
        light = attend(*given, over_parts=over_parts)
    torch.testing.assert_close(cross, light.cross_BPhw, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(was, light.accumulate(light.cross_BPhw), rtol=1e-4, atol=1e-6)

"""What training asks of cross-attention: one key for all layers, words that cost, captions told to one level alone."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTokenizer

from slime_backbone.grounding import LEAST, BatchCaptions, install, share_keys
from slime_backbone.models import HEADS, WIDTH, build_text_encoder, build_unet, lead

NAMES = {"words", "idle", "least", "size", "even"}


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return build_unet().eval().requires_grad_(False)


def captions(level: int, *, alone: bool = True) -> BatchCaptions:
    idle = torch.zeros(2, 77)
    idle[:, 10:] = 1
    chance = torch.Generator().manual_seed(0)
    return BatchCaptions(
        idle_BT=idle, alone_B=torch.tensor([alone] * 2), level_B=torch.tensor([level] * 2), chance=chance
    )


def answer(unet: UNet2DConditionModel, text: torch.Tensor) -> torch.Tensor:
    latents = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    result: torch.Tensor = unet(latents, torch.tensor([200, 200]), text).sample
    return result


def test_nothing_changes_where_nobody_is_told(unet: UNet2DConditionModel) -> None:
    text = torch.randn(2, 77, WIDTH)
    plain = answer(unet, text)
    heard = copy.deepcopy(unet)
    install(heard)
    torch.testing.assert_close(answer(heard, text), plain, rtol=1e-4, atol=1e-4)


def test_a_forward_pass_leaves_every_cost_of_every_layer(unet: UNet2DConditionModel) -> None:
    heard = copy.deepcopy(unet)
    attention = install(heard)
    attention.captions = captions(3)
    answer(heard, torch.randn(2, 77, WIDTH))
    found = attention.captions
    assert set(found.costs) == NAMES
    assert {len(costs) for costs in found.costs.values()} == {16}
    assert 0 < found.cost("idle") < found.cost("words") < 1 and 0 <= found.cost("even") <= 1
    assert 0 <= found.cost("least") <= math.log(LEAST / 1e-6)


def test_a_caption_that_is_told_to_no_level_is_not_heard(unet: UNet2DConditionModel) -> None:
    """Only the first token is the same in both texts, and all that level 0 of the up blocks could tell."""
    heard = copy.deepcopy(unet)
    attention = install(heard)
    one, other = torch.randn(2, 2, 77, WIDTH)
    other[:, 0] = one[:, 0]
    for level, same in ((9, True), (2, False)):
        answers = []
        for text in (one, other):
            attention.captions = captions(level)
            answers.append(answer(heard, text))
        assert torch.equal(*answers) == same


def test_keys_that_began_alike_stay_alike(unet: UNet2DConditionModel) -> None:
    trained = copy.deepcopy(unet).requires_grad_(True)
    optimiser = torch.optim.AdamW(trained.parameters(), lr=1e-3)
    answer(trained, torch.randn(2, 77, WIDTH)).square().mean().backward()
    share_keys(trained)
    optimiser.step()
    keys = [m.to_k.weight.view(m.heads, -1, WIDTH) for n, m in trained.named_modules() if n.endswith("attn2")]
    assert {len(key) for key in keys} == set(HEADS)
    assert all(torch.equal(head, keys[0][0]) for key in keys for head in key)
    assert not torch.equal(keys[0][0], next(m for n, m in unet.named_modules() if n.endswith("attn2")).to_k.weight[:48])


def test_the_first_token_leads_at_the_start(unet: UNet2DConditionModel, tokenizer: CLIPTokenizer) -> None:
    led = copy.deepcopy(unet)
    text_encoder = build_text_encoder(tokenizer).eval()
    lead(led, text_encoder)
    prompt = tokenizer(["a car , red body"] * 2, padding="max_length", max_length=77, return_tensors="pt").input_ids
    shares = []
    for each in (unet, led):
        attention = install(each)
        attention.captions = captions(3, alone=False)
        with torch.no_grad():
            answer(each, text_encoder(prompt)[0])
        shares.append(1 - float(attention.captions.cost("words")))
    assert shares[1] > 2 * shares[0]

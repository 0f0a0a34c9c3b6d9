"""Train the UNet and its text encoder together: denoise latents, told by captions what is where.

The latents that are noised are often those of the same drawing in other colours than the caption's, so that the
caption must be asked at any noise, also where the picture shows its colours, as at the timesteps that segmenters use.
grounding.py says what else makes words attend where they apply.

On CUDA the corpus lives on the device, the forward pass runs in bfloat16, a step is one graph, and nothing waits for a
loss to be read; on a CPU everything is float32.

Legend: B batch, M pictures, T tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from slime_backbone.corpus import COLOURINGS
from slime_backbone.grounding import BatchCaptions, GroundedAttention, effective_tokens, install, share_keys
from slime_backbone.models import FILLER, LENGTH, build_text_encoder, build_unet, lead
from slime_backbone.training import Figures, Run, share

DROP_CAPTION = 0.1
FILL_CAPTION = 0.35  # captions that go on with FILLER in place of padding
ALONE = 0.6  # captions that reach the UNet through one level of its up blocks
LEVELS = (0.15, 0.4, 0.45)  # how often each: 8 x 8, 16 x 16, 32 x 32
LOW = (50, 500)  # half of the timesteps are among these, about those that segmenters use


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the device decides: its batch, and the rate and warm-up that suit the batch. And what attention costs."""

    batch: int = 16
    rate: float = 8e-4
    warmup: int = 100
    costs: dict[str, float] = field(
        default_factory=lambda: {"words": 0.01, "idle": 0.05, "least": 0.02, "size": 1e-4, "even": 0.05}
    )

    def __post_init__(self) -> None:
        if self.batch < 1 or self.rate <= 0 or self.warmup < 1:
            raise ValueError(f"recipe: got {self}, expected a batch and warm-up of at least 1 and a positive rate")

    @classmethod
    def for_device(cls, device: torch.device) -> Recipe:
        """Return what suits the device, as measured on CPUs and on an H200, where a step of 256 takes 87 ms."""
        return cls(batch=256, rate=1.5e-3, warmup=200) if device.type == "cuda" else cls()


def train_diffusion(
    latents_M4hw: NDArray[np.float16],
    captions: list[str],
    tokenizer: CLIPTokenizer,
    scheduler: DDIMScheduler,
    folder: Path,
    steps: int,
    device: torch.device,
    *,
    recipe: Recipe,
    seconds: float = math.inf,
) -> int:
    """Train up to step `steps` or for `seconds`; the state is in `folder`/diffusion.pt; gives the step reached."""
    torch.manual_seed(0)
    unet, text_encoder = build_unet(), build_text_encoder(tokenizer)
    lead(unet, text_encoder)
    modules = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder}).to(device)
    cuda = device.type == "cuda"
    # On CUDA the rate is a tensor, which a graph reads anew at every replay.
    rate = torch.tensor(recipe.rate, device=device) if cuda else recipe.rate
    optimiser = torch.optim.AdamW(
        modules.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.0, fused=cuda, capturable=cuda
    )
    run = Run(
        modules=modules,
        optimiser=optimiser,
        path=folder / "diffusion.pt",
        peak_rate=recipe.rate,
        warmup=recipe.warmup,
        facts={"batch": recipe.batch, "rate": recipe.rate, "scenes": len(latents_M4hw)},
        mend_gradients=lambda: share_keys(unet),
        graphed=cuda,
    )
    loss_of = Denoising(
        latents_M4hw=torch.from_numpy(latents_M4hw).to(device),
        tokens_2MT=torch.tensor(
            [tokens(tokenizer, ["", *captions], filled) for filled in (False, True)], device=device
        ),
        unet=unet,
        text_encoder=text_encoder,
        scheduler=scheduler,
        recipe=recipe,
        attention=install(unet),
    )
    run.watch = loss_of.watch
    run.go(steps, loss_of, seconds)
    return run.step


@dataclass(kw_only=True)
class Denoising:
    """The loss of one batch.

    Column 0 of `tokens_2MT` is the empty caption, m + 1 belongs to picture m; row 0 is padded, row 1 filled up.
    """

    latents_M4hw: torch.Tensor
    tokens_2MT: torch.Tensor
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    scheduler: DDIMScheduler
    recipe: Recipe
    attention: GroundedAttention

    def __post_init__(self) -> None:
        self.device = self.latents_M4hw.device
        self.cuda = self.device.type == "cuda"
        self.levels = self.scheduler.alphas_cumprod.to(self.device)
        # Tokens after a caption's own: where its padded and its filled-up form differ, and the last.
        self.idle_MT = self.tokens_2MT[0] != self.tokens_2MT[1]
        self.idle_MT[:, -1] = True
        # In a graph the device's own generator goes on from replay to replay; elsewhere a step's chance is its own.
        self.chance = None if self.cuda else torch.Generator()
        self.seeds = [102, share()[0]]

    def __call__(self, step: int) -> tuple[torch.Tensor, Figures]:
        if self.chance is not None:
            self.chance.manual_seed(int(np.random.default_rng([*self.seeds, step]).integers(2**62)))
        noisy, times, target, words_BT = self._batch(self.recipe.batch // share()[1])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.cuda):
            text_BTD = self.text_encoder(words_BT)[0]
            answer = self.unet(noisy, times, text_BTD).sample
        captions = self.attention.captions
        assert captions is not None
        error = functional.mse_loss(answer.float(), target)
        loss = error + sum(weight * captions.cost(name) for name, weight in self.recipe.costs.items())
        figures: dict[str, float | torch.Tensor] = {
            "error": error.detach(),
            **{name: captions.cost(name).detach() for name in ("words", "idle", "even")},
        }
        self.attention.captions = None
        return loss, figures

    def watch(self) -> dict[str, float]:
        """Return how many tokens attention looks at; called outside of any graph."""
        noisy, times, _, words_BT = self._batch(4)
        self.attention.captions = None
        with torch.no_grad():
            return effective_tokens(self.unet, noisy, times, self.text_encoder(words_BT)[0])

    def _batch(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return noised latents, timesteps, velocities to answer and token ids; the attention gets their captions."""
        dice = self._dice(6, count)
        drawing = (dice[0] * (len(self.latents_M4hw) // COLOURINGS)).long() * COLOURINGS
        seen, meant = drawing + self._colouring(count), drawing + self._colouring(count)
        mute = dice[1] < DROP_CAPTION
        seen = torch.where(mute, meant, seen)  # nothing would say which other colours are meant
        said = torch.where(mute, 0, meant + 1)
        times = timesteps(dice[2], dice[3], torch.randn(count, device=self.device, generator=self.chance))
        clean, other = self.latents_M4hw[meant].float(), self.latents_M4hw[seen].float()
        noise = torch.randn(clean.shape, device=self.device, generator=self.chance)
        signal, spread = (x.sqrt().view(-1, 1, 1, 1) for x in (self.levels[times], 1 - self.levels[times]))
        level = 1 + (dice[4] > LEVELS[0]).long() + (dice[4] > LEVELS[0] + LEVELS[1]).long()
        filled = (self._dice(1, count)[0] < FILL_CAPTION).long()
        self.attention.captions = BatchCaptions(
            idle_BT=self.idle_MT[said].float(), alone_B=dice[5] < ALONE, level_B=level, chance=self.chance
        )
        noisy, target = signal * other + spread * noise, signal * noise - spread * clean
        return noisy, times, target, self.tokens_2MT[filled, said]

    def _dice(self, *shape: int) -> torch.Tensor:
        return torch.rand(shape, device=self.device, generator=self.chance)

    def _colouring(self, count: int) -> torch.Tensor:
        return torch.randint(COLOURINGS, (count,), device=self.device, generator=self.chance)


def timesteps(dice_B: torch.Tensor, place_B: torch.Tensor, normal_B: torch.Tensor) -> torch.Tensor:
    """Return timesteps, (B,) int64, from numbers that are uniform in [0, 1) and one that is normal.

    Half of them LOW, for the maps are read there; a third high, where only the caption tells colours; others anywhere.
    """
    low = LOW[0] + place_B * (LOW[1] - LOW[0])
    high = 1000 * torch.sigmoid(0.6 + normal_B)
    chosen = torch.where(dice_B < 0.5, low, torch.where(dice_B < 0.85, high, 1000 * place_B))
    return chosen.long().clamp(0, 999)


def tokens(tokenizer: CLIPTokenizer, prompts: list[str], filled: bool = False) -> list[list[int]]:
    """Return LENGTH token ids per prompt, cut and padded as Stable Diffusion does, or filled up with FILLER."""
    texts = [f"{prompt} {' '.join([FILLER] * LENGTH)}" for prompt in prompts] if filled else prompts
    ids: list[list[int]] = tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True).input_ids
    return ids

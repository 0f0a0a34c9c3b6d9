"""The model card: what the embedded backbone is, told from its weights and its training's state and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from slime_backbone.corpus import COLOURINGS
from slime_backbone.pictures import watched
from slime_backbone.scene import COUNTS, KINDS, SIZE, colourings, parts_of
from slime_backbone.training import read_state
from slime_backbone.words import TIMESTEP, Layer
from slime_optimize.backbone import Backbone
from slime_optimize.files import write_text

RECENT = 500  # steps that a stated loss is the mean of
_WEIGHTS = dict.fromkeys(("unet", "vae", "tiny_vae"), "diffusion_pytorch_model") | {"text_encoder": "model"}


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training as its state tells it; `scenes` are the sizes of the corpora that were drawn for it."""

    step: int
    history: list[dict[str, float]]
    sessions: list[dict[str, Any]]
    scenes: list[int]

    @property
    def recorded_from(self) -> int:
        """The step from which the state says what trained it."""
        return int(self.sessions[0]["first"]) if self.sessions else self.step


def read_training(state: Path, name: str) -> Training:
    """Of `state`/`name`.pt. Raises TrainingError when it is not there."""
    stored = read_state(state / f"{name}.pt")
    sessions = json.loads(stored.get("sessions", "[]"))
    found = {int(m[1]) for p in state.glob("latents-*.npz") if (m := re.fullmatch(r"latents-(\d+)\.npz", p.name))}
    scenes = sorted(found | {s["scenes"] for s in sessions if "scenes" in s})
    return Training(step=stored["step"], history=json.loads(stored["history"]), sessions=sessions, scenes=scenes)


def recent(history: Sequence[Mapping[str, float]], key: str) -> float | None:
    """The mean of a figure over the last RECENT steps of those that have it."""
    values = [h[key] for h in history if key in h and h["step"] > history[-1]["step"] - RECENT]
    return float(np.mean(values)) if values else None


def parameters(weights: Path, part: str) -> int:
    """How many numbers the part's safetensors hold."""
    count = 0
    for path in sorted((weights / part).glob(f"{_WEIGHTS[part]}*.safetensors")):
        with safe_open(path, "np") as tensors:
            count += sum(int(np.prod(tensors.get_slice(key).get_shape())) for key in tensors.keys())  # noqa: SIM118
    return count


def write_card(
    path: Path,
    *,
    backbone: Backbone,
    weights: Path,
    vae: Training,
    diffusion: Training,
    vae_error: float,
    words: Mapping[str, Layer],
    sampling: str,
    ran_on: str,
) -> None:
    """Everything in card.md. `vae_error` is in grey levels of 255; `ran_on` is for steps of no recorded device.

    `words` are what words.found_by_words returns.
    """
    sections = (
        _what(weights),
        _architecture(backbone, weights),
        _data(diffusion),
        _training(vae, diffusion, vae_error, ran_on),
        words_section(words),
        *_tiny(weights),
        _samples(sampling),
        _USE,
    )
    write_text(path, "\n\n".join(sections) + "\n")


def _what(weights: Path) -> str:
    size = sum(p.stat().st_size for p in weights.rglob("*") if p.is_file()) / 1e6
    return f"""# The embedded backbone

A small latent diffusion model that is Stable Diffusion in everything but size: the same classes, block types and
folder layout, loaded by the same code. {size:.1f} MB in half-precision safetensors, in `backbone/weights`. It exists so
that the project can be tried and tested without a download.

**It knows only PartScenes**, drawn cars, horses and faces. For photographs give `--backbone` a real checkpoint.

Written by `backbone/card.py` from the weights and from the training's state."""


def _architecture(backbone: Backbone, weights: Path) -> str:
    unet, vae, text = backbone.unet.config, backbone.vae.config, backbone.text_encoder.config
    cross = sum(name.endswith("attn2") for name, _ in backbone.unet.named_modules())
    rows = (
        f"| UNet | {parameters(weights, 'unet'):,} | {_list(unet.block_out_channels)} channels, "
        f"{_list(unet.attention_head_dim)} heads, {cross} cross-attention layers |",
        f"| VAE | {parameters(weights, 'vae'):,} | {_list(vae.block_out_channels)} channels, "
        f"scaling {vae.scaling_factor:.4f} |",
        f"| text encoder | {parameters(weights, 'text_encoder'):,} | {text.num_hidden_layers} layers, "
        f"{text.hidden_size} wide, {text.max_position_embeddings} tokens, vocabulary of {text.vocab_size} |",
    )
    size, side = backbone.image_size, backbone.latent_size
    return f"""## Architecture

| part | parameters | |
|---|---|---|
{chr(10).join(rows)}

Images of {size} x {size} pixels, latents of {side} x {side} x {vae.latent_channels}.
Down blocks {_list(unet.down_block_types)};
up blocks {_list(unet.up_block_types)}.
`{backbone.scheduler.config.prediction_type}` over {backbone.scheduler.config.num_train_timesteps} timesteps.
Content hash `{backbone.hash[:16]}`."""


def _data(diffusion: Training) -> str:
    classes = "\n".join(f"- {kind}: {', '.join(parts_of(kind))}" for kind in KINDS)
    scenes = " and then ".join(f"{n:,}" for n in diffusion.scenes) or "a number that the state does not record of"
    held = ", ".join(f"{split} ({count})" for split, count in COUNTS.items())
    return f"""## Data

{scenes} pictures of PartScenes' `backbone` split, the classes in equal numbers, {SIZE} px:
**images and captions only**. The masks that the generator also draws are thrown away before anything is written; no
part of the training sees one. Every drawing is there in {COLOURINGS} colourings, and the latents of one are denoised to
the caption of another: pairs of pictures that differ in the colours of their parts alone.

{classes}

A caption names the class and binds colours to parts, such as
`{colourings("car", 0, 1)[0].caption}`.
The splits that are evaluated, for each class {held},
are drawn from other seeds and were never trained on."""


def _training(vae: Training, diffusion: Training, vae_error: float, ran_on: str) -> str:
    figures = [f"- denoising loss {_number(recent(diffusion.history, 'loss'))}, mean of the last {RECENT} steps"]
    for name in watched(diffusion.history):
        last = [h for h in diffusion.history if name in h][-1]
        figures.append(f"- effective tokens of `{name}`: {last[name]:.1f} at step {last['step']:.0f}")
    figures.append(
        f"- VAE: L1 {_number(recent(vae.history, 'l1'))} on pixels in [-1, 1], mean of the last {RECENT} steps; "
        f"{vae_error:.2f} of 255 grey levels mean error on validation scenes"
    )
    return f"""## Training

{_stretches("VAE", vae, ran_on)}
{_stretches("UNet and text encoder together", diffusion, ran_on)}

AdamW, a trapezoid of a learning rate, the average of the weights (EMA) is what is kept.

{chr(10).join(figures)}

![Loss and effective tokens over the steps](loss.png)

Self-attention that looks at every token alike is worthless to SLiMe, so the exponential of its rows' mean entropy, the
effective number of tokens, is watched beside the loss."""


def words_section(words: Mapping[str, Layer]) -> str:
    """What the card says of cross-attention."""
    rows = [f"| {name} | {of.first:.2f} | {of.tokens:.2f} | {of.auc:.2f} |" for name, of in words.items()]
    sink = np.mean([of.first for of in words.values()])
    return f"""## What its words find

Cross-attention on validation scenes, each with its own caption, at t = {TIMESTEP}: means over heads and pixels. In
Stable Diffusion the first token draws 0.9 to 0.99 of it, and so is the map of the background; here {sink:.2f}.
Effective tokens are the exponential of the rows' mean entropy. The last column tells how well a part's two words
("red wheel") find it: the area under the ROC curve of their map against the part's mask, 0.5 by chance. Masks are for
measuring alone.

| cross layer | first token | effective tokens | area under the curve |
|---|---|---|---|
{chr(10).join(rows)}"""


def _tiny(weights: Path) -> list[str]:
    """Nothing where there is no tiny encoder."""
    path = weights / "tiny_vae" / "training.json"
    if not path.exists():
        return []
    told = json.loads(path.read_text())
    tiny, kl = (told["multiplications"][name] / 1e6 for name in ("tiny", "kl"))
    sessions = "\n".join(f"- {_session(s)}" for s in told["sessions"] if s["last"] > s["first"])
    return [
        f"""## Tiny encoder

`tiny_vae`, for `--encoder tiny`, is an AutoencoderTiny of {parameters(weights, "tiny_vae"):,} parameters that gives the
VAE's latents for {tiny:.0f} million multiply-accumulates a picture in place of {kl:.0f} ({kl / tiny:.1f} times fewer).
Taught by `backbone/distil.py`, on scenes and on mirrored, turned, cropped and recoloured views of them, in
{told["step"]:,} steps:

{sessions}

Its latents of validation scenes are {100 * told["relative_error"]:.1f} % off: root mean square of the difference over
that of the latents. Nothing decodes with it: its decoder is zero."""
    ]


def _stretches(name: str, training: Training, ran_on: str) -> str:
    lines = [f"- {name}: {training.step:,} steps"]
    if training.recorded_from > 0:
        lines.append(f"  - steps 1 to {training.recorded_from:,}: {ran_on}")
    lines += [f"  - {_session(s)}" for s in training.sessions if s["last"] > s["first"]]
    return "\n".join(lines)


def _session(one: Mapping[str, Any]) -> str:
    return (
        f"steps {one['first'] + 1:,} to {one['last']:,}: {one['device']}, {one['processes']} process(es) of "
        f"{one['threads']} CPU thread(s), batch {one.get('batch', '?')}, rate {one.get('rate', '?')}, "
        f"{one.get('scenes', 0):,} scenes, {one['seconds'] / 60:.0f} min"
    )


def _samples(sampling: str) -> str:
    return f"""## Samples

{sampling}

![Samples, each over its prompt](samples.png)

![Scenes through the VAE and back](reconstructions.png)"""


_USE = """## Train it again

    python backbone/train.py --state build/backbone --out backbone/weights     # stops and resumes at any moment
    backbone/train.sh                                                          # for a time; results in shards
    python backbone/distil.py --weights backbone/weights                       # the tiny encoder of the VAE
    python backbone/card.py --state build/backbone --weights backbone/weights  # this page

`train.sh` is for a rented GPU. What has run is listed under Training; [what was tried](trials.md) tells how, and what
it gave, layer by layer.

## Limits

- It knows only PartScenes: three classes, flat drawn shapes, the colour words of its captions, one picture size.
- Its pictures are no end in themselves: what is used are its attention maps and features.
- Figures reached with it say how the method behaves on PartScenes, not on photographs.

## Licence

MIT, weights and data alike: both are made by this repository's code, from nothing else."""


def _list(values: Any) -> str:
    return ", ".join(str(v) for v in values) if isinstance(values, list | tuple) else str(values)


def _number(value: float | None) -> str:
    return "not recorded" if value is None else f"{value:.4f}"

"""What a segmenter becomes in the shared form: the group whose UNet serves it, and its file.

The group's graph holds what its segmenters have in common; their files hold the rest. So many segmenters of one kind
of settings, on one backbone, are served by one UNet, and publishing one of them loads no model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from slime_export.graph.onnx_export import Signature
from slime_export.graph.tracing import LATENT_CHANNELS
from slime_export.proof.session import OnnxModel
from slime_optimize.method.prediction import passes
from slime_optimize.segmenter import Segmenter
from slime_repository.contract import map_names
from slime_repository.shared_contract import Group, most_parts, unet_inputs
from slime_repository.variant import Variant
from slime_store import Entry
from slime_was.tensors import ACCUMULATED, CROSS, LATENTS, POSTPROCESS

Array = npt.NDArray[np.float32]
# Raised when the graph of a group changes, so that new segmenters get a new one.
GENERATION = 1


def group_of(segmenter: Segmenter, variant: Variant) -> Group:
    """The group that can serve `segmenter` in this form."""
    most = most_parts(len(segmenter.parts))
    common = {
        "generation": GENERATION,
        "backbone": segmenter.backbone_hash,
        "most_parts": most,
        "passes": [[turn.timestep, turn.sample, turn.mirrored] for turn in passes(segmenter.settings)],
        "variant": variant.parameters(),
        **_of_graph(segmenter),
    }
    return Group(
        key=hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()[:8],
        most_parts=most,
        noise_samples=segmenter.settings.noise_samples,
        text_width=int(segmenter.text_embedding.shape[-1]),
        latent_channels=LATENT_CHANNELS,
        latent_size=segmenter.latent_size,
        variant=variant,
    )


def _of_graph(segmenter: Segmenter) -> dict[str, Any]:
    """Settings that shape the graph. What suppression does depends on the threshold, so that counts with it."""
    settings = segmenter.settings.as_json()
    names = ["layers", "readout", "suppress_first_part"]
    names += ["threshold", "drop_background"] if settings["suppress_first_part"] else []
    return {name: settings[name] for name in names}


def entry_of(segmenter: Segmenter, group: Group, facts: Mapping[str, str]) -> Entry:
    """The segmenter's file. facts: what clients read of it, as the ensemble of a baked one has it in its parameters."""
    postprocess = segmenter.settings.postprocess(segmenter.image_size)
    return Entry(
        text_TD=segmenter.text_embedding[0].detach().cpu().float().numpy(),
        noise_Xhw=segmenter.noise.detach().cpu().float().flatten(0, 1).numpy(),
        postprocess=postprocess.vector(),
        description={
            **facts,
            "parts": list(segmenter.parts),
            "colours": [list(colour) for colour in segmenter.colours],
            "form": "shared",
            "model": group.name,
            "image_size": segmenter.image_size,
            "channel_order": segmenter.settings.channel_order,
            "crops": [list(corner) for corner in postprocess.crops],
            "crop_side": postprocess.crop_side if postprocess.patches > 1 else segmenter.image_size,
            "guided": postprocess.edge_tolerance > 0,
            "most_parts": group.most_parts,
        },
    )


def signature(group: Group) -> Signature:
    """Names and sizes of the shared UNet's inputs and outputs."""
    side, each_part = group.latent_size, (group.most_parts, group.latent_size, group.latent_size)
    inputs = {tensor.name: tensor.dims for tensor in unet_inputs(group)}
    cross, attended, _ = map_names(group.variant)
    return Signature(
        inputs={LATENTS: (LATENT_CHANNELS, side, side), **inputs},
        outputs={cross: each_part, attended: each_part if group.variant.weighted else (side**2, side**2)},
    )


class AsBaked:
    """A shared UNet with one segmenter's file, called as one that has it baked in: LATENTS to maps and POSTPROCESS."""

    def __init__(self, model: OnnxModel, entry: Entry) -> None:
        self._model, self._entry = model, entry
        self.outputs = (*model.outputs, POSTPROCESS)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        batch, parts = len(inputs[LATENTS]), len(self._entry.description["parts"])
        outputs = self._model({**inputs, **self._entry.given(batch)})
        of_parts = {CROSS, ACCUMULATED}
        maps = {name: value[:, :parts] if name in of_parts else value for name, value in outputs.items()}
        return maps | {POSTPROCESS: np.repeat(self._entry.postprocess[np.newaxis], batch, axis=0)}

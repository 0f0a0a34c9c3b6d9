"""What differs between the two forms of an export: baked (a UNet of its own) and shared (one UNet for many).

The pipeline is one; it asks its form which UNet is there already, what to trace, and how the UNet that serves is opened
for the proof. In the shared form a segmenter becomes a file; the graph of its group holds what the group's segmenters
have in common. So many segmenters of one kind of settings, on one backbone, are served by one UNet, and publishing one
of them loads no model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from slime_export.graph import tracing
from slime_export.graph.runtimes import Network, opened
from slime_export.graph.tracing import LATENT_CHANNELS
from slime_export.masks import of_segmenter
from slime_export.options import ExportOptions
from slime_optimize.method.prediction import Predictor, passes
from slime_optimize.segmenter import Segmenter
from slime_repository import layout
from slime_repository.shared_contract import Group, most_parts
from slime_repository.variant import Variant
from slime_store import Entry
from slime_was.tensors import LATENTS, POSTPROCESS

Array = npt.NDArray[Any]
# Raised when the graph of a group changes, so that new segmenters get a new one.
GENERATION = 1


def group_of(segmenter: Segmenter, variant: Variant) -> Group:
    """Return the group that can serve `segmenter` in this variant; its key is a hash of what its segmenters share."""
    most, settings = most_parts(len(segmenter.parts)), segmenter.settings.as_json()
    # The settings that shape the graph. What suppression does depends on the threshold, so that counts with it.
    names = ["layers", "readout", "suppress_first_part"]
    names += ["threshold", "drop_background"] if settings["suppress_first_part"] else []
    common = {
        "generation": GENERATION,
        "backbone": segmenter.backbone_hash,
        "most_parts": most,
        "passes": [[each.timestep, each.sample, each.mirrored] for each in passes(segmenter.settings)],
        "variant": variant.parameters(),
        **{name: settings[name] for name in names},
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


def entry_of(segmenter: Segmenter, group: Group, facts: Mapping[str, str]) -> Entry:
    """Return the segmenter's file. facts: what clients read in it; a baked one's are parameters of its ensemble."""
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


class Baked:
    """A UNet of its own, with the segmenter's text embedding and noise as constants.

    `trace_unet` writes it, in fp32, into a folder, which is made, and returns the folder.
    """

    is_shared, unet_name = False, "the UNet"

    def __init__(self, options: ExportOptions, segmenter: Segmenter, variant: Variant) -> None:
        self._external_over, self._variant, self._name = options.external_over, variant, options.served_name

    def unet_there(self) -> Path | None:
        """Return the folder of a UNet in the repository that can serve this segmenter, or None."""
        return None

    def trace_unet(self, predictor: Predictor, folder: Path) -> Path:
        return tracing.trace_unet(predictor, self._variant, folder, self._external_over, self._name)

    def opened(self, unet: Path, variant: Variant) -> Network:
        """Open a UNet as a network from LATENTS alone to maps of this segmenter's parts and POSTPROCESS."""
        return opened(unet, variant)

    def inputs(self) -> Mapping[str, Array]:
        """Return what the UNet is given beside LATENTS, for one image."""
        return {}


class Shared(Baked):
    """The UNet of the segmenter's group, traced where the repository has none yet, and a file of the segmenter."""

    is_shared = True

    def __init__(self, options: ExportOptions, segmenter: Segmenter, variant: Variant) -> None:
        super().__init__(options, segmenter, variant)
        self._repository = options.repository
        self._group = group_of(segmenter, variant)
        self._entry = entry_of(segmenter, self._group, {})
        self.unet_name = f"the UNet of {self._group.name}"

    def unet_there(self) -> Path | None:
        folder = self._repository / self._group.unet
        there = layout.versions(folder)
        return folder / str(there[-1]) if there else None

    def trace_unet(self, predictor: Predictor, folder: Path) -> Path:
        return tracing.trace_shared_unet(predictor, self._group, folder, self._external_over)

    def opened(self, unet: Path, variant: Variant) -> Network:
        return AsBaked(opened(unet, variant), self._entry)

    def inputs(self) -> Mapping[str, Array]:
        return self._entry.given(1)


class AsBaked:
    """A shared UNet with one segmenter's file, called as a baked one is: LATENTS to maps and POSTPROCESS."""

    def __init__(self, model: Network, entry: Entry) -> None:
        self._model, self._entry = model, entry
        self.outputs = (*model.outputs, POSTPROCESS)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return of_segmenter(self._model({**inputs, **self._entry.given(len(inputs[LATENTS]))}), self._entry)


FORMS: Mapping[str, type[Baked]] = {"baked": Baked, "shared": Shared}

"""What a segmenter becomes in the shared form: the group whose UNet serves it, and its file.

The group's graph holds what its segmenters have in common; their files hold the rest. So many segmenters of one kind
of settings, on one backbone, are served by one UNet, and publishing one of them loads no model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from slime_export.graph.tracing import LATENT_CHANNELS
from slime_optimize.method.prediction import passes
from slime_optimize.segmenter import Segmenter
from slime_repository.shared_contract import Group, most_parts
from slime_repository.variant import Variant
from slime_store import Entry

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

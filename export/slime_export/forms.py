"""What differs between the two forms of an export: baked (a UNet of its own) and shared (one UNet for many).

The pipeline is one; it asks its form which UNet is there already, what to trace, how the network that serves is opened
for the proof, and what is handed to publishing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from slime_export.graph import tracing
from slime_export.graph.runtimes import Network, opened
from slime_export.options import ExportOptions
from slime_export.proof.report import Report
from slime_export.publish import layout
from slime_export.publish.lock import Say
from slime_export.publish.publication import Candidate, Published, publish
from slime_export.publish.record import Check
from slime_export.publish.server_control import Server
from slime_export.publish.shared_publication import SharedCandidate, publish_shared
from slime_export.shared_form import entry_of, group_of
from slime_optimize.method.predict import Predictor
from slime_optimize.segmenter import Segmenter
from slime_repository.variant import Variant
from slime_store import Entry
from slime_was.tensors import ACCUMULATED, CROSS, LATENTS, POSTPROCESS

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Proven:
    """What has passed the proof. `encoder` and `unet` are folders; None where the repository has the model already."""

    encoder: Path | None
    unet: Path | None
    report: Report
    check: Check


class Form(Protocol):
    """One of the two forms, for one export of one segmenter."""

    def unet_there(self) -> Path | None:
        """Return the folder of a UNet in the repository that can serve this segmenter, or None."""

    def unet_name(self) -> str:
        """Name the UNet for people."""

    def trace_unet(self, predictor: Predictor, folder: Path) -> Path:
        """Write the fp32 UNet into `folder`, which is made; return `folder`."""

    def opened(self, unet: Path, precision: str) -> Network:
        """Open a UNet as a network from LATENTS alone to maps of this segmenter's parts and POSTPROCESS."""

    def inputs(self) -> Mapping[str, Array]:
        """Return what the UNet is given beside LATENTS, for one image."""

    def publish(self, proven: Proven, staging: Path, server: Server | None, say: Say) -> Published:
        """Put it into the repository. Raises ExportError, ServerError, BusyError or OSError with that as it was."""


@dataclass(frozen=True)
class Baked:
    """A UNet of its own, with the segmenter's text embedding and noise as constants."""

    options: ExportOptions
    segmenter: Segmenter
    variant: Variant

    def unet_there(self) -> Path | None:
        return None

    def unet_name(self) -> str:
        return "the UNet"

    def trace_unet(self, predictor: Predictor, folder: Path) -> Path:
        return tracing.trace_unet(predictor, self.variant, folder, self.options.external_over)

    def opened(self, unet: Path, precision: str) -> Network:
        return opened(unet, precision)

    def inputs(self) -> Mapping[str, Array]:
        return {}

    def publish(self, proven: Proven, staging: Path, server: Server | None, say: Say) -> Published:
        options = self.options
        assert proven.unet, "a baked UNet is always new"
        proven.report.write(proven.unet)
        candidate = Candidate(
            name=options.served_name,
            segmenter=self.segmenter,
            unet=proven.unet,
            encoder=proven.encoder,
            check=proven.check,
            variant=self.variant,
            accelerator=options.accelerator,
        )
        return publish(options.repository, staging, candidate, server, keep=options.keep, wait_s=options.wait, say=say)


class Shared:
    """The UNet of the segmenter's group, traced where the repository has none yet, and a file of the segmenter."""

    def __init__(self, options: ExportOptions, segmenter: Segmenter, variant: Variant) -> None:
        self.options, self.segmenter, self.variant = options, segmenter, variant
        self.group = group_of(segmenter, variant)
        self.entry = entry_of(segmenter, self.group, {})

    def unet_there(self) -> Path | None:
        folder = self.options.repository / self.group.unet
        there = layout.versions(folder)
        return folder / str(there[-1]) if there else None

    def unet_name(self) -> str:
        return f"the UNet of {self.group.name}"

    def trace_unet(self, predictor: Predictor, folder: Path) -> Path:
        return tracing.trace_shared_unet(predictor, self.group, folder, self.options.external_over)

    def opened(self, unet: Path, precision: str) -> Network:
        return AsBaked(opened(unet, precision), self.entry)

    def inputs(self) -> Mapping[str, Array]:
        return self.entry.given(1)

    def publish(self, proven: Proven, staging: Path, server: Server | None, say: Say) -> Published:
        options = self.options
        candidate = SharedCandidate(
            name=options.served_name,
            segmenter=self.segmenter,
            variant=self.variant,
            check=proven.check,
            unet=proven.unet,
            encoder=proven.encoder,
        )
        return publish_shared(
            options.repository, staging, candidate, server, keep=options.keep, wait_s=options.wait, say=say
        )


class AsBaked:
    """A shared UNet with one segmenter's file, called as a baked one is: LATENTS to maps and POSTPROCESS."""

    def __init__(self, model: Network, entry: Entry) -> None:
        self._model, self._entry = model, entry
        self.outputs = (*model.outputs, POSTPROCESS)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        batch, parts = len(inputs[LATENTS]), len(self._entry.description["parts"])
        outputs = self._model({**inputs, **self._entry.given(batch)})
        maps = {name: value[:, :parts] if name in (CROSS, ACCUMULATED) else value for name, value in outputs.items()}
        return maps | {POSTPROCESS: np.repeat(self._entry.postprocess[np.newaxis], batch, axis=0)}


FORMS: Mapping[str, type[Baked] | type[Shared]] = {"baked": Baked, "shared": Shared}

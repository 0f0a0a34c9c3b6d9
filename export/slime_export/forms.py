"""What differs between the two forms of an export: baked (a UNet of its own) and shared (one UNet for many).

The pipeline is one; it asks its form which UNet is there already, what to trace, how the UNet that serves is opened for
the proof, and what publishing is to know.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from slime_export.graph import tracing
from slime_export.graph.runtimes import Network, opened
from slime_export.options import ExportOptions
from slime_export.shared_form import entry_of, group_of
from slime_optimize.method.prediction import Predictor
from slime_optimize.segmenter import Segmenter
from slime_repository import layout
from slime_repository.variant import Variant
from slime_store import Entry
from slime_was.tensors import ACCUMULATED, CROSS, LATENTS, POSTPROCESS

Array = npt.NDArray[Any]


class Form(Protocol):
    """One of the two forms, for one export of one segmenter."""

    is_shared: bool
    unet_name: str  # for people

    def unet_there(self) -> Path | None:
        """Return the folder of a UNet in the repository that can serve this segmenter, or None."""

    def trace_unet(self, predictor: Predictor, folder: Path) -> Path:
        """Write the fp32 UNet into `folder`, which is made; return `folder`."""

    def opened(self, unet: Path, precision: str) -> Network:
        """Open a UNet as a network from LATENTS alone to maps of this segmenter's parts and POSTPROCESS."""

    def inputs(self) -> Mapping[str, Array]:
        """Return what the UNet is given beside LATENTS, for one image."""


class Baked:
    """A UNet of its own, with the segmenter's text embedding and noise as constants."""

    is_shared, unet_name = False, "the UNet"

    def __init__(self, options: ExportOptions, segmenter: Segmenter, variant: Variant) -> None:
        self._external_over, self._variant, self._name = options.external_over, variant, options.served_name

    def unet_there(self) -> Path | None:
        return None

    def trace_unet(self, predictor: Predictor, folder: Path) -> Path:
        return tracing.trace_unet(predictor, self._variant, folder, self._external_over, self._name)

    def opened(self, unet: Path, precision: str) -> Network:
        return opened(unet, precision)

    def inputs(self) -> Mapping[str, Array]:
        return {}


class Shared:
    """The UNet of the segmenter's group, traced where the repository has none yet, and a file of the segmenter."""

    is_shared = True

    def __init__(self, options: ExportOptions, segmenter: Segmenter, variant: Variant) -> None:
        self._external_over, self._repository = options.external_over, options.repository
        self._group = group_of(segmenter, variant)
        self._entry = entry_of(segmenter, self._group, {})
        self.unet_name = f"the UNet of {self._group.name}"

    def unet_there(self) -> Path | None:
        folder = self._repository / self._group.unet
        there = layout.versions(folder)
        return folder / str(there[-1]) if there else None

    def trace_unet(self, predictor: Predictor, folder: Path) -> Path:
        return tracing.trace_shared_unet(predictor, self._group, folder, self._external_over)

    def opened(self, unet: Path, precision: str) -> Network:
        return AsBaked(opened(unet, precision), self._entry)

    def inputs(self) -> Mapping[str, Array]:
        return self._entry.given(1)


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

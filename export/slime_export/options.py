"""What is to be exported, and where to: the options of export/build.py, checked before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slime_client import Access
from slime_export.errors import ExportError
from slime_export.graph import engine_builder, onnx_export, runtimes
from slime_export.graph.accelerators import KINDS
from slime_export.proof.report import Gate, gate_of
from slime_export.publish.baked_segmenter import KEEP
from slime_export.publish.lock import WAIT_S
from slime_optimize.segmenter import Segmenter
from slime_repository import layout
from slime_repository.config import CPU, OPENVINO
from slime_repository.variant import Variant

# Baked into a graph of its own, or an input of one that many segmenters share.
EMBEDDINGS = ("baked", "shared")
ACCELERATORS = (OPENVINO, *KINDS)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """One export. Raises ExportError, in one line, for options that do not fit together.

    `url` is a running server's gRPC endpoint, `access` what it asks for. `backbone` and `tiny_encoder` say where the
    segmenter's own are now, where they have moved. `changes`: test-time settings to change, each "NAME=VALUE".
    `encoder`: the one that the segmenter must have been made with; None takes its own.

    `engine`: how a TensorRT engine is built. `accelerator`: ONNX Runtime's provider on the server, or openvino. `tune`:
    other ways are tried before (slime_export.tuning), int8 among them. `calibration`: images that int8's ranges are
    measured on. `data`: annotated images for the mean IoU, which is to be `at_least` so many percent, or `not_worse`
    than that of the segmenter that serves. `force`: publish in its place what failed on its own training images.
    `keep`: how many versions of the segmenter stay in the repository. `wait`: seconds for another process that is
    changing it.
    """

    folder: Path
    repository: Path
    name: str = ""  # the folder's name, where it is empty
    url: str | None = None
    access: Access = field(default_factory=Access)
    backbone: str | None = None
    tiny_encoder: str | None = None
    changes: tuple[str, ...] = ()
    embedding: str = EMBEDDINGS[0]
    maps: str = Variant.maps
    precision: str = Variant.precision
    encoder: str | None = None
    format: str = Variant.format
    engine: engine_builder.Options = field(default_factory=engine_builder.Options)
    accelerator: str | None = None
    tune: bool = False
    calibration: Path | None = None
    data: Path | None = None
    at_least: float | None = None
    not_worse: bool = False
    force: bool = False
    keep: int = KEEP
    wait: float = WAIT_S
    gate: Gate | None = None  # the precision's, where it is None
    external_over: int = onnx_export.EXTERNAL_OVER  # bytes

    def __post_init__(self) -> None:
        if self.keep < KEEP:
            raise ExportError(f"--keep: got {self.keep}, expected {KEEP} or more: the new version and the one before")
        if self.embedding not in EMBEDDINGS:
            raise ExportError(f"--embedding: got {self.embedding!r}, expected {' or '.join(EMBEDDINGS)}")
        if self.accelerator is not None and self.accelerator not in ACCELERATORS:
            raise ExportError(f"--accelerator: got {self.accelerator!r}, expected {' or '.join(ACCELERATORS)}")
        if self.accelerator is not None and self.format != "onnx":
            raise ExportError(f"--accelerator {self.accelerator}: is for --format onnx, got {self.format}")
        if self.accelerator == OPENVINO and self.precision == "fp16":
            raise ExportError(
                "--precision fp16: OpenVINO gains nothing by it on a CPU; give bf16 or int8 with "
                "--accelerator openvino, or leave it out"
            )
        is_plain = (self.precision, self.format, self.accelerator) == ("fp32", "onnx", None)
        if self.embedding == "shared" and not is_plain:
            raise ExportError(
                "--embedding shared: is exported as fp32 ONNX alone; leave out --precision, --format and "
                "--accelerator, or bake the embedding in"
            )
        if self.at_least is not None and not 1 < self.at_least <= 100:
            raise ExportError(f"--at-least: got {self.at_least:g}, expected a mean IoU in percent, such as 65")
        if (self.at_least is not None or self.not_worse) and self.data is None:
            raise ExportError("--at-least, --not-worse: are measured on annotated images; give --data FOLDER too")
        if self.calibration is not None and self.precision != "int8" and not self.tune:
            raise ExportError(f"--calibration: is for --precision int8, got {self.precision}; leave it out")

    @property
    def served_name(self) -> str:
        """The name that the segmenter is served under. Raises ExportError for one that cannot be."""
        return layout.check_name(self.name or self.folder.resolve().name)

    @property
    def on_cpu(self) -> bool:
        """Whether graphs are rewritten for a CPU."""
        return self.accelerator == CPU

    @property
    def served_by(self) -> str:
        """The variant's format: OpenVINO is one of its own, though it reads ONNX files."""
        return OPENVINO if self.accelerator == OPENVINO else self.format

    @property
    def held_to(self) -> Gate:
        """The limits past which nothing is published."""
        return self.gate or gate_of(self.precision)

    def variant(self, segmenter: Segmenter) -> Variant:
        """Return how `segmenter` is exported. Raises ExportError where it was made with another encoder than this."""
        own = segmenter.settings.encoder
        if self.encoder not in (None, own):
            raise ExportError(
                f"--encoder: got {self.encoder}, but the segmenter's embeddings were learned with {own}, which has to "
                f"serve as well; leave it out, or optimise again with --encoder {self.encoder}"
            )
        try:
            return Variant(maps=self.maps, precision=self.precision, encoder=own, format=self.served_by)
        except ValueError as error:
            raise ExportError(f"--{error}") from error

    def changed(self, segmenter: Segmenter) -> dict[str, Any]:
        """Return the settings that `changes` names with the values that `segmenter`, which has them, is served with."""
        values = segmenter.settings.as_json()
        return {name: values[name] for name in (change.partition("=")[0].strip() for change in self.changes)}

    def check_machine(self) -> None:
        """Raise ExportError where this machine cannot make, or try, what is wanted."""
        runtimes.onnxruntime()
        if self.accelerator == OPENVINO:
            runtimes.require_openvino(self.precision)
        else:
            runtimes.providers_for(self.precision)
        if self.format == "tensorrt":
            engine_builder.module()

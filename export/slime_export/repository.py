"""Publishes an exported segmenter into a Triton model repository without a gap, whether or not a server runs.

The ensemble names the exact version of every model it is made of, so nothing it uses changes while the new models
are put beside the old ones; the rename of its config.pbtxt is the one switch. A failure undoes every step; a kill
leaves whole models and an ensemble that still names the old ones. An ensemble that Triton itself refuses is felt: for
some ten milliseconds, until the one before is back, the server knows no model of that name.

    shared models > NAME_unet/N+1 > (load, check) > NAME/config.pbtxt > (load) > NAME_unet/N-1 leaves
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt

import slime_image
import slime_was
from slime_export import layout
from slime_export.changes import Changes
from slime_export.errors import ExportError, ServerError
from slime_export.layout import CONFIG
from slime_export.server import Server
from slime_optimize.segmenter import Segmenter
from slime_was import contract
from slime_was.contract import PREPROCESS, VAE_ENCODER, WAS, Versions

Array = npt.NDArray[np.float32]
LATENT_CHANNELS = 4
# Triton keeps the latest two versions of a model: the one that serves and the one being published.
KEPT = 2
PACKAGES: dict[str, ModuleType] = {PREPROCESS: slime_image, WAS: slime_was}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is to be published. `unet` and `encoder` are folders in the staging folder that hold a model.onnx.

    `encoder` is None where the repository has the backbone's already. `inputs` and `expected` are what the UNet is
    asked on a running server before it is used, and what it must answer.
    """

    name: str
    segmenter: Segmenter
    unet: Path
    encoder: Path | None
    inputs: Mapping[str, Array]
    expected: Mapping[str, Array]

    def __post_init__(self) -> None:
        layout.check_name(self.name)


@dataclass(frozen=True, kw_only=True)
class Published:
    """Where it went: the ensemble's own version, and those it is pinned to."""

    name: str
    version: int
    versions: Versions


def publish(repository: Path, staging: Path, candidate: Candidate, server: Server | None = None) -> Published:
    """Puts `candidate` into `repository`; with `server`, makes the running server use it.

    `staging` and `repository` are as `changes.staging` gives them. Raises ExportError, ServerError or OSError with
    the repository, and what the server serves, as they were.
    """
    with Changes(staging) as changes:
        return _Publication(repository, staging, candidate, changes, server).run()


class _Publication:
    """One run of `publish`: its steps, in order."""

    def __init__(
        self, repository: Path, staging: Path, candidate: Candidate, changes: Changes, server: Server | None
    ) -> None:
        self.repository, self.staging, self.changes, self.server = repository, staging, changes, server
        self.candidate, self.name = candidate, candidate.name
        self.unet_name = contract.unet_name(candidate.name)
        self.reading = reading_of(candidate.segmenter)
        self.before = layout.pinned(repository / candidate.name)
        self.touched: set[str] = set()

    def run(self) -> Published:
        versions = Versions(
            preprocess=self._python_model(self.reading.model, PREPROCESS, contract.preprocess_config(self.reading)),
            was=self._python_model(WAS, WAS, contract.was_config()),
            vae_encoder=self._encoder(),
            unet=self._unet(),
        )
        version = self._ensemble(versions)
        self._retire(version, versions)
        return Published(name=self.name, version=version, versions=versions)

    def _python_model(self, model: str, kind: str, config: str) -> int:
        """The version of `model`, of PREPROCESS's or WAS's kind, with this project's code: there already, or new."""
        package = str(PACKAGES[kind].__name__)
        source = source_model(kind)
        wanted = layout.python_files(source, layout.versions(source)[-1], package)
        folder = self.repository / model
        latest = max(layout.versions(folder), default=0)
        if latest and layout.python_files(folder, latest, package) == wanted:
            self._keep(model, latest, config)
            return latest
        self._check_users(model, latest + 1)
        # The package goes into the version's own folder, which Triton puts before the model's on sys.path: the
        # versions before keep theirs.
        for name, content in wanted.items():
            path = self.staging / model / str(latest + 1) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self._add_version(self.staging / model, latest + 1, config)
        self._load(model, latest + 1)
        return latest + 1

    def _keep(self, model: str, version: int, config: str | None = None) -> None:
        """Goes on with a version that is there; a config.pbtxt that differs is replaced."""
        folder = self.repository / model
        differs = config is not None and layout.config_text(folder) != config
        if config is not None and differs:
            self._load_after_undo(model)
            self.changes.write(folder / CONFIG, config)
        if differs or (self.server and not self.server.has(model, version)):
            self._load(model, version)

    def _check_users(self, model: str, version: int) -> None:
        """Refuses a version that would push one out that another segmenter is pinned to."""
        kept = [*layout.versions(self.repository / model), version][-KEPT:]
        for user, used in layout.users(self.repository, model, besides=self.name).items():
            if used not in kept:
                raise ExportError(
                    f"repository {self.repository}: {user} still uses version {used} of {model}, which version "
                    f"{version} would push out; export {user} again first"
                )

    def _encoder(self) -> int:
        found = layout.versions(self.repository / VAE_ENCODER)
        segmenter = self.candidate.segmenter
        if self.candidate.encoder is None:
            if not layout.encoder_of(self.repository, segmenter.backbone_hash):
                raise ExportError(f"repository {self.repository}: its {VAE_ENCODER} is gone; export again")
            self._keep(VAE_ENCODER, found[-1])
            return found[-1]
        config = contract.vae_encoder_config(
            backbone=segmenter.backbone_hash,
            image_size=segmenter.image_size,
            latent_channels=LATENT_CHANNELS,
            latent_size=segmenter.latent_size,
        )
        self._add_version(_as_version(self.candidate.encoder, self.staging / VAE_ENCODER, 1), 1, config)
        self._load(VAE_ENCODER, 1)
        return 1

    def _unet(self) -> int:
        folder = self.repository / self.unet_name
        there = layout.versions(folder)
        version = max(there, default=0) + 1
        serving = self.before.get(self.unet_name)
        self._load_after_undo(self.unet_name)
        # Left by a publication that was killed; they would push the version that serves out of the latest two.
        for orphan in [each for each in there if serving is not None and each > serving]:
            self.changes.take(folder / str(orphan))
        config = contract.unet_config(
            segmenter=self.name,
            parts=len(self.candidate.segmenter.parts),
            latent_channels=LATENT_CHANNELS,
            latent_size=self.candidate.segmenter.latent_size,
        )
        self._add_version(_as_version(self.candidate.unet, self.staging / self.unet_name, version), version, config)
        self._load(self.unet_name, version)
        if self.server:
            self.server.check(self.unet_name, version, self.candidate.inputs, self.candidate.expected)
        return version

    def _ensemble(self, versions: Versions) -> int:
        folder = self.repository / self.name
        version = max(layout.versions(folder), default=0) + 1
        parameters = ensemble_parameters(self.candidate.segmenter)
        config = contract.ensemble_config(
            segmenter=self.name, versions=versions, parameters=parameters, reading=self.reading
        )
        staged = self.staging / self.name
        # An ensemble has no files, but Triton wants a folder for the version.
        (staged / str(version)).mkdir(parents=True)
        self._add_version(staged, version, config)
        self._load(self.name, version)
        return version

    def _retire(self, version: int, versions: Versions) -> None:
        """Moves out what nothing uses any more. The version that served before stays, for the way back."""
        kept: dict[str, set[int | None]] = {
            self.name: {version, version - 1},  # the one before answers until the new one is ready
            self.unet_name: {versions.unet, self.before.get(self.unet_name)},
        }
        for model, own in ((self.reading.model, versions.preprocess), (WAS, versions.was)):
            if model in PACKAGES and self.repository.samefile(source_model(model).parent):
                continue  # the project's own code, not a copy of it
            used = layout.users(self.repository, model, besides=self.name).values()
            kept[model] = {own, self.before.get(model), *used}
        for model, numbers in kept.items():
            for each in layout.versions(self.repository / model):
                if each not in numbers:
                    self.changes.take(self.repository / model / str(each))

    def _add_version(self, staged: Path, version: int, config: str) -> None:
        """Moves `staged`/`version` into the model of the same name; a new model arrives whole, in one rename."""
        target = self.repository / staged.name
        self._load_after_undo(staged.name)
        if not target.exists():
            (staged / CONFIG).write_text(config, encoding="utf-8")
            self.changes.place(staged, target)
            return
        self.changes.place(staged / str(version), target / str(version))
        if layout.config_text(target) != config:
            self.changes.write(target / CONFIG, config)

    def _load(self, model: str, version: int) -> None:
        if self.server:
            self.server.load(model)
            self.server.require(model, version)

    def _load_after_undo(self, model: str) -> None:
        """When the publication fails: brings the server back to what the repository then says of `model`."""
        if self.server and model not in self.touched:
            self.touched.add(model)
            self.changes.on_undo(lambda: self._reload(model))

    def _reload(self, model: str) -> None:
        assert self.server
        try:
            if (self.repository / model).exists():
                self.server.load(model)
            else:
                self.server.unload(model)
        except ServerError:
            pass  # the failure that led here is the one to tell


def reading_of(segmenter: Segmenter) -> contract.Reading:
    """How the segmenter's images are read. Raises ExportError for what cannot be served."""
    settings = segmenter.settings
    try:
        return contract.Reading(
            image_size=segmenter.image_size,
            channel_order=settings.channel_order,
            weighting=settings.weighting(segmenter.image_size),
        )
    except ValueError as error:
        raise ExportError(str(error)) from error


def ensemble_parameters(segmenter: Segmenter) -> dict[str, str]:
    """What clients read from the model's configuration."""
    return {
        "parts": json.dumps(list(segmenter.parts), ensure_ascii=False),
        "colours": json.dumps([list(colour) for colour in segmenter.colours]),
        "form": "baked",
        "image_size": str(segmenter.image_size),
        "backbone": segmenter.backbone_hash,
        "segmenter": segmenter.hash,
        "created": segmenter.created or datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def source_model(model: str) -> Path:
    """This project's own folder of a Python model. Raises ExportError where only its package is installed."""
    package_file = PACKAGES[model].__file__
    assert package_file
    folder = Path(package_file).resolve().parents[1]
    if not layout.versions(folder):
        raise ExportError(
            f"model {model}: its code is not beside {folder}; export from a checkout installed with pip install -e"
        )
    return folder


def _as_version(staged: Path, model: Path, version: int) -> Path:
    """The staged files as `model`/`version`; returns `model`."""
    model.mkdir(parents=True, exist_ok=True)
    staged.rename(model / str(version))
    return model

"""Optimisations and measurements on PartScenes, each done once and kept on disk under a hash of its inputs.

    CACHE/partscenes/KIND/SPLIT/         the scenes
    CACHE/segmenters/HASH/               by settings, seed, backbone, training images and library
    CACHE/measurements/HASH.json         by the segmenter's content, maps and images
    CACHE/bounds/HASH.json               floors and ceiling

A stopped optimisation goes on from its checkpoint. The hashes do not see the method's own code: after a change of
that, begin with an empty folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from benchmarks.common import keeping
from benchmarks.common.sides import ROOT
from benchmarks.quality.study import Measurement, Optimisation

from slime_backbone.bounds import ceiling, nearest_colour, random_backbone
from slime_backbone.dataset import write_split
from slime_backbone.scene import KINDS, parts_of
from slime_optimize.backbone import EMBEDDED, Backbone, load_backbone
from slime_optimize.data.annotations import Example, dataset, load_example
from slime_optimize.data.validation import Validation
from slime_optimize.evaluation import Data, confusions, read_data
from slime_optimize.method.checkpoint import Checkpoint
from slime_optimize.method.prediction import Predictor
from slime_optimize.method.run import Run
from slime_optimize.method.seeds import sampled_noise
from slime_optimize.method.training import learn
from slime_optimize.metrics import Report, report, smallest_third
from slime_optimize.presets import preset
from slime_optimize.segmenter import JSON_FILE, Segmenter
from slime_optimize.settings import Settings

VALIDATION_IMAGES = 1  # to choose by, of ten training images: the paper's
# A floor is to be beaten by the best, so it gets the best settings too.
_FLOOR = Optimisation(preset="best")
BOUNDS = ("nearest_colour", "random_backbone", "ceiling")


def add_options(parser: argparse.ArgumentParser, seeds: Sequence[int]) -> None:
    """Add to a benchmark's options what is learned, and where it is kept."""
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="classes of PartScenes")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(seeds), help="of everything random")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "results", help="where segmenters are kept")
    parser.add_argument("--steps", type=int, help="of each optimisation, to see that everything works")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Fewer steps or images than the whole, to see that everything works; None means all."""

    steps: int | None = None
    images: int | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """One optimisation of a class and seed, and everything that is measured of it; or a class's bounds."""

    kind: str
    seed: int = 0
    optimisation: Optimisation | None = None
    measurements: tuple[Measurement, ...] = ()

    @property
    def name(self) -> str:
        """What the console says of it."""
        if self.optimisation is None:
            return f"{self.kind}, bounds"
        wanted = self.optimisation
        changes = "".join(f", {name} {value}" for name, value in wanted.changes.items() if name != "layers")
        return f"{self.kind}, seed {self.seed}, {wanted.preset}, {wanted.shots}-shot{changes}"


@dataclass(frozen=True, kw_only=True)
class Laboratory:
    """Does the work in the process that made it, one job after the other."""

    cache: Path
    backbone_name: str
    device: str = "cpu"
    trial: Trial = Trial()

    @classmethod
    def of(cls, options: argparse.Namespace) -> Laboratory:
        """Return the laboratory of the embedded backbone that the options of `add_options` ask for."""
        return cls(cache=options.cache, backbone_name=EMBEDDED, trial=Trial(steps=options.steps))

    @cached_property
    def backbone(self) -> Backbone:
        return load_backbone(self.backbone_name, self.device)

    def draw(self, kinds: Sequence[str]) -> None:
        """Write the scenes, before several processes want them."""
        for kind in kinds:
            for split in ("train-1", "train-10", "validation", "test"):
                write_split(self.cache / "partscenes", kind, split)

    def smallest(self, kind: str) -> tuple[str, ...]:
        """Return the third of a class's parts that covers the least."""
        return smallest_third([each.mask_HW for each in self._examples(kind, "test")], parts_of(kind))

    def work(self, job: Job) -> None:
        """Do what is not done yet."""
        if job.optimisation is None:
            self.bound(job.kind, BOUNDS)
            return
        run = self.run(job)
        segmenter = self.learned(run)
        if segmenter is None:
            folder = self._folder(run)
            checkpoint = Checkpoint(folder)
            state = checkpoint.load(run.identity)
            segmenter = learn(run, checkpoint=checkpoint, state=state, progress=False).segmenter
            segmenter.save(folder)
            checkpoint.remove()
        for measurement in job.measurements:
            if self.measured(job, measurement) is None:
                changed, data = _as_measured(segmenter, measurement), self.data(job.kind, measurement.split)
                counts = confusions(Predictor(changed, self.backbone), data, use_was=measurement.use_was)
                _write(self._measurement(changed, job.kind, measurement), report(counts, changed.parts))

    def segmenter(self, job: Job) -> Path:
        """Return the folder of the job's segmenter, which is learned if it is not there."""
        self.work(replace(job, measurements=()))
        return self._folder(self.run(job))

    def done(self, job: Job, measurement: Measurement) -> dict[str, Any]:
        """Return the figures, after measuring them if they are not there."""
        self.work(replace(job, measurements=(measurement,)))
        found = self.measured(job, measurement)
        assert found is not None
        return found

    def run(self, job: Job) -> Run:
        assert job.optimisation is not None
        wanted = job.optimisation
        validation = self._examples(job.kind, "validation")[:VALIDATION_IMAGES]
        return Run(
            backbone=self.backbone,
            examples=self._examples(job.kind, f"train-{wanted.shots}"),
            parts=parts_of(job.kind),
            settings=self._settings(wanted),
            seed=job.seed,
            preset=wanted.preset,
            validation=Validation(examples=validation) if wanted.shots > 1 else None,
        )

    def learned(self, run: Run) -> Segmenter | None:
        """Return the run's segmenter, if it is finished."""
        folder = self._folder(run)
        return Segmenter.load(folder) if (folder / JSON_FILE).exists() else None

    def measured(self, job: Job, measurement: Measurement) -> dict[str, Any] | None:
        """Return the figures, as a Report's JSON, if they were measured."""
        segmenter = self.learned(self.run(job))
        if segmenter is None:
            return None
        return _read(self._measurement(_as_measured(segmenter, measurement), job.kind, measurement))

    def bounds(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return the floors and the ceiling that were measured, by name."""
        found = {name: _read(self._bound_file(kind, name)) for name in BOUNDS}
        return {name: values for name, values in found.items() if values is not None}

    def _settings(self, wanted: Optimisation) -> Settings:
        trial = {} if self.trial.steps is None else {"steps": self.trial.steps}
        return preset(wanted.preset, self.backbone.recommended).changed({**wanted.changes, **trial})

    def bound(self, kind: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the named floors and ceiling, measured if they are not there."""
        settings = self._settings(_FLOOR)
        ways: dict[str, Callable[[], Report]] = {
            "nearest_colour": lambda: nearest_colour(kind),
            "random_backbone": lambda: random_backbone(kind, self.backbone, settings, progress=False),
            "ceiling": lambda: ceiling(kind),
        }
        for name in names:
            path = self._bound_file(kind, name)
            if not path.exists():
                _write(path, ways[name]())
        return {name: of for name, of in self.bounds(kind).items() if name in names}

    def _folder(self, run: Run) -> Path:
        return self.cache / "segmenters" / _hash(run.identity)

    def _measurement(self, segmenter: Segmenter, kind: str, measurement: Measurement) -> Path:
        split = {"kind": kind, "split": measurement.split, "images": self.trial.images}
        of = {"segmenter": segmenter.hash, "use_was": measurement.use_was, **split}
        return self.cache / "measurements" / f"{_hash(of)}.json"

    def _bound_file(self, kind: str, name: str) -> Path:
        of: dict[str, Any] = {"kind": kind, "bound": name}
        if name == "random_backbone":
            of |= {"backbone": self.backbone.hash, "settings": self._settings(_FLOOR).as_json()}
        return self.cache / "bounds" / f"{_hash(of)}.json"

    def data(self, kind: str, split: str) -> Data:
        """Return the annotated images of a split, as many as the trial wants."""
        found = read_data(self._split(kind, split), parts_of(kind))
        return Data(parts=found.parts, images=found.images[: self.trial.images])

    def _examples(self, kind: str, split: str) -> tuple[Example, ...]:
        return _examples(self._split(kind, split))

    def _split(self, kind: str, split: str) -> Path:
        return write_split(self.cache / "partscenes", kind, split)


@cache
def _examples(folder: Path) -> tuple[Example, ...]:
    parts, pairs = dataset(folder)
    return tuple(load_example(image, mask, parts) for image, mask in pairs)


def _as_measured(segmenter: Segmenter, measurement: Measurement) -> Segmenter:
    """Return the segmenter with the measurement's settings, and as much noise as they need."""
    settings = segmenter.settings.changed(measurement.changes)
    noise = sampled_noise(segmenter.latent_size, segmenter.seed, settings.noise_samples)
    return replace(segmenter, settings=settings, noise=noise)


def _hash(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:24]


def _read(path: Path) -> dict[str, Any] | None:
    return keeping.read(path) if path.exists() else None


def _write(path: Path, measured: Report) -> None:
    keeping.write(path, keeping.compact(measured.as_json()))

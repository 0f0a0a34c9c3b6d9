"""What the benchmarks serve: a repository of the embedded backbone, exported once, and copies of it to change."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

from benchmarks.common.sides import BenchmarkError, python, script

from slime_repository import layout
from slime_repository.config import as_text, parsed
from slime_repository.contract import is_encoder, is_unet
from slime_repository.shared_store import names, store_of
from slime_repository.variant import MAPS

Target = tuple[str, str | None]


class Networks(NamedTuple):
    """The files of a baked segmenter, for those who run them without a server."""

    encoder: Path
    unet: Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --segmenter and --maps, which say what is exported, to a benchmark's options."""
    parser.add_argument("--segmenter", type=Path, help="what is exported; default: random embeddings")
    parser.add_argument("--maps", choices=MAPS, default=MAPS[0], help="what its UNet gives")


def export(segmenter: Path | None, repository: Path, name: str, *options: str) -> None:
    """Run export/build.py, unless the repository serves the name already; without a segmenter, of random embeddings."""
    if repository.is_dir() and name in (*layout.segmenters(repository), *names(repository)):
        return
    repository.parent.mkdir(parents=True, exist_ok=True)
    folder = repository.parent / "segmenter"
    if segmenter is None and not folder.exists():
        python("benchmarks.common.random_backbone", "--like", "embedded", "--out", repository.parent)
    script("export/build.py", segmenter or folder, "--repository", repository, "--name", name, *options)


def target(repository: Path, name: str) -> Target:
    """Return what a client asks for: the model, and the segmenter's name where the model is a shared one."""
    if name in layout.segmenters(repository):
        return name, None
    if name in names(repository):
        return str(store_of(repository).get(name).description["model"]), name
    raise BenchmarkError(f"repository {repository}: serves no {name}; export it, or name another with --segmenter")


def networks(repository: Path, name: str) -> Networks:
    """Return the files of the version that serves."""
    pinned = layout.pinned(repository / name)
    files = {model: repository / model / str(version) / "model.onnx" for model, version in pinned.items()}
    encoder = next(path for model, path in files.items() if is_encoder(model))
    return Networks(encoder, next(path for model, path in files.items() if is_unet(model)))


def image_side(repository: Path, name: str) -> int:
    """Return the side of the images that the segmenter's networks take."""
    return int(layout.parameters(repository / name)["image_size"])


@contextmanager
def copied(repository: Path) -> Iterator[Path]:
    """Make a copy beside the repository, for as long as the block lasts.

    Files are hard links: replace them, and never write into them.
    """
    with tempfile.TemporaryDirectory(prefix=".copy-", dir=repository.parent) as root:
        copy = Path(root) / "repository"
        shutil.copytree(repository, copy, copy_function=os.link)
        yield copy


@contextmanager
def without_batches(repository: Path) -> Iterator[Path]:
    """Make a copy whose networks compute one image at a time.

    A server does not load a model that has a warm-up larger than its largest batch.
    """
    with copied(repository) as copy:
        (copy / "manifest.json").unlink(missing_ok=True)
        for config in copy.glob("*/config.pbtxt"):
            settings = deepcopy(parsed(config.read_text()))
            settings.max_batch_size = min(settings.max_batch_size, 1)
            smaller = [each for each in settings.model_warmup if each.batch_size <= 1]
            del settings.model_warmup[:]
            settings.model_warmup.extend(smaller)
            config.unlink()
            config.write_text(as_text(settings))
        yield copy

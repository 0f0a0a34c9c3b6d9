"""What the load benchmarks serve: a repository of the embedded backbone, made once; the same without batches."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.sides import ROOT, BenchmarkError, python

from slime_export.publish import layout
from slime_export.publish.shared_store import names, store_of
from slime_repository.contract import is_encoder, is_unet

_BATCH = re.compile(r"max_batch_size: [1-9]\d*")
# A server does not load a model that has a warm-up larger than its largest batch.
_LARGER_WARM_UP = re.compile(r"^model_warmup .* batch_size: (?!1 ).*\n", re.MULTILINE)
Target = tuple[str, str | None]


@dataclass(frozen=True, kw_only=True)
class Networks:
    """A baked segmenter's files, for those who run them without a server."""

    encoder: Path
    unet: Path


def export(segmenter: Path | None, repository: Path, name: str, *options: str) -> None:
    """export/build.py, unless the name is served from there already; random embeddings where there is no segmenter."""
    if repository.is_dir() and name in (*layout.segmenters(repository), *names(repository)):
        return
    repository.parent.mkdir(parents=True, exist_ok=True)
    given = segmenter or _random(repository.parent / "segmenter")
    words = [str(given), "--repository", str(repository), "--name", name, *options]
    print("$ python export/build.py", *words, file=sys.stderr, flush=True)
    if subprocess.run([sys.executable, str(ROOT / "export/build.py"), *words], stdout=sys.stderr).returncode:
        raise BenchmarkError(f"export/build.py {given}: failed; its words are above")


def _random(folder: Path) -> Path:
    if not (folder / "segmenter.json").exists():
        python("benchmarks.load_repository", folder)
    return folder


def target(repository: Path, name: str) -> Target:
    """What a client asks for: the model, and the segmenter where its form is the shared one."""
    if name in layout.segmenters(repository):
        return name, None
    if name in names(repository):
        return str(store_of(repository).get(name).description["model"]), name
    raise BenchmarkError(f"repository {repository}: serves no {name}; export it, or name another with --segmenter")


def networks(repository: Path, name: str) -> Networks:
    """Of the version that serves."""
    pinned = layout.pinned(repository / name)
    files = {model: repository / model / str(version) / "model.onnx" for model, version in pinned.items()}
    encoder = next(path for model, path in files.items() if is_encoder(model))
    return Networks(encoder=encoder, unet=next(path for model, path in files.items() if is_unet(model)))


def image_side(repository: Path, name: str) -> int:
    """Of the image that the segmenter's networks take."""
    return int(layout.parameters(repository / name)["image_size"])


@contextmanager
def copied(repository: Path) -> Iterator[Path]:
    """A repository of its own to change, beside the other, as its files are linked: replace them, never write them."""
    with tempfile.TemporaryDirectory(prefix=".copy-", dir=repository.parent) as root:
        copy = Path(root) / "repository"
        shutil.copytree(repository, copy, copy_function=os.link)
        yield copy


@contextmanager
def without_batches(repository: Path) -> Iterator[Path]:
    """The same, but for networks that compute one image at a time."""
    with copied(repository) as copy:
        (copy / "manifest.json").unlink(missing_ok=True)
        for config in copy.glob("*/config.pbtxt"):
            text = config.read_text()
            config.unlink()
            config.write_text(_LARGER_WARM_UP.sub("", _BATCH.sub("max_batch_size: 1", text)))
        yield copy


def main(words: Sequence[str] | None = None) -> None:
    """Saves a segmenter of the embedded backbone with random embeddings: python -m benchmarks.load_repository FOLDER"""
    from benchmarks.make_random_backbone import random_segmenter

    from slime_optimize.backbone import load_backbone

    (folder,) = words or sys.argv[1:]
    random_segmenter(load_backbone("embedded"), 6).save(Path(folder))


if __name__ == "__main__":
    main()

"""Import embeddings saved by the method's published code, as a segmenter.

    DIR/embedding_0.pth …   one part each, without the background, in the order of its part names: (1,1,D)

That code repeats the prompt word once for each part, not 77 times. Tokens after the learned rows count in the softmax
over all tokens, so they are made again here. It reads images as BGR, which is the reference preset's channel order.

Shape suffixes: K parts, T tokens, D text width.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from slime_optimize.backbone import Backbone
from slime_optimize.data.annotations import check_parts
from slime_optimize.errors import InputError, first_line
from slime_optimize.method.run import initial_text
from slime_optimize.method.seeds import sampled_noise
from slime_optimize.picture import palette
from slime_optimize.segmenter import Segmenter, library_versions, now_in_utc
from slime_optimize.settings import Settings

PRESET = "reference"
_NAME = re.compile(r"embedding_(\d+)\.pth")


def import_published(
    folder: Path, parts: Sequence[str], backbone: Backbone, settings: Settings, *, seed: int = 0
) -> Segmenter:
    """Return the segmenter of the embeddings in `folder`, for `parts` with the background first.

    Raises InputError, in one line, for files that are not there, not plain tensors, or do not fit the parts or
    the backbone.
    """
    names = check_parts(parts)
    paths = embedding_files(folder)
    learned_KD = _stacked(folder, [_load(path, backbone.text_width) for path in paths], len(names))
    settings.layers.validate(backbone.unet)
    segmenter = Segmenter(
        text_embedding=initial_text(backbone, settings, len(names)).cpu(),
        noise=sampled_noise(backbone.latent_size, seed, settings.noise_samples),
        parts=names,
        colours=palette(len(names)),
        backbone_id=backbone.id,
        backbone_hash=backbone.hash,
        tiny=backbone.tiny_name(settings.encoder),
        image_size=backbone.image_size,
        latent_size=backbone.latent_size,
        settings=settings,
        preset=PRESET,
        preset_from="published embeddings are read as the code that made them reads them",
        seed=seed,
        metrics={"imported": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}},
        versions=library_versions(),
        created=now_in_utc(),
    )
    return segmenter.with_embeddings(learned_KD)


def embedding_files(folder: Path) -> list[Path]:
    """Return embedding_0.pth, embedding_1.pth, … by number; InputError where there is none, or one is missing."""
    if not folder.is_dir():
        raise InputError(f"embeddings {folder}: no such folder, expected one of embedding_0.pth, embedding_1.pth, …")
    found = {int(match[1]): path for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))}
    for number in range(max(found, default=0) + 1):
        if number not in found:
            raise InputError(
                f"embeddings {folder}: has no embedding_{number}.pth; expected embedding_0.pth, embedding_1.pth, … "
                "as the published code leaves them, one for each part but the background"
            )
    return [found[number] for number in sorted(found)]


def _load(path: Path, width: int) -> Tensor:
    """Load the rows of one file, (rows,D) float32. Only tensors are ever unpickled."""
    try:
        with warnings.catch_warnings(action="ignore"):  # what is wrong with a file is said in one line, below
            value = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"embedding {path}: holds more than a tensor, or is no PyTorch file, and was not unpickled; "
            "expected a file of the published code, untouched"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"embedding {path}: cannot be read ({first_line(error)}); expected a PyTorch file") from error
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"embedding {path}: got {got}, expected a tensor of floats (1, 1, {width})")
    if value.ndim < 1 or value.shape[-1] != width or value.numel() != value.shape[-2:].numel():
        raise InputError(
            f"embedding {path}: got shape {tuple(value.shape)}, expected (1, 1, {width}) for this backbone's text of "
            f"width {width}; the published embeddings belong to SD 2.1-base, of width 1024"
        )
    if not bool(torch.isfinite(value).all()):
        raise InputError(f"embedding {path}: has values that are not numbers; expected a finite tensor")
    return value.detach().float().reshape(-1, width)


def _stacked(folder: Path, files_RD: Sequence[Tensor], parts: int) -> Tensor:
    rows_KD = torch.cat(list(files_RD))
    if len(rows_KD) != parts - 1:
        raise InputError(
            f"embeddings {folder}: hold {len(rows_KD)} parts in {len(files_RD)} files, expected {parts - 1} for the "
            f"{parts} names of --parts, of which the background has none"
        )
    return rows_KD

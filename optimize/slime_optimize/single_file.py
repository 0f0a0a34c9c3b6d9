"""A Stable Diffusion 1.x or 2.x in one file, `.safetensors` or `.ckpt`, made a folder in diffusers layout.

Nothing is fetched: single_file_tensors.py holds the configurations, and the tokenizer's vocabulary, which such a file
does not hold, is taken from a folder beside it or one that is named.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slime_optimize.backbone_folder import load_models
from slime_optimize.backbone_hub import locate
from slime_optimize.backbone_weights import STEM
from slime_optimize.errors import BackboneError
from slime_optimize.single_file_tensors import CONFIGS, UNET, converted, noted_prediction, read_file, version_of

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth")
VOCABULARY = ("vocab.json", "merges.txt")
_FORMAT = 1  # of a converted folder in the cache; another number converts anew
_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
_PADDING = {"1.x": "<|endoftext|>", "2.x": "!"}


def is_single_file(name: str) -> bool:
    """Return whether `name` is a file that is there, which a checkpoint may be in."""
    path = Path(name).expanduser()
    return path.is_file() and path.suffix.lower() in SUFFIXES


def cached_folder(file: Path) -> Path:
    """Return the folder in diffusers layout that `file` was converted to, in the cache; convert it the first time.

    The cache is $SLIME_CACHE, or slime in $XDG_CACHE_HOME or ~/.cache. Another file, or one that was written again, is
    converted anew. Raises BackboneError as `convert`.
    """
    root = os.environ.get("SLIME_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slime"
    state, path = file.stat(), file.resolve()
    key = json.dumps([_FORMAT, str(path), state.st_size, state.st_mtime_ns, state.st_ino])
    folder = Path(root) / "checkpoints" / f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        convert(file, folder)
    return folder


def convert(file: Path, out: Path, *, tokenizer: str | None = None, prediction: str | None = None) -> str:
    """Write the checkpoint in `file` into the folder `out`, which is there only when all of it could be loaded.

    `tokenizer` is a folder or hub id with the vocabulary, else it is looked for beside the file. `prediction` is what
    the UNet predicts, else what the file says, or epsilon for 1.x. Returns the version, 1.x or 2.x. Raises
    BackboneError for what is no such checkpoint, and where the vocabulary or the prediction is not known.
    """
    tensors, notes = read_file(file)
    version = version_of(file, tensors)
    predicts = prediction or noted_prediction(file, version, tensors, notes)
    vocabulary = _vocabulary(file, tokenizer)
    configs = {part: dict(config) for part, config in CONFIGS[version].items()}
    configs["unet"]["in_channels"] = int(tensors[f"{UNET}input_blocks.0.0.weight"].shape[1])
    if version == "2.x" and predicts == "v_prediction":  # trained on images of 768 pixels
        configs["unet"] |= {"sample_size": configs["unet"]["sample_size"] * 3 // 2, "upcast_attention": True}
    with _made_whole(out) as work:
        for part, stem in {"unet": STEM, "vae": STEM, "text_encoder": "model"}.items():
            _write(work / part / "config.json", configs[part])
            _save(work / part / f"{stem}.safetensors", converted(file, part, version, tensors, configs[part]))
        zero_snr = {"rescale_betas_zero_snr": True} if "ztsnr" in tensors else {}
        _write(work / "scheduler" / "scheduler_config.json", _SCHEDULER | {"prediction_type": predicts} | zero_snr)
        words = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
        words |= {"tokenizer_class": "CLIPTokenizer", "pad_token": _PADDING[version]}
        _write(work / "tokenizer" / "tokenizer_config.json", words | {"model_max_length": 77})
        for name in VOCABULARY:
            shutil.copyfile(vocabulary / name, work / "tokenizer" / name)
        try:
            load_models(work, "cpu", torch.float32)
        except BackboneError as error:
            raise BackboneError(str(error).replace(str(work), str(file))) from error
    return version


def _vocabulary(file: Path, given: str | None) -> Path:
    """Return the folder with the tokenizer's vocabulary: the one `given`, else one beside the file."""
    if given:

        def choose(subject: str, names: list[str]) -> list[str]:
            return [name for name in names if name.removeprefix("tokenizer/") in VOCABULARY]

        folder, _ = locate(given, choose, "tokenizer", "")
        candidates = [folder, folder / "tokenizer"]
    else:
        candidates = [file.parent / file.stem / "tokenizer", file.parent / "tokenizer", file.parent]
    for folder in candidates:
        if all((folder / name).is_file() for name in VOCABULARY):
            return folder
    if given:
        raise BackboneError(f"tokenizer {given}: has no {' and '.join(VOCABULARY)}; expected a CLIP tokenizer's folder")
    raise BackboneError(
        f"backbone {file}: a checkpoint in one file has no tokenizer; put a folder tokenizer with CLIP's "
        f"{' and '.join(VOCABULARY)} beside it, or run: slime import-checkpoint {file} OUT --tokenizer "
        "FOLDER_OR_HUB_ID (such as openai/clip-vit-large-patch14), and give OUT as the backbone"
    )


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    # Clones, because safetensors refuses views of one memory.
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, path, metadata={"format": "pt"})


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _made_whole(out: Path) -> Iterator[Path]:
    """Yield a folder beside `out`, which becomes `out` when all went well, and is removed when not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield work
        work.chmod(0o755)
        try:
            work.rename(out)
        except OSError:
            if not out.is_dir() or not (out / "unet").is_dir():
                raise  # else another process has just made the same
    finally:
        shutil.rmtree(work, ignore_errors=True)

"""One model of a backbone on disk: which files its weights are, and a strict load of them.

A loader of diffusers or transformers leaves a weight that it does not find at random values, and only warns. Here every
missing, unexpected or ill-shaped tensor is refused by name, and so is every tensor that is not finite. Which files are
read is decided from a list of names alone, so that what is fetched from the hub is what is read (backbone_hub.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from slime_optimize.errors import BackboneError, first_line

STEM = "diffusion_pytorch_model"  # name of diffusers' weights, without a suffix
_KINDS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5")  # suffixes of weights
_VARIANTS = ("", ".fp16", ".bf16")  # in the order in which they are preferred
_PICKLED = {"model": "pytorch_model"}  # names of transformers' weights, without a suffix, as safetensors and as .bin
# Buffers that older releases saved and newer ones compute.
_HARMLESS = re.compile(r"(^|\.)position_ids$")


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Names of one model's files in its folder, and their variant: "", ".fp16" or ".bf16".

    Several files are shards, which `index` lists. kind: "safetensors", or "bin" for pickled ones.
    """

    files: tuple[str, ...]
    variant: str
    index: str | None = None
    kind: str = "safetensors"

    @property
    def lacking(self) -> str | None:
        """Return what is wrong with the shards: the first that is not there; None where all are."""
        if self.index is None:
            return None
        total = max(int(_counts(name)[1]) for name in self.files)
        there = {int(_counts(name)[0]) for name in self.files}
        gaps = [number for number in range(1, total + 1) if number not in there]
        return f"shard {gaps[0]} of {total}" if gaps else None


def choose_weights(names: Collection[str], stem: str) -> Weights | None:
    """Return the files to read among the `names` of a folder; None where there is none.

    Safetensors go before pickled files, and full precision before half.
    """
    part = r"-\d+-of-\d+"
    for kind, start in (("safetensors", stem), ("bin", _PICKLED.get(stem, stem))):
        for variant in _VARIANTS:
            whole = f"{start}{variant}.{kind}"
            if whole in names:
                return Weights(files=(whole,), variant=variant, kind=kind)
            first, last = re.escape(start), re.escape(variant)
            either = rf"({first}{last}{part}|{first}{part}{last})\.{kind}"
            index = f"{start}.{kind}.index{variant}.json"
            shards = tuple(sorted(name for name in names if re.fullmatch(either, name)))
            if shards and index in names:
                return Weights(files=shards, variant=variant, index=index, kind=kind)
    return None


def no_weights(subject: str, part: str, stem: str, names: Iterable[str]) -> BackboneError:
    """Return the error for a folder without weights that can be read; it names the ones that are there."""
    others = sorted(name for name in names if name.endswith(_KINDS))
    found = f"; it has {', '.join(others[:3])}" if others else ""
    if any("-of-" in name for name in others):
        found += ", and no .index.json to read shards by"
    at = f"{part}/" if part else ""
    return BackboneError(f"{subject}: has no {at}{stem}.safetensors, and no {_PICKLED.get(stem, stem)}.bin{found}")


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """One model: config.json and weights called `stem`, in a folder of the `subject` that messages name."""

    path: Path
    subject: str
    stem: str = STEM

    def files(self) -> list[Path]:
        """Return the config and the weights that are loaded; other files beside them change nothing."""
        chosen = choose_weights(self._names(), self.stem)
        return [self.path / "config.json", *(self.path / name for name in (chosen.files if chosen else ()))]

    def load(self, kind: Any, **options: Any) -> Any:
        """Return the model as `kind`, a class of diffusers or transformers, with every weight from the files.

        Raises BackboneError where a file or a tensor is missing, unexpected, of another shape, or not finite.
        """
        names = self._names()
        chosen = choose_weights(names, self.stem)
        if chosen is None:
            raise no_weights(self.subject, self.path.name, self.stem, names)
        where = f"{self.subject}: {self.path.name}/{chosen.index or chosen.files[0]}"
        if chosen.lacking:
            raise BackboneError(f"{where}: {chosen.lacking} is not there; fetch the whole folder again")
        try:
            with _quiet():
                model, report = kind.from_pretrained(
                    self.path,
                    use_safetensors=chosen.kind == "safetensors",
                    local_files_only=True,
                    variant=chosen.variant.removeprefix(".") or None,
                    output_loading_info=True,
                    **options,
                )
        except Exception as error:  # foreign loaders raise of every kind; the user gets one line
            raise BackboneError(f"{where}: its weights cannot be loaded ({first_line(error)})") from error
        _check_report(where, report)
        _check_finite(where, model)
        return model

    def _names(self) -> list[str]:
        return [path.name for path in self.path.iterdir()] if self.path.is_dir() else []


def _check_report(where: str, report: dict[str, Any]) -> None:
    """Raise BackboneError for the tensors that did not go from the file to the model, one by one."""
    shapes = [f"{entry[0]} has shape {[*entry[1]]}, not {[*entry[2]]}" for entry in report["mismatched_keys"]]
    troubles = [
        ("lacks", sorted(report["missing_keys"])),
        ("has unexpected", sorted(key for key in report["unexpected_keys"] if not _HARMLESS.search(key))),
        ("differs from its config:", shapes),
        ("cannot be read:", [str(message).splitlines()[0] for message in report["error_msgs"]]),
    ]
    found = [f"{what} {_few(keys)}" for what, keys in troubles if keys]
    if found:
        raise BackboneError(
            f"{where}: {' and '.join(found)}; expected the tensors of its config.json under diffusers' names, "
            "with adapters (LoRA) merged; save the whole model again with save_pretrained"
        )


def _check_finite(where: str, model: Any) -> None:
    """Raise BackboneError for the first tensors that hold NaN or infinity, at one pass over each."""
    with torch.no_grad():
        spoilt = [
            name
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
            if tensor.is_floating_point() and tensor.numel() and not _finite(tensor)
        ]
    if spoilt:
        dtype = str(model.dtype).removeprefix("torch.")
        raise BackboneError(
            f"{where}: {_few(spoilt)} holds NaN or infinity as {dtype}; fetch the file again, or give another backbone"
        )


def _finite(tensor: torch.Tensor) -> bool:
    low, high = torch.aminmax(tensor)  # NaN goes through both
    return bool(torch.isfinite(low) and torch.isfinite(high))


def _few(keys: list[str]) -> str:
    return f"{keys[0]} and {len(keys) - 1} more" if len(keys) > 1 else keys[0]


def _counts(name: str) -> tuple[str, str]:
    found = re.search(r"-(\d+)-of-(\d+)", name)
    assert found is not None
    return found[1], found[2]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the loaders' own reports and bars: what they warn of is refused here in one line."""
    from diffusers.utils import logging as diffusers
    from transformers.utils import logging as transformers

    transformers.disable_progress_bar()  # loading takes a moment; a bar for each model says nothing
    levels = [(library, library.get_verbosity()) for library in (diffusers, transformers)]
    for library, _ in levels:
        library.set_verbosity(50)  # CRITICAL
    try:
        yield
    finally:
        for library, level in levels:
            library.set_verbosity(level)

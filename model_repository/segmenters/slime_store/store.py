"""Reads and writes segmenters as files: what a shared UNet is given in place of constants, and what clients are told.

    STORE/NAME.safetensors   TEXT (T,D), NOISE (4R,h,w), POSTPROCESS (LENGTH,), float32; its header: the description

A file is replaced whole, so a reader has the old segmenter or the new one.

T text tokens, D text width, R draws of noise, h x w the map.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

Array = npt.NDArray[np.float32]
ENDING = ".safetensors"
# A file of 77 x 1024 embeddings and one draw of 64 x 64 noise is 0.4 MB: the cache stays under half a gigabyte.
KEPT = 1024
_NAME = re.compile(r"\.?[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_TENSORS = ("TEXT", "NOISE", "POSTPROCESS")
# What a tensor was called in files that were written before it was renamed; a launcher still reads those.
_FORMER_NAMES = {"POSTPROCESS": "WEIGHTING"}
_DESCRIPTION = "description"


class StoreError(ValueError):
    """A file is no segmenter. The message is one line without the file's path, which clients may not see."""


class UnknownSegmenterError(StoreError):
    """There is no segmenter of that name."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One segmenter: TEXT (T,D), NOISE (4R,h,w), POSTPROCESS (LENGTH,), float32, and its description, a JSON object.

    The description has at least parts, colours, model (the ensemble that serves it), image_size, channel_order, crops,
    crop_side, guided and most_parts.
    """

    text_TD: Array
    noise_Xhw: Array
    postprocess: Array
    description: Mapping[str, Any]

    def given(self, batch: int) -> dict[str, Array]:
        """Return what the shared UNet is given beside LATENTS, for B images or crops of this segmenter, float32.

        TEXT (B,T,D), NOISE (B,4R,h,w) and PART_MASK (B,P), which is 1 in the part slots that are taken, the first ones.
        """
        taken_P = (np.arange(self.description["most_parts"]) < len(self.description["parts"])).astype(np.float32)
        each = {"TEXT": self.text_TD, "NOISE": self.noise_Xhw, "PART_MASK": taken_P}
        return {name: np.repeat(value[np.newaxis], batch, axis=0) for name, value in each.items()}


class Store:
    """The segmenters of a folder. Each is read when it is first asked for, and again when its file has changed.

    Threads may share it.
    """

    def __init__(self, folder: Path, kept: int = KEPT) -> None:
        self.folder, self._kept = folder, kept
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, tuple[tuple[int, int, int], Entry]] = OrderedDict()

    def names(self) -> list[str]:
        """Return the names of all segmenters, in order, without those being checked, which begin with a dot."""
        if not self.folder.is_dir():
            return []
        return sorted(each.stem for each in self.folder.glob(f"*{ENDING}") if not each.name.startswith("."))

    def get(self, name: str) -> Entry:
        """Return the segmenter as it is now. Raises UnknownSegmenterError, or StoreError for a damaged file."""
        path = self.path(name)
        with self._lock:
            try:
                stat = path.stat()
            except OSError as error:
                self._entries.pop(name, None)
                raise UnknownSegmenterError(f"segmenter {name!r}: not here; ask for the list, or publish it") from error
            state = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            known = self._entries.get(name)
            if known is None or known[0] != state:
                known = self._entries[name] = (state, read(path))
            self._entries.move_to_end(name)
            while len(self._entries) > self._kept:
                self._entries.popitem(last=False)
            return known[1]

    def path(self, name: str) -> Path:
        """Return the path of a segmenter's file. Raises UnknownSegmenterError for what is no name, such as a path."""
        if not _NAME.fullmatch(name):
            raise UnknownSegmenterError(f"segmenter {name[:80]!r}: not a name; expected letters, digits, _ and -")
        return self.folder / (name + ENDING)


def read(path: Path) -> Entry:
    """Return the segmenter that a file holds. Raises StoreError."""
    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            description = json.loads(file.metadata()[_DESCRIPTION])
            stored = set(file.keys())
            names = [name if name in stored else _FORMER_NAMES.get(name, name) for name in _TENSORS]
            text, noise, postprocess = (np.ascontiguousarray(file.get_tensor(name), np.float32) for name in names)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"segmenter {path.stem!r}: its file is damaged; publish it again") from error
    return Entry(text_TD=text, noise_Xhw=noise, postprocess=postprocess, description=description)


def write(path: Path, entry: Entry) -> None:
    """Put the segmenter's file in place, whole, in an existing folder."""
    beside = path.with_name(f"{path.name}.partial")
    with beside.open("wb") as file:
        file.write(content(entry))
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def content(entry: Entry) -> bytes:
    """Return the content of a segmenter's file."""
    tensors = dict(zip(_TENSORS, (entry.text_TD, entry.noise_Xhw, entry.postprocess), strict=True))
    plain = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}
    made: bytes = save(plain, {_DESCRIPTION: json.dumps(dict(entry.description), ensure_ascii=False)})
    return made

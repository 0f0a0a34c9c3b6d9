"""Segments the images of a folder or bucket with Ray Data: workers ask running servers, or have the ONNX networks.

    OUT/results/*.parquet    a row for each image: path, size, changed, width, height, areas, mask, mask_png, error
    OUT/masks/PATH.png       its mask, as slime segment writes it, or it is in the row as mask_png
    OUT/segmenter.json       whose masks they are

A row is written after its mask, so the rows say what is done: the same command goes on with the images that have none.
Images are read in the workers, because one that cannot be read is a row with its error; Ray's readers would stop.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy

from slime_client import Segmenter
from slime_client.access import Access
from slime_client.errors import DEADLINE_EXCEEDED, FAILED_PRECONDITION, INVALID_ARGUMENT, UNAVAILABLE, SegmenterError
from slime_client.formats import FORMATS
from slime_client.jobs import SUFFIXES
from slime_client.local import LocalSegmenter
from slime_export.publish.live import local_segmenter
from slime_export.publish.pull import pull
from slime_fleet.command import PARQUET
from slime_fleet.folder import File, Folder
from slime_repository.object_store import ObjectStore, in_order

RESULTS, MASKS, IDENTITY_FILE = "results", "masks", "segmenter.json"
_KEY = ("path", "size", "changed")
_BATCH = 16  # images that a worker has in memory, and in flight to the servers
_MOST_IN_A_TASK = 256  # images that are done again when a node dies
_READERS = 8
_SHOWN_ERRORS = 10


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where masks come from: the segmenter `name` of the servers at `url`, or of a repository in a folder or store."""

    name: str
    url: str = ""
    timeout: float | None = None
    access: Access = field(default_factory=Access)
    repository: str = ""
    threads: int = 1

    def opened(self) -> Segmenter | LocalSegmenter:
        """Connect to the servers, or load the networks and try them. Raises SegmenterError."""
        if self.url:
            return Segmenter(self.url, self.name, timeout=self.timeout, access=self.access)
        try:
            made = local_segmenter(self._pulled(), self.name, self.threads)
            made.segment(np.zeros((64, 64, 3), np.uint8))
        except (ValueError, RuntimeError, OSError) as error:
            raise SegmenterError(f"--repository {self.repository}: {error}", INVALID_ARGUMENT) from error
        return made

    def _pulled(self) -> Path:
        """Return the repository's folder; of one in a store, this node's copy, for which all its workers take turns."""
        if "://" not in self.repository:
            return Path(self.repository)
        name = hashlib.sha256(self.repository.encode()).hexdigest()[:16]
        own = Path(tempfile.gettempdir()) / f"slime-fleet-{os.getuid()}-{name}"
        own.mkdir(mode=0o700, exist_ok=True)
        if own.stat().st_uid != os.getuid():
            raise OSError(f"{own} is another user's; remove it, or set TMPDIR")
        pull(ObjectStore(self.repository), own / "repository", replace=True, say=lambda _: None)
        return own / "repository"


def identity(segmenter: Segmenter | LocalSegmenter) -> dict[str, Any]:
    """Return what tells the segmenter from others: its name, parts and the hash of what it learned."""
    told = segmenter.description
    return {"segmenter": told.name, "parts": list(told.parts), "hash": told.about.get("segmenter")}


def schema(parts: tuple[str, ...]) -> pa.Schema:
    """Return the columns of a result; `areas` are pixels of each part, null for an image without a mask."""
    text, size = pa.string(), pa.int64()
    areas = pa.struct([(part, size) for part in parts])
    columns = {"path": text, "size": size, "changed": text, "width": pa.int32(), "height": pa.int32(), "areas": areas}
    return pa.schema([*columns.items(), ("mask", text), ("mask_png", pa.binary()), ("error", text)])


class Worker:
    """Makes the rows of results of a table of images, each with its mask where it has one. Lives in a Ray actor."""

    def __init__(self, source: Source, images: str, out: str, keep: str, expected: Mapping[str, Any]) -> None:
        self._segmenter = source.opened()
        if (found := identity(self._segmenter)) != dict(expected):
            raise SegmenterError(
                f"segmenter {source.name!r}: is another one than when this run began ({found['hash']}, then "
                f"{expected['hash']}); give another --out",
                FAILED_PRECONDITION,
            )
        self._images, self._out, self._keep = Folder(images), Folder(out), keep
        self._schema = schema(self._segmenter.parts)
        self._readers = ThreadPoolExecutor(_READERS)

    def __call__(self, images: pa.Table) -> pa.Table:
        """Return the rows of `images`, which has path, size and changed. Raises SegmenterError without any server."""
        rows = images.to_pylist()
        contents = list(self._readers.map(self._read, (row["path"] for row in rows)))
        flying = [self._segmenter.submit(content) if isinstance(content, bytes) else None for content in contents]
        for row, content, future in zip(rows, contents, flying, strict=True):
            try:
                row |= {"error": str(content)} if future is None else self._kept(row["path"], future.result())
            except SegmenterError as error:
                if error.code in (UNAVAILABLE, DEADLINE_EXCEEDED) and not self._segmenter.live():
                    raise
                row["error"] = str(error).replace("image bytes", row["path"], 1)
        return pa.Table.from_pylist(rows, self._schema)

    def _read(self, name: str) -> bytes | OSError:
        try:
            return self._images.read(name) or FileNotFoundError(f"{name}: is not there any more, or empty")
        except OSError as error:
            return OSError(f"{name}: cannot be read ({' '.join(str(error).split())})")

    def _kept(self, name: str, mask: Any) -> dict[str, Any]:
        height, width = mask.array.shape
        counted = np.bincount(mask.array.ravel(), minlength=len(mask.parts)).tolist()
        told = {"width": width, "height": height, "areas": dict(zip(mask.parts, counted, strict=True))}
        png = FORMATS["palette"].encode(mask, name)
        if self._keep == PARQUET:
            return {**told, "mask_png": png}
        told["mask"] = f"{MASKS}/{name or 'image'}.png"
        self._out.write(told["mask"], png)
        return told


def segment(
    source: Source, images: str, out: str, *, keep: str, cpus: float, workers: int | None, rows_per_file: int
) -> tuple[int, int]:
    """Segment what has no row yet, on the cluster Ray is connected to; return how many images there are, and failed.

    Raises SegmenterError for what cannot be used, and what stopped the run otherwise.
    """
    given, target = Folder(images), Folder(out)
    if target.fs.protocol == given.fs.protocol and f"{target.root}/".startswith(f"{given.root}/"):
        raise SegmenterError(f"--out {out}: lies in the folder of images; give another", INVALID_ARGUMENT)
    listed = {
        name: file
        for name, file in given.files().items()
        if PurePosixPath(name or given.root).suffix.lower() in SUFFIXES
    }
    if not listed:
        raise SegmenterError(f"{images}: has no image ({', '.join(SUFFIXES)})", INVALID_ARGUMENT)
    with source.opened() as segmenter:
        whose = identity(segmenter)
    if (before := target.read_json(IDENTITY_FILE) or whose) != whose:
        raise SegmenterError(
            f"--out {out}: has masks of segmenter {before.get('segmenter')} ({before.get('hash')}), expected "
            f"{whose['segmenter']} ({whose['hash']}); give another folder",
            INVALID_ARGUMENT,
        )
    target.write_json(IDENTITY_FILE, whose)
    done = {path for path, error in _rows(target, listed) if not error}
    todo = [(name, file.size, file.changed) for name, file in listed.items() if name not in done]
    print(f"{len(listed)} images, {len(done)} of them done before -> {target.url}", file=sys.stderr, flush=True)
    if todo:
        table = pa.table(dict(zip(_KEY, map(list, zip(*todo, strict=True)), strict=True)))
        fit = min(int(ray.cluster_resources().get("CPU", 0) // max(cpus, 0.01)), workers or len(todo), len(todo)) or 1
        blocks = max(-(-len(todo) // _MOST_IN_A_TASK), min(len(todo), 4 * fit))
        (
            ray.data.from_arrow(table, override_num_blocks=blocks)
            .map_batches(
                Worker,
                fn_constructor_args=(source, given.url, target.url, keep, whose),
                batch_format="pyarrow",
                batch_size=_BATCH,
                compute=ActorPoolStrategy(min_size=1, initial_size=fit, max_size=workers),
                num_cpus=cpus,
            )
            # Writing takes no share of a processor, or it would wait for workers that hold all of them.
            .write_parquet(
                target.path(RESULTS),
                filesystem=target.fs,
                min_rows_per_file=rows_per_file,
                ray_remote_args={"num_cpus": 0},
            )
        )
    errors = [error for _, error in _rows(target, listed, mend=False) if error]
    for error in errors[:_SHOWN_ERRORS]:
        print(f"error: {error}", file=sys.stderr)
    if len(errors) > _SHOWN_ERRORS:
        print(f"error: … and {len(errors) - _SHOWN_ERRORS} more, in the column error", file=sys.stderr)
    return len(listed), len(errors)


def _rows(target: Folder, listed: Mapping[str, File], mend: bool = True) -> list[tuple[str, str | None]]:
    """Return path and error of the rows about images as they are now.

    With `mend`, rows with an error and rows about images that were changed since leave their files, as they are about
    to be made anew, and files that a kill has cut short are removed.
    """

    def read(name: str) -> list[tuple[str, str | None]]:
        path = target.path(f"{RESULTS}/{name}")
        try:
            rows = pq.read_table(path, columns=[*_KEY, "error"], filesystem=target.fs).to_pylist()
        except (pa.ArrowInvalid, OSError):
            if not mend:
                raise
            target.remove(f"{RESULTS}/{name}")
            return []
        current = [listed.get(row["path"], File(row["size"], row["changed"])) for row in rows]
        same = [File(row["size"], row["changed"]) == file for row, file in zip(rows, current, strict=True)]
        stays = [fits and not row["error"] for row, fits in zip(rows, same, strict=True)]
        if mend and not all(stays):
            buffer = pa.BufferOutputStream()
            pq.write_table(pq.read_table(path, filesystem=target.fs).filter(pa.array(stays)), buffer)
            target.write(f"{RESULTS}/{name}", buffer.getvalue().to_pybytes())
        return [
            (row["path"], row["error"]) for row, fits in zip(rows, same, strict=True) if fits and row["path"] in listed
        ]

    names = Folder(f"{target.url}/{RESULTS}").files()
    return [row for rows in in_order(read, [name for name in names if name.endswith(".parquet")]) for row in rows]

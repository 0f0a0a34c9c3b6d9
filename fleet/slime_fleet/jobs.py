"""The table of segmenters to learn: a line is a name and options of `slime optimize`.

    name,image,mask,parts,steps                       a CSV; a cell is what is typed after the option
    car,cars/1.png,cars/1-parts.png,background body wheel,200
    {"name": "car", "data": "annotated/cars", "no-report": true}      or a line of JSON for each

Paths are looked for beside the table; image, mask, data, legend, validation and begin may lie in an object store.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slime_fleet.folder import Folder
from slime_optimize.commands import run
from slime_optimize.errors import InputError

# Options whose values are files or folders.
INPUTS = ("image", "mask", "data", "legend", "validation", "begin")
_PATHS = (*INPUTS, "backbone", "tiny-encoder")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A segmenter to learn; `words`: the options of `slime optimize`; `error`: why they cannot be used, or ""."""

    name: str
    words: tuple[str, ...]
    error: str = ""

    def made_from(self) -> str:
        """Return what tells the job from any other: its words, and size and time of the files that they name."""
        found = [
            [word, {name: [file.size, file.changed] for name, file in Folder(word).files().items()}]
            for word in self.words
            if "://" in word or Path(word).is_absolute()
        ]
        return hashlib.sha256(json.dumps([self.words, found], sort_keys=True).encode()).hexdigest()


def read(table: Path, common: Sequence[str] = ()) -> list[Job]:
    """Return the jobs of a table, .csv or .jsonl, in its order; `common` are words for all, before a line's own.

    A line whose options `slime optimize` would refuse is a job with an error. Raises InputError for a table that cannot
    be read, and for names that are missing, no names, or there twice.
    """
    try:
        text = table.read_text(encoding="utf-8-sig")
        rows = list(_csv(text) if table.suffix.lower() == ".csv" else _json_lines(text))
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"jobs {table}: cannot be read ({reason}); give a .csv or .jsonl file") from error
    jobs = [_job(table, number, row, common) for number, row in rows]
    names = [job.name.casefold() for job in jobs]
    if twice := sorted({name for name in names if names.count(name) > 1}) if len({*names}) < len(names) else []:
        raise InputError(f"jobs {table}: the name {twice[0]!r} is there twice; each is a folder of its own")
    if not jobs:
        raise InputError(f"jobs {table}: has no line; expected one for each segmenter to learn")
    return jobs


def _csv(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text))
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"line {reader.line_num} has another number of cells than the first")
        yield reader.line_num, {key: _cell(value) for key, value in row.items()}


def _cell(text: str) -> Any:
    return {"": None, "true": True, "false": False}.get(text.strip().lower(), shlex.split(text))


def _json_lines(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is no JSON object")
            yield number, row


def _job(table: Path, number: int, row: dict[str, Any], common: Sequence[str]) -> Job:
    given = row.pop("name", None)
    name = " ".join(given) if isinstance(given, list) else str(given or "")
    if not _NAME.fullmatch(name):
        raise InputError(
            f"jobs {table}, line {number}: got the name {name!r}, expected one of up to 64 letters, digits, _ and -, "
            "that begins with a letter or digit, in the column name"
        )
    words = [*_resolved(common, Path.cwd())]
    for key, value in row.items():
        option = f"--{key.strip().replace('_', '-')}"
        if isinstance(value, bool):
            words.append(option if value else f"--no-{option[2:]}")
        elif value is not None:
            words += [option, *map(str, value if isinstance(value, list) else [value])]
    words = list(_resolved(words, table.resolve().parent))
    return Job(name=name, words=tuple(words), error=_refusal(words))


def _resolved(words: Iterable[str], folder: Path) -> Iterator[str]:
    """Yield the words, paths in `folder` with all of it: workers are in another one."""
    option = ""
    for word in words:
        option = word[2:] if word.startswith("--") else option
        is_path = option in _PATHS and not word.startswith("--") and "://" not in word and (folder / word).exists()
        yield str((folder / word).resolve()) if is_path else word


def _refusal(words: Sequence[str]) -> str:
    """Return why `slime optimize` refuses the words; "" where it does not."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
        try:
            run.parser(prog="slime optimize").parse_args([*words, "--out", "out"])
        except SystemExit:
            return told.getvalue().strip().removeprefix("error: ") or "--help is no option of a job"
    return "--out is given by slime fleet; leave it out" if {"--out", "--restart"} & {*words} else ""

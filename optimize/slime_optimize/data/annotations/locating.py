"""Which file is the image that an export names: by its whole path first, then by less of it where that is unique.

Names are paths of either kind of slash, URLs, and Label Studio's "/data/local-files/?d=PATH"; %20 stands for a space,
and letters with accents may be written in either of Unicode's forms.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import normalize
from urllib.parse import unquote, urlsplit

from slime_optimize.errors import InputError

# Below the folder that holds one of these, images are looked for as well.
JSON_FOLDERS = ("annotations", "json", "labels")
_IMAGES = "images"
# Label Studio puts eight digits before the names of uploaded files.
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")
_ADDRESS = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")
_LOCAL_FILE = re.compile(r"/local-files/?\?(?:.*&)?d=([^&]+)")
_DRIVE = re.compile(r"^[a-zA-Z]:(?=/)")


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """An entry's file: the name it gave, whether all of that was found, and whether it was of another machine."""

    name: str
    subject: str
    whole: bool
    absolute: bool


@dataclass(kw_only=True)
class Locator:
    """Finds the images of one export in `folders`, the first of which is searched below, too.

    names: of all images of the export, annotated or not. Two entries that end alike are told apart by their folders
    alone. once: whether a file may belong to one entry at most, even if two give it the same name.
    subset: the folder that the export's own name points to, "val2017" for instances_val2017.json.
    claims: the files that were found, shared by exports that are read together.
    """

    folders: Sequence[Path]
    names: Iterable[str] = ()
    once: bool = False
    subset: str = ""
    claims: dict[Path, _Claim] = field(default_factory=dict)
    _below: dict[str, list[Path]] | None = field(default=None, init=False)
    _ends: dict[str, set[str]] | None = field(default=None, init=False)

    def find(self, name: str, subject: str, beside: Path | None = None) -> Path:
        """Return the file that the export calls `name`, seen from the folder `beside` first.

        Raises InputError where there is none, or not one alone.
        """
        if not name.strip("/\\. "):
            raise InputError(f"{subject}: names no image, got {name!r}; export again")
        whole = self._whole(name, [*([beside] if beside else []), *self.folders])
        path = whole or self._shortened(name, subject)
        absolute = re.match(r"([a-zA-Z]:)?[/\\]|[a-zA-Z][a-zA-Z0-9+.-]+://", name) is not None
        self._claim(path, _Claim(name=spellings(name)[0], subject=subject, whole=whole is not None, absolute=absolute))
        return path

    def _whole(self, name: str, folders: Sequence[Path]) -> Path | None:
        """Return the file at the whole path that was given, below one of the folders or their images/."""
        below = [_IMAGES, *([self.subset, f"{_IMAGES}/{self.subset}"] if self.subset else [])]
        for wanted in spellings(name):
            for folder in dict.fromkeys(folders):
                for path in (folder / wanted, *(folder / place / wanted.lstrip("/") for place in below)):
                    found = _existing(path)
                    if found is not None:
                        return found
        return None

    def _shortened(self, name: str, subject: str) -> Path:
        """Return the only file whose path ends as the name does, of which leading folders are left out one by one."""
        for wanted in spellings(name):
            steps = wanted.strip("/").split("/")
            for start in range(len(steps)):
                end = "/".join(steps[start:])
                found = [path for path in self._files().get(_form(steps[-1]), []) if _ends_with(path, end)]
                if len(found) > 1:
                    raise self._unknown(name, subject, f"found {len(found)} files of that name")
                if found:
                    self._check_alone(name, wanted, end, found[0], subject)
                    return found[0]
        raise self._unknown(name, subject, "there is no such file")

    def _check_alone(self, name: str, wanted: str, end: str, path: Path, subject: str) -> None:
        """Raise InputError where another image of the export ends alike: the file may as well be that one's."""
        if self._ends is None:
            self._ends = {}
            for other in self.names:
                spelled = _form(spellings(other)[0]).strip("/")
                self._ends.setdefault(spelled.rpartition("/")[2], set()).add(spelled)
        mine = _form(spellings(name)[0]).strip("/")
        others = self._ends.get(mine.rpartition("/")[2], set()) - {mine}
        if end != wanted.strip("/") and any(f"/{other}".endswith(f"/{_form(end)}") for other in others):
            raise self._unknown(
                name, subject, f"{path} may be that of another entry, {min(others)!r}, as well, and it is"
            )

    def _claim(self, path: Path, claim: _Claim) -> None:
        key = path.resolve()
        before = self.claims.setdefault(key, claim)
        if before is claim:
            return
        same = before.name == claim.name
        apart = not (before.whole and claim.whole) and not (before.whole and claim.absolute)
        apart = apart and not (claim.whole and before.absolute)
        if self.once or (apart and not same):
            raise InputError(
                f"{claim.subject}: {path} is already the image of the entry {before.name!r}, expected a file for each; "
                "put the images where their names say, or take one of the two entries out"
            )

    def _files(self) -> dict[str, list[Path]]:
        """Return all files below the first folder, and beside a folder for JSON, by name."""
        if self._below is None:
            self._below = {}
            roots = [self.folders[0]]
            if roots[0].resolve().name.casefold() in JSON_FOLDERS:
                roots = [roots[0].parent if roots[0].name not in ("", "..") else roots[0] / ".."]
            for root in roots:
                for folder, _, names in os.walk(root):
                    for name in names:
                        self._below.setdefault(_form(name), []).append(Path(folder, name))
            for found in self._below.values():
                found.sort()
        return self._below

    def _unknown(self, name: str, subject: str, ways: str) -> InputError:
        return InputError(
            f"{subject}: belongs to the image {name!r}, but {ways} in {self.folders[0]}; "
            "export with the images, or put them where the name says, beside the annotations"
        )


def spellings(name: str) -> list[str]:
    """Return the paths that a name may mean, most literal first; with slashes, without a drive or a server."""
    plain = _DRIVE.sub("", name.replace("\\", "/"))
    paths = [plain]
    if local := _LOCAL_FILE.search(plain):
        paths = [unquote(local[1])]
    elif _ADDRESS.match(name):
        paths = [unquote(urlsplit(name).path)]
    elif "%" in plain:
        paths.append(unquote(plain))
    cut = [f"{head}{slash}{_UPLOAD.sub('', last)}" for head, slash, last in (path.rpartition("/") for path in paths)]
    return [path for path in dict.fromkeys([*paths, *cut]) if path.strip("/. ")] or [plain]


def _existing(path: Path) -> Path | None:
    """Return the file of that path, each of whose names may be written in Unicode's other form; None without one."""
    try:
        if path.is_file():
            return path
        if str(path).isascii():
            return None
        at = Path(path.anchor)
        for name in path.relative_to(path.anchor).parts:
            alike = [at / name] if (at / name).exists() else list(_alike(at, name))
            if len(alike) != 1:
                return None
            at = alike[0]
        return at if at.is_file() else None
    except (OSError, ValueError):  # Names too long or with a zero byte are those of no file.
        return None


def _alike(folder: Path, name: str) -> Iterator[Path]:
    return (path for path in folder.iterdir() if _form(path.name) == _form(name))


def _ends_with(path: Path, end: str) -> bool:
    return f"/{_form(path.as_posix())}".endswith(f"/{_form(end)}")


def _form(text: str) -> str:
    return normalize("NFC", text)

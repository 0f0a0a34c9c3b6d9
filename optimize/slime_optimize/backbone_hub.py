"""Where a backbone's or tiny encoder's files are: a folder, or a hub id, of which exactly what is read is fetched.

A hub id is OWNER/NAME, or OWNER/NAME@REVISION with a branch, tag or commit. What can only be a path is never looked up
on the network.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from slime_optimize.backbone_weights import choose_weights, no_weights
from slime_optimize.errors import BackboneError, first_line

SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")  # suffixes of checkpoints in one file
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@\S+)?")
Choice = Callable[[str, list[str]], list[str]]  # subject and names in the repository -> names to fetch


def locate(name: str, choose: Choice, subject: str = "backbone", also: str = "'embedded', ") -> tuple[Path, str]:
    """Return the folder called `name`, or the files of a hub id that `choose` names, and the id to find them by again.

    `subject` is what is looked for, `also` what else could have been given, for messages. Raises BackboneError.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder, str(folder.resolve())
    expected = f"expected {also}a folder in diffusers layout, or a hub id (OWNER/NAME or OWNER/NAME@REVISION)"
    if folder.is_file():
        suffixes = "; a checkpoint in one file ends in .safetensors or .ckpt" if also else ""
        raise BackboneError(f"{subject} {name}: is a file; {expected}{suffixes}")
    if _is_path(name):
        hub = f"; the hub's {name} is {name}@main" if _HUB_ID.fullmatch(name) and "@" not in name else ""
        raise BackboneError(f"{subject} {name}: no such folder or file; {expected}{hub}")
    if not _HUB_ID.fullmatch(name):
        raise BackboneError(f"{subject} {name}: neither a folder nor a hub id; {expected}")
    return _fetch(name, choose, subject, expected), name


def choose_models(subject: str, names: list[str], parts: dict[str, str], others: set[str]) -> list[str]:
    """Return the names to fetch: `others` that are there, and of each part (folder: stem) the config and weights.

    Raises BackboneError for a part with a config and without weights that can be read, before anything is fetched.
    """
    chosen = [name for name in names if name in others]
    for part, stem in parts.items():
        at = f"{part}/" if part else ""
        inside = [name.removeprefix(at) for name in names if name.startswith(at) and "/" not in name.removeprefix(at)]
        if "config.json" not in inside:
            continue
        weights = choose_weights(inside, stem)
        if weights is None:
            raise no_weights(subject, part, stem, inside)
        chosen += [at + name for name in ("config.json", *weights.files, *filter(None, [weights.index]))]
    return chosen


def _is_path(name: str) -> bool:
    """Return whether `name` can only be a path: by its form, or because its first folder is there."""
    repository, at, _ = name.partition("@")
    if Path(name).is_absolute() or name.startswith((".", "~")) or "\\" in name:
        return True
    if repository.count("/") > 1 or repository.lower().endswith(SINGLE_FILES):
        return True
    return not at and "/" in name and Path(Path(name).parts[0]).is_dir()


def _fetch(name: str, choose: Choice, subject: str, expected: str) -> Path:
    """Return the folder of a hub id's files: fetched, or without a network those that were fetched before."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    repository, _, given = name.partition("@")
    where, revision = f"{subject} {name}", given or None
    try:
        try:
            info = huggingface_hub.HfApi().model_info(repository, revision=revision)
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError):
            raise
        except Exception as offline:  # for which each release of the hub's client has errors of its own
            try:
                return Path(huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True))
            except Exception:
                raise offline from None
        names = [sibling.rfilename for sibling in info.siblings or []]
        wanted = choose(where, names)
        single = [each for each in names if "/" not in each and each.endswith(SINGLE_FILES)]
        if not wanted and single:
            raise BackboneError(
                f"{where}: is not in diffusers layout; it has the single file {single[0]}: "
                "download that file, and give its path"
            )
        return Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except RevisionNotFoundError as error:
        raise BackboneError(f"{where}: the hub has {repository}, but no revision {revision or 'main'!r}") from error
    except BackboneError:
        raise
    except Exception as error:  # foreign; the user gets one line
        raise BackboneError(
            f"{where}: neither a folder nor a hub id that can be fetched ({first_line(error)}); "
            f"{expected} with the network there"
        ) from error

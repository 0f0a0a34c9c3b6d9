"""The repository as Triton sees it: a link, which leads to folders with changed configurations while Triton starts.

A configuration can also be changed when Triton is up, by loading the model again. But clients ask as soon as Triton's
ports are open, and a server that starts again under load then hung (seen with Triton 2.51, a second process for a model
in use). So Triton finds the changed configuration when it starts. Afterwards the link leads to the repository itself:
what is published from then on is there, and what is loaded stays as it is, until a newer version of it comes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from slime_serve.repository import Repository

CONFIG = "config.pbtxt"


class View:
    """Kept in ``folder``, which must exist; ``path`` is what Triton is given. Nothing is written to the repository."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "models"
        self._changed = folder / "changed"

    def change(self, found: Repository, configs: Mapping[str, str]) -> None:
        """``configs``: the whole text of a configuration, by model; the others are the repository's."""
        shutil.rmtree(self._changed, ignore_errors=True)
        self._changed.mkdir()
        for entry in found.path.iterdir():
            shown = self._changed / entry.name
            if entry.name not in configs:
                shown.symlink_to(entry)
                continue
            shown.mkdir()
            for part in entry.iterdir():
                if part.name != CONFIG:
                    (shown / part.name).symlink_to(part)
            (shown / CONFIG).write_text(configs[entry.name], encoding="utf-8")
        self._lead_to(self._changed)

    def settle(self, found: Repository) -> None:
        """Show the repository itself."""
        self._lead_to(found.path)

    def _lead_to(self, folder: Path) -> None:
        beside = self.path.with_name(f".{self.path.name}")
        beside.unlink(missing_ok=True)
        beside.symlink_to(folder)
        os.replace(beside, self.path)

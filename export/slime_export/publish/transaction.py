"""Changes of a repository and of the server that serves it, kept or undone together.

Knows models, versions and their order of loading; what they are for is its callers' business.
"""

from __future__ import annotations

from pathlib import Path

from slime_export.errors import ExportError, ServerError
from slime_export.publish.changes import Changes
from slime_export.publish.server_control import Server
from slime_repository import layout
from slime_repository.layout import CONFIG

# Triton keeps the latest two versions of a model: the one that serves and the one being published.
LOADED = 2


class Transaction:
    """`staging`: as `lock.staging` gives it. `server` may be None: then only files change."""

    def __init__(self, repository: Path, staging: Path, changes: Changes, server: Server | None) -> None:
        self.repository, self.staging, self.changes, self.server = repository, staging, changes, server
        self._touched: set[str] = set()

    def add(self, staged: Path, version: int, config: str) -> None:
        """`staged`/`version` becomes a version of the model of the same name, and is loaded.

        A new model arrives whole, in one rename.
        """
        target = self.repository / staged.name
        self._load_after_undo(staged.name)
        if target.exists():
            self.changes.place(staged / str(version), target / str(version))
            if layout.config_text(target) != config:
                self.changes.write(target / CONFIG, config)
        else:
            (staged / CONFIG).write_text(config, encoding="utf-8")
            self.changes.place(staged, target)
        self._load(staged.name, version)

    def keep(self, model: str, version: int, config: str | None = None) -> None:
        """Goes on with a version that is there; a config.pbtxt that differs is replaced."""
        folder = self.repository / model
        differs = config is not None and layout.config_text(folder) != config
        if config is not None and differs:
            self._load_after_undo(model)
            self.changes.write(folder / CONFIG, config)
        if differs or (self.server and not self.server.has(model, version)):
            self._load(model, version)

    def check_users(self, model: str, version: int, besides: str) -> None:
        """Refuses a version that would push one out that a segmenter other than `besides` is pinned to."""
        kept = [*layout.versions(self.repository / model), version][-LOADED:]
        for user, used in layout.users(self.repository, model, besides=besides).items():
            if used not in kept:
                raise ExportError(
                    f"repository {self.repository}: {user} still uses version {used} of {model}, which version "
                    f"{version} would push out; export {user} again first"
                )

    def take_orphans(self, model: str, serving: int | None) -> None:
        """Left by a publication that was killed; they would push the version that serves out of the latest two."""
        if serving is not None:
            self.take(model, [each for each in layout.versions(self.repository / model) if each > serving])

    def take(self, model: str, versions: list[int]) -> None:
        """Moves versions out. A running server is told with the model's next load."""
        if versions:
            self._load_after_undo(model)
        for version in versions:
            self.changes.take(self.repository / model / str(version))

    def remove(self, model: str) -> None:
        """Unloads a model, with what it still has to answer answered, and moves it out in one rename."""
        self._load_after_undo(model)
        if self.server:
            self.server.unload(model)
        self.changes.take(self.repository / model)

    def next_version(self, model: str) -> int:
        return max(layout.versions(self.repository / model), default=0) + 1

    def _load(self, model: str, version: int) -> None:
        if self.server:
            self.server.load(model)
            self.server.require(model, version)

    def _load_after_undo(self, model: str) -> None:
        """When the block fails: brings the server back to what the repository then says of `model`."""
        if self.server and model not in self._touched:
            self._touched.add(model)
            self.changes.on_undo(lambda: self._reload(model))

    def _reload(self, model: str) -> None:
        assert self.server
        try:
            if (self.repository / model).exists():
                self.server.load(model)
            else:
                self.server.unload(model)
        except ServerError:
            pass  # the failure that led here is the one to tell

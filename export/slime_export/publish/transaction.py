"""Changes of a repository and of the server that serves it, kept or undone together.

Knows models, their versions and the order in which they are loaded; what they are for is its callers' business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from slime_export.errors import BusyError, ExportError, ServerError
from slime_export.publish.changes import Changes
from slime_export.publish.lock import Say, locked, staging
from slime_export.publish.server_control import Server
from slime_repository import config as triton_config
from slime_repository import layout, served_code
from slime_repository.config import LOADED
from slime_repository.layout import CONFIG


class Transaction:
    """`staging`: as `lock.staging` gives it. `server` may be None: then only files change."""

    def __init__(self, repository: Path, staging: Path, changes: Changes, server: Server | None) -> None:
        self.repository, self.staging, self.changes, self.server = repository, staging, changes, server
        self._touched: set[str] = set()

    def add(self, staged: Path, version: int, config: str) -> None:
        """Make `staged`/`version` a version of the model of the same name, and load it.

        A new model arrives whole, in one rename.
        """
        target = self.repository / staged.name
        self._load_after_undo(staged.name)
        if target.exists():
            self.changes.place(staged / str(version), target / str(version))
            if not triton_config.same(layout.config_text(target), config):
                self.changes.write(target / CONFIG, config)
        else:
            (staged / CONFIG).write_text(config, encoding="utf-8")
            self.changes.place(staged, target)
        self.load(staged.name, version)

    def add_files(self, files: Path, model: str, config: str) -> int:
        """Make the staged folder `files` the next version of `model`, load it, and return its number."""
        version, staged = self.next_version(model), self.staging / model
        staged.mkdir(parents=True, exist_ok=True)
        files.rename(staged / str(version))
        self.add(staged, version, config)
        return version

    def keep(self, model: str, version: int, config: str | None = None) -> int:
        """Go on with a version that is there, and return it; a config.pbtxt that says something else is replaced."""
        folder = self.repository / model
        differs = config is not None and not triton_config.same(layout.config_text(folder), config)
        if config is not None and differs:
            self.write_config(model, config)
        if differs or (self.server and not self.server.has(model, version)):
            self.load(model, version)
        return version

    def write_config(self, model: str, config: str) -> None:
        """Put `config` in place of the model's config.pbtxt. A running server is told with the model's next load."""
        self._load_after_undo(model)
        self.changes.write(self.repository / model / CONFIG, config)

    def add_shared_files(self, files: Path, model: str, config: str, besides: str | None = None) -> int:
        """As `add_files`, for a model that several segmenters use: all versions that one is pinned to stay loaded.

        With `besides`, raises ExportError where an ensemble but that one would need more than the latest two.
        """
        new, folder = self.next_version(model), self.repository / model
        if besides is not None:
            self._check_users(model, new, besides)
        config = loading(self.repository, model, config, [*self._versions(model), new])
        if folder.exists() and not triton_config.same(layout.config_text(folder), config):
            # Before the version is there: a kill in between must not leave one too many for those that are loaded.
            self.write_config(model, config)
        return self.add_files(files, model, config)

    def python_model(self, model: str, kind: str, config: str, besides: str | None = None) -> int:
        """Return the version of `model` with this project's code of `kind`, which is there already, or is added.

        Raises as `add_shared_files` does.
        """
        folder, latest = self.repository / model, max(self._versions(model), default=0)
        if latest and served_code.is_current(folder, latest, kind):
            return self.keep(model, latest, loading(self.repository, model, config, self._versions(model)))
        # The packages go into the version's own folder, which Triton puts before the model's on sys.path: the versions
        # before keep theirs.
        files = self.staging / ".code" / model
        for name, content in served_code.wanted_files(kind).items():
            (files / name).parent.mkdir(parents=True, exist_ok=True)
            (files / name).write_bytes(content)
        return self.add_shared_files(files, model, config, besides)

    def take_orphans(self, model: str, serving: int | None) -> None:
        """Take out what a killed publication left, which would push the version that serves out of the latest two."""
        if serving is not None:
            self.take(model, [each for each in self._versions(model) if each > serving])

    def take(self, model: str, versions: list[int]) -> None:
        """Move versions out. A running server is told with the model's next load."""
        if versions:
            self._load_after_undo(model)
        for version in versions:
            self.changes.take(self.repository / model / str(version))

    def remove(self, model: str) -> None:
        """Unload a model, with what it still has to answer answered, and move it out in one rename."""
        self._load_after_undo(model)
        if self.server:
            self.server.unload(model)
        self.changes.take(self.repository / model)

    def retire(self, models: set[str], used: set[tuple[str, int]]) -> None:
        """Move the versions out of `models` that are not among `used` (model, version); models without any whole."""
        for model in sorted(models):
            if served_code.is_own(self.repository, model) or not (self.repository / model).exists():
                continue
            there = self._versions(model)
            wanted = [each for each in there if (model, each) in used]
            if wanted:
                self.take(model, [each for each in there if each not in wanted])
            else:
                self.remove(model)

    def next_version(self, model: str) -> int:
        return max(self._versions(model), default=0) + 1

    def _versions(self, model: str) -> list[int]:
        return layout.versions(self.repository / model)

    def _check_users(self, model: str, version: int, besides: str) -> None:
        """Refuse a version that would push one out that a segmenter other than `besides` is pinned to."""
        kept = [*self._versions(model), version][-LOADED:]
        for user, used in layout.users(self.repository, model, besides=besides).items():
            if used not in kept:
                raise ExportError(
                    f"repository {self.repository}: {user} still uses version {used} of {model}, which version "
                    f"{version} would push out; bring it up to date first: python export/repository.py upgrade "
                    f"{self.repository} (or export {user} again)"
                )

    def load(self, model: str, version: int) -> None:
        """Have the running server load the model, and require that it has this version."""
        if self.server:
            self.server.load(model)
            self.server.require(model, version)

    def _load_after_undo(self, model: str) -> None:
        """When the block fails, bring the server back to what the repository then says of `model`."""
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


def settle(repository: Path, models: Iterable[str], server: Server | None, *, wait_s: float, say: Say) -> None:
    """Have no more versions of shared models loaded than are needed, now that segmenters have moved on.

    In a transaction of its own, so that nothing else is undone where it fails. Then versions that nobody needs stay
    loaded until the next change, which is said and no error.
    """
    wanted: dict[str, str] = {}
    for model in models:
        there, text = layout.versions(repository / model), layout.config_text(repository / model)
        if there and not served_code.is_own(repository, model):
            config = loading(repository, model, text, there)
            wanted |= {} if triton_config.same(text, config) else {model: config}
    if not wanted:
        return
    try:
        with changing(repository, server, wait_s, say) as transaction:
            for model, config in wanted.items():
                transaction.keep(model, layout.versions(repository / model)[-1], config)
    except (ServerError, BusyError, OSError) as error:
        say(f"older versions of {', '.join(wanted)} stay loaded until the next change: {error}")


def loading(repository: Path, model: str, config: str, versions: list[int]) -> str:
    """Return `config` with so many of these versions loaded that nobody's is missing, two at least."""
    lowest = min(layout.users(repository, model).values(), default=versions[-1])
    return triton_config.loading(config, max(LOADED, sum(each >= lowest for each in versions)))


@contextmanager
def changing(repository: Path, server: Server | None, wait_s: float, say: Say) -> Iterator[Transaction]:
    """Give a transaction of a repository that is there, under its lock; kept when the block ends well, else undone.

    Raises RepositoryError, ServerError, BusyError or OSError.
    """
    layout.require_repository(repository)
    with staging(repository, wait_s, say) as staged, opened(repository, staged, server, wait_s, say) as transaction:
        yield transaction


@contextmanager
def opened(repository: Path, staged: Path, server: Server | None, wait_s: float, say: Say) -> Iterator[Transaction]:
    """As `changing`, with a staging folder that is there."""
    with (
        locked(repository, wait_s, say),
        Changes(repository, staged, lambda: served_code.published(repository)) as changes,
    ):
        if server:
            server.unload_trials()
        yield Transaction(repository, staged, changes, server)

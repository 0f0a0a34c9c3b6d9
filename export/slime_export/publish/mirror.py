"""Makes a repository what an object store has, as a publication does: no request is lost, and nobody sees half of it.

    networks, Python models (load) > ensembles (tried, load) > shared segmenters (tried) > what the store has not leaves

Files, versions and their numbers become those of the store, so that the manifests are the same. Where new content comes
from is its caller's business.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from slime_export.publish.shared_segmenter import try_file
from slime_export.publish.transaction import Transaction, loading
from slime_repository import config as triton_config
from slime_repository import layout, record, shared_store
from slime_repository.contract import SEGMENTERS
from slime_repository.errors import ObjectStoreError
from slime_repository.layout import CONFIG
from slime_repository.manifest import Entry
from slime_repository.object_store import Generation
from slime_repository.record import Check
from slime_repository.shared_contract import STORE, is_group
from slime_repository.shared_store import CHECKS, HISTORY, VERSION
from slime_repository.synced import Contents

Version = tuple[str, int]  # a model, and one of its versions


class Plan:
    """What is to be done so that `repository`, which holds `found`, holds what the store's `head` does.

    `removed`: models of which a version that serves has other content in the store, or is higher than a new one there,
    and the ensembles with them: something was removed and made anew. They leave first; Triton takes a version for what
    it has loaded. `unused`: versions that nothing serves with and that the store has not; they leave first as well.
    `new`: the files that are to come; `versions`: of each model, those that are to come, lowest first. `gone`: files
    that are to leave. Raises ObjectStoreError for a generation that is no repository.
    """

    def __init__(self, repository: Path, found: Contents, head: Generation) -> None:
        have, want = _versions(found.files, found.folders), _versions(head.files, head.folders)
        self.all, self.models = set(want), sorted({model for model, _ in want})
        for model in sorted({path.split("/")[0] for path in head.files}):
            if model not in self.models or f"{model}/{CONFIG}" not in head.files:
                raise ObjectStoreError(f"generation {head.number}: {model} has no version or no {CONFIG}; push again")
        kept = {each for each in have if have[each] == want.get(each)}
        pins = {name: layout.pinned(repository / name) for name in layout.ensembles(repository)}
        serving = {pin for pinned in pins.values() for pin in pinned.items()}
        serving |= {(name, version) for name in pins if (version := layout.live_version(repository / name))}
        highest = dict(sorted(have.keys() & (kept | serving)))
        anew = {model for model, _ in (serving & have.keys() & want.keys()) - kept}
        anew |= {model for model, version in want.keys() - kept if version < highest.get(model, 0)}
        broken = [name for name in pins if name in anew or anew & pins[name].keys()]
        self.removed = [*broken, *sorted(anew - {*broken})]
        self.unused = sorted(each for each in have.keys() - kept - serving if each[0] not in self.removed)
        self.versions: dict[str, list[int]] = defaultdict(list)
        for model, version in sorted(want):
            if model in self.removed or (model, version) not in kept:
                self.versions[model].append(version)
        self.local = {each.sha256: repository / path for path, each in found.files.items()}
        stays = {path: each.sha256 for path, each in found.files.items() if path.split("/")[0] not in self.removed}
        stays = {path: sha256 for path, sha256 in stays.items() if _version(path) not in self.unused}
        self.new = {path: each for path, each in head.files.items() if stays.get(path) != each.sha256}
        self.gone = sorted(stays.keys() - head.files.keys())
        self.files = head.files


def _versions(files: Mapping[str, Entry], folders: Iterable[str]) -> dict[Version, dict[str, str]]:
    """Return the SHA-256 of each file of each version, which may have none."""
    found: dict[Version, dict[str, str]] = defaultdict(dict)
    for path, each in files.items():
        if version := _version(path):
            found[version][path] = each.sha256
    for folder in folders:
        if version := _version(f"{folder}/"):
            found[version]
    return dict(found)


def _version(path: str) -> Version | None:
    """Return which version of which model a file is of; None for configurations, and what lies beside versions."""
    model, version, *rest = path.split("/")
    return (model, int(version)) if rest and version.isdecimal() else None


class Mirror:
    """Carries a plan out in a transaction; `downloads` has all new content."""

    def __init__(self, transaction: Transaction, plan: Plan, downloads: Path) -> None:
        self.transaction, self.plan, self.downloads = transaction, plan, downloads
        self.repository, self.root = transaction.repository, transaction.staging / ".pulled"
        self.configs = {model: self._content(f"{model}/{CONFIG}").decode() for model in plan.models}

    def run(self) -> None:
        """Do it. Raises as Transaction's steps do."""
        transaction, plan = self.transaction, self.plan
        for model in plan.removed:
            transaction.remove(model)
        for model, version in plan.unused:
            transaction.take(model, [version])
        # Only now, when it is known which models are made anew.
        whole = SEGMENTERS in plan.models and not (self.repository / SEGMENTERS).exists()
        self._stage()
        ensembles = [model for model in plan.models if triton_config.pins(self.configs[model])]
        networks = [model for model in plan.models if model not in ensembles]
        for model in networks:
            self._put_model(model)
        for model in ensembles:
            self._put_ensemble(model)
        self._put_segmenters(whole)
        for model in layout.ensembles(self.repository):
            if model not in plan.models:
                transaction.remove(model)
        transaction.retire({*layout.models(self.repository)}, plan.all)
        for model in networks:
            self._configure(model, self.configs[model])
        assert {path: each.sha256 for path, each in transaction.changes.manifest.settled().files.items()} == {
            path: each.sha256 for path, each in plan.files.items()
        }

    def _stage(self) -> None:
        """Link the files of new versions, and of models that are not there, into the staging folder."""
        for path, each in self.plan.new.items():
            model, name = path.split("/", 1)
            if _version(path) or (name != CONFIG and not (self.repository / model).exists()):
                target = self.root / path
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(self.downloads / each.sha256, target)
        for model, versions in self.plan.versions.items():
            for version in versions:
                (self.root / model / str(version)).mkdir(parents=True, exist_ok=True)

    def _put_model(self, model: str) -> None:
        """Put new versions of a network or a Python model beside those that serve, which stay loaded."""
        new, config, folder = self.plan.versions[model], self.configs[model], self.repository / model
        if folder.exists():
            for path in self._new(f"{model}/"):
                if not _version(path) and path != f"{model}/{CONFIG}" and not _of_segmenter(path):
                    self._write(path)
            if new:
                loose = loading(self.repository, model, config, sorted({*layout.versions(folder), *new}))
                config = config if triton_config.same(loose, config) else loose
            # Before the versions are there, as a Transaction does it.
            self._configure(model, config, loaded_later=bool(new))
        self._add(model, new, config)

    def _put_ensemble(self, model: str) -> None:
        """Have the running server try what an ensemble is to be, and switch to it."""
        config, server = self.configs[model], self.transaction.server
        if server and layout.config_text(self.repository / model) != config:
            for pinned, version in layout.pins(config).items():
                self.transaction.keep(pinned, version)
            checks: dict[str | None, Check | None] = {}
            if is_group(model):
                members = shared_store.members(self.repository, model) if (self.repository / model).exists() else []
                checks |= {name: shared_store.check_of(self.repository, name) for name in members}
            else:
                version = max(each for name, each in self.plan.all if name == model)
                place = self.root if version in self.plan.versions[model] else self.repository
                folder = place / model / str(version)
                # Of before there were records there is nothing to be asked.
                checks |= {None: record.read_check(folder)} if (folder / record.FACTS_FILE).exists() else {}
            for name, check in checks.items():
                if check:
                    server.try_out(model, config, check, name)
        self._add(model, self.plan.versions[model], config)
        self._configure(model, config)

    def _put_segmenters(self, whole: bool) -> None:
        """Put the files of shared segmenters, each tried by the running server first, and take those that are gone.

        `whole`: they came with the model, because there were none. Then their ensembles are new as well.
        """
        server, store = self.transaction.server, shared_store.store_of(self.repository)
        files = {Path(path).stem: path for path in self._new(f"{SEGMENTERS}/{STORE}/")}
        if not whole:
            for path in [*self._new(f"{SEGMENTERS}/{HISTORY}/"), *self._new(f"{SEGMENTERS}/{CHECKS}/")]:
                self._write(path)
            if files:
                store.folder.mkdir(exist_ok=True)
        for name, path in files.items():
            if server:
                file = self.downloads / self.plan.new[path].sha256
                told = shared_store.read_file(self.repository, file).description
                group, check = str(told["model"]), shared_store.check_of(self.repository, name, told[VERSION])
                if check:
                    self.transaction.keep(group, layout.versions(self.repository / group)[-1])
                    if whole:
                        server.try_shared(group, name, check)
                    else:
                        try_file(self.transaction, name, self._content(path), group, check)
            if not whole:
                self._write(path)
        left = [path for path in self.plan.gone if path.split("/")[0] in self.plan.models and not _version(path)]
        for place in sorted({self._emptied(path) for path in left}):
            self.transaction.changes.take(self.repository / place)

    def _emptied(self, path: str) -> str:
        """Return the highest folder that the file is in and the store has nothing of, or the file itself."""
        for parent in [str(each) for each in reversed(PurePosixPath(path).parents) if len(each.parts) > 2]:
            if not any(each.startswith(f"{parent}/") for each in self.plan.files):
                return parent
        return path

    def _add(self, model: str, versions: list[int], config: str) -> None:
        """Put staged versions into the repository, and load the model."""
        if versions and (self.repository / model).exists():
            for version in versions[:-1]:
                self.transaction.changes.place(self.root / model / str(version), self.repository / model / str(version))
        if versions:
            self.transaction.add(self.root / model, versions[-1], config)

    def _configure(self, model: str, config: str, *, loaded_later: bool = False) -> None:
        """Have the model's config.pbtxt be `config` to the byte, and loaded."""
        if layout.config_text(self.repository / model) == config:
            return
        self.transaction.write_config(model, config)
        if not loaded_later:
            self.transaction.load(model, layout.versions(self.repository / model)[-1])

    def _write(self, path: str) -> None:
        missing = [each for each in (self.repository / path).parents if not each.exists()]
        for folder in reversed(missing):
            folder.mkdir()
            self.transaction.changes.on_undo(folder.rmdir)
        self.transaction.changes.write(self.repository / path, self._content(path))

    def _content(self, path: str) -> bytes:
        new = self.plan.new.get(path)
        return (self.downloads / new.sha256 if new else self.repository / path).read_bytes()

    def _new(self, prefix: str) -> list[str]:
        return sorted(path for path in self.plan.new if path.startswith(prefix))


def _of_segmenter(path: str) -> bool:
    """Return whether the file is a shared segmenter's, or is kept of one."""
    return path.startswith(tuple(f"{SEGMENTERS}/{each}/" for each in (STORE, HISTORY, CHECKS)))

"""What a launch changes in the models' configurations, and how Triton is shown it.

A launch decides how many processes a model gets on this machine, and whether answers are cached; it tells clients what
an image took here; and it takes away the limit in seconds that older exports gave the encoder's queue. None of this
changes an answer. The repository stays as it is: Triton is given a link, which leads to folders with the changed
configurations while it starts. A model's configuration can also be changed when Triton is up, by loading the model
again. But clients ask as soon as the ports are open, and a server that starts again under load then hung (seen with
Triton 2.51, a second process for a model in use). Afterwards the link leads to the repository itself: what is published
from then on is there, and what is loaded stays as it is until a newer version of it comes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format  # type: ignore[import-untyped]

from slime_repository import contract
from slime_repository.contents import Repository
from slime_repository.layout import CONFIG
from slime_serve.settings import ServerSettings, UsageError

# One process of a model that decodes or weights for so many cores, up to the most.
CORES_PER_PROCESS = 4
MOST_PROCESSES = 4
# Of the model that makes masks, where there are cores for them: while the networks take all cores, one process is what
# requests queue for, one by one, and few reach the networks at once as a batch.
LEAST_OF_WAS = 2


def overrides(found: Repository, settings: ServerSettings, seconds: Mapping[str, float]) -> dict[str, str]:
    """Return model name -> the whole text of its configuration, where it differs from the repository's.

    ``seconds``: what an image took each ensemble, as far as that was measured.
    Raises UsageError for --instances of a model that the repository does not have.
    """
    for model in settings.instances:
        if model not in found.parts:
            raise UsageError(f"--instances {model}: no such model; the repository has {', '.join(found.parts)}")
    changed = {}
    for model in (*found.parts, *found.ensembles):
        config = type(found.configs[model])()
        config.CopyFrom(found.configs[model])
        for group in config.instance_group:
            group.count = settings.instances.get(model) or _processes(model, config)
        if model in seconds:
            config.parameters[contract.IMAGE_SECONDS].string_value = as_parameter(seconds[model])
        if config.dynamic_batching.default_queue_policy.default_timeout_microseconds:
            config.dynamic_batching.default_queue_policy.default_timeout_microseconds = 0
        # Only encoders: Triton's key is a request's bytes alone, neither shapes nor wanted outputs, and their one
        # output depends on nothing else. They are the dearest step, which all segmenters of a backbone share.
        if settings.response_cache and contract.is_encoder(model):
            config.response_cache.enable = True
        if config != found.configs[model]:
            changed[model] = str(text_format.MessageToString(config))
    return changed


def as_parameter(seconds: float) -> str:
    """Return the value of IMAGE_SECONDS."""
    return f"{seconds:.3g}"


def _processes(model: str, config: Any) -> int:
    """Return how many processes a model gets; a network uses all cores by itself."""
    if config.backend != "python":
        return max([1, *(int(group.count) for group in config.instance_group)])
    cores = len(os.sched_getaffinity(0))
    least = min(LEAST_OF_WAS, cores) if model == contract.WAS else 1
    return max(least, min(MOST_PROCESSES, cores // CORES_PER_PROCESS))


class View:
    """The link, kept in ``folder``, which must exist; ``path`` is what Triton is given. The repository is only read."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "models"
        self._changed = folder / "changed"

    def change(self, found: Repository, configs: Mapping[str, str]) -> None:
        """Show the repository with ``configs``, the whole text of a configuration by model, in place of its own."""
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

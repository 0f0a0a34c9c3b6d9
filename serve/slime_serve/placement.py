"""What a launch changes in the models' configurations: how many processes a model gets on this machine, and a cache.

Neither changes an answer. The repository stays as it is: view.py shows the server what is changed, and it goes on in
the same way until a newer version of that model is published.
"""

from __future__ import annotations

import os
from typing import Any

from slime_repository import contract
from slime_serve.errors import UsageError
from slime_serve.repository import Repository
from slime_serve.settings import ServerSettings

# One process of a model that decodes or weights for so many cores, up to the most.
CORES_PER_PROCESS = 4
MOST_PROCESSES = 4
# Of the model that makes masks, where there are cores for them: while the networks take all cores, one process is what
# requests queue for, one by one, and few reach the networks at once as a batch.
LEAST_OF_WAS = 2


def overrides(found: Repository, settings: ServerSettings) -> dict[str, str]:
    """Model name -> the whole configuration to load it with, as text; only where it differs from the repository's.

    Raises UsageError for --instances of a model that the repository does not have.
    """
    for model in settings.instances:
        if model not in found.parts:
            raise UsageError(f"--instances {model}: no such model; the repository has {', '.join(found.parts)}")
    changed = {}
    for model in found.parts:
        config = type(found.configs[model])()
        config.CopyFrom(found.configs[model])
        for group in config.instance_group:
            group.count = settings.instances.get(model) or _processes(model, config)
        # Only encoders: Triton's key is a request's bytes alone, neither shapes nor wanted outputs, and their one
        # output depends on nothing else. They are the dearest step, which all segmenters of a backbone share.
        if settings.response_cache and contract.is_encoder(model):
            config.response_cache.enable = True
        if config != found.configs[model]:
            changed[model] = _as_text(config)
    return changed


def _processes(model: str, config: Any) -> int:
    """Networks use all cores by themselves."""
    if config.backend != "python":
        return max([1, *(int(group.count) for group in config.instance_group)])
    cores = len(os.sched_getaffinity(0))
    least = min(LEAST_OF_WAS, cores) if model == contract.WAS else 1
    return max(least, min(MOST_PROCESSES, cores // CORES_PER_PROCESS))


def _as_text(config: Any) -> str:
    from google.protobuf import text_format  # type: ignore[import-untyped]

    return str(text_format.MessageToString(config))

"""Triton's command line for a launch's settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from slime_serve.repository import Repository
from slime_serve.security import LOOPBACK
from slime_serve.settings import ServerSettings
from slime_serve.wheel import Wheel


def threads(settings: ServerSettings) -> int:
    """Of each network."""
    return settings.threads or len(os.sched_getaffinity(0))


def models(repository: Repository, path: Path, *, tolerant: bool) -> list[str]:
    """``path``: where Triton finds the repository. ``tolerant``: go on without models that cannot be loaded.

    All are named here rather than loaded over the network afterwards: Triton opens its ports when they are loaded,
    and until then clients are refused as UNAVAILABLE, which they try again, and not as NOT_FOUND.
    """
    return [
        f"--model-repository={path}",
        # Explicit, so that publishing decides when and in which order a new version is loaded.
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in (*repository.parts, *repository.ensembles)),
        f"--exit-on-error={'false' if tolerant else 'true'}",
    ]


def arguments(
    settings: ServerSettings, wheel: Wheel, backends: Path, ports: Mapping[str, int], regions: str
) -> list[str]:
    """All but the models. ``backends``: their folder; ``regions``: how the shared memory's names begin."""
    return [
        f"--backend-directory={backends}",
        f"--cache-directory={wheel.caches}",
        f"--backend-config=python,shm-region-prefix-name={regions}",
        # Loading a network of several gigabytes takes longer than the usual 30 s.
        "--backend-config=python,stub-timeout-seconds=600",
        "--allow-gpu-metrics=false",
        f"--exit-timeout-secs={max(1, round(settings.drain))}",
        *_listening(settings, ports),
        *_tracing(settings),
        *([f"--cache-config=local,size={settings.response_cache}"] if settings.response_cache else []),
        *settings.triton,
    ]


def _tracing(settings: ServerSettings) -> list[str]:
    if settings.trace_otlp is None:
        return []
    words = ("mode=opentelemetry", f"rate={settings.trace_every}", "level=TIMESTAMPS")
    return [f"--trace-config={word}" for word in (*words, f"opentelemetry,url={settings.trace_otlp}")]


def _listening(settings: ServerSettings, ports: Mapping[str, int]) -> list[str]:
    hosts = {"grpc": settings.security.listen}
    return [
        argument
        for name, port in ports.items()
        for argument in (f"--{name}-address={hosts.get(name, LOOPBACK)}", f"--{name}-port={port}")
    ]

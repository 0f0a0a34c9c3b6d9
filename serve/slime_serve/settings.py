"""What a launch can be asked for, checked before anything is started."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from slime_serve.errors import UsageError
from slime_serve.security import Security

# Triton splits its arguments at commas.
_URL = re.compile(r"https?://[^\s,]+")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """``*_port`` 0: any free one. ``threads``: of each network, 0 for all cores. ``timeout``: seconds until ready.

    ``log``: file for the server's output; None for a temporary one that only a failure leaves behind. ``verify``:
    compare the repository's files with its manifest first.
    """

    repository: Path
    grpc_port: int = 8001
    http_port: int = 8000
    metrics_port: int = 8002
    threads: int = 0
    timeout: float = 300.0
    log: Path | None = None
    verify: bool = True
    # Seconds between two probes of a running server, each of the next segmenter in turn.
    probe: float = 5.0
    # Seconds that requests under way have to finish once the server is asked to stop.
    drain: float = 10.0
    # Processes of a model, by its name; the others get what suits the machine (placement.py).
    instances: Mapping[str, int] = field(default_factory=dict)
    # Bytes of memory for answers of the encoders to images that come again; 0: none.
    response_cache: int = 0
    # Where an OpenTelemetry collector takes traces (OTLP over HTTP), of one request in ``trace_every``.
    trace_otlp: str | None = None
    trace_every: int = 100
    # Further arguments of tritonserver, as they stand.
    triton: tuple[str, ...] = ()
    security: Security = field(default_factory=Security)

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise UsageError(f"threads: got {self.threads}, expected 1 or more (0: all cores)")
        for name in ("timeout", "probe", "drain"):
            seconds = getattr(self, name)
            if not seconds > 0:
                raise UsageError(f"{name}: got {seconds:g}, expected seconds above 0")
        for model, count in self.instances.items():
            if count < 1:
                raise UsageError(f"--instances {model}: got {count}, expected 1 or more")
        if self.response_cache < 0 or self.trace_every < 1:
            raise UsageError("--response-cache and --trace-every: expected 0 or more bytes, and 1 or more requests")
        if self.trace_otlp and not _URL.fullmatch(self.trace_otlp):
            raise UsageError(
                f"--trace-otlp: got {self.trace_otlp!r}, expected a URL, as http://127.0.0.1:4318/v1/traces"
            )

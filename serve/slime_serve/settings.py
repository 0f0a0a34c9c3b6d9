"""What a launch can be asked for, checked before anything is started."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from slime_serve.errors import UsageError
from slime_serve.security import Security


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

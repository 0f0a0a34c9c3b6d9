"""What a launch can be asked for, who may then reach the server, and what can go wrong, each in one line.

    ServeError
    ├── UsageError     the caller can put it right: a path, a port (exit code 2)
    └── ServerError    the server would not start, load or answer, or it died (exit code 1)

Only gRPC, and where it is asked for metrics and health, ever leave the loopback address. Whoever has the
administrator's key can make the server run code of theirs.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

LOOPBACK = "127.0.0.1"
# gRPC clients send it as `triton-grpc-protocol-slime-key`, HTTP clients as it stands.
HEADER = "slime-key"
RESTRICTED = ("model-repository", "shared-memory", "trace", "logging")
# The key stands on Triton's command line, which is split at commas and equals signs.
_KEY = re.compile(r"[A-Za-z0-9_-]{16,512}")
# Triton splits its arguments at commas.
_URL = re.compile(r"https?://[^\s,]+")


class ServeError(Exception):
    """Anything that went wrong, in one line."""

    exit_code = 1


class UsageError(ServeError):
    """Something that the caller can put right; nothing was started."""

    exit_code = 2


class ServerError(ServeError):
    """The server failed. ``log_tail``: its last lines, where its own words say more than the message."""

    def __init__(self, message: str, log_tail: str = "") -> None:
        super().__init__(message)
        self.log_tail = log_tail


class Stopped(Exception):  # noqa: N818 - it is none
    """Not an error: somebody asked to stop while the server was starting or serving."""


@dataclass(frozen=True, kw_only=True)
class Security:
    """Who may reach the server, and what they may ask.

    ``listen``: the address that gRPC listens on, with TLS unless ``insecure``. ``listen_http``: the address of metrics
    and health, in plain text; neither images nor anything that changes the server goes there. ``tls_ca``: only clients
    with a certificate of this authority are answered. ``admin_key_file``: holds the key that loading models and the
    like then needs; on another address than the loopback there is always a key, and without a file nobody knows it.

    Files are PEM. Raises UsageError for files that cannot be read, options that contradict each other, a weak key.
    """

    listen: str = LOOPBACK
    listen_http: str = LOOPBACK
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    insecure: bool = False
    admin_key_file: Path | None = None

    def __post_init__(self) -> None:
        for option, address in (("--listen", self.listen), ("--listen-http", self.listen_http)):
            try:
                ipaddress.IPv4Address(address)
            except ValueError as error:
                raise UsageError(
                    f"{option}: got {address!r}, expected an IPv4 address of this machine, or 0.0.0.0 for all"
                ) from error
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("TLS: expected both --tls-cert and --tls-key, got one of them; give the other too")
        if self.tls_ca and not self.has_tls:
            raise UsageError("--tls-ca: needs the server's own --tls-cert and --tls-key; give them too")
        if self.insecure and self.has_tls:
            raise UsageError("--insecure: contradicts --tls-cert; leave one of them out")
        if self.is_open and not self.has_tls and not self.insecure:
            raise UsageError(
                f"--listen {self.listen}: needs --tls-cert and --tls-key; "
                "give them, or --insecure to send images and masks in plain text"
            )
        for path in filter(None, (self.tls_cert, self.tls_key, self.tls_ca)):
            if "-----BEGIN" not in _read(path, "TLS"):
                raise UsageError(f"TLS: {path} is not in PEM form; convert it")

    @property
    def has_tls(self) -> bool:
        """Whether gRPC speaks TLS."""
        return self.tls_cert is not None

    @property
    def is_open(self) -> bool:
        """Whether other machines can reach it."""
        return not ipaddress.IPv4Address(self.listen).is_loopback

    def key(self) -> str | None:
        """Return the key that changing the server needs, or None where it needs none."""
        if self.admin_key_file is None:
            return secrets.token_urlsafe(32) if self.is_open else None
        key = _read(self.admin_key_file, "admin key").strip()
        if not _KEY.fullmatch(key):
            raise UsageError(
                f"admin key {self.admin_key_file}: got {len(key)} characters, expected 16 to 512 of A-Z, a-z, 0-9, _ "
                'and -; make one: python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
        return key

    def arguments(self, key: str | None) -> list[str]:
        """Return Triton's own arguments for it."""
        arguments = []
        if key is not None:
            rule = f"{','.join(RESTRICTED)}:{HEADER}={key}"
            arguments += [f"--grpc-restricted-protocol={rule}", f"--http-restricted-api={rule}"]
        if self.has_tls:
            arguments += ["--grpc-use-ssl=true", f"--grpc-server-cert={self.tls_cert}"]
            arguments += [f"--grpc-server-key={self.tls_key}"]
        if self.tls_ca:
            arguments += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={self.tls_ca}"]
        return arguments


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What a launch does, checked before anything is started. Raises UsageError for values that make no sense."""

    repository: Path
    # Ports on this machine; 0 takes any free one.
    grpc_port: int = 8001
    http_port: int = 8000
    metrics_port: int = 8002
    # Threads of each network; 0 for all cores.
    threads: int = 0
    # Seconds until every segmenter has answered.
    timeout: float = 300.0
    # File for the server's output; None for a temporary one that only a failure leaves behind.
    log: Path | None = None
    # Compare the repository's files with its manifest first.
    verify: bool = True
    # Seconds between two looks at a running server; watch.py says when one becomes a probe.
    probe: float = 5.0
    # Seconds that requests under way have to finish once the server is asked to stop.
    drain: float = 10.0
    # Number of processes of a model, by its name; the others get what suits the machine (placement.py).
    instances: Mapping[str, int] = field(default_factory=dict)
    # Bytes of memory for answers of the encoders to images that come again; 0 for none.
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


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise UsageError(f"{what}: {path} cannot be read ({error.strerror}); check the path") from error

"""Who may reach the server, and what they may ask: addresses, TLS, and the key to what changes the server.

Only gRPC ever leaves the loopback address. Whoever has the key can make the server run code of theirs.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from slime_serve.errors import UsageError

LOOPBACK = "127.0.0.1"
# gRPC clients send it as `triton-grpc-protocol-slime-key`, HTTP clients as it stands.
HEADER = "slime-key"
RESTRICTED = ("model-repository", "shared-memory", "trace", "logging")
# On Triton's command line, which is split at commas and equals signs.
_KEY = re.compile(r"[A-Za-z0-9_-]{16,512}")


@dataclass(frozen=True, kw_only=True)
class Security:
    """``listen``: address that gRPC listens on, with TLS unless ``insecure``. ``tls_ca``: only clients with a
    certificate of this authority are answered. ``admin_key_file``: holds the key that loading models and the like
    then take; on another address than the loopback there is always a key, an unknown one without a file.

    Files are PEM. Raises UsageError for files that cannot be read, options that contradict each other, a weak key.
    """

    listen: str = LOOPBACK
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    insecure: bool = False
    admin_key_file: Path | None = None

    def __post_init__(self) -> None:
        _check_address(self.listen)
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
        for path in (self.tls_cert, self.tls_key, self.tls_ca):
            if path is not None:
                _check_pem(path)

    @property
    def has_tls(self) -> bool:
        return self.tls_cert is not None

    @property
    def is_open(self) -> bool:
        """Whether other machines can reach it."""
        return not ipaddress.IPv4Address(self.listen).is_loopback

    def key(self) -> str | None:
        """The key that changing the server takes, None where it takes none."""
        if self.admin_key_file is not None:
            return read_key(self.admin_key_file)
        return secrets.token_urlsafe(32) if self.is_open else None

    def arguments(self, key: str | None) -> list[str]:
        """Triton's own."""
        arguments = []
        if key is not None:
            rule = f"{','.join(RESTRICTED)}:{HEADER}={key}"
            arguments += [f"--grpc-restricted-protocol={rule}", f"--http-restricted-api={rule}"]
        if self.has_tls:
            arguments += [
                "--grpc-use-ssl=true",
                f"--grpc-server-cert={self.tls_cert}",
                f"--grpc-server-key={self.tls_key}",
            ]
        if self.tls_ca:
            arguments += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={self.tls_ca}"]
        return arguments


def read_key(path: Path) -> str:
    """The key in a file, without the white space around it."""
    key = _read(path, "admin key").strip()
    if not _KEY.fullmatch(key):
        raise UsageError(
            f"admin key {path}: got {len(key)} characters, expected 16 to 512 of A-Z, a-z, 0-9, _ and -; "
            'make one: python -c "import secrets; print(secrets.token_urlsafe(32))"'
        )
    return key


def _check_address(address: str) -> None:
    try:
        ipaddress.IPv4Address(address)
    except ValueError as error:
        raise UsageError(
            f"--listen: got {address!r}, expected an IPv4 address of this machine, or 0.0.0.0 for all"
        ) from error


def _check_pem(path: Path) -> None:
    if "-----BEGIN" not in _read(path, "TLS"):
        raise UsageError(f"TLS: {path} is not in PEM form; convert it")


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise UsageError(f"{what}: {path} cannot be read ({error.strerror}); check the path") from error

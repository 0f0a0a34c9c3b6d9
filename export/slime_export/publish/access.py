"""What a running server wants to see before it lets itself be changed: a key, TLS, or nothing on the own machine."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from slime_export.errors import ExportError

HEADER = "triton-grpc-protocol-slime-key"


@dataclass(frozen=True, kw_only=True)
class Access:
    """`key_file`: with the key of `serve/launch.py --admin-key-file`. The others are PEM files, and mean TLS."""

    key_file: Path | None = None
    ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise ExportError("TLS: expected both --tls-cert and --tls-key, got one of them; give the other too")

    @property
    def secure(self) -> bool:
        return self.ca is not None or self.certificate is not None

    def connection(self) -> dict[str, object]:
        """What tritonclient's InferenceServerClient is given beside the address."""
        files = {
            "root_certificates": self.ca,
            "certificate_chain": self.certificate,
            "private_key": self.private_key,
        }
        for path in filter(None, files.values()):
            _read(path)
        return {"ssl": self.secure} | {name: str(path) for name, path in files.items() if path}

    def headers(self, url: str) -> dict[str, str]:
        """Of every call to `url`. Raises ExportError for a key that is none, or would cross a network in clear."""
        if self.key_file is None:
            return {}
        if not self.secure and not _is_this_machine(url):
            raise ExportError(f"--key-file: the key would reach {url} in clear; give --tls-ca, or go over a tunnel")
        key = _read(self.key_file).strip()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ExportError(
                f"--key-file {self.key_file}: holds no key, expected one line of letters and digits; give the file "
                "that the server was started with"
            )
        return {HEADER: key}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of every command that changes a running server."""
    parser.add_argument("--url", metavar="HOST:PORT", help="gRPC endpoint of a running server that is to follow")
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="key that changing the server takes")
    files = {
        "--tls-ca": ("ca", "authority that signed the server's certificate"),
        "--tls-cert": ("certificate", "one's own, where the server asks for it"),
        "--tls-key": ("private_key", "its private key"),
    }
    for option, (name, text) in files.items():
        parser.add_argument(option, dest=name, type=Path, metavar="PEM", help=text)


def taken(arguments: dict[str, object]) -> Access:
    """The access that parsed options tell, which are taken out of them; `url` stays. Raises ExportError."""
    given: Mapping[str, object] = {each.name: arguments.pop(each.name) for each in fields(Access)}
    return Access(**given)  # type: ignore[arg-type]


def _is_this_machine(url: str) -> bool:
    host = url.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.") or url.startswith("unix:")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror}); check the path") from error

"""How a server is reached: in plain text or over TLS, with a certificate and an administrator's key or without.

Everything of this project that talks to a server takes an `Access`, and every command has the same options for it.
"""

import argparse
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc

from slime_client.errors import INVALID_ARGUMENT, UNAUTHENTICATED, SegmenterError

PathLike = str | os.PathLike[str]

# The name of the key that serve/launch.py --admin-key-file takes. Its gRPC header is triton-grpc-protocol-<name>.
ADMIN_KEY = "slime-key"
# Images can have any size: gRPC's own limit is 4 MiB, protobuf's is 2 GiB.
_LARGEST_MESSAGE = 2**31 - 1
_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", _LARGEST_MESSAGE),
    ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
    # By default gRPC waits up to two minutes before it tries a lost server again; a restarted one is back in seconds.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # What one attempt to connect may take, whatever gRPC calls it: with 100 ms a TLS handshake on a busy machine fails.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # A name with several addresses, or `ipv4:HOST:PORT,HOST:PORT`, is several servers: each request goes to the next
    # one that is connected. When one closes its connection, the name is looked up again, but not more often than this.
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.dns_min_time_between_resolutions_ms", 5000),
]
_RENAMED = {
    "--ca": "--tls-ca",
    "--certificate": "--tls-cert",
    "--key": "--tls-key (the certificate's private key) or --admin-key-file (the server's key)",
    "--access-key": "--admin-key-file",
    "--key-file": "--admin-key-file",
}


@dataclass(frozen=True, kw_only=True)
class Access:
    """What a server asks for before it answers. With no field set: plain text, as on the server's own machine.

    Attributes:
        tls: use TLS and trust the authorities that gRPC knows. Any of the PEM files below means TLS too.
        tls_ca: PEM file of the authority that signed the server's certificate, or that certificate itself.
        tls_cert: PEM file with the client's own certificate chain, for a server that asks for one (mutual TLS).
        tls_key: PEM file with the private key of `tls_cert`.
        admin_key_file: file with the key of the server's restricted endpoints. The key is sent with every call, and
            never in plain text to another machine.
        admin_key_name: what the server calls that key. The default is the name that serve/launch.py gives it.

    Raises:
        SegmenterError: INVALID_ARGUMENT for a certificate without its private key, or the reverse.
    """

    tls: bool = False
    tls_ca: PathLike | None = None
    tls_cert: PathLike | None = None
    tls_key: PathLike | None = None
    admin_key_file: PathLike | None = None
    admin_key_name: str = ADMIN_KEY

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise SegmenterError(
                "TLS: expected both --tls-cert and --tls-key, got one of them; give the other too", INVALID_ARGUMENT
            )

    @property
    def secure(self) -> bool:
        """Whether the connection is encrypted."""
        return self.tls or self.tls_ca is not None or self.tls_cert is not None

    def channel(self, transport: ModuleType, url: str) -> Any:
        """Open a channel to `url` with `transport`, which is the module `grpc` or `grpc.aio`.

        Raises:
            SegmenterError: INVALID_ARGUMENT when a PEM file cannot be read.
        """
        if not self.secure:
            return transport.insecure_channel(url, _CHANNEL_OPTIONS)
        credentials = grpc.ssl_channel_credentials(
            root_certificates=_read("--tls-ca", self.tls_ca),
            private_key=_read("--tls-key", self.tls_key),
            certificate_chain=_read("--tls-cert", self.tls_cert),
        )
        return transport.secure_channel(url, credentials, _CHANNEL_OPTIONS)

    @contextmanager
    def explaining(self, url: str) -> Iterator[None]:
        """Raise a clearer SegmenterError where the server at `url` refuses the key that is sent in the block."""
        try:
            yield
        except SegmenterError as error:
            if error.code != UNAUTHENTICATED or self.admin_key_file is None:
                raise
            raise SegmenterError(self.wrong_key(url), UNAUTHENTICATED) from error

    def wrong_key(self, url: str) -> str:
        """Return the line about a key that the server at `url` refuses."""
        return (
            f"--admin-key-file {self.admin_key_file}: {url} has another key; give the file that the server was "
            "started with"
        )

    def metadata(self, url: str) -> list[tuple[str, str]]:
        """Return the headers of every call to `url`.

        Raises:
            SegmenterError: INVALID_ARGUMENT when the key cannot be read or sent, or would cross a network in clear.
        """
        content = _read("--admin-key-file", self.admin_key_file)
        if content is None:
            return []
        if not self.secure and not is_this_machine(url):
            raise SegmenterError(
                f"--admin-key-file {self.admin_key_file}: the key would reach {url} in clear; "
                "give --tls-ca, or go over a tunnel",
                INVALID_ARGUMENT,
            )
        key = content.decode("ascii", "replace").strip()
        if not key or not all(" " < letter < "\x7f" for letter in key):
            raise SegmenterError(
                f"--admin-key-file {self.admin_key_file}: got an empty file or one with other characters, expected one "
                "line of letters and digits; give the file that the server was started with",
                INVALID_ARGUMENT,
            )
        return [(f"triton-grpc-protocol-{self.admin_key_name.lower()}", key)]


def is_this_machine(url: str) -> bool:
    """Return whether `url` (host:port) is a loopback address of this machine, or a socket file."""
    host = url.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.") or url.startswith("unix:")


def is_several(url: str) -> bool:
    """Return whether `url` leads to more than one address: several servers, or one that has several. May ask DNS."""
    if "," in url or is_this_machine(url):
        return "," in url
    try:
        found = socket.getaddrinfo(url.rpartition(":")[0].strip("[]"), None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return len({address for *_, address in found}) > 1


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `Access` to a command that talks to a server; `taken` reads them."""
    group = parser.add_argument_group("access to the server")
    group.add_argument("--tls", action="store_true", help="use TLS and trust the authorities that gRPC knows")
    group.add_argument("--tls-ca", type=Path, metavar="PEM", help="use TLS and trust this authority or certificate")
    group.add_argument("--tls-cert", type=Path, metavar="PEM", help="own certificate, for a server that asks for one")
    group.add_argument("--tls-key", type=Path, metavar="PEM", help="private key of --tls-cert")
    group.add_argument("--admin-key-file", type=Path, metavar="FILE", help="file with the server's key")
    hidden = argparse.SUPPRESS
    for old, new in _RENAMED.items():
        parser.add_argument(old, action=_Renamed, nargs="?", const=new, dest="renamed", default=hidden, help=hidden)


def taken(arguments: dict[str, Any]) -> Access:
    """Take the options of `add_options` out of `arguments`, the parsed command line, and return the access they say.

    Raises:
        SegmenterError: INVALID_ARGUMENT for a certificate without its private key, or the reverse.
    """
    return Access(**{each.name: arguments.pop(each.name) for each in fields(Access) if each.name in arguments})


class _Renamed(argparse.Action):
    """Refuse an option under its old name."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        parser.error(f"{option_string} has another name now: {self.const}")


def _read(option: str, path: PathLike | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SegmenterError(f"{option} {path}: cannot be read ({reason}); check the path", INVALID_ARGUMENT) from error

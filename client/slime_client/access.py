"""How a server is reached: in clear or over TLS, with a certificate and a key of one's own or without."""

import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc

from slime_client import names
from slime_client.errors import INVALID_ARGUMENT, SegmenterError

PathLike = str | os.PathLike[str]

# Images of any size: gRPC's own limit is 4 MiB, protobuf's 2 GiB.
_LARGEST_MESSAGE = 2**31 - 1
_OPTIONS = [
    ("grpc.max_send_message_length", _LARGEST_MESSAGE),
    ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
    # gRPC waits up to two minutes before it tries a server again that was away; a restarted one is back in seconds.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
]


@dataclass(frozen=True, kw_only=True)
class Access:
    """What a server wants to see before it answers. Nothing of it: plain text, as on the server's own machine.

    Attributes:
        tls: speak TLS, trusting the authorities that gRPC knows; any of the files below means TLS too.
        ca: PEM file of the authority that signed the server's certificate, or the certificate itself.
        certificate: PEM file with our own certificate chain, for a server that asks for one (mutual TLS).
        key: PEM file with the certificate's private key.
        access_key: file with the key of the server's restricted endpoints; sent with every call, and never in clear
            to another machine.
        access_key_name: what the server calls that key; serve/launch.py calls it as the default does.

    Raises:
        SegmenterError: INVALID_ARGUMENT for a certificate without its key, or the other way round.
    """

    tls: bool = False
    ca: PathLike | None = None
    certificate: PathLike | None = None
    key: PathLike | None = None
    access_key: PathLike | None = None
    access_key_name: str = names.ACCESS_KEY

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            missing = "key" if self.key is None else "certificate"
            raise SegmenterError(f"mutual TLS: got no {missing}; give certificate and key both", INVALID_ARGUMENT)

    @property
    def secure(self) -> bool:
        """Whether the connection is encrypted."""
        return self.tls or self.ca is not None or self.certificate is not None

    def credentials(self) -> Any:
        """grpc.ChannelCredentials from the files.

        Raises:
            SegmenterError: INVALID_ARGUMENT when a file cannot be read.
        """
        return grpc.ssl_channel_credentials(
            root_certificates=_read("CA", self.ca),
            private_key=_read("private key", self.key),
            certificate_chain=_read("certificate", self.certificate),
        )

    def channel(self, transport: ModuleType, url: str) -> Any:
        """A channel of `transport`, which is `grpc` or `grpc.aio`."""
        if self.secure:
            return transport.secure_channel(url, self.credentials(), _OPTIONS)
        return transport.insecure_channel(url, _OPTIONS)

    def metadata(self, url: str) -> list[tuple[str, str]]:
        """The headers of every call.

        Raises:
            SegmenterError: INVALID_ARGUMENT when the key cannot be read or sent, or would cross a network in clear.
        """
        content = _read("access key", self.access_key)
        if content is None:
            return []
        if not self.secure and not is_this_machine(url):
            raise SegmenterError(
                f"access key {self.access_key}: would reach {url} in clear; give ca= or tls=True", INVALID_ARGUMENT
            )
        key = content.decode("ascii", "replace").strip()
        if not key or not all(" " < letter < "\x7f" for letter in key):
            raise SegmenterError(
                f"access key {self.access_key}: got an empty file or one with odd characters, expected one line of "
                "letters and digits",
                INVALID_ARGUMENT,
            )
        return [(f"triton-grpc-protocol-{self.access_key_name.lower()}", key)]


def is_this_machine(url: str) -> bool:
    """Whether host:port is of this machine's loopback, or a socket file."""
    host = url.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.") or url.startswith("unix:")


def _read(what: str, path: PathLike | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SegmenterError(f"{what} {path}: cannot be read ({reason}); check the path", INVALID_ARGUMENT) from error

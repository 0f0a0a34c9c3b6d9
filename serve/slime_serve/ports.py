"""Ports of this machine: found free or refused before a server is started."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import ExitStack

from slime_serve.errors import UsageError
from slime_serve.security import LOOPBACK


def claim(ports: Mapping[str, int], addresses: Mapping[str, str] | None = None) -> dict[str, int]:
    """The same names with every 0 replaced by a free port; UsageError where a wanted one is in use.

    ``addresses``: of those that are not for the loopback. All are held at once while choosing, so that no two are
    alike. They are free again on return.
    """
    claimed = {}
    with ExitStack() as held:
        # Wanted ones first, or a freely chosen one could take their place.
        for name, port in sorted(ports.items(), key=lambda item: item[1] == 0):
            address = (addresses or {}).get(name, LOOPBACK)
            listener = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            # A server that has just ended leaves connections behind; a listening one is still refused.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            claimed[name] = _bind(listener, name, address, port)
    return {name: claimed[name] for name in ports}


def _bind(listener: socket.socket, name: str, address: str, port: int) -> int:
    try:
        listener.bind((address, port))
        # Linux lets two sockets of this option bind one port, as long as neither listens.
        listener.listen()
    except OverflowError as error:
        raise UsageError(f"{name} port: got {port}, expected 0 to 65535") from error
    except OSError as error:
        raise UsageError(
            f"{name} port {port}: cannot be used on {address} ({error.strerror}); "
            f"stop what uses it or choose another with --{name}-port (0: any free one)"
        ) from error
    number: int = listener.getsockname()[1]
    return number

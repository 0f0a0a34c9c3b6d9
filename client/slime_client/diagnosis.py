"""Why a port that takes connections does not answer in gRPC: another protocol, or a certificate that is not trusted.

gRPC says "Socket closed" of a port that speaks TLS as it does of one that speaks HTTP, so the port is tried.
"""

import re
import socket
import ssl
from collections.abc import Callable

_SECONDS = 2.0
_PUZZLING = re.compile(r"handshake|socket closed|HTTP/2|verification check", re.IGNORECASE)
_TRUST = re.compile(r"CERTIFICATE_VERIFY_FAILED: ([^:]+)")


def is_puzzling(details: str) -> bool:
    """Return whether gRPC's words for a failed connection may mean a wrong port, protocol or certificate."""
    return bool(_PUZZLING.search(details))


def mistake(url: str, details: str) -> str:
    """Return what is wrong, as a line for people; "" where nothing is found. Takes some seconds at the most.

    `url` is the host:port that was asked, `details` what gRPC said.
    """
    if found := _TRUST.search(details):
        return (
            f"{url}: its certificate was signed by another authority than those that are trusted ({found[1]}); "
            "give --tls-ca the certificate of the authority that signed it"
        )
    if "Hostname Verification" in details:
        return f"{url}: its certificate is for another host name; give --url with the name that stands in it"
    if _answers(url, _speaks_http):
        return f"{url}: is an HTTP port; give the server's gRPC address, whose port is usually 8001"
    if "WRONG_VERSION_NUMBER" in details:
        return f"{url}: speaks plain text, but TLS was asked for; leave out --tls, --tls-ca, --tls-cert and --tls-key"
    if _answers(url, _speaks_tls):
        return (
            f"{url}: speaks TLS, and closed the connection; give --tls-ca, "
            "and --tls-cert and --tls-key of its authority where it asks for a certificate"
        )
    return ""


def _answers(url: str, speaks: Callable[[socket.socket], bool]) -> bool:
    host, _, port = url.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _SECONDS) as connection:
            return speaks(connection)
    except (OSError, ValueError):  # Gone, or no host:port.
        return False


def _speaks_http(connection: socket.socket) -> bool:
    connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    return connection.recv(5) == b"HTTP/"


def _speaks_tls(connection: socket.socket) -> bool:
    anyone = ssl.create_default_context()
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    with anyone.wrap_socket(connection):
        return True

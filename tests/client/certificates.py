"""Certificates for the tests of TLS, made with trustme: an authority, a server's, a client's, a stranger's."""

from __future__ import annotations

from pathlib import Path

import trustme


def make(folder: Path) -> None:
    """Write NAME.pem and NAME-key.pem for ca, server (127.0.0.1, signed), client (signed) and stranger (not)."""
    folder.mkdir()
    authority, stranger = trustme.CA(), trustme.CA()
    for name, other in (("ca", authority), ("stranger", stranger)):
        other.cert_pem.write_to_path(folder / f"{name}.pem")
        other.private_key_pem.write_to_path(folder / f"{name}-key.pem")
    for name in ("server", "client"):
        issued = authority.issue_cert("127.0.0.1", "localhost")
        issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
        issued.private_key_pem.write_to_path(folder / f"{name}-key.pem")

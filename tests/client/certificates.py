"""Certificates for the tests of TLS, made with the openssl command: an authority, a server's, a client's …"""

from __future__ import annotations

import subprocess
from pathlib import Path


def make(folder: Path) -> None:
    """Write NAME.pem and NAME-key.pem for ca, server (127.0.0.1, signed), client (signed) and stranger (not)."""
    folder.mkdir()
    for name in ("ca", "stranger"):
        _openssl(folder, "req", "-x509", *_new(name), "-out", f"{name}.pem", "-days", "2")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for name in ("server", "client"):
        _openssl(folder, "req", *_new(name), "-out", f"{name}.csr")
        _openssl(
            folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial",
            "-extfile", "names", "-out", f"{name}.pem", "-days", "2",
        )  # fmt: skip


def _new(name: str) -> list[str]:
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    return [*curve, "-keyout", f"{name}-key.pem", "-subj", f"/CN={name}"]


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

"""The container's entry point, with the wheel's server in place of the container's.

with contained(repository, folder, secrets=pem) as server:
    server.segment("toy", png_bytes)
"""

from __future__ import annotations

import os
import secrets as random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import trustme

from processes import SHARED_MEMORY
from serving import READY_SECONDS, ROOT, STOP_SECONDS, Served
from slime_serve import process, wheel

ENTRY = ROOT / "serve" / "entry.py"


def write_secrets(folder: Path, *, authority: str, certificate: str) -> Path:
    """Write what the container is given beside the repository, certificates by the given names; return the folder."""
    made = trustme.CA()
    issued = made.issue_cert("127.0.0.1")
    made.cert_pem.write_to_path(folder / authority)
    issued.private_key_pem.write_to_path(folder / "tls.key")
    issued.cert_chain_pems[0].write_to_path(folder / certificate)
    (folder / "admin-key").write_text("k" * 32)
    return folder


@contextmanager
def contained(
    repository: Path,
    folder: Path,
    *arguments: str,
    before: Sequence[str] = (),
    secrets: Path | None = None,
    environment: dict[str, str] | None = None,
) -> Iterator[Served]:
    """A server on free ports, its files in ``folder``; stopped with SIGTERM at the end.

    ``before``: words that the entry point's command is run by, as `setpriv …`.
    """
    ports = process.claim_ports({"grpc": 0, "http": 0, "metrics": 0}, {})
    found = wheel.find()
    wheel.assemble_backends(found, folder / "backends")
    wheel.assemble_python(folder / "python")
    regions = f"slime_{os.getpid()}_{random.token_hex(4)}_"
    log = folder / "log"
    given = {
        **wheel.environment(found, folder / "python", 1),
        "SLIME_REPOSITORY": os.fspath(repository),
        "SLIME_SECRETS": os.fspath(secrets or folder / "none"),
        "SLIME_TRITON": os.fspath(found.server),
        "SLIME_SERVE_PLACES": f"{SHARED_MEMORY}/{regions}places",
        **(environment or {}),
    }
    words = [
        *before,
        *(sys.executable, "-S", os.fspath(ENTRY)),
        f"--backend-directory={folder / 'backends'}",
        f"--backend-config=python,shm-region-prefix-name={regions}",
        "--grpc-address=127.0.0.1",
        *(f"--{name}-port={port}" for name, port in ports.items()),
        *arguments,
    ]
    with log.open("wb") as output:
        # A group of its own: as with a container, nothing of it outlives it.
        started = subprocess.Popen(words, env=given, stdout=output, stderr=output, text=True, start_new_session=True)
    addresses = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    try:
        _await(started, addresses["http"], log)
        yield Served(launcher=started, **addresses, segmenters=())
    finally:
        started.terminate()
        try:
            started.wait(STOP_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            for path in SHARED_MEMORY.glob(f"{regions}*"):
                path.unlink(missing_ok=True)


def _await(started: subprocess.Popen[str], http: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and started.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{http}/v2/health/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"the server did not get ready: {log.read_text(errors='replace')[-4000:]}")

"""Starts Triton in a container, in explicit mode: python3 entry.py [ARGUMENT of tritonserver …]

Takes from the folder of secrets what is there: tls.pem and tls.key for TLS, tls-ca.pem for mutual TLS, and admin-key,
the key that loading models takes. Then this process becomes tritonserver, so that signals reach it. Standard library
alone.

    SLIME_REPOSITORY       the model repository, which is only read (/models)
    SLIME_SECRETS          folder of the secrets (/run/secrets)
    SLIME_DRAIN            seconds that requests under way have to finish once it is told to stop (10)
    SLIME_METRICS_ADDRESS  address that metrics listen on, in plain text (127.0.0.1)
    SLIME_TRITON           the program (tritonserver)
"""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

# As slime_serve.settings has them, which is not in the container; tests hold them equal.
HEADER = "slime-key"
RESTRICTED = ("model-repository", "shared-memory", "trace", "logging")
# The key stands on Triton's command line, which is split at commas and equals signs.
KEY = re.compile(r"[A-Za-z0-9_-]{16,512}")


_ENVIRONMENT = {
    # numpy's threads would take the cores from the networks.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # What a mask makes and frees in numpy stays with the process: pages that come anew each time take half its time.
    "MALLOC_MMAP_THRESHOLD_": "16777216",
    "MALLOC_TRIM_THRESHOLD_": "16777216",
}


class UsageError(Exception):
    """What whoever starts the container can put right, in one line."""


def main(argv: list[str]) -> int:
    try:
        command = arguments(os.environ, argv)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    environment = {**_ENVIRONMENT, **os.environ}
    try:
        os.execvpe(command[0], command, environment)
    except OSError as error:
        print(f"error: {command[0]}: cannot be run ({error.strerror}); set SLIME_TRITON", file=sys.stderr)
        return 2


def arguments(environment: Mapping[str, str], more: list[str]) -> list[str]:
    """Return the command line. Raises UsageError for a repository or secrets that cannot be used."""
    repository = Path(environment.get("SLIME_REPOSITORY", "/models"))
    if not os.access(repository, os.R_OK | os.X_OK):
        raise UsageError(f"repository {repository}: cannot be read by user {os.getuid()}; mount the published folder")
    return [
        environment.get("SLIME_TRITON", "tritonserver"),
        f"--model-repository={repository}",
        # Publishing says what to load, and when; nothing is loaded because a file changed.
        "--model-control-mode=explicit",
        "--load-model=*",
        "--exit-on-error=false",
        f"--exit-timeout-secs={environment.get('SLIME_DRAIN', '10')}",
        "--backend-config=python,stub-timeout-seconds=600",
        "--metrics-config=summary_latencies=true",
        # HTTP has no TLS. The health check asks over it, inside the container.
        "--http-address=127.0.0.1",
        f"--metrics-address={environment.get('SLIME_METRICS_ADDRESS', '127.0.0.1')}",
        *_security(Path(environment.get("SLIME_SECRETS", "/run/secrets"))),
        *more,
    ]


def _security(folder: Path) -> list[str]:
    rule = f"{','.join(RESTRICTED)}:{HEADER}={_key(folder / 'admin-key')}"
    found = [f"--grpc-restricted-protocol={rule}", f"--http-restricted-api={rule}"]
    certificate, private, authority = (folder / name for name in ("tls.pem", "tls.key", "tls-ca.pem"))
    if certificate.exists() != private.exists():
        raise UsageError(f"TLS: {folder} has one of tls.pem and tls.key; put the other there too, or neither")
    if authority.exists() and not certificate.exists():
        raise UsageError(f"TLS: {folder} has tls-ca.pem alone; put the server's own tls.pem and tls.key there too")
    for path in (certificate, private, authority):
        if path.exists() and "-----BEGIN" not in _read(path):
            raise UsageError(f"TLS: {path} is not in PEM form; convert it")
    if certificate.exists():
        found += ["--grpc-use-ssl=true", f"--grpc-server-cert={certificate}", f"--grpc-server-key={private}"]
    if authority.exists():
        found += ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={authority}"]
    return found


def _key(path: Path) -> str:
    if not path.exists():
        print(f"no {path}: nobody can load models; what is published serves after a restart", file=sys.stderr)
        return secrets.token_urlsafe(32)
    key = _read(path).strip()
    if not KEY.fullmatch(key):
        raise UsageError(f"admin key {path}: got {len(key)} characters, expected 16 to 512 of A-Z, a-z, 0-9, _ and -")
    return key


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read by user {os.getuid()} ({error.strerror}); check its mode") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

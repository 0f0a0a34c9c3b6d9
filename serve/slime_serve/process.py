"""One tritonserver process: its ports and its command line; started in a group of its own, looked at, stopped."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from slime_serve.settings import LOOPBACK, ServerError, ServerSettings, UsageError
from slime_serve.wheel import Wheel

LARGEST_LOG = 64 << 20  # bytes, and once more for the file beside it
_KILL_SECONDS = 5
_TAIL_LINES = 20
_LOAD_FAILURE = re.compile(r"failed to load '([^']+)'(?: version \d+)?: (.*)")
_PR_SET_PDEATHSIG = 1


def claim_ports(ports: Mapping[str, int], addresses: Mapping[str, str]) -> dict[str, int]:
    """Return the same names with every 0 replaced by a free port of ``addresses``, the loopback for those without.

    All are held at once while choosing, so that no two are alike. They are free again on return. Raises UsageError
    where a wanted one is in use.
    """
    claimed = {}
    with contextlib.ExitStack() as held:
        # Wanted ones first, or a freely chosen one could take their place.
        for name, port in sorted(ports.items(), key=lambda item: item[1] == 0):
            address = addresses.get(name, LOOPBACK)
            listener = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            # A server that has just ended leaves connections behind; a listening one is still refused.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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
            claimed[name] = listener.getsockname()[1]
    return {name: claimed[name] for name in ports}


def arguments(
    settings: ServerSettings, wheel: Wheel, backends: Path, ports: Mapping[str, int], regions: str
) -> list[str]:
    """Return Triton's arguments, all but the models and the security.

    ``backends``: the folder of the backends; ``regions``: how the names of its shared memory begin.
    """
    hosts = {"grpc": settings.security.listen}
    found = [
        f"--backend-directory={backends}",
        f"--cache-directory={wheel.caches}",
        f"--backend-config=python,shm-region-prefix-name={regions}",
        # Loading a network of several gigabytes takes longer than the usual 30 s.
        "--backend-config=python,stub-timeout-seconds=600",
        "--allow-gpu-metrics=false",
        # Quantiles of each model's time, by Triton itself.
        "--metrics-config=summary_latencies=true",
        f"--exit-timeout-secs={max(1, round(settings.drain))}",
    ]
    for name, port in ports.items():
        found += [f"--{name}-address={hosts.get(name, LOOPBACK)}", f"--{name}-port={port}"]
    if settings.trace_otlp is not None:
        words = ("mode=opentelemetry", f"rate={settings.trace_every}", "level=TIMESTAMPS")
        found += [f"--trace-config={word}" for word in (*words, f"opentelemetry,url={settings.trace_otlp}")]
    if settings.response_cache:
        found.append(f"--cache-config=local,size={settings.response_cache}")
    return [*found, *settings.triton]


def begin_log(log: Path) -> None:
    """Make the file empty. Raises UsageError where it cannot be written."""
    try:
        log.open("wb").close()
    except OSError as error:
        raise UsageError(f"log {log}: cannot be written ({error.strerror}); choose another with --log") from error


class Process:
    """Runs from the start. ``log`` is appended to; ``inherited``: an open file that it keeps as long as it lives."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, inherited: int) -> None:
        self._log = log
        with log.open("ab") as output:
            self._begins = output.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=[inherited],
                # A group of its own: Ctrl-C reaches only the launcher, and no process can be forgotten.
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def code(self) -> int | None:
        """Return its exit code, None while it runs."""
        return self._process.poll()

    def failure(self) -> ServerError:
        """Return why it ended by itself, as its log tells: the model that it could not load, or its last lines."""
        with self._log.open("rb") as log:
            log.seek(self._begins)
            output = log.read().decode(errors="replace")
        if found := _LOAD_FAILURE.search(output):
            model, reason = found.groups()
            # Python's stack follows, with line ends written as \\n.
            first = reason.split("\\n")[0].strip(' "')
            return ServerError(f"model {model}: the server cannot load it ({first}); its log: {self._log}")
        tail = "\n".join(output.splitlines()[-_TAIL_LINES:])
        return ServerError(f"server: ended with code {self.code()}; its log: {self._log}", tail)

    def bound_log(self) -> None:
        """Begin the log anew where it has become large, with what was in it beside it, as FILE.1."""
        if self._log.stat().st_size > LARGEST_LOG:
            # Copied, because the process goes on writing into its open file; it appends, so at the new end.
            shutil.copyfile(self._log, f"{self._log}.1")
            os.truncate(self._log, 0)
            self._begins = 0

    def end(self, seconds: float) -> None:
        """Ask it to end, so that requests under way are answered; then kill the group, Python processes included."""
        if self._process.poll() is None and seconds > 0:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        deadline = time.monotonic() + _KILL_SECONDS
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(self.pid, signal.SIGKILL)
                self._process.poll()
                time.sleep(0.02)


def _end_with_parent() -> None:
    """In the child: be told to stop should the launcher itself be killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

"""One Triton process: started, waited for, stopped, and everything it leaves behind removed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from slime_serve import ports, probe, repository, wheel
from slime_serve.errors import ServerError, Stopped, UsageError

SHARED_MEMORY = Path("/dev/shm")
_LOAD_FAILURE = re.compile(r"failed to load '([^']+)'(?: version \d+)?: (.*)")
_TAIL_LINES = 20
_POLL_SECONDS = 0.1
_STOP_SECONDS = 20
_KILL_SECONDS = 5
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """``*_port`` 0: any free one. ``threads``: of each network, 0 for all cores. ``timeout``: seconds until ready.

    ``log``: file for the server's output; None for a temporary one that only a failure leaves behind.
    """

    repository: Path
    grpc_port: int = 8001
    http_port: int = 8000
    metrics_port: int = 8002
    threads: int = 0
    timeout: float = 300.0
    log: Path | None = None

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise UsageError(f"threads: got {self.threads}, expected 1 or more (0: all cores)")
        if self.timeout <= 0:
            raise UsageError(f"timeout: got {self.timeout:g}, expected seconds above 0")


class Server:
    """A context: inside it the server is ready and every segmenter has answered; afterwards nothing of it is left.

    Attributes: ``segmenters``, and the ``grpc``, ``http`` and ``metrics`` addresses as HOST:PORT. Entering raises
    UsageError before anything is started, ServerError, or Stopped soon after ``stop_wanted`` has become true.
    """

    def __init__(self, settings: ServerSettings, stop_wanted: Callable[[], bool] = lambda: False) -> None:
        self._settings = settings
        self._stop_wanted = stop_wanted
        self._process: subprocess.Popen[bytes] | None = None
        self._prefix = f"slime_{os.getpid()}_{secrets.token_hex(4)}_"

    def __enter__(self) -> Server:
        settings = self._settings
        wanted = {"grpc": settings.grpc_port, "http": settings.http_port, "metrics": settings.metrics_port}
        self._repository = repository.read(settings.repository)
        self.segmenters = self._repository.segmenters
        self._ports = ports.claim(wanted)
        self.grpc, self.http, self.metrics = (f"{ports.ADDRESS}:{self._ports[name]}" for name in wanted)
        found = wheel.find()
        self._log = _log_path(settings.log)
        self._folder = Path(tempfile.mkdtemp(prefix="slime-serve-"))
        try:
            self._start(found)
            probe.wait(self.grpc, self.segmenters, settings.timeout, self._check_alive)
        except BaseException as error:
            self._stop(keep_log=isinstance(error, ServerError))
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop(keep_log=isinstance(error, ServerError))

    def wait(self) -> None:
        """Block until asked to stop (Stopped) or until the server ends by itself (ServerError)."""
        while True:
            self._check_alive()
            time.sleep(_POLL_SECONDS)

    def _start(self, found: wheel.Wheel) -> None:
        backends, python = self._folder / "backends", self._folder / "python"
        wheel.assemble_backends(found, backends)
        wheel.assemble_python(python)
        threads = self._settings.threads or len(os.sched_getaffinity(0))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [os.fspath(found.server), *self._arguments(found, backends)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=wheel.environment(found, python, threads),
                # A group of its own: Ctrl-C reaches only the launcher, and no process can be forgotten.
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def _arguments(self, found: wheel.Wheel, backends: Path) -> list[str]:
        listening = [
            argument
            for name, port in self._ports.items()
            for argument in (f"--{name}-address={ports.ADDRESS}", f"--{name}-port={port}")
        ]
        return [
            f"--model-repository={self._repository.path}",
            # Explicit, so that publishing decides when and in which order a new version is loaded.
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in self._repository.models),
            f"--backend-directory={backends}",
            f"--cache-directory={found.caches}",
            f"--backend-config=python,shm-region-prefix-name={self._prefix}",
            # Loading a network of several gigabytes takes longer than the usual 30 s.
            "--backend-config=python,stub-timeout-seconds=600",
            "--allow-gpu-metrics=false",
            "--exit-timeout-secs=10",
            *listening,
        ]

    def _check_alive(self) -> None:
        if self._stop_wanted():
            raise Stopped
        assert self._process is not None
        code = self._process.poll()
        if code is None:
            return
        text = self._log.read_text(encoding="utf-8", errors="replace")
        if failure := _LOAD_FAILURE.search(text):
            model, reason = failure.groups()
            # Python's stack follows, with line ends written as \\n.
            first = reason.split("\\n")[0].strip(' "')
            raise ServerError(f"model {model}: the server cannot load it ({first}); its log: {self._log}")
        tail = "\n".join(text.splitlines()[-_TAIL_LINES:])
        raise ServerError(f"server: ended with code {code}; its log: {self._log}", tail)

    def _stop(self, *, keep_log: bool) -> None:
        if self._process is not None:
            _end(self._process)
        for region in SHARED_MEMORY.glob(f"{self._prefix}*"):
            region.unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._settings.log is None and not keep_log:
            self._log.unlink(missing_ok=True)


def _log_path(wanted: Path | None) -> Path:
    if wanted is None:
        handle, name = tempfile.mkstemp(prefix="slime-serve-", suffix=".log")
        os.close(handle)
        return Path(name)
    try:
        wanted.open("ab").close()
    except OSError as error:
        raise UsageError(f"log {wanted}: cannot be written ({error.strerror}); choose another with --log") from error
    return wanted


def _end_with_parent() -> None:
    """In the child: be told to stop should the launcher itself be killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Politely first, so that requests under way are answered; then the whole group, Python processes included."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    deadline = time.monotonic() + _KILL_SECONDS
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, signal.SIGKILL)
            process.poll()
            time.sleep(0.02)

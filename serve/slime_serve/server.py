"""A Triton server that is looked after: started, waited for, started again if need be, and stopped without a trace."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from slime_repository import contents, contract, manifest
from slime_repository.contents import Repository, Served
from slime_repository.errors import RepositoryError
from slime_serve import memory, old_triton, placement, process, wheel
from slime_serve.control import Control, UnansweredError
from slime_serve.endpoint import Endpoint
from slime_serve.process import Process
from slime_serve.publications import Publications
from slime_serve.settings import LOOPBACK, ServeError, ServerError, ServerSettings, Stopped, UsageError
from slime_serve.watch import Watch
from slime_serve.workspace import Workspace

_POLL_SECONDS = 0.1
# After the requests under way have had their time.
_STOP_SECONDS = 10.0
# A first answer also starts what is started once, which is most of what a quick one takes.
_QUICK_SECONDS = 1.0
# Waits before the second start in a row and those after it; a server that lived longer than CALM starts at once.
_BACK_OFF = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_CALM_SECONDS = 60.0
Result = TypeVar("Result")


class Server:
    """A context: inside it the server is ready and every segmenter has answered; afterwards nothing of it is left.

    Attributes: ``segmenters``, and the ``grpc``, ``http`` and ``metrics`` addresses as HOST:PORT. Entering raises
    UsageError before anything is started, ServerError, or Stopped soon after ``stop_wanted`` has become true.
    ``say`` takes one line whenever something happens to a running server.
    """

    def __init__(
        self,
        settings: ServerSettings,
        stop_wanted: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._settings, self._stop_wanted, self._say = settings, stop_wanted, say
        self._process: Process | None = None
        # What an image took each ensemble when nothing else was asked.
        self._seconds: dict[str, float] = {}

    def __enter__(self) -> Server:
        settings, security = self._settings, self._settings.security
        self._repository = _read(settings.repository)
        if settings.verify:
            with _refused():
                manifest.verify(settings.repository, self._say)
        self.segmenters = self._repository.segmenters
        wanted = {"grpc": settings.grpc_port, "http": settings.http_port, "metrics": settings.metrics_port}
        hosts = {"grpc": security.listen, "http": LOOPBACK, "metrics": security.listen_http}
        # Triton's own metrics have a port that only the endpoint in front of them knows.
        ports = process.claim_ports({**wanted, "triton": 0}, hosts)
        hidden = ports.pop("triton")
        self._ports = {**ports, "metrics": hidden}
        self.grpc, self.http, self.metrics = (f"{hosts[name]}:{port}" for name, port in ports.items())
        self._wheel = wheel.find()
        if security.is_open:
            self._say("warning: this Triton (2.51) has published holes that 25.07 closed: see SECURITY.md")
        if security.listen_http != LOOPBACK:
            self._say(f"warning: metrics and health go out in plain text, to whoever reaches {self.metrics}")
        self._key = security.key()
        self._control = Control(self.http, self._key)
        placement.overrides(self._repository, settings, {})  # Refuses what it does not know before anything is started.
        if settings.log:
            process.begin_log(settings.log)
        self._publications: Publications | None = None
        self._endpoint = Endpoint((hosts["metrics"], ports["metrics"]), f"{LOOPBACK}:{hidden}")
        memory.remove_stale()
        self._regions = memory.Regions()
        for model in self._repository.parts:
            self._endpoint.reloads.labels(model)  # From 0 on, so that a first one is seen to be one more.
        self._workspace = Workspace()
        self._folder, self._log = self._workspace.path, settings.log or self._workspace.log
        try:
            wheel.assemble_backends(self._wheel, self._folder / "backends")
            wheel.assemble_python(self._folder / "python")
            self._view = placement.View(self._folder)
            self._start(self._repository)
            self._await(self._repository)
            self._endpoint.is_ready = True
            self._publications = Publications(
                settings.repository, self._control, say=self._say, tell=self._endpoint.take
            )
        except BaseException as error:
            self._stop(keep_log=isinstance(error, ServerError))
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._endpoint.is_ready = False
        if self._publications:
            self._publications.close()
        if error is None or isinstance(error, Stopped):
            self._drain()
        self._stop(keep_log=isinstance(error, ServerError))

    def wait(self) -> None:
        """Block until asked to stop (Stopped), looking after the server: see `watch`. One that ended starts again."""
        failures = 0
        while True:
            begun = time.monotonic()
            reason = self._watched()
            failures = 0 if time.monotonic() - begun > _CALM_SECONDS else failures
            self._say(f"error: server: {reason}; starting it again, its log: {self._log}")
            self._endpoint.is_ready = False
            self._endpoint.restarts.inc()
            failures = self._restarted(failures)

    def _watched(self) -> str:
        """Look after the process until it has to be started again; return why."""
        assert self._process is not None
        listen = self._settings.security.listen
        watch = Watch(
            self._process.pid,
            self._control,
            version=self._version,
            grpc=(LOOPBACK if listen == "0.0.0.0" else listen, self._ports["grpc"]),
            probes=lambda: _read(self._settings.repository).probes,
            every=self._settings.probe,
            seconds=self._seconds,
            say=self._say,
            reloaded=lambda model: self._endpoint.reloads.labels(model).inc(),
        )
        with contextlib.closing(watch):
            while True:
                self._check_stop()
                if (code := self._process.code()) is not None:
                    return f"ended with code {code}"
                if reason := watch.look():
                    return reason
                self._process.bound_log()
                time.sleep(_POLL_SECONDS)

    def _restarted(self, failures: int) -> int:
        """Start it again until it serves; return how many starts in a row that makes."""
        while True:
            self._pause(_BACK_OFF[min(failures, len(_BACK_OFF) - 1)])
            failures += 1
            begun = time.monotonic()
            try:
                self._end(0)
                found = _read(self._settings.repository)
                self._start(found, tolerant=True)
                self._await(found, self._say)
            except ServeError as error:
                self._say(f"error: {error}; trying again")
                continue
            self._endpoint.is_ready = True
            self._say(f"server: serves again after {time.monotonic() - begun:.1f} s")
            return failures

    def _start(self, found: Repository, *, tolerant: bool = False) -> None:
        """Start a process. ``tolerant``: it serves what it can where a model cannot be loaded."""
        folder = self._folder
        self._view.change(found, placement.overrides(found, self._settings, self._seconds))
        arguments = [
            *process.arguments(self._settings, self._wheel, folder / "backends", self._ports, self._regions.prefix),
            f"--model-repository={self._view.path}",
            # Explicit, so that publishing decides when and in which order a new version is loaded.
            "--model-control-mode=explicit",
            # All models are named here rather than loaded over the network afterwards: Triton opens its ports when
            # they are loaded. Until then clients are refused as UNAVAILABLE, which they try again, not as NOT_FOUND.
            *(f"--load-model={model}" for model in (*found.parts, *found.ensembles)),
            f"--exit-on-error={'false' if tolerant else 'true'}",
            *self._settings.security.arguments(self._key),
        ]
        threads = self._settings.threads or len(os.sched_getaffinity(0))
        places = folder / "places"  # of the images under way (slime_image/admission.py)
        places.unlink(missing_ok=True)
        self._process = Process(
            [os.fspath(self._wheel.server), *arguments],
            wheel.environment(self._wheel, folder / "python", threads) | {"SLIME_SERVE_PLACES": os.fspath(places)},
            self._log,
            self._regions.lock,
        )

    def _await(self, found: Repository, say: Callable[[str], None] | None = None) -> None:
        """Wait until every segmenter has answered. ``say`` is told of those that do not, and the others are served;
        without it one raises ServerError, as does a server without any that answers.
        """
        deadline = time.monotonic() + self._settings.timeout
        while not self._control.is_live():
            self._check_alive(deadline)
            time.sleep(_POLL_SECONDS)
        self._version = self._control.version()
        self._endpoint.built(self._version)
        self._view.settle(found)
        answered = 0
        with _thread() as pool:
            for served in found.probes:
                left = max(1.0, deadline - time.monotonic())
                try:
                    self._finished(pool.submit(self._try_out, served, left), deadline)
                    answered += 1
                except UnansweredError as error:
                    name = served.name
                    text = f"segmenter {name}: the server cannot answer with it ({error}); its log: {self._log}"
                    if say is None:
                        raise ServerError(text) from error
                    say(text)
        if not answered:
            raise ServerError(f"server: none of its segmenters answers; its log: {self._log}")
        self._repository, self.segmenters = found, found.segmenters

    def _try_out(self, served: Served, seconds: float) -> None:
        """Have the segmenter answer within so many seconds; tell clients what that took, where it is not known yet."""
        took = self._control.probe(served, seconds)
        if served.ensemble in self._seconds:
            return
        if took < _QUICK_SECONDS:
            took = self._control.probe(served, seconds)
        self._seconds[served.ensemble] = took
        self._control.change(served.ensemble, contract.IMAGE_SECONDS, placement.as_parameter(took))

    def _finished(self, task: Future[Result], deadline: float) -> Result:
        while not task.done():
            self._check_alive(deadline)
            time.sleep(_POLL_SECONDS / 2)
        self._check_alive(deadline)
        return task.result()

    def _check_alive(self, deadline: float) -> None:
        self._check_stop()
        assert self._process is not None
        if self._process.code() is not None:
            raise self._process.failure()
        if time.monotonic() > deadline:
            raise ServerError(f"server: not ready after {self._settings.timeout:g} s; allow more with --timeout")

    def _check_stop(self) -> None:
        if self._stop_wanted():
            raise Stopped

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._check_stop()
            time.sleep(_POLL_SECONDS)

    def _end(self, seconds: float) -> None:
        if self._process is not None:
            self._process.end(seconds)
            self._process = None
        self._regions.clear()

    def _drain(self) -> None:
        """Take the segmenters away and wait until what was asked of them is answered, where Triton itself does not."""
        if old_triton.drains(self._version):
            return
        until = time.monotonic() + self._settings.drain
        with contextlib.suppress(UnansweredError):
            for ensemble in self._repository.ensembles:
                self._control.unload(ensemble)
            while time.monotonic() < until and self._control.loaded().intersection(self._repository.ensembles):
                time.sleep(_POLL_SECONDS)

    def _stop(self, *, keep_log: bool) -> None:
        self._end(self._settings.drain + _STOP_SECONDS)
        self._regions.close()
        self._endpoint.close()
        self._workspace.close()
        if self._settings.log is None and not keep_log:
            self._log.unlink(missing_ok=True)


@contextlib.contextmanager
def _thread() -> Iterator[ThreadPoolExecutor]:
    """A thread that is not waited for at the end: its task can hang as long as the server, which is stopped then."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="probe")
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """What is wrong with a repository is the caller's to put right."""
    try:
        yield
    except RepositoryError as error:
        raise UsageError(str(error)) from error


def _read(path: Path) -> Repository:
    with _refused():
        return contents.read(path)

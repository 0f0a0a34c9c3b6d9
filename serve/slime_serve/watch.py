"""What goes wrong with a running server, found by looking; what a model's reload puts right is put right.

A Python process that died: its model is loaded anew. A server that answers nothing any more, or will never answer some
requests: the caller is told.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor

from slime_repository import contract
from slime_repository.contents import Served
from slime_serve import old_triton
from slime_serve.control import Control, UnansweredError
from slime_serve.old_triton import DeadStubs, Stub
from slime_serve.settings import UsageError

# Silence while an image is in the server's networks, or while it is probed, is suspicious after twice what its slowest
# segmenter takes for the images that are there, two full batches at the most, and never before LEAST_PATIENCE.
PATIENCE_IMAGES, LEAST_PATIENCE = 2.0, 10.0
MOST_IMAGES = 2 * contract.MAX_BATCH
# A server that nobody asks is probed so seldom that this takes a fiftieth of its time.
SELDOM_IMAGES = 50.0
FAILED_PROBES = 3
FAILED_RELOADS = 3
_CONNECT_SECONDS = 2.0


class Watch:
    """Watches the server process ``pid`` of Triton's ``version``; ``look`` at it several times a second.

    ``grpc``: where its gRPC port must accept connections. ``probes``: returns what to ask for, read again every round.
    ``every``: seconds between two looks at its counts. ``seconds``: what an image takes by the ensembles' names, which
    probes of an idle server keep up to date. ``say``: takes one line for the person in charge. ``reloaded``: takes the
    name of each model that was loaded again.
    """

    def __init__(
        self,
        pid: int,
        control: Control,
        *,
        version: str,
        grpc: tuple[str, int],
        probes: Callable[[], tuple[Served, ...]],
        every: float,
        seconds: dict[str, float],
        say: Callable[[str], None],
        reloaded: Callable[[str], None] = lambda model: None,
    ) -> None:
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="watch")
        self._deaths: DeadStubs | _UnreadyModels
        self._version = version
        if old_triton.watches_stubs(version):
            self._deaths = _UnreadyModels(control, self._pool, every)
        else:
            self._deaths = DeadStubs(pid)
        self._reloads = _Reloads(control, self._pool, self._deaths, say, reloaded)
        self._probes = _Probes(control, self._pool, grpc, probes, every, seconds)
        self._say = say

    def look(self) -> str | None:
        """Return why the server must be started again, or None where it need not be. Returns at once."""
        for model, what in self._deaths.look():
            if old_triton.loses_requests(self._version, model):
                return f"model {model}: {what}, and this Triton never answers the images that it was reading"
            self._say(f"warning: model {model}: {what}; loading it again")
            self._reloads.want(model)
        return self._reloads.look() or self._probes.look()

    def close(self) -> None:
        """Stop watching."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._deaths.close()


class _UnreadyModels:
    """Models whose Python processes Triton itself calls dead, at two looks in a row, ``every`` so many seconds."""

    def __init__(self, control: Control, pool: Executor, every: float) -> None:
        self._control, self._pool, self._every = control, pool, every
        self._task: Future[list[str]] | None = None
        self._next = time.monotonic() + every
        self._before: set[str] = set()

    def look(self) -> list[tuple[str, str]]:
        """Return each such model, with what happened. Returns at once."""
        found: set[str] = set()
        if self._task is not None and self._task.done():
            task, self._task = self._task, None
            self._next = time.monotonic() + self._every
            with contextlib.suppress(UnansweredError):  # It is being started again, or hangs, which others notice.
                found = set(task.result())
            found, self._before = found & self._before, found - self._before
        if self._task is None and time.monotonic() >= self._next:
            self._task = self._pool.submit(self._control.unready)
        return [(model, "one of its processes died") for model in sorted(found)]

    def processes(self, model: str) -> Sequence[Stub]:
        """Return nothing: this Triton ends the processes of a model that is loaded again."""
        return ()

    def replaced(self, processes: Iterable[Stub]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class _Reloads:
    """Models whose processes died, each loaded again by one task at a time."""

    def __init__(
        self,
        control: Control,
        pool: Executor,
        deaths: DeadStubs | _UnreadyModels,
        say: Callable[[str], None],
        reloaded: Callable[[str], None],
    ) -> None:
        self._control, self._pool, self._say, self._reloaded = control, pool, say, reloaded
        self._deaths = deaths
        self._wanted: set[str] = set()
        self._running: dict[str, tuple[Future[float], Sequence[Stub]]] = {}
        self._failures: Counter[str] = Counter()

    def want(self, model: str) -> None:
        """Have the model loaded again."""
        self._wanted.add(model)

    def look(self) -> str | None:
        """Begin what is wanted and take in what has ended; return what cannot be put right by loading again."""
        for model in [model for model, (task, _) in self._running.items() if task.done()]:
            task, replaced = self._running.pop(model)
            try:
                self._say(f"model {model}: serves again after {task.result():.1f} s")
                self._reloaded(model)
                self._deaths.replaced(replaced)
                del self._failures[model]
            except UnansweredError as error:
                self._failures[model] += 1
                if self._failures[model] == FAILED_RELOADS:
                    return f"model {model} cannot be loaded again ({error})"
                self._wanted.add(model)
        for model in self._wanted - self._running.keys():
            self._wanted.remove(model)
            self._running[model] = self._pool.submit(self._reload, model), self._deaths.processes(model)
        return None

    def _reload(self, model: str) -> float:
        begun = time.monotonic()
        try:
            self._control.reload(model)
        except UnansweredError as error:
            if "unknown model" not in str(error):  # Taken out of the repository in the meantime.
                raise
        return time.monotonic() - begun


class _Probes:
    """Looks at the server's own counts, and asks one segmenter after the other for a mask where they leave doubt."""

    def __init__(
        self,
        control: Control,
        pool: Executor,
        grpc: tuple[str, int],
        probes: Callable[[], tuple[Served, ...]],
        every: float,
        seconds: dict[str, float],
    ) -> None:
        self._control, self._pool, self._grpc, self._every = control, pool, grpc, every
        self._seconds = seconds
        self._turn = _in_turn(probes)
        self._task: Future[None] | None = None
        self._next = time.monotonic() + every
        self._failed = 0
        # The masks at the last sign of life, when it was, and since when images have been in the networks without one.
        self._answered, self._alive, self._busy_since = 0, time.monotonic(), time.monotonic()
        # The images that had failed by then: more of them, and no mask, are as suspicious as an image that is not done.
        self._lost = 0
        # What is counted as in the networks though nothing is: fewest since a probe was answered.
        self._none = 0

    def look(self) -> str | None:
        """Begin a look that is due; return why the server must be started again after too many failures in a row."""
        if self._task is not None and self._task.done():
            task, self._task = self._task, None
            self._next = time.monotonic() + self._every
            try:
                task.result()
                self._failed = 0
            except UnansweredError as error:
                self._failed += 1
                if self._failed == FAILED_PROBES:
                    return f"{FAILED_PROBES} probes in a row failed ({error})"
        if self._task is None and time.monotonic() >= self._next:
            self._task = self._pool.submit(self._ask)
        return None

    def _ask(self) -> None:
        """Return where the server is well, or may still be at work; raise UnansweredError where it does not answer.

        It is well when it gave out masks since the last look, and at work as long as images can take that are in its
        networks: an overloaded server rejects probes as it rejects others, and a busy one has other things to do.
        """
        _connect(self._grpc)
        answered, lost, images = self._control.counts(LEAST_PATIENCE)
        now, self._none = time.monotonic(), min(self._none, images)
        busy = min(images - self._none, MOST_IMAGES) or int(lost != self._lost)
        if answered != self._answered:
            self._answered, self._lost, self._alive, self._busy_since = answered, lost, now, now
            return
        slowest = max(self._seconds.values(), default=0.0)
        if busy:
            is_due = now - self._busy_since >= max(LEAST_PATIENCE, PATIENCE_IMAGES * slowest * busy)
        else:
            self._busy_since = now
            is_due = now - self._alive >= max(self._every, SELDOM_IMAGES * slowest)
        if not (is_due or self._failed):
            return
        served = next(self._turn)
        if served is None:
            return
        try:
            seconds = self._control.probe(served, max(LEAST_PATIENCE, PATIENCE_IMAGES * slowest))
        except UnansweredError:
            if self._control.counts(LEAST_PATIENCE)[0] == answered:
                raise
        else:
            if not busy:
                self._seconds[served.ensemble] = seconds
            self._answered, self._lost, self._none = self._control.counts(LEAST_PATIENCE)
            self._alive = self._busy_since = time.monotonic()


def _in_turn(probes: Callable[[], tuple[Served, ...]]) -> Iterator[Served | None]:
    """Yield what to probe next, for ever; None while the repository is empty or being written."""
    while True:
        found: tuple[Served | None, ...] = ()
        with contextlib.suppress(UsageError):
            found = probes()
        yield from found or (None,)


def _connect(address: tuple[str, int]) -> None:
    try:
        socket.create_connection(address, _CONNECT_SECONDS).close()
    except OSError as error:
        raise UnansweredError(f"gRPC port: {error.strerror or error}") from error

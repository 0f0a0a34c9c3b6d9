"""What goes wrong with a running server, found by looking; what a model's reload puts right is put right.

A killed Python process: its model is loaded anew. A server that answers nothing any more: the caller is told.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor

from slime_repository.contents import Served
from slime_serve.control import Control, UnansweredError
from slime_serve.settings import UsageError
from slime_serve.stubs import Leftovers, Stub, Stubs

# A probe that waits longer counts as failed. Requests are rejected well before (contract.QUEUE_SECONDS).
PROBE_SECONDS = 10.0
FAILED_PROBES = 3
FAILED_RELOADS = 3
_CONNECT_SECONDS = 2.0


class Watch:
    """Watches the server process ``pid``; ``look`` at it several times a second.

    ``grpc``: where its gRPC port must accept connections. ``probes``: returns what to ask for, read again every round.
    ``every``: seconds between two probes. ``say``: takes one line for the person in charge. ``reloaded``: takes the
    name of each model that was loaded again.
    """

    def __init__(
        self,
        pid: int,
        control: Control,
        *,
        grpc: tuple[str, int],
        probes: Callable[[], tuple[Served, ...]],
        every: float,
        say: Callable[[str], None],
        reloaded: Callable[[str], None] = lambda model: None,
    ) -> None:
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="watch")
        self._stubs = Stubs(pid)
        self._leftovers = Leftovers(self._stubs)
        self._reloads = _Reloads(control, self._pool, self._stubs, self._leftovers, say, reloaded)
        self._probes = _Probes(control, self._pool, grpc, probes, every)
        self._say = say

    def look(self) -> str | None:
        """Return why the server must be started again, or None where it need not be. Returns at once."""
        for stub in self._stubs.dead():
            self._say(f"warning: model {stub.model}: its process {stub.pid} died; loading it again")
            self._leftovers.died(stub)
            self._reloads.want(stub.model)
        self._leftovers.look()
        return self._reloads.look() or self._probes.look()

    def close(self) -> None:
        """Stop watching."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._leftovers.close()


class _Reloads:
    """Models whose processes died, each loaded again by one task at a time."""

    def __init__(
        self,
        control: Control,
        pool: Executor,
        stubs: Stubs,
        leftovers: Leftovers,
        say: Callable[[str], None],
        reloaded: Callable[[str], None],
    ) -> None:
        self._control, self._pool, self._say, self._reloaded = control, pool, say, reloaded
        self._stubs, self._leftovers = stubs, leftovers
        self._wanted: set[str] = set()
        self._running: dict[str, tuple[Future[float], list[Stub]]] = {}
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
                self._leftovers.replaced(replaced)
                del self._failures[model]
            except UnansweredError as error:
                self._failures[model] += 1
                if self._failures[model] == FAILED_RELOADS:
                    return f"model {model} cannot be loaded again ({error})"
                self._wanted.add(model)
        for model in self._wanted - self._running.keys():
            self._wanted.remove(model)
            self._running[model] = self._pool.submit(self._reload, model), self._stubs.of(model)
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
    """Asks one segmenter after the other for a mask."""

    def __init__(
        self,
        control: Control,
        pool: Executor,
        grpc: tuple[str, int],
        probes: Callable[[], tuple[Served, ...]],
        every: float,
    ) -> None:
        self._control, self._pool, self._grpc, self._every = control, pool, grpc, every
        self._turn = _in_turn(probes)
        self._task: Future[None] | None = None
        self._next = time.monotonic() + every
        self._failed = 0
        self._answered = 0

    def look(self) -> str | None:
        """Begin a probe that is due; return why the server must be started again after too many failures in a row."""
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
        served = next(self._turn)
        if served is None:
            return
        try:
            _connect(self._grpc)
            self._control.probe(served, PROBE_SECONDS)
        except UnansweredError:
            # An overloaded server rejects probes as it rejects others; it is well as long as it answers somebody.
            before, self._answered = self._answered, self._control.answered()
            if self._answered <= before:
                raise


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

"""Shared memory with a server on the same machine: large images and masks are not sent, only pointed at.

Linux only. A region is made in /dev/shm, registered, and its name removed at once: both sides keep their mapping, and
nothing stays behind however this process ends. Where a region is refused (another machine, endpoint restricted or
switched off, no room) everything is sent in the request from then on.
"""

import mmap
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclient.grpc import service_pb2

from slime_client.errors import CANCELLED, DEADLINE_EXCEEDED, SegmenterError
from slime_client.protocol import Asker, Deadline, Pause, Retry, Steps

# Under this, copying costs less than pointing.
WORTHWHILE_BYTES = 1 << 20
_SMALLEST_BYTES = 1 << 22
# All regions of a segmenter together; what does not fit is sent.
_MOST_BYTES = 1 << 29
_FOLDER = Path("/dev/shm")
# Triton's answer while it works on a request, given up or not, that points there.
_IN_USE = "in use"
_MOMENT_S = 0.05
# Errors of calls that were given up: they say nothing of the server.
_GIVEN_UP = (CANCELLED, DEADLINE_EXCEEDED)


@dataclass(frozen=True, kw_only=True, eq=False)
class Region:
    """Memory that the server sees too: its bytes, and the name that the server knows it by."""

    name: str
    memory: mmap.mmap

    def point(self, tensor: Any, offset: int, size: int) -> None:
        """Say in a request that a tensor lies, or shall lie, at `offset` with `size` bytes."""
        tensor.parameters["shared_memory_region"].string_param = self.name
        tensor.parameters["shared_memory_offset"].int64_param = offset
        tensor.parameters["shared_memory_byte_size"].int64_param = size


class Regions:
    """The regions of one segmenter, each lent to one call at a time and used again."""

    def __init__(self, url: str, *, allowed: bool) -> None:
        # Asked once: sending is always possible instead.
        self._server = Asker(url=url, retry=Retry(attempts=1))
        self._allowed = allowed and _FOLDER.is_dir()
        self._free: list[Region] = []
        # Of calls that were given up: the server may still read or write there, so no other call may.
        self._retired: list[Region] = []
        self._sizes: dict[str, int] = {}
        self._lock = threading.Lock()

    def lend(self, size: int, deadline: Deadline) -> Steps[Region | None]:
        """Return a region of at least `size` bytes, or None where the call is to send its image."""
        if not self._allowed or size < WORTHWHILE_BYTES:
            return None
        while self._free:
            region = self._free.pop()
            if len(region.memory) >= size:
                return region
            self._retired.append(region)
        yield from self._unregister_retired(deadline)
        return (yield from self._make(max(_SMALLEST_BYTES, 1 << (size - 1).bit_length()), deadline))

    def give_back(self, region: Region) -> None:
        """Let another call have the region, because the call that had it has ended."""
        self._free.append(region)

    def retire(self, region: Region) -> None:
        """Keep the region from other calls, because the call that had it was given up."""
        self._retired.append(region)

    def forbid(self) -> None:
        """Use no shared memory any more."""
        self._allowed = False

    def close(self, deadline: Deadline) -> Steps[None]:
        """Take every region back from the server, waiting for calls that it has not given up yet."""
        self._allowed = False
        self._retired += self._free
        self._free = []
        yield from self._unregister_retired(deadline)
        while self._retired and deadline.left() > _MOMENT_S:
            yield Pause(_MOMENT_S)
            yield from self._unregister_retired(deadline)

    def _make(self, size: int, deadline: Deadline) -> Steps[Region | None]:
        name = f"slime-client-{os.getpid()}-{uuid.uuid4().hex}"
        with self._lock:
            if sum(self._sizes.values()) + size > _MOST_BYTES:
                return None
            self._sizes[name] = size
        try:
            with _block(name, size) as memory:
                region = Region(name=name, memory=memory)
                request = service_pb2.SystemSharedMemoryRegisterRequest(name=name, key=f"/{name}", byte_size=size)
                try:
                    yield from self._ask("Register", request, deadline)
                except BaseException:
                    # The server may have registered what nobody waited for any more.
                    self._retired.append(region)
                    raise
        except (OSError, SegmenterError) as error:
            self._allowed = getattr(error, "code", None) in _GIVEN_UP
            return None
        return region

    def _unregister_retired(self, deadline: Deadline) -> Steps[None]:
        # Taken out first: other threads do the same.
        taken, self._retired = self._retired, []
        try:
            while taken:
                if (yield from self._in_use(taken[0], deadline)):
                    self._retired.append(taken.pop(0))
                else:
                    with self._lock:
                        del self._sizes[taken.pop(0).name]
        finally:
            self._retired += taken

    def _in_use(self, region: Region, deadline: Deadline) -> Steps[bool]:
        """Unregister a region; return whether the server refuses because a call still uses it."""
        try:
            request = service_pb2.SystemSharedMemoryUnregisterRequest(name=region.name)
            yield from self._ask("Unregister", request, deadline)
        except SegmenterError as error:
            # A server that is gone, or was started again, has forgotten it.
            return _IN_USE in str(error) or error.code in _GIVEN_UP
        return False

    def _ask(self, what: str, request: Any, deadline: Deadline) -> Steps[Any]:
        method = f"SystemSharedMemory{what}"
        return self._server.ask(method, request, deadline, segmenter="*", subject="shared memory")


@contextmanager
def _block(name: str, size: int) -> Iterator[mmap.mmap]:
    """Map `size` bytes of /dev/shm under a name that is removed afterwards."""
    # Not multiprocessing.shared_memory: it does not reserve the room, and writing beyond it kills the process.
    path = _FOLDER / name
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        os.posix_fallocate(handle, 0, size)
        yield mmap.mmap(handle, size)
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)

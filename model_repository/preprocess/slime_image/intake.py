"""Answers requests about images in threads of its own, so that Triton's thread is free to refuse what has no place.

Triton gives a Python model one request at a time, and lets all others wait without a limit. Where reading an image
takes longer than the networks do, as with photos, requests would wait there for seconds, be past their deadline when
their mask comes, and none would be refused. So a request is counted when it comes, and is read in a thread. Pillow
reads without Python's lock.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

from slime_image.admission import MOST, Places, shared_file
from slime_image.decoding import ImageError

# In all processes of the model. On the CPU the networks take the cores, and reading an image takes little beside them.
_CORES_PER_THREAD = 4
_MOST_THREADS = 4
# As Triton says it of a model's queue.
_FULL = f"Exceeds maximum queue size: {MOST} images are under way; try again after a random pause"

# Returns the tensors of an answer.
Answer: TypeAlias = Callable[[], list[Any]]


class _FullError(Exception): ...


class _CancelledError(Exception): ...


class Intake:
    """The requests of a model.

    Args:
        triton: the module triton_python_backend_utils, which only Triton's own processes can import.
        arguments: what Triton initialises the model with.
        codes: Triton's code for each kind of error that an answer raises, beside ImageError. Other errors are told in
            the server's log alone, because their text could name paths of the server.
    """

    def __init__(
        self, triton: Any, arguments: Mapping[str, str], codes: Mapping[type[Exception], int] | None = None
    ) -> None:
        self._triton, self._model = triton, arguments["model_name"]
        of = triton.TritonError
        self._codes: dict[type[Exception], int] = {
            ImageError: of.INVALID_ARG,
            _FullError: of.UNAVAILABLE,
            _CancelledError: of.CANCELLED,
            **(codes or {}),
        }
        self._places = Places(shared_file())
        self._threads = ThreadPoolExecutor(_threads(json.loads(arguments["model_config"])))
        # Kept, because a counter ends with its family.
        self._families = [
            counters(triton, "slime_decode_failures_total", "Images that were refused"),
            counters(triton, "slime_overload_refusals_total", "Images refused because too many are under way"),
            counters(triton, "slime_read_queue_duration_us", "Microseconds that images waited to be read"),
        ]
        self._unreadable, self._refused, self._waited = (
            family.Metric(labels={"model": self._model}) for family in self._families
        )

    def admit(self, request: Any, read: Callable[[int], list[Any]]) -> None:
        """Answer a request about an image in a thread, or refuse it at once if too many are under way.

        `read` returns the answer's tensors; it is given when the request came, in nanoseconds of the monotonic clock.
        """
        sender, started = request.get_response_sender(), time.monotonic_ns()

        def answer() -> list[Any]:
            self._waited.increment((time.monotonic_ns() - started) / 1000)
            try:
                if sender.is_cancelled():
                    raise _CancelledError("the request was cancelled")
                return read(started)
            except Exception:
                self._places.free(started)
                raise

        if request.is_cancelled():
            self._send(sender, answer)
        elif self._places.take(started):
            self._threads.submit(self._send, sender, answer)
        else:
            self._refused.increment(1)
            self._send(sender, _refuse)

    def answer(self, request: Any, answer: Answer) -> None:
        """Answer a request about something else, now."""
        self._send(request.get_response_sender(), answer)

    def close(self) -> None:
        """Wait until all are answered."""
        self._threads.shutdown()

    def _send(self, sender: Any, answer: Answer) -> None:
        triton = self._triton
        final = triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        try:
            sender.send(triton.InferenceResponse(answer()), flags=final)
        except Exception as error:  # Also of an answer that has no room in shared memory: somebody waits for it.
            sender.send(triton.InferenceResponse(error=self._failure(error)), flags=final)

    def _failure(self, error: Exception) -> Any:
        self._unreadable.increment(isinstance(error, ImageError))
        for kind, code in self._codes.items():
            if isinstance(error, kind):
                return self._triton.TritonError(str(error), code)
        self._triton.Logger.log_error(f"{self._model}: {error!r}")
        message = f"{self._model}: internal error; the server's log has it"
        return self._triton.TritonError(message, self._triton.TritonError.INTERNAL)


def counters(triton: Any, name: str, description: str) -> Any:
    """Return a family of counters at Triton's metrics endpoint."""
    return triton.MetricFamily(name=name, description=description, kind=triton.MetricFamily.COUNTER)


def _threads(config: Mapping[str, Any]) -> int:
    processes = sum(int(group["count"]) for group in config["instance_group"])
    return min(_MOST_THREADS, len(os.sched_getaffinity(0)) // _CORES_PER_THREAD) // processes or 1


def _refuse() -> list[Any]:
    raise _FullError(_FULL)

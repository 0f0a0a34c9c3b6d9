"""Asking one server: every call with a deadline and, where that helps, again; every error readable.

Written as steps (`slime_client.steps`): nothing here sends, waits or knows threads.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import grpc

from slime_client.errors import UNAVAILABLE, from_grpc
from slime_client.retry import Deadline, Retry
from slime_client.steps import Call, Pause, Steps


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server's address and how often it is asked.

    Attributes:
        url: host:port.
        retry: what to do when it is unavailable.
    """

    url: str
    retry: Retry

    def ask(self, method: str, request: Any, deadline: Deadline, *, segmenter: str, subject: str) -> Steps[Any]:
        """One answer, tried again while the server is unavailable and time is left.

        Args:
            method: of Triton's gRPC service.
            request: its message.
            deadline: of all tries and the pauses between them.
            segmenter: what it is about, for messages.
            subject: the very thing that is sent or asked for, for messages.

        Raises:
            SegmenterError: whatever the server or the connection ended with.
        """
        for attempt in itertools.count(1):
            try:
                return (yield Call(method=method, request=request, timeout=deadline.left()))
            except grpc.RpcError as error:
                problem = from_grpc(error, url=self.url, segmenter=segmenter, subject=subject, timeout=deadline.seconds)
                seconds = self.retry.pause(attempt)
                last = attempt == self.retry.attempts or seconds >= deadline.left()
                if problem.code != UNAVAILABLE or last:
                    raise problem from error
            yield Pause(seconds)
        raise AssertionError("counting has no end")

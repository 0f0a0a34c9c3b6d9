"""The client's one exception, and the one place where gRPC errors become readable.

SegmenterError(Exception)   .code is a gRPC status name:
    INVALID_ARGUMENT     the image, the mask's path or an argument is wrong (found here or by the server)
    NOT_FOUND            the server has no segmenter of this name
    UNAVAILABLE          no server answers, or it cannot take requests now, or a process of the model died
    DEADLINE_EXCEEDED    no answer in time
    UNAUTHENTICATED      this part of the server needs a key, or another key
    CANCELLED            the segmenter was closed, or the call given up, while it ran
    FAILED_PRECONDITION  the segmenter was closed, or a mask has no image to lay itself over
    anything else        what the server said, as it said it
"""

import re

import grpc

INVALID_ARGUMENT = "INVALID_ARGUMENT"
NOT_FOUND = "NOT_FOUND"
UNAVAILABLE = "UNAVAILABLE"
DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
UNAUTHENTICATED = "UNAUTHENTICATED"
CANCELLED = "CANCELLED"
FAILED_PRECONDITION = "FAILED_PRECONDITION"
INTERNAL = "INTERNAL"

_LONGEST_QUOTE = 300
# Triton's own framing of a model's message; it tells the caller nothing.
_FRAMING = re.compile(r"^(\[request id: [^]]*\]\s*|in ensemble '[^']*',\s*)+")
# A Python model's uncaught exception ends in the server's stack.
_STACK = re.compile(r"\n\s*At:\s*\n.*", re.DOTALL)
# gRPC gives UNAVAILABLE both when nobody answers and when Triton refuses; only the text differs.
_NOBODY = re.compile(
    r"\b(failed to connect|errors? resolving|DNS|socket|connection|recvmsg|GOAWAY|broken pipe|ping"
    r"|cancelling all calls|handshak\w*|SSL\w*)\b",
    re.IGNORECASE,
)
# Triton's words tell more than its status. Waiting mends neither a model that is not loaded nor a missing key, both of
# which it calls UNAVAILABLE; it mends a model whose process died (INTERNAL), which serve/launch.py loads again.
_BY_WORDS = {
    "unknown model": NOT_FOUND,
    "protocol is restricted": UNAUTHENTICATED,
    "is not healthy": UNAVAILABLE,
}
# gRPC's words for a call that this process itself gave up. Any other CANCELLED is a server's that stops: gRPC ends with
# it what arrives while the server closes its port, and the next server can answer it.
_GIVEN_UP_HERE = re.compile(r"locally cancell?ed|channel closed", re.IGNORECASE)


class SegmenterError(Exception):
    """Whatever went wrong, in one line: subject, what was found, what to do next.

    Attributes:
        code: gRPC status name, such as "UNAVAILABLE"; see the module's table.
    """

    def __init__(self, message: str, code: str = "UNKNOWN") -> None:
        super().__init__(_one_line(message))
        self.code = code


def from_grpc(error: grpc.RpcError, *, url: str, segmenter: str, subject: str, timeout: float) -> SegmenterError:
    """Return the readable form of any error of a gRPC call.

    `url` is the host:port that was asked, `subject` what the call was about (the image's path, for instance), `timeout`
    the whole call's deadline in seconds.
    """
    code, said = error.code().name, _quote(error.details())
    code = next((other for words, other in _BY_WORDS.items() if words in said), code)
    if code == CANCELLED and not _GIVEN_UP_HERE.search(said):
        code = UNAVAILABLE
    return SegmenterError(_explain(code, said, url, segmenter, subject, timeout), code)


def nobody_answers(details: str) -> bool:
    """Return whether gRPC's words for UNAVAILABLE are about the connection, and not a server's that refuses."""
    return bool(_NOBODY.search(details))


def reason(details: str) -> str:
    """Return why nobody answers, in gRPC's words: the address stands twice before it."""
    return details.rsplit(": ", 1)[-1].rstrip("]")


def _explain(code: str, said: str, url: str, segmenter: str, subject: str, timeout: float) -> str:
    if code == UNAVAILABLE and nobody_answers(said):
        return f"{url}: no Triton server answers ({reason(said)}); start it, or correct the host and the gRPC port"
    if code == UNAVAILABLE:
        return f"{url}: segmenter {segmenter!r} takes no request now ({said}); try again later"
    if code == DEADLINE_EXCEEDED:
        return (
            f"{url}: no answer from segmenter {segmenter!r} within {timeout:g} s; "
            "give a longer timeout, or look at the server's load"
        )
    if code == NOT_FOUND:
        return f"{url}: no segmenter {segmenter!r} is served"
    if code == UNAUTHENTICATED:
        return f"{url}: {subject} wants a key ({said}); give --admin-key-file the file that has it"
    if code == INVALID_ARGUMENT:
        return f"{subject}: refused by segmenter {segmenter!r}: {said}"
    return f"{url}: segmenter {segmenter!r} failed on {subject} ({code}: {said}); see the server's log"


def _quote(details: object) -> str:
    text = _STACK.sub("", str(details or "no details"))
    text = _one_line(_FRAMING.sub("", text.strip()))
    return text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "…"


def _one_line(text: str) -> str:
    return " ".join(text.split())

"""The core without a network: what it asks for when a server is unavailable, and how long it waits."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest

from slime_client import Retry, SegmenterError
from slime_client.protocol import Asker, Call, Deadline, Pause


class Failed(grpc.RpcError):  # type: ignore[misc]
    """What gRPC raises."""

    def __init__(self, code: grpc.StatusCode, details: str = "busy") -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


UNAVAILABLE = Failed(grpc.StatusCode.UNAVAILABLE)


def asked(retry: Retry, answers: Iterator[Any], seconds: float = 30) -> tuple[list[Any], Any]:
    """The steps that one question took, and what came of it."""
    steps: list[Any] = []
    asking = Asker(url="here:1", retry=retry).ask("ModelInfer", None, Deadline(seconds), segmenter="car", subject="it")
    try:
        step = next(asking)
        while True:
            steps.append(step)
            answer = next(answers) if isinstance(step, Call) else None
            step = asking.throw(answer) if isinstance(answer, Exception) else asking.send(answer)
    except StopIteration as end:
        return steps, end.value
    except SegmenterError as error:
        return steps, error


def test_only_what_is_unavailable_is_tried_again() -> None:
    for code in grpc.StatusCode:
        if code not in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE):
            steps, error = asked(Retry(), iter([Failed(code, "Locally cancelled by application!")]))
            assert len(steps) == 1, code
            assert error.code == code.name
    steps, answer = asked(Retry(), iter([UNAVAILABLE, UNAVAILABLE, "mask"]))
    assert answer == "mask"
    assert [type(step) for step in steps] == [Call, Pause, Call, Pause, Call]


@pytest.mark.parametrize("details", ["Request for unknown model: 'car'", "This protocol is restricted"])
def test_what_triton_calls_unavailable_but_is_not(details: str) -> None:
    steps, error = asked(Retry(), iter([Failed(grpc.StatusCode.UNAVAILABLE, details)]))
    assert len(steps) == 1
    assert error.code in ("NOT_FOUND", "UNAUTHENTICATED")


def test_what_a_stopping_server_cancels_is_tried_again() -> None:
    cancelled = Failed(grpc.StatusCode.CANCELLED, "CANCELLED")
    _, answer = asked(Retry(), iter([cancelled, "mask"]))
    assert answer == "mask"
    _, error = asked(Retry(attempts=1), iter([cancelled]))
    assert error.code == "UNAVAILABLE"


def test_a_process_that_died_is_tried_again() -> None:
    """serve/launch.py loads its model again within seconds; Triton calls requests that meet it until then INTERNAL."""
    died = Failed(grpc.StatusCode.INTERNAL, "in ensemble 'car', Stub process 'vae_encoder_0_0' is not healthy.")
    steps, answer = asked(Retry(), iter([died, "mask"]))
    assert (answer, sum(isinstance(step, Call) for step in steps)) == ("mask", 2)


def test_tries_last_until_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def unavailable() -> Iterator[Any]:
        nonlocal now
        while True:
            now += 0.7  # A little more than the mean of the longest pauses, so that seconds pass here as there.
            yield UNAVAILABLE

    steps, error = asked(Retry(), unavailable(), seconds=30)
    assert error.code == "UNAVAILABLE"
    assert 28 <= now < 30.7
    assert all(step.seconds <= 2 for step in steps if isinstance(step, Pause))


def test_tries_are_bounded() -> None:
    for attempts in (1, 3):
        steps, error = asked(Retry(attempts=attempts), iter([UNAVAILABLE] * 9))
        assert sum(isinstance(step, Call) for step in steps) == attempts
        assert error.code == "UNAVAILABLE"


def test_pauses_have_full_jitter() -> None:
    bounds = [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    retry = Retry(attempts=7, first=0.1, longest=1.0, chance=random.Random(0).random)
    drawn = [[retry.pause(attempt) for _ in range(400)] for attempt in range(1, 7)]
    for pauses, bound in zip(drawn, bounds, strict=True):
        assert 0 <= min(pauses) < 0.02 * bound
        assert 0.98 * bound < max(pauses) <= bound
        assert sum(pauses) / len(pauses) == pytest.approx(bound / 2, rel=0.1)
    assert retry.pause(10_000) <= 1.0


def test_a_seed_repeats_the_pauses() -> None:
    runs = [asked(Retry(attempts=4, chance=random.Random(7).random), iter([UNAVAILABLE] * 4))[0] for _ in range(2)]
    pauses = [[step.seconds for step in run if isinstance(step, Pause)] for run in runs]
    assert pauses[0] == pauses[1]
    assert len(set(pauses[0])) == 3


def test_no_pause_goes_past_the_deadline() -> None:
    retry = Retry(attempts=9, first=5, longest=5, chance=lambda: 0.5)
    steps, error = asked(retry, iter([UNAVAILABLE] * 9), seconds=2)
    assert [type(step) for step in steps] == [Call]
    assert error.code == "UNAVAILABLE"


def test_every_try_gets_what_is_left_of_the_time() -> None:
    def slow() -> Iterator[Any]:
        for _ in range(2):
            time.sleep(0.05)
            yield UNAVAILABLE
        yield "mask"

    steps, _ = asked(Retry(chance=lambda: 0.0), slow(), seconds=10)
    timeouts = [step.timeout for step in steps if isinstance(step, Call)]
    assert timeouts[0] <= 10
    assert timeouts[1] < timeouts[0] - 0.04
    assert timeouts[2] < timeouts[1] - 0.04


@pytest.mark.parametrize(
    "wrong", [{"attempts": 0}, {"attempts": 1.5}, {"first": -1}, {"first": 3}, {"longest": float("inf")}]
)
def test_a_retry_that_makes_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(SegmenterError, match="retry: got") as caught:
        Retry(**wrong)
    assert caught.value.code == "INVALID_ARGUMENT"

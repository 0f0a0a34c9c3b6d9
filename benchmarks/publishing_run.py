"""Changes of a repository while threads ask the server: what each answer was, and whether it may have been so."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.publishing_variants import AGREEMENT, NAME, Baked, Variant, quiet
from tritonclient import grpc

from slime_export.publish.record import Mask
from slime_export.publish.rollback import rollback
from slime_export.publish.server_control import Server
from slime_was.tensors import DESCRIPTION, IMAGE, MASK, SEGMENTER

ASKING = 2  # threads that send requests
_PATIENCE_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One request: when it was sent and answered, by which version, with what mask; or its error."""

    begun: float
    ended: float
    version: int = 0
    mask_HW: Mask | None = None
    error: str = ""


def ask(client: Any, name: str, variant: Variant) -> Answer:
    """One request for the segmenter of that name, in the variant's form, whatever comes of it."""
    model, values, wanted = variant.model(name), {IMAGE: variant.check.image}, [MASK]
    if model != name:  # The shared form, whose answers tell of the segmenter.
        values, wanted = values | {SEGMENTER: name.encode()}, [MASK, DESCRIPTION]
    tensors = [grpc.InferInput(each, [1], "BYTES") for each in values]
    for tensor, value in zip(tensors, values.values(), strict=True):
        tensor.set_data_from_numpy(np.array([value], dtype=object))
    begun = time.perf_counter()
    try:
        got = client.infer(
            model, tensors, outputs=[grpc.InferRequestedOutput(each) for each in wanted], client_timeout=60
        )
    except Exception as error:
        return Answer(begun=begun, ended=time.perf_counter(), error=f"{type(error).__name__}: {error}")
    ended = time.perf_counter()
    told = json.loads(got.as_numpy(DESCRIPTION).item()) if DESCRIPTION in wanted else {}
    version = int(told.get("version", got.get_response().model_version))
    return Answer(begun=begun, ended=ended, version=version, mask_HW=got.as_numpy(MASK))


def same(answer: Answer, expected_HW: Mask) -> bool:
    """Whether the answer has that mask."""
    mask_HW = answer.mask_HW
    if mask_HW is None or mask_HW.shape != expected_HW.shape:
        return False
    return float(np.equal(mask_HW, expected_HW).mean()) >= AGREEMENT


@dataclass
class Asking:
    """Threads that ask for the mask of one image without a break, inside a with-block."""

    url: str
    variant: Variant
    answers: list[Answer] = field(default_factory=list)

    def __enter__(self) -> Asking:
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(ASKING)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        with grpc.InferenceServerClient(self.url) as client:
            while not self._over.is_set():
                self.answers.append(ask(client, NAME, self.variant))

    def wait_for(self, count: int, version: int | None = None) -> None:
        """Until there are `count` answers and one of them is `version`'s. Raises TimeoutError where none comes."""
        deadline = time.monotonic() + _PATIENCE_S
        while len(self.answers) < count or (version and all(each.version != version for each in self.answers)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(self.answers)} answers, expected {count}, and one of version {version}")
            time.sleep(0.02)


class Watched(Server):
    """Remembers when each load of a model began and ended."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.loads: list[tuple[str, float, float]] = []

    def load(self, model: str) -> None:
        begun = time.perf_counter()
        super().load(model)
        self.loads.append((model, begun, time.perf_counter()))


@dataclass
class Run:
    """Changes under load, and what came of them. `contents`: version -> the variant whose content it has."""

    repository: Path
    variants: Sequence[Variant]
    watched: Watched
    contents: dict[int, Variant] = field(default_factory=dict)
    changes: list[tuple[str, int, float, float]] = field(default_factory=list)

    def start(self) -> None:
        """The first version, before anybody asks."""
        first = self.variants[0]
        self._changed("publish", lambda: first.publish(self.repository, NAME, self.watched), first)

    def under_load(self, publishes: int, rollbacks: int, requests: int) -> list[Answer]:
        """Changes spread over the requests, which go on until there are as many as wanted and all changes are done."""
        kinds = spread(publishes, rollbacks)
        with Asking(self.watched.url, self.variants[0]) as asking:
            for turn, kind in enumerate(kinds):
                asking.wait_for(requests * turn // len(kinds))
                self._roll_back() if kind == "rollback" else self._publish()
            asking.wait_for(requests, max(self.contents))
        return asking.answers

    def _publish(self) -> None:
        live = self.contents[max(self.contents)]
        others = [each for each in self.variants if each is not live]
        variant = others[len(self.changes) % len(others)]
        self._changed("publish", lambda: variant.publish(self.repository, NAME, self.watched), variant)

    def _roll_back(self) -> None:
        old = self.contents[sorted(self.contents)[-2]]
        self._changed("rollback", lambda: rollback(self.repository, NAME, server=self.watched, say=quiet)[1], old)

    def _changed(self, kind: str, change: Callable[[], int], content: Variant) -> None:
        begun = time.perf_counter()
        version = change()
        self.contents[version] = content
        self.changes.append((kind, version, begun, time.perf_counter()))

    def live(self) -> dict[int, tuple[float, float]]:
        """Version -> from when it can have answered to when it can have answered last.

        By the loads of the ensemble; a shared segmenter's file is renamed at some moment of its change.
        """
        baked = isinstance(self.variants[0], Baked)
        loads = [(begun, ended) for model, begun, ended in self.watched.loads if model == NAME]
        switches = loads if baked else [(begun, ended) for _, _, begun, ended in self.changes]
        ends = [ended for _, ended in switches[1:]] + [float("inf")]
        return {v: (begun, end) for v, (begun, _), end in zip(sorted(self.contents), switches, ends, strict=True)}

    def wrong(self, answers: Sequence[Answer]) -> list[str]:
        """What is wrong with each answer that is."""
        live = self.live()
        return [line for answer in answers if (line := self._wrong(answer, live))]

    def _wrong(self, answer: Answer, live: dict[int, tuple[float, float]]) -> str:
        if answer.error:
            return answer.error
        begun, ended = live.get(answer.version, (float("inf"), 0.0))
        if answer.ended < begun or answer.begun > ended:
            return f"version {answer.version} was not live during the call"
        if not same(answer, self.contents[answer.version].check.mask_HW):
            return f"version {answer.version} answered with another version's mask"
        return ""

    def seconds(self, kind: str, answers: Sequence[Answer]) -> dict[str, list[float]]:
        """From the start of each change to its return, and to the first answer of its version."""
        first: dict[int, float] = {}
        for answer in answers:
            first[answer.version] = min(answer.ended, first.get(answer.version, float("inf")))
        own = [each for each in self.changes[1:] if each[0] == kind]
        return {
            "to_return": [end - begun for _, _, begun, end in own],
            "to_first_answer": [first[version] - begun for _, version, begun, _ in own if version in first],
        }


def spread(publishes: int, rollbacks: int) -> list[str]:
    """Rollbacks evenly among the publications, the first after the second of them."""
    kinds = ["publish"] * publishes
    for turn in range(rollbacks):
        kinds.insert(min(len(kinds), 2 + turn * (publishes // max(1, rollbacks) + 1)), "rollback")
    return kinds

"""Changes of a repository while threads ask the server: what each answer was, and whether it may have been so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.publishing.variants import NAME, Answer, Published, Watched, ask, rolled_back
from tritonclient import grpc

ASKING = 2  # threads that send requests
_PATIENCE_S = 600.0


@dataclass
class Asking:
    """Threads that ask for the mask of one image without a break, inside a with-block."""

    url: str
    variant: Published
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
        """Wait for `count` answers, one of them from `version`. Raises TimeoutError where none comes."""
        deadline = time.monotonic() + _PATIENCE_S
        while len(self.answers) < count or (version and all(each.version != version for each in self.answers)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(self.answers)} answers, expected {count}, and one of version {version}")
            time.sleep(0.02)


@dataclass
class Run:
    """Changes under load, and what came of them. `contents`: version -> the variant whose content it has."""

    repository: Path
    variants: Sequence[Published]
    watched: Watched
    contents: dict[int, Published] = field(default_factory=dict)
    changes: list[tuple[str, int, float, float]] = field(default_factory=list)  # kind, version, begin, end

    def start(self) -> None:
        """Publish the first version, before anybody asks."""
        self._publish(self.variants[0])

    def under_load(self, publishes: int, rollbacks: int, requests: int) -> list[Answer]:
        """Spread the changes over the requests, which go on until there are enough and all changes are done."""
        kinds = spread_evenly(publishes, rollbacks)
        with Asking(self.watched.url, self.variants[0]) as asking:
            for turn, kind in enumerate(kinds):
                asking.wait_for(requests * turn // len(kinds))
                if kind == "rollback":
                    content = self.contents[sorted(self.contents)[-2]]
                    self._changed(kind, lambda: rolled_back(self.repository, NAME, self.watched), content)
                else:
                    live = self.contents[max(self.contents)]
                    others = [each for each in self.variants if each is not live]
                    self._publish(others[len(self.changes) % len(others)])
            asking.wait_for(requests, max(self.contents))
        return asking.answers

    def _publish(self, variant: Published) -> None:
        self._changed("publish", lambda: variant.publish(self.repository, NAME, self.watched), variant)

    def _changed(self, kind: str, change: Callable[[], int], content: Published) -> None:
        begun = time.perf_counter()
        version = change()
        self.contents[version] = content
        self.changes.append((kind, version, begun, time.perf_counter()))

    def live(self) -> dict[int, tuple[float, float]]:
        """Return for each version when it can have answered first, and when last.

        A baked one switches with a load of the ensemble; a shared segmenter's file is renamed during its change.
        """
        baked = not self.variants[0].shared
        loads = [(begun, ended) for model, begun, ended in self.watched.loads if model == NAME]
        switches = loads if baked else [(begun, ended) for _, _, begun, ended in self.changes]
        ends = [ended for _, ended in switches[1:]] + [float("inf")]
        return {v: (begun, end) for v, (begun, _), end in zip(sorted(self.contents), switches, ends, strict=True)}

    def wrong(self, answers: Sequence[Answer]) -> list[str]:
        """Return what is wrong with each answer that is."""
        live, found = self.live(), []
        for answer in answers:
            begun, ended = live.get(answer.version, (float("inf"), 0.0))
            if answer.error:
                found.append(answer.error)
            elif answer.ended < begun or answer.begun > ended:
                found.append(f"version {answer.version} was not live during the call")
            elif not answer.has(self.contents[answer.version].check.mask_HW):
                found.append(f"version {answer.version} answered with another version's mask")
        return found

    def seconds(self, kind: str, answers: Sequence[Answer]) -> dict[str, list[float]]:
        """Return the seconds from the start of each change to its return, and to the first answer of its version."""
        first: dict[int, float] = {}
        for answer in answers:
            first[answer.version] = min(answer.ended, first.get(answer.version, float("inf")))
        own = [each for each in self.changes[1:] if each[0] == kind]
        return {
            "to_return": [end - begun for _, _, begun, end in own],
            "to_first_answer": [first[version] - begun for _, version, begun, _ in own if version in first],
        }


def spread_evenly(publishes: int, rollbacks: int) -> list[str]:
    """Return the changes in order, rollbacks evenly among the publications, the first after the second of them."""
    kinds = ["publish"] * publishes
    for turn in range(rollbacks):
        kinds.insert(min(len(kinds), 2 + turn * (publishes // max(1, rollbacks) + 1)), "rollback")
    return kinds

"""Publishing and rolling back on a server that answers: how long it takes, and whether a request is ever lost.

    python -m benchmarks.publishing --json docs/publishing.json

On the embedded backbone, with random embeddings (what they segment does not matter here). Three segmenters that differ
are exported once, then published by turns under one name while threads ask the server for masks without a break; some
of the changes are rollbacks. Every answer says its version: it must have been live at some moment of the call, and its
mask must be the one that PyTorch gives for that version's content. Then new names are published, asked at once, and
removed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo import server
from tritonclient import grpc

from slime_export import record
from slime_export.changes import linked
from slime_export.lock import staging
from slime_export.pipeline import export
from slime_export.record import Check
from slime_export.removal import remove
from slime_export.repository import Candidate, publish
from slime_export.request import Request
from slime_export.rollback import rollback
from slime_export.server import Server
from slime_optimize.backbone import Backbone, load_backbone
from slime_optimize.files import write_text
from slime_optimize.segmenter import Segmenter
from slime_optimize.settings import Settings
from slime_was.contract import IMAGE, MASK, VAE_ENCODER, unet_name

NAME = "car"
ASKING = 2  # threads that send requests
AGREEMENT = 0.999  # of a mask's pixels


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A segmenter exported into a repository of its own, from which it is published again and again."""

    folder: Path
    repository: Path
    segmenter: Segmenter
    check: Check

    def publish(self, repository: Path, name: str, server: Server | None) -> int:
        """The version it got under `name`."""
        with staging(repository, say=_quiet) as staged:
            candidate = Candidate(
                name=name,
                segmenter=self.segmenter,
                unet=linked(self.repository / unet_name(NAME) / "1", staged / ".export" / "unet"),
                encoder=linked(self.repository / VAE_ENCODER / "1", staged / ".export" / "encoder"),
                check=self.check,
            )
            return publish(repository, staged, candidate, server, say=_quiet).version


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One request: when it was sent and answered, by which version, with what mask; or its error."""

    begun: float
    ended: float
    version: int = 0
    mask_HW: record.Mask | None = None
    error: str = ""


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
class Asking:
    """Threads that ask for the mask of one image without a break, inside a with-block."""

    url: str
    name: str
    image: bytes
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
                self.answers.append(ask(client, self.name, self.image))


def ask(client: Any, name: str, image: bytes) -> Answer:
    """One request, whatever comes of it."""
    given = grpc.InferInput(IMAGE, [1], "BYTES")
    given.set_data_from_numpy(np.array([image], dtype=object))
    begun = time.perf_counter()
    try:
        got = client.infer(name, [given], outputs=[grpc.InferRequestedOutput(MASK)], client_timeout=60)
    except Exception as error:
        return Answer(begun=begun, ended=time.perf_counter(), error=f"{type(error).__name__}: {error}")
    version = int(got.get_response().model_version)
    return Answer(begun=begun, ended=time.perf_counter(), version=version, mask_HW=got.as_numpy(MASK))


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
        self._changed(
            "publish", lambda: self.variants[0].publish(self.repository, NAME, self.watched), self.variants[0]
        )

    def under_load(self, publishes: int, rollbacks: int, requests: int) -> list[Answer]:
        """Changes spread over the requests, which go on until there are as many as wanted and all changes are done."""
        kinds = _spread(publishes, rollbacks)
        with Asking(self.watched.url, NAME, self.variants[0].check.image) as asking:
            for turn, kind in enumerate(kinds):
                _wait_for(asking.answers, requests * turn // len(kinds))
                self._roll_back() if kind == "rollback" else self._publish()
            _wait_for(asking.answers, requests, max(self.contents))
        return asking.answers

    def _publish(self) -> None:
        live = self.contents[max(self.contents)]
        others = [each for each in self.variants if each is not live]
        variant = others[len(self.changes) % len(others)]
        self._changed("publish", lambda: variant.publish(self.repository, NAME, self.watched), variant)

    def _roll_back(self) -> None:
        old = self.contents[sorted(self.contents)[-2]]
        self._changed("rollback", lambda: rollback(self.repository, NAME, server=self.watched, say=_quiet)[1], old)

    def _changed(self, kind: str, change: Callable[[], int], content: Variant) -> None:
        begun = time.perf_counter()
        version = change()
        self.contents[version] = content
        self.changes.append((kind, version, begun, time.perf_counter()))

    def live(self) -> dict[int, tuple[float, float]]:
        """Version -> from when it can have answered to when it can have answered last, by the loads of the ensemble."""
        loads = [(begun, ended) for model, begun, ended in self.watched.loads if model == NAME]
        ends = [ended for _, ended in loads[1:]] + [float("inf")]
        return {v: (begun, end) for v, (begun, _), end in zip(sorted(self.contents), loads, ends, strict=True)}

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
        expected = self.contents[answer.version].check.mask_HW
        if not _same(answer, expected):
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


def new_names(run: Run, count: int) -> tuple[list[float], list[float]]:
    """Seconds from publishing a name that was not there to its first answer, and of its removal."""
    published, removed = [], []
    with grpc.InferenceServerClient(run.watched.url) as client:
        for turn in range(count):
            name, variant = f"new-{turn}", run.variants[turn % len(run.variants)]
            begun = time.perf_counter()
            variant.publish(run.repository, name, run.watched)
            answer = ask(client, name, variant.check.image)
            published.append(time.perf_counter() - begun)
            if not _same(answer, variant.check.mask_HW):
                raise SystemExit(f"error: {name} answers wrongly: {answer.error or 'another mask'}")
            begun = time.perf_counter()
            remove(run.repository, name, run.watched, say=_quiet)
            removed.append(time.perf_counter() - begun)
    return published, removed


def variant(folder: Path, seed: int, backbone: Backbone) -> tuple[Variant, float]:
    """A segmenter with random embeddings, exported; and the seconds that the export took."""
    chance = torch.Generator().manual_seed(seed)
    parts = 4 + seed
    segmenter = Segmenter(
        text_embedding=torch.randn(1, 77, backbone.text_width, generator=chance),
        noise=torch.randn(1, 4, backbone.latent_size, backbone.latent_size, generator=chance),
        parts=tuple(f"part {i}" for i in range(parts)),
        colours=tuple((20 * i, 0, 255) for i in range(parts)),
        backbone_id=backbone.id,
        backbone_hash=backbone.hash,
        image_size=backbone.image_size,
        latent_size=backbone.latent_size,
        settings=Settings(threshold=0.0),
        preset="paper",
        seed=seed,
    )
    segmenter.save(folder / NAME)
    begun = time.perf_counter()
    export(Request(folder=folder / NAME, repository=folder / "repository"), say=_quiet)
    seconds = time.perf_counter() - begun
    check = record.read(folder / "repository" / NAME / "1").check
    return Variant(folder=folder, repository=folder / "repository", segmenter=segmenter, check=check), seconds


def require_different(masks: Sequence[record.Mask]) -> None:
    """By ten times what an answer may differ by, or one of the wrong version would look right."""
    for one, other in itertools.combinations(masks, 2):
        if np.equal(one, other).mean() > 1 - 10 * (1 - AGREEMENT):
            raise SystemExit("error: two of the segmenters give nearly the same mask; try other seeds")


def main() -> int:
    """Exit code 1 where a request was lost or answered wrongly."""
    options = _arguments()
    torch.set_num_threads(1)
    backbone = load_backbone("embedded")
    with tempfile.TemporaryDirectory(prefix="slime-publishing-") as root:
        exported = [variant(Path(root) / str(seed), seed, backbone) for seed in range(3)]
        repository = Path(root) / "repository"
        require_different([each.check.mask_HW for each, _ in exported])
        # The server wants a segmenter to start with; it is not the one that is asked for.
        exported[0][0].publish(repository, "first", None)
        with server(repository) as url:
            run = Run(repository, [each for each, _ in exported], Watched(url))
            run.start()
            answers = run.under_load(options.publishes, options.rollbacks, options.requests)
            fresh, removals = new_names(run, options.new_names)
    wrong = run.wrong(answers)
    figures = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end",
        "requests": len(answers),
        "errors_or_wrong": len(wrong),
        "examples": wrong[:5],
        "publishes": options.publishes,
        "rollbacks": options.rollbacks,
        "request_ms": _summary([1000 * (each.ended - each.begun) for each in answers]),
        "export_s": _summary([seconds for _, seconds in exported]),
        "new_name_to_first_answer_s": _summary(fresh),
        "remove_s": _summary(removals),
    }
    for kind in ("publish", "rollback"):
        for what, values in run.seconds(kind, answers).items():
            figures[f"{kind}_{what}_s"] = _summary(values)
    text = json.dumps(figures, indent=1)
    print(text)
    if options.json:
        write_text(options.json, text + "\n")
    return 1 if wrong else 0


def _same(answer: Answer, expected_HW: record.Mask) -> bool:
    mask_HW = answer.mask_HW
    if mask_HW is None or mask_HW.shape != expected_HW.shape:
        return False
    return float(np.equal(mask_HW, expected_HW).mean()) >= AGREEMENT


def _spread(publishes: int, rollbacks: int) -> list[str]:
    """Rollbacks evenly among the publications, the first after the second of them."""
    kinds = ["publish"] * publishes
    for turn in range(rollbacks):
        kinds.insert(min(len(kinds), 2 + turn * (publishes // max(1, rollbacks) + 1)), "rollback")
    return kinds


def _wait_for(answers: Sequence[Answer], count: int, version: int | None = None) -> None:
    """Until there are `count` answers and one of them is `version`'s. Raises TimeoutError where none comes any more."""
    deadline = time.monotonic() + 600
    while len(answers) < count or (version is not None and all(each.version != version for each in answers)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(answers)} answers after 600 s, expected {count}, and one of version {version}")
        time.sleep(0.02)


def _summary(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {"median": round(statistics.median(values), 3), "max": round(max(values), 3), "count": len(values)}


def _quiet(line: str) -> None:
    pass


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--publishes", type=int, default=20)
    parser.add_argument("--rollbacks", type=int, default=5)
    parser.add_argument("--new-names", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go as well")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())

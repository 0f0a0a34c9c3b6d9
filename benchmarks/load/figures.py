"""Outcomes of requests to figures: latencies, shares, throughput. Plain numbers in and out.

An outcome is what benchmarks.load.client notes: status, target, seconds from when it was due and from when it was sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from benchmarks.common.figures import percentile
from benchmarks.common.server import Counts, Launched, difference, per_request, together
from benchmarks.common.sides import Side

from slime_repository.contract import is_unet

OK, REJECTED = "OK", "UNAVAILABLE"
_STATUS, _TARGET, _FROM_DUE, _FROM_SENT = range(4)  # places in an outcome
Answer = Mapping[str, Any]


def pooled(answers: Iterable[Answer]) -> dict[str, Any]:
    """Return several runs of one kind as one."""
    runs = list(answers)
    return {
        "seconds": sum(run["seconds"] for run in runs),
        "client_cpu": sum(run["client_cpu"] for run in runs),
        "asked": [outcome for run in runs for outcome in run["asked"]],
    }


def summary(answer: Answer) -> dict[str, Any]:
    """Return latencies of answered requests in ms from when each was due, and throughput in masks a second."""
    asked = answer["asked"]
    good = [1000 * each[_FROM_DUE] for each in asked if each[_STATUS] == OK]
    refused = [1000 * each[_FROM_DUE] for each in asked if each[_STATUS] == REJECTED]
    return {
        "requests": len(asked),
        "seconds": answer["seconds"],
        "throughput": len(good) / answer["seconds"],
        **{f"p{share}_ms": percentile(good, share) for share in (50, 95, 99)},
        "rejects": len(refused),
        "reject_p50_ms": percentile(refused, 50),
        "errors": dict(Counter(each[_STATUS] for each in asked if each[_STATUS] not in (OK, REJECTED))),
        "client_cpu_share": answer["client_cpu"] / answer["seconds"],
    }


def in_time(answer: Answer, deadline: float) -> float | None:
    """Return the share of the requests not refused that were answered within `deadline` seconds of being due."""
    accepted = [each for each in answer["asked"] if each[_STATUS] != REJECTED]
    good = [each for each in accepted if each[_STATUS] == OK and each[_FROM_DUE] <= deadline]
    return len(good) / len(accepted) if accepted else None


def median_ms(answer: Answer) -> float:
    """Return the median of the answered requests, from when each was sent."""
    return float(np.median([1000 * each[_FROM_SENT] for each in answer["asked"] if each[_STATUS] == OK]))


def late(answer: Answer, seconds: float) -> float:
    """Return how many of 1,000 requests were answered more than `seconds` after the median, or not at all."""
    allowed = median_ms(answer) / 1000 + seconds
    slow = [each for each in answer["asked"] if each[_STATUS] != OK or each[_FROM_SENT] > allowed]
    return 1000 * len(slow) / len(answer["asked"])


def pairs(answer: Answer) -> list[tuple[float, ...]]:
    """Return the seconds of each target in each round of a paired run, without rounds that had anything but masks."""
    targets = 1 + max(each[_TARGET] for each in answer["asked"])
    rounds = [answer["asked"][at : at + targets] for at in range(0, len(answer["asked"]), targets)]
    whole = [
        sorted(turn, key=lambda each: each[_TARGET]) for turn in rounds if all(each[_STATUS] == OK for each in turn)
    ]
    return [tuple(each[_FROM_SENT] for each in turn) for turn in whole]


@dataclass
class Runs:
    """Answers of one kind of run, round by round, what the server counted meanwhile, and the CPU time it used."""

    answers: list[dict[str, Any]] = field(default_factory=list)
    counted: list[Counts] = field(default_factory=list)
    cpu_seconds: float = 0.0

    def ask(self, server: Launched, client: Side, **order: Any) -> dict[str, Any]:
        """Give one order to the client of `server` and note what came of it."""
        before, used = server.counts(), server.cpu_seconds()
        answer = client.ask(order)
        self.cpu_seconds += server.cpu_seconds() - used
        self.counted.append(difference(before, server.counts()))
        self.answers.append(answer)
        return answer

    def summary(self) -> dict[str, Any]:
        figures = summary(pooled(self.answers))
        masks = max(1.0, figures["throughput"] * figures["seconds"])
        return figures | {"cpu_ms": 1000 * self.cpu_seconds / masks, "models": self.models()}

    def models(self) -> dict[str, dict[str, float]]:
        return per_request(together(self.counted))

    def throughputs(self) -> list[float]:
        """Return masks a second, round by round."""
        return [float(summary(each)["throughput"]) for each in self.answers]

    def unet_batch(self) -> float:
        """Return the mean batch of the UNet that was asked most: the launcher's probes ask others as well."""
        models = self.models().items()
        return max((each["requests"], each["batch"]) for name, each in models if is_unet(name))[1]

"""Outcomes to figures: percentiles, shares, ratios of paired runs with their intervals. Plain numbers in and out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

OK, REJECTED = "OK", "UNAVAILABLE"
_RESAMPLES = 2000
_STATUS, _TARGET, _FROM_DUE, _FROM_SENT = range(4)  # places in an outcome
Answer = Mapping[str, Any]


def pooled(answers: Iterable[Answer]) -> dict[str, Any]:
    """Several runs of one kind as one."""
    runs = list(answers)
    return {
        "seconds": sum(run["seconds"] for run in runs),
        "client_cpu": sum(run["client_cpu"] for run in runs),
        "asked": [outcome for run in runs for outcome in run["asked"]],
    }


def summary(answer: Answer) -> dict[str, Any]:
    """Latencies in ms from when a request was due, of those that were answered; throughput in masks a second."""
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
    """Of the requests that were not refused, the share answered by `deadline` seconds after they were due."""
    accepted = [each for each in answer["asked"] if each[_STATUS] != REJECTED]
    good = [each for each in accepted if each[_STATUS] == OK and each[_FROM_DUE] <= deadline]
    return len(good) / len(accepted) if accepted else None


def throughput(answer: Answer) -> float:
    return sum(each[_STATUS] == OK for each in answer["asked"]) / float(answer["seconds"])


def median_ms(answer: Answer) -> float:
    """Of the answered requests, from when each was sent."""
    return float(np.median([1000 * each[_FROM_SENT] for each in answer["asked"] if each[_STATUS] == OK]))


def percentile(values: Sequence[float], share: float) -> float | None:
    """None of none."""
    return float(np.percentile(values, share)) if values else None


def pairs(answer: Answer) -> list[tuple[float, ...]]:
    """Seconds of each target in each round of a paired run; rounds with anything but masks are left out."""
    targets = 1 + max(each[_TARGET] for each in answer["asked"])
    rounds = [answer["asked"][at : at + targets] for at in range(0, len(answer["asked"]), targets)]
    whole = [
        sorted(turn, key=lambda each: each[_TARGET]) for turn in rounds if all(each[_STATUS] == OK for each in turn)
    ]
    return [tuple(each[_FROM_SENT] for each in turn) for turn in whole]


def ratio(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """Geometric mean of paired ratios, and the 95 % interval that resampling the pairs gives."""
    logs = np.log(np.asarray(numerators, np.float64) / np.asarray(denominators, np.float64))
    chance = np.random.default_rng(seed)
    means = logs[chance.integers(0, len(logs), (_RESAMPLES, len(logs)))].mean(axis=1)
    low, high = np.exp(np.percentile(means, [2.5, 97.5]))
    return {"ratio": float(np.exp(logs.mean())), "low": float(low), "high": float(high), "pairs": len(logs)}


def growth(samples: Sequence[Mapping[str, float]], skipped: float = 0.2) -> dict[str, dict[str, float]]:
    """Name -> MiB at the `begin` and the `end` of a soak: medians of the tenth after `skipped`, and of the last tenth.

    The first fifth is left out, in which the server's memory reaches the size that its largest batch needs.
    """
    tenth = max(1, len(samples) // 10)
    first = samples[int(skipped * len(samples)) :][:tenth]
    found = {}
    for name in samples[-1]:
        begin, end = (float(np.median([each.get(name, 0.0) for each in part])) for part in (first, samples[-tenth:]))
        found[name] = {"begin": begin, "end": end, "growth": end - begin}
    return found

"""Publishing and rolling back on a server that answers: how long it takes, and whether a request is ever lost.

    python -m benchmarks.publishing --json docs/publishing.json

On the embedded backbone, with random embeddings (what they segment does not matter here), in each form. Three
segmenters that differ are exported once, then published by turns under one name while threads ask the server for masks
without a break; some of the changes are rollbacks. Every answer says its version: it must have been live at some moment
of the call, and its mask must be the one that PyTorch gives for that version's content. Then new names are published,
asked at once, and removed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.load_server import Launched, launched
from benchmarks.publishing_run import Run, Watched, ask, same
from benchmarks.publishing_variants import EMBEDDINGS, exported, quiet
from benchmarks.sides import BenchmarkError, cpu, positive, write
from tritonclient import grpc

from slime_export.publish.removal import remove
from slime_optimize.backbone import Backbone, load_backbone

# Memory is looked at when what was replaced has gone.
_SETTLED_S = 10.0


def measured(embedding: str, backbone: Backbone, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one form; `examples` names the first wrong answers."""
    with tempfile.TemporaryDirectory(prefix="slime-publishing-") as root:
        variants, seconds = exported(Path(root), 3, backbone, embedding)
        repository = Path(root) / "repository"
        # The server wants a segmenter to start with; it is not the one that is asked for.
        variants[0].publish(repository, "first", None)
        with launched(repository) as server:
            run = Run(repository, variants, Watched(server.url))
            run.start()
            before = _settled(server)
            answers = run.under_load(options.publishes, options.rollbacks, options.requests)
            after = _settled(server)
            fresh, removals = new_names(run, options.new_names)
    wrong = run.wrong(answers)
    figures = {
        "requests": len(answers),
        "errors_or_wrong": len(wrong),
        "examples": wrong[:5],
        "publishes": options.publishes,
        "rollbacks": options.rollbacks,
        "request_ms": _summary([1000 * (each.ended - each.begun) for each in answers]),
        "export_s": _summary(seconds),
        "new_name_to_first_answer_s": _summary(fresh),
        "remove_s": _summary(removals),
        "memory_mib": {"before": round(before, 1), "after": round(after, 1)},
    }
    for kind in ("publish", "rollback"):
        for what, values in run.seconds(kind, answers).items():
            figures[f"{kind}_{what}_s"] = _summary(values)
    return figures


def _settled(server: Launched) -> float:
    """MiB of all its processes."""
    time.sleep(_SETTLED_S)
    return sum(server.memory().values())


def new_names(run: Run, count: int) -> tuple[list[float], list[float]]:
    """Seconds from publishing a name that was not there to its first answer, and of its removal."""
    published, removed = [], []
    with grpc.InferenceServerClient(run.watched.url) as client:
        for turn in range(count):
            name, variant = f"new-{turn}", run.variants[turn % len(run.variants)]
            begun = time.perf_counter()
            variant.publish(run.repository, name, run.watched)
            answer = ask(client, name, variant)
            published.append(time.perf_counter() - begun)
            if not same(answer, variant.check.mask_HW):
                raise BenchmarkError(f"{name} answers wrongly: {answer.error or 'another mask'}")
            begun = time.perf_counter()
            remove(run.repository, name, run.watched, say=quiet)
            removed.append(time.perf_counter() - begun)
    return published, removed


def _summary(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    return {"median": round(statistics.median(values), 3), "max": round(max(values), 3), "count": len(values)}


def main() -> int:
    """Exit code 1 where a request was lost or answered wrongly, or nothing could be measured."""
    options = _arguments()
    torch.set_num_threads(1)
    backbone = load_backbone("embedded")
    result: dict[str, Any] = {"machine": f"{cpu()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before"}
    try:
        for embedding in options.embedding:
            result[embedding] = measured(embedding, backbone, options)
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        write(options.json, text + "\n")
    return 1 if any(result[each]["errors_or_wrong"] for each in options.embedding) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedding", nargs="+", choices=list(EMBEDDINGS), default=list(EMBEDDINGS), help="forms")
    parser.add_argument("--requests", type=positive, default=500)
    parser.add_argument("--publishes", type=positive, default=20)
    parser.add_argument("--rollbacks", type=positive, default=5)
    parser.add_argument("--new-names", type=positive, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go as well")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())

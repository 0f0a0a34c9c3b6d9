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
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import command_line, keeping, machine
from benchmarks.common.figures import spread
from benchmarks.common.server import launched
from benchmarks.common.sides import BenchmarkError, positive, reported
from benchmarks.publishing.run import Run
from benchmarks.publishing.variants import Watched, ask, exported, removed
from tritonclient import grpc

from slime_optimize.backbone import Backbone, load_backbone

FORMS = ("baked", "shared")
# Memory is looked at when what was replaced has gone.
SETTLED_S = 10.0


def measured(embedding: str, backbone: Backbone, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of one form; `examples` names the first wrong answers."""
    with tempfile.TemporaryDirectory(prefix="slime-publishing-") as root:
        variants, seconds = exported(Path(root), 3, backbone, embedding)
        repository = Path(root) / "repository"
        # The server wants a segmenter to start with; it is not the one that is asked for.
        variants[0].publish(repository, "first", None)
        with launched(repository) as server:

            def settled() -> float:
                time.sleep(SETTLED_S)
                return round(sum(server.memory().values()), 1)

            run = Run(repository, variants, Watched(server.url))
            run.start()
            before = settled()
            answers = run.under_load(options.publishes, options.rollbacks, options.requests)
            after = settled()
            fresh, removals = new_names(run, options.new_names)
    wrong = run.wrong(answers)
    changes = {
        f"{kind}_{what}_s": spread(values)
        for kind in ("publish", "rollback")
        for what, values in run.seconds(kind, answers).items()
    }
    return {
        "requests": len(answers),
        "errors_or_wrong": len(wrong),
        "examples": wrong[:5],
        "publishes": options.publishes,
        "rollbacks": options.rollbacks,
        "request_ms": spread([1000 * (each.ended - each.begun) for each in answers]),
        "export_s": spread(seconds),
        "new_name_to_first_answer_s": spread(fresh),
        "remove_s": spread(removals),
        "memory_mib": {"before": before, "after": after},
        **changes,
    }


def new_names(run: Run, count: int) -> tuple[list[float], list[float]]:
    """Return the seconds from publishing a new name to its first answer, and those of its removal."""
    published, gone = [], []
    with grpc.InferenceServerClient(run.watched.url) as client:
        for turn in range(count):
            name, variant = f"new-{turn}", run.variants[turn % len(run.variants)]
            begun = time.perf_counter()
            variant.publish(run.repository, name, run.watched)
            answer = ask(client, name, variant)
            published.append(time.perf_counter() - begun)
            if not answer.has(variant.check.mask_HW):
                raise BenchmarkError(f"{name} answers wrongly: {answer.error or 'another mask'}")
            begun = time.perf_counter()
            removed(run.repository, name, run.watched)
            gone.append(time.perf_counter() - begun)
    return published, gone


@reported
def main(argv: Sequence[str] | None = None) -> int:
    """Run it; return 1 where a request was lost or answered wrongly, or nothing could be measured."""
    parser = command_line.parser(__doc__)
    parser.add_argument("--embedding", nargs="+", choices=FORMS, default=list(FORMS), help="forms")
    parser.add_argument("--backbone", default="embedded", help="embedded, or a folder in diffusers layout")
    parser.add_argument("--requests", type=positive, default=500)
    parser.add_argument("--publishes", type=positive, default=20)
    parser.add_argument("--rollbacks", type=positive, default=5)
    parser.add_argument("--new-names", type=positive, default=5)
    keeping.add_options(parser, page=False)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    backbone = load_backbone(options.backbone)
    result: dict[str, Any] = {"machine": machine.facts()}
    for embedding in options.embedding:
        result[embedding] = measured(embedding, backbone, options)
    print(keeping.compact(result), end="")
    keeping.keep(options, result)
    return 1 if any(result[each]["errors_or_wrong"] for each in options.embedding) else 0


if __name__ == "__main__":
    sys.exit(main())

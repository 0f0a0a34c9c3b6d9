"""Learn many segmenters, or segment very many images, on a Ray cluster.

    slime fleet optimize jobs.csv --out segmenters [--repository REPO] [-- --steps 200 --backbone FOLDER]
    slime fleet segment s3://images --segmenter car --repository REPO --out s3://masks
    slime fleet segment s3://images --segmenter car --url ipv4:10.0.0.5:8001,10.0.0.6:8001 --out s3://masks

The same command again does only what is missing. Exit codes: 0 done, 1 some failed, or the run was stopped, 2 something
given cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from slime_client import SegmenterError, access
from slime_client.cli import Parser
from slime_optimize.errors import InputError, failed, first_line
from slime_repository.errors import ObjectStoreError, RepositoryError

# Ray is imported once the command line is read, which decides where it listens.
for _needed in ("ray", "pyarrow"):
    if find_spec(_needed) is None:
        raise ModuleNotFoundError(f"No module named {_needed!r}", name=_needed)
# What Ray has for machines without clusters, and read once: all of it then listens on 127.0.0.1, and else everywhere.
_ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
FILES, PARQUET = "files", "parquet"  # where masks are kept


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command with the words `argv` (default: the command line's); return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    words, common = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    options = _parser(prog or "slime fleet").parse_args(words)
    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", **(_ON_LOOPBACK if options.address == "local" else {})}.items():
        os.environ.setdefault(name, value)
    import ray

    try:
        return int(options.run(options, common))
    except (InputError, RepositoryError, SegmenterError) as error:
        return failed(error, 2)
    except KeyboardInterrupt:
        return failed(RuntimeError("interrupted; what was written is whole, and the same command goes on"), 130)
    except (ray.exceptions.RayError, ObjectStoreError, RuntimeError, OSError) as error:
        # Ray Data wraps what a worker raised, and keeps of that only the text.
        ours = re.findall(r"^slime_[\w.]+Error: (.+)$", str(error), re.MULTILINE)
        return failed(RuntimeError(f"stopped: {ours[-1] if ours else first_line(error)}; the same command goes on"), 1)
    finally:
        ray.shutdown()


def _optimize(options: argparse.Namespace, common: Sequence[str]) -> int:
    import ray

    from slime_fleet import jobs, learning

    found = jobs.read(options.jobs, common)
    _connect(options.address)
    gpus = options.gpus if options.gpus is not None else min(1, ray.cluster_resources().get("GPU", 0))
    lines = learning.learn_all(found, options.out, cpus=options.cpus, gpus=gpus)
    if options.repository:
        learning.publish(lines, options.out, options.repository, shlex.split(options.export))
    learning.summarise(lines, options.out)
    return 1 if any(line["state"] == learning.FAILED for line in lines) else 0


def _segment(options: argparse.Namespace, common: Sequence[str]) -> int:
    from slime_fleet import segmenting

    if common:
        raise InputError(f"got {' '.join(common)} after --, expected nothing there")
    source = segmenting.Source(
        name=options.segmenter,
        url=options.url or "",
        timeout=options.timeout,
        access=access.taken(vars(options)),
        repository=_absolute(options.repository or ""),
        threads=max(1, int(options.cpus)),
    )
    _connect(options.address)
    total, errors = segmenting.segment(
        source,
        options.images,
        options.out,
        keep=options.masks,
        cpus=options.cpus,
        workers=options.workers,
        rows_per_file=options.rows_per_file,
    )
    print(f"{total - errors} of {total} images have masks, {errors} failed -> {options.out}")
    return 1 if errors else 0


def _connect(address: str) -> None:
    """Join the cluster at `address`, or start Ray on this machine for as long as the command runs."""
    import ray

    try:
        more = {"include_dashboard": False} if address == "local" else {}
        ray.init(address, log_to_driver=False, logging_level="WARNING", **more)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"--address {address}: no Ray cluster is there ({' '.join(str(error).split())[:200]}); start one with ray "
            "start --head, or leave --address out to use this machine alone"
        ) from error


def _absolute(where: str) -> str:
    return where if not where or "://" in where else str(Path(where).resolve())


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = Parser(prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="optimize|segment", parser_class=Parser)

    learn = commands.add_parser("optimize", help="learn the segmenters of a table")
    learn.set_defaults(run=_optimize)
    add = learn.add_argument
    add("jobs", type=Path, metavar="JOBS", help=".csv or .jsonl: a name and options of slime optimize in each line")
    add("--out", required=True, metavar="DIR", help="folder that all nodes share, or an address such as s3://…")
    add("--gpus", type=_share, metavar="N", help="GPUs of a job, such as 1 or 0.25 (default: 1 if a node has one)")
    add("--repository", type=Path, metavar="REPO", help="export and publish each here, once all are learned")
    text = "options of slime export, as one word: '--embedding shared --url localhost:8001'"
    add("--export", default="", metavar="OPTIONS", help=text)

    many = commands.add_parser("segment", help="segment the images of a folder or bucket")
    many.set_defaults(run=_segment)
    add, where = many.add_argument, many.add_mutually_exclusive_group(required=True).add_argument
    add("images", metavar="IMAGES", help="folder that all nodes share, with those inside it; or such as s3://BUCKET/…")
    add("--segmenter", required=True, metavar="NAME", help="the segmenter's name")
    where(
        "--url", help="gRPC HOST:PORT of running servers; of several, ipv4:HOST:PORT,HOST:PORT or a name with several"
    )
    add("--timeout", type=float, metavar="S", help="seconds that a server's answer may take (default: 30 or more)")
    where("--repository", metavar="REPO", help="its networks, in the workers: a folder that all share, or an address")
    add("--out", required=True, metavar="DIR", help="folder for the results that all nodes share, or an address")
    text = "where masks go: files, masks/PATH.png; parquet, the column mask_png (default: %(default)s)"
    add("--masks", choices=(FILES, PARQUET), default=FILES, help=text)
    add("--workers", type=_count, metavar="N", help="workers at most (default: as many as the CPUs allow)")
    text = "rows that a parquet file has at least, which a kill loses at most of each writer (default: %(default)s)"
    add("--rows-per-file", type=_count, default=1000, metavar="N", help=text)
    access.add_options(many)

    for each in (learn, many):
        text = "auto for the cluster of this machine, HOST:PORT of another (default: Ray on this machine alone)"
        each.add_argument("--address", default="local", help=text)
        text = "CPUs of a job or worker, and its threads (default: %(default)s)"
        each.add_argument("--cpus", type=_share, default=1, metavar="N", help=text)
    return parser


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1 and not value == int(value) > 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected a share such as 0.25, or a whole number")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"got {text}, expected a whole number of at least 1")
    return int(text)

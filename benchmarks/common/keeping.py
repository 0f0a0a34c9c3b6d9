"""Results on disk: the figures as compact JSON, and the page that a Jinja2 template beside the benchmark makes of them.

A page is made of the kept figures alone, so that it can be made again, with a better text, without measuring again.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import machine
from benchmarks.common.figures import interval
from jinja2 import Environment, FileSystemLoader, StrictUndefined

_BENCHMARKS = Path(__file__).resolve().parents[1]
_WIDTH = 120


def add_options(parser: argparse.ArgumentParser, *, page: bool = True) -> None:
    """Add --json and --page to a benchmark's options."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures in this file")
    if page:
        parser.add_argument("--page", type=Path, metavar="FILE", help="write the page of all figures that are kept")


def keep(
    options: argparse.Namespace,
    result: Mapping[str, Any],
    page: Callable[..., str] | None = None,
    shape: str = "",
    plot: Callable[[Any, Path], None] | None = None,
) -> None:
    """Write the figures and the page where the options say; with `plot`, a picture beside the page, which names it.

    With `shape`, the file holds the results of several shapes; this one's parts replace, or stand beside, what the
    file has of the same shape.
    """
    kept: Any = result
    if shape:
        kept = read(options.json) if options.json and options.json.exists() else {}
        kept[shape] = kept.get(shape, {}) | result
    if options.json:
        write(options.json, compact(kept, 3 if shape else 2))
    if page and options.page:
        picture = options.page.with_suffix(".png")
        write(options.page, page(kept, picture.name) if plot else page(kept))
        if plot:
            plot(kept, picture)


@contextmanager
def drawn(path: Path, rows: int, columns: int, size: tuple[float, float]) -> Iterator[Any]:
    """Yield the panels of a figure of `size` inches, an array (rows, columns), and save it after the with-block."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    yield figure.subplots(rows, columns, squeeze=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def read(path: Path) -> Any:
    """Return the figures that are kept in a file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, text: str) -> None:
    """Replace the file as a whole, so that an interrupted benchmark leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def compact(value: Any, depth: int = 2) -> str:
    """Return `value` as JSON with one record a line: only the outer `depth` levels are broken into lines."""
    return _broken(value, depth, "") + "\n"


def _broken(value: Any, depth: int, indent: str) -> str:
    flat = json.dumps(value)
    if depth == 0 or not isinstance(value, (dict, list)) or len(indent) + len(flat) <= _WIDTH:
        return flat
    inner = indent + " "
    if isinstance(value, dict):
        each = [f"{inner}{json.dumps(str(key))}: {_broken(of, depth - 1, inner)}" for key, of in value.items()]
        return "{\n" + ",\n".join(each) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + _broken(of, depth - 1, inner) for of in value) + f"\n{indent}]"


def render(template: str, **values: Any) -> str:
    """Return the page that the template, named from benchmarks/, makes of the values."""
    made = Environment(
        loader=FileSystemLoader(_BENCHMARKS),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    made.filters["ms"] = lambda value: "–" if value is None else f"{value:.1f}"
    made.globals |= {"table": table, "interval": interval, "described": machine.described}
    return made.get_template(template).render(**values)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], numbers: bool = False) -> str:
    """Return a table in markdown; with `numbers`, all columns but the first are aligned to the right."""
    marks = ["---", *["---:" if numbers else "---"] * (len(columns) - 1)]
    lines = [f"| {' | '.join(map(str, row))} |" for row in (columns, *rows)]
    return "\n".join([lines[0], f"|{'|'.join(marks)}|", *lines[1:]])

"""The tables of docs/results.md, from the kept figures alone. A figure that is not there is shown as `not run`.

A result's `rows` hold, by section and label, the figures of each class and seed: a Report's JSON, or null.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.common import keeping
from benchmarks.quality.study import GAPS

from slime_optimize.metrics import mean_there, spread
from slime_optimize.tables import Cell, Figure, Table

NOT_RUN = "not run"
MEAN = "mean"
PAPER: dict[str, Any] = keeping.read(Path(__file__).with_name("paper.json"))
_MEAN, _SMALLEST = -3, -2  # places in a row
_BOUNDS = {
    "nearest_colour": "floor: nearest colour",
    "random_backbone": "floor: random backbone",
    "ceiling": "ceiling: the truth through the maps' size",
}
Report = Mapping[str, Any]
Result = Mapping[str, Any]
Figures = Sequence[Sequence[Report | None]]  # by class, then by seed


def page(result: Result) -> str:
    """Return the whole document."""
    tables = {name: _table(result, name).markdown() for name in result["sections"]}
    parts = {kind: _of_kind(result, kind).markdown() for kind in result["smallest_third"]}
    short = _short(result).markdown()
    return keeping.render("quality/results.md.j2", result=result, tables=tables, parts=parts, short=short)


def _table(result: Result, name: str) -> Table:
    section = result["sections"][name]
    columns = ["mean IoU, %", *result["smallest_third"], "mean", "smallest third", "dataset-level"]
    own = [row for row in result["rows"] if row["section"] == name]
    rows = [_row(result, row["label"], _figures(row)) for row in own]
    if name == "shots":
        for bound, label in _BOUNDS.items():
            rows.append(_row(result, label, [[of.get(bound)] for of in _bounds(result).values()]))
    if section["paper"]:
        columns.append(section["paper"])
        rows = [(*cells, row["paper"]) for cells, row in zip(rows, own, strict=True)]
    return Table(columns=tuple(columns), rows=tuple(rows))


def _short(result: Result) -> Table:
    """Return the gaps that were wanted, over the classes' mean or on the smallest parts."""
    by_place = {(row["section"], row["label"]): _figures(row) for row in result["rows"]}
    rows: list[tuple[Cell, ...]] = []
    for gap in GAPS:
        place = _SMALLEST if gap.smallest else _MEAN
        upper, lower = (_row(result, "", by_place[each])[place] for each in (gap.upper, gap.lower))
        both = isinstance(upper, Figure) and isinstance(lower, Figure)
        difference: Cell = Figure(mean=upper.mean - lower.mean) if both else NOT_RUN  # type: ignore[union-attr]
        rows.append((gap.label, upper, lower, difference, f"{gap.goal} or more"))
    return Table(columns=("mean IoU, %", "first", "second", "difference", "goal"), rows=tuple(rows))


def _of_kind(result: Result, kind: str) -> Table:
    """Return a class in its parts, beside its bounds, and next to the paper's figures."""
    place = list(result["smallest_third"]).index(kind)
    ours = {row["label"]: _figures(row)[place] for row in result["rows"] if row["section"] == "shots"}
    columns = {**ours, **{label: [_bounds(result)[kind].get(name)] for name, label in _BOUNDS.items()}}
    papers = [(f"paper, {shots}-sample, {PAPER['data'][kind]}", of[kind]) for shots, of in PAPER["figures"].items()]
    rows = [
        (part, *(_part(reports, part) for reports in columns.values()), *(of[part] for _, of in papers))
        for part in papers[0][1]
    ]
    return Table(columns=(f"{kind}, IoU, %", *columns, *(label for label, _ in papers)), rows=tuple(rows))


def _part(reports: Sequence[Report | None], part: str) -> Cell:
    there = _there(reports)
    if not there:
        return NOT_RUN
    values = [report["mean_iou"] if part == MEAN else report["iou"][part] for report in there]
    return spread([np.nan if value is None else value for value in values])


def _row(result: Result, label: str, figures: Figures) -> tuple[Cell, ...]:
    def smallest(reports: Sequence[Report]) -> list[float | None]:
        pairs = zip(result["smallest_third"].values(), reports, strict=True)
        return [report["iou"][part] for parts, report in pairs for part in parts]

    each = [_cell([of], lambda reports: reports[0]["mean_iou"]) for of in figures]
    mean = _cell(figures, lambda reports: _mean([report["mean_iou"] for report in reports]))
    small = _cell(figures, lambda reports: _mean(smallest(reports)))
    dataset = _cell(figures, lambda reports: _mean([report["dataset_mean_iou"] for report in reports]))
    seeds = min((len(there) for reports in figures if (there := _there(reports))), default=0)
    fewer = f" ({seeds} seed{'s' * (seeds > 1)})" if 0 < seeds < len(figures[0]) else ""
    return (label + fewer, *each, mean, small, dataset)


def _cell(figures: Figures, read: Callable[[Sequence[Report]], float]) -> Cell:
    """Return a figure over the seeds that have a report for every class."""
    whole = [there for reports in zip(*figures, strict=True) if len(there := _there(reports)) == len(reports)]
    return spread([read(reports) for reports in whole]) if whole else NOT_RUN


def _there(reports: Sequence[Report | None]) -> list[Report]:
    return [report for report in reports if report is not None]


def _mean(values: Sequence[float | None]) -> float:
    """Return the mean of the parts that some image has."""
    return mean_there(np.array([np.nan if value is None else value for value in values], dtype=np.float64))


def _figures(row: Mapping[str, Any]) -> Figures:
    return [list(of.values()) for of in row["figures"].values()]


def _bounds(result: Result) -> dict[str, Mapping[str, Report]]:
    return {kind: result["bounds"].get(kind, {}) for kind in result["smallest_third"]}

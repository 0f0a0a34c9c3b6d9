"""The document of the results, from figures alone: tables in markdown, and everything as JSON.

A figure that is not there is shown as `not run`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from benchmarks.paper import DATA, FIGURES, MEAN
from benchmarks.study import GAPS, Section, Variant

from slime_optimize.metrics import mean_there, spread
from slime_optimize.tables import Cell, Figure, Table

NOT_RUN = "not run"
_MEAN, _SMALLEST = -3, -2  # places in a row
BOUND_LABELS = {
    "nearest_colour": "floor: nearest colour",
    "random_backbone": "floor: random backbone",
    "ceiling": "ceiling: the truth through the maps' size",
}
Report = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything the document says. figures: by variant, class and seed; None where it was not run."""

    kinds: tuple[str, ...]
    seeds: tuple[int, ...]
    sections: Mapping[str, Section]
    figures: Mapping[tuple[str, str], Mapping[str, Sequence[Report | None]]]
    bounds: Mapping[str, Mapping[str, Report]]
    smallest: Mapping[str, tuple[str, ...]]
    about: Mapping[str, Any]

    def of(self, section: str, variant: Variant) -> Mapping[str, Sequence[Report | None]]:
        """By class and seed, as far as the section goes."""
        figures, seeds = self.figures[section, variant.label], self.sections[section].seeds
        return {kind: reports[:seeds] for kind, reports in figures.items()}


def as_json(results: Results) -> dict[str, Any]:
    """Plain values: every figure of every part, by seed."""
    rows = [
        {
            "section": name,
            "label": variant.label,
            "optimisation": asdict(variant.optimisation),
            "measurement": asdict(variant.measurement),
            "figures": {
                kind: dict(zip(map(str, results.seeds), reports, strict=False))
                for kind, reports in results.of(name, variant).items()
            },
        }
        for name, section in results.sections.items()
        for variant in section.variants
    ]
    smallest = {kind: list(parts) for kind, parts in results.smallest.items()}
    paper = {"data": DATA, "figures": FIGURES}
    return {
        **results.about,
        "rows": rows,
        "bounds": results.bounds,
        "smallest_third": smallest,
        "paper_on_other_data": paper,
    }


def markdown(results: Results) -> str:
    """The whole document."""
    blocks = [
        _head(results),
        "## In short",
        "What was wanted of the method, in points of mean IoU over the classes.",
        _short(results).markdown(),
    ]
    for name, section in results.sections.items():
        blocks += [f"## {section.title}", section.text, _table(results, name, section).markdown()]
        if name == "shots":
            blocks += [block for kind in results.kinds for block in _of_kind(results, kind)]
    return "\n\n".join([*blocks, _foot(results)]) + "\n"


def _head(results: Results) -> str:
    small = "; ".join(f"{kind}: {', '.join(results.smallest[kind])}" for kind in results.kinds)
    seeds = len(results.seeds)
    over = f"Mean ± standard deviation (of the population) over {seeds} seeds." if seeds > 1 else "One seed."
    trial = results.about.get("trial")
    warning = f"\n\n**A trial ({trial}), to see that everything works: these are not the results.**" if trial else ""
    return "\n\n".join(
        (
            f"# Results\n\nWritten by `python -m benchmarks.results`; do not edit.{warning}",
            "IoU in percent on the 50 test scenes of each class of PartScenes, segmented in PyTorch with the embedded "
            "backbone (the server's masks are the same: [one-shot.json](one-shot.json)). It is the paper's: for each "
            "part the mean over the images that have it, then the mean over the parts, background included; "
            f"`dataset-level` is one ratio for each part over all pixels. {over} Every figure of every part: "
            "[results.json](results.json).",
            "`smallest third` is the mean over the third of each class's parts, background apart, that cover the least "
            f"({small}).",
            "Columns headed `paper` are the paper's own figures. They are of **other data**, real photographs "
            "(PASCAL-Part, CelebAMask-HQ), and of Stable Diffusion 2.1: they show which way a choice works there, and "
            "are not to be compared with the figures beside them.",
        )
    )


def _table(results: Results, name: str, section: Section) -> Table:
    columns = ["mean IoU, %", *results.kinds, "mean", "smallest third", "dataset-level"]
    rows = [_row(results, variant.label, results.of(name, variant)) for variant in section.variants]
    if name == "shots":
        rows += [
            _row(results, label, {kind: [results.bounds.get(kind, {}).get(bound)] for kind in results.kinds})
            for bound, label in BOUND_LABELS.items()
        ]
    if section.paper:
        columns.append(section.paper)
        rows = [(*row, variant.paper) for row, variant in zip(rows, section.variants, strict=True)]
    return Table(columns=tuple(columns), rows=tuple(rows))


def _short(results: Results) -> Table:
    """The gaps that were asked for, over the classes' mean and on the smallest parts."""
    rows = []
    for gap in GAPS:
        place = _SMALLEST if gap.smallest else _MEAN
        upper, lower = (_row(results, "", results.figures[each])[place] for each in (gap.upper, gap.lower))
        rows.append((gap.label, upper, lower, _difference(upper, lower), f"{gap.goal} or more"))
    return Table(columns=("mean IoU, %", "first", "second", "difference", "goal"), rows=tuple(rows))


def _difference(upper: Cell, lower: Cell) -> Cell:
    if isinstance(upper, Figure) and isinstance(lower, Figure):
        return Figure(mean=upper.mean - lower.mean)
    return NOT_RUN


def _row(results: Results, label: str, figures: Mapping[str, Sequence[Report | None]]) -> tuple[Cell, ...]:
    kinds = results.kinds
    each = [_cell([figures[kind]], lambda reports: reports[0]["mean_iou"]) for kind in kinds]
    together = [figures[kind] for kind in kinds]
    mean = _cell(together, lambda reports: _mean([report["mean_iou"] for report in reports]))
    smallest = _cell(together, lambda reports: _mean(_smallest(results, reports)))
    dataset = _cell(together, lambda reports: _mean([report["dataset_mean_iou"] for report in reports]))
    return (label + _fewer(together), *each, mean, smallest, dataset)


def _fewer(figures: Sequence[Sequence[Report | None]]) -> str:
    """What a row of fewer seeds than its table's says of itself."""
    seeds = min((len(there) for reports in figures if (there := _there(reports))), default=0)
    return f" ({seeds} seed{'s' * (seeds > 1)})" if 0 < seeds < len(figures[0]) else ""


def _smallest(results: Results, reports: Sequence[Report]) -> list[float | None]:
    pairs = zip(results.kinds, reports, strict=True)
    return [report["iou"][part] for kind, report in pairs for part in results.smallest[kind]]


def _cell(of_kinds: Sequence[Sequence[Report | None]], read: Callable[[Sequence[Report]], float]) -> Cell:
    """A figure over the seeds that have a report for every class."""
    whole = [there for reports in zip(*of_kinds, strict=True) if len(there := _there(reports)) == len(reports)]
    return spread([read(reports) for reports in whole]) if whole else NOT_RUN


def _there(reports: Sequence[Report | None]) -> list[Report]:
    return [report for report in reports if report is not None]


def _mean(values: Sequence[float | None]) -> float:
    """Of the parts that some image has."""
    return mean_there(np.array([np.nan if value is None else value for value in values], dtype=np.float64))


def _of_kind(results: Results, kind: str) -> list[str]:
    """A class in its parts, beside its bounds, and next to the paper's figures."""
    section = results.sections["shots"]
    ours = {variant.label: results.of("shots", variant)[kind] for variant in section.variants}
    bounds = {label: [results.bounds.get(kind, {}).get(name)] for name, label in BOUND_LABELS.items()}
    columns = {**ours, **bounds}
    published = [f"paper, {shots}-sample, {DATA[kind]}" for shots in FIGURES]
    rows = [
        (part, *(_part(reports, part) for reports in columns.values()), *(FIGURES[s][kind][part] for s in FIGURES))
        for part in (*list(FIGURES[1][kind])[:-1], MEAN)
    ]
    table = Table(columns=(f"{kind}, IoU, %", *columns, *published), rows=tuple(rows))
    return [f"### {kind.capitalize()}, part by part", table.markdown()]


def _part(reports: Sequence[Report | None], part: str) -> Cell:
    there = _there(reports)
    if not there:
        return NOT_RUN
    values = [report["mean_iou"] if part == MEAN else report["iou"][part] for report in there]
    return spread([np.nan if value is None else value for value in values])


def _foot(results: Results) -> str:
    about = results.about
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        "## How it was made\n\n"
        f"`{about['command']}` on {about['machine']}, {about['device']}, {about['date']}; {versions}. "
        f"Backbone `{about['backbone']['id']}`, content {about['backbone']['hash'][:12]}. "
        "Runs are kept on disk by what they are of, so that the command goes on where it was stopped; `not run` is "
        "what no run was made of."
    )

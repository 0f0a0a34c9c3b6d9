"""Tables of figures, for the console, markdown and CSV.

A figure is a mean, with a deviation where several runs were measured. A missing figure is `nan`, in CSV empty.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A mean, and the standard deviation over runs; None for a single run."""

    mean: float
    std: float | None = None

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if self.std is None else f" ± {self.std:.1f}")


Cell = str | Figure


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells under their headings; the first column names the row. ValueError for a row of another length."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table: got a row of {len(row)} cells, expected {len(self.columns)}")

    def text(self) -> str:
        """Return aligned lines for a console."""
        return self._rendered("plain", [[str(cell) for cell in row] for row in self.rows], self.columns)

    def markdown(self) -> str:
        """Return a table as GitHub shows it."""
        rows = [[_escaped(str(cell)) for cell in row] for row in self.rows]
        return self._rendered("pipe", rows, [_escaped(name) for name in self.columns])

    def csv(self) -> str:
        """Return a heading line and one line for each row; a column with deviations has a second one, `NAME std`."""
        wide = [any(isinstance(cell, Figure) and cell.std is not None for cell in column) for column in self._columns]
        heading = [(name, f"{name} std") for name in self.columns]
        written = io.StringIO()
        lines = csv.writer(written, lineterminator="\n")
        for pairs in (heading, *([_plain(cell) for cell in row] for row in self.rows)):
            lines.writerow(
                [value for pair, two in zip(pairs, wide, strict=True) for value in (pair if two else pair[:1])]
            )
        return written.getvalue()

    @property
    def _columns(self) -> list[tuple[Cell, ...]]:
        return [tuple(row[index] for row in self.rows) for index in range(len(self.columns))]

    def _rendered(self, style: str, rows: Sequence[Sequence[str]], columns: Sequence[str]) -> str:
        sides = ["left", *["right"] * (len(columns) - 1)]
        drawn: str = tabulate(rows, columns, tablefmt=style, disable_numparse=True, colalign=sides if rows else None)
        return "\n".join(line.rstrip() for line in drawn.splitlines())


def _plain(cell: Cell) -> tuple[str, str]:
    """Return a cell's value and its deviation, each empty where there is none."""
    if isinstance(cell, str):
        return cell, ""
    return _number(cell.mean), _number(cell.std)


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.3f}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")

"""Processes that are measured by turns: each holds its own models, waits at a pipe, and works only when it is told to.

Whatever else the machine does falls on all of them alike, and each one's peak memory is its own.

    with started("ours", "benchmarks.pipeline.side", ...) as side:    # in the benchmark
        side.ask()                                                    # its first line: what it runs on
        side.ask({"batch": 1})                                        # an order, and its answer

    work(ready, obey, last)                                           # in the side's own main
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[2]
_PATIENCE_S = 90.0
Order = Mapping[str, Any]


class BenchmarkError(RuntimeError):
    """Something cannot be measured here; one line says why."""


class MissingError(RuntimeError):
    """One of the variants of a benchmark cannot be had here; one line says why."""


def reported(main: Callable[..., int]) -> Callable[..., int]:
    """Let a benchmark's `main` return 1, after one line on standard error, where it raises BenchmarkError."""

    @wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except BenchmarkError as error:
            say(f"error: {error}")
            return 1

    return run


def positive(text: str) -> int:
    """Return the count that was given on the command line; argparse shows the error."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"got {text}, expected a whole number of at least 1")
    return int(text)


def say(line: str) -> None:
    """Tell the person at the console how far the benchmark is."""
    print(line, file=sys.stderr, flush=True)


@dataclass(kw_only=True)
class Side:
    """A process that answers each line of JSON with one line of JSON."""

    name: str
    process: subprocess.Popen[str]

    def ask(self, order: Order | None = None) -> dict[str, Any]:
        """Send `order`, if there is one, and return the next answer. Raises BenchmarkError if the process ended."""
        assert self.process.stdin and self.process.stdout
        if order is not None:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise BenchmarkError(f"side {self.name}: ended with code {self.process.wait()}; its own words are above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> dict[str, Any]:
        """Close the side's input and return its last answer."""
        assert self.process.stdin
        self.process.stdin.close()
        return self.ask()


@contextmanager
def started(name: str, module: str, *words: object) -> Iterator[Side]:
    """Run `python -m module words…` as a side for as long as the with-block lasts."""
    process = subprocess.Popen(
        _command(module, *words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    with process:
        try:
            yield Side(name=name, process=process)
        finally:
            assert process.stdin
            process.stdin.close()  # the side, and what it started itself, end with their input
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def work(
    ready: Order,
    obey: Callable[[dict[str, Any]], Order],
    last: Callable[[], Order],
    orders: TextIO | None = None,
    answers: TextIO | None = None,
) -> None:
    """Run a side: write `ready`, then `obey(order)` for each line of JSON in `orders`, then `last()`.

    Standard input and output by default; whatever a library prints meanwhile goes to standard error.
    """
    told = answers or sys.stdout

    def tell(answer: Order) -> None:
        told.write(json.dumps(answer) + "\n")
        told.flush()

    with redirect_stdout(sys.stderr):
        tell(ready)
        for line in orders or sys.stdin:
            tell(obey(json.loads(line)))
        tell(last())


def python(module: str, *words: object) -> str:
    """Return what `python -m module words…` prints. Raises BenchmarkError if it fails."""
    done = subprocess.run(_command(module, *words), stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise BenchmarkError(f"{module}: ended with code {done.returncode}; its own words are above")
    return done.stdout


def script(path: str, *words: object) -> None:
    """Run one of the project's own commands, shown as a person would type it. Raises BenchmarkError if it fails."""
    given = [str(word) for word in words]
    say(" ".join(["$ python", path, *given]))
    if subprocess.run([sys.executable, str(ROOT / path), *given], stdout=sys.stderr, check=False).returncode:
        raise BenchmarkError(f"{path} {' '.join(given)}: failed; its own words are above")


def _command(module: str, *words: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, words)]

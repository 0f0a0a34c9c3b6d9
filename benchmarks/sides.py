"""Processes that are measured by turns: each holds its own models, waits at a pipe, and works only when told.

So what else the machine does falls on all of them alike, and each one's peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_PATIENCE_S = 90.0


class BenchmarkError(RuntimeError):
    """It cannot be measured here; one line says why."""


def positive(text: str) -> int:
    """A count, for argparse."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"got {text}, expected a whole number of at least 1")
    return int(text)


@dataclass(kw_only=True)
class Side:
    """A process that works when told: a line in, a line of JSON out."""

    name: str
    process: subprocess.Popen[str]

    def ask(self, order: str = "") -> dict[str, Any]:
        """Its next line, after `order` where there is one."""
        assert self.process.stdin and self.process.stdout
        if order:
            self.process.stdin.write(order + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise BenchmarkError(f"side {self.name}: ended with code {self.process.wait()}; its own words are above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> dict[str, Any]:
        """Its last line."""
        assert self.process.stdin
        self.process.stdin.close()
        return self.ask()


@contextmanager
def started(name: str, module: str, *words: object) -> Iterator[Side]:
    """`python -m module words…` as a side, ended with the with-block."""
    process = subprocess.Popen(
        _command(module, *words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    with process:
        try:
            yield Side(name=name, process=process)
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """At the end of its input it ends by itself, and what runs for it as well."""
    assert process.stdin
    process.stdin.close()
    try:
        process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()


def python(module: str, *words: object) -> str:
    """What `python -m module words…` prints. Raises BenchmarkError where it fails."""
    done = subprocess.run(_command(module, *words), stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise BenchmarkError(f"{module}: ended with code {done.returncode}; its own words are above")
    return done.stdout


def _command(module: str, *words: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, words)]


def free_bytes() -> float:
    """Memory that can be had without swapping; where the system does not tell, no limit."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def write(path: Path, text: str) -> None:
    """The whole file, or the one that was there."""
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(text)
    os.replace(beside, path)

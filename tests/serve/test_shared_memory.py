"""Regions of launches that are gone are removed, those of launches that live are not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from slime_serve import memory

REGIONS = """
import sys
from slime_serve import memory
from pathlib import Path
memory.FOLDER = Path(sys.argv[1])
regions = memory.Regions()
(memory.FOLDER / f"{regions.prefix}tensor").touch()
print(regions.prefix, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(memory, "FOLDER", tmp_path)
    yield tmp_path


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_those_of_the_dead_are_stale(folder: Path) -> None:
    command = [sys.executable, "-c", REGIONS, os.fspath(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        prefix = other.stdout.readline().strip()
        assert memory.remove_stale() == 0
        assert left(folder) == sorted([f"{prefix}lock", f"{prefix}tensor"])
        other.kill()
    assert memory.remove_stale() == 2
    assert left(folder) == []


def test_without_a_lock_the_process_number_counts(folder: Path) -> None:
    (folder / f"slime_{os.getpid()}_0123abcd_tensor").touch()
    (folder / "slime_4194999_0123abcd_tensor").touch()
    (folder / "somebody_else").touch()
    assert memory.remove_stale() == 1
    assert left(folder) == sorted([f"slime_{os.getpid()}_0123abcd_tensor", "somebody_else"])


def test_own_regions(folder: Path) -> None:
    regions = memory.Regions()
    (folder / f"{regions.prefix}one").touch()
    regions.clear()
    assert left(folder) == [f"{regions.prefix}lock"]
    regions.close()
    assert left(folder) == []

"""What is given back of a model whose process was killed: its shared memory, and the processes beside it."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from slime_serve import old_triton as stubs_module
from slime_serve.memory import FOLDER
from slime_serve.old_triton import Leftovers, Orphan, Stub, Stubs

MIB = 1 << 20
KEPT = 64 << 10


@pytest.fixture
def region() -> Iterator[Path]:
    """Four MiB of ones, of a name that no launch gives."""
    path = FOLDER / f"slime-test-{os.getpid()}"
    path.write_bytes(b"\1" * 4 * MIB)
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def allocated(handle: int) -> int:
    return os.fstat(handle).st_blocks * 512


def test_pages_that_somebody_has_mapped_are_given_back(region: Path) -> None:
    with region.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        orphan = Orphan(region.name)
        assert not region.exists()
        assert mapped[-1] == 1 and allocated(file.fileno()) == 4 * MIB
        orphan.give_back()
        orphan.give_back()
        assert allocated(file.fileno()) == KEPT
        assert (mapped[0], mapped[KEPT - 1], mapped[KEPT], mapped[-1]) == (1, 1, 0, 0)


def test_a_region_that_is_gone() -> None:
    orphan = Orphan("slime-test-that-was-never-there")
    orphan.give_back()
    orphan.close()


@pytest.mark.parametrize("used", ["nothing", "much"])
def test_only_idle_processes_are_ended(
    monkeypatch: pytest.MonkeyPatch, region: Path, process: subprocess.Popen[bytes], used: str
) -> None:
    clock, cpu = [100.0], [0.0]
    monkeypatch.setattr(stubs_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(stubs_module, "cpu_seconds", lambda pid: cpu[0])
    stub = Stub(pid=process.pid, model="was", region=region.name)
    stubs = Stubs(os.getpid())
    monkeypatch.setattr(stubs, "_known", {stub.pid: stub})
    found = Leftovers(stubs)
    found.replaced([stub])
    for _ in range(10):
        found.look()
        assert process.poll() is None and region.exists()
        clock[0] += stubs_module.SETTLED_SECONDS / 10
    for _ in range(3):
        clock[0] += 10
        cpu[0] += 5 if used == "much" else 0
        found.look()
    if used == "much":
        assert process.poll() is None and stubs.of("was") == [stub]
    else:
        assert process.wait(5) == -9 and not region.exists() and not stubs.of("was")
        # Nor is its end taken for another death.
        assert not [each for _ in range(25) for each in stubs.dead()]
    found.close()

"""A launched server seen from outside: what Triton counts of each model, memory and CPU time of all its processes.

with launched(repository) as server:
    before = server.counts()
    …
    per_request(difference(before, server.counts()))
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.sides import ROOT, BenchmarkError
from tritonclient import grpc

READY_S = 300.0
SHARED_MEMORY = Path("/dev/shm")
MIB = 2**20
LAUNCH = (sys.executable, str(ROOT / "serve/launch.py"))
# Triton's names of the parts of a request's time in a model, in order.
PARTS = ("queue", "compute_input", "compute_infer", "compute_output")
Counts = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, kw_only=True)
class Launched:
    """The launcher's process, the address of its gRPC endpoint, and the names of the segmenters."""

    pid: int
    url: str
    segmenters: tuple[str, ...]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return each model's counters since it was loaded: requests, executions, and nanoseconds of each of PARTS."""
        with grpc.InferenceServerClient(self.url) as client:
            found = client.get_inference_statistics(as_json=True, client_timeout=30).get("model_stats", [])
        counters = {}
        for said in found:  # gRPC's JSON leaves out what is zero, and writes large numbers as text
            times = said.get("inference_stats", {})
            counters[said["name"]] = {
                "requests": int(said.get("inference_count", 0)),
                "executions": int(said.get("execution_count", 0)),
                **{part: int(times.get(part, {}).get("ns", 0)) for part in PARTS},
            }
        return counters

    def memory(self) -> dict[str, float]:
        """Return the resident MiB of each process (`launch.py`, `tritonserver`, each model's) without shared memory,
        which is listed once, as `/dev/shm`."""
        found: dict[str, float] = {}
        for pid in (self.pid, *descendants(self.pid)):
            found[process_name(pid)] = found.get(process_name(pid), 0.0) + _resident(pid)
        return found | {"/dev/shm": sum(map(_allocated, SHARED_MEMORY.glob(f"slime_{self.pid}_*"))) / MIB}

    def cpu_seconds(self) -> float:
        """Return the CPU time that all processes of the server have used so far, the launcher included."""
        return sum(map(cpu_seconds, (self.pid, *descendants(self.pid))))


@contextmanager
def launched(repository: Path, *arguments: str, command: Sequence[str] = LAUNCH) -> Iterator[Launched]:
    """Run serve/launch.py on free ports, with the threads and instances that it derives from the machine."""
    ports = [word for name in ("grpc", "http", "metrics") for word in (f"--{name}-port", "0")]
    words = [*command, "--repository", str(repository), *ports, *arguments]
    launcher = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        word, *pairs = _first_line(launcher).split() or [""]
        if word != "ready":
            raise BenchmarkError(f"serve/launch.py --repository {repository}: did not get ready; its words are above")
        said = dict(pair.split("=", 1) for pair in pairs)
        yield Launched(pid=launcher.pid, url=said["grpc"], segmenters=tuple(said["segmenters"].split(",")))
    finally:
        launcher.send_signal(signal.SIGTERM)
        try:
            launcher.wait(60)
        finally:
            launcher.kill()
            launcher.wait()
            assert launcher.stdout is not None
            launcher.stdout.close()


def _first_line(launcher: subprocess.Popen[str]) -> str:
    lines: queue.Queue[str] = queue.Queue()
    assert launcher.stdout is not None
    threading.Thread(target=lambda stdout=launcher.stdout: lines.put(stdout.readline()), daemon=True).start()
    with suppress(queue.Empty):
        return lines.get(timeout=READY_S)
    return ""


def difference(before: Counts, after: Counts) -> dict[str, dict[str, int]]:
    """Return what was counted between two calls of `counts`."""
    return {
        model: {key: value - before.get(model, {}).get(key, 0) for key, value in counters.items()}
        for model, counters in after.items()
    }


def together(several: Iterable[Counts]) -> dict[str, dict[str, int]]:
    """Return the sum of what was counted in several stretches of time."""
    total: dict[str, dict[str, int]] = {}
    for counts in several:
        for model, counters in counts.items():
            own = total.setdefault(model, dict.fromkeys(counters, 0))
            own.update({key: own[key] + value for key, value in counters.items()})
    return total


def per_request(counts: Counts) -> dict[str, dict[str, float]]:
    """Return each model's requests, mean batch, and ms of each of PARTS for one request; idle models are left out.

    The time of a batch counts in full for each request in it, because each of them waited for it.
    """
    return {
        model: {
            "requests": own["requests"],
            "batch": own["requests"] / max(1, own["executions"]),
            **{part: own[part] / own["requests"] / 1e6 for part in PARTS},
        }
        for model, own in counts.items()
        if own["requests"]
    }


def descendants(pid: int) -> list[int]:
    """Return the processes below `pid`, of all generations."""
    children: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            children += map(int, path.read_text().split())
    return children + [each for child in children for each in descendants(child)]


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that the process has used so far, on all cores."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _resident(pid: int) -> float:
    """Return the resident MiB of the process itself, without pages of shared memory."""
    with suppress(OSError):
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return sum(int(fields.get(name, "0 kB").split()[0]) for name in ("RssAnon", "RssFile")) / 1024
    return 0.0


def process_name(pid: int) -> str:
    """Return `launch.py`, `tritonserver`, or the name of the model that the process computes."""
    with suppress(OSError, IndexError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        if words[0].endswith("python_backend_stub"):
            return Path(words[1]).parent.parent.name
        return Path(words[1] if words[0] == sys.executable else words[0]).name
    return str(pid)


def _allocated(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_blocks * 512
    return 0

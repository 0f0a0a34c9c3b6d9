"""Jobs: what takes long, one after the other, each in a process of its own that a killed studio does not end.

    jobs/0003/job.json        what it is, its words for the command line, and its state; written by the studio
    jobs/0003/progress.json   how far it is, with pictures beside it; written by the process (worker.py)
    jobs/0003/ended.json      {"code": 0} once the process is through; log.txt: what it printed

States: queued -> running -> done, failed or cancelled. A job whose process is gone without a word, as after a power
cut, is `stopped`: it can be taken up again, and learning then goes on from its checkpoint.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from slime_studio import files, processes
from slime_studio.errors import StudioError

QUEUED, RUNNING, DONE, FAILED, CANCELLED, STOPPED = "queued", "running", "done", "failed", "cancelled", "stopped"
_POLL_SECONDS = 0.2
_TROUBLED_SECONDS = 5.0
_KINDS = ("learn", "look", "publish", "rollback", "clip")


class Jobs:
    """The jobs of a project; `changed` is called with a job's number, `done` with a job that has ended well."""

    def __init__(
        self, folder: Path, changed: Callable[[int], object], done: Callable[[dict[str, Any]], object]
    ) -> None:
        self._folder, self._changed, self._done = folder, changed, done
        self._turn = threading.RLock()
        self._ending = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        found = sorted(path.parent for path in folder.glob("*/job.json"))
        self._jobs = {int(path.name): files.read_json(path / "job.json") for path in found}
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)

    def start(self) -> None:
        """Begin to run jobs, and to look after the one that an earlier studio left running."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking after the jobs; the one that runs goes on, and the next studio finds it."""
        self._ending.set()
        self._thread.join()

    def folder(self, number: int) -> Path:
        """Return a job's folder. Raises StudioError (404) where there is no such job."""
        if number not in self._jobs:
            raise StudioError(f"job {number}: is not in this project", 404)
        return self._path(number)

    def every(self) -> list[dict[str, Any]]:
        """Return all jobs, the newest first, each with its progress and the time now, for times that are left."""
        with self._turn:
            return [self._told(job) for job in sorted(self._jobs.values(), key=lambda job: -job["number"])]

    def one(self, number: int) -> dict[str, Any]:
        """Return a job with its progress."""
        self.folder(number)
        return self._told(self._jobs[number])

    def add(self, kind: str, title: str, make: Callable[[int, Path], Mapping[str, Any]]) -> int:
        """Queue a job. `make` gets its number and folder, and returns its words and what else is to be kept of it."""
        assert kind in _KINDS
        with self._turn:
            number = max(self._jobs, default=0) + 1
            job = {"number": number, "kind": kind, "title": title, "state": QUEUED, "created": _now()}
            self._jobs[number] = {**job, **make(number, self._path(number))}
            try:
                self._keep(self._jobs[number])
            except StudioError:
                del self._jobs[number]
                raise
            return number

    def cancel(self, number: int) -> None:
        """Take a job out of the queue, or end its process; what learning has done by then is kept."""
        self.folder(number)
        with self._turn:
            job = self._jobs[number]
            if job["state"] not in (QUEUED, RUNNING):
                return
            running, job["state"] = job["state"] == RUNNING, CANCELLED
            job["ended"] = _now()
            self._keep(job)
        if running:
            processes.end(job["pid"], str(self._path(number)))

    def resume(self, number: int) -> None:
        """Queue again what was stopped, cancelled or failed; learning goes on from its checkpoint."""
        self.folder(number)
        with self._turn:
            job = self._jobs[number]
            if job["state"] not in (STOPPED, CANCELLED, FAILED):
                raise StudioError(f"job {number}: is {job['state']}, expected one that was stopped or has failed", 409)
            for name in ("error", "ended", "pid"):
                job.pop(name, None)
            (self._path(number) / "ended.json").unlink(missing_ok=True)
            job["state"] = QUEUED
            self._keep(job)

    def _work(self) -> None:
        seen: tuple[int, float] | None = None  # of the progress that was told last
        while not self._ending.wait(_POLL_SECONDS):
            try:
                with self._turn:
                    running = self._step()
                if running:
                    now = (running["number"], (self._path(running["number"]) / "progress.json").stat().st_mtime)
                    if now != seen:
                        seen = now
                        self._changed(running["number"])
            except FileNotFoundError:  # no progress yet
                pass
            except Exception:  # such as a full disk, which may have room again
                traceback.print_exc()
                self._ending.wait(_TROUBLED_SECONDS)

    def _step(self) -> dict[str, Any] | None:
        """Finish the job whose process has ended, start the next one; return the one that runs."""
        running = next((job for job in self._jobs.values() if job["state"] == RUNNING), None)
        if running and not self._runs(running):
            self._finish(running)
            running = None
        ending = any(job["state"] == CANCELLED and "pid" in job and self._runs(job) for job in self._jobs.values())
        queued = next((job for _, job in sorted(self._jobs.items()) if job["state"] == QUEUED), None)
        if not running and not ending and queued:
            self._start(queued)
        return running

    def _start(self, job: dict[str, Any]) -> None:
        folder = self._path(job["number"])
        words = [sys.executable, "-m", "slime_studio.worker", str(folder)]
        try:
            self._process = processes.start(words, folder / "log.txt")
        except OSError as error:
            job |= {"state": FAILED, "error": f"the process cannot be started ({error})", "ended": _now()}
        else:
            job |= {"state": RUNNING, "pid": self._process.pid, "started": _now()}
        self._keep(job)

    def _runs(self, job: dict[str, Any]) -> bool:
        if self._process is not None and self._process.pid == job["pid"]:
            return self._process.poll() is None
        return processes.is_alive(job["pid"], str(self._path(job["number"])))

    def _finish(self, job: dict[str, Any]) -> None:
        """Say how a job ended whose process is gone."""
        folder = self._path(job["number"])
        ended, now = files.read_json(folder / "ended.json"), {"ended": _now()}
        if not ended:
            now |= {"state": STOPPED, "error": "its process ended without a word; it can be taken up again"}
        elif ended["code"]:
            now |= {"state": FAILED, "error": last_error(folder / "log.txt")}
        else:
            now |= {"state": DONE}
        self._keep({**job, **now})  # first: where the disk is full, the next turn tries again
        job |= now
        self._changed(job["number"])
        if job["state"] == DONE:
            self._done(job)

    def _told(self, job: Mapping[str, Any]) -> dict[str, Any]:
        with contextlib.suppress(StudioError):
            return {**job, "progress": files.read_json(self._path(job["number"]) / "progress.json")}
        return dict(job)

    def _keep(self, job: dict[str, Any]) -> None:
        files.write_json(self._path(job["number"]) / "job.json", job)
        self._changed(job["number"])

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:04}"


def last_error(log: Path) -> str:
    """Return the last error line that a process printed, else its last line."""
    try:
        lines: Sequence[str] = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or list(lines) or ["it failed without a word"])[-1][:1000]


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")

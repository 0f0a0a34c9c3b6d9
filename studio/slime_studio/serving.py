"""The server that the studio starts: `slime serve` on the project's repository, in a process of its own.

server/server.json   its process; server/log.txt: what it printed, of which `ready grpc=HOST:PORT …` tells the address
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from slime_studio import files, processes
from slime_studio.errors import StudioError
from slime_studio.jobs import last_error

_READY = re.compile(r"^ready grpc=(\S+) ", re.MULTILINE)
_FREE_PORTS = [word for name in ("grpc", "http", "metrics") for word in (f"--{name}-port", "0")]


class Serving:
    """Starts and stops the server; one that a killed studio left running is found again."""

    def __init__(self, folder: Path, repository: Path) -> None:
        self._folder, self.repository = folder, repository
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._failed = ""

    def start(self) -> None:
        """Start it, unless it runs. Raises StudioError where nothing was published yet."""
        from slime_repository import layout, shared_store

        with self._turn:
            if self._pid():
                return
            if not self.repository.is_dir() or not (
                layout.segmenters(self.repository) or shared_store.names(self.repository)
            ):
                raise StudioError(
                    f"server: nothing is published in {self.repository} yet; publish a segmenter first", 409
                )
            (self._folder / "log.txt").unlink(missing_ok=True)
            self._failed = ""
            words = [sys.executable, "-m", "slime_cli", "serve", "--repository", str(self.repository), *_FREE_PORTS]
            self._process = processes.start(words, self._folder / "log.txt")
            files.write_json(self._folder / "server.json", {"pid": self._process.pid})

    def stop(self) -> None:
        """Stop it, once the requests under way are answered."""
        with self._turn:
            if pid := self._pid():
                processes.end(pid, str(self.repository), signal.SIGTERM)
                if self._process is not None:
                    self._process.poll()
            (self._folder / "server.json").unlink(missing_ok=True)
            self._failed = ""

    def state(self) -> dict[str, Any]:
        """Return {"state": stopped, starting, ready or failed, "url": HOST:PORT of gRPC, "error"}."""
        pid, log = self._pid(), self._folder / "log.txt"
        if pid:
            found = _READY.search(log.read_text(encoding="utf-8", errors="replace")) if log.exists() else None
            return {"state": "ready", "url": found[1]} if found else {"state": "starting"}
        if (self._folder / "server.json").exists():
            return {"state": "failed", "error": last_error(log)}
        return {"state": "stopped"}

    @property
    def url(self) -> str | None:
        """The running server's gRPC address, None where none is ready."""
        return self.state().get("url")

    def _pid(self) -> int | None:
        if self._process is not None:  # whose command line does not tell yet when it has just begun
            return self._process.pid if self._process.poll() is None else None
        pid = files.read_json(self._folder / "server.json").get("pid")
        return pid if pid and processes.is_alive(pid, str(self.repository)) else None

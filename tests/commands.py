"""Runs the project's commands in processes of their own that have PyTorch in memory when they begin.

done = run(["optimize/run.py", "--image", …], cwd=folder)

Importing PyTorch and diffusers takes a new process two to three seconds, which is more than most commands of tests
take. Here each process is forked from one that has imported them and done nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["slime_optimize.commands.run", "slime_export.commands.build"])


def run(words: Sequence[str], *, cwd: Path, timeout: float = 300.0) -> CompletedProcess[str]:
    """Run the Python script `words[0]` with the other words in `cwd`, as `python SCRIPT WORD...` does.

    Returns its exit code and what it wrote. Raises TimeoutExpired after `timeout` seconds, when it is ended.
    """
    with tempfile.TemporaryDirectory() as scratch:
        out, error = Path(scratch, "out"), Path(scratch, "error")
        process = _CONTEXT.Process(target=_script, args=(list(words), cwd, out, error))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutExpired(list(words), timeout, error.read_bytes())
        return CompletedProcess(list(words), process.exitcode, out.read_text(), error.read_text())


def _script(words: list[str], folder: Path, out: Path, error: Path) -> None:
    for path, descriptor in ((out, 1), (error, 2)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    os.chdir(folder)
    sys.argv = words
    sys.path[0] = str(Path(words[0]).parent)
    runpy.run_path(words[0], run_name="__main__")

"""Helm, which renders the chart, in a process of its own: its Go runtime ended a process of tests that had PyTorch.

with helm() as ask:
    texts = ask("render", values)      # a template's name -> its text, as `helm install slime serve/kubernetes`
    found = ask("lint", values)
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHART = Path(__file__).resolve().parent.parent / "serve" / "kubernetes"
Ask = Callable[[str, Mapping[str, Any]], Any]


class HelmError(Exception):
    """What Helm says of values that it refuses."""


@contextmanager
def helm() -> Iterator[Ask]:
    """Yield a function that has Helm "render" or "lint" the chart with values. It raises HelmError."""
    words = [sys.executable, __file__]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout

        def ask(what: str, values: Mapping[str, Any]) -> Any:
            assert process.stdin and process.stdout
            print(json.dumps([what, dict(values)]), file=process.stdin, flush=True)
            answer = json.loads(process.stdout.readline())
            if "refused" in answer:
                raise HelmError(answer["refused"])
            return answer["found"]

        yield ask
        process.stdin.close()


def main() -> None:
    """Answer the questions on stdin, a line of JSON each, until there are no more."""
    import helm_python

    with helm_python.Chart.load(str(CHART)) as chart:
        for line in sys.stdin:
            what, values = json.loads(line)
            try:
                if what == "lint":
                    found: Any = helm_python.lint(str(CHART), values=values)
                else:
                    chart.validate_schema(values)
                    found = dict(chart.render(values, name="slime", namespace="vision"))
                print(json.dumps({"found": found}), flush=True)
            except helm_python.HelmError as error:
                print(json.dumps({"refused": str(error)}), flush=True)


if __name__ == "__main__":
    main()

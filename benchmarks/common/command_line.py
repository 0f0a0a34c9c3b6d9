"""The command line that every benchmark has: its own text as the help, and errors in one line."""

from __future__ import annotations

import argparse
import sys

from slime_client.cli import Parser


def parser(text: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help begins with `text`, a module's docstring; its errors leave with exit code 2."""
    spec = sys.modules["__main__"].__spec__
    # Python before 3.14 calls a package that is run "__main__.py".
    prog = f"python -m {spec.name.removesuffix('.__main__')}" if spec else None
    return Parser(prog=prog, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)

"""The demo in a checkout: `slime demo`, writing into build/demo. `make demo` runs it."""

import sys
from pathlib import Path

from slime_cli.demo import Answers as Answers
from slime_cli.demo import ask as ask
from slime_cli.demo import export as export
from slime_cli.demo import main
from slime_cli.demo import optimise as optimise
from slime_cli.demo import server as server

ROOT = Path(__file__).resolve().parent

if __name__ == "__main__":
    sys.exit(main(["--build", str(ROOT / "build" / "demo"), *sys.argv[1:]]))

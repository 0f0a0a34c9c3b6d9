"""The demo in a checkout: `slime demo`, writing into build/demo. `make demo` runs it."""

import sys
from pathlib import Path

from slime_cli.demo import main

if __name__ == "__main__":
    sys.exit(main(["--build", str(Path(__file__).resolve().parent / "build" / "demo"), *sys.argv[1:]]))

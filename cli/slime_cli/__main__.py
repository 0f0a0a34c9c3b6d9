"""`python -m slime_cli` is the `slime` command."""

import sys

from slime_cli.main import main

if __name__ == "__main__":
    sys.exit(main())

"""Lists, rolls back, removes and upgrades published segmenters; `python export/repository.py --help` says how."""

import sys

from slime_export.commands.repository import main

if __name__ == "__main__":
    sys.exit(main())

"""Exports a segmenter, proves it equal to PyTorch, and publishes it; `python export/build.py --help` says how."""

import sys

from slime_export.commands.build import main

if __name__ == "__main__":
    sys.exit(main())

"""Measure segmenters on annotated images, in PyTorch.

`slime evaluate` is the same command; --help shows the options.
"""

import sys

from slime_optimize.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())

"""Learn a segmenter from one annotated image, or from a few.

`slime optimize` is the same command; --help shows the options.
"""

import sys

from slime_optimize.commands.run import main

if __name__ == "__main__":
    sys.exit(main())

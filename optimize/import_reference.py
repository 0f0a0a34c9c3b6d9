"""Make a segmenter of embeddings that the method's authors published.

`slime import` is the same command; --help shows the options.
"""

import sys

from slime_optimize.commands.import_reference import main

if __name__ == "__main__":
    sys.exit(main())

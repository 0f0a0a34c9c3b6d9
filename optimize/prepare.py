"""Bring a data set, as it is distributed, into images/, masks/ and parts.json.

`slime prepare` is the same command; --help shows the options.
"""

import sys

from slime_optimize.commands.prepare import main

if __name__ == "__main__":
    sys.exit(main())

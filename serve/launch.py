"""Serve a model repository on this machine; slime_serve.launch_command has the code and its explanation."""

import sys

from slime_serve.launch_command import main

if __name__ == "__main__":
    sys.exit(main(prog="serve/launch.py"))

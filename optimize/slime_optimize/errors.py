"""Mistakes a user can make, told in one line each.

    InputError (ValueError)          a file, mask, part list or setting that cannot be used
    └── BackboneError                a backbone that is not there, or not of Stable Diffusion's shape

    OptimisationError (RuntimeError) a run that went wrong on good input

Entry scripts print the line and leave with exit code 2, or 1 for the last.
"""

import sys
from collections.abc import Callable

from slime_image import ImageError


class InputError(ValueError):
    """One line: the subject, what was found, what was expected, what to do next."""


class BackboneError(InputError):
    """The backbone cannot be found, read, or used by the method."""


class OptimisationError(RuntimeError):
    """The run itself failed, such as a loss that is no longer a number."""


def first_line(error: BaseException) -> str:
    """The first line of a foreign exception's message, or its class when it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def exit_code(work: Callable[[], None]) -> int:
    """Of an entry script's work: 0, or with a line on stderr 2 for bad input and 1 for what failed on good."""
    try:
        work()
    except (InputError, ImageError) as error:
        return failed(error, 2)
    except (RuntimeError, OSError) as error:
        return failed(error, 1)
    return 0


def failed(error: Exception, code: int) -> int:
    """Tells an entry script's user, in one line on stderr, and gives back the exit code."""
    print(f"error: {first_line(error)}", file=sys.stderr)
    return code

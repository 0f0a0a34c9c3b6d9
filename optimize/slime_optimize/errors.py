"""Errors that are one line each, and the exit codes of commands.

    InputError (ValueError)          a file, mask, part list or setting that cannot be used
    └── BackboneError                a backbone that is not there, or not of Stable Diffusion's shape

    OptimisationError (RuntimeError) a run that went wrong on good input

Commands print the line and leave with exit code 2, or 1 for the last.
"""

import logging
import sys
from collections.abc import Callable

from slime_image import ImageError

_LOG = logging.getLogger(__name__)


class InputError(ValueError):
    """A mistake in what a person gave. One line: the subject, what was found, what was expected, what to do next."""


class BackboneError(InputError):
    """The backbone cannot be found, read, or used by the method."""


class OptimisationError(RuntimeError):
    """The run itself failed, such as a loss that is no longer a number."""


def first_line(error: BaseException) -> str:
    """Return the first line of a foreign exception's message, or its class when it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def exit_code(work: Callable[[], None]) -> int:
    """Do the work of a command; return 0, or print the error and return 2 for bad input and 1 for other failures."""
    try:
        work()
    except (InputError, ImageError) as error:
        return failed(error, 2)
    except (RuntimeError, OSError) as error:
        return failed(error, 1)
    return 0


def failed(error: Exception, code: int) -> int:
    """Print the error, one line on stderr, and return the exit code."""
    print(f"error: {first_line(error)}", file=sys.stderr)
    return code


def tell(line: str) -> None:
    """Log what was left out or decided without asking, in one line, at the level that commands show on stderr."""
    _LOG.warning(line)

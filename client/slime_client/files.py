"""Reading and writing whole files: nothing half-written, every failure one readable line."""

import os
import uuid
from pathlib import Path

from slime_client.errors import INVALID_ARGUMENT, SegmenterError

# Protobuf's own limit is 2 GiB a message; a picture that large is a mistake in the path.
MAX_BYTES = 1 << 30


def read_file(path: Path) -> bytes:
    """The bytes of an image file of at most 1 GiB.

    Raises:
        SegmenterError: INVALID_ARGUMENT when it is missing, no regular file, unreadable or too large.
    """
    try:
        if not path.exists():
            raise _bad(path, "no such file", "check the path")
        if not path.is_file():
            raise _bad(path, "not a file", "give the path of one image")
        if path.stat().st_size > MAX_BYTES:
            raise _bad(path, f"larger than {MAX_BYTES >> 20} MiB", "give the path of one image")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise _bad(path, f"cannot be read ({_reason(error)})", "check its permissions") from error


def write_file(path: Path, data: bytes) -> None:
    """Write `data` under `path`, replacing what is there only once all of it is on disk.

    Raises:
        SegmenterError: INVALID_ARGUMENT when the folder is missing or cannot be written.
    """
    # Not tempfile: its files are readable by the owner alone, and os.replace would keep that.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise _bad(
            path, f"cannot be written ({_reason(error)})", "check that its folder exists and has room"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _bad(path: Path, found: str, next_step: str) -> SegmenterError:
    return SegmenterError(f"{path}: {found}; {next_step}", INVALID_ARGUMENT)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)

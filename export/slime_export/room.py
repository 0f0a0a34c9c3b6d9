"""Looks whether a disk has room for an export, before the minutes that it takes."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from slime_optimize.backbone import Backbone
from slime_repository.variant import Variant

# Copies of the UNet's weights: trace and tidied file lie there together for a moment, then a lower precision, or an
# engine, comes beside them.
COPIES = {"fp32": 2.0, "fp16": 2.0, "bf16": 2.0, "int8": 2.5}
ENGINE_COPIES = 1.5
# Some filters become four times as large.
CPU_COPIES = 0.5
# Protobuf, reports, small models.
MARGIN_BYTES = 50_000_000


def require_room(folder: Path, backbone: Backbone, variant: Variant, *, on_cpu: bool = False) -> None:
    """Raise OSError (no space left) unless the disk of `folder`, or of its nearest parent, has room for the export."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    copies = COPIES[variant.precision] + ENGINE_COPIES * (variant.format == "tensorrt") + CPU_COPIES * on_cpu
    needed = int(copies * sum(each.nbytes for each in backbone.unet.parameters())) + MARGIN_BYTES
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"has {free / 1e9:.2f} GB free, expected {needed / 1e9:.2f} GB for the export; free some, or give a "
            "--repository on another disk; nothing was published",
            str(there),
        )


def disk_line(error: OSError) -> str:
    """Return one line for what a disk refused."""
    subject = f"disk of {error.filename}" if error.filename else "disk"
    reason = error.strerror or str(error)
    if error.errno == errno.ENOSPC and "nothing was published" not in reason:  # not from `require_room`
        reason = "is full; free some of it, or give a --repository on another disk; nothing was published"
    return f"{subject}: {reason}"

"""`slime segment`: the client's command, with a door for segmenters on this machine, `--local SEGMENTER`.

    slime segment photos/ --local segmenters/car --out masks      a folder of slime optimize, in PyTorch
    slime segment photos/ --local repository/car --out masks      what slime export published, in ONNX Runtime

Without --local nothing but the client is imported. With it no server runs, and none of Triton is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from slime_client import Description, cli
from slime_client.errors import INVALID_ARGUMENT, SegmenterError
from slime_client.local import LocalSegmenter


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command and return its exit code."""
    return cli.main(argv, prog, local=local)


def local(where: str) -> LocalSegmenter:
    """Return the segmenter in a folder of slime optimize, or REPOSITORY/NAME of one that was exported.

    Raises SegmenterError, INVALID_ARGUMENT, where neither is there, it cannot be loaded, or a package is missing.
    """
    folder = Path(where).resolve()
    if (folder / "segmenter.json").is_file():
        load, extra = _learned, "optimize"
    elif any(folder.parent.glob("*/config.pbtxt")):
        load, extra = _exported, "export"
    else:
        raise SegmenterError(
            f"--local {where}: is no segmenter, expected a folder that slime optimize wrote, such as segmenters/car, "
            "or the name of an exported one in its repository, such as repository/car",
            INVALID_ARGUMENT,
        )
    try:
        return load(folder)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("slime_"):  # a defect of ours, no missing extra
            raise
        message = f"--local {where}: the package of module {error.name} is not installed; run: pip install "
        raise SegmenterError(f"{message}'slime-serve[{extra}]'", INVALID_ARGUMENT) from error
    except (ValueError, RuntimeError, OSError) as error:
        raise SegmenterError(f"--local {where}: {error}", INVALID_ARGUMENT) from error


def _learned(folder: Path) -> LocalSegmenter:
    from slime_image import decode
    from slime_optimize import choose_device, load_predictor

    predictor = load_predictor(folder, choose_device("auto"))
    made = predictor.segmenter
    return LocalSegmenter(
        description=Description(
            name=folder.name, parts=made.parts, colours=made.colours, model=made.backbone_id, about={}
        ),
        mask_of=lambda image: predictor.mask(decode(image)),
    )


def _exported(folder: Path) -> LocalSegmenter:
    from slime_export.publish.live import local_segmenter

    return local_segmenter(folder.parent, folder.name)

"""PartScenes: write its splits to folders, or print the floors and ceilings that its figures stand between.

python backbone/scenes.py --out build/partscenes
python backbone/scenes.py --out build/partscenes --video    clips, with masks, exact flow and occlusion
python backbone/scenes.py --floor-ceiling
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from slime_backbone import motion
from slime_backbone.dataset import write_clip, write_split
from slime_backbone.scene import COUNTS, KINDS
from slime_optimize.options import Parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder to write KIND/SPLIT/images, masks and parts.json to")
    parser.add_argument("--video", action="store_true", help="with --out: clips, in KIND/SPLIT/NNN/, instead of images")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--floor-ceiling", action="store_true", help="print the bounds beside which to read a mean IoU")
    parser.add_argument("--skip-random", action="store_true", help="without the slow floor, the random backbone")
    options = parser.parse_args(argv)
    if not options.out and not options.floor_ceiling:
        parser.error("nothing to do: give --out FOLDER, --floor-ceiling, or both")
    if options.video and not options.out:
        parser.error("--video: got no folder, expected --out FOLDER to write the clips to")
    try:
        if options.floor_ceiling:
            _print_bounds(options.kinds, random_backbone=not options.skip_random)
        if options.out:
            for kind in options.kinds:
                for split, count in (motion.COUNTS if options.video else COUNTS).items():
                    if not options.video:
                        print(write_split(options.out, kind, split), flush=True)
                        continue
                    for index in range(count):
                        print(write_clip(options.out, kind, split, index), flush=True)
    except ValueError as error:  # such as a backbone that is not there
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {options.out}: cannot be written ({error}); give --out a folder that can", file=sys.stderr)
        return 1
    return 0


def _print_bounds(kinds: list[str], *, random_backbone: bool) -> None:
    # Here, because torch and the backbone are not needed to draw scenes.
    from slime_backbone import bounds
    from slime_optimize.backbone import load_backbone
    from slime_optimize.presets import preset

    backbone = load_backbone("embedded") if random_backbone else None
    print("mean IoU over 50 test scenes, %")
    print(f"{'':8}{'ceiling':>10}{'floor: nearest colour':>24}{'floor: random backbone':>25}", flush=True)
    for kind in kinds:
        row = f"{kind:8}{bounds.ceiling(kind).mean:10.1f}{bounds.nearest_colour(kind).mean:24.1f}"
        if backbone:
            settings = preset("best", backbone.recommended)
            row += f"{bounds.random_backbone(kind, backbone, settings, progress=False).mean:25.1f}"
        print(row, flush=True)


if __name__ == "__main__":
    sys.exit(main())

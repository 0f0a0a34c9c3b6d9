"""People's annotations in: folders of images and masks, COCO and LabelMe JSON, what Label Studio and CVAT export.

    read(source, parts=None, legend=None)     load a folder or file, of whichever kind
    load_training(images, masks, parts)       load files named one by one
    dataset(folder)                           name the files of a folder that may be too large for the memory

Every mistake is an InputError (or slime_image's ImageError) of one line. Nothing here knows of networks.
"""

from slime_optimize.data.annotations.example import (
    IGNORED,
    Annotated,
    Example,
    check_ids,
    check_not_empty,
    check_painted,
    check_parts,
    ignored_line,
)
from slime_optimize.data.annotations.folders import PARTS_FILE, dataset, read_parts
from slime_optimize.data.annotations.legend import Legend, find_legend, load_legend
from slime_optimize.data.annotations.masks import load_example, load_mask, load_pairs, load_training
from slime_optimize.data.annotations.reading import read

__all__ = [
    "IGNORED",
    "PARTS_FILE",
    "Annotated",
    "Example",
    "Legend",
    "check_ids",
    "check_not_empty",
    "check_painted",
    "check_parts",
    "dataset",
    "find_legend",
    "ignored_line",
    "load_example",
    "load_legend",
    "load_mask",
    "load_pairs",
    "load_training",
    "read",
    "read_parts",
]

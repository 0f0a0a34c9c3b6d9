"""People's annotations in: folders of images and masks, COCO and LabelMe JSON, what Label Studio and CVAT export.

    read(source, parts=None, legend=None)     a folder or file -> part names and examples; recognises the kind
    load_training(images, masks, parts)       from files named one by one

Every mistake is an InputError (or slime_image's ImageError) of one line. It knows nothing of networks.
"""

from slime_optimize.data.annotations.example import (
    Annotated,
    Example,
    check_ids,
    check_not_empty,
    check_painted,
    check_parts,
)
from slime_optimize.data.annotations.legend import Legend, find_legend, load_legend
from slime_optimize.data.annotations.pairs import load_example, load_pairs, load_training
from slime_optimize.data.annotations.reading import read

__all__ = [
    "Annotated",
    "Example",
    "Legend",
    "check_ids",
    "check_not_empty",
    "check_painted",
    "check_parts",
    "find_legend",
    "load_example",
    "load_legend",
    "load_pairs",
    "load_training",
    "read",
]

"""From attention maps to masks, and the names of the tensors between the served models. Needs numpy alone.

It lies beside the server's model, so that Triton's Python stub can import it, and runs on Python 3.10 and later.
Training and export import it too, so that the maths is written once.
"""

from slime_was.interpolation import interpolation_matrix
from slime_was.masks import segment
from slime_was.options import Postprocess
from slime_was.quality import foreground, margin
from slime_was.weighting import accumulate, finished, prepared, scores, sharpened

__all__ = [
    "Postprocess",
    "accumulate",
    "finished",
    "foreground",
    "interpolation_matrix",
    "margin",
    "prepared",
    "scores",
    "segment",
    "sharpened",
]

"""Published data sets, as they are distributed, brought into the project's own layout by the paper's protocol.

    plan = pascal_part(folder, "car", split="val")     what there is, and how to read each piece
    prepare(plan, out)                                 images/NAME.png, masks/NAME.png, parts.json, prepared.json

docs/datasets.md says where each set's parts come from and which choices are the paper's, its code's, or ours.
"""

from slime_optimize.data.datasets.celebamask import celebamask
from slime_optimize.data.datasets.pascal import pascal_part
from slime_optimize.data.datasets.plan import Plan, Prepared, prepare
from slime_optimize.data.datasets.published import published

__all__ = ["Plan", "Prepared", "celebamask", "pascal_part", "prepare", "published"]

"""Where all chance of a run comes from: the run's seed, the use, and which turn of it.

Drawn on the CPU, so that every device sees the same. A turn needs none of those before it: a run that was
stopped goes on as if it had not been.
"""

from __future__ import annotations

import numpy as np
import torch

# Each use has its own stream, so that a change in one does not move the others.
_STREAMS = {"test noise": 0, "views": 1, "steps": 2, "order": 3, "posterior": 4}


def generator(seed: int, use: str, turn: int = 0) -> torch.Generator:
    """The generator of one use in the run of `seed`; `turn` is a step, a view or an epoch."""
    state = np.random.SeedSequence([seed, _STREAMS[use], turn]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))

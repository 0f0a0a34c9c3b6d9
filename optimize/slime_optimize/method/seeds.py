"""Random streams of a run: every random number comes from the run's seed, its use, and an index within that use.

Numbers are drawn on the CPU, so that every device sees the same. No stream depends on what was drawn before it: a run
that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Each use has its own stream, so that a change in one does not move the others.
_STREAMS = {"test noise": 0, "views": 1, "steps": 2, "order": 3, "posterior": 4}


def generator(seed: int, use: str, index: int = 0) -> torch.Generator:
    """Return the CPU generator of one use in the run of `seed`; `index` counts steps, views, epochs or samples."""
    state = np.random.SeedSequence([seed, _STREAMS[use], index]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def sampled_noise(latent_size: int, seed: int, noise_samples: int = 1) -> Tensor:
    """Return the noise that a segmenter adds to every image's latents, (noise_samples,4,h,w) float32.

    More samples leave the first ones as they are.
    """
    shape = (1, 4, latent_size, latent_size)
    return torch.cat(
        [torch.randn(shape, generator=generator(seed, "test noise", index)) for index in range(noise_samples)]
    )

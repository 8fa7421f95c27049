"""Workers as binary channels: what several tests let a server decode."""

import numpy as np


def channel_votes(seed, crossover, rounds, size=10_000, abstain=0.0):
    """Votes `[T, M, size]` of workers that err independently, and the true signs."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(np.array([-1, 1], np.int8), (rounds, size))
    shape = (rounds, len(crossover), size)
    wrong = rng.random(shape, np.float32) < np.float32(crossover)[:, None]
    votes = np.where(wrong, -truth[:, None], truth[:, None])
    return votes * (rng.random(shape, np.float32) >= abstain).astype(np.int8), truth

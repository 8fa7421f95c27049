"""Many runs of a decoder at once, as one compiled program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@functools.cache
def _program(decoder):
    def run(votes):
        def step(state, vote):
            decoded, state, info = decoder.decode(state, vote)
            return state, (decoded, info.weights)

        state = decoder.init(votes.shape[1], jnp.zeros(votes.shape[2:]))
        state, (decoded, weights) = lax.scan(step, state, votes)
        return decoded, weights, state

    return jax.jit(jax.vmap(run))


def play(decoder, votes):
    """Decoded signs `[B, T, N]`, weights `[B, T, M]`, states; votes `[B, T, M, N]`."""
    return jax.tree.map(np.asarray, _program(decoder)(jnp.asarray(votes, jnp.int8)))


def coin_votes(rng, crossover, runs, rounds, size):
    """Votes `[B, T, M, size]` that err independently, and the truth `[B, T, size]`.

    `crossover` is `[M]`, or `[B, M]` with one row for each run.
    """
    crossover = np.broadcast_to(crossover, (runs, np.shape(crossover)[-1]))
    truth = rng.choice(np.array([-1, 1], np.int8), (runs, rounds, 1, size))
    shape = (runs, rounds, crossover.shape[1], size)
    wrong = rng.random(shape, np.float32) < crossover[:, None, :, None]
    return np.where(wrong, -truth, truth), truth[:, :, 0]

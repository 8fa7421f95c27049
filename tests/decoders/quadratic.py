"""Sign descent on a quadratic whose honest workers are nearly identical."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from compiling import OPTIMISED
from jax import lax

import signfd_jax as sfd

SIZE, ROUNDS, STEP = 1000, 100, 0.03
AT_ONCE = 20  # cases that a program runs: it is compiled once for any number of them


class Case(NamedTuple):
    """Who takes part, and how.

    Attributes:
        num_workers: M.
        num_byzantine: L; liars come first.
        noise: standard deviation of the gradients' noise (1 is the first distance).
        start: probability with which a liar flips each sign in the first round; a list
            where each has its own.
        end: the same of the last round, with a line between; None: as at the start.
        shared_by: number of neighbours that share each batch, so the noise.
    """

    num_workers: int
    num_byzantine: int
    noise: float = 0.03
    start: float | tuple[float, ...] = 0.8
    end: float | None = None
    shared_by: int = 1


def final_errors(cases, decoder, rows):
    """Mean distances from the optimum at the end, `[len(cases)]`.

    Workers beyond a case's number of workers, up to `rows`, are absent.
    """
    rates, groups, present, noises = [], [], [], []
    for case in cases:
        start = np.broadcast_to(case.start, case.num_byzantine)
        end = start if case.end is None else np.full(case.num_byzantine, case.end)
        honest = (0, rows - case.num_byzantine)
        rates.append(np.stack([np.pad(start, honest), np.pad(end, honest)]))
        groups.append(np.arange(rows) // case.shared_by)
        present.append(np.arange(rows) < case.num_workers)
        noises.append(case.noise)
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), len(cases)))
    inputs = (np.float32(rates), groups, present, np.float32(noises), keys)
    inputs = [np.asarray(each) for each in inputs]
    errors = []
    for begin in range(0, len(cases), AT_ONCE):
        some = np.arange(begin, begin + AT_ONCE) % len(cases)  # the first fill the rest
        errors.append(_program(decoder)(*(jnp.asarray(each[some]) for each in inputs)))
    return np.concatenate(errors)[: len(cases)]


@functools.cache
def _program(decoder):
    def run(rates, groups, present, noise, key):
        rows = len(groups)
        first_key, key = jax.random.split(jax.random.wrap_key_data(key))
        first = 2 * jax.random.uniform(first_key, (SIZE,))  # 1 in the mean

        def step(carry, t):
            distance, state = carry
            noise_key, flip_key = jax.random.split(jax.random.fold_in(key, t))
            drawn = noise * jax.random.normal(noise_key, (rows, SIZE))
            votes = jnp.sign(distance[None] + drawn[groups]).astype(jnp.int8)
            share = t.astype(jnp.float32) / (ROUNDS - 1)
            rate = (1 - share) * rates[0] + share * rates[1]
            flips = jax.random.uniform(flip_key, (rows, SIZE)) < rate[:, None]
            votes = jnp.where(flips, -votes, votes)
            votes = votes * present[:, None].astype(jnp.int8)
            decoded, state, _ = decoder.decode(state, votes)
            return (distance - STEP * decoded.astype(jnp.float32), state), ()

        state = decoder.init(rows, first)
        (distance, _), _ = lax.scan(step, (first, state), jnp.arange(ROUNDS))
        return jnp.mean(jnp.abs(distance))

    return jax.jit(jax.vmap(run), compiler_options=OPTIMISED)


def against_majority_vote(cases, decoder, rows):
    """How much farther from the optimum than a majority vote each case ends."""
    votes = final_errors(cases, sfd.majority_vote(), rows)
    return final_errors(cases, decoder, rows) - votes, votes

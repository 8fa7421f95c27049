"""Counting: how each vote fared, coordinate by coordinate and round after round.

Shapes: `M` workers; votes are trees of int8 `[M, ...]`. An outcome is an int8: +1 where
a vote agreed with what it is compared with, -1 where it did not, and 0 where either of
them is 0.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from signfd_jax.signs._leaves import group_leaves
from signfd_jax.signs._tally import (
    fixed_point,
    leaves_with_weights,
    sum_over_leaves,
    sum_rows,
)
from signfd_jax.signs._visits import over_workers

_BLOCK = 1024  # values that enter a table at once


def outcomes_against_others(
    votes, weights, *, largest, axis_name: str | tuple[str, ...] | None = None
):
    r"""Compare every vote with what the other workers would have decoded without it.

    The outcome is $Y_m \operatorname{sign}(S - w_m Y_m)$, S being the weighted tally. A
    worker's own vote thus cannot speak for itself: with it, even a useless worker would
    agree with the majority of 15 on 60.5 % of the coordinates. Where the others tie,
    the vote counts as one half of an agreement; where no other worker of non-zero
    weight voted, it is not counted.
    """
    outcomes, sums = [], []
    shared = isinstance(weights, jax.Array) and weights.ndim == 1
    groups = group_leaves(votes) if shared else group_leaves(votes, weights)
    weights = weights if shared else groups.join(weights)
    for leaf, weight in leaves_with_weights(groups.join(votes), weights):
        units, _ = fixed_point(weight, largest=largest, num_workers=leaf.shape[0])
        (total, said), _ = over_workers(_said, (units, leaf))

        def compare(row, total=total, said=said):
            own, loud = _said(row)[0]
            outcome = row[1] * jnp.sign(total - own).astype(jnp.int8)
            counted = (row[1] != 0) & (said > loud)
            return (), (outcome, counted.astype(jnp.int8))

        _, (outcome, counted) = over_workers(compare, (units, leaf))
        sums.append((sum_rows(outcome), sum_rows(counted)))
        outcomes.append(outcome)
    most = sum(math.prod(outcome.shape[1:]) for outcome in outcomes)
    balance, counted = sum_over_leaves(sums, axis_name, most=most)
    agreed = (balance + counted) / 2
    return groups.split(outcomes), agreed, counted


def _said(row):
    """A worker's part of the tally, and of the sum of the |weights| that voted."""
    units, votes = row
    own = units * votes.astype(jnp.int32)
    return (own, jnp.abs(own)), ()


def add_outcomes(counters, rounds, outcomes, forgetting):
    """Add one round's outcomes to the counters of all workers and coordinates.

    Integer counters that are full are halved, together with the number of rounds;
    float32 counters decay.
    """
    dtype = jax.tree.leaves(counters)[0].dtype
    if jnp.issubdtype(dtype, jnp.integer):
        # 2**24 is where the float32 total would stop counting. Halves are rounded
        # towards zero, so that no counter exceeds the total.
        full = rounds > min(jnp.iinfo(dtype).max, 2**24) - 1
        decay = lambda counter: jnp.where(  # noqa: E731
            full, lax.div(counter, jnp.asarray(2, dtype)), counter
        )
        rounds = jnp.where(full, rounds / 2, rounds)
    else:
        factor = jnp.asarray(forgetting, jnp.float32)
        decay = lambda counter: factor * counter  # noqa: E731
        rounds = factor * rounds
    counters = jax.tree.map(
        lambda counter, outcome: decay(counter) + outcome.astype(dtype),
        counters,
        outcomes,
    )
    return counters, rounds + 1


def tabulated(
    function: Callable[[jax.Array], jax.Array], counters: jax.Array, bound: jax.Array
) -> jax.Array:
    """Evaluate a function of integer counters, on CPUs once for each value they have.

    There, as long as the counters have far fewer values than there are coordinates,
    the function is looked up in a table, which is ten times as fast as a logarithm.
    """
    if not jnp.issubdtype(counters.dtype, jnp.integer):
        return function(counters)
    block = min(jnp.iinfo(counters.dtype).max + 1, _BLOCK)
    # Blocks of values on either side of zero, at most one value for 8 coordinates.
    sides = min(counters.size // 16, jnp.iinfo(counters.dtype).max + 1) // block
    if sides == 0:
        return function(counters)

    def from_table(counters, bound):
        values = jnp.arange(-sides * block, sides * block).reshape(-1, block)
        values = values.astype(counters.dtype)
        # A loop: else XLA fuses the function into the look-up, and takes it everywhere.
        used = (bound / block).astype(jnp.int32) + 1
        table = lax.fori_loop(
            sides - used,
            sides + used,
            lambda row, table: table.at[row].set(function(values[row])),
            jnp.zeros(values.shape, jax.eval_shape(function, values).dtype),
        )
        index = counters.astype(jnp.int32) + sides * block
        return table.reshape(-1).at[index].get(mode="promise_in_bounds")

    def on_cpu(counters, bound):
        fits = bound < sides * block
        direct = lambda counters, _: function(counters)  # noqa: E731
        return lax.cond(fits, from_table, direct, counters, bound)

    return lax.platform_dependent(
        counters, bound, cpu=on_cpu, default=lambda counters, _: function(counters)
    )


def check_counter_dtype(dtype, never_forgets: bool):
    """Refuse counters that would stop counting, or that cannot decay."""
    allowed = ("int8", "int16", "int32", "float32")
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = repr(dtype)
    if name not in allowed:
        raise ValueError(
            f"counter_dtype must be one of {', '.join(allowed)}, but is {name}: "
            "16-bit floats stop counting at 256 or 2048"
        )
    dtype = jnp.dtype(dtype)
    if jnp.issubdtype(dtype, jnp.integer) and not never_forgets:
        raise ValueError(
            f"counter_dtype={name} cannot hold decayed counts; use float32, or "
            "forgetting=1.0 (a Python number, not an array)"
        )
    return dtype

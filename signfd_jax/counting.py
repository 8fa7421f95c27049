"""Counting: how each vote fared, coordinate by coordinate and round after round.

Shapes: `M` workers; votes are trees of int8 `[M, ...]`. An outcome is an int8: +1 where
a vote agreed with what it is compared with, -1 where it did not, and 0 where either of
them is 0.
"""

import jax
import jax.numpy as jnp
from jax import lax

from signfd_jax.tally import fixed_point, leaves_with_weights, sum_over_leaves

__all__ = ["add_outcomes", "check_counter_dtype", "outcomes_against_others"]


def outcomes_against_others(
    votes, weights, *, largest, axis_name: str | tuple[str, ...] | None = None
):
    r"""Compare every vote with what the other workers would have decoded without it.

    The outcome is $Y_m \operatorname{sign}(S - w_m Y_m)$, S being the weighted tally. A
    worker's own vote thus cannot speak for itself: with it, even a useless worker would
    agree with the majority of 15 on 60.5 % of the coordinates. Where the others tie,
    the vote counts as one half of an agreement; where no other worker of non-zero
    weight voted, it is not counted.

    Args:
        votes: tree of int8 `[M, ...]` in {-1, 0, +1}.
        weights: float `[M]`, or a tree like `votes` of `[M, ...]` (nats).
        largest: a bound on |weights|, float scalar.
        axis_name: mesh axis, or axes, that the coordinates are split over, or None.

    Returns:
        `(outcomes, agreed, counted)`: tree of int8 `[M, ...]`; float32 `[M]` and int32
        `[M]`, over all leaves and devices. The counts are exact integers before halves
        are taken, for fewer than 2**31 coordinates.

    Examples:
        >>> votes = jnp.array([[1, 1, 1], [1, -1, 0], [1, 1, 0]], jnp.int8)
        >>> outcomes, agreed, counted = outcomes_against_others(
        ...     votes, jnp.ones(3), largest=1.0
        ... )
        >>> print(outcomes[0], agreed, counted)
        [1 0 0] [1.5 1.  1.5] [2 2 2]
    """
    outcomes, sums = [], []
    for leaf, weight in leaves_with_weights(votes, weights):
        units, _ = fixed_point(weight, largest=largest, num_workers=leaf.shape[0])
        units = units.reshape(units.shape + (1,) * (leaf.ndim - units.ndim))
        own = units * leaf.astype(jnp.int32)
        others = jnp.sum(own, axis=0, dtype=jnp.int32)[None] - own
        said = jnp.sum(jnp.abs(own), axis=0, dtype=jnp.int32)[None] - jnp.abs(own)
        outcome = leaf * jnp.sign(others).astype(jnp.int8)
        counted = (leaf != 0) & (said > 0)
        sums.append((_sum_rows(outcome), _sum_rows(counted)))
        outcomes.append(outcome)
    balance, counted = sum_over_leaves(sums, axis_name)
    agreed = (balance.astype(jnp.float32) + counted.astype(jnp.float32)) / 2
    return jax.tree.unflatten(jax.tree.structure(votes), outcomes), agreed, counted


def _sum_rows(rows):
    return jnp.sum(rows.reshape(rows.shape[0], -1), axis=1, dtype=jnp.int32)


def add_outcomes(counters, rounds, outcomes, forgetting):
    """Add one round's outcomes to the counters of all workers and coordinates.

    Integer counters that are full are halved, together with the number of rounds;
    float32 counters decay.

    Args:
        counters: tree of `[M, ...]`, agreements minus errors so far.
        rounds: float32 scalar, the number of rounds behind them, decayed alike.
        outcomes: tree of int8 `[M, ...]`.
        forgetting: factor in (0, 1] that decays the past (scalar); not for integers.

    Returns:
        The new counters and the new number of rounds; |counters| never exceed it.

    Examples:
        >>> counters, rounds = jnp.array([[3, -3]], jnp.int8), jnp.float32(3)
        >>> outcomes = jnp.array([[1, 1]], jnp.int8)
        >>> counters, rounds = add_outcomes(counters, rounds, outcomes, 1.0)
        >>> print(counters, rounds)
        [[ 4 -2]] 4.0
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


def check_counter_dtype(dtype, never_forgets: bool):
    """Refuse counters that would stop counting, or that cannot decay.

    Args:
        dtype: a dtype or its name, of the state's counters.
        never_forgets: whether the past is kept whole.

    Returns:
        The dtype, as `jnp.dtype`.

    Raises:
        ValueError: another dtype than int8, int16, int32 or float32, or an integer one
            for counts that decay.

    Examples:
        >>> check_counter_dtype("int16", never_forgets=True)
        dtype('int16')
    """
    allowed = ("int8", "int16", "int32", "float32")
    dtype = jnp.dtype(dtype)
    if dtype.name not in allowed:
        raise ValueError(
            f"counter_dtype must be one of {', '.join(allowed)}, but is {dtype.name}: "
            "16-bit floats stop counting at 256 or 2048"
        )
    if jnp.issubdtype(dtype, jnp.integer) and not never_forgets:
        raise ValueError(
            f"counter_dtype={dtype.name} cannot hold decayed counts; use float32, or "
            "forgetting=1.0 (a Python number, not an array)"
        )
    return dtype

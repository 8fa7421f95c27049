"""Who lies and who takes part, round by round.

Shapes: `M` workers. Each function returns a `membership(key, byzantine, round) ->
(byzantine, present)` for `simulation(membership=...)`: bool `[M]` in, who is Byzantine
according to the state; out, who is this round, bool `[M]`, and who takes part, bool
`[M]` or None for everybody (an aggregation rule takes no other). The fixed set, with
everybody present, is `membership=None`. `Membership` is their type.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from signfd_jax._checks import check_count, check_number

__all__ = [
    "Membership",
    "churn",
    "drawn_each_round",
    "drop_out",
    "leaving",
    "rotating",
    "sampled",
]

Membership = Callable[
    [jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array | None]
]


def churn(
    period: int | jax.Array = 100,
    groups: int | jax.Array = 5,
    seed: int | jax.Array = 0,
) -> Membership:
    """Workers leave, and newcomers take their slots: honest ones and liars.

    The workers are dealt into groups at random, and so are the liars among them. The
    groups are away in turn, for one period each. Then newcomers fill the group's slots.
    As many of them lie as before, and which of them is drawn anew. The other slots have
    the workers that they had. What a decoder remembers of a slot, and the slot's own
    worker state, pass on to the newcomer. Of 7 liars among 15 workers 6 may be present
    among 12: a narrow majority can be gone for a period.

    Args:
        period: rounds that a group is away (int scalar >= 1, may be traced).
        groups: their number (int scalar >= 2, may be traced); each of them is present
            for one period less than that between two absences.
        seed: groups and newcomers are drawn from it (int, or an integer scalar that may
            be traced), so that they stay for a period; the round's key is not used.

    Returns:
        A membership function.

    Raises:
        ValueError: `period` is below 1, `groups` below 2 or `seed` below 0 (Python
            ints).

    Examples:
        >>> membership = churn(period=10, groups=2)
        >>> for round in (0, 9, 10):
        ...     mask, present = membership(None, jnp.arange(4) < 2, round)
        ...     print(mask, present)
        [ True  True False False] [False  True False  True]
        [ True  True False False] [False  True False  True]
        [False  True  True False] [ True False  True False]
    """
    check_count("period", period, 1, unit="rounds")
    check_count("groups", groups, 2)
    check_count("seed", seed, 0)

    def membership(key, byzantine, round):
        del key
        deal_key, newcomer_key = jax.random.split(jax.random.key(seed))
        workers = jnp.arange(byzantine.shape[0], dtype=jnp.int32)
        # Dealt like cards: all honest workers, then all liars.
        shuffled = jax.random.permutation(deal_key, workers)
        dealt = jnp.lexsort((shuffled, byzantine))
        group = jnp.zeros_like(workers).at[dealt].set(workers % groups)
        stretch = round // period
        absences = (stretch - group - 1) // groups + 1  # so many have ended

        def draw(worker, absences):
            own_key = jax.random.fold_in(newcomer_key, worker)
            return jax.random.bits(jax.random.fold_in(own_key, absences))

        # Each group is shuffled by itself, but for the first time.
        places = jnp.where(absences > 0, jax.vmap(draw)(workers, absences), 0)
        before, after = jnp.argsort(group), jnp.lexsort((places, group))
        byzantine = byzantine.at[after].set(byzantine[before])
        return byzantine, group != stretch % groups

    return membership


def drawn_each_round() -> Membership:
    """As many Byzantine workers as ever, but drawn anew each round.

    No worker keeps a reputation: past votes say nothing about who lies now.

    Returns:
        A membership function.

    Examples:
        >>> membership = drawn_each_round()
        >>> mask, present = membership(jax.random.key(0), jnp.arange(9) < 3, 0)
        >>> print(mask.sum(), present)
        3 None
    """

    def membership(key, byzantine, round):
        del round
        return jax.random.permutation(key, byzantine), None

    return membership


def rotating(period: int | jax.Array = 1) -> Membership:
    """The Byzantine set moves on by one worker every so many rounds.

    Args:
        period: rounds from one move to the next (int scalar >= 1, may be traced).

    Returns:
        A membership function.

    Raises:
        ValueError: `period` is a Python int below 1.

    Examples:
        >>> membership = rotating(period=10)
        >>> mask, _ = membership(jax.random.key(0), jnp.arange(4) < 2, 25)
        >>> print(mask)
        [False False  True  True]
    """
    check_count("period", period, 1, unit="rounds")

    def membership(key, byzantine, round):
        del key
        return jnp.roll(byzantine, round // period), None

    return membership


def leaving(period: int | jax.Array = 100, away: int | jax.Array = 50) -> Membership:
    """The Byzantine workers leave for a stretch of every period, then come back.

    While they are away the decoder learns nothing about them; what it remembers of
    them when they return depends on its forgetting.

    Args:
        period: rounds from one return to the next (int scalar >= 1, may be traced).
        away: rounds of absence at the end of each period (int scalar >= 0).

    Returns:
        A membership function.

    Raises:
        ValueError: `period` is below 1 or `away` below 0 (Python ints).

    Examples:
        >>> membership = leaving(period=10, away=4)
        >>> for round in (5, 6, 10):
        ...     _, present = membership(jax.random.key(0), jnp.arange(3) < 1, round)
        ...     print(present)
        [ True  True  True]
        [False  True  True]
        [ True  True  True]
    """
    check_count("period", period, 1, unit="rounds")
    check_count("away", away, 0, unit="rounds")

    def membership(key, byzantine, round):
        del key
        return byzantine, ~byzantine | (round % period < period - away)

    return membership


def drop_out(probability: float | jax.Array = 0.3) -> Membership:
    """Every worker, honest or not, misses each round with some probability.

    Args:
        probability: of being absent, in [0, 1] (scalar, may be traced). A round
            without anybody is possible; it decodes to nothing.

    Returns:
        A membership function.

    Raises:
        ValueError: `probability` is a Python number outside [0, 1].

    Examples:
        >>> membership = drop_out(1.0)
        >>> _, present = membership(jax.random.key(0), jnp.arange(3) < 1, 0)
        >>> print(present)
        [False False False]
    """
    check_number("probability", probability, 0, 1)

    def membership(key, byzantine, round):
        del round
        absent = jnp.asarray(probability, jnp.float32)
        return byzantine, ~jax.random.bernoulli(key, absent, byzantine.shape)

    return membership


def sampled(share: float | jax.Array = 0.1) -> Membership:
    """A sample of the workers, drawn anew each round, takes part; the others abstain.

    Args:
        share: of the M workers that take part, in [0, 1] (scalar, may be traced): the
            nearest whole number of them.

    Returns:
        A membership function.

    Raises:
        ValueError: `share` is a Python number outside [0, 1].

    Examples:
        >>> membership = sampled(0.5)
        >>> _, present = membership(jax.random.key(0), jnp.arange(8) < 3, 0)
        >>> print(present.sum())
        4
    """
    check_number("share", share, 0, 1)

    def membership(key, byzantine, round):
        del round
        num_workers = byzantine.shape[0]
        taken = jnp.round(jnp.asarray(share, jnp.float32) * num_workers)
        place = jax.random.permutation(key, num_workers)
        return byzantine, place < taken.astype(jnp.int32)

    return membership

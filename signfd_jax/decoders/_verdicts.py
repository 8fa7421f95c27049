"""How verdicts on the workers are reached, and kept from round to round.

Shapes: `M` workers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

UNDECIDED, HONEST, INVERTED, UNINFORMATIVE, DUPLICATE, ABSENT = range(6)


class VerdictState(NamedTuple):
    """What is remembered for `verdicts`; `[M]`.

    Attributes:
        kind: int8, the last verdict that was sure.
        since: int32, the round in which it was first reached; 0: not yet.
        voted: int32, the last round in which the worker voted; 0: never.
        copied: int32, the worker that it is a duplicate of, or -1.
        correlation: float32, mean correlation with the right side.
        error: float32, the standard error of that.
        test: float32, how many standard errors it is, and both sides say so.
        confidence: float32 scalar in [0, 1], of the last round.
    """

    kind: jax.Array
    since: jax.Array
    voted: jax.Array
    copied: jax.Array
    correlation: jax.Array
    error: jax.Array
    test: jax.Array
    confidence: jax.Array


def first_verdicts(num_workers: int) -> VerdictState:
    """Nothing is known of anybody."""

    def every(value, dtype):
        return jnp.full((num_workers,), value, dtype)

    return VerdictState(
        kind=every(UNDECIDED, jnp.int8),
        since=every(0, jnp.int32),
        voted=every(0, jnp.int32),
        copied=every(-1, jnp.int32),
        correlation=every(0, jnp.float32),
        error=every(0, jnp.float32),
        test=every(0, jnp.float32),
        confidence=jnp.zeros((), jnp.float32),
    )


def next_verdicts(of, state, said, here: Bool[Array, " M"]) -> VerdictState:
    """The verdicts after a round that is judged as `said`, and who voted in it.

    A verdict stands until another one is sure.
    """
    old, round = state.cd_verdict, state.cd_round
    sure = said.confidence > 0.5
    typical = jnp.sum(jnp.where(here, jnp.abs(said.correlation), 0.0)) / jnp.maximum(
        jnp.sum(here.astype(jnp.float32)), 1.0
    )
    highest = jnp.abs(said.correlation) + of.majority * said.error
    kind = jnp.select(
        [
            said.copied >= 0,
            sure & (said.test <= -of.majority),
            sure & (said.test >= of.majority),
            sure & (highest < typical / 4),
        ],
        [DUPLICATE, INVERTED, HONEST, UNINFORMATIVE],
        UNDECIDED,
    ).astype(jnp.int8)
    kind = jnp.where(here & (kind != UNDECIDED), kind, old.kind)
    return VerdictState(
        kind=kind,
        since=jnp.where(kind == old.kind, old.since, round),
        voted=jnp.where(here, round, old.voted),
        copied=jnp.where(here & (said.copied >= 0), said.copied, old.copied),
        correlation=said.correlation,
        error=said.error,
        test=said.test,
        confidence=said.confidence,
    )

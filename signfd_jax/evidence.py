"""How far a piece of evidence goes: from 0, in steps as small as the noise, to 1.

Nothing that is found about workers may jump where an estimate crosses a threshold, so
thresholds are pairs: where a factor starts to move from 0 and where it reaches 1. All
of them, here and in the modules that use these functions, were found by replaying
recorded gradients under the catalogue's attacks; benchmarks/robustness.py measures what
came of them.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["doubt_wrongness", "positive", "ramp"]

_CONSISTENT = (0.6, 0.8)  # share of its due that a liar's wrongness must show
_SHORTFALL = (1.0, 3.0)  # what is missing of it, in standard errors: is it missing?
_SHORTFALL_NOW = (3.5, 5.5)  # the same, of one round: there are many to mistake


def ramp(
    value: float | Float[Array, "..."], bounds: tuple[float, float]
) -> Float[Array, "..."]:
    """0 at or before the first bound, 1 at or beyond the second, linear between.

    Args:
        value: float, any shape.
        bounds: two different numbers, in either order.

    Returns:
        float, shape of `value`, in [0, 1].

    Examples:
        >>> print(ramp(jnp.array([0.0, 2.0, 4.0]), (1.0, 3.0)))
        [0.  0.5 1. ]
        >>> print(ramp(0.02, (0.05, 0.02)))
        1.0
    """
    start, end = bounds
    return jnp.clip((value - start) / (end - start), 0.0, 1.0)


def positive(value: Float[Array, "..."]) -> Float[Array, "..."]:
    """At least 1e-9, to divide by where 0 may only be divided by.

    Args:
        value: float, any shape, at least 0.

    Returns:
        float, shape of `value`.

    Examples:
        >>> print(positive(jnp.array([0.0, 2.0])))
        [1.e-09 2.e+00]
    """
    return jnp.maximum(value, 1e-9)


def doubt_wrongness(
    wrong: Float[Array, " M"],
    due: Float[Array, " M"],
    error: Float[Array, " M"] | Float[Array, ""],
    *,
    one_round: bool = False,
) -> Float[Array, " M"]:
    """How surely each worker is less wrong than a constant liar would be.

    Args:
        wrong: float `[M]`, how far it contradicts those who are right.
        due: float `[M]`, how far it would if it always lied.
        error: float `[M]` or scalar, standard error of `wrong`.
        one_round: whether `wrong` is of a single round: as there are many rounds to be
            mistaken in, more must be missing then.

    Returns:
        float32 `[M]` in [0, 1]: 0 where most of what is due is there, or where the
        noise may be what hides it.

    Examples:
        >>> wrong, due = jnp.array([0.3, 0.1, 0.1]), jnp.full(3, 0.3)
        >>> print(doubt_wrongness(wrong, due, jnp.array([0.01, 0.01, 0.2])))
        [0. 1. 0.]
    """
    missing = 1 - ramp(wrong / positive(due), _CONSISTENT)
    bounds = _SHORTFALL_NOW if one_round else _SHORTFALL
    return missing * ramp((_CONSISTENT[1] * due - wrong) / error, bounds)

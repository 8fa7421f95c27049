"""Medians over the workers that were seen, and weights that respect them.

Shapes: `M` workers.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

__all__ = ["capped_at_median", "in_medians", "masked_median"]


def masked_median(values: Float[Array, " M"], seen: Bool[Array, " M"]):
    """Median over the workers that were seen.

    Args:
        values: float `[M]`.
        seen: bool `[M]`.

    Returns:
        Scalar of the dtype of `values`; 0 where no worker was seen.

    Examples:
        >>> print(masked_median(jnp.array([3.0, 1.0, 9.0]), jnp.array([1, 1, 0]) > 0))
        2.0
    """
    low, high = _middle_values(values, seen)
    return (low + high) / 2


def _middle_values(values, seen):
    """The two middle values of those seen; of an odd number, the middle one twice."""
    count = jnp.sum(seen)
    ascending = jnp.sort(jnp.where(seen, values, jnp.inf))
    low = ascending[jnp.maximum((count - 1) // 2, 0)]
    high = ascending[jnp.minimum(count // 2, values.shape[0] - 1)]
    nobody = count == 0
    return jnp.where(nobody, 0.0, low), jnp.where(nobody, 0.0, high)


def in_medians(
    values: Float[Array, " M"], seen: Bool[Array, " M"]
) -> Float[Array, " M"]:
    """Values in units of the median |value| of those seen, clipped to [-1, 1].

    Args:
        values: float `[M]`.
        seen: bool `[M]`.

    Returns:
        float `[M]`; the signs of the values where the median is zero.

    Examples:
        >>> print(in_medians(jnp.array([1.0, -2.0, 8.0]), jnp.ones(3, bool)))
        [ 0.5 -1.   1. ]
    """
    typical = jnp.maximum(masked_median(jnp.abs(values), seen), 1e-9)
    return jnp.clip(values / typical, -1.0, 1.0)


def capped_at_median(
    weights: Float[Array, " M"], seen: Bool[Array, " M"]
) -> Float[Array, " M"]:
    r"""Clip weights to the median |weight|, so that no minority buys influence.

    Afterwards the |weights| of any k workers sum to at most k times the median
    |weight|. Unseen workers get the median: benefit of the doubt on arrival.

    Args:
        weights: float `[M]`.
        seen: bool `[M]`, workers that have voted at all.

    Returns:
        float `[M]`; all ones where the median is zero.

    Examples:
        >>> print(capped_at_median(jnp.array([5.0, 1.0, -2.0]), jnp.ones(3, bool)))
        [ 2.  1. -2.]
    """
    # Of an even number, the lower median: clipping then leaves the median there.
    cap, _ = _middle_values(jnp.abs(weights), seen)
    capped = jnp.where(seen, jnp.clip(weights, -cap, cap), cap)
    return jnp.where(cap > 0, capped, 1.0)

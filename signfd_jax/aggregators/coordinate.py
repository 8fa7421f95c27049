"""Rules that treat every coordinate alone: mean, median, trimmed mean, MeaMed.

Shapes: `M` workers, `D` coordinates; row m of `gradients` is worker m's gradient.
`f` is the number of Byzantine workers that a rule assumes. A NaN counts as positive
infinity, one extreme value among the M of its coordinate (but for the mean).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from signfd_jax._checks import checked
from signfd_jax.aggregators._rows import (
    mean_near_median,
    middle,
    require_workers,
    sorted_rows,
    sum_of_rows,
    widen,
)

__all__ = [
    "coordinate_median",
    "mean",
    "mean_around_median",
    "trimmed_mean",
]


@checked
def mean(gradients: Float[Array, "M D"]) -> Float[Array, " D"]:
    r"""Mean of the rows: the rule without any defence.

    $\frac{1}{M} \sum_m g_m$.

    Args:
        gradients: one row for each worker.

    Returns:
        The mean. One NaN or infinity makes its coordinate not finite.

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> print(mean(jnp.array([[1.0, 2.0], [3.0, 4.0]])))
        [2. 3.]
    """
    return (sum_of_rows(widen(gradients)) / len(gradients)).astype(gradients.dtype)


@checked
def coordinate_median(gradients: Float[Array, "M D"]) -> Float[Array, " D"]:
    """Median of every coordinate; of an even number, the mean of the middle two.

    Args:
        gradients: one row for each worker.

    Returns:
        The median: finite while less than half of the values of a coordinate are
        not.

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> rows = jnp.array([[1.0, 5.0], [2.0, jnp.nan], [99.0, 6.0]])
        >>> print(coordinate_median(rows))
        [2. 6.]

    References:
        Yin et al., [Byzantine-Robust Distributed Learning: Towards Optimal
        Statistical Rates](https://arxiv.org/abs/1803.01498), ICML 2018.
    """
    return middle(sorted_rows(gradients)).astype(gradients.dtype)


@checked
def trimmed_mean(
    gradients: Float[Array, "M D"], num_byzantine: int
) -> Float[Array, " D"]:
    r"""Mean of every coordinate without its f largest and its f smallest values.

    $\frac{1}{M - 2f} \sum_{k=f+1}^{M-f} x_{(k)}$ of the sorted values $x_{(k)}$.

    Args:
        gradients: one row for each worker.
        num_byzantine: f, the number cut off at either end; M > 2f.

    Returns:
        The trimmed mean: finite while at most f values of a coordinate are NaN or
        positive infinity, and at most f are negative infinity.

    Raises:
        ValueError: M <= 2f.

    Examples:
        >>> rows = jnp.array([[1.0], [2.0], [4.0], [99.0]])
        >>> print(trimmed_mean(rows, num_byzantine=1))
        [3.]

    References:
        Yin et al., [Byzantine-Robust Distributed Learning: Towards Optimal
        Statistical Rates](https://arxiv.org/abs/1803.01498), ICML 2018.
    """
    f = num_byzantine
    require_workers("trimmed_mean", len(gradients), f, 2 * f + 1, "M > 2f")
    kept = sorted_rows(gradients)[f : len(gradients) - f]
    return jnp.mean(kept, axis=0).astype(gradients.dtype)


@checked
def mean_around_median(
    gradients: Float[Array, "M D"], num_byzantine: int
) -> Float[Array, " D"]:
    """MeaMed: mean of the M - f values of every coordinate nearest to its median.

    Of two values that tie for the last place the smaller is taken.

    Args:
        gradients: one row for each worker.
        num_byzantine: f, the number of values left out; M > 2f.

    Returns:
        The mean around the median. A value that is not finite never enters it.

    Raises:
        ValueError: M <= 2f.

    Examples:
        >>> rows = jnp.array([[1.0], [3.0], [5.0], [99.0]])
        >>> print(mean_around_median(rows, num_byzantine=1))
        [3.]

    References:
        Xie, Koyejo and Gupta, [Generalized Byzantine-tolerant SGD](
        https://arxiv.org/abs/1802.10116), 2018.
    """
    f = num_byzantine
    require_workers("mean_around_median", len(gradients), f, 2 * f + 1, "M > 2f")
    return mean_near_median(gradients, len(gradients) - f)

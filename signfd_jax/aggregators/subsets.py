"""Rules that try every subset of M - f rows, and average the best: MDA and SMEA.

Shapes: `M` workers, `D` coordinates; row m of `gradients` is worker m's gradient.
`f` is the number of Byzantine workers that a rule assumes. They are exact, and so for
few workers only: there may be at most `MOST_SUBSETS` subsets. A row that is not finite
(`rows.finite_rows`) is never averaged, and the subsets with fewest of them go first; if
no row is finite the aggregate is the zero vector.
"""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from signfd_jax._checks import checked
from signfd_jax.aggregators._rows import (
    covariance,
    finite_rows,
    mean_of_rows,
    products_around_median,
    require_workers,
    squared_distances,
)

__all__ = ["mda", "smea"]

MOST_SUBSETS = 20_000
"""Up to here every subset is tried: 15 workers with any f, 20 with f <= 5."""


@checked
def mda(gradients: Float[Array, "M D"], num_byzantine: int) -> Float[Array, " D"]:
    r"""Minimum-diameter averaging: the mean of the M - f rows nearest to each other.

    $\frac{1}{M - f} \sum_{i \in S} g_i$, where of all subsets of M - f rows $S$ has the
    smallest diameter $\max_{i, j \in S} \|g_i - g_j\|$. Several subsets may share the
    two rows farthest apart, and so the diameter. Of those it is the one with the
    smallest sum of squared distances; ByzFL takes the first.

    Args:
        gradients: one row for each worker.
        num_byzantine: f; M > 2f. There are at most 20,000 subsets of M - f rows.

    Returns:
        The mean of the rows of the best subset.

    Raises:
        ValueError: M <= 2f with f > 0, or there are too many subsets.

    Examples:
        >>> rows = jnp.array([[1.0], [2.0], [4.0], [99.0]])
        >>> print(mda(rows, num_byzantine=1).round(2))
        [2.33]

    References:
        El Mhamdi, Guerraoui, Guirguis, Hoang and Rouault, [Genuinely Distributed
        Byzantine Machine Learning](https://arxiv.org/abs/1905.03853), PODC 2020.
    """
    finite = finite_rows(gradients)
    distances = squared_distances(gradients)
    distances = jnp.where(finite[:, None] & finite[None, :], distances, 0)

    def spread(chosen: Bool[Array, " M"]):
        inside = jnp.where(chosen[:, None] & chosen[None, :], distances, 0)
        return jnp.max(inside), jnp.sum(inside)

    best = _best_subset("mda", num_byzantine, finite, spread)
    return mean_of_rows(gradients, best & finite)


@checked
def smea(gradients: Float[Array, "M D"], num_byzantine: int) -> Float[Array, " D"]:
    r"""Smallest maximum eigenvalue averaging: the mean of the M - f least spread rows.

    $\frac{1}{M - f} \sum_{i \in S} g_i$, where of all subsets of M - f rows $S$ has the
    covariance matrix $\frac{1}{M - f} \sum_{i \in S} (g_i - \mu_S)(g_i - \mu_S)^\top$
    with the smallest top eigenvalue. Eigenvalues are exact, by an M x M matrix; ByzFL
    does one step of the power method.

    Args:
        gradients: one row for each worker.
        num_byzantine: f; M > 2f. There are at most 20,000 subsets of M - f rows.

    Returns:
        The mean of the rows of the best subset.

    Raises:
        ValueError: M <= 2f with f > 0, or there are too many subsets.

    Examples:
        >>> rows = jnp.array([[1.0], [2.0], [4.0], [99.0]])
        >>> print(smea(rows, num_byzantine=1).round(2))
        [2.33]

    References:
        Allouah, Guerraoui, Gupta, Pinot and Stephan, [On the Privacy-Robustness-Utility
        Trilemma in Distributed Learning](https://arxiv.org/abs/2302.04787), ICML 2023.
    """
    finite = finite_rows(gradients)
    products = products_around_median(gradients)

    def spread(chosen: Bool[Array, " M"]):
        weights = (chosen & finite).astype(products.dtype)
        weights /= jnp.maximum(jnp.sum(weights), 1)
        return (jnp.linalg.eigvalsh(covariance(products, weights))[-1],)

    best = _best_subset("smea", num_byzantine, finite, spread)
    return mean_of_rows(gradients, best & finite)


def _best_subset(
    rule: str, f: int, finite: Bool[Array, " M"], spread: Callable
) -> Bool[Array, " M"]:
    """The M - f rows of least spread, of those with the fewest that are not finite."""
    count = len(finite)
    require_workers(rule, count, f, 2 * f + 1, "M > 2f")
    num_subsets = math.comb(count, f)
    if num_subsets > MOST_SUBSETS:
        raise ValueError(
            f"{rule} tries every subset of M - f rows: with {count} workers and "
            f"num_byzantine = {f} there are {num_subsets:,}, more than "
            f"{MOST_SUBSETS:,}; assume fewer Byzantine workers or choose a rule that "
            "tries none, such as multi_krum or caf"
        )
    left_out = np.array(list(itertools.combinations(range(count), f)), np.int32)

    def chosen(left_out) -> Bool[Array, " M"]:
        return jnp.ones(count, bool).at[left_out].set(False)

    def judge(left_out):
        subset = chosen(left_out)
        return jnp.sum(subset & ~finite), *spread(subset)

    subsets = jnp.asarray(left_out.reshape(num_subsets, f))
    lost, *spreads = jax.lax.map(judge, subsets, batch_size=min(num_subsets, 256))
    return chosen(subsets[jnp.lexsort((*spreads[::-1], lost))[0]])

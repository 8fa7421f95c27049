"""Rules that are told which workers are honest: FLTrust, FLTrust on votes, MoNNA.

Shapes: `M` workers, `D` coordinates; row m of `gradients` is worker m's gradient. The
trusted rows are the server's own: they say how far each other row is believed. A row
that is not finite (`rows.finite_rows`) is never used; if no row is believed, the
aggregate is the zero vector.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from signfd_jax._checks import checked
from signfd_jax.aggregators._rows import (
    finite_rows,
    mean_of_rows,
    require_workers,
    widen,
)

__all__ = ["fltrust", "fltrust_sign", "monna"]


@checked
def fltrust(
    gradients: Float[Array, "M D"], trusted: Bool[Array, " M"]
) -> Float[Array, " D"]:
    r"""FLTrust: weigh each row by its cosine with the trusted one, at equal lengths.

    With the root gradient $g_0$, the mean of the trusted rows, the trust score of every
    other row is $t_m = \max(0, \cos(g_m, g_0))$, and the aggregate

    $$\frac{1}{\sum_m t_m} \sum_m t_m \frac{\|g_0\|}{\|g_m\|} g_m.$$

    The root gradient itself is not in the sum. The paper has one, of the server's own
    examples; the mean of several is this library's.

    Args:
        gradients: one row for each worker.
        trusted: the workers that are known to be honest, such as the server itself
            with examples of its own. May be traced.

    Returns:
        The aggregate: zero if nobody is trusted, or nobody else has a positive cosine.

    Raises:
        ValueError: an argument has another shape than it should.

    Examples:
        >>> rows = jnp.array([[3.0, 3.0], [-9.0, -9.0], [0.0, 2.0]])
        >>> print(fltrust(rows, trusted=jnp.array([False, False, True])).round(3))
        [1.414 1.414]

    References:
        Cao, Fang, Liu and Gong, [FLTrust: Byzantine-robust Federated Learning via Trust
        Bootstrapping](https://arxiv.org/abs/2012.13995), NDSS 2021.
    """
    finite = finite_rows(gradients)
    rows = jnp.where(finite[:, None], widen(gradients), 0)
    root = mean_of_rows(rows, trusted & finite)
    lengths = jnp.sqrt(jnp.sum(jnp.square(rows), axis=1))
    # A product, and so a score, is zero where a length is.
    inverse = jnp.where(lengths > 0, 1 / jnp.where(lengths > 0, lengths, 1), 0)
    products = jnp.matmul(rows, root, precision=jax.lax.Precision.HIGHEST)
    length = jnp.sqrt(jnp.sum(jnp.square(root)))
    cosines = products * inverse / jnp.where(length > 0, length, 1)
    scores = jnp.where(trusted, 0, jnp.maximum(cosines, 0))
    total = jnp.sum(scores)
    weights = scores * inverse * length / jnp.where(total > 0, total, 1)
    aggregate = jnp.matmul(weights, rows, precision=jax.lax.Precision.HIGHEST)
    return aggregate.astype(gradients.dtype)


@checked
def fltrust_sign(
    gradients: Float[Array, "M D"], trusted: Bool[Array, " M"]
) -> Float[Array, " D"]:
    r"""FLTrust by sign: weigh each vote by its correlation with the trusted one.

    `fltrust` on the votes $Y_m = \operatorname{sign} g_m$, and of what comes out the
    sign. Of votes without abstentions the cosine is $1 - 2 e_m$, where $e_m$ is the
    share of coordinates on which worker m and the root disagree. This variant is the
    library's: what FLTrust would do with one bit a coordinate.

    Args:
        gradients: one row for each worker; zero and NaN abstain.
        trusted: the workers that are known to be honest. May be traced.

    Returns:
        The sign of the weighted vote, in {-1, 0, +1}; zero if nobody is trusted, or
        nobody else agrees with the root more often than not.

    Raises:
        ValueError: an argument has another shape than it should.

    Examples:
        >>> rows = jnp.array([[9.0, 1.0, 1.0], [-1.0, -1.0, 5.0], [2.0, 1.0, -3.0]])
        >>> print(fltrust_sign(rows, trusted=jnp.array([False, False, True])))
        [1. 1. 1.]

    References:
        Cao, Fang, Liu and Gong, [FLTrust: Byzantine-robust Federated Learning via Trust
        Bootstrapping](https://arxiv.org/abs/2012.13995), NDSS 2021.
    """
    votes = jnp.nan_to_num(jnp.sign(widen(gradients)), nan=0.0)
    return jnp.sign(fltrust(votes, trusted)).astype(gradients.dtype)


@checked
def monna(
    gradients: Float[Array, "M D"], trusted: Bool[Array, " M"], num_byzantine: int
) -> Float[Array, " D"]:
    r"""MoNNA's mixing: the mean of the M - f rows nearest to the trusted one.

    $\frac{1}{M - f} \sum_{i \in N} g_i$, where $N$ has the M - f rows with the smallest
    $\|g_i - g_0\|$ to the pivot $g_0$, the mean of the trusted rows, which are averaged
    with the others. In the paper there is no server: each worker mixes so, with its own
    row as the pivot. The mean of several trusted rows is this library's.

    Args:
        gradients: one row for each worker.
        trusted: the workers that are known to be honest. May be traced.
        num_byzantine: f; M > 2f.

    Returns:
        The mean of the nearest rows; zero if nobody is trusted.

    Raises:
        ValueError: M <= 2f with f > 0, or an argument has another shape than it should.

    Examples:
        >>> rows = jnp.array([[1.0], [2.0], [4.0], [99.0]])
        >>> trusted = jnp.array([True, False, False, False])
        >>> print(monna(rows, trusted, num_byzantine=1).round(2))
        [2.33]

    References:
        Farhadkhani et al., [Robust Collaborative Learning with Linear Gradient
        Overhead](https://arxiv.org/abs/2209.10931), ICML 2023.
    """
    count, f = len(gradients), num_byzantine
    require_workers("monna", count, f, 2 * f + 1, "M > 2f")
    finite = finite_rows(gradients)
    rows = jnp.where(finite[:, None], widen(gradients), 0)
    pivot = mean_of_rows(rows, trusted & finite)
    squares = jnp.sum(jnp.square(rows - pivot[None, :]), axis=1)
    nearest = jnp.argsort(jnp.where(finite, squares, jnp.inf))[: count - f]
    kept = jnp.zeros(count, bool).at[nearest].set(True)
    return mean_of_rows(gradients, kept & finite & jnp.any(trusted & finite))

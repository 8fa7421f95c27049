"""Rules that look for the liars and average the others: CGE, CAF, DnC and SignGuard.

Shapes: `M` workers, `D` coordinates; row m of `gradients` is worker m's gradient.
`f` is the number of Byzantine workers that a rule assumes. DnC and SignGuard look at a
random part of the coordinates, so both take a key. A row that is not finite
(`rows.finite_rows`) is never averaged; if every row is filtered out, the aggregate is
the zero vector.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from signfd_jax._checks import check_number, check_size, checked
from signfd_jax.aggregators._clusters import largest_mean_shift
from signfd_jax.aggregators._rows import (
    covariance,
    finite_rows,
    mean_of_rows,
    products_around_median,
    require_workers,
    rows_and_norms,
    shorten,
    widen,
)

__all__ = ["caf", "cge", "dnc", "signguard"]


@checked
def cge(gradients: Float[Array, "M D"], num_byzantine: int) -> Float[Array, " D"]:
    r"""Comparative gradient elimination: the mean of the M - f shortest rows.

    $\frac{1}{M - f} \sum_{k=1}^{M-f} g_{(k)}$ of the rows in the order of their norms
    $\|g_{(1)}\| \le \dots \le \|g_{(M)}\|$. Rows that lie, but are not long, are kept.

    Args:
        gradients: one row for each worker.
        num_byzantine: f; M > 2f.

    Returns:
        The mean of the rows that are left.

    Raises:
        ValueError: M <= 2f with f > 0.

    Examples:
        >>> rows = jnp.array([[1.0, 0.0], [0.0, 2.0], [-9.0, 9.0]])
        >>> print(cge(rows, num_byzantine=1))
        [0.5 1. ]

    References:
        Gupta, Liu and Vaidya, [Byzantine Fault-Tolerant Distributed Machine Learning
        Using Stochastic Gradient Descent (SGD) and Norm-Based Comparative Gradient
        Elimination (CGE)](https://arxiv.org/abs/2008.04699), 2020.
    """
    count, f = len(gradients), num_byzantine
    require_workers("cge", count, f, 2 * f + 1, "M > 2f")
    _, norms, finite = rows_and_norms(gradients)
    shortest = jnp.argsort(jnp.where(finite, norms, jnp.inf))[: count - f]
    kept = jnp.zeros(count, bool).at[shortest].set(True)
    return mean_of_rows(gradients, kept & finite)


@checked
def caf(gradients: Float[Array, "M D"], num_byzantine: int) -> Float[Array, " D"]:
    r"""Covariance-bound agnostic filter: lower the weights along the main spread.

    All weights $c_i$ start at 1. While $\sum_i c_i > M - 2f$, with the weighted mean
    $\mu$ and the top eigenvector $v$ of the weighted covariance matrix,

    $$c_i \leftarrow c_i \left(1 - \tau_i / \max_j \tau_j\right), \qquad
    \tau_i = \langle g_i - \mu, v\rangle^2,$$

    where the maximum is over the rows that have weight left, so that every step takes
    all from one of them. Of all the means on the way, the one with the smallest top
    eigenvalue is returned. Eigenvectors are exact: each step decomposes an M x M
    matrix. ByzFL does one step of the power method, and its maximum is over all rows.

    Args:
        gradients: one row for each worker.
        num_byzantine: f; M > 2f. With 0 the rule is the mean.

    Returns:
        A weighted mean. A row that is not finite has the weight 0 from the start.

    Raises:
        ValueError: M <= 2f with f > 0.

    Examples:
        >>> rows = jnp.array([[1.0], [2.0], [3.0], [99.0]])
        >>> print(caf(rows, num_byzantine=1).round(1))
        [2.]

    References:
        Allouah, Guerraoui and Stephan, [Towards Trustworthy Federated Learning with
        Untrusted Participants](https://arxiv.org/abs/2505.01874), ICML 2025.
    """
    count, f = len(gradients), num_byzantine
    require_workers("caf", count, f, 2 * f + 1, "M > 2f")
    finite = finite_rows(gradients)
    products = products_around_median(gradients)
    least = count - 2 * f

    def look(weights):
        """The top eigenvalue, and every row's part in it over its own weight."""
        share = weights / jnp.maximum(jnp.sum(weights), 1e-6)
        values, vectors = jnp.linalg.eigh(covariance(products, share))
        # Times the eigenvalue, tau is the square of the entry over its weight.
        part = jnp.square(vectors[:, -1]) / jnp.where(weights > 0, weights, 1)
        return values[-1], jnp.where(weights > 0, part, 0)

    def filtering(carry):
        weights, _, _, smallest = carry
        return (jnp.sum(weights) > least) & (smallest > 0)

    def lower(carry):
        weights, part, best, smallest = carry
        weights = weights * (1 - part / jnp.max(part))
        weights = jnp.where(weights > 1e-6, weights, 0)  # but for rounding they are 0
        value, part = look(weights)
        better = (value < smallest) & (jnp.sum(weights) > least)
        best = jnp.where(better, weights, best)
        return weights, part, best, jnp.minimum(smallest, value)

    weights = finite.astype(products.dtype)
    value, part = look(weights)
    best = jax.lax.while_loop(filtering, lower, (weights, part, weights, value))[2]
    rows = jnp.where(finite[:, None], widen(gradients), 0)
    share = best / jnp.maximum(jnp.sum(best), 1e-6)
    aggregate = jnp.matmul(share, rows, precision=jax.lax.Precision.HIGHEST)
    return aggregate.astype(gradients.dtype)


@checked
def dnc(
    key: PRNGKeyArray,
    gradients: Float[Array, "M D"],
    num_byzantine: int,
    *,
    num_iterations: int = 1,
    num_sampled: int = 10_000,
    filter_fraction: float = 1.0,
) -> Float[Array, " D"]:
    r"""Divide and conquer: drop the rows farthest along the main direction of spread.

    Each iteration centres the rows on their mean over some sampled coordinates, takes
    the top right singular vector v, scores row i by $\langle g_i - \mu, v\rangle^2$
    and marks the $\lfloor c f \rfloor$ highest scores. The rows that no iteration
    marked are averaged.

    The scores are $\sigma_1^2 u_{1,i}^2$ of the singular value decomposition, so the
    M x M Gram matrix gives them. The paper draws coordinates at random; here one is
    drawn from each of `num_sampled` equal blocks, which repeats none either and needs
    no permutation of D numbers.

    Args:
        key: chooses the coordinates; consumed.
        gradients: one row for each worker.
        num_byzantine: f; M > 2f.
        num_iterations: rounds of filtering, each on its own coordinates.
        num_sampled: coordinates an iteration looks at; all D, if there are fewer.
        filter_fraction: c, how many rows an iteration drops for each assumed
            Byzantine worker.

    Returns:
        The mean of the rows that are left.

    Raises:
        ValueError: M <= 2f, or an iteration would drop every row.

    Examples:
        >>> rows = jnp.array([[1.0, 0.0], [1.2, 0.1], [0.8, -0.1], [-9.0, 9.0]])
        >>> print(dnc(jax.random.key(0), rows, num_byzantine=1).round(2))
        [1. 0.]

    References:
        Shejwalkar and Houmansadr, [Manipulating the Byzantine](
        https://www.ndss-symposium.org/ndss-paper/manipulating-the-byzantine-optimizing-model-poisoning-attacks-and-defenses-for-federated-learning/),
        NDSS 2021.
    """
    check_size("num_iterations", num_iterations, 1)
    check_size("num_sampled", num_sampled, 1)
    check_number("filter_fraction", filter_fraction, 0, 1e6)
    count, dimension = gradients.shape
    require_workers("dnc", count, num_byzantine, 2 * num_byzantine + 1, "M > 2f")
    num_dropped = int(filter_fraction * num_byzantine)
    if not 0 <= num_dropped < count:
        raise ValueError(
            f"filter_fraction {filter_fraction} times num_byzantine {num_byzantine} "
            f"drops {num_dropped} of {count} workers; choose a fraction that leaves one"
        )
    finite = finite_rows(gradients)

    def keep(key) -> Bool[Array, " M"]:
        sample = widen(_sample_columns(key, gradients, min(num_sampled, dimension)))
        centre = mean_of_rows(sample, finite)
        centred = jnp.where(finite[:, None], sample - centre[None, :], 0)
        gram = jnp.matmul(centred, centred.T, precision=jax.lax.Precision.HIGHEST)
        scores = jnp.square(jnp.linalg.eigh(gram)[1][:, -1])
        scores = jnp.where(finite, scores, jnp.inf)
        kept = jnp.argsort(scores)[: count - num_dropped]
        return jnp.zeros(count, bool).at[kept].set(True)

    kept = jnp.all(jax.lax.map(keep, jax.random.split(key, num_iterations)), axis=0)
    return mean_of_rows(gradients, kept & finite)


@checked
def signguard(
    key: PRNGKeyArray,
    gradients: Float[Array, "M D"],
    *,
    min_norm: float = 0.1,
    max_norm: float = 3.0,
    sample_fraction: float = 0.1,
) -> Float[Array, " D"]:
    """Average the rows of ordinary norm and ordinary sign statistics, clipped.

    Kept are the rows (1) whose norm is between `min_norm` and `max_norm` times the
    median norm and (2) whose shares of positive, zero and negative signs, over a
    random block of coordinates and each divided by its largest, lie in the largest
    cluster that mean shift finds. Kept rows are clipped to the median norm and
    averaged. If no row passes both, those that pass (1) are averaged.

    It is told nothing about the number of Byzantine workers. Its clustering is that
    of the authors' code, scikit-learn's flat-kernel mean shift with bandwidth at
    quantile 0.5, but started from every row instead of from grid cells.

    Args:
        key: chooses the block of coordinates; consumed.
        gradients: one row for each worker.
        min_norm: lower bound of the norm, in median norms.
        max_norm: upper bound of the norm, in median norms.
        sample_fraction: share of the coordinates whose signs are counted.

    Returns:
        The mean of the clipped rows that are left.

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> rows = jnp.array([[1.0, 2.0], [1.1, 1.9], [0.9, 2.1], [-50.0, -90.0]])
        >>> print(signguard(jax.random.key(0), rows, sample_fraction=1.0).round(1))
        [1. 2.]

    References:
        Xu, Huang, Song and Lan, [Byzantine-robust Federated Learning through
        Collaborative Malicious Gradient Filtering](
        https://arxiv.org/abs/2109.05872), ICDCS 2022, and the
        [authors' code](https://github.com/JianXu95/SignGuard).
    """
    check_number("min_norm", min_norm, 0, float("inf"))
    check_number("max_norm", max_norm, min_norm, float("inf"))
    check_number("sample_fraction", sample_fraction, 0, 1)
    dimension = gradients.shape[1]
    rows, norms, finite = rows_and_norms(gradients)
    median = jnp.nanmedian(jnp.where(finite, norms, jnp.nan))
    ordinary = finite & (norms >= min_norm * median) & (norms <= max_norm * median)

    num_sampled = max(1, round(sample_fraction * dimension))
    start = jax.random.randint(key, (), 0, dimension - num_sampled + 1)
    block = jax.lax.dynamic_slice_in_dim(rows, start, num_sampled, axis=1)
    shares = jnp.stack(
        [jnp.mean(block > 0, 1), jnp.mean(block == 0, 1), jnp.mean(block < 0, 1)], 1
    )
    shares /= jnp.maximum(jnp.max(shares, axis=0, keepdims=True), 1e-8)
    clustered = largest_mean_shift(shares) & ordinary
    kept = jnp.where(jnp.any(clustered), clustered, ordinary)

    rows = shorten(rows, norms, median)
    return mean_of_rows(rows, kept).astype(gradients.dtype)


def _sample_columns(key, gradients, num_sampled):
    """One random column from each of `num_sampled` nearly equal blocks."""
    dimension = gradients.shape[1]
    if num_sampled == dimension:
        return gradients
    edges = np.arange(num_sampled + 1) * dimension // num_sampled  # int64: no overflow
    first = jnp.asarray(edges[:-1], jnp.int32)
    width = jnp.asarray(np.diff(edges), jnp.int32)
    return gradients[:, first + jax.random.randint(key, first.shape, 0, width)]

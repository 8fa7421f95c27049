"""Pre-aggregations: they prepare the rows for a rule, to be chained before it.

Shapes: `M` workers, `D` coordinates; row m of `gradients` is worker m's gradient.
`f` is the number of Byzantine workers that a pre-aggregation assumes. What becomes of
a row that is not finite (`rows.finite_rows`) each says.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from signfd_jax._checks import check_number, check_size, checked
from signfd_jax.aggregators._rows import (
    finite_rows,
    require_workers,
    rows_and_norms,
    shorten,
    squared_distances,
    widen,
)

__all__ = [
    "adaptive_robust_clipping",
    "bucketing",
    "clipping",
    "nearest_neighbour_mixing",
    "top_k",
]


@checked
def clipping(
    gradients: Float[Array, "M D"], max_norm: float = 2.0
) -> Float[Array, "M D"]:
    r"""Shorten every row to a fixed norm: $g_m \min(1, c / \|g_m\|)$.

    Args:
        gradients: one row for each worker.
        max_norm: the norm c, in the unit of the gradients. The default is ByzFL's;
            a good one depends on the model and the round.

    Returns:
        The clipped rows. A row that is not finite becomes zero.

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> print(clipping(jnp.array([[3.0, 4.0], [0.3, 0.4]]), max_norm=1.0))
        [[0.6 0.8]
         [0.3 0.4]]

    References:
        Allouah et al., [Adaptive Gradient Clipping for Robust Federated Learning](
        https://arxiv.org/abs/2405.14432), ICLR 2025, compare with it.
    """
    check_number("max_norm", max_norm, 0, float("inf"))
    rows, norms, _ = rows_and_norms(gradients)
    return shorten(rows, norms, max_norm).astype(gradients.dtype)


@checked
def adaptive_robust_clipping(
    gradients: Float[Array, "M D"], num_byzantine: int
) -> Float[Array, "M D"]:
    r"""ARC: shorten the $k = \lfloor 2 f (M - f) / M \rfloor$ longest rows.

    They are clipped to the norm of the next longest, row M - k in order of norm.

    Args:
        gradients: one row for each worker.
        num_byzantine: f; M > 2f.

    Returns:
        The clipped rows. A row that is not finite counts as longest and becomes zero.

    Raises:
        ValueError: M <= 2f.

    Examples:
        >>> rows = jnp.array([[1.0], [2.0], [3.0], [99.0]])
        >>> print(adaptive_robust_clipping(rows, num_byzantine=1).T)
        [[1. 2. 3. 3.]]

    References:
        Allouah et al., [Adaptive Gradient Clipping for Robust Federated Learning](
        https://arxiv.org/abs/2405.14432), ICLR 2025.
    """
    count, f = len(gradients), num_byzantine
    require_workers("adaptive_robust_clipping", count, f, 2 * f + 1, "M > 2f")
    num_clipped = 2 * f * (count - f) // count
    rows, norms, finite = rows_and_norms(gradients)
    ordered = jnp.sort(jnp.where(finite, norms, jnp.inf))
    threshold = ordered[count - num_clipped - 1]
    return shorten(rows, norms, threshold).astype(gradients.dtype)


@checked
def bucketing(
    key: PRNGKeyArray, gradients: Float[Array, "M D"], bucket_size: int = 2
) -> Float[Array, "K D"]:
    """Shuffle the rows and average them in buckets.

    The rule after it sees K = ceil(M / bucket_size) rows, less different from each
    other than the workers are; up to f of them contain a Byzantine row.

    Args:
        key: shuffles the rows; consumed.
        gradients: one row for each worker.
        bucket_size: rows in a bucket; the last may have fewer. 2 in the paper's
            experiments; 1 only shuffles.

    Returns:
        One row for each bucket. A row that is not finite spoils its bucket.

    Raises:
        ValueError: `bucket_size` is less than 1.

    Examples:
        >>> rows = jnp.array([[1.0], [1.0], [1.0]])
        >>> print(bucketing(jax.random.key(0), rows, bucket_size=2))
        [[1.]
         [1.]]

    References:
        Karimireddy, He and Jaggi, [Byzantine-Robust Learning on Heterogeneous
        Datasets via Bucketing](https://arxiv.org/abs/2006.09365), ICLR 2022.
    """
    check_size("bucket_size", bucket_size, 1)
    count, dimension = gradients.shape
    num_buckets = -(-count // bucket_size)
    rows = widen(gradients)[jax.random.permutation(key, count)]
    rows = jnp.pad(rows, ((0, num_buckets * bucket_size - count), (0, 0)))
    totals = jnp.sum(rows.reshape(num_buckets, bucket_size, dimension), axis=1)
    filled = [min(bucket_size, count - i * bucket_size) for i in range(num_buckets)]
    sizes = jnp.asarray(filled, totals.dtype)
    return (totals / sizes[:, None]).astype(gradients.dtype)


@checked
def nearest_neighbour_mixing(
    gradients: Float[Array, "M D"], num_byzantine: int
) -> Float[Array, "M D"]:
    r"""NNM: replace every row by the mean of its M - f nearest rows, itself included.

    One product of an M x M matrix of neighbours with the rows, in O(M D) memory.

    Args:
        gradients: one row for each worker.
        num_byzantine: f; M > 2f.

    Returns:
        The mixed rows, all finite. A row that is not finite is nobody's neighbour,
        and is itself replaced by a mean of finite rows (zero if there is none).

    Raises:
        ValueError: M <= 2f.

    Examples:
        >>> rows = jnp.array([[1.0], [2.0], [4.0], [99.0]])
        >>> print(nearest_neighbour_mixing(rows, num_byzantine=2))
        Traceback (most recent call last):
            ...
        ValueError: nearest_neighbour_mixing needs M > 2f: with num_byzantine = 2 at...
        >>> print(nearest_neighbour_mixing(rows, num_byzantine=1).round(2).T)
        [[ 2.33  2.33  2.33 35.  ]]

    References:
        Allouah et al., [Fixing by Mixing: A Recipe for Optimal Byzantine ML under
        Heterogeneity](https://arxiv.org/abs/2302.01772), AISTATS 2023.
    """
    count, f = len(gradients), num_byzantine
    require_workers("nearest_neighbour_mixing", count, f, 2 * f + 1, "M > 2f")
    finite = finite_rows(gradients)
    rows = jnp.where(finite[:, None], widen(gradients), 0)
    nearest = jnp.argsort(squared_distances(gradients), axis=1)[:, : count - f]
    mixing = jnp.zeros((count, count), rows.dtype)
    mixing = mixing.at[jnp.arange(count)[:, None], nearest].set(1)
    mixing = jnp.where(finite[None, :], mixing, 0)
    mixing /= jnp.maximum(jnp.sum(mixing, axis=1, keepdims=True), 1)
    mixed = jnp.matmul(mixing, rows, precision=jax.lax.Precision.HIGHEST)
    return mixed.astype(gradients.dtype)


@checked
def top_k(gradients: Float[Array, "M D"], fraction: float = 0.1) -> Float[Array, "M D"]:
    """Keep the largest coordinates of every row and zero the rest.

    What a worker that sends k values and k indices leaves of its gradient; there is no
    error feedback. The k-th largest magnitude is found by bisection on the bits of the
    floats, several times faster than a sort of long rows.

    Args:
        gradients: one row for each worker.
        fraction: k / D, in (0, 1]; k is rounded and at least 1. Coordinates that tie
            with the k-th largest magnitude are all kept.

    Returns:
        The sparse rows. A NaN counts as largest, so a row stays not finite.

    Raises:
        ValueError: `fraction` is not in (0, 1].

    Examples:
        >>> print(top_k(jnp.array([[1.0, -5.0, 3.0, 0.5]]), fraction=0.5))
        [[ 0. -5.  3.  0.]]

    References:
        Aji and Heafield, [Sparse Communication for Distributed Gradient Descent](
        https://arxiv.org/abs/1704.05021), EMNLP 2017.
    """
    check_number("fraction", fraction, 1e-9, 1.0)
    num_kept = max(1, round(fraction * gradients.shape[1]))
    magnitude = jnp.abs(widen(gradients))
    # Non-negative floats are ordered as their bits are, read as an unsigned integer.
    width = 8 * magnitude.dtype.itemsize
    integer = jnp.dtype(f"uint{width}")
    bits = jax.lax.bitcast_convert_type(magnitude, integer)

    def set_bit(position, threshold):
        shift = jnp.asarray(width - 2 - position, integer)
        candidate = threshold | jnp.left_shift(jnp.ones((), integer), shift)
        enough = jnp.sum(bits >= candidate[:, None], axis=1) >= num_kept
        return jnp.where(enough, candidate, threshold)

    lowest = jnp.zeros(len(gradients), integer)
    threshold = jax.lax.fori_loop(0, width - 1, set_bit, lowest)
    return jnp.where(bits >= threshold[:, None], gradients, 0)

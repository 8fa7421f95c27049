"""What aggregation rules ask of their rows: are they finite, sorted, how far apart.

Shapes: `M` workers, `D` coordinates; row m of `gradients` is worker m's gradient.
Everything is computed in float32 or wider, whatever the dtype of the rows.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from signfd_jax._checks import check_size, checked

# Up to here a sorting network of element-wise minima and maxima is compiled: 7 ms where
# `jnp.sort` took 750 (15 x 582,026 on 2 CPU cores). Its size grows as M log^2 M.
_MAX_NETWORK_WORKERS = 64


def require_workers(
    rule: str, num_workers: int, num_byzantine: int, minimum: int, condition: str
) -> None:
    """Check a rule's precondition on the number of workers.

    With `num_byzantine = 0` a rule promises nothing, so any number will do.
    """
    check_size("num_byzantine", num_byzantine, 0)
    if num_byzantine > 0 and num_workers < minimum:
        raise ValueError(
            f"{rule} needs {condition}: with num_byzantine = {num_byzantine} at least "
            f"{minimum} workers, but there are {num_workers}; assume fewer Byzantine "
            "workers or choose a rule with a weaker precondition"
        )


def widen(gradients: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Cast to float32, unless the dtype is wider already."""
    return gradients.astype(np.promote_types(gradients.dtype, np.float32))


def finite_rows(gradients: Float[Array, "M D"]) -> Bool[Array, " M"]:
    """Which rows have a finite squared norm.

    A row with a NaN or an infinity has not, nor has one so large that its squared
    norm overflows: no rule can weigh such a row, so all treat it as not finite.
    """
    return jnp.isfinite(jnp.sum(jnp.square(widen(gradients)), axis=1))


def rows_and_norms(gradients: Float[Array, "M D"]):
    """The widened rows, zero where not finite, their norms, and which are finite."""
    finite = finite_rows(gradients)
    rows = jnp.where(finite[:, None], widen(gradients), 0)
    return rows, jnp.sqrt(jnp.sum(jnp.square(rows), axis=1)), finite


def shorten(rows: Float[Array, "M D"], norms: Float[Array, " M"], max_norm):
    """The rows, with those of a larger norm than `max_norm` at that norm."""
    scale = jnp.where(norms > max_norm, max_norm / jnp.where(norms > 0, norms, 1), 1)
    return rows * scale[:, None]


def sum_of_rows(rows: Float[Array, "M D"]) -> Float[Array, " D"]:
    """Sum of the rows, as a matrix product.

    On a CPU, XLA's sum over the leading axis takes several times as long.
    """
    ones = jnp.ones(len(rows), rows.dtype)
    # The highest precision, or a GPU would take TF32 and keep three digits.
    return jnp.matmul(ones, rows, precision=jax.lax.Precision.HIGHEST)


def mean_of_rows(
    gradients: Float[Array, "M D"], selected: Bool[Array, " M"]
) -> Float[Array, " D"]:
    """Mean of the selected rows; the zero vector if none is selected."""
    total = sum_of_rows(jnp.where(selected[:, None], widen(gradients), 0))
    count = jnp.maximum(jnp.sum(selected), 1).astype(total.dtype)
    return (total / count).astype(gradients.dtype)


def squared_distances(gradients: Float[Array, "M D"]) -> Float[Array, "M M"]:
    r"""Squared Euclidean distances between the rows, from one matrix product.

    $\|x_i - x_j\|^2 = \|x_i\|^2 + \|x_j\|^2 - 2 x_i^\top x_j$, with memory for the
    $M \times M$ result only. The error is about $10^{-7}(\|x_i\|^2 + \|x_j\|^2)$, so
    one enormous row spoils its own distances and no others.
    """
    finite = finite_rows(gradients)
    rows = jnp.where(finite[:, None], widen(gradients), 0)
    gram = jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)
    norms = jnp.diagonal(gram)
    distances = jnp.maximum(norms[:, None] + norms[None, :] - 2 * gram, 0)
    distances = jnp.where(jnp.eye(len(rows), dtype=bool), 0, distances)
    return jnp.where(finite[:, None] & finite[None, :], distances, jnp.inf)


def sorted_rows(gradients: Float[Array, "M D"]) -> Float[Array, "M D"]:
    """Sort each coordinate over the workers, in float32 or wider.

    A NaN counts as positive infinity: an extreme value, which the coordinate-wise
    rules then cut off.
    """
    values = widen(gradients)
    values = jnp.where(jnp.isnan(values), jnp.inf, values)
    if len(values) > _MAX_NETWORK_WORKERS:
        return jnp.sort(values, axis=0)
    rows = list(values)
    for low, high in _odd_even_merge_network(len(rows)):
        rows[low], rows[high] = (
            jnp.minimum(rows[low], rows[high]),
            jnp.maximum(rows[low], rows[high]),
        )
    return jnp.stack(rows)


def _odd_even_merge_network(size: int) -> list[tuple[int, int]]:
    """Batcher's comparators, as pairs (where the smaller goes, the larger)."""
    comparators = []
    run = 1
    while run < size:
        step = run
        while step >= 1:
            for start in range(step % run, size - step, 2 * step):
                for low in range(start, min(start + step, size - step)):
                    # Compare only inside one pair of runs that are being merged.
                    if low // (2 * run) == (low + step) // (2 * run):
                        comparators.append((low, low + step))
            step //= 2
        run *= 2
    return comparators


@checked
def mean_near_median(
    gradients: Float[Array, "M D"], num_kept: int
) -> Float[Array, " D"]:
    """Mean of the values of every coordinate nearest to its median."""
    check_size("num_kept", num_kept, 1)
    ordered = sorted_rows(gradients)
    num_dropped = len(ordered) - num_kept
    twice_median = 2 * middle(ordered)
    moves = [
        ordered[s] + ordered[s + num_kept] < twice_median for s in range(num_dropped)
    ]
    total = count = jnp.zeros_like(twice_median)
    # Row by row: in whole arrays XLA would sort anew for each of the rows.
    for position, value in enumerate(ordered):
        kept = jnp.isfinite(value)
        if position < num_dropped:
            kept &= ~moves[position]
        if position >= num_kept:
            kept &= moves[position - num_kept]
        total += jnp.where(kept, value, 0)
        count += kept.astype(count.dtype)
    return (total / jnp.maximum(count, 1)).astype(gradients.dtype)


def middle(ordered: Float[Array, "M D"]) -> Float[Array, " D"]:
    """Median of values that are sorted along the workers."""
    count = len(ordered)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def products_around_median(gradients: Float[Array, "M D"]) -> Float[Array, "M M"]:
    """Scalar products of the finite rows, seen from their coordinate-wise median.

    So those of ordinary rows are exact, whatever the others are. A row that is not
    finite is put at the median.
    """
    finite = finite_rows(gradients)
    median = middle(sorted_rows(jnp.where(finite[:, None], gradients, jnp.inf)))
    median = jnp.where(jnp.isfinite(median), median, 0)
    offsets = jnp.where(finite[:, None], widen(gradients) - median[None, :], 0)
    return jnp.matmul(offsets, offsets.T, precision=jax.lax.Precision.HIGHEST)


def covariance(
    products: Float[Array, "M M"], weights: Float[Array, " M"]
) -> Float[Array, "M M"]:
    r"""What has the eigenvalues of the rows' weighted covariance matrix.

    With weights $w$ of sum 1 it is $\sqrt{w_i w_j} (g_i - \mu)^\top (g_j - \mu)$, of
    the scalar `products` $g_i^\top g_j$ from any origin.
    """
    to_mean = jnp.matmul(products, weights, precision=jax.lax.Precision.HIGHEST)
    square = jnp.sum(to_mean * weights)
    centred = products - to_mean[:, None] - to_mean[None, :] + square
    root = jnp.sqrt(weights)
    return centred * root[:, None] * root[None, :]

"""Rules that go by the distances between rows: the Krum family and the medians.

Shapes: `M` workers, `D` coordinates; row m of `gradients` is worker m's gradient.
`f` is the number of Byzantine workers that a rule assumes. A row that is not finite
(`rows.finite_rows`) is infinitely far from every other and never enters a result; if
no row is finite the aggregate is the zero vector.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from signfd_jax._checks import check_count, check_number, check_size, checked
from signfd_jax.aggregators._rows import (
    finite_rows,
    mean_near_median,
    mean_of_rows,
    require_workers,
    squared_distances,
    sum_of_rows,
    widen,
)
from signfd_jax.aggregators.coordinate import coordinate_median

__all__ = ["bulyan", "centered_clipping", "geometric_median", "krum", "multi_krum"]


@checked
def krum(
    gradients: Float[Array, "M D"],
    num_byzantine: int,
    *,
    num_neighbours: int | None = None,
) -> Float[Array, " D"]:
    r"""The row whose nearest neighbours are nearest: it never mixes rows.

    Row i scores $s_i = \sum_{j \in N_i} \|g_i - g_j\|^2$ over the set $N_i$ of its
    nearest other rows; the row of the smallest score is returned, the first of them
    when several tie.

    Args:
        gradients: one row for each worker.
        num_byzantine: f; M > 2f + 2.
        num_neighbours: size of $N_i$; M - f - 2 by default, as in the paper. ByzFL
            takes M - f - 1.

    Returns:
        One of the rows.

    Raises:
        ValueError: M <= 2f + 2 with f > 0, or `num_neighbours` not in [1, M - 1].

    Examples:
        >>> rows = jnp.array([[1.0], [2.0], [2.1], [3.0], [99.0]])
        >>> print(krum(rows, num_byzantine=1))
        [2.1]

    References:
        Blanchard et al., [Machine Learning with Adversaries: Byzantine Tolerant
        Gradient Descent](https://arxiv.org/abs/1703.02757), NeurIPS 2017.
    """
    return multi_krum(
        gradients, num_byzantine, num_selected=1, num_neighbours=num_neighbours
    )


@checked
def multi_krum(
    gradients: Float[Array, "M D"],
    num_byzantine: int,
    *,
    num_selected: int | None = None,
    num_neighbours: int | None = None,
) -> Float[Array, " D"]:
    """Mean of the rows with the smallest Krum scores.

    Args:
        gradients: one row for each worker.
        num_byzantine: f; M > 2f + 2.
        num_selected: how many rows are averaged; M - f by default. With 1 it is
            Krum.
        num_neighbours: how many neighbours a score sums; M - f - 2 by default. ByzFL
            takes M - f - 1.

    Returns:
        The mean of the selected rows.

    Raises:
        ValueError: M <= 2f + 2 with f > 0, `num_selected` not in [1, M], or
            `num_neighbours` not in [1, M - 1].

    Examples:
        >>> rows = jnp.array([[1.0], [2.0], [2.1], [3.0], [99.0]])
        >>> print(multi_krum(rows, num_byzantine=1))
        [2.025]

    References:
        Blanchard et al., [Machine Learning with Adversaries: Byzantine Tolerant
        Gradient Descent](https://arxiv.org/abs/1703.02757), NeurIPS 2017.
    """
    count, f = len(gradients), num_byzantine
    require_workers("krum", count, f, 2 * f + 3, "M > 2f + 2")
    if num_neighbours is None:
        num_neighbours = min(max(count - f - 2, 1), count - 1)
    elif type(num_neighbours) is not int or not 1 <= num_neighbours <= count - 1:
        raise ValueError(
            f"num_neighbours is {num_neighbours}, but each of the {count} workers has "
            f"{count - 1} others; give 1 to {count - 1}, or None for M - f - 2"
        )
    if num_selected is None:
        num_selected = count - f
    elif type(num_selected) is not int or not 1 <= num_selected <= count:
        raise ValueError(
            f"num_selected is {num_selected}, but there are {count} workers; give 1 "
            f"to {count}, or None for M - f"
        )
    finite = finite_rows(gradients)
    distances = squared_distances(gradients)
    others = jnp.where(jnp.eye(count, dtype=bool), jnp.inf, distances)
    scores = jnp.sum(jnp.sort(others, axis=1)[:, :num_neighbours], axis=1)
    # With too few finite rows every score is infinite; a finite row still goes first.
    scores = jnp.where(finite, jnp.minimum(scores, _largest(scores)), jnp.inf)
    best = jnp.argsort(scores)[:num_selected]
    selected = jnp.zeros(count, bool).at[best].set(True)
    return mean_of_rows(gradients, selected & finite)


@checked
def bulyan(gradients: Float[Array, "M D"], num_byzantine: int) -> Float[Array, " D"]:
    r"""Krum picks M - 2f rows one by one; MeaMed aggregates them.

    $\theta = M - 2f$ times, the row that Krum prefers among those that remain moves
    to the selection. Then each coordinate is the mean of the $\theta - 2f$ selected
    values nearest to the selection's median.

    Among r remaining rows Krum counts max(r - f - 2, f + 1) neighbours: in the last
    picks r falls below Krum's own precondition, and f + 1 is what it needs there.

    Args:
        gradients: one row for each worker.
        num_byzantine: f; M >= 4f + 3.

    Returns:
        The aggregate.

    Raises:
        ValueError: M < 4f + 3 with f > 0.

    Examples:
        >>> rows = jnp.array([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [99.0]])
        >>> print(bulyan(rows, num_byzantine=1))
        [4.]

    References:
        El Mhamdi, Guerraoui and Rouault, [The Hidden Vulnerability of Distributed
        Learning in Byzantium](https://arxiv.org/abs/1802.07927), ICML 2018.
    """
    count, f = len(gradients), num_byzantine
    require_workers("bulyan", count, f, 4 * f + 3, "M >= 4f + 3")
    finite = finite_rows(gradients)
    distances = squared_distances(gradients)
    # Each row's others, nearest first; sorted once, then walked over in every pick.
    neighbours = jnp.argsort(
        jnp.where(jnp.eye(count, dtype=bool), -1, distances), axis=1
    )[:, 1:]
    nearest_first = jnp.take_along_axis(distances, neighbours, axis=1)

    def pick(position, remaining: Bool[Array, " M"]):
        num_neighbours = jnp.maximum(count - position - f - 2, f + 1)
        present = remaining[neighbours]
        counted = present & (jnp.cumsum(present, axis=1) <= num_neighbours)
        scores = jnp.sum(jnp.where(counted, nearest_first, 0), axis=1)
        scores = jnp.where(finite, jnp.minimum(scores, _largest(scores)), jnp.inf)
        ranking = jnp.where(remaining, jnp.where(finite, 0, 1), 2)
        best = jnp.lexsort((scores, ranking))[0]
        return remaining.at[best].set(False)

    remaining = jax.lax.fori_loop(0, count - 2 * f, pick, jnp.ones(count, bool))
    chosen = jnp.argsort(remaining)[: count - 2 * f]  # False, the selected, first.
    selection = jnp.where(finite[:, None], gradients, jnp.nan)[chosen]
    return mean_near_median(selection, count - 4 * f)


@checked
def geometric_median(
    gradients: Float[Array, "M D"],
    *,
    smoothing: float = 1e-6,
    max_iterations: int = 100,
    tolerance: float = 1e-5,
    start: Float[Array, " D"] | None = None,
) -> Float[Array, " D"]:
    r"""The point with the smallest sum of distances to the rows.

    Smoothed Weiszfeld iterations: $z \leftarrow \sum_i w_i g_i / \sum_i w_i$ with
    $w_i = 1 / \max(\nu, \|z - g_i\|)$, until a step is shorter than `tolerance`
    times the mean distance to the rows.

    Args:
        gradients: one row for each worker.
        smoothing: $\nu > 0$, in the unit of the gradients.
        max_iterations: the most iterations, each two passes over the rows.
        tolerance: relative length of a step that counts as converged. With 0 all
            `max_iterations` are done.
        start: where to start; the coordinate-wise median by default, near the answer
            whatever the outliers. ByzFL starts from zero, with `smoothing=0.1`, and
            does 3 iterations.

    Returns:
        The geometric median, up to smoothing and tolerance.

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> rows = jnp.array([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [99.0, 0.0]])
        >>> print(geometric_median(rows).round(2))
        [1. 0.]

    References:
        Pillutla, Kakade and Harchaoui, [Robust Aggregation for Federated Learning](
        https://arxiv.org/abs/1912.13445), IEEE Transactions on Signal Processing
        2022.
    """
    check_number("smoothing", smoothing, 0, float("inf"))
    check_count("max_iterations", max_iterations, 1)
    check_number("tolerance", tolerance, 0, float("inf"))
    finite = finite_rows(gradients)
    rows = jnp.where(finite[:, None], widen(gradients), 0)
    point = coordinate_median(rows) if start is None else start.astype(rows.dtype)

    def distances_to(point):
        return jnp.sqrt(jnp.sum(jnp.square(rows - point[None, :]), axis=1))

    def moving(carry):
        _, step, scale, iteration = carry
        return (step > tolerance * scale) & (iteration < max_iterations)

    def move(carry):
        point, _, _, iteration = carry
        distances = distances_to(point)
        weights = jnp.where(finite, 1 / jnp.maximum(distances, smoothing), 0)
        total = jnp.matmul(weights, rows, precision=jax.lax.Precision.HIGHEST)
        moved = total / jnp.maximum(jnp.sum(weights), jnp.finfo(rows.dtype).tiny)
        step = jnp.sqrt(jnp.sum(jnp.square(moved - point)))
        scale = jnp.mean(jnp.where(finite & jnp.isfinite(distances), distances, 0))
        return moved, step, scale, iteration + 1

    infinite = jnp.full((), jnp.inf, rows.dtype)
    carry = (point, infinite, jnp.ones_like(infinite), jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(moving, move, carry)[0].astype(gradients.dtype)


@checked
def centered_clipping(
    gradients: Float[Array, "M D"],
    center: Float[Array, " D"],
    *,
    clip_norm: float = 10.0,
    num_iterations: int = 1,
) -> Float[Array, " D"]:
    r"""Move a centre by the mean of the rows' clipped offsets from it.

    $v \leftarrow v + \frac{1}{M} \sum_i (g_i - v) \min(1, \tau / \|g_i - v\|)$: no
    worker moves the centre by more than $\tau / M$ in an iteration. As a rule
    (`recurrent(centered_clipping)`) the centre is the aggregate of the last round.

    Args:
        gradients: one row for each worker.
        center: v, the aggregate of the last round; zero in the first.
        clip_norm: the radius $\tau$, in the unit of the gradients.
        num_iterations: how many times the centre moves.

    Returns:
        The new centre. A row that is not finite counts as sent at the centre: it
        moves nothing.

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> rows = jnp.array([[1.0], [2.0], [99.0]])
        >>> print(centered_clipping(rows, jnp.zeros(1), clip_norm=3.0))
        [2.]

    References:
        Karimireddy, He and Jaggi, [Learning from History for Byzantine Robust
        Optimization](https://arxiv.org/abs/2012.10333), ICML 2021.
    """
    check_number("clip_norm", clip_norm, 0, float("inf"))
    check_size("num_iterations", num_iterations, 1)
    finite = finite_rows(gradients)
    rows = jnp.where(finite[:, None], widen(gradients), 0)

    def move(_, center):
        offsets = jnp.where(finite[:, None], rows - center[None, :], 0)
        norms = jnp.sqrt(jnp.sum(jnp.square(offsets), axis=1))
        scale = jnp.where(norms > clip_norm, clip_norm / norms, 1)
        return center + sum_of_rows(offsets * scale[:, None]) / len(rows)

    moved = jax.lax.fori_loop(0, num_iterations, move, center.astype(rows.dtype))
    return moved.astype(gradients.dtype)


def _largest(values: Float[Array, "*shape"]):
    return jnp.finfo(values.dtype).max

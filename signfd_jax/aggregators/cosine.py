"""Rules that go by angles between rows: clipped clustering, FLAME, FoolsGold, RFLBAT.

Shapes: `M` workers, `D` coordinates; row m of `gradients` is worker m's gradient.
Clipped clustering and FoolsGold remember more than their last aggregate, so they are
functions that make a `Rule`. None is told the number of Byzantine workers. A row that
is not finite (`rows.finite_rows`) is never used; if no row is left, the aggregate is
the zero vector.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from signfd_jax._checks import check_number, check_size, checked
from signfd_jax.aggregators._clusters import (
    cosines,
    first_majority,
    k_means,
    larger_of_two,
    number_of_clusters,
)
from signfd_jax.aggregators._rows import (
    covariance,
    mean_of_rows,
    products_around_median,
    rows_and_norms,
    shorten,
)
from signfd_jax.aggregators.base import Rule

__all__ = ["clipped_clustering", "flame", "foolsgold", "rflbat"]


def clipped_clustering(*, window: int = 100) -> Rule:
    r"""Clip to the median norm so far, and average the larger of two clusters.

    The rows are shortened to the median $\tau$ of all norms of the last rounds, this
    one included: $g_m \min(1, \tau / \|g_m\|)$. Average linkage on their cosine
    distances $1 - \cos(g_i, g_j)$ ends with two clusters, and the rows of the larger
    are averaged. Of two of one size it is the one with the smaller mean distance
    inside.

    Args:
        window: how many rounds of norms are remembered. The paper remembers all.

    Returns:
        The rule. Its state is the norms `[window, M]`, -1 where there is none, and the
        number of rounds so far.

    Raises:
        ValueError: `window` is less than 1.

    Examples:
        >>> rule = clipped_clustering()
        >>> rows = jnp.array([[1.0, 2.0], [1.0, 2.1], [2.0, 4.0], [-50.0, -90.0]])
        >>> state = rule.init(num_workers=4, dimension=2)
        >>> print(rule.aggregate(state, rows)[0].round(1))
        [1.2 2.4]

    References:
        Li, Ngai and Voigt, [An Experimental Study of Byzantine-Robust Aggregation
        Schemes in Federated Learning](https://arxiv.org/abs/2302.07173), IEEE
        Transactions on Big Data 2023.
    """
    check_size("window", window, 1)

    def init(num_workers, dimension, dtype=jnp.float32):
        norms = jnp.full((window, num_workers), -1, _wide(dtype))
        return norms, jnp.zeros((), jnp.int32)

    def aggregate(state, gradients):
        return _clipped_clustering(gradients, *state)

    return Rule(init, aggregate)


@checked
def _clipped_clustering(
    gradients: Float[Array, "M D"], norms: Float[Array, "W M"], rounds: Int[Array, ""]
):
    """The aggregate and the new state."""
    rows, lengths, finite = rows_and_norms(gradients)
    seen = jnp.where(finite, lengths, -1)
    norms = norms.at[rounds % len(norms)].set(seen)
    rows = shorten(rows, lengths, _median(norms, norms >= 0))
    kept = larger_of_two(1 - cosines(rows), finite)
    aggregate = mean_of_rows(rows, kept).astype(gradients.dtype)
    return aggregate, (norms, rounds + 1)


@checked
def flame(
    key: PRNGKeyArray,
    gradients: Float[Array, "M D"],
    *,
    noise_level: float = 0.0,
) -> Float[Array, " D"]:
    r"""FLAME: average the majority cluster by cosine, clipped to the median norm.

    The paper clusters cosine distances by HDBSCAN, with at least
    $\lfloor M / 2 \rfloor + 1$ rows in a cluster and one neighbour for the density.
    Then there is no second cluster, and HDBSCAN's is that of single linkage: rows are
    joined in the order of their distances, and the first cluster to hold more than half
    is it. That is what is computed here, in $O(M^3)$ time. Rows that are joined at the
    very distance at which it outgrows half belong to it. The paper compares local
    models; a rule sees updates, so here the distances are $1 - \cos(g_i, g_j)$.

    With the median $S$ of all norms, the rows of the cluster are shortened to
    $g_m \min(1, S / \|g_m\|)$ and averaged. Gaussian noise of standard deviation
    $\lambda S$ is added to every coordinate.

    Args:
        key: draws the noise; consumed.
        gradients: one row for each worker.
        noise_level: $\lambda$, in units of the median norm. The noise is against
            backdoors and grows with D, so it is left out by default.

    Returns:
        The aggregate.

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> rows = jnp.array([[1.0, 2.0], [1.1, 1.9], [0.9, 2.1], [-50.0, -90.0]])
        >>> print(flame(jax.random.key(0), rows).round(1))
        [1. 2.]

    References:
        Nguyen et al., [FLAME: Taming Backdoors in Federated Learning](
        https://arxiv.org/abs/2101.02281), USENIX Security 2022.
    """
    check_number("noise_level", noise_level, 0, float("inf"))
    rows, lengths, finite = rows_and_norms(gradients)
    kept = first_majority(1 - cosines(rows), finite)
    median = _median(lengths, finite)
    aggregate = mean_of_rows(shorten(rows, lengths, median), kept)
    if not isinstance(noise_level, int | float) or noise_level > 0:
        noise = jax.random.normal(key, aggregate.shape, aggregate.dtype)
        aggregate += noise_level * median * noise
    return aggregate.astype(gradients.dtype)


def foolsgold(*, confidence: float = 1.0) -> Rule:
    r"""FoolsGold: the more two workers' sums of rows are alike, the less they weigh.

    Worker i's history $H_i$ is the sum of its rows so far. With $s_{ij}$ the cosine of
    $H_i$ and $H_j$, and $v_i = \max(0, \max_{j \ne i} s_{ij})$, a worker is pardoned
    for its likeness to one that is more like others: where $v_j > v_i$, $s_{ij}$ is
    multiplied by $v_i / v_j$. Then $\alpha_i = 1 - \max(0, \max_{j \ne i} s_{ij})$ is
    divided by the largest $\alpha$, and the weight of the row is

    $$w_i = \kappa \left(\ln \frac{\alpha_i}{1 - \alpha_i} + \frac{1}{2}\right),$$

    cut off at 0 and 1. The aggregate is $\sum_i w_i g_i / \sum_i w_i$. The paper does
    not divide by the sum of the weights, so that its steps are longer. It may also
    weigh the coordinates by the model's last layer, which a rule does not see: here all
    count alike.

    It is a defence against many copies of one liar, where honest workers have unlike
    data. **Workers that all send the same weigh nothing**, and then the aggregate is
    zero. A single liar is believed more than the honest.

    Args:
        confidence: $\kappa > 0$; 1 in the paper's experiments. Above it, fewer weights
            lie between 0 and 1.

    Returns:
        The rule. Its state is the histories `[M, D]`, in float32 or wider.

    Raises:
        ValueError: `confidence` is not positive.

    Examples:
        >>> rule = foolsgold()
        >>> rows = jnp.array([[3.0, 0.0], [0.0, 3.0], [-9.0, -9.0], [-9.0, -9.0]])
        >>> state = rule.init(num_workers=4, dimension=2)
        >>> print(rule.aggregate(state, rows)[0])
        [1.5 1.5]

    References:
        Fung, Yoon and Beschastnikh, [Mitigating Sybils in Federated Learning
        Poisoning](https://arxiv.org/abs/1808.04866), 2018; as *The Limitations of
        Federated Learning in Sybil Settings*, RAID 2020.
    """
    check_number("confidence", confidence, 1e-9, 1e9)

    def init(num_workers, dimension, dtype=jnp.float32):
        return jnp.zeros((num_workers, dimension), _wide(dtype))

    def aggregate(state, gradients):
        return _foolsgold(gradients, state, confidence)

    return Rule(init, aggregate)


@checked
def _foolsgold(
    gradients: Float[Array, "M D"], histories: Float[Array, "M D"], confidence
):
    """The aggregate and the new histories."""
    rows, _, finite = rows_and_norms(gradients)
    histories = histories + rows
    others = ~jnp.eye(len(rows), dtype=bool)
    alike = jnp.where(others, cosines(histories), 0)
    most = jnp.max(alike, axis=1, initial=0)
    pardoned = most[:, None] / jnp.where(most > 0, most, 1)[None, :]
    alike *= jnp.where(most[None, :] > most[:, None], pardoned, 1)
    unlike = 1 - jnp.max(alike, axis=1, initial=0)
    # Rounding must not part workers that send the same.
    unlike = jnp.where(finite & (unlike > 1e-5), unlike, 0)
    largest = jnp.max(unlike)
    share = unlike / jnp.where(largest > 0, largest, 1)
    weights = confidence * (jnp.log(share) - jnp.log1p(-share) + 0.5)
    weights = jnp.clip(weights, 0, 1)
    total = jnp.sum(weights)
    weights /= jnp.where(total > 0, total, 1)
    aggregate = jnp.matmul(weights, rows, precision=jax.lax.Precision.HIGHEST)
    return aggregate.astype(gradients.dtype), histories


@checked
def rflbat(
    gradients: Float[Array, "M D"],
    *,
    outlier_factor: float = 10.0,
    cluster_outlier_factor: float = 4.0,
    max_clusters: int = 10,
) -> Float[Array, " D"]:
    r"""RFLBAT: average the cluster of principal components with the least alike rows.

    Row m becomes the point $x_m$ of its first two principal components, with
    $d_m = \sum_j \|x_m - x_j\|$. Points with $d_m > \epsilon_1 \mathrm{median}(d)$ are
    dropped. K-means divides the others into clusters, as many as the gap statistic
    says. The score of a cluster is the median, over its rows, of the mean cosine of a
    row with the rows of the cluster. The cluster with the least score is kept; one that
    is a single row only if all are. In it, with the sums $d$ over its own points, those
    with $d_m > \epsilon_2 \mathrm{median}(d)$ are dropped. The other rows are averaged.

    It is a defence against backdoors, whose authors send much the same. **Which cluster
    is honest is told by that alone**: liars that are less alike than the honest are
    believed. Where the honest fall into several clusters, one of them is averaged. With
    about ten workers the gap statistic often sees one cluster where there are two; then
    the liars are averaged with the honest.

    What others draw at random is fixed here. K-means starts at the points that lower
    the sum of squared distances most, one after the other. The gap statistic has 20
    uniform sets, where others have five, and they are the same in every round. It takes
    the least $k$ with $G_k \ge G_{k+1} - s_{k+1}$, as BackFed does; other
    implementations have $s_k$. A second component below rounding counts as zero.

    Args:
        gradients: one row for each worker.
        outlier_factor: $\epsilon_1$, at least 1.
        cluster_outlier_factor: $\epsilon_2$, at least 1.
        max_clusters: the most clusters looked for.

    Returns:
        The mean of the rows that are left.

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> rows = jnp.array([[1.0, 2.0], [1.2, 1.8], [0.8, 2.2], [-9, -9], [-9, -9]])
        >>> print(rflbat(rows).round(1))
        [1. 2.]

    References:
        Wang et al., [RFLBAT: A Robust Federated Learning Algorithm against Backdoor
        Attack](https://arxiv.org/abs/2201.03772), 2022, as
        [BackFed](https://github.com/thinh-dao/BackFed) implements it.
    """
    check_number("outlier_factor", outlier_factor, 1, float("inf"))
    check_number("cluster_outlier_factor", cluster_outlier_factor, 1, float("inf"))
    check_size("max_clusters", max_clusters, 1)
    rows, _, finite = rows_and_norms(gradients)
    points = _two_components(gradients, finite)
    apart = jnp.linalg.norm(points[:, None] - points[None], axis=2)

    def central(chosen, factor):
        """Those of the chosen that are not far from the others of them."""
        total = _sums(apart, chosen)
        return chosen & (total <= factor * _median(total, chosen))

    ordinary = central(finite, outlier_factor)
    count = number_of_clusters(points, ordinary, max_clusters)
    labels = k_means(points, ordinary, count, max_clusters)
    alike = cosines(rows)

    def score(cluster):
        members = labels == cluster
        size = jnp.sum(members.astype(alike.dtype))
        each = _sums(alike, members) / jnp.maximum(size, 1)
        # A cosine is at most 1: a row alone has 2, and no row 3.
        return jnp.where(size > 1, _median(each, members), 3 - size)

    chosen = jnp.argmin(jax.vmap(score)(jnp.arange(max_clusters)))
    kept = central(labels == chosen, cluster_outlier_factor)
    return mean_of_rows(gradients, kept)


def _sums(matrix, chosen):
    """Of each row of the matrix, the sum over the chosen columns."""
    chosen = chosen.astype(matrix.dtype)
    return jnp.matmul(matrix, chosen, precision=jax.lax.Precision.HIGHEST)


def _two_components(gradients, present):
    """The rows' first two principal components, zero of those that are absent."""
    share = present.astype(np.promote_types(gradients.dtype, np.float32))
    share /= jnp.maximum(jnp.sum(share), 1)
    spread = covariance(products_around_median(gradients), share)
    values, vectors = jnp.linalg.eigh(spread)
    rounding = len(values) * jnp.finfo(values.dtype).eps * values[-1]
    values = jnp.where(values > rounding, values, 0)[-2:]
    points = vectors[:, -2:] * jnp.sqrt(values)[None, :]
    return points / jnp.sqrt(jnp.where(share > 0, share, 1))[:, None]


def _median(values, counted):
    """Median of those values that count, 0 if none does."""
    number = jnp.sum(counted)
    ordered = jnp.sort(jnp.where(counted, values, jnp.inf), axis=None)
    lower = jnp.take(ordered, jnp.maximum(number - 1, 0) // 2)
    upper = jnp.take(ordered, jnp.minimum(number // 2, len(ordered) - 1))
    return jnp.where(number > 0, (lower + upper) / 2, 0)


def _wide(dtype):
    return np.promote_types(dtype, np.float32)

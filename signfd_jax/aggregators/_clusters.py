"""Which rows belong together: the clusterings that filtering rules ask for.

Shapes: `M` points or rows, of which `present` says which count. All are deterministic,
and none depends on the order of the rows, but for ties.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def cosines(rows: Float[Array, "M D"]) -> Float[Array, "M M"]:
    """Cosines of the angles between finite rows; 0 where a row is zero."""
    # First to a largest entry of 1: then no square overflows.
    rows = _divided(rows, jnp.max(jnp.abs(rows), axis=1, initial=0))
    rows = _divided(rows, jnp.sqrt(jnp.sum(jnp.square(rows), axis=1)))
    products = jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.clip(products, -1, 1)


def larger_of_two(
    distances: Float[Array, "M M"], present: Bool[Array, " M"]
) -> Bool[Array, " M"]:
    """The larger of the two clusters at which average linkage ends.

    Of two of one size it is the one with the smaller mean distance inside.
    """
    count = len(distances)
    pairs = present[:, None] & present[None, :]
    inside = jnp.where(pairs, distances, 0)
    apart = jnp.where(pairs & ~jnp.eye(count, dtype=bool), distances, jnp.inf)

    def merge(_, carry):
        apart, labels, sizes = carry
        one, other = jnp.divmod(jnp.argmin(apart), count)  # the first: one < other
        share = sizes[one] / jnp.maximum(sizes[one] + sizes[other], 1)
        mean = share * apart[one] + (1 - share) * apart[other]
        mean = mean.at[one].set(jnp.inf)
        merged = apart.at[one].set(mean).at[:, one].set(mean)
        merged = merged.at[other].set(jnp.inf).at[:, other].set(jnp.inf)
        after = (
            merged,
            jnp.where(labels == other, one, labels),
            sizes.at[one].add(sizes[other]).at[other].set(0),
        )
        more = jnp.sum(sizes > 0) > 2
        return jax.tree.map(lambda new, old: jnp.where(more, new, old), after, carry)

    carry = (apart, jnp.arange(count), present.astype(distances.dtype))
    _, labels, sizes = jax.lax.fori_loop(0, max(count - 2, 0), merge, carry)
    members = (labels[None, :] == jnp.arange(count)[:, None]) & present[None, :]
    chosen = members.astype(distances.dtype)
    within = jnp.sum(jnp.matmul(chosen, inside) * chosen, axis=1)
    width = within / jnp.square(jnp.maximum(sizes, 1))
    return members[jnp.lexsort((width, -sizes))[0]]


def first_majority(
    distances: Float[Array, "M M"], present: Bool[Array, " M"]
) -> Bool[Array, " M"]:
    """The cluster that is first to hold more than half, by single linkage.

    Rows are joined in the order of their distances. Those joined at the distance at
    which the cluster outgrows half belong to it too.
    """
    pairs = present[:, None] & present[None, :]
    reached = jnp.where(pairs, distances, jnp.inf)
    reached = jnp.where(jnp.eye(len(reached), dtype=bool), 0, reached)

    def through(row, reached):
        """The longest step of the best path, which may now pass this row."""
        path = jnp.maximum(reached[:, row, None], reached[None, row, :])
        return jnp.minimum(reached, path)

    reached = jax.lax.fori_loop(0, len(reached), through, reached)
    majority = jnp.sum(present) // 2  # beside the row itself
    joined = jnp.take(jnp.sort(reached, axis=1), majority, axis=1)
    return present & (joined <= jnp.min(joined, where=present, initial=jnp.inf))


def largest_mean_shift(points: Float[Array, "M K"]) -> Bool[Array, " M"]:
    """Members of the largest cluster of flat-kernel mean shift, as scikit-learn's."""
    count = len(points)

    def distances(a, b):
        return jnp.linalg.norm(a[:, None] - b[None], axis=2)

    # The mean distance to the (M / 2)-th nearest point, itself being the first. Shares
    # are ratios of counts, so many distances tie: rounding must not part them.
    nearest_first = jnp.sort(distances(points, points), axis=1)
    bandwidth = jnp.mean(nearest_first[:, max(count // 2, 1) - 1])
    bandwidth = bandwidth * (1 + 1e-5) + 1e-6

    def within(a, b):
        return distances(a, b) <= bandwidth

    def moving(carry):
        _, step, iteration = carry
        return (step > 1e-3 * bandwidth) & (iteration < 300)

    def shift(carry):
        centres, _, iteration = carry
        near = within(centres, points).astype(points.dtype)
        near /= jnp.maximum(jnp.sum(near, axis=1, keepdims=True), 1)
        moved = jnp.matmul(near, points, precision=jax.lax.Precision.HIGHEST)
        step = jnp.max(jnp.linalg.norm(moved - centres, axis=1))
        return moved, step, iteration + 1

    carry = (points, jnp.full((), jnp.inf, points.dtype), jnp.zeros((), jnp.int32))
    centres = jax.lax.while_loop(moving, shift, carry)[0]

    # The centre with most points absorbs those within a bandwidth, and so on.
    popularity = jnp.sum(within(centres, points), axis=1)
    rank = jnp.argsort(-popularity)
    centres = centres[rank]
    close = within(centres, centres)

    def absorb(index, alive):
        swallowed = close[index] & (jnp.arange(count) > index) & alive[index]
        return alive & ~swallowed

    alive = jax.lax.fori_loop(0, count, absorb, jnp.ones(count, bool))
    distance = jnp.where(alive[None, :], distances(points, centres), jnp.inf)
    label = jnp.argmin(distance, axis=1)
    member = jnp.min(distance, axis=1) <= bandwidth
    size = jnp.zeros(count, jnp.int32).at[label].add(member.astype(jnp.int32))
    return member & (label == jnp.argmax(size))


def number_of_clusters(
    points: Float[Array, "M K"],
    present: Bool[Array, " M"],
    most: int,
    *,
    power: int = 1,
) -> Int[Array, ""]:
    r"""How many clusters k-means should look for: the gap statistic.

    The least $k$ with $G_k \ge G_{k+1} - s_{k+1}$, or `most`. $G_k$ is how far the
    logarithm of the mean distance to the nearest of $k$ centres, to the power of 1 or
    2, lies below its mean over 20 sets of as many uniform points; $s_k$ is its
    deviation over the sets, times $\sqrt{1 + 1/20}$. Every axis is first brought to
    [0, 1].
    """

    def extreme(of, initial):
        where = present[:, None]
        return of(points, axis=0, where=where, initial=initial, keepdims=True)

    low, high = extreme(jnp.min, jnp.inf), extreme(jnp.max, -jnp.inf)
    wide = high > low
    scaled = (points - low) / jnp.where(wide, high - low, 1)
    uniform = np.random.default_rng(0).uniform(size=(20, *points.shape))
    # An axis on which the points do not differ is none of the uniform ones either.
    uniform = jnp.where(wide[None], jnp.asarray(uniform, points.dtype), 0)
    size = jnp.sum(present)
    drawn = jnp.broadcast_to(jnp.arange(len(points)) < size, uniform.shape[:2])

    def spreads(of):
        """The logarithm of the mean distance, for each number of clusters."""
        points, present = of
        starts = _starts(points, present, most)

        def spread(count):
            _, nearest = _k_means(points, present, starts, count)
            far = jnp.sqrt(nearest) if power == 1 else nearest
            total = jnp.sum(jnp.where(present, far, 0))
            mean = total / jnp.maximum(size, 1).astype(total.dtype)
            # Rounding must not part points that are the same.
            return jnp.log(mean + 1e-5**power)

        return jax.vmap(spread)(jnp.arange(1, most + 1))

    sets = jnp.concatenate([scaled[None], uniform])
    found = jax.lax.map(spreads, (sets, jnp.concatenate([present[None], drawn])))
    gap = jnp.mean(found[1:], axis=0) - found[0]
    error = jnp.std(found[1:], axis=0) * (1 + 1 / len(uniform)) ** 0.5
    enough = jnp.append(gap[:-1] >= gap[1:] - error[1:], True)
    return jnp.argmax(enough) + 1


def k_means(
    points: Float[Array, "M K"], present: Bool[Array, " M"], count, most: int
) -> Int[Array, " M"]:
    """The cluster, 0 to `count` - 1, of each point; -1 of those that are absent.

    `count` of at most `most` centres start at the points that lower the sum of squared
    distances most, one after the other, and move as in Lloyd's algorithm.
    """
    labels, _ = _k_means(points, present, _starts(points, present, most), count)
    return jnp.where(present, labels, -1)


def _starts(points, present, most):
    """The points at which k-means starts, the best first."""
    apart = _squares_between(points, points)

    def add(nearest, _):
        total = jnp.minimum(nearest[:, None], apart)
        total = jnp.sum(jnp.where(present[:, None], total, 0), axis=0)
        best = jnp.argmin(jnp.where(present, total, jnp.inf))
        return jnp.minimum(nearest, apart[best]), points[best]

    return jax.lax.scan(add, jnp.full_like(points[:, 0], jnp.inf), length=most)[1]


def _k_means(points, present, centres, count):
    """Each point's nearest of the first centres, and its squared distance to it."""
    used = jnp.arange(len(centres)) < count

    def assign(centres):
        apart = jnp.where(used[None, :], _squares_between(points, centres), jnp.inf)
        return jnp.argmin(apart, axis=1), jnp.min(apart, axis=1)

    def moving(carry):
        _, _, moved, iteration = carry
        return moved & (iteration < 300)

    def move(carry):
        centres, labels, _, iteration = carry
        members = labels[None, :] == jnp.arange(len(centres))[:, None]
        members = (members & present[None, :]).astype(points.dtype)
        sizes = jnp.sum(members, axis=1)
        share = members / jnp.maximum(sizes, 1)[:, None]
        means = jnp.matmul(share, points, precision=jax.lax.Precision.HIGHEST)
        centres = jnp.where((sizes > 0)[:, None], means, centres)
        after = assign(centres)[0]
        return centres, after, jnp.any((after != labels) & present), iteration + 1

    carry = (centres, assign(centres)[0], jnp.array(True), jnp.zeros((), jnp.int32))
    return assign(jax.lax.while_loop(moving, move, carry)[0])


def _squares_between(a, b):
    """Squared distances between each of some points and each of others."""
    return jnp.sum(jnp.square(a[:, None] - b[None]), axis=2)


def _divided(rows, by):
    """Each row divided by its number, where that is not zero."""
    return rows / jnp.where(by > 0, by, 1)[:, None]

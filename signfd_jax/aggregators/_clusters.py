"""Which rows belong together: the clusterings that filtering rules ask for.

Shapes: `M` points of `K` coordinates.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


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

"""Which workers vote alike: two sides, and how sure each worker's side is.

Shapes: `M` workers, `K` of them a committee.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from signfd_jax.decoders._pairs import ramp


def two_sides(
    correlation: Float[Array, "K M"],
    error: Float[Array, "K M"],
    effective: Float[Array, " M"],
    members: Int32[Array, " K"],
    significant,
) -> tuple[Float[Array, " K"], Float[Array, " K"]]:
    """The committee's sides, by their sign, and how much each member counts.

    The leading eigenvector of the significant signs, weighted by effective workers.
    """
    links = jnp.sign(correlation) * ramp(jnp.abs(correlation) / error, significant)
    own = effective[members]
    root = jnp.sqrt(own)
    vector = jnp.linalg.eigh(links[:, members] * jnp.outer(root, root))[1][:, -1]
    linked = jnp.any(links[:, members] != 0, axis=1)  # without: any vector leads
    vector = jnp.where(linked & (own > 0), vector / jnp.maximum(root, 1e-6), 0.0)
    largest = jnp.maximum(jnp.max(jnp.abs(vector)), 1e-9)
    return vector, jnp.clip(2 * jnp.abs(vector) / largest, 0.0, 1.0) * own


def side_tests(
    vector: Float[Array, " K"],
    share: Float[Array, "K M"],
    correlation: Float[Array, "K M"],
    error: Float[Array, "K M"],
):
    """A t-test of each worker's side, and the weakest of those with one side each.

    Liars who oppose the honest agree with each other far more than these do. Taken
    together, that would look like the spread of unlike data. So the spread is that
    within the sides, and each of them must say the same.

    Returns:
        Mean correlation with the first side less that with the second, float32 `[M]`;
        its standard error; the smaller test of both sides, if the first one is right
        and if the second one is.
    """
    shares = jnp.maximum(jnp.sum(share, axis=0), 1e-9)
    sampling = jnp.sum((share * error) ** 2, axis=0) / shares**2
    sided = correlation * jnp.sign(vector)[:, None]
    aligned = jnp.sum(share * sided, axis=0) / shares

    @jax.vmap
    def of_side(side):
        mine = jnp.where((side * vector > 0)[:, None], share, 0.0)
        held = jnp.maximum(jnp.sum(mine, axis=0), 1e-9)
        number = held**2 / jnp.maximum(jnp.sum(mine**2, axis=0), 1e-9)
        mean = jnp.sum(mine * sided, axis=0) / held
        # Beyond the noise, which is in `sampling`.
        spread = (sided - mean[None]) ** 2 - error**2
        spread = jnp.maximum(jnp.sum(mine * spread, axis=0) / held, 0.0)
        spread = spread / jnp.maximum(number - 1, 1.0)
        test = mean / jnp.sqrt(jnp.maximum(sampling + spread, 1e-18))
        # A side has half of the evidence, and one worker no say.
        return math.sqrt(2) * test, number > 1.5, spread * (held / shares) ** 2

    tests, counts, spread = of_side(jnp.array([1.0, -1.0], jnp.float32))
    deviation = jnp.sqrt(jnp.maximum(sampling + jnp.sum(spread, axis=0), 1e-18))
    smallest = jnp.min(tests, axis=0, where=counts, initial=jnp.inf)
    largest = jnp.max(tests, axis=0, where=counts, initial=-jnp.inf)
    return aligned, deviation, (smallest, -largest)


def reached_by_half(tests: Float[Array, " M"], shares: Float[Array, " M"]):
    """The largest number that more than half of the shares reach."""
    order = jnp.argsort(tests, descending=True)
    summed = jnp.cumsum(shares[order])
    return tests[order][jnp.argmax(summed > jnp.sum(shares) / 2)]

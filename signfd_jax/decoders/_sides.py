"""Which workers vote alike: two sides, and how sure each worker's side is.

Shapes: `M` workers, `K` of them a committee.
"""

import math

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
    sided = correlation * jnp.sign(vector)[:, None]
    sides = jnp.stack([vector > 0, vector < 0]).astype(jnp.float32)

    # A product, which is ten times as fast as a sum over each side.
    def of_sides(values):
        return jnp.matmul(sides, values, precision="highest")

    held = of_sides(share)
    agreeing = of_sides(share * sided)
    noise = of_sides((share * error) ** 2)
    shares = jnp.maximum(held[0] + held[1], 1e-9)
    aligned = (agreeing[0] + agreeing[1]) / shares
    sampling = (noise[0] + noise[1]) / shares**2

    held = jnp.maximum(held, 1e-9)
    mean = agreeing / held
    number = held**2 / jnp.maximum(of_sides(share**2), 1e-9)
    # Beyond the noise, which is in `sampling`.
    spread = of_sides(share * (sided**2 - error**2)) / held - mean**2
    spread = jnp.maximum(spread, 0.0) / jnp.maximum(number - 1, 1.0)
    # A side has half of the evidence, and one worker no say.
    tests = math.sqrt(2) * mean / jnp.sqrt(jnp.maximum(sampling[None] + spread, 1e-18))
    counts = number > 1.5
    spread = spread * (held / shares[None]) ** 2
    deviation = jnp.sqrt(jnp.maximum(sampling + spread[0] + spread[1], 1e-18))
    smallest = jnp.minimum(*jnp.where(counts, tests, jnp.inf))
    largest = jnp.maximum(*jnp.where(counts, tests, -jnp.inf))
    return aligned, deviation, (smallest, -largest)


def reached_by_half(tests: Float[Array, " M"], shares: Float[Array, " M"]):
    """The largest number that more than half of the shares reach."""
    order = jnp.argsort(tests, descending=True)
    summed = jnp.cumsum(shares[order])
    return tests[order][jnp.argmax(summed > jnp.sum(shares) / 2)]

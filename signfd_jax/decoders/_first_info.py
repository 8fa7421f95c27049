"""What a decoder knows before the first round, and what those that do not say tell."""

import jax.numpy as jnp

from signfd_jax.decoders.base import DecodeInfo


def first_info(num_workers: int) -> DecodeInfo:
    """What is told before the first round: that nobody's vote has weighed anything."""
    # Every leaf is an array of its own, so that a state can be donated.
    return DecodeInfo(
        weights=jnp.zeros((num_workers,), jnp.float32),
        crossover=jnp.full((num_workers,), 0.5, jnp.float32),
        margin=jnp.zeros((), jnp.float32),
        confidence=jnp.full((), -1.0, jnp.float32),
        polarity=jnp.zeros((num_workers,), jnp.float32),
        duplicates=jnp.full((num_workers,), -1, jnp.int32),
    )


def completed(info: DecodeInfo, num_workers: int) -> DecodeInfo:
    """The info of a round, with what its decoder does not say as before the first."""
    rest = zip(info, first_info(num_workers), strict=True)
    return DecodeInfo(*(first if said is None else said for said, first in rest))

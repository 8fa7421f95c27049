"""What a decoder knows before the first round."""

import jax.numpy as jnp

from signfd_jax.decoders.base import DecodeInfo


def first_info(num_workers: int) -> DecodeInfo:
    """What is told before the first round: that nobody's vote has weighed anything."""
    # Every leaf is an array of its own, so that a state can be donated.
    return DecodeInfo(
        weights=jnp.zeros((num_workers,), jnp.float32),
        crossover=jnp.full((num_workers,), 0.5, jnp.float32),
        margin=jnp.zeros((), jnp.float32),
    )

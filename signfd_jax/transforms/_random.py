"""Signs that are drawn."""

import jax
import jax.numpy as jnp


def random_signs(key, gradient, bound):
    """Signs whose mean is that of `stochastic_sign`, like one leaf; NaN stays NaN."""
    gradient = jnp.asarray(gradient)
    mean = gradient.astype(jnp.float32) / jnp.asarray(bound, jnp.float32)
    uniform = jax.random.uniform(key, gradient.shape, jnp.float32, minval=-1)
    vote = jnp.where(uniform < mean, 1.0, -1.0)
    return jnp.where(jnp.isnan(mean), jnp.nan, vote).astype(gradient.dtype)

"""The decoder that every door of the library opens with."""

from signfd_jax.decoders.base import Decoder
from signfd_jax.decoders.correlation import correlation_defense

__all__ = ["default_decoder"]


def default_decoder() -> Decoder:
    """The decoder to take where none is named: `correlation_defense()`.

    The optax transformations, the mesh, `Experiment` and every command take it, for any
    number of workers.

    Returns:
        A `Decoder`.

    Examples:
        >>> import jax.numpy as jnp
        >>> state = default_decoder().init(600, jnp.zeros(3))
        >>> state.cd_mean.shape
        (64, 600)
    """
    return correlation_defense()

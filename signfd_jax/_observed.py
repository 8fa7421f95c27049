"""What one round shows: for eyes, records and plots, and never for the server.

Shapes: `M` workers.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from signfd_jax.decoders import DecodeInfo


class SimulationInfo(NamedTuple):
    """What one round shows.

    Attributes:
        loss: float32 scalar, mean loss before the step of the honest workers that took
            part; NaN where there was none.
        weights: float32 `[M]`, weight of each worker's vote (nats); None where the
            server has no sign decoder, here and below.
        crossover: float32 `[M]`, estimated crossover probabilities.
        margin: float32 scalar in [0, 1], see `DecodeInfo`.
        sign_error: float32 scalar in [0, 1]: of the coordinates where the mean honest
            gradient is not zero, the share whose decoded sign differs from its sign;
            NaN in a round in which there are none, None where it is not measured.
        num_honest: int32 scalar, honest workers that took part: it tells a loss that
            was not measured (0) from one that came out NaN.
    """

    loss: jax.Array
    weights: Any
    crossover: Any
    margin: Any
    sign_error: Any
    num_honest: jax.Array


def honest_loss(losses, honest):
    """Mean loss of the honest workers that took part, and their number."""
    number = jnp.sum(honest, dtype=jnp.int32)
    total = jnp.sum(jnp.where(honest, losses, 0))
    mean = total / jnp.maximum(number, 1).astype(losses.dtype)
    return jnp.where(number > 0, mean, jnp.nan), number


def round_info(
    opt_state, loss, num_honest, *, sign_error: bool = True
) -> SimulationInfo:
    """What a round shows, from the state of the server's transformation."""
    info: Any = optax.tree.get(
        opt_state, "info", filtering=lambda _, value: isinstance(value, DecodeInfo)
    )
    if info is None:
        return SimulationInfo(loss, None, None, None, None, num_honest)
    error: Any = optax.tree.get(opt_state, "sign_error") if sign_error else None
    if error is not None:
        error = jnp.where(error < 0, jnp.nan, error)
    shown = info.weights, info.crossover, info.margin
    return SimulationInfo(loss, *shown, error, num_honest)

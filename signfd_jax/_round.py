"""What one round begins and ends with, in the simulation and on a mesh.

Shapes: `M` workers.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from signfd_jax._checks import check_mask
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


class Draw(NamedTuple):
    """What is drawn for a round: keys, who lies and who takes part, bool `[M]` each."""

    key: jax.Array
    attack_key: jax.Array
    byzantine: jax.Array
    present: Any


def draw(state, membership, present=None) -> Draw:
    """Draw a round's keys and members; a `present` of None is everybody."""
    key, attack_key, member_key = jax.random.split(state.key, 3)
    byzantine = state.byzantine
    if membership is not None:
        num_workers = len(byzantine)
        byzantine, here = membership(member_key, byzantine, state.round)
        check_mask("the membership's byzantine", byzantine, num_workers)
        byzantine = jnp.asarray(byzantine)
        if here is not None:
            check_mask("the membership's present", here, num_workers)
            here = jnp.asarray(here)
            present = here if present is None else here & present
    return Draw(key, attack_key, byzantine, present)


def own_keys(key, index):
    """A key for each of the workers with these numbers; attackers know none of them."""
    # Attackers fold in the numbers of workers.
    key = jax.random.fold_in(key, np.uint32(2**32 - 1))
    index = index.astype(jnp.uint32)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def begin(worker, key, index, params):
    """The states of the workers with these numbers before the first round."""
    return jax.vmap(worker.init, in_axes=(0, None))(own_keys(key, index), params)


def send(worker, keys, params, batch, state, present=None, inside=None, rows=()):
    """What some workers send, their new states and their losses, leaves `[m, ...]`.

    `inside(*row, step, gradient)` is what enters a worker's own steps, with its row of
    each of `rows`.
    """

    def one_sends(key, params, batch, state, row):
        taken = {} if inside is None else {"corrupt": functools.partial(inside, *row)}
        return worker.send(key, params, batch, state, **taken)

    send_all = jax.vmap(one_sends, in_axes=(0, None, 0, 0, 0))
    sent, new, losses = send_all(keys, params, batch, state, rows)
    if present is not None:
        keep = jax.vmap(lambda here, new, old: jnp.where(here, new, old))
        new = jax.tree.map(lambda new, old: keep(present, new, old), new, state)
    return sent, new, losses


def finish(state, drawn, updates, opt_state, losses, *, sign_error, attack_state=()):
    """The state after the step, and what the round shows."""
    honest = ~drawn.byzantine
    if drawn.present is not None:
        honest &= drawn.present
    return state._replace(
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        attack_state=attack_state,
        round=state.round + 1,
        key=drawn.key,
    ), _info(opt_state, *_honest_loss(losses, honest), sign_error)


def _honest_loss(losses, honest):
    """Mean loss of the honest workers that took part, and their number."""
    number = jnp.sum(honest, dtype=jnp.int32)
    total = jnp.sum(jnp.where(honest, losses, 0))
    mean = total / jnp.maximum(number, 1).astype(losses.dtype)
    return jnp.where(number > 0, mean, _nan_like(mean)), number


def _nan_like(values):
    """A NaN that is meant: `debug_nans` minds one made of a Python number."""
    return jax.device_put(np.asarray(np.nan, values.dtype))


def _info(opt_state, loss, num_honest, sign_error) -> SimulationInfo:
    """What a round shows, from the state of the server's transformation."""
    info: Any = optax.tree.get(
        opt_state, "info", filtering=lambda _, value: isinstance(value, DecodeInfo)
    )
    if info is None:
        return SimulationInfo(loss, None, None, None, None, num_honest)
    error: Any = optax.tree.get(opt_state, "sign_error") if sign_error else None
    if error is not None:
        error = jnp.where(error < 0, _nan_like(error), error)
    shown = info.weights, info.crossover, info.margin
    return SimulationInfo(loss, *shown, error, num_honest)

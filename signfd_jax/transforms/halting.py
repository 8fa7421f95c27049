"""Fail closed: an optimiser that stands still once nobody knows who is right."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from signfd_jax._checks import check_kind, check_number, check_size
from signfd_jax.decoders import DecodeInfo

__all__ = ["StopBelowState", "stop_below"]


class StopBelowState(NamedTuple):
    """State of `stop_below`.

    Attributes:
        inner_state: state of the optimiser inside.
        halted: bool scalar, whether it stands still.
        halted_in: int32 scalar, the round in which it halted; 0: it has not.
        rounds_watched: int32 scalar, rounds until now, or until it halted.
        rounds_below: int32 scalar, for how many rounds in a row the confidence has been
            too low, as far as they count.
        burn_in: int32 scalar, rounds that are still left before any counts.
    """

    inner_state: Any
    halted: jax.Array
    halted_in: jax.Array
    rounds_watched: jax.Array
    rounds_below: jax.Array
    burn_in: jax.Array


def stop_below(
    tx: optax.GradientTransformation,
    confidence: float | jax.Array = 0.5,
    rounds: int = 20,
) -> optax.GradientTransformationExtraArgs:
    r"""Let an optimiser stand still once its decoder no longer knows who is right.

    With $\alpha_t$ the decoder's confidence in round t (`DecodeInfo.confidence`), it
    halts in round t if $\alpha_{t-k+1}, \dots, \alpha_t < c$ for the confidence c and
    k = `rounds`. Confidence is 0 in the first rounds of every run. So a round counts
    only once the confidence has been c or more, or after the first k rounds: a run that
    is never sure halts in round 2 k.

    From the round in which it halts, every update is exactly 0, whatever is in the
    chain: put the whole optimiser inside, with momentum, weight decay and learning
    rate. The state inside stands still from the next round on. It stays halted, even if
    the confidence would come back: to fail closed is to wait for a person. To go on,
    set `halted` to False and `rounds_below` to 0.

    A loop reads the flag as `optax.tree.get(state, "halted")`. A decoder that does not
    say how sure it is (confidence -1) is never sure.

    Args:
        tx: the whole optimiser, with one sign decoder in it, such as `sign_sgd`.
        confidence: c, float scalar in [0, 1], may be traced; 0 never halts a decoder
            that says how sure it is.
        rounds: k, number of rounds in a row (Python int).

    Returns:
        An optax transformation with extra arguments, which are those of `tx`. Pure: it
        may be jitted and scanned.

    Raises:
        ValueError: an argument is out of range, or, from `init`, the state of `tx` does
            not hold the state of one sign decoder.

    Examples:
        >>> from signfd_jax.transforms import sign_sgd
        >>> tx = stop_below(sign_sgd(0.1, num_workers=2), 0.5, rounds=1)
        >>> params = jnp.zeros(3)
        >>> state = tx.init(params)
        >>> for _ in range(2):  # two workers can never be sure
        ...     updates, state = tx.update(jnp.ones((2, 3)), state, params)
        ...     print(updates, state.halted)
        [-0.1 -0.1 -0.1] False
        [0. 0. 0.] True

    References:
        Saltzer and Schroeder, The protection of information in computer systems, 1975,
        on fail-safe defaults.
    """
    check_kind("tx", tx, ("init", "update"), "sign_sgd, optax.chain or the like")
    check_number("confidence", confidence, 0, 1)
    check_size("rounds", rounds)
    tx = optax.with_extra_args_support(tx)

    def init_fn(params):
        inner_state = tx.init(params)
        _confidence(inner_state)
        return StopBelowState(
            inner_state=inner_state,
            halted=jnp.zeros((), bool),
            # Arrays of their own, so that the state can be donated.
            halted_in=jnp.zeros((), jnp.int32),
            rounds_watched=jnp.zeros((), jnp.int32),
            rounds_below=jnp.zeros((), jnp.int32),
            burn_in=jnp.full((), rounds, jnp.int32),
        )

    def update_fn(updates, state, params=None, **extra_args):
        updates, inner_state = tx.update(
            updates, state.inner_state, params, **extra_args
        )
        sure = _confidence(inner_state) >= confidence
        counts = (state.burn_in == 0).astype(jnp.int32)
        below = jnp.where(sure, 0, state.rounds_below + counts)
        watched = optax.safe_increment(state.rounds_watched)
        halted = below >= rounds
        new = StopBelowState(
            inner_state=inner_state,
            halted=halted,
            halted_in=jnp.where(halted, watched, 0),
            rounds_watched=jnp.asarray(watched),
            rounds_below=below,
            burn_in=jnp.where(sure, 0, jnp.maximum(state.burn_in - 1, 0)),
        )
        new = jax.tree.map(lambda n, old: jnp.where(state.halted, old, n), new, state)
        updates = jax.tree.map(
            lambda update: jnp.where(new.halted, jnp.zeros_like(update), update),
            updates,
        )
        return updates, new

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _confidence(state):
    """The confidence that the one decoder in a state has told."""
    found = optax.tree.get_all_with_path(
        state, "info", filtering=lambda _, value: isinstance(value, DecodeInfo)
    )
    if len(found) != 1:
        raise ValueError(
            f"tx holds {len(found)} sign decoders, but stop_below needs one: put the "
            "whole optimiser inside, such as stop_below(sign_sgd(...))"
        )
    info: Any = found[0][1]
    return info.confidence

"""Names of what the server makes of the decoded signs: `OPTIMIZERS`, `SCHEDULES`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from signfd_jax._checks import check_number, check_size


def _sgd(
    learning_rate: Any,
    momentum: float | None = None,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """A step along the decoded sign, or along its momentum."""
    check_number("weight_decay", weight_decay, 0, 1e30)
    if not weight_decay:
        return optax.sgd(learning_rate, momentum, nesterov)
    # As in AdamW, what decays has no part in the momentum.
    return optax.chain(
        optax.trace(momentum or 0.0, nesterov),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": _sgd,
    # Those of optax that take nothing but updates, and a schedule for a rate.
    **{
        name: getattr(optax, name)
        for name in (
            *("adabelief", "adadelta", "adagrad", "adam", "adamax"),
            *("adamaxw", "adamw", "adan", "amsgrad", "fromage", "lamb", "lars", "lion"),
            *("nadam", "nadamw", "novograd", "optimistic_gradient_descent", "radam"),
            *("rmsprop", "yogi"),
        )
    },
}


def _constant(learning_rate: float | jax.Array) -> Any:
    """The learning rate stays."""
    return learning_rate


def _cosine(learning_rate: float | jax.Array, rounds: int, warmup: int = 0) -> Any:
    """From 0 to the learning rate in some rounds, then along a cosine to 0."""
    check_size("warmup", warmup, 0)
    rest = optax.cosine_decay_schedule(1.0, max(1, rounds - warmup))
    return _warmed_up(learning_rate, rest, warmup)


def _linear(learning_rate: float | jax.Array, rounds: int, warmup: int = 0) -> Any:
    """From 0 to the learning rate in some rounds, then along a line to 0."""
    check_size("warmup", warmup, 0)
    rest = optax.linear_schedule(1.0, 0.0, max(1, rounds - warmup))
    return _warmed_up(learning_rate, rest, warmup)


def _warmed_up(learning_rate, rest, warmup):
    rise = optax.linear_schedule(0.0, 1.0, max(1, warmup))
    whole = optax.join_schedules([rise, rest], [warmup]) if warmup else rest
    return lambda count: learning_rate * whole(jnp.asarray(count, jnp.float32))


SCHEDULES: dict[str, Callable[..., Any]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
}

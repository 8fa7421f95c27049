"""What a worker is, and two to start with: a gradient, or steps of its own.

Shapes: a batch has leaves `[B, ...]`; what is sent is a tree like the parameters.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from signfd_jax._checks import check_callable, check_flag, check_kind, check_size

__all__ = ["Worker", "gradient", "local_steps"]


class Worker(NamedTuple):
    """What one worker does in a round: a pair of pure functions.

    Attributes:
        init: `init(key, params) -> state`, the state before the first round.
        send: `send(key, params, batch, state) -> (sent, state, loss)`. `sent` is a tree
            like the parameters that points up the loss, as a gradient does; `loss` is a
            float scalar, the loss at the parameters. The keys are the worker's own.
            A worker that attacks can enter also takes `corrupt=None`, a function
            `(step, gradient) -> gradient` through which it puts the gradient of each of
            its steps, numbered from 0. It returns an honest worker's as it is.
        num_batches: how many batches a round takes (int): B is so many times their
            size.

    Examples:
        >>> worker = gradient(lambda x, batch: jnp.sum((x - batch) ** 2))
        >>> state = worker.init(jax.random.key(0), jnp.zeros(2))
        >>> sent, state, loss = worker.send(
        ...     jax.random.key(1), jnp.zeros(2), jnp.array([1.0, -2.0]), state
        ... )
        >>> print(sent, loss)
        [-2.  4.] 5.0
    """

    init: Callable[..., Any]
    send: Callable[..., tuple[Any, Any, jax.Array]]
    num_batches: int = 1


def gradient(loss_fn: Callable[..., jax.Array]) -> Worker:
    """Send the gradient of the loss on the round's batch.

    Args:
        loss_fn: `(params, batch) -> scalar`.

    Returns:
        A `Worker` without a state.

    Raises:
        ValueError: `loss_fn` is no function.

    Examples:
        >>> worker = gradient(lambda x, batch: jnp.sum(x * batch))
        >>> print(worker.send(None, jnp.ones(2), jnp.array([3.0, -1.0]), ())[0])
        [ 3. -1.]
    """
    check_callable("loss_fn", loss_fn, "(params, batch) -> scalar")
    compute = jax.value_and_grad(loss_fn)

    def send(key, params, batch, state, corrupt=None):
        del key
        loss, sent = compute(params, batch)
        return sent if corrupt is None else corrupt(0, sent), state, loss

    return Worker(lambda key, params: (), send)


def local_steps(
    loss_fn: Callable[..., jax.Array],
    tx: optax.GradientTransformation,
    num_steps: int,
    *,
    keep_state: bool = False,
) -> Worker:
    r"""Take steps of one's own, and send how far they went: start minus end.

    $x_{h+1} = x_h + u_h$ with $u_h$ what the optimiser makes of the gradient at $x_h$
    on part h of the batch; $-\sum_h u_h$ is sent, which is summed by itself, so that
    small steps from large parameters are not lost. With H = 1 and `optax.sgd` it is the
    gradient times the learning rate. As a sign it is the pseudo-gradient of DiLoCo.

    Args:
        loss_fn: `(params, batch) -> scalar`.
        tx: the worker's optimiser, such as `optax.sgd(0.1)` or `optax.adamw(1e-3)`.
        num_steps: number H of steps (int); it divides B, and each step takes B / H
            examples, in their order. It is the worker's `num_batches`.
        keep_state: whether the optimiser's state stays with the worker from round to
            round. False: it begins anew.

    Returns:
        A `Worker`, whose loss is that of the first step.

    Raises:
        ValueError: an argument is not of its kind, or, from `send`, the steps do not
            divide the batch.

    Examples:
        >>> loss_fn = lambda x, batch: jnp.mean((x - batch) ** 2) / 2
        >>> worker = local_steps(loss_fn, optax.sgd(0.5), num_steps=2)
        >>> batch, key = jnp.array([1.0, 1.0]), jax.random.key(0)
        >>> print(worker.send(key, jnp.float32(0), batch, ())[0])  # to .5, then to .75
        -0.75

    References:
        Stich, [Local SGD Converges Fast and Communicates Little](
        https://arxiv.org/abs/1805.09767), ICLR 2019; Douillard et al., [DiLoCo](
        https://arxiv.org/abs/2311.08105), 2023.
    """
    check_callable("loss_fn", loss_fn, "(params, batch) -> scalar")
    check_kind("tx", tx, ("init", "update"), "optax.sgd or the like")
    check_size("num_steps", num_steps)
    check_flag("keep_state", keep_state)
    compute = jax.value_and_grad(loss_fn)

    def send(key, params, batch, state, corrupt=None):
        del key
        parts = jax.tree.map(lambda leaf: _cut(leaf, num_steps), batch)
        numbers = None if corrupt is None else jnp.arange(num_steps, dtype=jnp.int32)

        def step(carry, given):
            (moved, state), (number, part) = carry, given
            here = jax.tree.map(jnp.add, params, moved)
            loss, gradient = compute(here, part)
            if corrupt is not None:
                gradient = corrupt(number, gradient)
            updates, state = tx.update(gradient, state, here)
            moved = jax.tree.map(lambda m, u: m + u.astype(m.dtype), moved, updates)
            return (moved, state), loss

        nowhere = jax.tree.map(jnp.zeros_like, params)
        begun = state if keep_state else tx.init(params)
        (moved, ended), losses = lax.scan(step, (nowhere, begun), (numbers, parts))
        sent = jax.tree.map(jnp.negative, moved)
        return sent, ended if keep_state else state, losses[0]

    def init(key, params):
        del key
        return tx.init(params) if keep_state else ()

    return Worker(init, send, num_steps)


def _cut(leaf, num_steps):
    if jnp.ndim(leaf) == 0 or leaf.shape[0] % num_steps:
        raise ValueError(
            f"num_steps={num_steps} must divide the examples of a worker's batch, but "
            f"a leaf has shape {jnp.shape(leaf)}; each step takes an equal part"
        )
    return leaf.reshape(num_steps, -1, *leaf.shape[1:])

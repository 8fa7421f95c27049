"""What may be put around a worker: a momentum, random signs, a delay and the like.

Shapes: a batch has leaves `[B, ...]`; what is sent is a tree like the parameters.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from signfd_jax._checks import (
    check_flag,
    check_kind,
    check_number,
    check_size,
    check_worker,
)
from signfd_jax.transforms._random import random_signs
from signfd_jax.transforms.cosine import dct, inverse_dct, keep_largest
from signfd_jax.transforms.worker_side import error_feedback_sign
from signfd_jax.workers.base import Worker

__all__ = [
    "dct_top_k",
    "error_feedback",
    "late",
    "momentum",
    "stochastic_signs",
    "transformed",
]


def transformed(worker: Worker, tx: optax.GradientTransformation) -> Worker:
    """Send what an optax transformation of the worker's own makes of it.

    Args:
        worker: the `Worker` whose sent tree is transformed.
        tx: `optax.clip_by_global_norm`, `optax.scale_by_lion`, `sparse_sign` or the
            like: updates like the parameters.

    Returns:
        A `Worker`; its state is that of `worker` and that of `tx`.

    Raises:
        ValueError: an argument is not of its kind.

    Examples:
        >>> from signfd_jax.workers import gradient
        >>> worker = gradient(lambda x, batch: jnp.sum(x * batch))
        >>> clipped = transformed(worker, optax.clip(1.0))
        >>> state = clipped.init(jax.random.key(0), jnp.ones(2))
        >>> batch = jnp.array([3.0, -0.5])
        >>> print(clipped.send(jax.random.key(1), jnp.ones(2), batch, state)[0])
        [ 1.  -0.5]
    """
    check_worker(worker)
    check_kind("tx", tx, ("init", "update"), "optax.clip or the like")

    def init(key, params):
        return worker.init(key, params), tx.init(params)

    @functools.wraps(worker.send)
    def send(key, params, batch, state, **inside):
        own, state = state
        sent, own, loss = worker.send(key, params, batch, own, **inside)
        sent, state = tx.update(sent, state, params)
        return sent, (own, state), loss

    return worker._replace(init=init, send=send)


def momentum(worker: Worker, decay: float | jax.Array = 0.9) -> Worker:
    r"""Send the moving mean: $v \leftarrow \beta v + (1 - \beta) g$.

    Args:
        worker: the `Worker` that makes g.
        decay: $\beta$ in [0, 1] (scalar).

    Returns:
        A `Worker`; under a sign decoder it is Signum's.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> from signfd_jax.workers import gradient
        >>> worker = momentum(gradient(lambda x, batch: jnp.sum(x * batch)), 0.5)
        >>> state = worker.init(jax.random.key(0), jnp.ones(1))
        >>> print(worker.send(jax.random.key(1), jnp.ones(1), jnp.ones(1), state)[0])
        [0.5]

    References:
        Bernstein et al., [signSGD with majority vote](
        https://arxiv.org/abs/1810.05291), ICLR 2019.
    """
    check_number("decay", decay, 0.0, 1.0)
    ema = optax.ema(decay, debias=False)  # pyright: ignore[reportArgumentType]
    return transformed(worker, ema)


def error_feedback(worker: Worker) -> Worker:
    """Send scaled signs, and add what they leave out to the next round.

    `transforms.error_feedback_sign` has the formula.

    Args:
        worker: the `Worker` whose sent tree is compressed.

    Returns:
        A `Worker`; its state is also a tree like the parameters, what was left out.

    Raises:
        ValueError: `worker` is none.

    Examples:
        >>> from signfd_jax.workers import gradient
        >>> worker = error_feedback(gradient(lambda x, batch: jnp.sum(x * batch)))
        >>> state = worker.init(jax.random.key(0), jnp.ones(2))
        >>> batch = jnp.array([3.0, -1.0])
        >>> print(worker.send(jax.random.key(1), jnp.ones(2), batch, state)[0])
        [ 2. -2.]

    References:
        Karimireddy et al., [Error Feedback Fixes SignSGD](
        https://arxiv.org/abs/1901.09847), ICML 2019.
    """
    return transformed(worker, error_feedback_sign())


def stochastic_signs(worker: Worker, bound: float | jax.Array = 1.0) -> Worker:
    r"""Send random signs whose mean is proportional to what the worker has.

    $+1$ with probability $\frac12 + \frac{g}{2b}$ and -1 otherwise, g clipped to
    $[-b, b]$, from the worker's own key. A NaN stays NaN, which abstains.

    Args:
        worker: the `Worker` that makes g.
        bound: b, in the unit of g (positive scalar).

    Returns:
        A `Worker`.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> from signfd_jax.workers import gradient
        >>> worker = stochastic_signs(
        ...     gradient(lambda x, batch: jnp.sum(x * batch)), 2.0
        ... )
        >>> batch = jnp.ones(10_000)
        >>> sent, _, _ = worker.send(jax.random.key(1), jnp.ones(10_000), batch, ())
        >>> print(sent.mean().round(1))
        0.5

    References:
        Jin et al., [Stochastic-Sign SGD](https://arxiv.org/abs/2002.10940), 2020.
    """
    check_worker(worker)
    check_number("bound", bound, 1e-30, 1e30)

    @functools.wraps(worker.send)
    def send(key, params, batch, state, **inside):
        key, draw_key = jax.random.split(key)
        sent, state, loss = worker.send(key, params, batch, state, **inside)
        leaves, structure = jax.tree.flatten(sent)
        keys = jax.random.split(draw_key, max(1, len(leaves)))
        pairs = zip(keys, leaves, strict=False)
        drawn = [random_signs(k, leaf, bound) for k, leaf in pairs]
        return structure.unflatten(drawn), state, loss

    return worker._replace(send=send)


def dct_top_k(
    worker: Worker, k: int = 8, *, chunk: int = 64, decay: float | jax.Array = 0.999
) -> Worker:
    r"""Send the largest cosine coefficients of a momentum, and keep the rest.

    $m \leftarrow \beta m + g$; of the discrete cosine transform of each block of m the
    k coefficients of largest magnitude are sent, and what they stand for leaves m. All
    others are 0, so they abstain. The votes are on coefficients: put
    `transforms.undo_dct` behind the decoder, with the same `chunk`.

    Args:
        worker: the `Worker` that makes g.
        k: coefficients of a block that are sent (int >= 1).
        chunk: largest side of a block (int >= 1); `transforms.undo_dct` says what the
            blocks are.
        decay: $\beta$ in [0, 1] (scalar).

    Returns:
        A `Worker`; its state is also a tree like the parameters, the momentum.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> from signfd_jax.workers import gradient
        >>> worker = dct_top_k(gradient(lambda x, batch: jnp.sum(x * batch)), k=1)
        >>> state = worker.init(jax.random.key(0), jnp.ones(4))
        >>> batch = jnp.array([1.0, 1.0, 1.0, 2.0])
        >>> print(worker.send(jax.random.key(1), jnp.ones(4), batch, state)[0].round(1))
        [2.5 0.  0.  0. ]

    References:
        Peng et al., [DeMo: Decoupled Momentum Optimization](
        https://arxiv.org/abs/2411.19870), 2024.
    """
    check_worker(worker)
    check_size("k", k)
    check_size("chunk", chunk)
    check_number("decay", decay, 0.0, 1.0)

    def init(key, params):
        return worker.init(key, params), jax.tree.map(jnp.zeros_like, params)

    def split(kept, new):
        value = jnp.asarray(decay, kept.dtype) * kept + new.astype(kept.dtype)
        sent = keep_largest(dct(value, chunk), k, chunk)
        return sent, value - inverse_dct(sent, chunk)

    @functools.wraps(worker.send)
    def send(key, params, batch, state, **inside):
        own, kept = state
        sent, own, loss = worker.send(key, params, batch, own, **inside)
        pairs = jax.tree.map(split, kept, sent)
        sent, kept = (jax.tree.map(lambda _, p, i=i: p[i], kept, pairs) for i in (0, 1))
        return sent, (own, kept), loss

    return worker._replace(init=init, send=send)


class _LateState(NamedTuple):
    """State of `late`.

    Attributes:
        worker: the state of the worker whose votes are late.
        under_way: tree of `[d, ...]`, the last d trees, each at its round modulo d.
        place: int32 scalar, the place of the oldest one.
        lag: int32 scalar, rounds from sending to arrival.
    """

    worker: Any
    under_way: Any
    place: jax.Array
    lag: jax.Array


def late(worker: Worker, delay: int = 1, *, drawn: bool = False) -> Worker:
    """What is sent arrives some rounds later; until the first arrival it abstains.

    What arrives in round t was made in round t - d, from the parameters of that round:
    the signs are stale. In the first d rounds zeros arrive, which abstain. The loss is
    that of the round itself. Rounds in which the worker is absent are not counted, and
    nothing arrives in them. An attack changes what arrives.

    Args:
        worker: the `Worker` whose sent tree is late.
        delay: rounds d from sending to arrival (int >= 0); 0 is `worker` itself.
        drawn: whether each worker has a delay of its own, from 0 to `delay` with equal
            probability, which stays.

    Returns:
        A `Worker`; its state is also d trees like the parameters.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> from signfd_jax.workers import gradient
        >>> worker = late(gradient(lambda x, batch: jnp.sum(x * batch)), delay=2)
        >>> state = worker.init(jax.random.key(0), jnp.ones(1))
        >>> for round in range(4):
        ...     batch = jnp.full(1, 10.0 + round)
        ...     sent, state, _ = worker.send(None, jnp.ones(1), batch, state)
        ...     print(sent)
        [0.]
        [0.]
        [10.]
        [11.]
    """
    check_worker(worker)
    check_size("delay", delay, 0)
    check_flag("drawn", drawn)
    if delay == 0:
        return worker

    def init(key, params):
        key, lag_key = jax.random.split(key)
        given = jnp.full((), delay, jnp.int32)
        return _LateState(
            worker=worker.init(key, params),
            under_way=jax.tree.map(
                lambda leaf: jnp.zeros((delay, *jnp.shape(leaf)), leaf.dtype), params
            ),
            place=jnp.zeros((), jnp.int32),
            lag=jax.random.randint(lag_key, (), 0, delay + 1) if drawn else given,
        )

    @functools.wraps(worker.send)
    def send(key, params, batch, state, **inside):
        sent, own, loss = worker.send(key, params, batch, state.worker, **inside)
        sent = jax.tree.map(lambda s, u: s.astype(u.dtype), sent, state.under_way)
        due = (state.place - state.lag) % delay

        def arriving(sent, under_way):
            return jnp.where(state.lag == 0, sent, under_way[due])

        arrived = jax.tree.map(arriving, sent, state.under_way)
        under_way = jax.tree.map(
            lambda s, u: u.at[state.place].set(s), sent, state.under_way
        )
        place = (state.place + 1) % delay
        return arrived, _LateState(own, under_way, place, state.lag), loss

    return worker._replace(init=init, send=send)

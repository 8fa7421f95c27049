r"""What a worker does to its gradient before it votes.

Shapes: `M` workers; leaves `[M, ...]` come in and go out. Momentum, error feedback, a
sparse or a random sign stand before `scale_by_sign_decoder` or `scale_by_aggregator` in
a chain, with any decoder or rule behind them; `per_worker` makes such a transformation
of any that optax has.

An attack acts on the gradient that goes into this arithmetic. A NaN stays in the state
of the worker that sent it: from then on that worker abstains.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from signfd_jax._checks import check_number, check_size, check_worker_gradients
from signfd_jax.aggregators import top_k
from signfd_jax.signs._trees import dtype_of, size_of
from signfd_jax.transforms._random import random_signs

__all__ = [
    "ErrorFeedbackState",
    "StochasticSignState",
    "error_feedback_sign",
    "per_worker",
    "sparse_sign",
    "stochastic_sign",
]


def per_worker(
    transformation: optax.GradientTransformation, num_workers: int
) -> optax.GradientTransformationExtraArgs:
    """Let each worker apply a transformation of its own, with a state of its own.

    Args:
        transformation: any optax transformation whose updates have the shape of the
            parameters: `optax.ema`, `optax.scale_by_lion`, `optax.clip_by_global_norm`,
            `error_feedback_sign`. It gets no keyword arguments.
        num_workers: number M of workers (Python int, at least 1).

    Returns:
        An optax transformation from leaves `[M, ...]` to leaves `[M, ...]`. Every leaf
        of its state leads with the worker axis.

    Raises:
        ValueError: `num_workers` is not a positive int, or, from `update`, the
            gradients have no worker axis.

    Examples:
        >>> tx = per_worker(optax.ema(0.5, debias=False), num_workers=2)
        >>> gradients = jnp.array([[4.0], [-2.0]])
        >>> updates, state = tx.update(gradients, tx.init(jnp.zeros(1)))
        >>> print(updates[:, 0])
        [ 2. -1.]
    """
    check_size("num_workers", num_workers)
    inner = optax.with_extra_args_support(transformation)

    def init_fn(params):
        return jax.vmap(lambda _: inner.init(params))(jnp.arange(num_workers))

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        check_worker_gradients(updates, params, num_workers)
        update = jax.vmap(
            lambda u, s: inner.update(u, s, params), axis_size=num_workers
        )
        return update(updates, state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class ErrorFeedbackState(NamedTuple):
    """State of `error_feedback_sign` and `sparse_sign`, of one worker.

    Attributes:
        ef_residual: tree like the parameters: what has not been sent yet.
    """

    ef_residual: Any


def error_feedback_sign() -> optax.GradientTransformation:
    r"""Send scaled signs, and add what they leave out to the next gradient.

    $p = g + e$, $\Delta = \frac{\|p\|_1}{N} \operatorname{sign} p$, $e \leftarrow p -
    \Delta$, over all N coordinates together. It sends N bits and one float.

    Returns:
        A transformation of one worker's gradient; put it inside `per_worker`.

    Examples:
        >>> tx = error_feedback_sign()
        >>> updates, state = tx.update(jnp.array([3.0, -1.0]), tx.init(jnp.zeros(2)))
        >>> print(updates, state.ef_residual)
        [ 2. -2.] [1. 1.]

    References:
        Karimireddy et al., [Error Feedback Fixes SignSGD and other Gradient Compression
        Schemes](https://arxiv.org/abs/1901.09847), ICML 2019.
    """

    def send(corrected):
        leaves = jax.tree.leaves(corrected)
        size = size_of(corrected)
        if size == 0:
            return corrected
        norms = [jnp.sum(jnp.abs(leaf.astype(jnp.float32))) for leaf in leaves]
        scale = jnp.sum(jnp.stack(norms)) / size
        return jax.tree.map(lambda p: scale.astype(p.dtype) * jnp.sign(p), corrected)

    return _with_error_feedback(send, decay=1.0)


def sparse_sign(fraction: float = 0.1, decay: float = 1.0) -> Any:
    r"""Vote only where the gradient is largest, and remember the rest.

    $p = g + \eta e$; of each tensor the k largest $|p_n|$ are sent, as signs, and the
    other coordinates abstain; $e \leftarrow p$ where nothing was sent, 0 elsewhere.

    Args:
        fraction: k over the tensor's size, in (0, 1]; k is rounded, and at least 1.
        decay: $\eta$ in [0, 1]; 0 forgets what was not sent.

    Returns:
        A transformation of one worker's gradient, whose updates are values in {-1, 0,
        +1}; put it inside `per_worker`.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> tx = sparse_sign(fraction=0.5)
        >>> updates, state = tx.update(jnp.array([3.0, -1.0]), tx.init(jnp.zeros(2)))
        >>> print(updates, state.ef_residual)
        [1. 0.] [ 0. -1.]

    References:
        Park and Lee, [S3GD-MV: Sparse-SignSGD with Majority Vote](
        https://arxiv.org/abs/2302.07475), 2023.
    """
    check_number("fraction", fraction, 1e-9, 1.0)
    check_number("decay", decay, 0.0, 1.0)

    def keep(leaf):
        if leaf.size == 0:
            return leaf
        return top_k(leaf.reshape(1, -1), fraction).reshape(leaf.shape)

    def update_fn(updates, state, params=None):
        del params
        corrected = _add(updates, state.ef_residual, decay)
        kept = jax.tree.map(keep, corrected)
        residual = jax.tree.map(
            lambda p, k: jnp.where(k == 0, p, jnp.zeros((), p.dtype)), corrected, kept
        )
        return jax.tree.map(jnp.sign, kept), ErrorFeedbackState(residual)

    return optax.GradientTransformation(_no_residual, update_fn)


def _no_residual(params):
    return ErrorFeedbackState(
        jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), dtype_of(p)), params)
    )


def _add(gradients, residual, decay):
    def add(gradient, rest):
        gradient = jnp.asarray(gradient)
        dtype = gradient.dtype
        return gradient + jnp.asarray(decay, dtype) * rest.astype(dtype)

    return jax.tree.map(add, gradients, residual)


def _with_error_feedback(send, decay):
    def update_fn(updates, state, params=None):
        del params
        corrected = _add(updates, state.ef_residual, decay)
        sent = send(corrected)
        residual = jax.tree.map(
            lambda p, s, e: (p - s).astype(e.dtype), corrected, sent, state.ef_residual
        )
        return sent, ErrorFeedbackState(residual)

    return optax.GradientTransformation(_no_residual, update_fn)


class StochasticSignState(NamedTuple):
    """State of `stochastic_sign`.

    Attributes:
        stochastic_key: a JAX key, split in every round.
    """

    stochastic_key: jax.Array


def stochastic_sign(
    key: jax.Array, num_workers: int, bound: float | jax.Array = 1.0
) -> optax.GradientTransformationExtraArgs:
    r"""Draw each vote so that its mean is proportional to the gradient.

    $Y = +1$ with probability $\frac12 + \frac{g}{2b}$ and -1 otherwise, g clipped to
    $[-b, b]$. A vote's mean is $g/b$, so that large gradients outvote many small ones:
    the price is that a small gradient's vote is nearly a coin. A zero votes too.

    Args:
        key: JAX key where the randomness starts; it must not be used elsewhere.
        num_workers: number M of workers (Python int, at least 1).
        bound: b, in the unit of the gradient (positive scalar).

    Returns:
        An optax transformation of leaves `[M, ...]` to votes `[M, ...]` in {-1, +1}; a
        NaN stays NaN, which abstains.

    Raises:
        ValueError: an argument is out of range, or, from `update`, the gradients have
            no worker axis.

    Examples:
        >>> tx = stochastic_sign(jax.random.key(0), num_workers=1, bound=2.0)
        >>> gradients = jnp.full((1, 10_000), 1.0)
        >>> updates, state = tx.update(gradients, tx.init(jnp.zeros(10_000)))
        >>> print(updates.mean().round(1))
        0.5

    References:
        Jin et al., [Stochastic-Sign SGD for Federated Learning with Theoretical
        Guarantees](https://arxiv.org/abs/2002.10940), 2020.
    """
    check_size("num_workers", num_workers)
    check_number("bound", bound, 1e-30, 1e30)

    def init_fn(params):
        del params
        return StochasticSignState(key)

    def update_fn(updates, state, params=None, **extra_args):
        del extra_args
        check_worker_gradients(updates, params, num_workers)
        key, *leaf_keys = jax.random.split(
            state.stochastic_key, 1 + len(jax.tree.leaves(updates))
        )
        keys = jax.tree.unflatten(jax.tree.structure(updates), leaf_keys)

        draw = functools.partial(random_signs, bound=bound)
        return jax.tree.map(draw, keys, updates), StochasticSignState(key)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)

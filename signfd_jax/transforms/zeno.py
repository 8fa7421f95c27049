"""Zeno: a server that tries each gradient on examples of its own.

Shapes: the gradients of `M` workers come in as leaves `[M, ...]`; what goes out has
leaves `[...]`, shaped like the parameters.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from signfd_jax._checks import (
    check_callable,
    check_count,
    check_mask,
    check_number,
    check_size,
    check_worker_gradients,
)
from signfd_jax.aggregators._rows import mean_of_rows, widen
from signfd_jax.decoders._known import KNOWN, check_usable
from signfd_jax.signs._trees import cast_like, size_of

__all__ = ["scale_by_zeno"]


def scale_by_zeno(
    num_workers: int,
    loss_fn: Callable[[Any, Any], jax.Array],
    *,
    num_byzantine: int | jax.Array,
    learning_rate: float | jax.Array,
    penalty: float | jax.Array = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Average the M - b gradients that lower the server's own loss most.

    With the loss $f$ of the server's examples at the parameters $x$, gradient m has
    the score $f(x) - f(x - \gamma g_m) - \rho \|g_m\|^2$. The M - b best are averaged.

    `update` needs `params`, and the keyword argument `root_batch`: the server's
    examples, as `loss_fn` takes them. The paper draws them anew in every round. It also
    takes `present`, bool `[M]`: absent workers are never averaged. It has no use for
    `trusted`, `stakes` and `shares`.

    Args:
        num_workers: number M of workers (Python int, at least 1).
        loss_fn: `(params, root_batch) -> scalar`.
        num_byzantine: b, the number of gradients left out, below M (int scalar). May be
            traced; from M on nothing is left, and the update is zero.
        learning_rate: $\gamma$, the step that is tried (positive scalar): that by which
            the server multiplies what comes out.
        penalty: $\rho$, what a long gradient costs (scalar, at least 0), in units of
            the loss for each unit of the squared norm.

    Returns:
        An optax transformation without a state: leaves `[M, ...]` in, the mean `[...]`
        out. A gradient whose score is not finite is never averaged; if none is left,
        the update is zero.

    Raises:
        ValueError: an argument is not of its kind, or is out of range; from `update`,
            `params` or `root_batch` is missing, what is known of the workers is given,
            or the gradients do not fit.

    Examples:
        >>> def loss_fn(x, target):
        ...     return jnp.sum((x - target) ** 2)
        >>> tx = scale_by_zeno(3, loss_fn, num_byzantine=1, learning_rate=0.1)
        >>> params = jnp.zeros(2)
        >>> gradients = jnp.array([[-2.0, -2.0], [-1.0, -2.0], [2.0, 2.0]])
        >>> state = tx.init(params)
        >>> updates, _ = tx.update(gradients, state, params, root_batch=jnp.ones(2))
        >>> print(updates)
        [-1.5 -2. ]

    References:
        Xie, Koyejo and Gupta, [Zeno: Distributed Stochastic Gradient Descent with
        Suspicion-based Fault-tolerance](https://arxiv.org/abs/1805.10032), ICML 2019.
    """
    check_size("num_workers", num_workers)
    check_callable("loss_fn", loss_fn, "(params, root_batch)")
    check_count("num_byzantine", num_byzantine, 0)
    if not isinstance(num_byzantine, jax.Array) and num_byzantine >= num_workers:
        raise ValueError(
            f"num_byzantine must be below the {num_workers} workers, but is "
            f"{num_byzantine}: nothing would be left to average"
        )
    check_number("learning_rate", learning_rate, 0, 1e30)
    check_number("penalty", penalty, 0, 1e30)

    def init_fn(params):
        del params
        return optax.EmptyState()

    def moved_by(param, gradient):
        step = (learning_rate * gradient).astype(gradient.dtype)
        param = jnp.asarray(param)
        return (widen(param).astype(step.dtype) - step).astype(param.dtype)

    def update_fn(
        updates, state, params=None, *, root_batch=None, present=None, **extra_args
    ):
        _check_given(params, root_batch, extra_args)
        check_worker_gradients(updates, params, num_workers)

        def score(gradient):
            gradient = jax.tree.map(widen, gradient)
            moved = jax.tree.map(moved_by, params, gradient)
            squares = jnp.asarray(optax.tree.norm(gradient, squared=True))
            # The loss at the parameters themselves is the same for all.
            loss = widen(jnp.asarray(loss_fn(moved, root_batch)))
            return -loss - (penalty * squares).astype(loss.dtype)

        updates = jax.tree.map(jnp.asarray, updates)
        if size_of(updates) == 0:  # nothing to average
            nothing = jax.tree.map(lambda leaf: leaf[0], updates)
            return cast_like(nothing, params), state
        scores = jax.vmap(score)(updates)
        usable = jnp.isfinite(scores)
        if present is not None:
            check_mask("present", present, num_workers)
            usable &= jnp.asarray(present)
        best_first = jnp.argsort(jnp.where(usable, -scores, jnp.inf))
        places = jnp.argsort(best_first)
        kept = usable & (places < num_workers - num_byzantine)
        mean = jax.tree.map(lambda leaf: _mean_of_kept(leaf, kept), updates)
        return cast_like(mean, params), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_given(params, root_batch, extra_args):
    if params is None or root_batch is None:
        missing = "params" if params is None else "root_batch"
        raise ValueError(
            f"{missing} is missing: Zeno tries each gradient on the server's own "
            "examples; call update(gradients, state, params, root_batch=...)"
        )
    given = [name for name in KNOWN if extra_args.get(name) is not None]
    check_usable("Zeno", given, uses=())


def _mean_of_kept(leaf, kept):
    rows = widen(leaf).reshape(len(kept), -1)
    return mean_of_rows(rows, kept).reshape(leaf.shape[1:])

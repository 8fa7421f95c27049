"""The loss of a network, and its test.

Shapes: `N` examples of one batch; of texts, `T` tokens in each.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from signfd_jax._checks import check_callable, check_kind, check_size

__all__ = ["Evaluation", "evaluate", "loss_fn"]


def loss_fn(
    model: nn.Module,
) -> Callable[[Any, tuple[jax.Array, ...]], jax.Array]:
    """Build the loss of one worker: the mean cross-entropy of its batch, in nats.

    Args:
        model: a network of this module, or any whose `apply` gives logits.

    Returns:
        `loss(params, (inputs, labels)) -> float32 scalar`, with inputs `[N, ...]` and
        labels int32 `[N]`, or `[N, T]` of texts; `(inputs, labels, counted)`, with
        float32 `[N]`, is the mean weighted so.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> from signfd_jax.models import SoftmaxRegression
        >>> model = SoftmaxRegression()
        >>> batch = jnp.zeros((5, 28, 28, 1)), jnp.zeros(5, jnp.int32)
        >>> params = model.init(jax.random.key(0), batch[0])
        >>> print(loss_fn(model)(params, batch).round(3))
        2.303
    """
    check_kind("model", model, ("init", "apply"), "flax.linen")

    def loss(params, batch):
        inputs, labels, *counted = batch
        logits: Any = model.apply(params, inputs)
        losses = _cross_entropy(logits, labels)
        if not counted:
            return losses.mean()
        losses = losses.reshape(len(losses), -1).mean(axis=1)
        return jnp.sum(losses * counted[0]) / jnp.sum(counted[0])

    return loss


_cross_entropy = optax.softmax_cross_entropy_with_integer_labels


class Evaluation(NamedTuple):
    """How well a network does on a set of examples.

    Attributes:
        accuracy: float32 scalar, fraction of the labels that have the largest logit.
        loss: float32 scalar, mean cross-entropy in nats.
    """

    accuracy: jax.Array
    loss: jax.Array


def evaluate(
    model: nn.Module,
    params: Any,
    inputs: jax.Array | np.ndarray,
    labels: jax.Array | np.ndarray,
    *,
    batch_size: int = 500,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
) -> Evaluation:
    """Accuracy and mean loss over all examples, batch by batch in one compiled loop.

    The last batch is smaller if need be. `BatchNorm` normalises over whole batches in
    tests too: with it the result depends on `batch_size` and the order of the examples.

    Args:
        model: the network.
        params: tree of its parameters, `[...]`; vmap over them for several seeds.
        inputs: `[n, ...]`, standardised, unless `preprocess` does that.
        labels: int32 `[n]`, or `[n, T]` of texts.
        batch_size: examples at once.
        preprocess: applied to each batch of inputs `[batch_size, ...]`, such as
            `signfd_jax.data.standardise`. Pass the same function object again, or it is
            compiled again; of a `functools.partial`, arrays may be new ones.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: there are no examples, `batch_size` is below 1, or inputs and labels
            differ in number.

    Examples:
        >>> from signfd_jax.models import SoftmaxRegression
        >>> model = SoftmaxRegression()
        >>> inputs, labels = jnp.zeros((6, 28, 28, 1)), jnp.array([0, 0, 0, 1, 2, 3])
        >>> params = model.init(jax.random.key(0), inputs)
        >>> print(evaluate(model, params, inputs, labels, batch_size=4).accuracy)
        0.5
    """
    check_kind("model", model, ("init", "apply"), "flax.linen")
    check_size("batch_size", batch_size)
    if preprocess is not None:
        check_callable("preprocess", preprocess, "inputs -> inputs")
    if labels.shape[:1] != inputs.shape[:1] or not labels.size:
        raise ValueError(
            "inputs and labels must hold equally many examples, at least one, but are "
            f"{inputs.shape} and {labels.shape}"
        )
    _check_params(model, params, inputs, labels, preprocess)
    if isinstance(preprocess, functools.partial):  # What it holds may be traced.
        held = preprocess
        preprocess = jax.tree_util.Partial(held.func, *held.args, **held.keywords)
    else:
        preprocess = jax.tree_util.Partial(preprocess or jnp.asarray)
    return _evaluate(model, batch_size, preprocess, params, inputs, labels)


def _check_params(model, params, inputs, labels, preprocess):
    def init_and_apply(batch):
        batch = batch if preprocess is None else preprocess(batch)
        return model.init_with_output(jax.random.key(0), batch)

    logits, shapes = jax.eval_shape(
        init_and_apply, jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)
    )
    wanted, given = (
        {
            jax.tree_util.keystr(path): jnp.shape(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (shapes, params)
    )
    if wanted != given:
        raise ValueError(
            f"params are not those of this {type(model).__name__} on inputs of shape "
            f"{list(inputs.shape)}; make them by model.init(key, inputs)"
        )
    if logits.shape[1:-1] != labels.shape[1:]:
        raise ValueError(
            f"labels are {list(labels.shape)}, but {type(model).__name__} gives logits "
            f"of shape {list(logits.shape)} for one input"
        )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _evaluate(model, batch_size, preprocess, params, inputs, labels):
    def sums(batch):
        inputs, labels = batch
        logits = model.apply(params, preprocess(inputs))
        correct = jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels
        return Evaluation(
            correct.sum(dtype=jnp.float32), _cross_entropy(logits, labels).sum()
        )

    num = len(labels)
    whole = num - num % batch_size
    total = Evaluation(jnp.float32(0), jnp.float32(0))
    if whole:
        batches = jax.tree.map(
            lambda x: x[:whole].reshape(-1, batch_size, *x.shape[1:]), (inputs, labels)
        )
        total = jax.tree.map(jnp.sum, lax.map(sums, batches))
    if whole < num:
        rest = sums((inputs[whole:], labels[whole:]))
        total = jax.tree.map(jnp.add, total, rest)
    return jax.tree.map(lambda x: x / labels.size, total)

"""What the paper's own training loops share: data, model, batches, the true gradient.

Shapes: `M` workers, `N` coordinates.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from signfd_jax import data, models
from signfd_jax.data import batches
from signfd_jax.experiments import Experiment
from signfd_jax.experiments._engine import prepare as training
from signfd_jax.experiments.registry import resolve
from signfd_jax.signs._totals import exact_total


class Setting(NamedTuple):
    """An experiment's data and model, for a loop of one's own.

    Attributes:
        init: `key -> params`.
        loss: `(params, batch) -> scalar`, of one worker.
        whole_loss: `params -> scalar`, over the whole training set: the sign of its
            gradient is the U of the theory.
        batches: `batch_size -> sample_batch`, see `batches.worker_batches`.
        accuracy: `params -> scalar`, over the test set.
    """

    init: Callable[..., Any]
    loss: Callable[..., jax.Array]
    whole_loss: Callable[..., jax.Array]
    batches: Callable[..., Any]
    accuracy: Callable[..., jax.Array]


def make_setting(base: Experiment, data_dir: Any = None) -> Setting:
    """Load an experiment's data and make its model."""
    dataset = jax.tree.map(jnp.asarray, data.load(base.dataset, data_dir=data_dir))
    model = resolve(base).model.make({"num_classes": dataset.num_classes})
    split = training.split_examples(base, dataset)
    image = jnp.zeros((1, *dataset.test_inputs.shape[1:]))

    def accuracy(params):
        return models.evaluate(
            model,
            params,
            dataset.test_inputs,
            dataset.test_labels,
            preprocess=lambda inputs: data.standardise(inputs, dataset),
        ).accuracy

    return Setting(
        init=lambda key: model.init(key, image),
        loss=models.loss_fn(model),
        whole_loss=_whole_loss(models.loss_fn(model), dataset),
        batches=lambda size: batches.worker_batches(dataset, split, size),
        accuracy=accuracy,
    )


def _whole_loss(loss, dataset):
    """Loss over the training set, in slices that fit in memory."""
    size = len(dataset.train_labels)
    slices = max(1, size // 2000)
    used = size // slices * slices
    cut = lambda x: x[:used].reshape(slices, used // slices, *x.shape[1:])  # noqa: E731
    inputs, labels = cut(dataset.train_inputs), cut(dataset.train_labels)

    def whole(params):
        @jax.checkpoint
        def of_slice(part):
            return loss(params, (data.standardise(part[0], dataset), part[1]))

        return jnp.mean(lax.map(of_slice, (inputs, labels)))

    return whole


def tests(base: Experiment, every: int) -> list[int]:
    """The rounds after which a loop of chunks is tested."""
    return [every * (i + 1) for i in range(base.rounds // every)]


def wrong_share(vote, truth) -> jax.Array:
    """Share of the coordinates with a vote and a truth on which the two differ."""

    def total(tree):
        return exact_total([jnp.sum(leaf) for leaf in jax.tree.leaves(tree)])

    counted = total(jax.tree.map(lambda v, u: (v != 0) & (u != 0), vote, truth))
    wrong = total(jax.tree.map(lambda v, u: v * u < 0, vote, truth))
    return jnp.where(counted > 0, wrong / jnp.maximum(counted, 1), jnp.nan)


def num_coordinates(base: Experiment, *, data_dir: Any = None) -> int:
    """Number N of parameters of an experiment's model."""
    init = make_setting(base, data_dir).init
    params = jax.eval_shape(init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(params))

"""The batches that workers draw from the examples they hold.

Shapes: `M` workers, `P` the largest share, `B` the batch size. Batches are drawn on the
device, anew in every round, as indices into one copy of the data set.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from signfd_jax._checks import check_size
from signfd_jax.data import Dataset, standardise
from signfd_jax.data.partition import Partition

__all__ = ["examples", "worker_batches", "worker_indices"]

_PADDING = 4  # of the random crop, in pixels


def worker_batches(
    dataset: Dataset,
    partition: Partition,
    batch_size: int | Sequence[int],
    *,
    augment: bool = False,
    first_worker: int | jax.Array = 0,
) -> Callable[[jax.Array], tuple[jax.Array, ...]]:
    """Build the function that draws one batch for every worker.

    Each worker draws uniformly, with replacement, from its own share, or shares the
    draws of another (`Partition.draws`). Everything happens on the device, from one
    copy of the data in uint8: put the function in a scan over rounds, or vmap it over
    keys.

    Args:
        dataset: its training examples; may be traced.
        partition: which of them each worker holds; may be traced.
        batch_size: B, examples a worker draws; or as many numbers as there are workers,
            where some draw more than others. B is then the largest, and a third leaf
            says which examples count, as `models.loss_fn` reads it.
        augment: crop each image at random after padding it by 4 zero pixels on each
            side, and flip every other one from left to right (for CIFAR).
        first_worker: where `partition.indices` has only the rows of some workers, as on
            one of many devices, the first of them (int32 scalar); `sizes` has all M.
            The batches are those that these workers would draw among all.

    Returns:
        `sample_batch(key) -> (inputs, labels)`, float32 `[M, B, ...]`, standardised,
        and int32 `[M, B]`; with unlike batches also float32 `[M, B]`, 1 where an
        example counts and 0 where it does not. The key is consumed. It is a pytree, a
        `jax.tree_util.Partial`: pass it to a jitted function as an argument, and the
        data are not compiled into the program.

    Raises:
        ValueError: `batch_size` is below 1 or has not one number for each worker, or
            the partition is that of another data set.

    Examples:
        >>> from signfd_jax.data import load
        >>> from signfd_jax.data.partition import iid
        >>> digits = load("digits")
        >>> split = iid(digits.train_labels, num_workers=15)
        >>> sample_batch = worker_batches(digits, split, batch_size=4)
        >>> inputs, labels = jax.jit(sample_batch)(jax.random.key(0))
        >>> inputs.shape, labels.shape
        ((15, 4, 8, 8, 1), (15, 4))
        >>> sample_batch = worker_batches(digits, split, batch_size=[4] * 14 + [90])
        >>> inputs, labels, counted = sample_batch(jax.random.key(0))
        >>> print(inputs.shape[:2], counted.sum(axis=1)[-2:])
        (15, 90) [ 4. 90.]
    """
    largest, counted = _sizes(batch_size, partition.sizes.shape[0])
    num = dataset.train_labels.shape[0]
    if isinstance(partition.indices, np.ndarray) and partition.indices.max() >= num:
        raise ValueError(
            f"the partition holds example {partition.indices.max()}, but {dataset.name}"
            f" has {num} training examples: make the partition from its labels"
        )
    dataset = dataclasses.replace(
        dataset,
        test_inputs=dataset.test_inputs[:0],
        test_labels=dataset.test_labels[:0],
    )
    draw = functools.partial(_draw, largest, augment)
    facts = jax.tree.map(jnp.asarray, (dataset, partition, first_worker, counted))
    return jax.tree_util.Partial(draw, *facts)


def worker_indices(
    partition: Partition, batch_size: int | Sequence[int]
) -> Callable[[jax.Array], Any]:
    """Build the function that draws which examples make every worker's batch.

    They are those of `worker_batches` under the same key: with `examples`, a large
    population looks them up a chunk of workers at a time.

    Args:
        partition: which examples each worker holds; may be traced.
        batch_size: B, examples a worker draws; or one number for each worker.

    Returns:
        `sample_indices(key) -> int32 [M, B]`, positions in the training set; with
        unlike batches `(indices, counted)`, see `worker_batches`. The key is consumed.
        It is a pytree, a `jax.tree_util.Partial`.

    Raises:
        ValueError: `batch_size` is below 1 or has not one number for each worker.

    Examples:
        >>> from signfd_jax.data.partition import iid
        >>> split = iid(np.array([0, 0, 1, 1]), num_workers=6)
        >>> sample_indices = worker_indices(split, batch_size=3)
        >>> sample_indices(jax.random.key(0)).shape
        (6, 3)
    """
    largest, counted = _sizes(batch_size, partition.sizes.shape[0])

    def draw(partition, counted, key):
        indices = _draw_indices(largest, partition, key)
        return indices if counted is None else (indices, counted)

    return jax.tree_util.Partial(draw, *jax.tree.map(jnp.asarray, (partition, counted)))


def examples(
    dataset: Dataset,
) -> Callable[[Any], tuple[jax.Array, ...]]:
    """Build the function that looks training examples up.

    Args:
        dataset: its training examples; may be traced.

    Returns:
        `lookup(indices) -> (inputs, labels)`: of int32 `[...]`, float32
        `[..., height, width, channels]`, standardised, and int32 `[...]`. Of
        `(indices, counted)` it makes `(inputs, labels, counted)`.

    Examples:
        >>> from signfd_jax.data import load
        >>> inputs, labels = examples(load("digits"))(jnp.array([[0, 1], [2, 3]]))
        >>> inputs.shape, labels.shape
        ((2, 2, 8, 8, 1), (2, 2))
    """
    images, labels = map(jnp.asarray, (dataset.train_inputs, dataset.train_labels))

    def lookup(batch):
        indices, *counted = batch if isinstance(batch, tuple) else (batch,)
        return standardise(images[indices], dataset), labels[indices], *counted

    return lookup


def _sizes(batch_size, num_workers):
    """The largest batch, and which examples of each count; None: all do."""
    if not isinstance(batch_size, Sequence):
        check_size("batch_size", batch_size)
        return batch_size, None
    for size in batch_size:
        check_size("each of batch_size", size)
    sizes = np.asarray(batch_size)
    if len(sizes) != num_workers:
        raise ValueError(
            f"batch_size has {len(sizes)} numbers, but there are {num_workers} "
            "workers; give one number, or one for each"
        )
    largest = int(sizes.max())
    return largest, np.float32(np.arange(largest) < sizes[:, None])


def _draw_indices(batch_size, partition, key, here=lambda of_all: of_all):
    key, _ = jax.random.split(key)  # the other half augments
    sizes = jnp.expand_dims(partition.sizes, 1)
    places = jax.random.randint(key, (sizes.shape[0], batch_size), 0, sizes)
    places = here(_shared(partition, places))
    return jnp.take_along_axis(partition.indices, places, axis=1)


def _shared(partition, drawn):
    """Of what was drawn for each worker, what each one uses."""
    return drawn if partition.draws is None else drawn[partition.draws]


def _draw(batch_size, augment, dataset, partition, first_worker, counted, key):
    num_workers, rows = partition.sizes.shape[0], partition.indices.shape[0]

    def here(of_all):
        """What was drawn for the workers that there are examples of."""
        if rows == num_workers:
            return of_all
        return lax.dynamic_slice_in_dim(of_all, first_worker, rows)

    _, augment_key = jax.random.split(key)
    examples = _draw_indices(batch_size, partition, key, here)
    inputs = dataset.train_inputs[examples]
    if augment:
        inputs = _augmented(
            augment_key, inputs, num_workers, lambda all: here(_shared(partition, all))
        )
    batch = standardise(inputs, dataset), dataset.train_labels[examples]
    return batch if counted is None else (*batch, here(counted))


def _augmented(key, images, num_workers, here):
    """Random crop and flip of images `[rows, B, height, width, channels]`."""

    def crop_and_flip(image, corner, flip):
        padded = jnp.pad(image, ((_PADDING, _PADDING), (_PADDING, _PADDING), (0, 0)))
        image = lax.dynamic_slice(padded, (*corner, jnp.int32(0)), image.shape)
        return jnp.where(flip, image[:, ::-1], image)

    corner_key, flip_key = jax.random.split(key)
    shape = (num_workers, images.shape[1])
    corners = here(jax.random.randint(corner_key, (*shape, 2), 0, 2 * _PADDING + 1))
    flips = here(jax.random.bernoulli(flip_key, shape=shape))
    return jax.vmap(jax.vmap(crop_and_flip))(images, corners, flips)

"""Batches by where their examples come from."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from signfd_jax import data, models
from signfd_jax.data import batches, partition


def shares(split):
    """The examples of each worker, without the padding."""
    return [row[:size] for row, size in zip(split.indices, split.sizes, strict=True)]


def numbered(num=200, shape=(1, 1, 3), num_classes=5):
    """A data set in which an image's first pixel is its own number."""
    inputs = np.zeros((num, *shape), np.uint8)
    inputs[:, 0, 0, 0] = np.arange(num)
    return data.Dataset(
        name="numbered",
        num_classes=num_classes,
        scale=1.0,
        train_inputs=inputs,
        train_labels=(np.arange(num) % num_classes).astype(np.int32),
        test_inputs=inputs[:3],
        test_labels=np.zeros(3, np.int32),
        mean=np.zeros(shape[-1], np.float32),
        std=np.ones(shape[-1], np.float32),
    )


def numbers(inputs):
    return np.asarray(inputs[..., 0, 0, 0]).astype(int)


def test_batches_come_from_the_share_of_their_worker(key):
    dataset = numbered()
    split = partition.dirichlet(dataset.train_labels, 13, 0.2)
    inputs, labels = jax.jit(batches.worker_batches(dataset, split, 50))(key)
    assert inputs.shape == (13, 50, 1, 1, 3)
    assert (inputs.dtype, labels.dtype) == (jnp.float32, jnp.int32)
    drawn = numbers(inputs)
    np.testing.assert_array_equal(labels, dataset.train_labels[drawn])
    for row, share in zip(drawn, shares(split), strict=True):
        assert set(row) <= set(share)


def test_draws_are_uniform_over_the_share(key):
    dataset = numbered()
    split = partition.Partition(
        np.array([[7, 7, 7, 7], [3, 9, 3, 3], [1, 5, 2, 4]], np.int32),
        np.array([1, 2, 4], np.int32),
    )
    sample_batch = jax.jit(batches.worker_batches(dataset, split, 20_000))
    drawn = numbers(sample_batch(key)[0])
    for row, share in zip(drawn, shares(split), strict=True):
        counts = np.array([np.sum(row == example) for example in share])
        assert counts.sum() == 20_000
        p = 1 / len(share)
        # Each within 6 standard deviations: false alarm 2e-9 each.
        assert (abs(counts - 20_000 * p) <= 6 * (20_000 * p * (1 - p)) ** 0.5).all()


def test_batches_are_standardised():
    digits = data.load("digits")
    split = partition.iid(digits.train_labels, 4)
    none, half = np.float32([0.0]), np.float32([0.5])
    digits = dataclasses.replace(digits, mean=none, std=np.float32([1.0]))
    changed = dataclasses.replace(digits, mean=half)
    key = jax.random.key(3)
    one, other = (
        jax.jit(batches.worker_batches(dataset, split, 6))(key)[0]
        for dataset in (digits, changed)
    )
    assert 0 <= one.min() < one.max() <= 1
    np.testing.assert_allclose(one - 0.5, other, atol=1e-6)


def test_batches_in_jit_scan_and_vmap_are_the_same(key):
    dataset = numbered(shape=(6, 6, 1))
    split = partition.iid(dataset.train_labels, 3)
    sample_batch = batches.worker_batches(dataset, split, 4, augment=True)
    keys = jax.random.split(key, 5)
    one = jax.jit(sample_batch)
    loop = [one(k) for k in keys]
    wanted = jax.tree.map(lambda *x: jnp.stack(x), *loop)
    mapped = jax.jit(jax.vmap(sample_batch))(keys)
    _, scanned = jax.lax.scan(lambda _, k: (None, sample_batch(k)), None, keys)
    for got in (mapped, scanned):
        chex.assert_trees_all_close(got, wanted, rtol=1e-6)
    assert not np.array_equal(wanted[1][0], wanted[1][1])  # other keys, other draws


def test_data_are_an_argument_of_the_program_not_a_part(key):
    dataset = numbered()
    split = partition.iid(dataset.train_labels, 3)

    @jax.jit
    @chex.assert_max_traces(1)
    def draw(sample_batch, key):
        return sample_batch(key)

    sample_batch = batches.worker_batches(dataset, split, 4)
    assert jax.make_jaxpr(draw)(sample_batch, key).consts == []
    first = draw(sample_batch, key)
    chex.assert_trees_all_equal(draw(sample_batch, key), first)
    # Dataset and partition may be arguments themselves.
    inside = jax.jit(lambda d, p, k: batches.worker_batches(d, p, 4)(k))
    chex.assert_trees_all_close(inside(dataset, split, key), first, rtol=1e-6)


def test_augmented_images_are_crops_and_flips(key):
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (4, 12, 10, 3)).astype(np.uint8)
    dataset = dataclasses.replace(
        numbered(num=4, shape=(12, 10, 3)), train_inputs=images
    )
    split = partition.iid(np.zeros(4, int), 2)
    (plain, labels), (augmented, same_labels) = (
        jax.jit(batches.worker_batches(dataset, split, 600, augment=augment))(key)
        for augment in (False, True)
    )
    np.testing.assert_array_equal(labels, same_labels)
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    versions = {}
    for number in range(4):
        for top, left in np.ndindex(9, 9):
            crop = padded[number, top : top + 12, left : left + 10]
            versions[crop.tobytes()] = number, (top, left, False)
            versions[crop[:, ::-1].tobytes()] = number, (top, left, True)
    seen = []
    originals = [image.tobytes() for image in images]
    plain, augmented = (
        np.asarray(x).astype(np.uint8).reshape(-1, 12, 10, 3)
        for x in (plain, augmented)
    )
    for original, image in zip(plain, augmented, strict=True):
        number, change = versions[image.tobytes()]  # nothing else occurs
        assert originals[number] == original.tobytes()
        seen.append(change)
    tops, lefts, flips = np.array(seen).T
    # 1200 draws: one of 9 values is missing with probability 9 (8/9)^1200 < 1e-60.
    assert set(tops) == set(lefts) == set(range(9))
    assert abs(flips.mean() - 0.5) < 6 * 0.5 / 1200**0.5  # false alarm 2e-9


def test_refuses_batches_that_make_no_sense():
    dataset = numbered(num=20)
    split = partition.iid(dataset.train_labels, 2)
    with pytest.raises(ValueError, match="batch_size must be an int >= 1, but is 0"):
        batches.worker_batches(dataset, split, 0)
    with pytest.raises(ValueError, match="has 3 numbers, but there are 2 workers"):
        batches.worker_batches(dataset, split, [4, 5, 6])
    with pytest.raises(ValueError, match="each of batch_size must be an int >= 1"):
        batches.worker_indices(split, [4, 0])
    other = partition.iid(np.zeros(30, int), 2)
    with pytest.raises(ValueError, match="holds example 29, but numbered has 20"):
        batches.worker_batches(dataset, other, 4)


def test_indices_looked_up_are_the_batches(key):
    dataset = data.load("digits")
    split = partition.iid(dataset.train_labels, 7)
    inputs, labels = batches.worker_batches(dataset, split, 3)(key)
    indices = batches.worker_indices(split, 3)(key)
    found_inputs, found_labels = batches.examples(dataset)(indices)
    np.testing.assert_array_equal(found_labels, labels)
    np.testing.assert_array_equal(found_inputs, inputs)
    with pytest.raises(ValueError, match="batch_size must be an int >= 1"):
        batches.worker_indices(split, 0)


def test_unlike_batches_have_the_gradients_of_batches_of_their_sizes(key):
    dataset = data.load("digits")
    split = partition.iid(dataset.train_labels, 3)
    sizes = [2, 7, 5]
    batch = jax.jit(batches.worker_batches(dataset, split, sizes))(key)
    model = models.SoftmaxRegression()
    params = model.init(key, batch[0][0])
    gradient = jax.jit(jax.grad(models.loss_fn(model)))
    together = jax.jit(jax.vmap(gradient, (None, 0)))(params, batch)
    for worker, size in enumerate(sizes):
        alone = gradient(params, tuple(leaf[worker, :size] for leaf in batch[:2]))
        row = jax.tree.map(lambda leaf, worker=worker: leaf[worker], together)
        chex.assert_trees_all_close(row, alone, rtol=1e-5, atol=1e-7)
    indices, examples = batches.worker_indices(split, sizes), batches.examples(dataset)
    looked_up = jax.jit(lambda key: examples(indices(key)))(key)
    chex.assert_trees_all_equal(looked_up, batch)

"""Splits by their laws."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from signfd_jax.data import partition

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array)
WORKERS = st.integers(1, 25)
SEEDS = st.integers(0, 2**32 - 1)

SPLITS = {
    "iid": partition.iid,
    "dirichlet": lambda labels, num_workers, *, seed=0: partition.dirichlet(
        labels, num_workers, 0.5, seed=seed
    ),
    "labels": lambda labels, num_workers, *, seed=0: partition.labels_per_worker(
        labels, num_workers, 1, seed=seed
    ),
    "one_class": partition.one_class_per_worker,
    "replicated": lambda labels, num_workers, *, seed=0: partition.replicated(
        labels, num_workers, 3, seed=seed
    ),
    "shards": lambda labels, num_workers, *, seed=0: partition.shards(
        labels, num_workers, 2, seed=seed
    ),
    "similarity": lambda labels, num_workers, *, seed=0: partition.similarity(
        labels, num_workers, 0.4, seed=seed
    ),
    "writers": partition.by_writer,
}


def shares(split):
    """The examples of each worker, without the padding."""
    return [row[:size] for row, size in zip(split.indices, split.sizes, strict=True)]


def class_counts(split, labels):
    """`[M, C]`, by a loop over workers."""
    classes = np.unique(labels)
    return np.array([[np.sum(labels[s] == c) for c in classes] for s in shares(split)])


@pytest.mark.parametrize("name", SPLITS)
@given(labels=LABELS, num_workers=WORKERS, seed=SEEDS)
def test_every_split_is_well_formed(name, labels, num_workers, seed):
    split = SPLITS[name](labels, num_workers, seed=seed)
    assert split.indices.dtype == split.sizes.dtype == np.int32
    assert split.indices.shape == (num_workers, split.sizes.max())
    assert split.sizes.min() >= 1
    assert 0 <= split.indices.min() <= split.indices.max() < len(labels)
    for row, size in zip(split.indices, split.sizes, strict=True):
        assert len(set(row[:size])) == size  # no example twice in a share
        assert (row[size:] == row[0]).all()


@pytest.mark.parametrize("name", SPLITS)
def test_seed_decides(name):
    labels = np.repeat(np.arange(5), 40)
    one, again, other = (SPLITS[name](labels, 7, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.indices, again.indices)
    assert [set(s) for s in shares(one)] != [set(s) for s in shares(other)]


@pytest.mark.parametrize("name", SPLITS)
def test_refuses_nobody_and_nothing(name):
    with pytest.raises(ValueError, match="num_workers must be an int >= 1, but is 0"):
        SPLITS[name](np.zeros(3, int), 0)
    what = "writers" if name == "writers" else "labels"
    with pytest.raises(ValueError, match=rf"{what} must be \[n\].*\(0,\)"):
        SPLITS[name](np.zeros(0, int), 3)
    if name not in ("iid", "replicated"):
        with pytest.raises(ValueError, match=rf"{what} must be .*\(3, 2\); texts have"):
            SPLITS[name](np.zeros((3, 2), int), 3)


def test_texts_are_dealt_as_if_of_one_class():
    labels = np.random.default_rng(0).integers(0, 9, (20, 5))
    split = partition.iid(labels, 3, seed=4)
    wanted = partition.iid(np.zeros(20, int), 3, seed=4)
    np.testing.assert_array_equal(split.indices, wanted.indices)
    assert partition.everything(labels, 3).indices.shape == (3, 20)


@given(labels=LABELS, num_workers=WORKERS, seed=SEEDS)
def test_iid_deals_every_class_evenly(labels, num_workers, seed):
    split = partition.iid(labels, num_workers, seed=seed)
    counts = class_counts(split, labels)
    assert np.ptp(counts, axis=0).max() <= 1
    assert np.ptp(split.sizes) <= 1
    totals = np.unique(labels, return_counts=True)[1]
    np.testing.assert_array_equal(counts.sum(0), np.maximum(totals, num_workers))
    if totals.min() >= num_workers:
        everyone = np.concatenate(shares(split))
        np.testing.assert_array_equal(np.sort(everyone), np.arange(len(labels)))


def test_iid_of_more_workers_than_examples():
    labels = np.random.default_rng(0).integers(0, 10, 60_000)
    split = partition.iid(labels, 100_000)
    assert split.indices.shape == (100_000, 10)
    np.testing.assert_array_equal(
        np.sort(labels[split.indices]), np.tile(np.arange(10), (100_000, 1))
    )
    # Shared evenly, too: how often an example is held differs by one in its class.
    held = np.bincount(split.indices.ravel(), minlength=60_000)
    assert max(np.ptp(held[labels == c]) for c in range(10)) <= 1


@given(
    labels=LABELS,
    num_workers=WORKERS,
    seed=SEEDS,
    alpha=st.floats(1e-3, 1e3),
)
def test_dirichlet_uses_every_example_once(labels, num_workers, seed, alpha):
    split = partition.dirichlet(labels, num_workers, alpha, seed=seed)
    held = np.bincount(np.concatenate(shares(split)), minlength=len(labels))
    if num_workers <= len(labels):
        assert (held == 1).all()
    else:  # all have one example
        assert (split.sizes == 1).all()
        assert (held >= 1).all()


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_dirichlet_proportions_have_their_second_moment(alpha):
    num_workers, num_classes, num = 5, 400, 1_000
    labels = np.repeat(np.arange(num_classes), num)
    split = partition.dirichlet(labels, num_workers, alpha, seed=1)
    owner = np.empty(len(labels), int)
    for worker, share in enumerate(shares(split)):
        owner[share] = worker
    counts = np.zeros((num_classes, num_workers))
    np.add.at(counts, (labels, owner), 1)
    concentration = ((counts / num) ** 2).sum(1)
    wanted = (alpha + 1) / (num_workers * alpha + 1)
    # Classes are independent: the mean is within 6 standard errors, false alarm 1e-8,
    # and rounding to whole examples moves it by less than 1e-3.
    error = 6 * concentration.std() / num_classes**0.5 + 1e-3
    assert abs(concentration.mean() - wanted) < error


def test_dirichlet_gives_the_empty_an_example_of_the_largest():
    labels = np.zeros(100, int)
    split = partition.dirichlet(labels, 20, 1e-6)  # one worker gets all, then gives
    assert split.sizes.sum() == 100
    assert np.sort(split.sizes)[-1] == 81
    assert np.sort(split.sizes)[:-1].tolist() == [1] * 19


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_dirichlet_refuses_alpha(alpha):
    with pytest.raises(ValueError, match="alpha must be positive and finite"):
        partition.dirichlet(np.zeros(5, int), 2, alpha)


def test_dirichlet_of_many_workers():
    labels = np.random.default_rng(0).integers(0, 10, 60_000)
    split = partition.dirichlet(labels, 100_000, 0.3)
    assert (split.sizes == 1).all()
    assert len(np.unique(split.indices)) == 60_000


@given(num_workers=WORKERS, num_labels=st.integers(1, 6), seed=SEEDS)
def test_labels_per_worker_has_as_many_labels(num_workers, num_labels, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(6), 30))
    split = partition.labels_per_worker(labels, num_workers, num_labels, seed=seed)
    counts = class_counts(split, labels)
    assert ((counts > 0).sum(1) == num_labels).all()
    holders = (counts > 0).sum(0)
    assert np.ptp(holders) <= 1
    for count in counts.T[holders > 0]:
        assert np.ptp(count[count > 0]) <= 1  # shared evenly
        assert count.sum() == 30  # and fully


@pytest.mark.parametrize("num_labels", [0, 4])
def test_labels_per_worker_refuses_other_numbers(num_labels):
    with pytest.raises(ValueError, match=f"between 1 and the 3 .* is {num_labels}"):
        partition.labels_per_worker(np.array([0, 1, 2]), 2, num_labels)


@given(num_workers=WORKERS, seed=SEEDS)
def test_one_class_per_worker(num_workers, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(4), 30))
    split = partition.one_class_per_worker(labels, num_workers, seed=seed)
    for worker, share in enumerate(shares(split)):
        assert set(labels[share]) == {worker % 4}
    counts = class_counts(split, labels)
    for c in range(min(4, num_workers)):
        assert np.ptp(counts[c::4, c]) <= 1
        assert counts[c::4, c].sum() == 30


@given(labels=LABELS, num_workers=WORKERS, seed=SEEDS, share=st.floats(0, 1))
def test_similarity_uses_every_example_and_keeps_sizes_even(
    labels, num_workers, seed, share
):
    split = partition.similarity(labels, num_workers, share, seed=seed)
    assert np.ptp(split.sizes) <= 1
    held = np.bincount(np.concatenate(shares(split)), minlength=len(labels))
    assert held.sum() == max(len(labels), num_workers)
    assert np.ptp(held) <= 1 and held.min() >= 1


@given(labels=LABELS, num_workers=WORKERS, seed=SEEDS)
def test_similarity_of_none_is_the_order_of_the_classes(labels, num_workers, seed):
    split = partition.similarity(labels, num_workers, 0.0, seed=seed)
    line = np.concatenate([np.sort(labels[share]) for share in shares(split)])
    assert (np.diff(line) >= 0).all()


def test_similarity_has_its_share_of_other_classes():
    """A worker has a class, and of the others what is dealt at random.

    Of 10,000 draws, a share of 0.3 of which nine in ten are others: five deviations.
    """
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 1_000))
    counts = class_counts(partition.similarity(labels, 10, 0.3), labels)
    assert (counts.argmax(1) == np.arange(10)).all()
    others = 1 - np.trace(counts) / 10_000
    # The others of each class are not exactly 700, so parts overlap by a few.
    assert abs(others - 0.27) < 5 * np.sqrt(0.27 * 0.73 / 10_000) + 0.02


@given(labels=LABELS, num_workers=WORKERS, seed=SEEDS, num_shards=st.integers(1, 4))
def test_shards_are_pieces_of_the_line(labels, num_workers, seed, num_shards):
    split = partition.shards(labels, num_workers, num_shards, seed=seed)
    held = np.bincount(np.concatenate(shares(split)), minlength=len(labels))
    assert held.sum() == max(len(labels), num_workers)
    assert np.ptp(held) <= 1 and held.min() >= 1
    assert np.ptp(split.sizes) <= num_shards
    # A piece of at most as many examples as a class has holds two classes at most.
    smallest = np.unique(labels, return_counts=True)[1].min()
    if smallest >= -(-len(labels) // (num_workers * num_shards)):
        assert all(len(set(labels[s])) <= 2 * num_shards for s in shares(split))


def test_shards_by_hand():
    """Ten classes of 100, two pieces of 50 for each of ten workers."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 100))
    counts = class_counts(partition.shards(labels, 10, 2), labels)
    assert {*counts.ravel().tolist()} <= {0, 50, 100}
    assert (counts.sum(0) == 100).all() and (counts.sum(1) == 100).all()
    assert (counts == 50).any()  # not as in the order of the classes


@given(writers=LABELS, num_workers=WORKERS, seed=SEEDS)
def test_by_writer_gives_whole_writers_in_turn(writers, num_workers, seed):
    split = partition.by_writer(writers, num_workers, seed=seed)
    held = [set(writers[share].tolist()) for share in shares(split)]
    numbers = [len(names) for names in held]
    assert max(numbers) - min(numbers) <= 1
    assert min(numbers) >= 1
    for writer in np.unique(writers):
        own = set(np.flatnonzero(writers == writer).tolist())
        holders = [set(s.tolist()) for s in shares(split) if writer in writers[s]]
        assert set.union(*holders) & own == own  # all that was written is used
        if len(np.unique(writers)) >= num_workers:
            assert len(holders) == 1  # by one worker
        else:
            sizes = [len(share) for share in holders]
            assert max(sizes) - min(sizes) <= 1


def test_by_writer_refuses_data_without_writers():
    with pytest.raises(ValueError, match="do not say who wrote which example"):
        partition.by_writer(None, 3)

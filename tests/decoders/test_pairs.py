"""The sample of the coordinates, and what pairs of workers are counted on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from signfd_jax.decoders import _pairs
from signfd_jax.signs import packed

BITS = 16  # workers whose votes spell the number of their coordinate
PADDED = 8 * BITS


def numbered(begin, length):
    """Votes `[BITS, length]` that differ for any two coordinates below 2^16."""
    numbers = begin + np.arange(length)
    return np.int8(2 * (numbers >> np.arange(BITS)[:, None] & 1) - 1)


def read_numbers(votes):
    """The coordinates in the order of a sample; columns of zeros are of no worker."""
    votes = np.asarray(votes)
    there = np.any(votes != 0, axis=0)
    assert np.all(votes[:, there] != 0)
    return ((votes[:, there] > 0) << np.arange(BITS)[:, None]).sum(axis=0)


def leaves_of(lengths, pack):
    """One leaf of each length, coordinates numbered through."""
    begins = np.cumsum([0, *lengths[:-1]])
    leaves = [jnp.asarray(numbered(b, n)) for b, n in zip(begins, lengths, strict=True)]
    return pack(leaves)


def one_of_each_block(numbers, total, block):
    """Whether they are rising, one of each block, but for what lies in the padding."""
    blocks = np.asarray(numbers) // block
    missing = np.setdiff1d(np.arange(-(-total // block)), blocks)
    assert np.all(np.diff(blocks) > 0)
    assert np.all(numbers < total)
    return np.all((missing + 1) * block > total)


@pytest.mark.parametrize("size", [1, 5, 33, 300])
@pytest.mark.parametrize(
    "lengths", [[1], [90], [128, 128], [1, 0, 200, 2, 1], [37, 45, 46, 3], [5] * 20]
)
def test_one_coordinate_of_each_block_however_they_are_laid_out(lengths, size):
    keys, total = jax.random.split(jax.random.key(0), 10), sum(lengths)
    block = -(-(PADDED * -(-total // PADDED)) // size)
    one, many = leaves_of([total], list), leaves_of(lengths, list)

    @jax.jit
    def samples(keys, one, many):
        layouts = {
            "one leaf": one,
            "many leaves": many,
            "packed": packed.pack_ternary(many),
            "one bit": packed.pack_one_bit(one),
        }
        return {
            name: jax.vmap(
                lambda key, leaves=leaves: _pairs.sampled_votes(key, leaves, size)
            )(keys)
            for name, leaves in layouts.items()
        }

    found = samples(keys, one, many)
    for number in range(len(keys)):
        chosen = {name: read_numbers(votes[number]) for name, votes in found.items()}
        assert one_of_each_block(chosen["one leaf"], total, block)
        for name, numbers in chosen.items():
            np.testing.assert_array_equal(numbers, chosen["one leaf"], err_msg=name)


def test_every_coordinate_is_drawn_as_often_as_others():
    """1,000 samples of blocks of 8: a chi-squared above 60 with 7 degrees of freedom
    has a chance below 1e-9, so of 32 blocks below 1e-7.
    """
    length, keys = 256, jax.random.split(jax.random.key(0), 1_000)
    votes = jnp.asarray(numbered(0, length))
    samples = jax.vmap(lambda key: _pairs.sampled_votes(key, votes, 32))(keys)
    counts = np.zeros(length)
    for sample in np.asarray(samples):
        np.add.at(counts, read_numbers(sample), 1)
    expected = 1_000 / 8
    chi = np.sum((counts.reshape(-1, 8) - expected) ** 2 / expected, axis=1)
    assert chi.max() < 60


def test_a_sample_of_all_is_all():
    votes = leaves_of([40, 0, 3, 1], list)
    numbers = read_numbers(_pairs.sampled_votes(jax.random.key(0), votes, 8192))
    np.testing.assert_array_equal(numbers, np.arange(44))


def test_no_coordinates():
    assert _pairs.sampled_votes(jax.random.key(0), (), 8).shape == (1, 0)
    nothing = jnp.zeros((3, 0), jnp.int8)
    assert _pairs.sampled_votes(jax.random.key(0), nothing, 8).shape == (3, 0)


@pytest.mark.parametrize(
    ("size", "num_devices"), [(1, 8), (7, 2), (64, 4), (100, 8), (2_000, 8)]
)
def test_the_sample_is_the_same_when_split_over_devices(size, num_devices):
    """Each sampled coordinate is seen by the device whose it is, and by no other."""
    length = 5 * PADDED
    votes = jnp.asarray(numbered(0, length))
    key = jax.random.key(size)
    mesh = jax.make_mesh(
        (num_devices,),
        ("slice",),
        axis_types=(AxisType.Auto,),
        devices=jax.devices()[:num_devices],
    )
    split = jax.jit(
        jax.shard_map(
            lambda votes: _pairs.sampled_votes(key, votes, size, "slice")[None],
            mesh=mesh,
            in_specs=P(None, "slice"),
            out_specs=P("slice"),
        )
    )(votes)
    here = [read_numbers(sample) for sample in split]
    for device, numbers in enumerate(here):
        np.testing.assert_array_equal(numbers // (length // num_devices), device)
    whole = read_numbers(_pairs.sampled_votes(key, votes, size))
    np.testing.assert_array_equal(np.concatenate(here), whole)


def test_coordinates_beyond_two_to_the_31():
    """A leaf of 1,000 coordinates behind 2^33 others: as Python's integers say."""
    block = 2**30 + 7
    begin = 8 * block - 500  # the leaf lies in the blocks 7 and 8
    for seed in range(20):
        drawn = np.random.default_rng(seed).integers(0, block, 12)
        drawn[7:9] = [block - 500 + seed, 400 + 10 * seed]
        places, inside = _pairs._places(
            jnp.asarray(drawn, jnp.int32), block, [begin], 1000, None
        )
        wanted = [index * block + int(drawn[index]) - begin for index in (7, 8)]
        found = np.asarray(places)[np.asarray(inside)]
        np.testing.assert_array_equal(found, [w for w in wanted if 0 <= w < 1000])


def test_a_model_of_two_to_the_33_coordinates_is_sampled():
    """By shapes alone: 64 leaves of 2^27."""
    leaf = jax.ShapeDtypeStruct((3, 2**27), jnp.int8)
    sample = jax.eval_shape(
        lambda votes: _pairs.sampled_votes(jax.random.key(0), votes, 8192), [leaf] * 64
    )
    # A block of each end of a leaf may count twice.
    assert 8192 <= sample.shape[1] <= 8192 + 2 * 64


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**16),
    size=st.sampled_from([1, 5, 63, 300]),
    num_members=st.integers(1, 4),
)
def test_pair_counts_are_a_naive_loop(seed, size, num_members):
    rng = np.random.default_rng(seed)
    members = rng.integers(-1, 2, (num_members, size)).astype(np.int8)
    votes = rng.integers(-1, 2, (6, size)).astype(np.int8)
    balance, pairs = _pairs.pair_counts(jnp.asarray(members), jnp.asarray(votes))
    for k, one in enumerate(members.tolist()):
        for m, other in enumerate(votes.tolist()):
            products = [a * b for a, b in zip(one, other, strict=True)]
            assert balance[k, m] == sum(products)
            assert pairs[k, m] == sum(map(abs, products))


@pytest.mark.parametrize("axis", ["slice", ("slice", "more")])
def test_pair_counts_add_up_over_devices(axis):
    rng = np.random.default_rng(0)
    votes = jnp.asarray(rng.integers(-1, 2, (5, 96)), jnp.int8)
    auto = (AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("slice", "more"), axis_types=auto)
    split = jax.jit(
        jax.shard_map(
            lambda votes: _pairs.pair_counts(votes[:3], votes, axis),
            mesh=mesh,
            in_specs=P(None, axis),
            out_specs=P(),
        )
    )(votes)
    whole = _pairs.pair_counts(votes[:3], votes)
    for ours, theirs in zip(split, whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)

"""What a vote is, and the one-bit wire."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import signfd_jax as sfd
from signfd_jax import signs

SPECIAL = [0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 2.5, -2.5, 6e-5, -6e-5]
SPECIAL_VOTES = [0, 0, 0, 0, 1, -1, 1, -1, 1, -1]


def numpy_filling(worker, coordinate, round):
    """The bit that stands for an abstention, in Python's own integers."""

    def mix(word):
        word ^= word >> 16
        word = word * 0x85EBCA6B % 2**32
        word ^= word >> 13
        word = word * 0xC2B2AE35 % 2**32
        return word ^ (word >> 16)

    golden = 0x9E3779B9
    row = mix((worker * golden + mix(round)) % 2**32)
    return 1 - 2 * (mix((coordinate * golden % 2**32) ^ row) >> 31)


def random_votes(shapes, num_workers, seed=0):
    rng = np.random.default_rng(seed)
    return [
        jnp.asarray(rng.integers(-1, 2, (num_workers, *shape)), jnp.int8)
        for shape in shapes
    ]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_votes_of_special_numbers(dtype):
    leaf = jnp.array(SPECIAL, dtype)
    for vote in (sfd.votes(leaf), jax.jit(sfd.votes)(leaf)):
        assert vote.dtype == jnp.int8
        np.testing.assert_array_equal(vote, SPECIAL_VOTES)


def test_votes_in_double_precision():
    with jax.enable_x64(True):
        leaf = jnp.array([*SPECIAL, 1e-300, -1e300], jnp.float64)
        vote = sfd.votes(leaf)
    assert vote.dtype == jnp.int8
    np.testing.assert_array_equal(vote, [*SPECIAL_VOTES, 1, -1])


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int32, jnp.uint8])
def test_votes_of_integers(dtype):
    leaf = jnp.array([0, 1, 100, 255 if dtype == jnp.uint8 else -128], dtype)
    np.testing.assert_array_equal(
        sfd.votes(leaf), [0, 1, 1, 1 if dtype == jnp.uint8 else -1]
    )


def test_votes_keep_the_tree():
    tree = {"a": (jnp.ones((3, 2)), -jnp.ones(3)), "b": []}
    vote = sfd.votes(tree)
    assert jax.tree.structure(vote) == jax.tree.structure(tree)
    assert vote["a"][1].shape == (3,) and int(vote["a"][1][0]) == -1


def test_votes_refuse_complex_numbers():
    with pytest.raises(ValueError, match=r"complex.*split_real_and_imaginary"):
        sfd.votes({"w": jnp.ones((2, 3), jnp.complex64)})


def test_present_workers_by_hand():
    nan, inf = jnp.nan, jnp.inf
    gradients = {
        "w": jnp.array([[1.0, nan], [nan, inf], [nan, nan], [inf, -inf], [0.0, 0.0]]),
        "b": jnp.array([nan, 2.0, nan, inf, 0.0]),
    }
    np.testing.assert_array_equal(
        signs.present_workers(gradients), [True, True, False, False, True]
    )


def test_filling_is_the_documented_hash():
    (sent,) = signs.to_wire([jnp.zeros((5, 7), jnp.int8)], 11)
    expected = [[numpy_filling(m, n, 11) for n in range(7)] for m in range(5)]
    np.testing.assert_array_equal(sent, expected)
    down = signs.fill_ties(jnp.zeros(7, jnp.int8), 11)
    server = [numpy_filling(2**32 - 1, n, 11) for n in range(7)]
    np.testing.assert_array_equal(down, server)


def test_to_wire_touches_nothing_but_abstentions():
    leaves = random_votes([(4, 5), (), (1,), (0,), (9,)], num_workers=6)
    sent = jax.jit(signs.to_wire)(leaves, 3)
    for vote, bit in zip(leaves, sent, strict=True):
        assert bit.dtype == jnp.int8 and bit.shape == vote.shape
        assert np.all(np.abs(bit) == 1)
        np.testing.assert_array_equal(np.where(vote == 0, 0, bit), vote)


def test_absent_rows_are_zero_and_the_others_unchanged():
    leaves = random_votes([(3, 2), ()], num_workers=4)
    present = jnp.array([True, False, True, False])
    everyone = signs.to_wire(leaves, 0)
    some = signs.to_wire(leaves, 0, present=present)
    for all_bits, bits in zip(everyone, some, strict=True):
        np.testing.assert_array_equal(bits[1::2], np.zeros_like(bits[1::2]))
        np.testing.assert_array_equal(bits[::2], all_bits[::2])


def test_fill_ties_touches_nothing_but_ties():
    leaves = [v[0] for v in random_votes([(4, 5), (), (3,)], num_workers=1)]
    filled = signs.fill_ties(leaves, jnp.int32(2))
    for sign, bit in zip(leaves, filled, strict=True):
        assert bit.shape == sign.shape and np.all(np.abs(bit) == 1)
        np.testing.assert_array_equal(np.where(sign == 0, 0, bit), sign)


SHAPES = [(3, 4), (), (7,), (2, 1, 5)]
SIZE = 12 + 1 + 7 + 10
NUM_WORKERS, ROWS, COLUMNS = 9, 4, 11
jitted_to_wire = jax.jit(signs.to_wire)


def ravel(leaves):
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)


@jax.jit
def whole_wire(leaves, round):
    return signs.to_wire(leaves, round), ravel(signs.to_wire(leaves, round))


@jax.jit
def rows_wire(leaves, round, first):
    rows = [jax.lax.dynamic_slice_in_dim(leaf, first, ROWS) for leaf in leaves]
    return signs.to_wire(rows, round, first_worker=first)


@jax.jit
def block_wire(leaves, round, first, start):
    block = jax.lax.dynamic_slice(ravel(leaves), (first, start), (ROWS, COLUMNS))
    return signs.to_wire(block, round, first_worker=first, first_coordinate=start)


@settings(max_examples=40)
@given(
    first=st.integers(0, NUM_WORKERS - ROWS),
    start=st.integers(0, SIZE - COLUMNS),
    round=st.integers(0, 2**31 - 1),
)
def test_chunks_are_slices_of_the_whole(first, start, round):
    leaves = random_votes(SHAPES, NUM_WORKERS)
    whole, flat = whole_wire(leaves, round)
    for bits, all_bits in zip(rows_wire(leaves, round, first), whole, strict=True):
        np.testing.assert_array_equal(bits, all_bits[first : first + ROWS])
    np.testing.assert_array_equal(
        block_wire(leaves, round, first, start),
        flat[first : first + ROWS, start : start + COLUMNS],
    )


def test_chunks_may_be_numbered_by_python_integers():
    votes = jnp.zeros((6, 8), jnp.int8)
    sent = signs.to_wire(votes[2:, 3:], 7, first_worker=2, first_coordinate=3)
    np.testing.assert_array_equal(sent, signs.to_wire(votes, 7)[2:, 3:])


def test_tie_slices_equal_the_whole():
    whole = signs.fill_ties([jnp.zeros((4, 5), jnp.int8), jnp.zeros(6, jnp.int8)], 5)
    flat = np.concatenate([np.ravel(leaf) for leaf in whole])
    part = jax.jit(signs.fill_ties)(
        jnp.zeros(10, jnp.int8), 5, first_coordinate=jnp.int32(13)
    )
    np.testing.assert_array_equal(part, flat[13:23])


def test_fillings_are_balanced_and_uncorrelated():
    """Rows: 16 workers and the server in 8 rounds.

    Were the hash a random function, every sum below would be N(0, N); 6 standard
    deviations are passed with probability 2e-9, by any of the 10,336 with 2e-5.
    """
    size, rounds = 2**15, [0, 1, 2, 3, 4, 100, 101, 2999]
    zeros = jnp.zeros((16, size), jnp.int8)
    rows = np.concatenate(
        [jitted_to_wire(zeros, t) for t in rounds]
        + [signs.fill_ties(zeros[:1], t) for t in rounds]
    ).astype(np.float32)
    bound = 6 * np.sqrt(size)
    assert np.abs(rows.sum(axis=1)).max() < bound
    products = rows @ rows.T
    between = products[np.triu_indices(len(rows), k=1)]
    assert np.abs(between).max() < bound
    # Not too even either: the spread itself is that of independent bits, within 6
    # standard errors of a variance (1 / sqrt(2 n), relative).
    spread = between.var() / size
    assert abs(spread - 1) < 6 * np.sqrt(2 / between.size)
    for lag in (1, 2, 3, 8, 784):
        neighbours = (rows[:, lag:] * rows[:, :-lag]).sum(axis=1)
        assert np.abs(neighbours).max() < bound


@pytest.mark.parametrize("size", [1, 7, 8, 9, 70])
@settings(max_examples=15)
@given(data=st.data())
def test_packing_round_trip_in_exactly_the_bytes_needed(size, data):
    bits = data.draw(st.lists(st.booleans(), min_size=2 * size, max_size=2 * size))
    votes = jnp.asarray(np.where(bits, 1, -1).astype(np.int8).reshape(2, size))
    packed = signs.pack(votes)
    assert packed.dtype == jnp.uint8
    assert packed.shape == (2, -(-size // 8))
    assert packed.nbytes == 2 * -(-size // 8)
    unpacked = signs.unpack(packed, size)
    assert unpacked.dtype == jnp.int8
    np.testing.assert_array_equal(unpacked, votes)


def test_bit_order_on_the_wire():
    """Coordinate n is bit n // B, from the highest, of byte n % B of B bytes."""
    votes = jnp.array([[1, -1, 1, 1, -1, -1, -1, 1, 1], [-1] * 9], jnp.int8)
    np.testing.assert_array_equal(signs.pack(votes), [[0b11001000, 0b01010000], [0, 0]])
    first = signs.pack(jnp.array([1] + [-1] * 7, jnp.int8))
    np.testing.assert_array_equal(first, [128])


@pytest.mark.parametrize("size", [8, 17])
def test_unpack_refuses_the_wrong_number_of_bytes(size):
    with pytest.raises(ValueError, match=f"{size} coordinates need"):
        signs.unpack(jnp.zeros((2, 2), jnp.uint8), size)

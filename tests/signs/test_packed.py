"""Packed votes are the votes: every tally of either is the same number."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

import signfd_jax as sfd
from signfd_jax import decoders, signs
from signfd_jax.decoders import released_code
from signfd_jax.signs import _packed_rows, packed
from signfd_jax.signs import _tally as tally

M = 5
SHAPES = {"matrix": (3, 7), "scalar": ()}


def ternary(seed=0, num_workers=M):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.integers(-1, 2, (num_workers, *shape)), jnp.int8)
        for name, shape in SHAPES.items()
    }


def one_bit(seed=0):
    present = jnp.arange(M) != 2
    return signs.to_wire(ternary(seed), 0, present=present)


ALPHABETS = [
    pytest.param(ternary, packed.pack_ternary, id="ternary"),
    pytest.param(one_bit, packed.pack_one_bit, id="one_bit"),
]


@given(st_numpy.arrays(np.int8, (2, 19), elements=st.integers(-1, 1)))
def test_round_trip(votes):
    there = packed.pack_ternary(jnp.asarray(votes))
    assert there.signs.shape == there.voted.shape == (2, 3)
    np.testing.assert_array_equal(packed.unpack_votes(there), votes)
    found = np.asarray(there.voted)
    for worker, byte, k in np.ndindex(2, 3, 8):
        place = 3 * k + byte
        voted = place < 19 and votes[worker, place] != 0
        assert bool(found[worker, byte] & (128 >> k)) == voted


@pytest.mark.parametrize(("make", "pack"), ALPHABETS)
def test_trees_round_trip(make, pack):
    votes = make()
    there = pack(votes)
    assert _packed_rows.votes_structure(there) == jax.tree.structure(votes)
    chex.assert_trees_all_equal(packed.unpack_votes(there), votes)


def test_bits_per_vote():
    """One bit a vote and a byte a worker on the one-bit wire, two bits on the other."""
    votes = jnp.ones((10, 8000), jnp.int8)
    size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert size(packed.pack_one_bit(votes)) == 10 * 1000 + 10
    assert size(packed.pack_ternary(votes)) == 2 * 10 * 1000


@pytest.mark.parametrize(("make", "pack"), ALPHABETS)
def test_tallies_are_those_of_the_votes(make, pack):
    votes = make()
    weights = jnp.asarray(np.random.default_rng(1).normal(size=M), jnp.float32)

    @jax.jit
    def tallied(votes):
        whole = tally.vote_tree(votes, weights, largest=4.0)
        return whole, tally.count_agreements(votes, whole.decoded)

    chex.assert_trees_all_equal(tallied(pack(votes)), tallied(votes))


@pytest.mark.parametrize(("make", "pack"), ALPHABETS)
def test_a_few_coordinates(make, pack, key):
    votes = make()
    leaves = jax.tree.leaves(votes)
    packed_leaves = jax.tree.leaves(pack(votes), is_leaf=packed.is_packed)
    for leaf, packed_leaf in zip(leaves, packed_leaves, strict=True):
        rows = leaf.reshape(M, -1)
        for places in (None, jax.random.randint(key, (10,), 0, rows.shape[1])):
            np.testing.assert_array_equal(
                _packed_rows.take_coordinates(packed_leaf, places),
                rows if places is None else rows[:, places],
            )


DECODERS = {
    "majority_vote": sfd.majority_vote(),
    "federated_defense": sfd.federated_defense(initial_rounds=1),
    "federated_defense, pooled": sfd.federated_defense(None, anchor=True),
    "federated_voting": sfd.federated_voting(initial_rounds=1),
    "correlation_defense": sfd.correlation_defense(),
    "correlation_defense, sampled": sfd.correlation_defense(sample=10),
    "oracle": sfd.oracle(jnp.array([0.1, 0.2, 0.3, 0.6, 0.9])),
    "m_msr": decoders.m_msr(),
    "triangular_estimation": decoders.triangular_estimation(),
    "kos": decoders.kos(),
}
RARELY = ("correlation", "m_msr", "triangular", "kos")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name.startswith(RARELY) else name
        for name in DECODERS
    ],
)
@pytest.mark.parametrize(("make", "pack"), ALPHABETS)
def test_decoders_decode_packed_votes_alike(name, make, pack):
    decoder = DECODERS[name]
    params = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
    state = other = decoder.init(M, params)
    for seed in range(3):
        decoded, state, info = decoder.decode(state, make(seed))
        same, other, same_info = decoder.decode(other, pack(make(seed)))
        chex.assert_trees_all_equal((decoded, state, info), (same, other, same_info))


@pytest.mark.parametrize(
    ("decoder", "reason"),
    [
        (released_code(), "counters for each worker"),
        (sfd.federated_defense(None, leave_own_out=True), "takes each vote out"),
        (sfd.dawid_skene(), "posterior mean"),
        (sfd.oracle(jnp.full((M, 3), 0.2)), "weights differ"),
        (sfd.Decoder(*sfd.majority_vote()[:3]), "does not say"),
    ],
)
def test_decoders_that_cannot_say_why(decoder, reason):
    tx = sfd.scale_by_sign_decoder(M, decoder)
    params = jnp.zeros(3)
    votes = packed.pack_ternary(jnp.ones((M, 3), jnp.int8))
    with pytest.raises(ValueError, match=f"cannot decode packed votes.*{reason}"):
        tx.update(votes, tx.init(params), params)


def test_packed_votes_need_parameters():
    tx = sfd.scale_by_sign_mv(M)
    votes = packed.pack_ternary(jnp.ones((M, 3), jnp.int8))
    with pytest.raises(ValueError, match="packed votes need the parameters"):
        tx.update(votes, tx.init(jnp.zeros(3)))


def test_tally_of_packed_votes_never_unpacks_them():
    """Its temporaries are a few rows of coordinates, not M of them."""
    num_workers, size = 256, 4096
    votes = packed.pack_ternary(jnp.ones((num_workers, size), jnp.int8))
    compiled = (
        jax.jit(lambda v, w: tally.vote_tree(v, w, largest=1.0))
        .lower(votes, jnp.ones(num_workers))
        .compile()
    )
    assert compiled.memory_analysis().temp_size_in_bytes < 64 * size

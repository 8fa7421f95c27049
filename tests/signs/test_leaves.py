"""Small leaves are joined: what is decoded stays, and programs hardly grow."""

import collections
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import signfd_jax as sfd
from signfd_jax import decoders, signs
from signfd_jax.decoders import released_code
from signfd_jax.signs import _leaves as leaves
from signfd_jax.signs import packed
from signfd_jax.signs._leaves import group_leaves

M, ROUNDS = 5, 3
# Scalars and empty leaves, one that is not small, and neighbours of unlike dtypes.
SHAPES = {"a": (), "b": (3, 4), "c": (0, 2), "d": (7, 9), "e": (2,), "f": (5,), "g": ()}
DTYPES = {"f": jnp.bfloat16, "g": jnp.bfloat16}
SMALL = 50

DECODERS = {
    "majority vote": sfd.majority_vote,
    "federated defense": lambda: sfd.federated_defense(2),
    "pooled": lambda: sfd.federated_defense(None, forgetting=0.9),
    "forgetful": lambda: sfd.federated_defense(1, forgetting=0.9),
    "leave own out": lambda: sfd.federated_defense(1, leave_own_out=True, anchor=True),
    "released code": lambda: released_code(1),
    "federated voting": lambda: sfd.federated_voting(1),
    "Dawid-Skene": sfd.dawid_skene,
    "M-MSR": decoders.m_msr,
    "triangular estimation": decoders.triangular_estimation,
    "KOS": decoders.kos,
    "oracle": lambda: sfd.oracle(jnp.linspace(0.1, 0.8, M)),
    "oracle of coordinates": lambda: sfd.oracle(
        {name: jnp.full((M, *shape), 0.2) for name, shape in SHAPES.items()}
    ),
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(leaves, "_SMALL", SMALL)


def params():
    return {
        name: jnp.zeros(shape, DTYPES.get(name, jnp.float32))
        for name, shape in SHAPES.items()
    }


def gradients(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: jnp.asarray(
            rng.integers(-1, 2, (M, *p.shape)).astype(np.float32), p.dtype
        ),
        params(),
    )


def test_join_keeps_the_order_and_split_undoes_it():
    tree = gradients(0)
    groups = group_leaves(tree)
    joined = groups.join(tree)
    assert [rows.shape[1:] for rows in joined] == [(13,), (7, 9), (2,), (6,)]
    chex.assert_trees_all_equal(groups.split(joined), tree)
    ravelled = [leaf.reshape(M, -1) for leaf in jax.tree.leaves(tree)]
    kinds = [jnp.concatenate(ravelled[:5], axis=1), jnp.concatenate(ravelled[5:], 1)]
    rows = [group.reshape(M, -1) for group in joined]
    ours = [jnp.concatenate(rows[:3], axis=1), rows[3]]
    chex.assert_trees_all_equal(ours, kinds)


def test_what_is_large_or_packed_is_handed_on_as_it_is():
    tree = gradients(0)
    joined = group_leaves(tree).join(tree)
    assert joined[1] is tree["d"]
    votes = packed.pack_ternary(sfd.votes(tree))
    joined = group_leaves(votes).join(votes)
    assert list(map(id, joined)) == list(map(id, votes.values()))
    single = jnp.ones((M, 3))
    assert group_leaves(single).join(single)[0] is single


def test_split_under_vmap_and_in_another_order_of_axes():
    tree = gradients(0)
    groups = group_leaves(tree)
    joined = jax.tree.map(lambda rows: jnp.stack([rows, -rows]), groups.join(tree))
    split = jax.vmap(groups.split)(joined)
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x[0], split), tree)
    chex.assert_trees_all_equal(jax.tree.map(lambda x: -x[1], split), tree)


def rounds_of(decoder, **options):
    """Updates, decoder's states and weights of a few rounds."""
    tx = sfd.scale_by_sign_decoder(M, decoder)
    state, seen = tx.init(params()), []
    update = jax.jit(lambda g, s: tx.update(g, s, params(), **options))
    for seed in range(ROUNDS):
        updates, state = update(gradients(seed), state)
        weights = decoder.weights(state.decoder_state)
        seen.append((updates, state.decoder_state, weights))
    return jax.device_get(seen)


# The wire fills votes before, and ties after, whatever decodes them.
ON_ONE_BIT = ("majority vote", "federated defense", "oracle of coordinates")


@pytest.mark.parametrize(
    ("name", "wire"),
    [(name, "ternary") for name in DECODERS]
    + [pytest.param(name, "one_bit", marks=pytest.mark.slow) for name in ON_ONE_BIT],
)
def test_decoders_give_the_same_bits_as_leaf_by_leaf(name, wire, monkeypatch):
    present = jnp.arange(M) != 1
    joined = rounds_of(DECODERS[name](), wire=wire, present=present)
    monkeypatch.setattr(leaves, "_SMALL", -1)
    chex.assert_trees_all_equal(
        joined, rounds_of(DECODERS[name](), wire=wire, present=present)
    )


def test_weights_and_counters_are_trees_like_the_parameters():
    decoder = sfd.federated_defense(1)
    tx = sfd.scale_by_sign_decoder(M, decoder)
    _, state = tx.update(gradients(0), tx.init(params()), params())
    for tree in (
        decoder.weights(state.decoder_state),
        state.decoder_state.fd_counters,
    ):
        shapes = jax.tree.map(lambda leaf: leaf.shape[1:], tree)
        assert shapes == SHAPES


def test_sign_error_counts_every_leaf_once():
    truth = jax.tree.map(lambda p: jnp.ones(p.shape, jnp.int8), params())
    decoded = truth | {"b": -truth["b"], "d": 0 * truth["d"]}
    sizes = jax.tree.map(lambda leaf: leaf.size, truth)
    wrong = (sizes["b"] + sizes["d"]) / sum(sizes.values())
    assert float(signs.sign_error(decoded, truth)) == pytest.approx(wrong)


# What takes long to compile: loops, products, sums, and slices, each of which XLA's CPU
# backend compiles anew for every place that it begins at.
SLOW = {"while", "dot", "sort", "reduce", "reduce-window", "custom-call", "slice"}


@pytest.mark.parametrize(
    ("name", "wire"),
    [
        ("majority vote", "ternary"),
        ("majority vote", "one_bit"),
        ("federated defense", "ternary"),
    ],
)
def test_programs_hardly_grow_with_the_leaves(name, wire, monkeypatch):
    monkeypatch.undo()

    def operations(number):
        tx = optax.chain(
            sfd.scale_by_sign_decoder(M, DECODERS[name]()), optax.scale(-0.1)
        )
        tree = {n: jnp.zeros(128) for n in range(number)}
        rows = jax.tree.map(lambda p: jnp.ones((M, *p.shape)), tree)
        update = jax.jit(lambda g, s: tx.update(g, s, tree, wire=wire))
        text = update.lower(rows, tx.init(tree)).compile().as_text()
        found = collections.Counter(re.findall(r" = \S+ ([a-z-]+)\(", text))
        return {kind: found[kind] for kind in SLOW}

    # Sums over more coordinates may take a stage more, but not one for each leaf.
    few, many = operations(20), operations(40)
    assert all(many[kind] < few[kind] + 10 for kind in SLOW), (few, many)

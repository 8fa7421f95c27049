"""Fail closed: from the round that halts on, nothing moves, whatever the chain."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import signfd_jax as sfd
from signfd_jax.decoders import DecodeInfo
from signfd_jax.transforms import stop_below

M = 7
PARAMS = {"a": jnp.ones(3), "b": jnp.full((40, 25), -2.0)}
CHAIN = optax.chain(
    sfd.scale_by_sign_decoder(M),
    optax.trace(0.9),
    optax.add_decayed_weights(0.1),
    optax.scale_by_learning_rate(0.05),
)


class Told(NamedTuple):
    info: DecodeInfo


def telling():
    """An optimiser whose decoder is as sure as the updates say; it steps by ones."""

    def info(confidence):
        return Told(DecodeInfo(jnp.ones(M), jnp.ones(M), jnp.zeros(()), confidence))

    def update(updates, state, params=None):
        del state
        return jax.tree.map(jnp.ones_like, params), info(updates)

    return optax.GradientTransformation(lambda params: info(jnp.zeros(())), update)


def halts_in(confidences, limit, rounds):
    """The definition: a run of `rounds` rounds below the limit, of those that count."""
    ever, run = False, 0
    for number, confidence in enumerate(confidences, start=1):
        ever = ever or confidence >= limit
        run = run + 1 if confidence < limit and (ever or number > rounds) else 0
        if run == rounds:
            return number
    return 0


@given(
    confidences=st.lists(st.sampled_from([0.0, 0.4, 0.5, 1.0, -1.0]), max_size=12),
    rounds=st.integers(1, 4),
)
def test_it_halts_as_defined(confidences, rounds):
    tx = stop_below(telling(), 0.5, rounds)
    params = jnp.zeros(2)
    state = tx.init(params)
    moved = []
    for confidence in confidences:
        updates, state = tx.update(jnp.float32(confidence), state, params)
        moved.append(updates.tolist() == [1.0, 1.0])
    wanted = halts_in(confidences, 0.5, rounds)
    assert int(state.halted_in) == wanted
    assert bool(state.halted) == (wanted > 0)
    steps = wanted - 1 if wanted else len(confidences)
    assert moved == [True] * steps + [False] * (len(confidences) - steps)


def gradients(rounds, lying=0):
    """Unlike honest gradients of one mean, and liars that are drawn anew each round."""
    key = jax.random.key(3)
    mean = jax.random.normal(key, (1000,))
    noise = jax.random.normal(jax.random.fold_in(key, 1), (rounds, M, 1000))
    rows = mean[None, None] + noise
    rows = rows.at[:, :lying].multiply(-1.0)
    return {"a": rows[..., :3], "b": rows.reshape(rounds, M, 40, 25)}


def trained(tx, rows):
    """State and parameters after each round, in a loop."""
    params, state = PARAMS, tx.init(PARAMS)
    step = jax.jit(tx.update)
    for number in range(len(rows["a"])):
        row = jax.tree.map(lambda leaf, n=number: leaf[n], rows)
        updates, state = step(row, state, params)
        params = optax.apply_updates(params, updates)
        yield params, state


def alike(one, other):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), one, other
    )


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def doubtful(rounds=30):
    """Ten rounds with a clear majority, and then noise of nobody's."""
    clear, noise = gradients(rounds), jax.random.key(5)
    draw = lambda leaf: jax.random.normal(noise, leaf.shape)  # noqa: E731
    late = jnp.arange(rounds) >= 10
    return jax.tree.map(
        lambda leaf: jnp.where(
            late.reshape(-1, *[1] * (leaf.ndim - 1)), draw(leaf), leaf
        ),
        clear,
    )


@pytest.mark.slow
def test_nothing_moves_under_momentum_and_weight_decay():
    tx = stop_below(CHAIN, 0.99, rounds=3)
    steps = list(trained(tx, doubtful(60)))
    halted = next(int(s.halted_in) for _, s in steps if s.halted)
    assert 13 <= halted < 60
    (before, _), *after = steps[halted - 2 :]
    for params, state in after:
        same(params, before)
        same(state, steps[halted - 1][1])
    # The same chain alone goes on by its momentum and decay.
    (one, _), (other, _) = list(trained(CHAIN, doubtful(60)))[halted - 1 : halted + 1]
    moved = jax.tree.map(lambda a, b: (a != b).any(), one, other)
    assert all(jax.tree.leaves(moved))


def test_who_is_sure_trains_as_without():
    rows = gradients(40, lying=2)
    one = list(trained(stop_below(CHAIN, 0.5, rounds=20), rows))
    other = list(trained(CHAIN, rows))
    for (params, state), (ours, inner) in zip(one, other, strict=True):
        alike(params, ours)
        alike(state.inner_state, inner)
        assert not state.halted
    assert int(one[-1][1].rounds_watched) == 40


def test_scanned_is_looped():
    tx = stop_below(CHAIN, 0.99, rounds=3)

    def step(carry, row):
        params, state = carry
        updates, state = tx.update(row, state, params)
        return (optax.apply_updates(params, updates), state), state.halted

    rows = doubtful()
    (params, state), halted = jax.jit(
        lambda rows: jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), rows)
    )(rows)
    *_, (ours, looped) = trained(tx, rows)
    alike(params, ours)
    alike(state, looped)
    assert halted.tolist() == sorted(halted.tolist())


def test_a_person_lets_it_go_on():
    tx = stop_below(telling(), 0.5, rounds=1)
    state = tx.init(jnp.zeros(2))
    for confidence in (1.0, 0.0, 1.0):
        updates, state = tx.update(jnp.float32(confidence), state, jnp.zeros(2))
    assert updates.tolist() == [0, 0]
    state = state._replace(
        halted=jnp.zeros((), bool), rounds_below=jnp.zeros((), jnp.int32)
    )
    updates, state = tx.update(jnp.float32(1.0), state, jnp.zeros(2))
    assert updates.tolist() == [1, 1]
    assert not state.halted


def test_a_decoder_that_does_not_say_is_never_sure():
    tx = stop_below(sfd.sign_sgd_mv(0.1, M), 0.5, rounds=2)
    steps = itertools.islice(trained(tx, gradients(5)), 5)
    assert [bool(state.halted) for _, state in steps] == [False] * 3 + [True] * 2


def test_what_is_known_passes_through():
    rows = jax.tree.map(lambda leaf: leaf[0], gradients(1))
    tx = stop_below(CHAIN)
    state = tx.init(PARAMS)
    known = {"trusted": jnp.arange(M) == 0, "shares": jnp.arange(1.0, M + 1)}
    ours, _ = tx.update(rows, state, PARAMS, **known)
    theirs, _ = CHAIN.update(rows, CHAIN.init(PARAMS), PARAMS, **known)
    same(ours, theirs)


def test_two_decoders_are_refused():
    tx = optax.chain(CHAIN, sfd.scale_by_sign_decoder(M))
    with pytest.raises(ValueError, match="holds 2 sign decoders"):
        stop_below(tx).init(PARAMS)

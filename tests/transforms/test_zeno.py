"""Zeno: the naive definition, who is left out, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from signfd_jax.transforms import scale_by_zeno

M = 7
PARAMS = {"a": jnp.zeros(4), "b": jnp.zeros((2, 3))}


def loss_fn(params, root_batch):
    return sum(
        jnp.mean(jnp.abs(leaf - target) ** 1.5)
        for leaf, target in zip(jax.tree.leaves(params), root_batch, strict=True)
    )


ROOT = (jnp.arange(4.0), jnp.linspace(-2.0, 1.0, 6).reshape(2, 3))


def gradients(seed=0):
    keys = iter(jax.random.split(jax.random.key(seed), 2))
    truth = jax.grad(loss_fn)(PARAMS, ROOT)
    return jax.tree.map(
        lambda g: g[None] + 0.3 * jax.random.normal(next(keys), (M, *g.shape)), truth
    )


def zeno(num_byzantine=2, learning_rate=0.1, penalty=0.02, **options):
    return scale_by_zeno(
        M,
        loss_fn,
        num_byzantine=num_byzantine,
        learning_rate=learning_rate,
        penalty=penalty,
        **options,
    )


def updated(tree, tx=None, **given):
    tx = zeno() if tx is None else tx
    given = {"root_batch": ROOT} | given
    return tx.update(tree, tx.init(PARAMS), PARAMS, **given)[0]


def naive(tree, b, learning_rate, penalty):
    scores, rows = [], []
    for m in range(M):
        row = jax.tree.map(lambda leaf, m=m: leaf[m], tree)
        moved = jax.tree.map(lambda p, g: p - learning_rate * g, PARAMS, row)
        square = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(row))
        gained = float(loss_fn(PARAMS, ROOT)) - float(loss_fn(moved, ROOT))
        scores.append(gained - penalty * square)
        rows.append(row)
    best = sorted(range(M), key=lambda m: -scores[m])[: M - b]
    return jax.tree.map(lambda *r: sum(r) / len(best), *(rows[m] for m in best))


def assert_near(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found,
        expected,
    )


@pytest.mark.parametrize("b", [0, 2, 5])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("penalty", [0.0, 0.5])
def test_equals_the_naive_loop(b, seed, penalty):
    found = updated(gradients(seed), zeno(b, 0.3, penalty))
    assert_near(found, naive(gradients(seed), b, 0.3, penalty))


def test_the_number_left_out_may_be_traced():
    found = jax.jit(lambda b: updated(gradients(), zeno(b)))
    for b in (1, 4):
        assert_near(found(jnp.int32(b)), updated(gradients(), zeno(b)))
    assert not any(leaf.any() for leaf in jax.tree.leaves(found(jnp.int32(M))))


def test_liars_in_the_majority_are_left_out():
    tree = gradients()
    inverted = jax.tree.map(lambda leaf: leaf.at[:5].multiply(-1), tree)
    expected = jax.tree.map(lambda leaf: leaf[5:].mean(axis=0), tree)
    assert_near(updated(inverted, zeno(5)), expected)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, 1e30])
def test_what_is_not_finite_is_never_averaged(bad):
    tree = gradients()
    spoilt = jax.tree.map(lambda leaf: leaf.at[3].set(bad), tree)
    expected = jax.tree.map(lambda leaf: jnp.delete(leaf, 3, 0).mean(axis=0), tree)
    assert_near(updated(spoilt, zeno(0)), expected)
    spoilt = jax.tree.map(lambda leaf: jnp.full_like(leaf, bad), tree)
    assert not any(leaf.any() for leaf in jax.tree.leaves(updated(spoilt)))


def test_the_absent_are_never_averaged():
    tree = gradients()
    expected = jax.tree.map(lambda leaf: leaf[4:].mean(axis=0), tree)
    present = jnp.arange(M) > 3
    assert_near(updated(tree, zeno(2), present=present), expected)


def test_narrow_gradients_keep_the_parameters_dtype():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    tree = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), gradients())
    tx, root = zeno(), jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), ROOT)
    found, _ = tx.update(tree, tx.init(params), params, root_batch=root)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("params", [{}, {"a": {}, "b": None}, {"e": jnp.zeros((0, 2))}])
def test_trees_without_a_number(params):
    tree = jax.tree.map(lambda leaf: jnp.zeros((M, *leaf.shape)), params)
    tx = scale_by_zeno(M, lambda params, batch: 0.0, num_byzantine=0, learning_rate=1.0)
    found, _ = tx.update(tree, tx.init(params), params, root_batch=0)
    assert jax.tree.structure(found) == jax.tree.structure(params)


def test_in_a_chain():
    tx = optax.chain(zeno(learning_rate=0.5), optax.scale_by_learning_rate(0.5))
    params, state = PARAMS, tx.init(PARAMS)
    before = loss_fn(params, ROOT)
    for seed in range(5):
        updates, state = tx.update(gradients(seed), state, params, root_batch=ROOT)
        params = optax.apply_updates(params, updates)
    assert loss_fn(params, ROOT) < 0.5 * before

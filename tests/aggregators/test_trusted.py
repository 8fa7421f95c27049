"""Rules that are told whom to trust: naive definitions, laws, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from signfd_jax.aggregators import (
    TRUSTED_RULES,
    chain,
    factory,
    fltrust,
    fltrust_sign,
    keyed,
    mean,
    monna,
    recurrent,
    stateless,
    trimmed_mean,
)
from signfd_jax.transforms import scale_by_aggregator

M, D, F = 9, 40, 4
ROOT = np.arange(M) == M - 1
TWO = np.isin(np.arange(M), [2, 5])


def gradients(seed=0, noise=2.0):
    """Noisy copies of one vector at many lengths; the first three are inverted."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=D) + noise * rng.normal(size=(M, D))
    rows *= 10 ** rng.uniform(-2, 2, size=(M, 1))
    rows[:3] *= -1
    return rows.astype(np.float32)


def naive_fltrust(rows, trusted):
    root = np.mean([r for r, t in zip(rows, trusted, strict=True) if t], axis=0)
    total, aggregate = 0.0, np.zeros(rows.shape[1])
    for row, is_root in zip(rows, trusted, strict=True):
        if not is_root:
            lengths = np.linalg.norm(row) * np.linalg.norm(root)
            score = max(0.0, sum(a * b for a, b in zip(row, root, strict=True)))
            score /= lengths
            total += score
            aggregate += score * np.linalg.norm(root) / np.linalg.norm(row) * row
    return aggregate / total


def naive_fltrust_sign(rows, trusted):
    return np.sign(naive_fltrust(np.sign(rows), trusted))


def naive_monna(rows, trusted):
    pivot = rows[trusted].mean(0)
    nearest = sorted(rows, key=lambda row: np.linalg.norm(row - pivot))[: M - F]
    return sum(nearest) / len(nearest)


NAIVE = {
    "fltrust": naive_fltrust,
    "fltrust_sign": naive_fltrust_sign,
    "monna": naive_monna,
}
FLTRUST = ["fltrust", "fltrust_sign"]
FUNCTIONS = {
    "fltrust": lambda *given: fltrust(*map(jnp.asarray, given)),
    "fltrust_sign": lambda *given: fltrust_sign(*map(jnp.asarray, given)),
    "monna": lambda *given: monna(*map(jnp.asarray, given), num_byzantine=F),
}


def test_every_rule_has_a_definition():
    assert TRUSTED_RULES.keys() == NAIVE.keys() == FUNCTIONS.keys()


@pytest.mark.parametrize("trusted", [ROOT, TWO], ids=["one root", "two"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NAIVE)
def test_equals_the_naive_loop(name, seed, trusted):
    rows = gradients(seed)
    rule = TRUSTED_RULES[name](F, jax.random.key(0))
    state = rule.init(M, D)
    result, _ = jax.jit(rule.aggregate)(state, rows, trusted=trusted)
    expected = NAIVE[name](rows.astype(np.float64), trusted)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAIVE)
def test_the_mask_is_traced(name):
    rows = jnp.asarray(gradients())
    masks = jnp.stack([jnp.asarray(ROOT), jnp.asarray(TWO)])
    both = jax.vmap(FUNCTIONS[name], in_axes=(None, 0))(rows, masks)
    for mask, result in zip(masks, both, strict=True):
        alone = FUNCTIONS[name](rows, mask)
        # Of sums whose terms are as large as the rows.
        np.testing.assert_allclose(result, alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", FLTRUST)
def test_what_a_liar_cannot_do(name):
    """A longer or an inverted row changes nothing, nor does one that is not finite."""
    rows = gradients()
    result = FUNCTIONS[name](rows, ROOT)
    rows[:3] *= 1e3  # inverted
    rows[4] *= 1e6
    np.testing.assert_allclose(FUNCTIONS[name](rows, ROOT), result, rtol=1e-4)
    rows[:3] = np.array([[np.nan], [1e30], [-np.inf]])
    found = FUNCTIONS[name](rows, ROOT)
    assert np.isfinite(found).all()
    if name == "fltrust":  # as a vote, 1e30 is but a 1
        np.testing.assert_allclose(found, result, rtol=1e-4)


def test_the_aggregate_is_no_longer_than_the_root():
    for seed in range(5):
        rows = gradients(seed)
        found = np.linalg.norm(FUNCTIONS["fltrust"](rows, ROOT))
        assert found <= np.linalg.norm(rows[-1]) * (1 + 1e-5)


def test_monna_drops_the_rows_far_from_the_trusted_one():
    rows = gradients(noise=0.1)
    rows[:3] = np.array([[np.nan], [1e30], [-np.inf]])
    rows[3] = -1e9
    expected = rows[F:].mean(0)
    found = FUNCTIONS["monna"](rows, ROOT)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not FUNCTIONS["monna"](rows, np.zeros(M, bool)).any()
    assert not FUNCTIONS["monna"](rows, np.arange(M) == 0).any()  # it sent NaN
    with pytest.raises(ValueError, match="monna needs M > 2f: with num_byzantine = 5"):
        TRUSTED_RULES["monna"](5, jax.random.key(0)).init(M, D)


@pytest.mark.parametrize("name", FLTRUST)
def test_nobody_to_believe_gives_zero(name):
    rows = np.tile(gradients()[:1], (M, 1))
    assert not FUNCTIONS[name](rows, np.zeros(M, bool)).any()
    assert not FUNCTIONS[name](rows, np.ones(M, bool)).any()
    rows[-1] *= -1
    assert not FUNCTIONS[name](rows, ROOT).any()
    rows[-1] = np.nan
    assert not FUNCTIONS[name](rows, ROOT).any()
    assert not FUNCTIONS[name](np.zeros((M, D), np.float32), ROOT).any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", NAIVE)
def test_narrow_rows_are_only_rounded(name, dtype):
    rows = jnp.full((M, D), 300, dtype)
    result = FUNCTIONS[name](rows, ROOT)
    assert result.dtype == rows.dtype
    expected = 1 if name == "fltrust_sign" else 300
    np.testing.assert_allclose(result.astype(float), expected)


# In a transformation ------------------------------------------------------------------


def transformation(rule):
    tx = scale_by_aggregator(rule, M)
    params = {"a": jnp.zeros(D - 6), "b": jnp.zeros((2, 3))}
    rows = jnp.asarray(gradients())
    tree = {"a": rows[:, : D - 6], "b": rows[:, D - 6 :].reshape(M, 2, 3)}
    return tx, tx.init(params), params, tree


def test_trees_are_one_row_a_worker():
    tx, state, params, tree = transformation(stateless(fltrust))
    updates, _ = jax.jit(tx.update)(tree, state, params, trusted=ROOT)
    flat = jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(updates)])
    np.testing.assert_allclose(flat, FUNCTIONS["fltrust"](gradients(), ROOT), rtol=1e-5)


@pytest.mark.parametrize("known", ["trusted", "stakes", "shares"])
def test_what_a_rule_cannot_use_is_refused(known):
    tx, state, params, tree = transformation(stateless(trimmed_mean, num_byzantine=2))
    with pytest.raises(ValueError, match=f"cannot use {known}"):
        tx.update(tree, state, params, **{known: jnp.asarray(ROOT)})


@pytest.mark.parametrize("known", ["stakes", "shares"])
def test_fltrust_has_no_use_for_stakes(known):
    tx, state, params, tree = transformation(stateless(fltrust))
    with pytest.raises(ValueError, match=f"cannot use {known}"):
        tx.update(tree, state, params, trusted=ROOT, **{known: jnp.ones(M)})


def test_what_a_rule_needs_must_be_given():
    tx, state, params, tree = transformation(stateless(fltrust))
    with pytest.raises(
        ValueError, match="rule needs trusted; add trusted= to say who is"
    ):
        tx.update(tree, state, params)
    with pytest.raises(ValueError, match="trusted must be a mask of 9 workers"):
        tx.update(tree, state, params, trusted=ROOT[1:])
    with pytest.raises(ValueError, match="mask of bools"):
        tx.update(tree, state, params, trusted=jnp.ones(M))


def test_a_chain_refuses_what_needs_to_know_the_workers():
    with pytest.raises(ValueError, match="rule 1 of the chain needs trusted"):
        chain(stateless(trimmed_mean, num_byzantine=0), stateless(fltrust))


def test_each_kind_of_rule_may_be_told():
    def drawn(key, gradients, trusted):
        return jnp.where(trusted, jax.random.uniform(key), 0.0) @ gradients

    def moved(gradients, previous, trusted):
        return previous + jnp.where(trusted, 1.0, 0.0) @ gradients

    key = jax.random.key(0)
    rows = jnp.asarray(gradients())
    for rule in (keyed(drawn, key), factory(drawn)(0, key)):
        assert rule.needs == ("trusted",)
        found, _ = rule.aggregate(rule.init(M, D), rows, trusted=ROOT)
        assert jnp.any(found)
    for rule in (recurrent(moved), factory(moved)(0, key)):
        found, state = rule.aggregate(rule.init(M, D), rows, trusted=ROOT)
        again, _ = rule.aggregate(state, rows, trusted=ROOT)
        np.testing.assert_allclose(again, 2 * found, rtol=1e-6)
    assert stateless(mean).needs == stateless(max).needs == ()


def test_trains_where_most_lie(linear_regression):
    """Six of nine workers invert."""
    tx = scale_by_aggregator(stateless(fltrust), M)
    losses = linear_regression(tx, M, 6, trusted=ROOT)
    assert losses[-1] < 1e-2 * losses[0]

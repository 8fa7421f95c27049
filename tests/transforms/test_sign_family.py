"""The sign family: naive NumPy definitions, and what all of them keep.

Every server that is not an aggregation rule goes through the conformance tests by being
in `FAMILY`; its definition stands beside it as a loop over rounds and workers.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from signfd_jax import federated_defense, scale_by_sign_mv
from signfd_jax.aggregators import coordinate_median, stateless
from signfd_jax.transforms import (
    error_feedback_sign,
    per_worker,
    sparse_sign,
    stochastic_sign,
    variants,
)

M = 5
PARAMS = {"b": jnp.zeros(3), "w": jnp.zeros((2, 4))}


def gradients(seed, num_workers=M, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: rng.normal(size=(num_workers, *p.shape)).astype(dtype), PARAMS
    )


def vote(signs):
    """Majority of a list of workers' trees."""
    return jax.tree.map(lambda *votes: np.sign(sum(map(np.sign, votes))), *signs)


def of_worker(tree, m):
    return jax.tree.map(lambda leaf: leaf[m].astype(np.float64), tree)


# Definitions: `(rounds of gradients, number of workers) -> last updates` ------------


def naive_signum(rounds, num_workers):
    sent = []
    for m in range(num_workers):
        momentum = jax.tree.map(lambda p: np.zeros(p.shape), PARAMS)
        for tree in rounds:
            momentum = jax.tree.map(
                lambda v, g: 0.9 * v + 0.1 * g, momentum, of_worker(tree, m)
            )
        sent.append(momentum)
    return vote(sent)


def naive_ef_sign(rounds, num_workers):
    sent = []
    for m in range(num_workers):
        residual = np.zeros(11)
        for tree in rounds:
            g = of_worker(tree, m)
            p = np.concatenate([g["b"], g["w"].ravel()]) + residual
            message = np.abs(p).sum() / 11 * np.sign(p)
            residual = p - message
        sent.append(message)
    mean = sum(sent) / num_workers
    return {"b": mean[:3], "w": mean[3:].reshape(2, 4)}


def naive_sparse_sign(rounds, num_workers):
    sent = []
    for m in range(num_workers):
        residual = jax.tree.map(lambda p: np.zeros(p.shape), PARAMS)
        for tree in rounds:
            p = jax.tree.map(lambda e, g: e + g, residual, of_worker(tree, m))
            message = {}
            for name, leaf in p.items():
                order = np.argsort(-np.abs(leaf).ravel())
                message[name] = np.zeros(leaf.size)
                for n in order[: max(1, round(0.25 * leaf.size))]:
                    message[name][n] = np.sign(leaf.ravel()[n])
                message[name] = message[name].reshape(leaf.shape)
            residual = jax.tree.map(lambda p, s: np.where(s == 0, p, 0), p, message)
        sent.append(message)
    return vote(sent)


def naive_lion(rounds, num_workers):
    sent = []
    for m in range(num_workers):
        momentum = jax.tree.map(lambda p: np.zeros(p.shape), PARAMS)
        for tree in rounds:
            g = of_worker(tree, m)
            step = jax.tree.map(lambda v, g: 0.9 * v + 0.1 * g, momentum, g)
            momentum = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g, momentum, g)
        sent.append(step)
    return vote(sent)


def naive_beyond_the_bound(rounds, num_workers):
    """With a bound below every magnitude, nothing is random: plain signs."""
    return vote([of_worker(rounds[-1], m) for m in range(num_workers)])


FAMILY = {
    "signum": (variants.scale_by_signum, naive_signum),
    "ef_sign": (variants.scale_by_ef_sign, naive_ef_sign),
    "sparse_sign": (
        functools.partial(variants.scale_by_sparse_sign, fraction=0.25),
        naive_sparse_sign,
    ),
    "distributed_lion": (variants.scale_by_distributed_lion, naive_lion),
    "stochastic_sign": (
        functools.partial(variants.scale_by_stochastic_sign, bound=1e-9),
        naive_beyond_the_bound,
    ),
}


@functools.cache
def build(name, num_workers=M):
    """A server with its compiled update: eager ones are slow."""
    tx = FAMILY[name][0](num_workers)
    return tx, jax.jit(tx.update)


def play(name, rounds, num_workers=M):
    tx, update = build(name, num_workers)
    state = tx.init(PARAMS)
    for tree in rounds:
        updates, state = update(tree, state, PARAMS)
    return updates


@pytest.mark.parametrize("num_workers", [1, M])
@pytest.mark.parametrize("name", sorted(FAMILY))
def test_equals_the_naive_loop(name, num_workers):
    naive = FAMILY[name][1]
    rounds = [gradients(seed, num_workers) for seed in range(4)]
    updates = play(name, rounds, num_workers)
    expected = naive(rounds, num_workers)
    chex.assert_trees_all_close(
        updates, jax.tree.map(lambda x: x.astype(np.float32), expected), atol=1e-5
    )


@pytest.mark.parametrize("name", sorted(FAMILY))
def test_compiles_once_and_keeps_the_state_and_the_dtype(name):
    make, _ = FAMILY[name]
    tx, traces = make(M), []

    @jax.jit
    def update(tree, state, params):
        traces.append(name)
        return tx.update(tree, state, params)

    state = tx.init(PARAMS)
    eager, _ = tx.update(gradients(0), state, PARAMS)
    updates, new_state = update(gradients(0), state, PARAMS)
    chex.assert_trees_all_close(updates, eager, atol=1e-6)
    update(gradients(1), new_state, PARAMS)
    assert len(traces) == 1
    chex.assert_trees_all_equal_shapes_and_dtypes(state, new_state)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, PARAMS)

    narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    tree = jax.tree.map(lambda g: jnp.asarray(g, jnp.bfloat16), gradients(0))
    updates, _ = jax.eval_shape(tx.update, tree, tx.init(narrow), narrow)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, narrow)


@pytest.mark.parametrize("name", sorted(FAMILY))
def test_vmap_equals_loop(name):
    tx, _ = build(name)
    several = [gradients(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *several)
    of_all = jax.jit(jax.vmap(lambda tree: tx.update(tree, tx.init(PARAMS), PARAMS)[0]))
    one_by_one = [play(name, [tree]) for tree in several]
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *one_by_one)
    chex.assert_trees_all_close(of_all(stacked), expected, atol=1e-6)


@pytest.mark.parametrize("name", sorted(FAMILY))
def test_order_of_the_workers_does_not_matter(name):
    order = np.array([3, 0, 4, 1, 2])
    rounds = [gradients(seed) for seed in range(2)]
    shuffled = [jax.tree.map(lambda leaf: leaf[order], tree) for tree in rounds]
    chex.assert_trees_all_close(play(name, rounds), play(name, shuffled), atol=1e-6)


@pytest.mark.parametrize("name", sorted(FAMILY))
def test_workers_of_one_mind_are_one_worker(name):
    alone = [gradients(seed, 1) for seed in range(3)]
    many = [jax.tree.map(lambda leaf: np.repeat(leaf, M, 0), tree) for tree in alone]
    chex.assert_trees_all_close(play(name, alone, 1), play(name, many), atol=1e-6)


def test_error_feedback_sends_all_in_the_end():
    """What was sent and what is left are what came in."""
    tx = per_worker(error_feedback_sign(), M)
    state, sent = tx.init(PARAMS), jax.tree.map(lambda g: 0 * g, gradients(0))
    total = sent
    for seed in range(5):
        total = jax.tree.map(jnp.add, total, gradients(seed))
        updates, state = tx.update(gradients(seed), state, PARAMS)
        sent = jax.tree.map(jnp.add, sent, updates)
    left = jax.tree.map(jnp.add, sent, state.ef_residual)
    chex.assert_trees_all_close(left, total, atol=1e-4)


def test_sparse_sign_forgets_with_decay_zero():
    tx = sparse_sign(fraction=0.5, decay=0.0)
    _, state = tx.update(jnp.array([3.0, 2.0]), tx.init(jnp.zeros(2)))
    updates, _ = tx.update(jnp.array([0.1, -0.5]), state)
    np.testing.assert_array_equal(updates, [0.0, -1.0])


def test_stochastic_sign_is_unbiased():
    """Mean of 100,000 votes within 5 standard errors: false alarm 6e-7 for each g."""
    tx = stochastic_sign(jax.random.key(1), num_workers=1, bound=2.0)
    for g in (-2.0, -0.5, 0.0, 1.0):
        votes, _ = tx.update(jnp.full((1, 100_000), g), tx.init(jnp.zeros(100_000)))
        deviation = np.sqrt(1 - (g / 2) ** 2)
        assert set(np.unique(votes)) <= {-1.0, 1.0}
        assert abs(float(votes.mean()) - g / 2) <= 5 * deviation / np.sqrt(100_000)


def test_stochastic_sign_draws_anew_and_hands_on_nan():
    tx = stochastic_sign(jax.random.key(1), num_workers=1)
    state = tx.init(jnp.zeros(1000))
    first, state = tx.update(jnp.zeros((1, 1000)), state)
    second, _ = tx.update(jnp.zeros((1, 1000)), state)
    assert 0.3 < float((first == second).mean()) < 0.7
    votes, _ = tx.update(jnp.array([[jnp.nan]]), tx.init(jnp.zeros(1)))
    assert jnp.isnan(votes).all()


def test_nan_stays_with_the_worker_that_sent_it():
    tx = variants.scale_by_signum(3)
    state = tx.init(jnp.zeros(1))
    broken = jnp.array([[jnp.nan], [-1.0], [-1.0]])
    _, state = tx.update(broken, state)
    updates, state = tx.update(jnp.array([[9.0], [-1.0], [-1.0]]), state)
    assert updates == -1.0


def test_other_decoders_and_rules_may_stand_behind():
    tree = jax.tree.map(jnp.asarray, gradients(0))
    outlier = jax.tree.map(lambda g: jnp.concatenate([g[:4], 1e6 * g[4:]]), tree)
    tx = variants.scale_by_ef_sign(M, rule=stateless(coordinate_median))
    updates, _ = tx.update(outlier, tx.init(PARAMS), PARAMS)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(updates)) < 10
    tx = variants.scale_by_signum(M, decoder=federated_defense())
    state = tx.init(PARAMS)
    assert optax.tree.get(state, "fd_round") == 0


def test_signum_without_momentum_is_sign_sgd():
    tree = jax.tree.map(jnp.asarray, gradients(0))
    tx, plain = variants.scale_by_signum(M, momentum=0.0), scale_by_sign_mv(M)
    updates, _ = tx.update(tree, tx.init(PARAMS), PARAMS)
    expected, _ = plain.update(tree, plain.init(PARAMS), PARAMS)
    chex.assert_trees_all_equal(updates, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FAMILY))
def test_simulator_trains_with_it(name, linear_regression):
    """Nobody lies."""
    make, _ = FAMILY[name]
    losses = linear_regression(make(M), M, 0, rounds=200)
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: per_worker(optax.identity(), 0), "num_workers must be an int >= 1"),
        (lambda: variants.scale_by_signum(3, 1.5), "momentum must lie in"),
        (lambda: variants.scale_by_signum(-1), "num_workers must be an int"),
        (lambda: sparse_sign(0.0), "fraction must lie in"),
        (lambda: sparse_sign(0.5, 2.0), "decay must lie in"),
        (lambda: variants.scale_by_stochastic_sign(3, 0.0), "bound must lie in"),
        (lambda: variants.scale_by_distributed_lion(3, b1=2.0), "b1 must lie in"),
        (
            lambda: per_worker(optax.identity(), 3).update(
                jnp.zeros((2, 4)), (), jnp.zeros(4)
            ),
            "3 workers need",
        ),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

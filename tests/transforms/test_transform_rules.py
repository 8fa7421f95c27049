"""Aggregation rules on trees: the same as on rows, in a chain and in the simulator."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from signfd_jax.aggregators import RULES, mean, recurrent, stateless, trimmed_mean
from signfd_jax.aggregators import centered_clipping as clip
from signfd_jax.transforms import scale_by_aggregator

M = 7
PARAMS = {"b": jnp.zeros(()), "w": [jnp.zeros((2, 3)), jnp.zeros(4)]}


def gradients(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    leaves, structure = jax.tree.flatten(PARAMS)
    leaves = [
        jax.random.normal(key, (M, *leaf.shape))
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, leaves)


def rows_of(tree):
    return jnp.concatenate([x.reshape(M, -1) for x in jax.tree.leaves(tree)], axis=1)


@pytest.mark.parametrize("name", ["mean", "krum", "centered_clipping", "dnc"])
def test_tree_is_aggregated_as_one_row_a_worker(name):
    rule = RULES[name](1, jax.random.key(3))
    tx = scale_by_aggregator(rule, M)
    rule_state = rule.init(M, 11)
    state = tx.init(PARAMS)
    update = jax.jit(tx.update)
    for seed in range(2):
        updates, state = update(gradients(seed), state, PARAMS)
        expected, rule_state = jax.jit(rule.aggregate)(
            rule_state, rows_of(gradients(seed))
        )
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, PARAMS)
        flat = jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(updates)])
        np.testing.assert_allclose(flat, expected, rtol=1e-5, atol=1e-5)


def test_dtypes_are_those_of_the_parameters():
    params = {"a": jnp.zeros(2, jnp.bfloat16), "b": jnp.zeros(3, jnp.float16)}
    grads = {"a": jnp.ones((M, 2), jnp.bfloat16), "b": jnp.ones((M, 3), jnp.float16)}
    tx = scale_by_aggregator(recurrent(clip), M)
    state = tx.init(params)
    updates, new_state = tx.update(grads, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, new_state)


def test_simulator_arguments_pass_through_a_chain():
    tx = optax.chain(
        scale_by_aggregator(stateless(trimmed_mean, num_byzantine=2), M),
        optax.scale_by_learning_rate(0.5),
    )
    sign = jax.tree.map(lambda p: jnp.ones(p.shape, jnp.int8), PARAMS)
    updates, _ = tx.update(
        gradients(),
        tx.init(PARAMS),
        PARAMS,
        present=None,
        wire="ternary",
        honest_sign=sign,
        something_else=1,
    )
    expected = -0.5 * trimmed_mean(rows_of(gradients()), 2)
    np.testing.assert_allclose(updates["b"], expected[0], rtol=1e-6)


def test_init_needs_shapes_only_and_checks_the_precondition():
    tx = scale_by_aggregator(recurrent(clip), M)
    abstract = jax.eval_shape(tx.init, PARAMS)
    assert abstract.rule_state.shape == (11,)
    tx = scale_by_aggregator(stateless(trimmed_mean, num_byzantine=4), M)
    with pytest.raises(ValueError, match="at least 9 workers, but there are 7"):
        tx.init(PARAMS)


def test_what_cannot_be_aggregated_is_refused():
    tx = scale_by_aggregator(stateless(mean), M)
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match="needs a row from each of its 7 workers"):
        tx.update(gradients(), state, PARAMS, present=jnp.ones(M, bool))
    with pytest.raises(ValueError, match="7 workers need"):
        tx.update(PARAMS, state, PARAMS)
    with pytest.raises(ValueError, match="num_workers must be an int"):
        scale_by_aggregator(stateless(mean), 0)


@pytest.mark.parametrize("name", ["multi_krum", "dnc"])
def test_simulator_trains_with_a_rule(name, linear_regression):
    """Two of seven workers invert."""
    rule = RULES[name](2, jax.random.key(1))
    losses = linear_regression(scale_by_aggregator(rule, M), M, 2)
    assert losses[-1] < 1e-2 * losses[0]

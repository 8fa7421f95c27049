"""Counting: votes against what the others decide, and counters that add it up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signfd_jax.decoders import _counters

compare = jax.jit(_counters.outcomes_against_others, static_argnames="axis_name")


def naive_outcomes(votes, weights):
    """One worker and coordinate at a time, in exact binary fractions."""
    num_workers, size = votes.shape
    outcomes = np.zeros((num_workers, size))
    agreed, counted = np.zeros((2, num_workers))
    for m in range(num_workers):
        for n in range(size):
            others = [k for k in range(num_workers) if k != m]
            tally = sum(weights[k, n] * votes[k, n] for k in others)
            heard = any(weights[k, n] * votes[k, n] != 0 for k in others)
            outcomes[m, n] = votes[m, n] * np.sign(tally)
            if votes[m, n] != 0 and heard:
                counted[m] += 1
                agreed[m] += 0.5 if tally == 0 else outcomes[m, n] > 0
    return outcomes, agreed, counted


@settings(max_examples=30)
@given(
    num_workers=st.sampled_from([1, 2, 8]),
    shared=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_outcomes_are_what_loops_find(num_workers, shared, seed):
    rng = np.random.default_rng(seed)
    votes = rng.integers(-1, 2, (num_workers, 24)).astype(np.int8)
    shape = (num_workers, 1) if shared else votes.shape
    weights = rng.integers(-4, 5, shape) / 4  # Exact in fixed point, and apt to tie.
    expected = naive_outcomes(votes, np.broadcast_to(weights, votes.shape))
    weights = jnp.asarray(weights[:, 0] if shared else weights, jnp.float32)
    tree, flat = (votes[:, :4], votes[:, 4:].reshape(num_workers, 5, 4)), weights
    if not shared:
        flat = (weights[:, :4], weights[:, 4:].reshape(num_workers, 5, 4))
    outcomes, agreed, counted = compare(
        jax.tree.map(jnp.asarray, tree), flat, largest=1.0
    )
    rows = [np.reshape(leaf, (num_workers, -1)) for leaf in outcomes]
    np.testing.assert_array_equal(np.concatenate(rows, axis=1), expected[0])
    np.testing.assert_array_equal(agreed, expected[1])
    np.testing.assert_array_equal(counted, expected[2])


def test_a_useless_worker_agrees_with_the_others_half_of_the_time():
    """With its own vote in the majority of 15 it would be 60.5 %. A hundred thousand
    fair coins for each of 15 workers: 6 standard errors, probability 3e-8.
    """
    votes = np.random.default_rng(0).choice(np.int8([-1, 1]), (15, 100_000))
    _, agreed, counted = compare(jnp.asarray(votes), jnp.ones(15), largest=1.0)
    np.testing.assert_array_equal(counted, np.full(15, 100_000))
    np.testing.assert_allclose(agreed / 100_000, np.full(15, 0.5), atol=6 * 0.0016)


@settings(max_examples=6)
@given(dtype=st.sampled_from(["int8", "float32"]), seed=st.integers(0, 2**16))
def test_counters_never_exceed_their_rounds(dtype, seed):
    rng = np.random.default_rng(seed)
    forgetting = 1.0 if dtype == "int8" else 0.97
    counters, rounds = jnp.zeros((1, 3), dtype), jnp.float32(0)
    outcomes = rng.choice(np.int8([-1, 0, 1]), (200, 1, 3), p=[0.02, 0.02, 0.96])
    expected, decayed = np.zeros(3), 0.0
    add = jax.jit(_counters.add_outcomes)
    for outcome in outcomes:
        counters, rounds = add(counters, rounds, jnp.asarray(outcome), forgetting)
        if dtype == "int8" and decayed > 126:
            expected, decayed = np.trunc(expected / 2), decayed / 2
        factor = 1.0 if dtype == "int8" else np.float32(0.97)
        expected, decayed = factor * expected + outcome[0], factor * decayed + 1
        assert np.all(np.abs(np.float32(counters)) <= np.float32(rounds) + 1e-4)
    np.testing.assert_allclose(counters[0].astype(jnp.float32), expected, rtol=1e-4)
    assert float(rounds) == pytest.approx(decayed, rel=1e-4)


def test_counters_that_cannot_count_are_refused():
    assert _counters.check_counter_dtype(jnp.int8, True) == jnp.int8
    with pytest.raises(ValueError, match="stop counting"):
        _counters.check_counter_dtype("float16", True)
    with pytest.raises(ValueError, match="cannot hold decayed counts"):
        _counters.check_counter_dtype("int32", False)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32"])
@pytest.mark.parametrize("bound", [0, 1, 100, 1023, 1024, 5000])
def test_a_look_up_is_the_function(dtype, bound):
    """At sizes with a table; 5000 rounds are too many for it, and int8 stops at 127."""
    bound = min(bound, jnp.iinfo(dtype).max)
    counters = np.random.default_rng(0).integers(-bound, bound + 1, 40_000)
    counters[:2] = -bound, bound
    counters = jnp.asarray(counters, dtype)
    function = lambda c: jnp.log1p(jnp.abs(c.astype(jnp.float32)))  # noqa: E731
    look_up = jax.jit(lambda c, b: _counters.tabulated(function, c, b))
    found = look_up(counters, jnp.float32(bound))
    np.testing.assert_array_equal(found, jax.jit(function)(counters))


def test_only_the_values_that_occur_are_looked_up():
    """On a CPU: what the function says elsewhere is never asked."""
    counters = jnp.zeros(40_000, jnp.int16).at[0].set(3)
    asked = []

    def function(c):
        jax.debug.callback(lambda c: asked.append(np.asarray(c)), c)
        return c.astype(jnp.float32)

    jax.block_until_ready(
        jax.jit(lambda c: _counters.tabulated(function, c, jnp.float32(3)))(counters)
    )
    jax.effects_barrier()
    assert sum(values.size for values in asked) == 2 * 1024

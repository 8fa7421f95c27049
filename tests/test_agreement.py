"""Agreements of pairs, and with a camp: what loops count."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from channels import channel_votes

from signfd_jax import agreement


def naive_pair_counts(votes):
    num_workers = len(votes)
    balance, pairs = np.zeros((2, num_workers, num_workers))
    for j in range(num_workers):
        for k in range(num_workers):
            for one, other in zip(votes[j], votes[k], strict=True):
                balance[j, k] += int(one) * int(other)
                pairs[j, k] += one != 0 and other != 0
    return np.array([balance, pairs])


def test_pair_counts_are_what_a_loop_counts():
    rng = np.random.default_rng(0)
    flat = rng.integers(-1, 2, (5, 60)).astype(np.int8)
    tree = {"b": jnp.asarray(flat[:, 0]), "w": jnp.asarray(flat[:, 1:].reshape(5, -1))}
    expected = naive_pair_counts(flat)
    for limit in (None, 60, 1000):
        rows = agreement.sampled_rows(jax.random.key(0), tree, limit)
        counts = agreement.pair_counts(rows, rows)
        np.testing.assert_array_equal(counts, expected)
        some = [leaf[1:3] for leaf in rows]
        counts = agreement.pair_counts(some, rows)
        np.testing.assert_array_equal(counts, expected[:, 1:3])


def test_sampled_pair_counts_estimate_the_correlations():
    """2,000 of 40,000 coordinates: a correlation has a standard error of at most
    1/sqrt(1000) (half of the pairs abstain); 6 of them, 36 pairs: probability 1e-7.
    """
    votes, _ = channel_votes(0, [0.1, 0.2, 0.3, 0.4, 0.8, 0.9], 1, 40_000, 0.3)
    tree = {"v": jnp.asarray(votes[0, :, :400]), "w": jnp.asarray(votes[0, :, 400:])}

    @functools.partial(jax.jit, static_argnums=2)
    def sample(*arguments):
        rows = agreement.sampled_rows(*arguments)
        return agreement.pair_counts(rows, rows)

    whole = sample(jax.random.key(0), tree, None)
    seen = set()
    for seed in range(3):
        balance, pairs = sample(jax.random.key(seed), tree, 2_000)
        assert pairs[0, 0] <= 2_000 and pairs[0, 0] > 1_200
        error = balance / pairs - whole[0] / whole[1]
        np.testing.assert_allclose(error, np.zeros((6, 6)), atol=6 / np.sqrt(900))
        seen.add(float(balance[0, 1]))
    assert len(seen) > 1  # Another key, another sample.


@pytest.mark.parametrize("num_workers", [5, 15, 128, 129, 300])
def test_a_camp_is_counted_exactly_however_large_it_is(num_workers):
    """Where all agree, the tally of so many votes does not overflow."""
    rng = np.random.default_rng(num_workers)
    votes = rng.integers(-1, 2, (num_workers, 40)).astype(np.int8)
    votes[:, 0], votes[:, 1] = 1, -1
    camp = np.arange(num_workers) != 2
    tally = votes[camp].sum(axis=0, dtype=np.int64)
    margin = 0.6 * num_workers
    for columns in (np.abs(tally) >= 0, np.abs(tally) >= margin):
        compared = votes[:, columns] * np.sign(tally[columns])
        voted = np.count_nonzero(compared, axis=1)
        expected = compared.sum(axis=1) / np.maximum(voted, 1)
        threshold = 0.0 if columns.all() else margin
        rows = [jnp.asarray(votes)]
        found = agreement.camp_agreement(rows, jnp.asarray(camp), threshold)
        np.testing.assert_allclose(found[1], expected, rtol=1e-6)
        np.testing.assert_array_equal(found[2], voted)

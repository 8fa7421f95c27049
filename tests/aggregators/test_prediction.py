"""FLDetector: a loop over rounds, workers and dense matrices, laws, and what it drops.

What every rule owes is in `test_aggregators.py`, where its first round is a mean.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from signfd_jax.aggregators import fldetector
from signfd_jax.aggregators.prediction import _change

M, D, W, ROUNDS = 9, 12, 3, 14
LIARS = [2, 5]


def naive_change(aggregates):
    """The dense BFGS matrix, pair after pair, times the last step; 0.1 is the rate."""
    steps, changes = -0.1 * aggregates, np.diff(aggregates, axis=0)
    pairs = list(zip(steps[:-1], changes, strict=True))
    step, change = pairs[-1]
    hessian = np.eye(len(step)) * (change @ step) / (step @ step)
    for step, change in pairs:
        along = hessian @ step
        hessian = hessian - np.outer(along, along) / (step @ along)
        hessian = hessian + np.outer(change, change) / (change @ step)
    return hessian @ steps[-1]


def naive_two_clusters(points):
    """The two of the least sum of squares, of every way to cut a line in two."""
    ordered = np.sort(points)
    spread = lambda part: np.sum((part - part.mean()) ** 2)  # noqa: E731
    cuts = range(1, len(points))
    cut = min(cuts, key=lambda n: spread(ordered[:n]) + spread(ordered[n:]))
    return points >= ordered[cut], spread(ordered[:cut]) + spread(ordered[cut:])


def naive_is_one_cluster(scores):
    """The gap statistic, by the uniform points that are drawn beforehand."""

    def logs(points):
        squares = [np.sum((points - points.mean()) ** 2), naive_two_clusters(points)[1]]
        return np.log(np.array(squares) / len(points) + 1e-10)

    scaled = (scores - scores.min()) / np.ptp(scores)
    uniform = np.random.default_rng(0).uniform(size=(20, len(scores)))
    expected = np.array([logs(drawn) for drawn in uniform])
    gap = expected.mean(0) - logs(scaled)
    return gap[0] >= gap[1] - expected[:, 1].std() * np.sqrt(1 + 1 / 20)


def naive_fldetector(rounds, window):
    """The aggregate of each round, and who is dropped from it."""
    aggregates, errors, dropped = [], [], []
    for t, rows in enumerate(rounds):
        kept = np.ones(len(rows), bool)
        if t > window:
            change = naive_change(np.array(aggregates[-window - 1 :]))
            error = [
                np.linalg.norm(now - (before + change))
                for now, before in zip(rows, rounds[t - 1], strict=True)
            ]
            errors.append(np.array(error) / sum(error))
        if len(errors) >= window:
            scores = np.mean(errors[-window:], axis=0)
            if not naive_is_one_cluster(scores):
                kept = ~naive_two_clusters(scores)[0]
        aggregates.append(rows[kept].mean(0))
        dropped.append(~kept)
    return np.array(aggregates), np.array(dropped)


def training(seed, lie=None, rate=0.1):
    """Rows of rounds of gradient descent on quadratics; `lie(rng, honest, t)`."""
    rng = np.random.default_rng(seed)
    hessian, point = rng.uniform(0.2, 2, D), rng.normal(size=D)
    centres = 0.3 * rng.normal(size=(M, D))
    rounds = []
    for t in range(ROUNDS):
        rows = hessian * (point - centres) + 0.05 * rng.normal(size=(M, D))
        if lie is not None:
            rows[LIARS] = lie(rng, rows[LIARS], t)
        rounds.append(rows)
        point = point - rate * np.delete(rows, LIARS, axis=0).mean(0)
    return np.array(rounds)


LIES = {
    "noise": lambda rng, rows, t: rows + 2 * rng.normal(size=rows.shape),
    "inverting": lambda rng, rows, t: -3 * rows,
    "alternating": lambda rng, rows, t: rows * (-1) ** t,
}


@functools.cache
def scanned(window):
    """What the rule makes of the rounds, and its state after each."""
    rule = fldetector(window=window)

    @jax.jit
    def run(rounds):
        def step(state, rows):
            aggregate, state = rule.aggregate(state, rows)
            return state, (aggregate, state)

        state = rule.init(*rounds.shape[1:], rounds.dtype)
        return jax.lax.scan(step, state, rounds)[1]

    return lambda rounds: run(jnp.asarray(rounds, jnp.float32))


@pytest.mark.parametrize("lie", [*LIES, None])
def test_rounds_are_those_of_the_naive_loop(lie):
    found = set()
    for seed in range(5):
        rounds = training(seed, LIES.get(lie))
        expected, dropped = naive_fldetector(rounds.astype(np.float32), W)
        aggregates, _ = scanned(W)(rounds)
        np.testing.assert_allclose(aggregates, expected, rtol=1e-4, atol=1e-5)
        found |= {frozenset(np.flatnonzero(mask).tolist()) for mask in dropped}
    if lie:
        assert frozenset(LIARS) in found


@pytest.mark.parametrize("window", [1, 2, 5, 10])
def test_the_change_is_that_of_the_dense_matrix(window):
    """For any learning rate: the compact form is given none."""
    for seed in range(5):
        aggregates = training(seed).mean(1)[: window + 1]
        result = jax.jit(_change)(jnp.asarray(aggregates, jnp.float32))
        expected = naive_change(aggregates)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4 * scale)


def test_the_change_of_a_quadratic_in_one_dimension_is_exact():
    aggregates = 2.0 * 0.8 ** jnp.arange(4.0)[:, None]  # the Hessian is 2, the rate .1
    np.testing.assert_allclose(_change(aggregates), 0.8**4 * 2 - 0.8**3 * 2, rtol=1e-5)


def test_who_sends_the_same_in_every_round_is_kept():
    """It is foretold best, and the noise of the honest is not."""
    rounds = training(0, lambda rng, rows, t: np.full_like(rows, 3.0))
    _, states = scanned(W)(rounds)
    scores = np.mean(states.errors[-1], axis=0)
    assert set(np.argsort(scores)[:2]) == set(LIARS)


def test_rows_of_any_size_give_the_same():
    rounds = training(0, LIES["noise"])
    expected, states = scanned(W)(rounds)
    for scale in (1e-12, 1e12):
        aggregates, scaled = scanned(W)(rounds * scale)
        np.testing.assert_allclose(aggregates / scale, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(scaled.errors, states.errors, rtol=1e-3, atol=1e-6)


def test_rounds_that_never_change_drop_nobody():
    """There is no pair to learn from, no step, or no error."""
    for rows in (training(0)[0], np.zeros((M, D)), np.ones((M, D))):
        aggregates, states = scanned(W)(np.tile(rows, (ROUNDS, 1, 1)))
        expected = np.broadcast_to(rows.mean(0), (ROUNDS, D))
        np.testing.assert_allclose(aggregates, expected, rtol=1e-5, atol=1e-6)
        assert np.isfinite(states.errors).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e18])
def test_it_recovers_from_rows_that_are_not_finite_or_huge(bad):
    """Before W + 1 rounds, when it predicts, and later."""
    rounds = training(0, LIES["noise"])
    for t in (1, W + 2, 2 * W + 1):
        rounds[t, 0] = bad
    aggregates, states = scanned(W)(rounds)
    assert np.isfinite(aggregates).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(states))
    np.testing.assert_allclose(
        aggregates[-1], np.delete(rounds[-1], LIARS, axis=0).mean(0), rtol=1e-4
    )

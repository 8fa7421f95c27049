"""What the premise gives: the safety law's bound is tight, the sides' bound holds."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from signfd_jax import theory


@pytest.mark.parametrize(("num_honest", "num_byzantine"), [(3, 1), (3, 2), (4, 3)])
def test_liars_turn_exactly_what_is_not_safe(num_honest, num_byzantine):
    """Every vote of every worker, and every weight of a liar among -1, -1/2, 0, 1."""
    lies = list(itertools.product([-1, 0, 1], repeat=num_byzantine))
    weights = list(itertools.product([-1, -0.5, 0, 1], repeat=num_byzantine))
    for honest in itertools.product([-1, 0, 1], repeat=num_honest):
        total = sum(honest)
        tallies = [total + np.dot(lie, w) for lie in lies for w in weights]
        turned = total == 0 or any(np.sign(t) != np.sign(total) for t in tallies)
        safe = theory.safely_decoded(jnp.array([total]), float(num_byzantine))
        assert bool(safe[0]) != turned


def test_mirrored_votes_are_as_likely_with_half_or_more_liars():
    """Of three honest workers, three that negate and one that abstains: enumerated."""
    crossover = [0.1, 0.3, 0.4]

    def distribution(truth):
        found = {}
        for wrong in itertools.product([False, True], repeat=6):
            p = math.prod(
                c if e else 1 - c for c, e in zip(crossover * 2, wrong, strict=True)
            )
            signs = [truth * (-1 if e else 1) for e in wrong]
            votes = (*signs[:3], *(-sign for sign in signs[3:]), 0)
            found[votes] = found.get(votes, 0) + p
        return found

    plus, minus = distribution(1), distribution(-1)
    for votes, probability in plus.items():
        swapped = (*votes[3:6], *votes[:3], 0)
        assert minus[swapped] == pytest.approx(probability, rel=1e-12)


@pytest.mark.parametrize("num_workers", [2.0, 5.0, 15.0, 200.0])
@pytest.mark.parametrize("reliability", [0.05, 0.4, 1.0])
@pytest.mark.parametrize("failure", [1e-6, 0.1])
def test_the_bound_at_so_many_samples_is_the_failure(num_workers, reliability, failure):
    samples = theory.samples_to_tell_sides(num_workers, reliability, failure)
    bound = theory.sides_error_bound(num_workers, reliability, samples)
    # The exponent is up to 24, of which float32 keeps seven digits.
    np.testing.assert_allclose(bound, failure, rtol=1e-5)


def test_nothing_tells_coins_apart():
    assert theory.samples_to_tell_sides(15.0, 0.0, 0.1) == math.inf
    assert theory.sides_error_bound(15.0, 0.0, 1e9) == 1
    assert theory.sides_error_bound(1.0, 0.4, 0.0) == 0


def correlations(rng, reliabilities, num_samples):
    """Mean products of all pairs of workers' votes, `[M, M]`."""
    signs = np.where(
        rng.random((len(reliabilities), num_samples))
        < (1 + np.asarray(reliabilities))[:, None] / 2,
        1.0,
        -1.0,
    )
    return signs @ signs.T / num_samples


def weakest(num_workers, num_byzantine, reliability):
    """Reliabilities of the fewest samples allowed: all as weak as v."""
    return reliability * np.where(np.arange(num_workers) < num_byzantine, -1, 1)


@pytest.mark.parametrize(
    ("num_workers", "num_byzantine", "reliability"),
    [(5, 2, 0.3), (5, 1, 0.8), (15, 7, 0.5)],
)
def test_the_sides_are_told_as_often_as_promised(
    num_workers, num_byzantine, reliability
):
    """2,000 draws at delta = .1; 5 standard errors above it are a chance below 3e-7."""
    failure, draws = 0.1, 2_000
    samples = math.ceil(
        theory.samples_to_tell_sides(float(num_workers), reliability, failure)
    )
    rng = np.random.default_rng(num_workers + num_byzantine)
    v = weakest(num_workers, num_byzantine, reliability)
    pairs = ~np.eye(num_workers, dtype=bool)
    pair_errors = side_errors = 0
    for _ in range(draws):
        signs = np.sign(correlations(rng, v, samples)) * pairs
        right = np.all((signs == np.sign(np.outer(v, v)))[pairs])
        pair_errors += not right
        # Factors that are not negative, as of effective workers, above 0 all the same.
        factors = rng.uniform(0.05, 1, (num_workers, num_workers))
        vector = np.linalg.eigh(signs * (factors + factors.T))[1][:, -1]
        told = np.sign(vector) * np.sign(np.sum(np.sign(vector))) == np.sign(v)
        if right:
            assert told.all()
        side_errors += not told.all()
    limit = failure + 5 * math.sqrt(failure * (1 - failure) / draws)
    assert side_errors / draws <= pair_errors / draws <= limit


@pytest.mark.parametrize("reliability", [0.3, 0.5, 0.8])
def test_a_few_times_fewer_samples_are_too_few_for_all_signs(reliability):
    """The bound is within a factor of 4 of the need: a quarter of it is too little.

    15 workers, delta = .01, 400 draws. With a quarter of the samples more than a fifth
    of the draws have a wrong sign; that 5 delta or fewer have has a chance below 1e-15.
    """
    failure, draws = 0.01, 400
    samples = int(theory.samples_to_tell_sides(15.0, reliability, failure) / 4)
    rng = np.random.default_rng(0)
    v = weakest(15, 7, reliability)
    pairs = ~np.eye(15, dtype=bool)
    wrong = sum(
        np.any(
            (np.sign(correlations(rng, v, samples)) != np.sign(np.outer(v, v)))[pairs]
        )
        for _ in range(draws)
    )
    assert wrong > 5 * failure * draws


@pytest.mark.parametrize("reliability", [-0.8, -0.3, 0.4])
@pytest.mark.parametrize("of_trusted", [0.15, 0.5])
def test_a_trusted_worker_misjudges_as_seldom_as_promised(reliability, of_trusted):
    """4,000 draws where the bound is .2; 5 standard errors are a chance below 3e-7."""
    draws, bound = 4_000, 0.2
    samples = math.ceil(-2 * math.log(bound) / (reliability * of_trusted) ** 2)
    promised = theory.trusted_error_bound(reliability, of_trusted, float(samples))
    np.testing.assert_allclose(promised, bound, rtol=0.1)  # whole samples
    rng = np.random.default_rng(1)
    # The product of both votes is 1 with probability (1 + v v_0) / 2.
    agreed = rng.binomial(samples, (1 + reliability * of_trusted) / 2, draws)
    wrong = np.sign(2 * agreed - samples) != np.sign(reliability)
    assert np.mean(wrong) <= promised + 5 * math.sqrt(bound * (1 - bound) / draws)
    assert np.mean(wrong) > 0


def test_forgetting_counts_as_so_many_rounds():
    """Hoeffding's effective number of samples of weights gamma^i."""
    forgetting = 0.98
    weights = forgetting ** np.arange(2_000)
    effective = weights.sum() ** 2 / np.sum(weights**2)
    assert effective == pytest.approx((1 + forgetting) / (1 - forgetting), rel=1e-6)

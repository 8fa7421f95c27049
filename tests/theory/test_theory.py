"""Theory: the exact constants, each bound against enumeration, Monte Carlo.

A Monte Carlo test compares a frequency of n draws with its probability P at
`_SIGMAS` = 5 standard errors: a normal tail of 5.7e-7 on both sides together. Each test
states how many such comparisons it makes.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signfd_jax import theory

M = 15
_SIGMAS = 5
MIXED = [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4]
MIXED += [0.42, 0.44, 0.45, 0.46, 0.47, 0.48, 0.49]

# honest p; L; r; P_E of the LLR weights; BC / 2; exp(-Phi / 2); P_E of the majority;
# P_E with the attackers discarded.
CONSTANTS = [
    (0.30, 0, 0.0, 0.05001, 0.13523, 0.28057, 0.05001, None),
    (0.30, 3, 1.0, 0.05001, 0.13523, 0.28057, 0.15431, 0.07822),
    (0.30, 6, 1.0, 0.05001, 0.13523, 0.28057, 0.36458, 0.09881),
    (0.30, 9, 1.0, 0.05001, 0.13523, 0.28057, 0.63542, 0.16308),
    (0.30, 3, 0.5, 0.07822, 0.17565, 0.36177, 0.09440, 0.07822),
    (0.30, 6, 0.5, 0.09881, 0.22815, 0.46647, 0.16350, 0.09881),
    (0.30, 6, 0.25, 0.08869, 0.20186, 0.41304, 0.09647, 0.09881),
    (0.40, 0, 0.0, 0.21310, 0.36813, 0.73779, 0.21310, None),
    (0.40, 6, 1.0, 0.21310, 0.36813, 0.73779, 0.43603, 0.26657),
    (0.45, 6, 1.0, 0.34650, 0.46370, 0.92751, 0.46844, 0.37858),
    (MIXED, 0, 0.0, 0.01546, 0.05372, 0.14466, 0.07779, None),
]

decoding_error = jax.jit(theory.decoding_error)


def attacked(honest, num_byzantine, flip_probability):
    """Crossover probabilities of 15 workers, the last of which flip."""
    crossover = jnp.broadcast_to(jnp.asarray(honest, jnp.float32), (M,))
    flips = jnp.where(jnp.arange(M) < M - num_byzantine, 0.0, flip_probability)
    return jax.vmap(theory.flipped_crossover)(crossover, flips)


def naive_decoding_error(crossover, weights):
    """Every pattern of errors in turn, in float64."""
    total = 0.0
    for wrong in itertools.product([False, True], repeat=len(crossover)):
        probability, tally = 1.0, 0.0
        for p, w, e in zip(crossover, weights, wrong, strict=True):
            probability *= p if e else 1 - p
            tally += -w if e else w
        if abs(tally) < 1e-9:
            total += probability / 2
        elif tally < 0:
            total += probability
    return total


def llr(crossover):
    crossover = np.asarray(crossover, np.float64)
    return np.log1p(-crossover) - np.log(crossover)


def vote_tally(seed, crossover, weights, num_draws):
    """Tallies of independent votes on U = +1."""
    wrong = np.random.default_rng(seed).random((num_draws, len(crossover))) < crossover
    return np.where(wrong, -1, 1) @ weights


def assert_frequency(hits, probability):
    """One comparison at `_SIGMAS` standard errors; `hits` may count a tie as half."""
    deviation = abs(np.mean(hits) - probability)
    spread = math.sqrt(probability * (1 - probability) / len(hits))
    assert deviation <= _SIGMAS * spread, (np.mean(hits), probability, spread)


probabilities = st.lists(st.floats(0.02, 0.98), min_size=1, max_size=7)


# The constants -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("honest", "num_byzantine", "flip", "exact", "half_bc", "bk", "majority", "rest"),
    CONSTANTS,
)
def test_constants(honest, num_byzantine, flip, exact, half_bc, bk, majority, rest):
    crossover = attacked(honest, num_byzantine, flip)
    close = {"rtol": 0, "atol": 1e-5}
    np.testing.assert_allclose(decoding_error(crossover), exact, **close)
    _, upper = theory.bhattacharyya_bounds(crossover)
    np.testing.assert_allclose(upper, half_bc, **close)
    bound = theory.berend_kontorovich_bound(crossover)
    np.testing.assert_allclose(bound, bk, **close)
    error = decoding_error(crossover, jnp.ones(M))
    np.testing.assert_allclose(error, majority, **close)
    if rest is not None:
        error = decoding_error(crossover[: M - num_byzantine])
        np.testing.assert_allclose(error, rest, **close)


@pytest.mark.parametrize(
    ("num_workers", "expected"), [(15, 0.605), (5, 0.688), (101, 0.540)]
)
def test_own_vote_constants(num_workers, expected):
    assert abs(theory.agreement_with_own_vote(num_workers) - expected) < 5e-4


def test_convergence_constant():
    terms = [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert abs(theory.unimodal_convergence_bound(*terms) - 1.051) < 1e-3


# The exact error ---------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(crossover=probabilities, data=st.data())
def test_decoding_error_is_the_naive_sum(crossover, data):
    # Sixteenths: exact in float32, so that ties are ties there too.
    sixteenths = st.integers(-48, 48).map(lambda k: k / 16)
    size = len(crossover)
    weights = data.draw(st.lists(sixteenths, min_size=size, max_size=size))
    np.testing.assert_allclose(
        theory.decoding_error(jnp.asarray(crossover), jnp.asarray(weights)),
        naive_decoding_error(crossover, weights),
        atol=1e-6,
    )


@settings(max_examples=30, deadline=None)
@given(crossover=probabilities)
def test_exact_weights_make_the_maximum_likelihood_decoder(crossover):
    """P_E is half of the smaller likelihood, summed over the votes: the least."""
    least = 0.0
    for votes in itertools.product([1, -1], repeat=len(crossover)):
        pairs = list(zip(crossover, votes, strict=True))
        plus = math.prod(1 - p if y > 0 else p for p, y in pairs)
        minus = math.prod(p if y > 0 else 1 - p for p, y in pairs)
        least += 0.5 * min(plus, minus)
    error = theory.decoding_error(jnp.asarray(crossover))
    np.testing.assert_allclose(error, least, atol=1e-6)


def test_scale_of_the_weights_does_not_matter_and_ties_are_halved():
    crossover = jnp.asarray(MIXED)
    weights = jnp.asarray(llr(MIXED), jnp.float32)
    np.testing.assert_allclose(
        decoding_error(crossover, 0.01 * weights), decoding_error(crossover), rtol=1e-5
    )
    error = decoding_error(crossover, jnp.zeros(M))
    np.testing.assert_allclose(error, 0.5, rtol=1e-6)
    # Two workers that disagree tie: P_E = p^2 + p(1 - p) = p.
    np.testing.assert_allclose(
        theory.decoding_error(jnp.full(2, 0.3), jnp.ones(2)), 0.3, rtol=1e-6
    )


def test_decoding_error_vmaps_and_refuses_what_it_cannot_enumerate():
    rows = jnp.stack([attacked(0.3, L, 1.0) for L in (0, 3, 6)])
    together = jax.vmap(theory.decoding_error)(rows, jnp.ones((3, M)))
    np.testing.assert_allclose(together, [0.05001, 0.15431, 0.36458], atol=1e-5)
    with pytest.raises(ValueError, match="at most 24"):
        theory.decoding_error(jnp.full(25, 0.3))


@pytest.mark.parametrize("case", range(3))
def test_monte_carlo_decoding_error(case):
    """Two comparisons a case: false-alarm probability 1.2e-6."""
    honest, num_byzantine, flip, exact, _, _, majority, _ = CONSTANTS[[2, 6, 10][case]]
    crossover = np.asarray(attacked(honest, num_byzantine, flip), np.float64)
    tally = vote_tally(case, crossover, llr(crossover), 200_000)
    assert_frequency(tally < 0, exact)
    tally = vote_tally(case, crossover, np.ones(M), 200_000)
    assert_frequency(tally < 0, majority)


def test_monte_carlo_prior():
    """With the prior's log-odds the decoder errs least; two comparisons, 1.2e-6.

    The errors of maximum a posteriori are the smaller joint probability, summed over
    the votes.
    """
    crossover, prior = np.array([0.2, 0.3, 0.4]), 0.8
    rng = np.random.default_rng(0)
    truth = np.where(rng.random(200_000) < prior, 1, -1)
    tally = truth * vote_tally(1, crossover, llr(crossover), 200_000)
    smaller = 0.0
    for votes in itertools.product([1, -1], repeat=3):
        pairs = list(zip(crossover, votes, strict=True))
        plus = prior * math.prod(1 - p if y > 0 else p for p, y in pairs)
        minus = (1 - prior) * math.prod(p if y > 0 else 1 - p for p, y in pairs)
        smaller += min(plus, minus)
    decided = np.sign(tally + float(theory.prior_log_odds(prior)))
    assert_frequency(decided != truth, smaller)
    flat = theory.decoding_error(jnp.asarray(crossover))
    assert_frequency(np.sign(tally) != truth, float(flat))
    assert smaller < flat


# Bounds ------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(crossover=probabilities)
def test_bounds_are_in_order(crossover):
    crossover = jnp.asarray(crossover)
    error = theory.decoding_error(crossover)
    lower, upper = theory.bhattacharyya_bounds(crossover)
    coefficient = theory.bhattacharyya_coefficient(crossover)
    bk = theory.berend_kontorovich_bound(crossover)
    slack = 1e-6
    assert lower <= error + slack and error <= upper + slack
    assert coefficient <= bk + slack
    assert bk <= theory.advantage_bound(crossover) + slack


@settings(max_examples=40, deadline=None)
@given(crossover=probabilities, seed=st.integers(0, 1000))
def test_wrong_weights_stay_below_their_bounds(crossover, seed):
    rng = np.random.default_rng(seed)
    exact = llr(crossover)
    error = rng.normal(size=len(crossover))
    crossover32 = jnp.asarray(crossover)

    def probability(weights):  # Pr[S <= 0]: a tie counts in full
        wrong = 0.0
        for signs in itertools.product([1, -1], repeat=len(crossover)):
            pairs = zip(crossover, signs, strict=True)
            mass = math.prod(1 - p if z > 0 else p for p, z in pairs)
            wrong += mass * (np.dot(weights, signs) <= 1e-9)
        return wrong

    tight = theory.additive_error_bound(crossover32, jnp.asarray(error, jnp.float32))
    loose = theory.additive_error_exponential_bound(
        crossover32, jnp.asarray(error, jnp.float32)
    )
    assert probability(exact + error) <= tight * (1 + 1e-5)
    assert tight <= loose * (1 + 1e-5)

    d = rng.random()
    factors = 1 + d * rng.uniform(-1, 1, size=len(crossover))
    bound = theory.multiplicative_error_bound(crossover32, float(d))
    assert probability(factors * exact) <= bound * (1 + 1e-5)


def test_wrong_weight_bounds_without_error_are_those_of_exact_weights():
    crossover = jnp.asarray(MIXED)
    zero = jnp.zeros(M)
    coefficient = theory.bhattacharyya_coefficient(crossover)
    assert theory.additive_error_bound(crossover, zero) == coefficient
    assert theory.additive_error_exponential_bound(crossover, zero) == coefficient
    np.testing.assert_allclose(
        theory.multiplicative_error_bound(crossover, 0.0),
        theory.berend_kontorovich_bound(crossover),
        rtol=1e-6,
    )


@pytest.mark.parametrize("flip", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("num_byzantine", [0, 3, 6, 7, 9])
@pytest.mark.parametrize("honest", [0.1, 0.3, 0.45])
def test_majority_vote_stays_below_its_bound(honest, num_byzantine, flip):
    error = decoding_error(attacked(honest, num_byzantine, flip), jnp.ones(M))
    bound = theory.majority_vote_bound(honest, float(M), float(num_byzantine), flip)
    assert error <= bound
    assert (bound == 1) == (2 * flip * num_byzantine >= M)


# Attacks -----------------------------------------------------------------------------


@pytest.mark.parametrize("num_byzantine", range(0, 16, 3))
def test_sign_inversion_changes_nothing_if_the_weights_are_known(num_byzantine):
    crossover = attacked(MIXED, num_byzantine, 1.0)
    np.testing.assert_allclose(
        decoding_error(crossover), decoding_error(jnp.asarray(MIXED)), atol=2e-6
    )
    for bound in (theory.bhattacharyya_coefficient, theory.berend_kontorovich_bound):
        np.testing.assert_allclose(
            bound(crossover), bound(jnp.asarray(MIXED)), rtol=1e-5
        )


def test_half_flips_erase_the_attackers_and_are_the_worst():
    erased = decoding_error(attacked(0.3, 6, 0.5))
    np.testing.assert_allclose(erased, decoding_error(jnp.full(9, 0.3)), atol=1e-6)
    for flip in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        assert decoding_error(attacked(0.3, 6, flip)) < erased


def test_order_under_inversion_is_decode_then_discard_then_majority():
    crossover = attacked(0.3, 6, 1.0)
    errors = [
        decoding_error(crossover),
        decoding_error(crossover[:9]),
        decoding_error(crossover, jnp.ones(M)),
    ]
    assert errors == sorted(errors)


def test_monte_carlo_flipped_crossover():
    """One comparison: false-alarm probability 5.7e-7."""
    rng = np.random.default_rng(0)
    wrong = rng.random(200_000) < 0.2
    flipped = rng.random(200_000) < 0.7
    expected = theory.flipped_crossover(jnp.array(0.2), 0.7)
    assert_frequency(wrong != flipped, float(expected))


# Where crossover probabilities come from ---------------------------------------------


def test_monte_carlo_gaussian_crossover():
    """Three comparisons: false-alarm probability 1.7e-6."""
    rng = np.random.default_rng(0)
    for gradient, std, batch in [(0.5, 1.0, 4), (-0.2, 2.0, 16), (0.05, 0.3, 9)]:
        means = gradient + std * rng.normal(size=(100_000, batch)).mean(1)
        expected = theory.gaussian_crossover(jnp.array(gradient), std, float(batch))
        assert_frequency(np.sign(means) != np.sign(gradient), float(expected))


@pytest.mark.parametrize("signal", np.linspace(0.01, 6, 25))
def test_unimodal_bound_holds_for_four_noises(signal):
    """Normal, Laplace, logistic and uniform noise of unit variance, in closed form."""
    bound = theory.unimodal_crossover_bound(jnp.array(signal, jnp.float32))
    normal = 0.5 * math.erfc(signal / math.sqrt(2))
    laplace = 0.5 * math.exp(-math.sqrt(2) * signal)
    logistic = 1 / (1 + math.exp(signal * math.pi / math.sqrt(3)))
    uniform = max(0.0, 0.5 - signal / (2 * math.sqrt(3)))
    assert max(normal, laplace, logistic, uniform) <= bound + 1e-6


def test_unimodal_bound_is_attained_and_continuous():
    """Uniform noise attains it below the knee; both branches give 1/6 there."""
    knee = 2 / math.sqrt(3)
    np.testing.assert_allclose(
        theory.unimodal_crossover_bound(jnp.array([0.0, knee, knee + 1e-4])),
        [0.5, 1 / 6, 1 / 6],
        atol=1e-4,
    )
    # Gauss's extremal noise above it: an atom at 0, the rest uniform on +-3S/2.
    signal = 2.0
    width = 1.5 * signal
    mass = 3 / width**2  # for unit variance
    extremal = 0.5 * mass * (1 - signal / width)
    np.testing.assert_allclose(
        theory.unimodal_crossover_bound(jnp.array(signal)), extremal, rtol=1e-6
    )


def test_monte_carlo_llr_standard_deviation():
    """The sd of n estimates varies by about 1/sqrt(2n): 5 of these and 1 % for T < inf.

    Two comparisons: false-alarm probability 1.2e-6.
    """
    num_samples, num_estimates = 10_000, 20_000
    rng = np.random.default_rng(0)
    for p in (0.1, 0.4):
        estimates = llr(rng.binomial(num_samples, p, num_estimates) / num_samples)
        expected = theory.llr_standard_deviation(jnp.array(p), float(num_samples))
        tolerance = _SIGMAS / math.sqrt(2 * num_estimates) + 0.01
        assert abs(np.std(estimates) / float(expected) - 1) < tolerance


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4, 5, 8, 9])
def test_own_vote_agreement_by_enumeration(num_workers):
    agreement = 0.0
    for votes in itertools.product([1, -1], repeat=num_workers):
        agreement += (1 + np.sign(sum(votes)) * votes[0]) / 2 / 2**num_workers
    assert math.isclose(theory.agreement_with_own_vote(num_workers), agreement)


def test_own_vote_needs_a_worker():
    with pytest.raises(ValueError, match="int >= 1"):
        theory.agreement_with_own_vote(0)


def test_monte_carlo_agreement_without_own_vote():
    """Two comparisons: false-alarm probability 1.2e-6."""
    crossover = np.array([0.35, 0.2, 0.3, 0.4])
    rng = np.random.default_rng(0)
    votes = np.where(rng.random((200_000, 4)) < crossover, -1, 1)
    decoded = np.sign(votes[:, 1:].sum(1))
    error = theory.decoding_error(jnp.asarray(crossover[1:]), jnp.ones(3))
    for own, p in ((votes[:, 0], 0.35), (-votes[:, 0], 0.65)):
        expected = theory.agreement_without_own_vote(jnp.array(p), error)
        assert_frequency(own == decoded, float(expected))


# Convergence -------------------------------------------------------------------------


def test_best_step_size_makes_the_bound_smallest():
    gap, smoothness, rounds = 3.0, 5.0, 200.0
    best = float(theory.best_step_size(gap, smoothness, rounds))
    bound = lambda step: gap / (step * rounds) + 0.5 * step * smoothness  # noqa: E731
    steps = best * np.linspace(0.5, 2, 31)
    assert min(bound(step) for step in steps) >= bound(best) - 1e-9
    np.testing.assert_allclose(
        theory.convergence_bound(0.0, gap, smoothness, rounds), bound(best), rtol=1e-6
    )
    np.testing.assert_allclose(
        theory.convergence_bound(0.25, gap, smoothness, rounds),
        2 * bound(best),
        rtol=1e-6,
    )


def test_expected_descent_is_exact_on_a_separable_quadratic():
    """f = sum L x^2 / 2 reaches its own quadratic bound: all sign patterns weighed."""
    x, curvature = np.array([1.0, -2.0, 0.5]), np.array([1.0, 0.5, 3.0])
    error, step = np.array([0.1, 0.4, 0.25]), 0.05
    gradient = curvature * x
    loss = lambda y: 0.5 * np.sum(curvature * y**2)  # noqa: E731
    change = 0.0
    for wrong in itertools.product([0, 1], repeat=3):
        wrong = np.array(wrong)
        mass = np.prod(np.where(wrong, error, 1 - error))
        decoded = np.sign(gradient) * (1 - 2 * wrong)
        change += mass * (loss(x - step * decoded) - loss(x))
    bound = theory.expected_descent(
        jnp.asarray(gradient), jnp.asarray(error), float(curvature.sum()), step
    )
    np.testing.assert_allclose(bound, change, rtol=1e-5)


def test_convergence_bounds_hold_on_a_noisy_quadratic():
    """A run of 200 rounds, averaged over 64 seeds: the bound holds with a wide margin.

    f = x.Lx / 2 with Gaussian noise and exact weights (equal workers: the majority).
    The mean of the gradient norms has a standard error below 2 % (asserted), and the
    bound exceeds it by more than 5 of them (asserted), a tail below 3e-7.
    """
    num_workers, batch, rounds = 5, 4, 200
    curvature = np.array([1.0, 0.5, 0.2, 2.0])
    std = 0.5 * np.ones(4)
    x = np.tile([2.0, -3.0, 1.0, 1.5], (64, 1))
    gap, smoothness = 0.5 * np.sum(curvature * x[0] ** 2), curvature.sum()
    step = float(theory.best_step_size(gap, smoothness, float(rounds)))
    rng = np.random.default_rng(0)
    norms = np.zeros((64, rounds))
    for t in range(rounds):
        gradient = curvature * x
        norms[:, t] = np.abs(gradient).sum(1)
        noise = rng.normal(size=(64, num_workers, 4)) * std / math.sqrt(batch)
        votes = np.sign(gradient[:, None] + noise).sum(1)
        x = x - step * np.sign(votes)
    means = norms.mean(1)
    standard_error = means.std() / math.sqrt(64)
    bound = theory.unimodal_convergence_bound(
        gap,
        smoothness,
        std.sum(),
        step,
        float(rounds),
        float(num_workers),
        float(batch),
    )
    assert standard_error < 0.02 * means.mean()
    assert means.mean() + 5 * standard_error < bound


@pytest.mark.parametrize("num_workers", [1, 2, 3, 15, 100])
def test_sampling_term_covers_every_signal_to_noise_ratio(num_workers):
    """|g| BC <= sqrt(3/e) sigma / sqrt(MB), the step of the derivation, on a grid."""
    signal = jnp.linspace(1e-3, 50, 20_000)
    p = theory.unimodal_crossover_bound(signal)
    loss = signal * (4 * p * (1 - p)) ** (num_workers / 2)
    assert jnp.max(loss) <= math.sqrt(3 / math.e) / math.sqrt(num_workers) * (1 + 1e-5)


def test_everything_jits():
    crossover, scalar = jnp.full(3, 0.3), jnp.array(2.0)
    calls = {
        "prior_log_odds": (jnp.array(0.3),),
        "safely_decoded": (jnp.array([3, -1, 2]), scalar),
        "samples_to_tell_sides": (scalar, jnp.array(0.3), jnp.array(0.1)),
        "sides_error_bound": (scalar, jnp.array(0.3), jnp.array(100.0)),
        "trusted_error_bound": (jnp.array(-0.4), jnp.array(0.3), jnp.array(100.0)),
        "additive_error_bound": (crossover, crossover),
        "additive_error_exponential_bound": (crossover, crossover),
        "multiplicative_error_bound": (crossover, jnp.array(0.3)),
        "llr_standard_deviation": (crossover, scalar),
        "flipped_crossover": (crossover, jnp.array(0.3)),
        "agreement_without_own_vote": (crossover, jnp.array(0.3)),
        "majority_vote_bound": (jnp.array(0.3), scalar, jnp.array(1.0), scalar),
        "gaussian_crossover": (crossover, scalar, scalar),
        "expected_descent": (crossover, crossover, scalar, scalar),
        "best_step_size": (scalar,) * 3,
        "convergence_bound": (jnp.array(0.3), *(scalar,) * 3),
        "unimodal_convergence_bound": (scalar,) * 7,
    }
    for name in set(theory.__all__) - {"agreement_with_own_vote"}:
        arguments = calls.get(name, (crossover,))
        function = getattr(theory, name)
        np.testing.assert_allclose(
            jax.jit(function)(*arguments), function(*arguments), rtol=1e-5
        )

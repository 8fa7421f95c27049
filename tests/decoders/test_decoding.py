"""The weighted vote, its weights, and what is counted."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import signfd_jax as sfd
from signfd_jax.signs import _tally as tally
from signfd_jax.signs import _visits as visits

jitted_vote = jax.jit(tally.weighted_vote)
jitted_agreements = jax.jit(tally.agreements)
jitted_tree = jax.jit(tally.vote_tree, static_argnames="axis_name")


def all_patterns(num_workers, alphabet=(-1, 1)):
    """Every combination of votes, one a column: int8 `[M, len(alphabet)**M]`."""
    patterns = itertools.product(alphabet, repeat=num_workers)
    return np.array(list(patterns), np.int8).T


def log_likelihood_ratio(votes, crossover):
    """ln P(votes | U = +1) / P(votes | U = -1), term by term, in float64."""
    given_plus = np.where(votes == 1, 1 - crossover[:, None], crossover[:, None])
    given_minus = np.where(votes == -1, 1 - crossover[:, None], crossover[:, None])
    ratios = np.where(votes == 0, 1.0, given_plus / given_minus)
    return np.log(np.prod(ratios, axis=0))


@pytest.mark.parametrize("num_workers", range(1, 8))
@pytest.mark.parametrize("alphabet", [(-1, 1), (-1, 0, 1)])
def test_weighted_vote_is_the_maximum_likelihood_decoder(num_workers, alphabet):
    rng = np.random.default_rng(num_workers)
    votes = all_patterns(num_workers, alphabet)
    for _ in range(3):
        crossover = rng.uniform(0.01, 0.99, num_workers)
        weights = sfd.llr_weights(jnp.asarray(crossover, jnp.float32))
        decoded, _ = jitted_vote(jnp.asarray(votes), weights, largest=10.0)
        llr = log_likelihood_ratio(votes, crossover)
        # Only the pattern of nothing but abstentions is a tie in this draw.
        clear = np.abs(llr) > 1e-5
        assert np.sum(~clear) == np.sum(np.all(votes == 0, axis=0))
        np.testing.assert_array_equal(decoded, np.where(clear, np.sign(llr), 0))


@pytest.mark.parametrize("num_workers", [2, 4, 6])
def test_workers_of_equal_reliability_tie(num_workers):
    votes = all_patterns(num_workers)
    weights = sfd.llr_weights(jnp.full(num_workers, 0.37))
    decoded, margin = jitted_vote(jnp.asarray(votes), weights, largest=10.0)
    tied = votes.sum(axis=0) == 0
    assert tied.any()
    np.testing.assert_array_equal(np.asarray(decoded) == 0, tied)
    np.testing.assert_array_equal(np.asarray(margin)[tied], 0)


PATTERNS = all_patterns(15)
UNEVEN = [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4]
UNEVEN += [0.42, 0.44, 0.45, 0.46, 0.47, 0.48, 0.49]


def decoding_error(crossover, weights):
    """P(decoded sign is wrong) over all patterns, a tie counting one half."""
    decoded, _ = jitted_vote(jnp.asarray(PATTERNS), weights, largest=10.0)
    right = PATTERNS == 1  # The true sign is +1, without loss of generality.
    likely = np.where(right, 1 - crossover[:, None], crossover[:, None])
    probability = np.prod(likely, axis=0)
    assert probability.sum() == pytest.approx(1, abs=1e-12)
    wrong = np.where(np.asarray(decoded) == 0, 0.5, np.asarray(decoded) == -1)
    return float(np.sum(probability * wrong))


# The honest crossover, number of attackers and their flip probability; then the
# decoding error with LLR weights, of the majority, and with the attackers discarded.
CONSTANTS = [
    (0.30, 0, 1.0, 0.05001, 0.05001, None),
    (0.30, 3, 1.0, 0.05001, 0.15431, 0.07822),
    (0.30, 6, 1.0, 0.05001, 0.36458, 0.09881),
    (0.30, 9, 1.0, 0.05001, 0.63542, 0.16308),
    (0.30, 3, 0.5, 0.07822, 0.09440, 0.07822),
    (0.30, 6, 0.5, 0.09881, 0.16350, 0.09881),
    (0.30, 6, 0.25, 0.08869, 0.09647, 0.09881),
    (0.40, 0, 1.0, 0.21310, 0.21310, None),
    (0.40, 6, 1.0, 0.21310, 0.43603, 0.26657),
    (0.45, 6, 1.0, 0.34650, 0.46844, 0.37858),
    (UNEVEN, 0, 1.0, 0.01546, 0.07779, None),
]


@pytest.mark.parametrize(
    ("honest", "attackers", "flips", "weighted", "majority", "discarded"), CONSTANTS
)
def test_decoding_error_of_fifteen_workers(
    honest, attackers, flips, weighted, majority, discarded
):
    honest = np.broadcast_to(np.asarray(honest), (15,))
    liar = np.arange(15) < attackers
    attacked = honest * (1 - flips) + (1 - honest) * flips
    crossover = np.where(liar, attacked, honest)
    llr = sfd.llr_weights(jnp.asarray(crossover, jnp.float32))
    error = decoding_error(crossover, llr)
    assert error == pytest.approx(weighted, abs=6e-6)
    assert decoding_error(crossover, jnp.ones(15)) == pytest.approx(majority, abs=6e-6)
    if discarded is not None:
        without = decoding_error(crossover, jnp.where(jnp.asarray(liar), 0.0, llr))
        assert without == pytest.approx(discarded, abs=6e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("max_llr", [0.5, 10.0])
def test_llr_weights_over_the_unit_interval(dtype, max_llr):
    tiny = [0.0, float(jnp.finfo(dtype).smallest_subnormal), 1e-7]
    p = jnp.array([*tiny, 1e-3, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999, 1.0], dtype)
    weights = sfd.llr_weights(p, max_llr=max_llr)
    assert weights.dtype == dtype
    exact = np.asarray(p, np.float64)
    with np.errstate(divide="ignore"):
        exact = np.clip(np.log1p(-exact) - np.log(exact), -max_llr, max_llr)
    precision = 16 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(weights, np.float64), exact, precision, 1e-3)
    assert np.all(np.isfinite(np.asarray(weights, np.float64)))
    assert np.all(np.diff(np.asarray(weights, np.float64)) <= 0)
    assert float(weights[6]) == 0  # p = 1/2 exactly


def test_llr_weights_are_finite_on_every_reachable_float():
    """All float32 of [0, 1] are 2**30; every 8191th of them, and the ends."""
    bits = np.arange(0, np.float32(1).view(np.int32) + 1, 8191, dtype=np.int32)
    p = np.append(bits.view(np.float32), np.float32(1))
    weights = np.asarray(sfd.llr_weights(jnp.asarray(p)))
    assert np.all(np.isfinite(weights)) and np.abs(weights).max() == 10
    assert np.isnan(sfd.llr_weights(jnp.array(jnp.nan)))


def test_llr_weights_take_a_traced_bound_in_one_compilation():
    weights = jax.jit(lambda p, bound: sfd.llr_weights(p, max_llr=bound))
    p = jnp.array([0.0, 0.5])
    for bound in (1.0, 3.0):
        np.testing.assert_array_equal(weights(p, jnp.float32(bound)), [bound, 0])
    assert weights._cache_size() == 1


def integer_vote(votes, weights, largest):
    """The documented fixed point, with sums that cannot overflow."""
    num_workers = len(votes)
    scale = np.float32(2**30 / num_workers) / np.float32(largest)
    units = np.sign(weights) * np.ceil(np.abs(weights) * scale)
    units = units.astype(np.int64).reshape(weights.shape + (1,) * (2 - weights.ndim))
    tally = np.sum(units * votes, axis=0)
    total = np.broadcast_to(np.sum(np.abs(units), axis=0), tally.shape)
    return np.sign(tally), np.abs(tally) / np.maximum(total, 1)


@settings(max_examples=30)
@given(
    num_workers=st.sampled_from([1, 2, 15, 300]),
    shared=st.booleans(),
    largest=st.sampled_from([1e-3, 1.0, 10.0, 1e6]),
    extreme=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_weighted_vote_is_an_integer_tally(num_workers, shared, largest, extreme, seed):
    rng = np.random.default_rng(seed)
    votes = rng.integers(-1, 2, (num_workers, 13)).astype(np.int8)
    shape = (num_workers,) if shared else votes.shape
    weights = rng.uniform(-largest, largest, shape).astype(np.float32)
    if extreme:  # Everything at the bound, so that the sums are as large as they get.
        weights = np.float32(largest) * np.sign(weights)
    decoded, margin = jitted_vote(
        jnp.asarray(votes), jnp.asarray(weights), largest=jnp.float32(largest)
    )
    signs, margins = integer_vote(votes, weights, largest)
    np.testing.assert_array_equal(decoded, signs)
    np.testing.assert_allclose(margin, margins, rtol=1e-6)
    assert np.all(np.asarray(margin) <= 1 + 1e-6)


@pytest.mark.parametrize("num_workers", [300, 100_000])
@pytest.mark.parametrize("weight", [1.0, 10.0, -10.0, 1e-6])
def test_many_agreeing_workers_do_not_overflow(num_workers, weight):
    votes = jnp.ones((num_workers, 3), jnp.int8) * jnp.array([[1, -1, 0]], jnp.int8)
    weights = jnp.full(num_workers, weight)
    decoded, margin = jitted_vote(votes, weights, largest=10.0)
    sign = np.sign(weight)
    np.testing.assert_array_equal(decoded, [sign, -sign, 0])
    np.testing.assert_allclose(margin, [1, 1, 0], rtol=1e-6)


def test_one_vote_more_decides_among_a_hundred_thousand():
    votes = jnp.where(jnp.arange(100_001) < 50_001, 1, -1).astype(jnp.int8)[:, None]
    weights = jnp.full(100_001, 10.0)
    decoded, _ = jitted_vote(votes, weights, largest=10.0)
    assert int(decoded[0]) == 1
    tied, _ = jitted_vote(votes[1:], weights[1:], largest=10.0)
    assert int(tied[0]) == 0


def test_permuting_the_workers_changes_nothing():
    rng = np.random.default_rng(0)
    votes = jnp.asarray(rng.integers(-1, 2, (31, 500)), jnp.int8)
    weights = jnp.asarray(rng.normal(0, 3, (31, 500)).clip(-10, 10), jnp.float32)
    order = rng.permutation(31)
    for w in (weights, weights[:, 0]):
        one = jitted_vote(votes, w, largest=10.0)
        other = jitted_vote(votes[order], w[order], largest=10.0)
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize("weight", [1e-30, 1e-3, 1.0, 9.99])
def test_equal_weights_are_the_majority(weight):
    rng = np.random.default_rng(1)
    votes = jnp.asarray(rng.integers(-1, 2, (6, 400)), jnp.int8)
    decoded, margin = jitted_vote(votes, jnp.full(6, weight), largest=10.0)
    majority = sfd.majority_vote()
    state = majority.init(6, jnp.zeros(400))
    expected, _, info = jax.jit(majority.decode)(state, votes)
    np.testing.assert_array_equal(decoded, np.sign(np.sum(votes, axis=0)))
    np.testing.assert_array_equal(decoded, expected)
    decided = np.asarray(decoded) != 0
    np.testing.assert_allclose(info.margin, np.mean(margin[decided]), rtol=1e-6)


def test_the_margin_of_many_coordinates_is_that_of_a_sample():
    """8192 of 30,000: five standard errors, of which chance exceeds 6e-7."""
    rng = np.random.default_rng(5)
    votes = rng.integers(-1, 2, (5, 30_000)).astype(np.int8)
    tally = np.abs(votes.sum(axis=0, dtype=int))
    margins = tally[tally > 0] / 5
    decoder = sfd.majority_vote()
    _, _, info = decoder.decode(decoder.init(5, votes[0]), jnp.asarray(votes))
    assert 0 < abs(float(info.margin) - margins.mean()) < 5 * margins.std() / 70


def test_negative_votes_and_weights_are_symmetric():
    rng = np.random.default_rng(2)
    votes = jnp.asarray(rng.integers(-1, 2, (7, 200)), jnp.int8)
    weights = jnp.asarray(rng.uniform(-10, 10, 7), jnp.float32)
    decoded, margin = jitted_vote(votes, weights, largest=10.0)
    for v, w in ((-votes, weights), (votes, -weights)):
        flipped, same = jitted_vote(v, w, largest=10.0)
        np.testing.assert_array_equal(flipped, -decoded)
        np.testing.assert_array_equal(same, margin)


def naive_agreements(votes, decoded):
    agreed, counted = [], []
    for row in votes.reshape(len(votes), -1):
        pairs = list(zip(row.tolist(), decoded.ravel().tolist(), strict=True))
        agreed.append(sum(v == d and v != 0 for v, d in pairs))
        counted.append(sum(v != 0 and d != 0 for v, d in pairs))
    return agreed, counted


@settings(max_examples=30)
@given(
    num_workers=st.sampled_from([1, 6]),
    shape=st.sampled_from([(), (1,), (3, 5), (0,), (129,)]),
    seed=st.integers(0, 2**16),
)
def test_agreements_are_what_a_loop_counts(num_workers, shape, seed):
    rng = np.random.default_rng(seed)
    votes = rng.integers(-1, 2, (num_workers, *shape)).astype(np.int8)
    decoded = np.asarray(rng.integers(-1, 2, shape), np.int8)
    agreed, counted = jitted_agreements(jnp.asarray(votes), jnp.asarray(decoded))
    assert agreed.dtype == counted.dtype == jnp.int32
    expected = naive_agreements(votes, decoded)
    np.testing.assert_array_equal(agreed, expected[0])
    np.testing.assert_array_equal(counted, expected[1])


def test_agreements_of_more_coordinates_than_int8_or_int16_hold():
    votes = jnp.ones((2, 100_003), jnp.int8) * jnp.array([[1], [-1]], jnp.int8)
    agreed, counted = tally.agreements(votes, votes[0])
    np.testing.assert_array_equal(agreed, [100_003, 0])
    np.testing.assert_array_equal(counted, [100_003, 100_003])


@pytest.mark.parametrize("size", [7, 2047, 2048, 2050, 5003])
def test_long_rows_are_counted_in_slices(size):
    rng = np.random.default_rng(size)
    votes = rng.integers(-1, 2, (3, size)).astype(np.int8)
    decoded = rng.integers(-1, 2, size).astype(np.int8)
    votes[0], decoded[:50] = decoded, 0  # nothing but agreements; nothing to agree on
    agreed, counted = tally.agreements(jnp.asarray(votes), jnp.asarray(decoded))
    np.testing.assert_array_equal(agreed, np.sum((votes * decoded) == 1, axis=1))
    np.testing.assert_array_equal(counted, np.sum((votes * decoded) != 0, axis=1))


@pytest.mark.parametrize("num_workers", [1, 16, 17, 300])
def test_simple_visits_come_a_few_at_once_and_give_the_same(num_workers):
    rows = jnp.arange(num_workers * 5, dtype=jnp.int32).reshape(num_workers, 5)
    visit = lambda row: ((row, row[0]), -row)  # noqa: E731
    (total, first), kept = found = visits.over_workers(visit, rows, simple=True)
    chex.assert_trees_all_equal(found, visits.over_workers(visit, rows))
    np.testing.assert_array_equal(total, np.sum(rows, axis=0))
    assert first == total[0]
    np.testing.assert_array_equal(kept, -rows)


def test_vote_tree_is_the_vote_of_the_concatenated_leaves():
    rng = np.random.default_rng(3)
    shapes = {"w": (5, 4), "b": (), "scale": (3,)}
    votes = {
        name: jnp.asarray(rng.integers(-1, 2, (5, *shape)), jnp.int8)
        for name, shape in shapes.items()
    }
    weights = jax.tree.map(
        lambda v: jnp.asarray(rng.uniform(-3, 3, v.shape), jnp.float32), votes
    )

    def flat(tree):
        leaves = [np.reshape(leaf, (5, -1)) for leaf in jax.tree.leaves(tree)]
        return jnp.asarray(np.concatenate(leaves, axis=1))

    for own, whole in ((weights, flat(weights)), (weights["b"], weights["b"])):
        decoded, mean_weights, margin = jitted_tree(votes, own, largest=3.0)
        agreed, counted = tally.count_agreements(votes, decoded)
        signs, margins = jitted_vote(flat(votes), whole, largest=3.0)
        ravelled = [np.ravel(leaf) for leaf in jax.tree.leaves(decoded)]
        np.testing.assert_array_equal(np.concatenate(ravelled), signs)
        expected = naive_agreements(np.asarray(flat(votes)), np.asarray(signs))
        np.testing.assert_array_equal(agreed, expected[0])
        np.testing.assert_array_equal(counted, expected[1])
        expected = whole if whole.ndim == 1 else np.mean(whole, axis=1)
        np.testing.assert_allclose(mean_weights, expected, rtol=1e-5, atol=1e-6)
        assert float(margin) == pytest.approx(
            float(np.mean(margins[np.asarray(signs) != 0])), rel=1e-5
        )


def test_majority_vote_by_hand():
    decoder = sfd.majority_vote()
    state = decoder.init(4, {"w": jnp.zeros(3)})
    votes = {"w": jnp.array([[1, 1, 0], [1, -1, 0], [-1, 0, 0], [0, 0, 0]], jnp.int8)}
    decoded, after, info = decoder.decode(state, votes)
    np.testing.assert_array_equal(decoded["w"], [1, 0, 0])
    np.testing.assert_array_equal(info.weights, [1, 1, 1, 1])
    # One coordinate is decided: (errors + 1) / (votes + 2); the idle worker: 1/2.
    np.testing.assert_allclose(info.crossover, [1 / 3, 1 / 3, 2 / 3, 1 / 2])
    assert float(info.margin) == pytest.approx(1 / 4)
    np.testing.assert_array_equal(decoder.weights(after), decoder.weights(state))

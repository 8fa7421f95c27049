"""Oracle and Dawid-Skene: against theory's constants, and against slow EM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import signfd_jax as sfd
from signfd_jax.decoders import likelihood

em = sfd.dawid_skene()
em_decode = jax.jit(em.decode)


def channel_votes(seed, crossover, size, abstain=0.0):
    """Votes `[M, size]` of workers that err independently, and the true signs."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(np.array([-1, 1], np.int8), size)
    shape = (len(crossover), size)
    wrong = rng.random(shape, np.float32) < np.reshape(crossover, (len(crossover), -1))
    votes = np.where(wrong, -truth, truth)
    return votes * (rng.random(shape, np.float32) >= abstain).astype(np.int8), truth


UNEVEN = [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4]
UNEVEN += [0.42, 0.44, 0.45, 0.46, 0.47, 0.48, 0.49]


@pytest.mark.parametrize(
    ("honest", "attackers", "flips", "error"),
    [
        (0.30, 0, 1.0, 0.05001),
        (0.30, 6, 1.0, 0.05001),
        (0.30, 9, 1.0, 0.05001),
        (0.30, 6, 0.5, 0.09881),
        (0.40, 6, 1.0, 0.21310),
        (0.45, 6, 1.0, 0.34650),
        (UNEVEN, 0, 1.0, 0.01546),
    ],
)
def test_oracle_meets_the_decoding_error_of_theory(honest, attackers, flips, error):
    """200,000 coordinates; 5 standard errors are passed with probability 6e-7."""
    crossover = np.broadcast_to(np.float32(honest), (15,)).copy()
    liars = crossover[:attackers]
    crossover[:attackers] = liars * (1 - flips) + (1 - liars) * flips
    votes, truth = channel_votes(0, crossover, 200_000)
    decoder = sfd.oracle(jnp.asarray(crossover))
    state = decoder.init(15, jnp.zeros(200_000))
    decoded, _, info = jax.jit(decoder.decode)(state, jnp.asarray(votes))
    wrong = np.where(np.asarray(decoded) == 0, 0.5, decoded != truth).mean()
    assert abs(wrong - error) < 5 * np.sqrt(error * (1 - error) / 200_000)
    np.testing.assert_allclose(info.crossover, crossover)
    np.testing.assert_allclose(info.weights, np.log(1 / crossover - 1), atol=1e-5)


def test_oracle_with_a_probability_for_each_coordinate():
    rng = np.random.default_rng(1)
    params = {"b": jnp.zeros(()), "w": jnp.zeros((3, 4))}
    crossover = jax.tree.map(
        lambda p: jnp.asarray(rng.uniform(0.01, 0.99, (5, *p.shape)), jnp.float32),
        params,
    )
    votes = jax.tree.map(
        lambda p: jnp.asarray(rng.integers(-1, 2, p.shape), jnp.int8), crossover
    )
    decoder = sfd.oracle(crossover)
    decoded, _, info = jax.jit(decoder.decode)(decoder.init(5, params), votes)
    for name in params:
        llr = np.log(1 / np.asarray(crossover[name]) - 1)
        tally = np.sum(llr * np.asarray(votes[name]), axis=0)
        np.testing.assert_array_equal(decoded[name], np.sign(tally))
    flat = [np.reshape(leaf, (5, -1)) for leaf in jax.tree.leaves(crossover)]
    expected = np.concatenate(flat, axis=1).mean(axis=1)
    np.testing.assert_allclose(info.crossover, expected, rtol=1e-5)


def test_oracle_takes_traced_probabilities_in_one_compilation():
    votes, _ = channel_votes(2, [0.2, 0.3, 0.8], 50)

    @jax.jit
    def decode(crossover, votes):
        decoder = sfd.oracle(crossover)
        decoded, _, info = decoder.decode(decoder.init(3, votes[0]), votes)
        return decoded, info.weights

    for crossover in ([0.2, 0.3, 0.8], [0.9, 0.0, 0.5]):
        decoded, weights = decode(jnp.array(crossover), jnp.asarray(votes))
        expected = np.asarray(sfd.llr_weights(jnp.array(crossover)))
        np.testing.assert_array_equal(weights, expected)
        np.testing.assert_array_equal(decoded, np.sign(expected @ votes))
    assert decode._cache_size() == 1


@pytest.mark.parametrize(
    "crossover", [jnp.zeros(4), jnp.zeros((3, 4)), {"w": jnp.zeros(3)}]
)
def test_oracle_of_another_shape(crossover):
    with pytest.raises(ValueError, match="with the workers first"):
        sfd.oracle(crossover).init(3, jnp.zeros(5))


def slow_em(votes, weights, iterations, max_llr=10.0):
    """The docstring of `dawid_skene` in float64, worker by worker."""
    num_workers, size = votes.shape
    shared = [n for n in range(size) if np.sum(votes[:, n] != 0) > 1]
    weights = np.array(weights, np.float64)
    errors, counted = np.zeros((2, num_workers))
    for step in range(iterations):
        means = {n: np.tanh(weights @ votes[:, n] / 2) for n in shared}
        for m in range(num_workers):
            voted = [n for n in shared if votes[m, n] != 0]
            counted[m] = len(voted)
            errors[m] = sum((1 - votes[m, n] * means[n]) / 2 for n in voted)
        if step == iterations - 1:
            right = np.sum(np.sign(counted - 2 * errors))
            if right < 0:
                errors = counted - errors
        p = (errors + 1) / (counted + 2)
        llr = np.clip(np.log(1 / p - 1), -max_llr, max_llr)
        weights = np.where(counted > 0, llr, weights)
    return weights, p


@pytest.mark.parametrize("iterations", [1, 4])
def test_dawid_skene_is_what_slow_em_finds(iterations):
    decoder = sfd.dawid_skene(iterations, max_llr=3.0)
    decode = jax.jit(decoder.decode)
    crossover = [0.05, 0.2, 0.3, 0.4, 0.45, 0.8]
    state, weights = decoder.init(6, jnp.zeros((10, 20))), np.ones(6)
    for seed in range(3):
        votes, _ = channel_votes(seed, crossover, 200, abstain=0.6)
        if seed == 0:
            votes[4] = 0  # Absent at first.
        shaped = {"a": votes[:, :7], "b": votes[:, 7:].reshape(6, 193, 1)}
        decoded, state, info = decode(state, jax.tree.map(jnp.asarray, shaped))
        weights, p = slow_em(votes, weights, iterations, max_llr=3.0)
        np.testing.assert_allclose(info.weights, weights, atol=2e-3)
        np.testing.assert_allclose(info.crossover, p, atol=5e-4)
        flat = np.concatenate([decoded["a"], decoded["b"].reshape(-1)])
        tally = weights @ votes
        clear = np.abs(tally) > 0.02
        np.testing.assert_array_equal(flat[clear], np.sign(tally)[clear])


@pytest.mark.parametrize(("num_byzantine", "abstain"), [(0, 0.0), (7, 0.0), (6, 0.5)])
def test_dawid_skene_comes_to_the_truth_within_a_few_rounds(num_byzantine, abstain):
    """Each error rate is one of 5,000 votes or more, of which the posteriors tell
    nearly all: standard error below .01; 6 of them, 45 rates: probability 1e-7.
    """
    crossover = np.where(np.arange(15) < num_byzantine, 0.65, 0.35)
    state = em.init(15, jnp.zeros(10_000))
    for seed in range(6):
        votes, _ = channel_votes(seed, crossover, 10_000, abstain)
        _, state, info = em_decode(state, jnp.asarray(votes))
    np.testing.assert_allclose(info.crossover, crossover, atol=6 * 0.01)


def test_dawid_skene_keeps_the_weight_of_a_worker_that_tells_nothing():
    votes, _ = channel_votes(3, [0.2] * 4, 500)
    _, state, _ = em_decode(em.init(4, jnp.zeros(500)), jnp.asarray(votes))
    alone = votes.copy()
    alone[3, :100] = 0
    alone[:3, 100:] = 0  # The last worker votes only where nobody else does.
    decoded, after, info = em_decode(state, jnp.asarray(alone))
    assert float(info.weights[3]) == float(state.ds_weights[3])
    np.testing.assert_array_equal(decoded[100:], alone[3, 100:])
    assert np.all(after.ds_weights[:3] != state.ds_weights[:3])


def test_dawid_skene_sums_do_not_depend_on_their_order(monkeypatch):
    rng = np.random.default_rng(4)
    votes = jnp.asarray(rng.integers(-1, 2, (5, 3000)), jnp.int8)
    state = em.init(5, jnp.zeros(3000))._replace(
        ds_weights=jnp.asarray(rng.normal(size=5), jnp.float32)
    )
    _, whole, _ = em_decode(state, votes)
    monkeypatch.setattr(likelihood, "_SLICE", 1000)
    _, sliced, _ = jax.jit(sfd.dawid_skene().decode)(state, votes)
    np.testing.assert_array_equal(sliced.ds_weights, whole.ds_weights)
    order = rng.permutation(3000)
    pieces = jnp.split(votes[:, order], [1, 5, 1000], axis=1)
    _, shuffled, _ = em_decode(state, tuple(pieces))
    np.testing.assert_array_equal(shuffled.ds_weights, whole.ds_weights)


def test_posterior_sums_are_exact_beyond_an_int32():
    """All agree with certainty: the sum is 16,256 N, past 2**31 from N = 132,105 on."""
    votes = jnp.ones((2, 300_000), jnp.int8) * jnp.array([[1], [-1]], jnp.int8)
    sums = likelihood._sum_posteriors(
        votes,
        jnp.ones(300_000, bool),
        jnp.array([2**28, -(2**28)], jnp.int32),
        jnp.float32(2**20),
    )
    tens, ones = np.asarray(sums, np.int64).sum(0)
    np.testing.assert_array_equal(
        tens * 128 + ones, [127 * 128 * 300_000, -127 * 128 * 300_000]
    )


@pytest.mark.parametrize("name", ["oracle", "oracle by coordinate", "Dawid-Skene"])
def test_coordinates_split_over_devices_equal_the_whole(
    name, split_over_devices, specs_by_slice
):
    votes, _ = channel_votes(5, [0.1, 0.2, 0.3, 0.4, 0.8], 400, abstain=0.2)
    votes = jnp.asarray(votes)
    p = jnp.linspace(0.1, 0.8, 5)
    decoder = {
        "oracle": sfd.oracle(p),
        "oracle by coordinate": sfd.oracle(
            p[:, None] * jnp.linspace(0.5, 1.0, 400)[None]
        ),
        "Dawid-Skene": em,
    }[name]
    state = decoder.init(5, votes[0])
    split = split_over_devices(decoder, specs_by_slice(state))
    decoded, after, info = jax.jit(decoder.decode)(state, votes)
    slices, split_state, split_info = split(state, votes)
    np.testing.assert_array_equal(slices, decoded)
    for one, other in zip(
        jax.tree.leaves(split_state), jax.tree.leaves(after), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(*map(jax.tree.leaves, (split_info, info)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sfd.dawid_skene(0), "iterations must be an int >= 1"),
        (lambda: sfd.dawid_skene(max_llr=0.0), "max_llr must lie"),
        (lambda: sfd.oracle(jnp.zeros(3), max_llr=-1.0), "max_llr must lie"),
    ],
)
def test_arguments_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""Federated defense: what it estimates, and that it never gets stuck or overflows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import signfd_jax as sfd
from signfd_jax.decoders import released_code
from signfd_jax.signs import weighted_vote

SIZE = 28


def tree_of(flat):
    """A flat `[..., SIZE]` array as a tree of a scalar and a matrix."""
    return {
        "b": jnp.asarray(flat[..., 0]),
        "w": jnp.asarray(flat[..., 1:].reshape(*flat.shape[:-1], 3, 9)),
    }


def flat_of(tree, lead):
    leaves = [np.asarray(leaf).reshape(*lead, -1) for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves, axis=-1)


def noisy_votes(rounds, crossover, size=SIZE, abstain=0.3, seed=0):
    """Votes `[T, M, size]` of workers that err and abstain independently."""
    rng = np.random.default_rng(seed)
    shape = (rounds, len(crossover), size)
    truth = rng.choice([-1, 1], (rounds, 1, size))
    wrong = rng.random(shape) < np.reshape(crossover, (-1, 1))
    votes = np.where(wrong, -truth, truth) * (rng.random(shape) >= abstain)
    return votes.astype(np.int8)


@functools.cache
def scanned(decoder):
    def one(state, vote):
        weights = decoder.weights(state)
        decoded, state, info = decoder.decode(state, vote)
        return state, (decoded, weights, info)

    return jax.jit(lambda state, votes: jax.lax.scan(one, state, votes))


def scan(decoder, votes, state=None):
    """Decode a tree of `[T, M, ...]`, and record the weights before each round.

    In parts of ten rounds, so that runs of any length are compiled once.
    """
    num_rounds, num_workers = jax.tree.leaves(votes)[0].shape[:2]
    if state is None:
        state = decoder.init(num_workers, jax.tree.map(lambda v: v[0, 0], votes))
    outputs = []
    for start in range(0, num_rounds, 10):
        part = jax.tree.map(lambda v: jnp.asarray(v[start : start + 10]), votes)  # noqa: B023
        state, output = scanned(decoder)(state, part)
        outputs.append(output)
    return state, jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)


class SlowDefense:
    """The docstring of `federated_defense`, one worker and coordinate at a time."""

    def __init__(self, num_workers, initial_rounds, max_llr, forgetting):
        self.initial_rounds, self.max_llr = initial_rounds, max_llr
        self.forgetting, self.round, self.rounds = forgetting, 0, 0.0
        self.agreed, self.counted = np.zeros(num_workers), np.zeros(num_workers)
        self.counters = np.zeros((num_workers, SIZE))

    def crossovers(self):
        pooled = (self.counted - self.agreed + 1) / (self.counted + 2)
        if self.initial_rounds is None or self.round < self.initial_rounds:
            return pooled, np.repeat(pooled[:, None], SIZE, axis=1)
        own = np.empty_like(self.counters)
        for m, n in np.ndindex(own.shape):
            errors = (self.rounds - self.counters[m, n]) / 2
            own[m, n] = (errors + 2 * pooled[m]) / (self.rounds + 2)
        return pooled, own

    def weights(self):
        pooled, crossover = self.crossovers()
        if np.all((pooled == 0.5) | (self.counted < 1)):
            return np.ones_like(crossover)
        return np.clip(np.log(1 / crossover - 1), -self.max_llr, self.max_llr)

    def learn(self, votes, decoded):
        self.round += 1
        self.rounds = self.forgetting * self.rounds + 1
        for m in range(len(votes)):
            agreed = counted = 0
            for n in range(SIZE):
                outcome = int(votes[m, n]) * int(decoded[n])
                agreed += outcome > 0
                counted += outcome != 0
                self.counters[m, n] = self.forgetting * self.counters[m, n] + outcome
            self.agreed[m] = self.forgetting * self.agreed[m] + agreed
            self.counted[m] = self.forgetting * self.counted[m] + counted


@pytest.mark.parametrize(
    ("initial_rounds", "max_llr", "forgetting"),
    [(100, 10.0, 1.0), (0, 1.5, 1.0), (40, 10.0, 0.9), (None, 3.0, 0.8)],
)
def test_against_a_slow_implementation(initial_rounds, max_llr, forgetting):
    votes = noisy_votes(150, [0.1, 0.3, 0.45, 0.5, 0.9, 0.2, 0.0])
    votes[:2] = 0  # Two rounds in which everyone abstains;
    votes[:, :, 3] = 0  # a coordinate that is always dead,
    votes[:120, :, 4] = 0  # one that is dead for long,
    votes[30:, 6] = 0  # and a worker that leaves.
    decoder = sfd.federated_defense(initial_rounds, max_llr, forgetting)
    _, (decoded, weights, infos) = scan(decoder, tree_of(votes))
    decoded = flat_of(decoded, (150,))
    if initial_rounds is None:
        weights = np.repeat(weights[:, :, None], SIZE, axis=2)
    else:
        weights = flat_of(weights, (150, 7))
    slow = SlowDefense(7, initial_rounds, max_llr, forgetting)
    unclear = 0
    for t in range(150):
        expected = slow.weights()
        np.testing.assert_allclose(weights[t], expected, atol=2e-4)
        np.testing.assert_allclose(infos.weights[t], expected.mean(axis=1), atol=2e-4)
        tally = np.sum(expected * votes[t], axis=0)
        clear = (np.abs(tally) > 1e-3) | np.all(votes[t] == 0, axis=0)
        np.testing.assert_array_equal(decoded[t, clear], np.sign(tally)[clear])
        unclear += np.sum(~clear)
        margins = np.abs(tally) / np.sum(np.abs(expected), axis=0)
        decided = decoded[t] != 0
        margin = margins[decided].mean() if decided.any() else 0
        assert float(infos.margin[t]) == pytest.approx(margin, abs=1e-4)
        slow.learn(votes[t], decoded[t])
        np.testing.assert_allclose(
            infos.crossover[t], slow.crossovers()[1].mean(axis=1), atol=1e-5
        )
    assert unclear < 0.01 * 150 * SIZE


def test_reliability_is_learned_and_inverters_are_read_backwards():
    """Fifteen workers, three inverting, p = .3; after the first rounds every decoded
    sign is that of the honest-weighted vote, and its error that of L = 0.

    The error rate is .05 (theory.md); 200 rounds of 28 coordinates leave a standard
    error of .003, and 5 of them are passed with probability 3e-7.
    """
    votes = noisy_votes(220, [0.7] * 3 + [0.3] * 12, abstain=0.0)
    truth = noisy_votes(220, [0.0], abstain=0.0)  # The same draw of the true signs.
    np.testing.assert_allclose(np.mean(votes[:, 10] == truth[:, 0]), 0.7, atol=0.05)
    _, (decoded, weights, _) = scan(sfd.federated_defense(None), votes)
    assert np.all(weights[-1][:3] < -0.5)
    assert np.all(weights[-1][3:] > 0.5)
    error = np.mean(decoded[20:] != truth[20:, 0])
    assert abs(error - 0.05001) < 5 * 0.003


def test_pooled_state_has_nothing_per_coordinate():
    params = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    state = sfd.federated_defense(initial_rounds=None).init(20, params)
    assert max(leaf.size for leaf in jax.tree.leaves(state)) == 20
    assert state.fd_counters == ()
    one = jax.eval_shape(lambda: sfd.federated_defense().init(20, params))
    large = [leaf for leaf in jax.tree.leaves(one) if leaf.size > 20]
    assert [(leaf.shape, leaf.dtype) for leaf in large] == [
        ((20, 1000, 1000), jnp.int16)
    ]


COUNTERS = {
    dtype: sfd.federated_defense(10, counter_dtype=dtype)
    for dtype in ("int8", "int16", "int32", "float32")
}


def test_counters_of_every_dtype_agree_until_they_are_full():
    votes = noisy_votes(120, [0.05, 0.2, 0.3, 0.4, 0.4, 0.95], size=50)
    runs = {}
    for dtype, decoder in COUNTERS.items():
        state, output = scan(decoder, votes)
        assert state.fd_counters.dtype == dtype
        runs[dtype] = jax.tree.leaves((output, state.fd_counters.astype(jnp.float32)))
    for dtype in ("int8", "int16", "int32"):
        for leaf, expected in zip(runs[dtype], runs["float32"], strict=True):
            np.testing.assert_array_equal(leaf, expected)


@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_integer_counters_never_wrap(dtype):
    """Five workers who agree, one who always inverts, for 300 rounds past the brim."""
    decoder = COUNTERS[dtype]
    sent = np.array([1, 1, 1, 1, 1, -1], np.int8)[:, None]
    votes = np.broadcast_to(sent, (300, 6, 50))
    state = None
    if dtype == "int16":  # Begin 150 rounds before it is full.
        state, _ = scan(decoder, votes)
        old = jnp.int16(32767 - 150)
        state = state._replace(
            fd_counters=old * votes[0].astype(np.int16),
            fd_rounds_counted=old.astype(jnp.float32),
        )
    for part in np.split(votes, 30):
        state, (decoded, weights, infos) = scan(decoder, part, state)
        counters = np.asarray(state.fd_counters, np.int64)
        assert np.all(np.abs(counters) <= float(state.fd_rounds_counted))
        assert np.all(counters * sent > 0)
        np.testing.assert_array_equal(decoded, np.ones((10, 50)))
        assert np.all(np.isfinite(weights))
        assert np.all((infos.crossover >= 0) & (infos.crossover <= 1))
    assert np.all(infos.crossover[-1, :5] < 0.05) and infos.crossover[-1, 5] > 0.95


def test_halved_counters_still_estimate_the_crossover():
    """The int8 estimate is one of the last 64 to 127 rounds: .054 standard error at
    most per coordinate, .0077 for the mean of 50; 6 of them: probability 2e-9. What
    the smoothing and the own votes of the others shift is below .004.
    """
    votes = noisy_votes(300, [0.02] * 5 + [0.25], size=50, abstain=0.0)
    for dtype in ("int8", "int32"):
        _, (_, _, infos) = scan(COUNTERS[dtype], votes)
        assert abs(infos.crossover[-1, 5] - 0.25) < 6 * 0.0077 + 0.004


def test_an_int32_total_stops_counting_before_float32_does():
    decoder = sfd.federated_defense(0, counter_dtype="int32")
    votes = np.ones((1, 3, 2), np.int8) * np.array([[1], [1], [-1]], np.int8)
    state = decoder.init(3, jnp.zeros(2))._replace(
        fd_counters=jnp.asarray(2**24 * votes[0].astype(np.int32)),
        fd_rounds_counted=jnp.float32(2**24),
        fd_evidence=jnp.full(3, 1e9),
        fd_agreement=jnp.array([1.0, 1.0, 0.0]),
    )
    state, (_, weights, infos) = scan(decoder, votes, state)
    assert np.all(np.abs(state.fd_counters) <= float(state.fd_rounds_counted))
    np.testing.assert_array_equal(weights[0, :, 0], [10, 10, -10])
    assert np.all(np.isfinite(infos.crossover))


DECODERS = {
    "late": sfd.federated_defense(100),
    "early": sfd.federated_defense(2),
    "pooled": sfd.federated_defense(None),
    "forgetful": sfd.federated_defense(2, forgetting=0.9),
}
few_decoders = pytest.mark.parametrize("name", ["early", "pooled", "forgetful"])
each_decoder = pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)


@pytest.mark.parametrize("forgetting", [0.9, jnp.float32(0.999)])
def test_decayed_counters_stay_finite(forgetting):
    traced = isinstance(forgetting, jax.Array)
    decoder = (
        sfd.federated_defense(2, forgetting=forgetting)
        if traced
        else DECODERS["forgetful"]
    )
    sent = np.array([1] * 8 + [-1], np.int8)[:, None]
    # A large model, so that the smoothing hides no excess of a counter.
    state = decoder.init(9, jnp.zeros(SIZE))._replace(
        fd_evidence=jnp.full(9, 1e12), fd_agreement=jnp.asarray(sent[:, 0] > 0, float)
    )
    votes = np.broadcast_to(sent, (600, 9, SIZE))
    state, (_, weights, infos) = scan(decoder, votes, state)
    assert state.fd_counters.dtype == jnp.float32
    assert np.all(np.isfinite(weights))
    assert np.all((infos.crossover >= 0) & (infos.crossover <= 1))
    assert np.all(weights[-1] * sent > 0)
    factor = float(forgetting)
    assert float(state.fd_rounds_counted) == pytest.approx(
        (1 - factor**600) / (1 - factor), rel=1e-3
    )


@pytest.mark.parametrize("evidence", [1e9, 2.0**31, 1e30, 3e38])
def test_huge_evidence_is_harmless(evidence):
    decoder = DECODERS["pooled"]
    votes = noisy_votes(50, [0.0] * 8 + [1.0], abstain=0.0)
    agreement = jnp.array([1, 0.9, 0.5, 0.9, 0.9, 0.9, 0.9, 0.9, 0.0])
    state = decoder.init(9, jnp.zeros(SIZE))._replace(
        fd_evidence=jnp.full(9, evidence), fd_agreement=agreement
    )
    state, (_, weights, infos) = scan(decoder, votes, state)
    for leaf in jax.tree.leaves((state, weights, infos)):
        assert np.all(np.isfinite(leaf))
    np.testing.assert_allclose(state.fd_agreement, agreement, atol=1e-4)
    np.testing.assert_allclose(weights[-1][[0, 1, 8]], [10, np.log(9), -10], atol=1e-2)


@each_decoder
@pytest.mark.parametrize("dead", [1, 3, 29])
def test_zero_gradients_at_first_leave_a_majority_vote(decoder, dead):
    votes = noisy_votes(30, [0.3] * 9, abstain=0.0)
    votes[:dead] = 0
    _, (decoded, weights, infos) = scan(decoder, votes)
    np.testing.assert_array_equal(decoded[:dead], np.zeros((dead, SIZE)))
    np.testing.assert_array_equal(weights[dead], np.ones_like(weights[dead]))
    np.testing.assert_array_equal(decoded[dead], np.sign(votes[dead].sum(axis=0)))
    np.testing.assert_array_equal(infos.crossover[:dead], np.full((dead, 9), 0.5))
    np.testing.assert_array_equal(infos.margin[:dead], np.zeros(dead))


@each_decoder
def test_a_coordinate_that_comes_alive_late_is_decoded(decoder):
    votes = noisy_votes(220, [0.3] * 9, abstain=0.0)
    votes[:200, :, :5] = 0
    truth = noisy_votes(220, [0.0], abstain=0.0)[:, 0]
    _, (decoded, _, _) = scan(decoder, votes)
    assert np.all(decoded[200:, :5] != 0)
    # Nine of p = .3 err with .1; of 100 votes fewer than 68 are right with 3e-10.
    assert np.mean(decoded[200:, :5] == truth[200:, :5]) >= 0.68


@pytest.mark.parametrize(("initial_rounds", "num_workers"), [(2, 15), (None, 1001)])
def test_no_pause_is_long_enough_to_tie_every_vote(initial_rounds, num_workers):
    """While the past fades, weights become too small for a scale, and for float32."""
    decoder = sfd.federated_defense(initial_rounds, forgetting=0.9)
    votes = noisy_votes(20, [0.3] * num_workers, abstain=0.0)
    state, _ = scan(decoder, votes)
    agree = jnp.ones((num_workers, SIZE), jnp.int8)

    def pause(state, _):
        unanimous, _, _ = decoder.decode(state, agree)
        _, state, _ = decoder.decode(state, 0 * agree)
        return state, unanimous

    _, unanimous = jax.jit(lambda s: jax.lax.scan(pause, s, length=400))(state)
    unanimous = np.asarray(unanimous)
    assert np.all(unanimous != 0)
    assert np.all(
        unanimous[40:] == 1
    )  # Before, a coordinate's few rounds may invert it.


@each_decoder
def test_every_gradient_zero(decoder):
    state, (decoded, weights, infos) = scan(decoder, np.zeros((10, 9, SIZE), np.int8))
    np.testing.assert_array_equal(decoded, np.zeros((10, SIZE)))
    np.testing.assert_array_equal(weights, np.ones_like(weights))
    np.testing.assert_array_equal(infos.weights, np.ones((10, 9)))
    np.testing.assert_array_equal(infos.crossover, np.full((10, 9), 0.5))
    np.testing.assert_array_equal(infos.margin, np.zeros(10))
    np.testing.assert_array_equal(state.fd_evidence, np.zeros(9))


@each_decoder
def test_a_nan_worker_has_no_say_and_all_nan_are_zeros(decoder):
    rng = np.random.default_rng(0)
    gradients = (1 + rng.normal(size=(10, 9, SIZE))).astype(np.float32)
    gradients[:, 2] = np.nan
    votes = np.asarray(sfd.votes(jnp.asarray(gradients)))
    np.testing.assert_array_equal(votes[:, 2], np.zeros((10, SIZE)))
    state, (decoded, weights, infos) = scan(decoder, votes)
    np.testing.assert_array_equal(infos.crossover[:, 2], np.full(10, 0.5))
    np.testing.assert_array_equal(weights[1:, 2], np.zeros_like(weights[1:, 2]))
    for leaf in jax.tree.leaves((state, weights, infos)):
        assert np.all(np.isfinite(leaf))
    assert np.mean(decoded) > 0.5  # The eight others are heard.
    nobody = np.asarray(sfd.votes(jnp.full((10, 9, SIZE), jnp.nan)))
    state, (decoded, _, infos) = scan(decoder, nobody, state)
    np.testing.assert_array_equal(decoded, np.zeros((10, SIZE)))
    np.testing.assert_array_equal(infos.crossover[:, 2], np.full(10, 0.5))
    np.testing.assert_array_equal(infos.margin, np.zeros(10))
    assert np.all(np.isfinite(infos.weights))


@few_decoders
def test_one_worker_is_optax_sign_sgd(name):
    rng = np.random.default_rng(1)
    gradients = rng.normal(size=(8, 1, 6)).astype(np.float32)
    gradients[3:5, :, 2] = 0
    ours = optax.chain(sfd.scale_by_sign_decoder(1, DECODERS[name]), optax.scale(-0.1))
    theirs, params = optax.sign_sgd(0.1), jnp.zeros(6)
    state, sgd_state = ours.init(params), theirs.init(params)
    update = jax.jit(ours.update)
    for gradient in jnp.asarray(gradients):
        updates, state = update(gradient, state, params)
        expected, sgd_state = theirs.update(gradient[0], sgd_state, params)
        np.testing.assert_array_equal(updates, expected)


@few_decoders
def test_three_hundred_agreeing_workers_and_ties(name):
    votes = np.zeros((10, 300, SIZE), np.int8)
    votes[:, :, :10], votes[:, :, 10:20] = 1, -1
    votes[:, :150, 20:24], votes[:, 150:, 20:24] = 1, -1
    state, (decoded, weights, infos) = scan(DECODERS[name], votes)
    np.testing.assert_array_equal(decoded, [[1] * 10 + [-1] * 10 + [0] * 8] * 10)
    np.testing.assert_allclose(infos.margin, np.ones(10), rtol=1e-6)
    # Neither the ties nor the abstentions were counted: all agreed, and are equal.
    np.testing.assert_array_equal(state.fd_agreement, np.ones(300))
    assert np.all(weights == weights[:, :1]) and np.all(weights[:, 0] > 0)


AXES = {
    "defense": sfd.federated_defense(4),
    "majority": sfd.majority_vote(),
    "released": released_code(4),
}


@pytest.mark.parametrize("decoder", AXES.values(), ids=AXES)
def test_coordinates_split_over_devices_equal_the_whole(
    decoder, split_over_devices, specs_by_slice
):
    votes = jnp.asarray(noisy_votes(12, [0.1, 0.2, 0.3, 0.4, 0.9]))
    state = decoder.init(5, votes[0, 0])
    split = split_over_devices(decoder, specs_by_slice(state))
    whole = jax.jit(decoder.decode)
    parts = state
    for vote in votes:
        decoded, state, info = whole(state, vote)
        slices, parts, split_info = split(parts, vote)
        np.testing.assert_array_equal(slices, decoded)
        for one, other in zip(
            jax.tree.leaves(parts), jax.tree.leaves(state), strict=True
        ):
            np.testing.assert_array_equal(one, other)
        for one, other in zip(*map(jax.tree.leaves, (split_info, info)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_vote_with_looked_up_weights_and_its_info_are_as_defined():
    """Weights of each coordinate, of which there are more than are sampled.

    The mean of 8192 of them, of a standard deviation below 1, is within six standard
    errors, .067, of the mean of all.
    """
    rng = np.random.default_rng(1)
    votes = jnp.asarray(noisy_votes(1, [0.1, 0.2, 0.3, 0.4, 0.9], size=40_000)[0])
    decoder = sfd.federated_defense(0)
    state = decoder.init(5, votes[0])
    counters = rng.binomial(50, [[0.9], [0.8], [0.7], [0.6], [0.1]], (5, 40_000))
    state = state._replace(
        fd_round=jnp.int32(50),
        fd_agreement=jnp.array([0.9, 0.8, 0.7, 0.6, 0.1]),
        fd_evidence=jnp.full(5, 1e6),
        fd_counters=jnp.asarray(2 * counters - 50, jnp.int16),
        fd_rounds_counted=jnp.float32(50),
    )
    weights = decoder.weights(state)
    assert np.all(np.std(weights, axis=1) < 1)
    expected, margins = weighted_vote(votes, weights, largest=10.0)
    decoded, after, info = decoder.decode(state, votes)
    np.testing.assert_array_equal(decoded, expected)
    np.testing.assert_allclose(info.weights, np.mean(weights, axis=1), atol=0.067)
    assert float(info.margin) == pytest.approx(float(np.mean(margins)), abs=0.067)
    share = (1 - np.mean(after.fd_counters, axis=1) / 51) / 2
    np.testing.assert_allclose(info.crossover, share, atol=0.067)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(initial_rounds=-1),
            "initial_rounds must be a whole number of at least 0",
        ),
        (dict(max_llr=0.0), "max_llr must lie"),
        (dict(max_llr=float("nan")), "max_llr must lie"),
        (dict(forgetting=0.0), "forgetting must lie"),
        (dict(forgetting=1.1), "forgetting must lie"),
        (dict(counter_dtype="bfloat16"), "stop counting at 256"),
        (dict(counter_dtype="int16", forgetting=0.9), "cannot hold decayed counts"),
        (
            dict(counter_dtype="int8", forgetting=jnp.float32(1)),
            "a Python number, not an array",
        ),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        sfd.federated_defense(**options)


def test_leaving_the_own_vote_out_sees_through_a_useless_worker():
    """Four honest workers of p = .3 and a coin. A coin's votes agree with the others by
    half; 200 rounds of 28 coordinates leave a standard error of .007, 5 of them are
    passed with probability 6e-7.
    """
    votes = noisy_votes(200, [0.5, 0.3, 0.3, 0.3, 0.3], abstain=0.2)
    _, (_, _, with_own) = scan(sfd.federated_defense(None), votes)
    decoder = sfd.federated_defense(None, leave_own_out=True)
    _, (_, _, without) = scan(decoder, votes)
    assert with_own.crossover[-1, 0] < 0.48
    assert abs(without.crossover[-1, 0] - 0.5) < 5 * 0.007
    assert np.all(without.crossover[-1, 1:] < 0.45)


@pytest.mark.parametrize("initial_rounds", [None, 0])
def test_an_anchored_decoder_leaves_an_inverted_state(initial_rounds):
    """Without it, what was inverted once stays inverted: the estimates judge by it."""
    votes = noisy_votes(40, [0.8] * 3 + [0.2] * 6, abstain=0.0)
    truth = noisy_votes(40, [0.0], abstain=0.0)[:, 0]
    inverted = jnp.where(jnp.arange(9) < 3, 0.8, 0.2)
    for anchor in (False, True):
        decoder = sfd.federated_defense(initial_rounds, anchor=anchor)
        state = decoder.init(9, jnp.zeros(SIZE))
        state = state._replace(fd_agreement=inverted, fd_evidence=jnp.full(9, 1e4))
        state, (decoded, _, infos) = scan(decoder, votes, state)
        right = np.mean(decoded[1:] == truth[1:])
        assert right > 0.9 if anchor else right < 0.1
        assert np.all((infos.crossover[-1, 3:] < 0.5) == anchor)


def test_an_anchor_turns_nothing_where_most_workers_are_right():
    votes = noisy_votes(40, [0.8] * 2 + [0.2] * 7)
    runs = [
        scan(sfd.federated_defense(3, anchor=anchor), votes) for anchor in (False, True)
    ]
    for one, other in zip(*map(jax.tree.leaves, runs), strict=True):
        np.testing.assert_array_equal(one, other)


def test_federated_voting_is_a_majority_vote_and_then_federated_defense():
    votes = noisy_votes(40, [0.1, 0.3, 0.45, 0.8, 0.2])
    voting, defense = sfd.federated_voting(20), sfd.federated_defense(20)
    state, (decoded, weights, infos) = scan(voting, votes[:20])
    majority = np.sign(votes[:20].sum(axis=1))
    np.testing.assert_array_equal(decoded, majority)
    np.testing.assert_array_equal(weights, np.ones_like(weights))
    outcomes = votes[:20] * majority[:, None]
    agreed = np.sum(outcomes > 0, axis=(0, 2))
    pooled = (np.sum(outcomes < 0, axis=(0, 2)) + 1) / (
        agreed + np.sum(outcomes < 0, axis=(0, 2)) + 2
    )
    np.testing.assert_array_equal(state.fd_counters, outcomes.sum(axis=0))
    errors = (20 - outcomes.sum(axis=0)) / 2
    expected = (errors + 2 * pooled[:, None]) / 22
    np.testing.assert_allclose(infos.crossover[-1], expected.mean(axis=1), atol=1e-5)
    later = scan(voting, votes[20:], state), scan(defense, votes[20:], state)
    for one, other in zip(*map(jax.tree.leaves, later), strict=True):
        np.testing.assert_array_equal(one, other)

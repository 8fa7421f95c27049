"""M-MSR, triangular estimation and KOS: against loops over workers, pairs and edges."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from channels import channel_votes
from choices import slow_but
from jax.sharding import PartitionSpec as P

from signfd_jax import decoders
from signfd_jax.decoders import crowd

M, SIZE, ROUNDS = 7, 120, 3
CROSSOVER = np.array([0.1, 0.2, 0.25, 0.3, 0.35, 0.8, 0.6])


def rounds_of_votes(abstain=0.3):
    """Votes of workers that err independently; the last is away at first."""
    votes, _ = channel_votes(0, CROSSOVER, ROUNDS, SIZE, abstain=abstain)
    votes = np.array(votes)
    votes[0, -1] = 0
    return votes


def slow_correlation(past, forgetting):
    """The mean of the products of two workers' votes, vote by vote."""
    balance, pairs = np.zeros((2, M, M))
    for votes in past:
        balance, pairs = forgetting * balance, forgetting * pairs
        for j, k, n in itertools.product(range(M), range(M), range(SIZE)):
            balance[j, k] += int(votes[j, n]) * int(votes[k, n])
            pairs[j, k] += abs(int(votes[j, n]) * int(votes[k, n]))
    known = (pairs > 0) & ~np.eye(M, dtype=bool)
    return np.where(known, balance / np.maximum(pairs, 1e-9), 0), known


def trimmed_mean_around(own, ratios, most):
    """The mean without the `most` farthest on each side of what one has oneself."""
    below = sorted(r for r in ratios if r < own)[:most]
    above = sorted((r for r in ratios if r > own), reverse=True)[:most]
    rest = list(ratios)
    for ratio in below + above:
        rest.remove(ratio)
    return np.mean(rest) if rest else own


def slow_m_msr(correlation, known, trimmed, iterations):
    u, v = np.float64(known.any(axis=0)), np.float64(known.any(axis=0))
    for _ in range(iterations):
        for own, others in ((v, u), (u, v)):
            before = others.copy()
            for k in range(M):
                met = [j for j in range(M) if known[j, k]]
                most = max(len(met) // 2 - 1, 0) if trimmed is None else trimmed
                ratios = [abs(correlation[j, k]) / max(before[j], 1e-3) for j in met]
                own[k] = trimmed_mean_around(own[k], ratios, most)
    size = u * np.sqrt(np.linalg.norm(v) / np.linalg.norm(u))
    # The signs that most pairs of workers fit, tried one and all.
    signs = max(
        itertools.product([-1, 1], repeat=M),
        key=lambda s: (np.sum(np.outer(s, s) * np.sign(correlation)), np.dot(s, size)),
    )
    return size * signs


def slow_triangles(correlation, known):
    size = np.zeros(M)
    for k in range(M):
        others = [m for m in range(M) if m != k]
        i, j = max(
            (p for p in itertools.combinations(others, 2) if known[p]),
            key=lambda pair: abs(correlation[pair]),
        )
        size[k] = np.sqrt(
            abs(correlation[i, k] * correlation[j, k] / correlation[i, j])
        )
    sums = [size[k] ** 2 + sum(correlation[:, k]) for k in range(M)]
    first = int(np.argmax(np.abs(sums)))
    sign = np.sign(sums[first])
    signs = [
        sign if k == first else sign * np.sign(correlation[first, k]) for k in range(M)
    ]
    return size * signs


ESTIMATES = {
    "M-MSR": (decoders.m_msr, lambda c, known: slow_m_msr(c, known, None, 20)),
    "M-MSR, two trimmed": (
        lambda **o: decoders.m_msr(2, 5, **o),
        lambda c, known: slow_m_msr(c, known, 2, 5),
    ),
    "triangular estimation": (decoders.triangular_estimation, slow_triangles),
}


@pytest.mark.parametrize(
    "name", slow_but(["M-MSR, two trimmed", "triangular estimation"], ESTIMATES)
)
def test_estimates_are_what_slow_loops_find(name):
    make, slow = ESTIMATES[name]
    decoder = make(forgetting=0.9, max_llr=3.0)
    state, votes = decoder.init(M, jnp.zeros(SIZE)), rounds_of_votes()
    last = np.ones(M)
    for t in range(ROUNDS):
        shaped = {"a": votes[t, :, :50], "b": votes[t, :, 50:].reshape(M, 7, 10)}
        decoded, state, info = decoder.decode(state, jax.tree.map(jnp.asarray, shaped))
        correlation, known = slow_correlation(votes[: t + 1], 0.9)
        s = np.clip(slow(correlation, known), -1, 1)
        with np.errstate(divide="ignore"):
            llr = np.clip(np.log((1 + s) / (1 - s)), -3, 3)
        last = np.where(known.any(axis=1), llr, last)
        np.testing.assert_allclose(info.weights, last, atol=5e-3)
        np.testing.assert_allclose(info.crossover, (1 - s) / 2, atol=1e-3)
        flat = np.concatenate([decoded["a"], decoded["b"].reshape(-1)])
        tally = last @ votes[t]
        clear = np.abs(tally) > 0.05
        np.testing.assert_array_equal(flat[clear], np.sign(tally)[clear])


@pytest.mark.parametrize("corrupted", [1, 3])
def test_m_msr_is_exact_for_the_honest_whatever_a_few_others_agree_on(corrupted):
    """The paper's theorem, on agreements without noise."""
    rng = np.random.default_rng(corrupted)
    s = rng.uniform(0.2, 0.9, 15)
    exact = np.outer(s, s)
    for m in rng.choice(15, corrupted, replace=False):
        exact[m], exact[:, m] = (rng.uniform(-1, 1, 15),) * 2
        s[m] = np.nan
    known = ~np.eye(15, dtype=bool)
    fitted = crowd._robust_rank_one(
        jnp.asarray(np.where(known, exact, 0), jnp.float32),
        jnp.asarray(known),
        corrupted,
        200,
    )
    honest = ~np.isnan(s)
    np.testing.assert_allclose(fitted[honest], s[honest], rtol=1e-3)


def test_triangular_estimation_is_exact_without_noise():
    s = np.float32([0.9, -0.3, 0.5, 0.0, 0.6, 0.2])
    known = ~np.eye(6, dtype=bool)
    found = crowd._triangles(jnp.asarray(np.outer(s, s) * known), jnp.asarray(known))
    np.testing.assert_allclose(found, s, rtol=1e-5, atol=1e-6)


def slow_kos(votes, iterations):
    """Messages along every edge: what workers hear last, and a coordinate's tally.

    And how much of the tally is what a vote itself has in the message along it.
    """
    edges = [(m, n) for m, n in np.argwhere(votes)]
    y = dict.fromkeys(edges, 1.0)
    for _ in range(iterations):
        sums = {n: 0.0 for _, n in edges}
        for m, n in edges:
            sums[n] += votes[m, n] * y[m, n]
        x = {(m, n): sums[n] - votes[m, n] * y[m, n] for m, n in edges}
        heard = np.zeros(len(votes))
        for m, n in edges:
            heard[m] += votes[m, n] * x[m, n]
        y = {(m, n): heard[m] - votes[m, n] * x[m, n] for m, n in edges}
        largest = max(map(abs, y.values()))
        own = {edge: abs(message) / largest for edge, message in x.items()}
        y = {edge: message / largest for edge, message in y.items()}
    tally, own_part = np.zeros((2, votes.shape[1]))
    for m, n in edges:
        tally[n] += votes[m, n] * y[m, n]
        own_part[n] += own[m, n]
    return heard / np.max(np.abs(heard)), tally, own_part


@pytest.mark.parametrize("iterations", [1, 6])
def test_kos_is_what_messages_along_each_edge_give(iterations):
    decoder = decoders.kos(iterations)
    state, votes = decoder.init(M, jnp.zeros(SIZE)), rounds_of_votes()
    for t in range(ROUNDS):
        decoded, state, info = decoder.decode(state, jnp.asarray(votes[t]))
        weights, tally, own_part = slow_kos(votes[t].astype(int), iterations)
        if t == 0:
            weights[-1] = 1  # It was away.
        np.testing.assert_allclose(info.weights, weights, atol=1e-3)
        clear = np.abs(tally) > own_part + 1e-2
        assert np.mean(clear) > 0.8
        np.testing.assert_array_equal(decoded[clear], np.sign(tally)[clear])


def test_kos_comes_near_the_leading_eigenvector_where_nobody_abstains():
    votes = rounds_of_votes(abstain=0.0)[1]
    decoder = decoders.kos(30)
    _, _, info = decoder.decode(decoder.init(M, jnp.zeros(SIZE)), jnp.asarray(votes))
    agreements = votes.astype(float) @ votes.T.astype(float)
    vector = np.linalg.eigh(agreements - np.diag(np.diag(agreements)))[1][:, -1]
    vector /= vector[np.argmax(np.abs(vector))]
    # The own vote is one of 120 coordinates.
    np.testing.assert_allclose(info.weights, vector, atol=2 / SIZE * M)


def test_kos_with_too_many_messages():
    with pytest.raises(ValueError, match="give sample=16 or less"):
        decoders.kos(sample=100).init(2**20, jnp.zeros(3))


@pytest.mark.parametrize(
    "name", slow_but(["kos"], ["kos", "m_msr", "triangular_estimation"])
)
def test_coordinates_split_over_devices_equal_the_whole(name, split_over_devices):
    votes = jnp.asarray(rounds_of_votes()[1])
    decoder = getattr(decoders, name)()
    state = decoder.init(M, votes[0])
    split = split_over_devices(decoder, jax.tree.map(lambda _: P(), state))
    decoded, after, info = jax.jit(decoder.decode)(state, votes)
    slices, split_state, split_info = split(state, votes)
    np.testing.assert_array_equal(slices, decoded)
    for one, other in zip(
        jax.tree.leaves(split_state), jax.tree.leaves(after), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(*map(jax.tree.leaves, (split_info, info)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)

"""Population defense: a committee decodes, and everybody is compared with it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import signfd_jax as sfd
from signfd_jax import packed, population

M, K, SIZE = 100, 30, 1500
LIARS = np.arange(M) % 5 < 2  # two in five


def channel_votes(seed, crossover=0.35, abstain=0.2):
    """Votes of equally reliable workers, and the true signs."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(np.array([-1, 1], np.int8), SIZE)
    votes = np.where(rng.random((M, SIZE)) < crossover, -truth, truth)
    return votes * (rng.random((M, SIZE)) >= abstain).astype(np.int8), truth


def play(attack, rounds=3):
    """Error rate and weights after some rounds in which `attack(votes, rng)` lies."""
    decoder = sfd.population_defense(committee=K)
    state = decoder.init(M, jnp.zeros(SIZE))
    rng = np.random.default_rng(9)
    for seed in range(rounds):
        votes, truth = channel_votes(seed)
        votes[LIARS] = attack(votes, rng)[LIARS]
        decoded, state, info = decoder.decode(state, jnp.asarray(votes))
    chex.assert_tree_all_finite(state)
    return np.mean(np.asarray(decoded) != truth), np.asarray(info.weights), info


def test_inverters_are_read_backwards_from_the_first_round():
    error, weights, info = play(lambda votes, rng: -votes, rounds=1)
    assert (weights[LIARS] < 0).all() and (weights[~LIARS] > 0).all()
    # A vote of M workers that are right with .65 errs on less than 1 % of the signs.
    assert error < 0.02
    # The standard error of a worker's crossover is .014, of the common scale .01.
    np.testing.assert_allclose(np.asarray(info.crossover)[~LIARS], 0.35, atol=0.09)
    np.testing.assert_allclose(np.asarray(info.crossover)[LIARS], 0.65, atol=0.09)


def test_colluders_share_one_vote():
    """Two in five send one random vector: a majority vote loses, this does not."""

    def collude(votes, rng):
        return np.tile(rng.choice(np.array([-1, 1], np.int8), SIZE), (M, 1))

    error, weights, _ = play(collude)
    assert np.abs(weights[LIARS]).max() < 0.2 * weights[~LIARS].min()
    assert error < 0.05


@pytest.mark.slow
def test_abstainers_and_silent_rounds():
    error, weights, _ = play(lambda votes, rng: 0 * votes)
    assert error < 0.02 and (weights[~LIARS] > 0).all()
    decoder = sfd.population_defense(committee=K)
    state = decoder.init(M, jnp.zeros(SIZE))
    decoded, state, info = decoder.decode(state, jnp.zeros((M, SIZE), jnp.int8))
    assert not decoded.any()
    chex.assert_tree_all_finite((state, info))


@pytest.mark.slow
def test_packed_votes_are_decoded_alike():
    decoder = sfd.population_defense(committee=K, max_coordinates=200)
    state = other = decoder.init(M, jnp.zeros(SIZE))
    for seed in range(2):
        votes = jnp.asarray(channel_votes(seed)[0])
        found = decoder.decode(state, votes)
        alike = decoder.decode(other, packed.pack_ternary(votes))
        chex.assert_trees_all_equal(found, alike)
        state, other = found[1], alike[1]


def test_few_workers_are_left_to_correlation_defense():
    votes = jnp.asarray(channel_votes(0)[0][:10])
    found, expected = (
        decoder.decode(decoder.init(10, jnp.zeros(SIZE)), votes)
        for decoder in (sfd.population_defense(committee=10), sfd.correlation_defense())
    )
    chex.assert_trees_all_equal(found, expected)


@pytest.mark.slow
def test_slices_of_the_coordinates_decode_as_the_whole(split_over_devices):
    decoder = sfd.population_defense(committee=K, max_coordinates=10**6)
    state = decoder.init(M, jnp.zeros(SIZE))
    votes = jnp.asarray(channel_votes(0)[0])
    specs = jax.tree.map(lambda _: jax.P(), state)
    whole = decoder.decode(state, votes)
    split = split_over_devices(decoder, specs)(state, votes)
    chex.assert_trees_all_close(split[0], whole[0])
    chex.assert_trees_all_close(split[2].weights, whole[2].weights, atol=1e-4)


def test_state_is_a_few_numbers_a_worker():
    decoder = sfd.population_defense(committee=K)
    state = jax.eval_shape(lambda: decoder.init(10_000, jnp.zeros(SIZE)))
    size = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert size < 10_000 * (K + 4) + 3 * K * K + 10


def test_default_is_population_defense_for_many_workers():
    few = population.default_decoder(512).init(512, jnp.zeros(2))
    many = population.default_decoder(513).init(513, jnp.zeros(2))
    assert hasattr(few, "cd_weights") and hasattr(many, "pd_weights")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"committee": 2}, "committee must be an int >= 3"),
        ({"forgetting": 0.0}, "forgetting must lie in"),
        ({"max_llr": -1.0}, "max_llr must lie in"),
        ({"max_coordinates": 0}, "max_coordinates must be an int >= 1"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        sfd.population_defense(**options)

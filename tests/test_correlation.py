"""Correlation defense: accurate from round 0 on, and blind to sign inversion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from channels import channel_votes
from jax.sharding import PartitionSpec as P

import signfd_jax as sfd

SIZE = 10_000
DECODER = sfd.correlation_defense()
decode = jax.jit(DECODER.decode)


def play(votes, decoder=DECODER, decode=decode, state=None):
    """Decode round after round: signs `[T, N]`, weights and crossovers `[T, M]`."""
    if state is None:
        state = decoder.init(votes.shape[1], jnp.zeros(votes.shape[2:]))
    signs, weights, crossovers = [], [], []
    for vote in votes:
        decoded, state, info = decode(state, jnp.asarray(vote))
        signs.append(np.asarray(decoded))
        weights.append(np.asarray(info.weights))
        crossovers.append(np.asarray(info.crossover))
    return np.array(signs), np.array(weights), np.array(crossovers), state


def test_first_round_knows_the_crossover_probabilities():
    """Fifteen workers of p from .1 to .9. An estimate of v = 1 - 2p rests on 14 pairs
    of standard error .01 and a typical v of .5, so that its own is .006; 6 of them,
    and .04 for the ratio of v to its mean that the rank-one fit leaves out.
    """
    crossover = np.linspace(0.1, 0.45, 15)
    crossover[[1, 4, 7, 10]] = 1 - crossover[[1, 4, 7, 10]]
    votes, truth = channel_votes(1, crossover, 1)
    signs, weights, estimates, _ = play(votes)
    np.testing.assert_allclose(estimates[0], crossover, atol=0.5 * (6 * 0.006 + 0.04))
    np.testing.assert_array_equal(np.sign(weights[0]), np.sign(0.5 - crossover))
    llr = np.log(1 / crossover - 1)
    ideal = np.mean(np.sign(llr @ votes[0]) != truth[0])
    # One vote for each costs something where workers differ so much.
    assert ideal < np.mean(signs[0] != truth[0]) < ideal + 0.02


def test_weights_are_labels_or_log_likelihood_ratios_in_medians():
    """Reliability earns no more than a vote; where it does, nobody must exploit it.

    Fifteen who tell the truth: by label as in a majority vote, by ratio better.
    """
    crossover = np.linspace(0.05, 0.45, 15)
    crossover[[1, 4, 7, 10]] = 1 - crossover[[1, 4, 7, 10]]
    votes, truth = channel_votes(14, crossover, 4)
    signs, weights, _, _ = play(votes)
    labels = np.sign(0.5 - crossover)
    np.testing.assert_array_equal(weights[1:], np.broadcast_to(labels, (3, 15)))
    np.testing.assert_array_equal(signs[1:], np.sign(labels @ votes[1:]))

    by_ratio = sfd.correlation_defense(weighting="llr")
    better, ratios, _, _ = play(votes, by_ratio, jax.jit(by_ratio.decode))
    llr = np.log(1 / crossover - 1)
    expected = np.clip(llr / np.median(np.abs(llr)), -1, 1)
    np.testing.assert_allclose(ratios[-1], expected, atol=0.1)
    assert np.mean(better != truth) < np.mean(signs != truth)


def test_who_lies_on_some_coordinates_only_has_no_label():
    """Seven who oppose eight on 60 % of the coordinates, honest on the others."""
    votes, truth = channel_votes(15, [0.2] * 15, 12)
    lies = np.random.default_rng(15).permutation(SIZE)[: SIZE * 6 // 10]
    votes[:, :7, lies] = -truth[:, None, lies]
    signs, weights, _, _ = play(votes)
    np.testing.assert_allclose(weights[8:, :7], 0, atol=0.05)
    np.testing.assert_array_equal(weights[8:, 7:], np.ones((4, 8)))
    honest = np.sign(votes[8:, 7:].sum(axis=1))
    np.testing.assert_array_equal(signs[8:][honest != 0], honest[honest != 0])


@pytest.mark.parametrize("abstain", [0.0, 0.5])
def test_sign_inversion_changes_next_to_nothing_from_the_first_round_on(abstain):
    """In lockstep, L = 0, 3, 6 and 7 inverters give the same decoded signs."""
    votes, _ = channel_votes(2, [0.3] * 15, 6, abstain=abstain)
    honest, honest_weights, _, _ = play(votes)
    for num_byzantine in (3, 6, 7):
        inverted = votes.copy()
        inverted[:, :num_byzantine] *= -1
        signs, weights, _, _ = play(inverted)
        assert np.max(np.mean(signs != honest, axis=1)) <= 1e-4
        flips = np.where(np.arange(15) < num_byzantine, -1, 1)
        np.testing.assert_allclose(weights, flips * honest_weights, atol=1e-4)


def test_sign_inversion_changes_next_to_nothing_where_signs_depend_on_each_other():
    """Each vote a hundred times: as noisy as 400 coordinates; round 0 cannot know."""
    votes, _ = channel_votes(11, [0.35] * 15, 40, size=400)
    votes = np.repeat(votes, 100, axis=2)
    honest, _, _, _ = play(votes)
    for num_byzantine in (3, 6, 7):
        inverted = votes.copy()
        inverted[:, :num_byzantine] *= -1
        signs, _, _, _ = play(inverted)
        assert np.max(np.mean(signs != honest, axis=1)[1:]) <= 1e-4


def test_who_votes_alone_is_not_read_backwards():
    """Eight against seven who invert; then the seven alone, whose votes then count."""
    votes, truth = channel_votes(5, [0.1] * 8 + [0.9] * 7, 12)
    votes[10:, :8] = 0
    signs, weights, *_ = play(votes)
    wrong = np.mean(signs != truth, axis=1)
    assert np.all(wrong[:10] < 0.01) and np.all(wrong[10:] > 0.99)
    assert np.all(weights[9, 8:] < 0) and np.all(weights[10:, 8:] > 0)


def test_state_is_the_decayed_counts_and_nothing_per_coordinate():
    decoder = sfd.correlation_defense(forgetting=0.9)
    votes, _ = channel_votes(3, [0.2, 0.3, 0.4, 0.6], 5, size=200, abstain=0.2)
    *_, state = play(votes, decoder, jax.jit(decoder.decode))
    decay = 0.9 ** np.arange(4, -1, -1)
    expected = [
        np.einsum("t,tjn,tkn->jk", decay, vote, vote)
        for vote in (np.float64(votes), np.abs(votes, dtype=np.float64))
    ]
    np.testing.assert_allclose(state.cd_balance, expected[0], rtol=1e-5)
    np.testing.assert_allclose(state.cd_pairs, expected[1], rtol=1e-5)
    np.testing.assert_allclose(state.cd_sides[2], [decay.sum()] * 4, rtol=1e-5)
    np.testing.assert_allclose(state.cd_rounds, [decay.sum(), (decay**2).sum()], 1e-5)
    assert np.all(np.abs(state.cd_labels[0]) <= state.cd_labels[1])
    assert np.all(state.cd_labels[1] <= decay.sum() * (1 + 1e-5))
    params = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    sizes = [leaf.size for leaf in jax.tree.leaves(decoder.init(4, params))]
    assert max(sizes) == 16


def test_a_turncoat_is_found_out_as_fast_as_the_past_is_forgotten():
    """With .9, ten inverted rounds weigh more than all that came before: 1 - .9^10."""
    votes, truth = channel_votes(4, [0.3] * 9, 40, size=2_000)
    votes[20:, :3] *= -1
    decoder = sfd.correlation_defense(forgetting=0.9)
    signs, weights, _, _ = play(votes, decoder, jax.jit(decoder.decode))
    assert np.all(weights[19, :3] > 0)
    assert np.all(weights[30:, :3] < 0)
    assert np.all(weights[:, 3:] > 0)
    # The nine err with .0988 when weighted rightly; 5 standard errors of 18,000 signs.
    assert abs(np.mean(signs[31:] != truth[31:]) - 0.0988) < 5 * 0.0022


def test_liars_who_change_places_each_round_are_read_backwards_in_it():
    """Other six of fifteen each round: the mean over rounds knows none of them."""
    votes, truth = channel_votes(8, [0.25] * 15, 12)
    rng = np.random.default_rng(8)
    for vote in votes:
        vote[rng.permutation(15)[:6]] *= -1
    signs, weights, _, _ = play(votes)
    lies = np.sum(votes * truth[:, None], axis=2) < 0
    np.testing.assert_array_equal(weights[2:] < 0, lies[2:])
    # Fifteen of p = .25 err with .0173; 5 standard errors of 100,000 signs.
    assert abs(np.mean(signs[2:] != truth[2:]) - 0.0173) < 5 * 0.0005


def test_who_opposes_the_close_votes_only_is_silenced_where_it_lied():
    """Seven who lie on 70 % of the coordinates, and not where the eight are surest."""
    rng = np.random.default_rng(9)
    signal = rng.normal(size=(10, 1, SIZE))
    votes = np.sign(signal + 2 * rng.normal(size=(10, 15, SIZE))).astype(np.int8)
    honest = votes[:, 7:].sum(axis=1)
    for vote, tally in zip(votes, honest, strict=True):
        close = np.argsort(np.abs(tally), kind="stable")[: SIZE * 7 // 10]
        vote[:7, close] = -np.sign(tally[close])
    signs, weights, _, _ = play(votes)
    np.testing.assert_allclose(weights[1:, :7], 0, atol=1e-6)
    firm = np.abs(honest) >= 4

    def wrong(signs):
        return np.mean((signs != np.sign(honest))[1:], where=firm[1:])

    assert wrong(signs) < 0.001
    assert wrong(np.sign(honest - votes[:, :7].sum(axis=1))) > 0.05  # all backwards


def test_votes_without_a_common_sign_are_a_majority_vote():
    votes = np.random.default_rng(5).choice(np.int8([-1, 1]), (4, 15, SIZE))
    signs, weights, _, _ = play(votes)
    np.testing.assert_array_equal(weights, np.ones((4, 15)))
    np.testing.assert_array_equal(signs, np.sign(votes.sum(axis=1)))


def test_three_camps_without_a_majority_are_a_majority_vote():
    """From the second round on: how noisy a round is, the first cannot know."""
    camps = [channel_votes(seed, [0.3] * 5, 3)[0] for seed in range(3)]
    votes = np.concatenate(camps, axis=1)
    signs, weights, _, _ = play(votes)
    assert np.all(weights[0] >= 0)
    np.testing.assert_array_equal(weights[1:], np.ones((2, 15)))
    np.testing.assert_array_equal(signs[1:], np.sign(votes[1:].sum(axis=1)))


def test_the_larger_of_two_camps_is_right():
    """Eight workers that agree, and seven that agree about something else."""
    larger, _ = channel_votes(6, [0.3] * 8, 3)
    smaller, _ = channel_votes(7, [0.3] * 7, 3)
    signs, weights, _, _ = play(np.concatenate([larger, smaller], axis=1))
    np.testing.assert_array_equal(weights[:, :8], np.ones((3, 8)))
    # Chance makes them lean together, but by less than what labels a worker.
    assert np.all(np.abs(weights[:, 8:]) < 0.3)
    tally = larger.sum(axis=1)
    np.testing.assert_array_equal(signs[tally != 0], np.sign(tally)[tally != 0])


def test_identical_colluders_share_one_vote():
    """Six workers that send one random vector weigh no more than one of the others."""
    votes, truth = channel_votes(8, [0.3] * 15, 3)
    votes[:, :6] = np.random.default_rng(9).choice(np.int8([-1, 1]), (3, 1, SIZE))
    signs, weights, _, _ = play(votes)
    assert np.all(np.abs(weights[:, :6]).sum(axis=1) <= weights[:, 6:].min(axis=1))
    # Nine workers of p = .3 err with .0988; one random vote more costs below .01.
    assert np.mean(signs != truth) < 0.0988 + 0.01 + 5 * 0.0017


def test_colluders_share_one_vote_only_while_they_collude():
    """Six send one random vector in two rounds of three; nobody else agrees at all."""
    votes = np.random.default_rng(9).choice(np.int8([-1, 1]), (24, 15, SIZE))
    together = np.arange(24) % 3 < 2
    votes[together, :6] = votes[together, :1]
    _, weights, _, _ = play(votes)
    assert np.all(weights[~together] == 1) and np.all(weights[:, 6:] == 1)
    # A mean correlation of 2/3 makes copies of them by half: two and a half of five.
    assert np.all(weights[9:, :6][together[9:]] < 0.5)


def test_a_majority_that_changes_is_no_reason_to_read_anybody_backwards():
    """Eight against seven; after sixty rounds, the eighth of them goes over.

    The mean over rounds follows some 40 rounds later, and says that all others have
    changed camps. Those who leave for the smaller camp are another matter: see above.
    """
    votes, _ = channel_votes(13, [0.3] * 15, 120, size=2_000)
    votes[:60, 8:] *= -1
    votes[60:, :7] *= -1
    _, weights, _, _ = play(votes)
    assert np.all(weights[10:60, 8:] < 0)
    assert np.all(weights[110:] > 0.5)


def test_more_than_sample_above_workers_are_decoded_from_a_sample():
    """A hundred workers, 45 inverting, 500 of 20,000 coordinates: the signs of weights
    rest on 99 pairs of standard error .045, 16 below the typical product of .16.
    """
    crossover = np.where(np.arange(100) < 45, 0.7, 0.3)
    votes, truth = channel_votes(10, crossover, 2, 20_000)
    decoder = sfd.correlation_defense(sample_above=64, max_coordinates=500)
    signs, weights, _, state = play(votes, decoder, jax.jit(decoder.decode))
    assert float(state.cd_pairs.max()) <= 2 * 500
    assert np.all(np.sign(weights) == np.sign(0.5 - crossover))
    assert np.mean(signs != truth) < 1e-3  # Exactly: 2e-5.
    again, *_ = play(votes, decoder, jax.jit(decoder.decode))
    np.testing.assert_array_equal(again, signs)
    other = sfd.correlation_defense(sample_above=64, max_coordinates=500, seed=1)
    *_, elsewhere = play(votes, other, jax.jit(other.decode))
    assert np.any(elsewhere.cd_balance != state.cd_balance)


def test_coordinates_split_over_devices_equal_the_whole(split_over_devices):
    votes, _ = channel_votes(11, [0.1, 0.2, 0.3, 0.4, 0.8], 4, size=400, abstain=0.2)
    split = split_over_devices(DECODER, P())
    signs, weights, _, state = play(votes)
    slices, split_weights, _, split_state = play(votes, decode=split)
    np.testing.assert_array_equal(slices, signs)
    np.testing.assert_array_equal(split_state.cd_balance, state.cd_balance)
    np.testing.assert_array_equal(split_state.cd_pairs, state.cd_pairs)
    np.testing.assert_allclose(split_weights, weights, rtol=1e-4, atol=1e-5)


def test_a_worker_long_gone_counts_no_longer():
    """Its decayed counts never reach zero, but less than one vote is no vote."""
    votes, _ = channel_votes(12, [0.3] * 6, 3, size=500)
    decoder = sfd.correlation_defense(forgetting=0.1)
    step = jax.jit(decoder.decode)
    *_, state = play(votes, decoder, step)
    left = np.repeat(votes[:1], 8, axis=0)
    left[:, 5] = 0
    _, weights, _, state = play(left, decoder, step, state)
    assert 0 < float(state.cd_pairs[5, 5]) < 1
    alone = sfd.correlation_defense(forgetting=0.1)
    *_, fresh = play(votes[:, :5], alone, jax.jit(alone.decode))
    _, expected, _, _ = play(left[:, :5], alone, jax.jit(alone.decode), fresh)
    np.testing.assert_allclose(weights[-1, :5], expected[-1], rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(max_llr=0.0), "max_llr must lie"),
        (dict(weighting="votes"), "weighting"),
        (dict(forgetting=0.0), "forgetting must lie"),
        (dict(forgetting=1.5), "forgetting must lie"),
        (dict(sample_above=0), "sample_above must be an int >= 1"),
        (dict(max_coordinates=0), "max_coordinates must be an int >= 1"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        sfd.correlation_defense(**options)

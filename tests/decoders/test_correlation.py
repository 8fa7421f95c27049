"""What the default decoder does with honest workers of all kinds, and of any number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from played import coin_votes, play
from quadratic import Case, against_majority_vote

import signfd_jax as sfd
from signfd_jax.signs import packed

DECODER = sfd.correlation_defense()
COMMITTEE = sfd.correlation_defense(committee=40)
slow = pytest.mark.slow


# Honest workers that are nearly identical --------------------------------------------


def flips(num_byzantine):
    """How often liars flip a sign: one rate, each its own, or rising to all."""
    yield from ((rate, None) for rate in (0.6, 0.8, 1.0))
    yield tuple(np.linspace(0.6, 1.0, num_byzantine).tolist()), None
    yield 0.0, 1.0


def sizes(num_workers):
    return sorted({1, 2, (num_workers - 1) // 4, (num_workers - 1) // 2})


SMALL = [
    Case(num_workers, num_byzantine, noise, *flip)
    for num_workers, noise in ((5, 0.02), (15, 0.03), (16, 0.06))
    for num_byzantine in (2, (num_workers - 1) // 2)
    for flip in flips(num_byzantine)
]
SHARED = [
    Case(15, num_byzantine, noise, *flip, shared_by=group)
    for group, noise, num_byzantine in (
        (2, 0.03, 7),
        (3, 0.03, 2),
        (3, 0.3, 7),
        (5, 0.03, 7),
        (5, 0.3, 2),
    )
    for flip in flips(num_byzantine)
]


def grid(workers, rows):
    return [
        Case(num_workers, num_byzantine, noise, *flip, shared_by=group)
        for num_workers in workers
        for num_byzantine in sizes(num_workers)
        for noise in (0.03,)
        for flip in flips(num_byzantine)
        for group in (1, 3)
    ], rows


def assert_no_farther(cases, rows):
    """Than .01 from where a majority vote ends, of 1 at the start.

    Under 1,000 coordinates the mean distance of a run has a standard error of .001.
    """
    farther, votes = against_majority_vote(cases, DECODER, rows)
    assert np.all(votes < 0.5), "nothing is learned"
    worst = int(np.argmax(farther))
    assert farther[worst] <= 0.01, (cases[worst], farther[worst], votes[worst])


@pytest.mark.slow
def test_nearly_identical_workers_are_no_duplicates():
    assert_no_farther(SMALL, 16)


@slow
def test_nor_are_those_who_share_a_batch():
    """They send exactly the same."""
    assert_no_farther(SHARED, 16)


@slow
@pytest.mark.parametrize(("workers", "rows"), [((5, 15, 16), 16), ((51,), 51)])
def test_nearly_identical_workers_over_the_grid(workers, rows):
    assert_no_farther(*grid(workers, rows))


def test_all_on_one_batch_are_all_heard():
    """Honest workers that send exactly the same, and liars who flip most of it."""
    rng = np.random.default_rng(0)
    votes, truth = coin_votes(rng, np.zeros(15), 10, 6, 1_000)
    liars = rng.random((10, 6, 7, 1_000)) < 0.8
    votes[:, :, :7] = np.where(liars, -votes[:, :, :7], votes[:, :, :7])
    decoded, weights, _ = play(DECODER, votes)
    np.testing.assert_array_equal(weights[:, :, 7:], np.ones((10, 6, 8)))
    np.testing.assert_array_equal(decoded, truth)


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("workers, liars", [(9, 3), (15, 6)])
def test_who_copies_an_honest_worker_does_not_hide_inverters(workers, liars, noise):
    """The copy says nothing of what it copies, so all others are as sure as without."""
    rng = np.random.default_rng(workers)
    crossover = np.where(np.arange(workers) < liars, 0.7, 0.3)
    votes, truth = coin_votes(rng, crossover, 5, 30, 1_000)
    flips = np.where(rng.random(votes[:, :, 0].shape) < noise, -1, 1)
    votes[:, :, liars] = flips * votes[:, :, liars + 1]
    decoded, weights, _ = play(DECODER, votes)
    others = np.append(np.arange(liars), np.arange(liars + 2, workers))
    expected = np.where(others < liars, -1.0, 1.0)
    late = weights[:, 10:, others]
    np.testing.assert_array_equal(late, np.broadcast_to(expected, late.shape))
    majority = np.sign(votes.sum(axis=2, dtype=np.int32))
    wrong = [np.mean(made[:, 10:] != truth[:, 10:]) for made in (decoded, majority)]
    assert wrong[0] < wrong[1] / 2


@pytest.mark.parametrize("group", [2, 3, 5])
def test_groups_of_one_batch_keep_every_vote(group):
    """Two groups in one round show that batches are shared, as does to be told."""
    rng = np.random.default_rng(group)
    votes, _ = coin_votes(rng, np.full(15, 0.3), 10, 5, 1_000)
    votes = votes[:, :, np.arange(15) // group * group]
    majority = np.sign(votes.sum(axis=2, dtype=np.int32))
    for told in (True, False):
        decoder = sfd.correlation_defense(shared_batches=told)
        decoded, weights, state = play(decoder, votes)
        np.testing.assert_array_equal(weights, np.ones((10, 5, 15)))
        np.testing.assert_array_equal(decoded, majority)
        np.testing.assert_array_equal(state.cd_shared, np.ones(10))


@pytest.mark.parametrize("num_byzantine", [0, 2, 4, 6])
def test_a_lone_group_of_one_batch(num_byzantine):
    """Five of fifteen send the same: told of it, never farther than a majority vote.

    With six inverters they decide which side has more workers, and six to five does not
    hold without them: all weights are 1. Not told, it takes them for colluders.
    """
    rng = np.random.default_rng(7)
    crossover = np.where(np.arange(15) < num_byzantine, 0.7, 0.3)
    votes, truth = coin_votes(rng, crossover, 10, 5, 1_000)
    votes[:, :, 10:] = votes[:, :, 10:11]
    majority = np.sign(votes.sum(axis=2, dtype=np.int32))
    told = sfd.correlation_defense(shared_batches=True)
    decoded, weights, _ = play(told, votes)
    assert np.mean(decoded != truth) <= np.mean(majority != truth)
    if num_byzantine == 6:
        np.testing.assert_array_equal(weights, np.ones((10, 5, 15)))
    _, weights, _ = play(DECODER, votes)
    assert np.all(weights[:, -1, 10:].sum(axis=1) <= 1)


def test_exact_colluders_share_one_vote_from_the_first_round_on():
    """Where nothing is sure yet: seven of fifteen send the same, on noisy votes."""
    rng = np.random.default_rng(8)
    votes, truth = coin_votes(rng, np.full(15, 0.35), 10, 1, 2_000)
    votes[:, :, :7] = -truth[:, :, None]
    decoded, weights, _ = play(DECODER, votes)
    np.testing.assert_array_equal(weights[:, :, 7:], np.ones((10, 1, 8)))
    assert np.all(np.abs(weights[:, :, :7].sum(axis=2)) <= 1)
    majority = np.sign(votes.sum(axis=2, dtype=np.int32))
    assert np.mean(decoded != truth) < 0.4 < 0.8 < np.mean(majority != truth)


# Any number of workers ---------------------------------------------------------------


def test_a_committee_reads_inverters_backwards():
    rng = np.random.default_rng(0)
    crossover = np.where(np.arange(200) < 90, 0.75, 0.25)
    votes, truth = coin_votes(rng, crossover, 2, 4, 2_000)
    decoded, weights, state = play(COMMITTEE, votes)
    assert state.cd_mean.shape == (2, 40, 200)
    # One round leaves some doubt; two leave none.
    signs = np.tile(np.sign(0.5 - crossover), (2, 3, 1))
    np.testing.assert_array_equal(weights[:, 1:], signs)
    np.testing.assert_array_equal(decoded, truth)


def test_a_committee_of_all_is_everybody():
    rng = np.random.default_rng(1)
    votes, _ = coin_votes(rng, np.linspace(0.1, 0.6, 9), 3, 5, 600)
    whole = play(DECODER, votes)
    for committee in (9, 40):
        other = play(sfd.correlation_defense(committee=committee), votes)
        jax.tree.map(np.testing.assert_array_equal, other, whole)


def test_many_workers_of_all_kinds():
    """300 workers, 140 of whom lie: collude, invert, copy, are absent or all zero."""
    rng = np.random.default_rng(2)
    votes, truth = coin_votes(rng, np.full(300, 0.3), 2, 6, 1_000)
    votes[:, :, :40] = votes[:, :, :1]
    votes[:, :, 40:80] *= -1
    votes[:, :, 80:110] = votes[:, :, 299:]
    votes[:, :, 110:140] = 0
    votes[:, 1::2, 120:160] = 0
    decoded, weights, state = play(DECODER, votes)
    for leaf in (weights, *jax.tree.leaves(state)):
        assert np.all(np.isfinite(leaf))
    assert np.all(np.abs(weights) <= 1)
    # From the fourth round on there is no doubt left.
    np.testing.assert_array_equal(weights[:, 3:, 40:80], -np.ones((2, 3, 40)))
    assert np.all(np.abs(weights[:, 3:, :40].sum(axis=2)) <= 1)
    np.testing.assert_array_equal(decoded[:, 1:], truth[:, 1:])


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("crossover", [0.0, 0.3, 0.5])
def test_a_few_honest_workers(num_workers, crossover):
    """One decides; of two a disagreement ties; three are a majority vote or agree."""
    rng = np.random.default_rng(3)
    votes, _ = coin_votes(rng, np.full(num_workers, crossover), 10, 6, 500)
    decoded, weights, _ = play(DECODER, votes)
    majority = np.sign(votes.sum(axis=2, dtype=np.int32))
    np.testing.assert_array_equal(decoded, majority)
    np.testing.assert_array_equal(weights, np.ones_like(weights))


@pytest.mark.parametrize("decoder", [DECODER, COMMITTEE], ids=["all", "committee"])
def test_nobody_votes(decoder):
    """Nothing is decided, and nothing learned: as if these rounds had not been."""
    rng = np.random.default_rng(4)
    crossover = np.where(np.arange(60) < 36, 0.2, 0.8)
    votes, _ = coin_votes(rng, crossover, 1, 4, 400)
    silent = np.concatenate([np.zeros_like(votes[:, :2]), votes], axis=1)
    decoded, weights, state = play(decoder, silent)
    np.testing.assert_array_equal(decoded[:, :2], np.zeros((1, 2, 400)))
    np.testing.assert_array_equal(weights[:, :2], np.ones((1, 2, 60)))
    for leaf in (weights, *jax.tree.leaves(state)):
        assert np.all(np.isfinite(leaf))
    np.testing.assert_array_equal(np.sign(weights[0, -1]), np.sign(0.5 - crossover))


@pytest.mark.parametrize("num_workers", [2, 4, 16])
def test_even_numbers_split_in_halves(num_workers):
    """Two equal sides that oppose each other: nobody can say which is right."""
    rng = np.random.default_rng(5)
    votes, _ = coin_votes(rng, np.full(num_workers, 0.1), 10, 6, 1_000)
    votes[:, :, ::2] *= -1
    _, weights, state = play(DECODER, votes)
    assert np.all(np.abs(weights) <= 1)
    for leaf in jax.tree.leaves(state):
        assert np.all(np.isfinite(leaf))


def test_packed_votes_are_votes():
    rng = np.random.default_rng(6)
    votes, _ = coin_votes(rng, np.linspace(0.1, 0.6, 9), 1, 3, 9_000)
    votes = votes * (rng.random(votes.shape) < 0.8)
    plain = held = DECODER.init(9, jnp.zeros(9_000))
    for vote in jnp.asarray(votes[0], jnp.int8):
        decoded, plain, _ = DECODER.decode(plain, vote)
        same, held, _ = DECODER.decode(held, packed.pack_ternary(vote))
        np.testing.assert_array_equal(same, decoded)
    jax.tree.map(np.testing.assert_array_equal, held, plain)

"""Workers who leave and come back, and newcomers who take their slots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from played import play

import signfd_jax as sfd
from signfd_jax import attacks

DEFAULT = sfd.correlation_defense()
FORGETFUL = {
    "default": DEFAULT,
    "federated": sfd.federated_defense(None, forgetting=0.98),
}
RUNS, SIZE = 4, 600


def votes_of(byzantine, present, crossover=0.2, seed=0):
    """Votes `[RUNS, T, M, SIZE]` of inverters and others, and the truth.

    Who lies and who is there in each round are `[T, M]`.
    """
    rng = np.random.default_rng(seed)
    rounds, workers = byzantine.shape
    truth = rng.choice([-1, 1], size=(RUNS, rounds, 1, SIZE))
    wrong = rng.random((RUNS, rounds, workers, SIZE)) < crossover
    rows = (np.where(byzantine, -1, 1) * present)[None, :, :, None]
    return (truth * np.where(wrong, -1, 1) * rows).astype(np.int8), truth[:, :, 0]


def members(membership, byzantine, rounds):
    """Who lies and who is there, `[T, M]` each."""
    of_rounds = jax.vmap(lambda t: membership(None, jnp.asarray(byzantine), t))
    return jax.tree.map(np.asarray, of_rounds(jnp.arange(rounds, dtype=jnp.int32)))


def misread(weights, byzantine, present):
    """Who is there and is read the wrong way round, `[RUNS, T, M]`."""
    return (np.sign(weights) != np.where(byzantine, -1, 1)) & present


@pytest.mark.parametrize("name", FORGETFUL)
@pytest.mark.parametrize("away", [50, 300])
def test_liars_who_return_are_read_backwards_at_once(name, away):
    """From the first round on, and what is decoded is as if they had never left."""
    period = 50 + away
    byzantine = np.arange(7) < 3
    masks, present = members(attacks.leaving(period, away), byzantine, period + 20)
    votes, truth = votes_of(masks, present)
    stayed, _ = votes_of(masks, np.ones_like(present))
    decoded, weights, _ = play(FORGETFUL[name], votes)
    decoded_stayed, weights_stayed, _ = play(FORGETFUL[name], stayed)
    assert (weights[:, period:, :3] < 0).all()
    errors = [
        (of[:, period:] != truth[:, period:]).mean() for of in (decoded, decoded_stayed)
    ]
    assert errors[0] <= errors[1] + 1e-3
    if name == "default":  # the others' weights stay, to the bit
        np.testing.assert_array_equal(weights[:, :, 3:], weights_stayed[:, :, 3:])
        np.testing.assert_array_equal(decoded[:, period:], decoded_stayed[:, period:])


@pytest.mark.parametrize(("away", "within"), [(0, 100), (50, 60), (200, 15)])
def test_a_newcomer_is_found_out(away, within):
    """An honest one in a liar's slot, and a liar in an honest one's.

    The longer the slot was empty, the sooner: 79, 44 and 3 rounds were seen. The
    honest others keep their weights.
    """
    byzantine = np.zeros((100 + away + within + 10, 7), bool)
    byzantine[:, 4:] = True
    byzantine[100 + away :, [0, 6]] = [True, False]
    present = np.ones_like(byzantine)
    present[100 : 100 + away, [0, 6]] = False
    votes, _ = votes_of(byzantine, present)
    _, weights, _ = play(DEFAULT, votes)
    right = np.where(byzantine[-1], -1, 1)
    assert (weights[:, 100 + away + within :] == right).all()
    assert (weights[:, :, 1:4] == 1).all()


@pytest.mark.slow
def test_newcomers_among_many_absent_ones_are_found_out():
    """Who is away was last seen with another worker in the newcomer's slot."""
    period, within = 100, 60
    byzantine = np.arange(15) < 5
    masks, present = members(attacks.churn(period, 5), byzantine, 6 * period)
    assert (masks[-1] != masks[0]).any()
    votes, truth = votes_of(masks, present)
    decoded, weights, _ = play(DEFAULT, votes)
    settled = np.arange(6 * period) % period >= within
    assert not misread(weights, masks, present)[:, settled].any()
    wrong = (decoded != truth).mean((0, 2))
    majority = (np.sign(votes.sum(2, dtype=np.int32)) != truth).mean((0, 2))
    assert (wrong < majority).all()
    assert wrong[settled].mean() < 0.05 < 0.25 < majority.mean()

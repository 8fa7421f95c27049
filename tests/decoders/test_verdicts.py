"""Verdicts say what was played, when it was sure, and nothing of honest workers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from choices import slow_but
from played import coin_votes, play

import signfd_jax as sfd
from signfd_jax.decoders import VERDICTS, verdict_lines

DECODER = sfd.correlation_defense()


def names(said):
    return [VERDICTS[kind] for kind in np.asarray(said.kind)]


def judged(votes, decoder=DECODER):
    """The verdicts after the rounds of one run, votes `[T, M, N]`."""
    _, _, state = play(decoder, votes[None])
    return sfd.verdicts(jax.tree.map(lambda leaf: leaf[0], state))


@pytest.mark.parametrize("committee", [64, 8])
def test_each_kind_is_told(committee):
    rng = np.random.default_rng(0)
    crossover = np.array([0.3] * 9 + [0.7, 0.7, 0.5, 0.3, 0.3, 0.3])
    votes, _ = coin_votes(rng, crossover, 1, 40, 4_000)
    votes = votes[0]
    votes[:, 13] = votes[:, 12]  # a copy
    votes[20:, 14] = 0  # leaves
    said = judged(votes, sfd.correlation_defense(committee=committee, sample=4_000))
    expected = ["honest"] * 9 + ["inverted"] * 2 + ["uninformative"]
    assert names(said)[:12] == expected
    assert names(said)[14] == "absent"
    assert said.since[14] == 21
    lines = verdict_lines(said)
    assert "worker 9 is read backwards since round" in lines[9]
    if committee == 64:
        assert names(said)[12:14] == ["duplicate"] * 2
        assert said.duplicate_of[12:14].tolist() == [13, 12]
        assert lines[13].startswith("worker 13 is a duplicate of worker 12 since")
    assert np.all(said.duplicate_of[:12] == -1)


def test_the_evidence_is_what_was_played():
    """The mean correlation of workers that err with .3 and .7 is .16 and -.16."""
    rng = np.random.default_rng(1)
    crossover = np.where(np.arange(11) < 7, 0.3, 0.7)
    votes, _ = coin_votes(rng, crossover, 1, 60, 4_000)
    said = judged(votes[0])
    expected = np.where(np.arange(11) < 7, 0.16, -0.16)
    # 40 standard errors of one pair would be .05; ten pairs and fifty rounds less.
    assert np.all(np.abs(said.correlation - expected) < 5 * said.error + 0.005)
    assert np.all(said.confidence > 0.999)
    rounds = (1 - 0.98**60) / 0.02
    np.testing.assert_allclose(said.rounds, np.full(11, rounds), rtol=1e-4)


def test_a_turncoat_is_told_from_the_round_in_which_it_is_sure():
    rng = np.random.default_rng(2)
    votes, _ = coin_votes(rng, np.full(9, 0.25), 1, 80, 2_000)
    votes = votes[0]
    votes[20:, 0] *= -1
    _, _, state = play(DECODER, votes[None, :20])
    before = sfd.verdicts(jax.tree.map(lambda leaf: leaf[0], state))
    assert names(before)[0] == "honest"
    said = judged(votes)
    assert names(said) == ["inverted"] + ["honest"] * 8
    # Twenty rounds against it are forgotten at .98 a round, so about fifteen are due.
    assert 21 < said.since[0] < 60


def test_nobody_is_named_where_nothing_is_sure():
    rng = np.random.default_rng(3)
    votes, _ = coin_votes(rng, np.full(15, 0.5), 1, 60, 2_000)
    assert set(names(judged(votes[0]))) == {"undecided"}


@pytest.mark.parametrize("num_workers", slow_but([15], [5, 8, 15]))
@pytest.mark.parametrize("crossover", [0.1, 0.3, 0.45])
def test_honest_workers_are_not_named(num_workers, crossover):
    """Fifty runs of a hundred rounds: no alarm at all.

    At a rate of one in a hundred runs, the fault would show with probability .4 a case.
    """
    rng = np.random.default_rng(4)
    votes, _ = coin_votes(rng, np.full(num_workers, crossover), 50, 100, 400)
    _, _, state = play(DECODER, votes)
    said = jax.vmap(sfd.verdicts)(state)
    named = np.isin(said.kind, [VERDICTS.index(n) for n in ("inverted", "duplicate")])
    named |= np.asarray(said.kind) == VERDICTS.index("uninformative")
    assert not named.any()


def test_shared_batches_are_no_duplicates():
    """More than half of the workers send the same: an honest one is among them."""
    rng = np.random.default_rng(5)
    votes, _ = coin_votes(rng, np.full(9, 0.2), 1, 10, 2_000)
    votes[:, :, :5] = votes[:, :, :1]
    assert "duplicate" not in names(judged(votes[0]))


@pytest.mark.parametrize("wrap", ["chain", "simulation"])
def test_they_are_found_in_whatever_holds_the_state(wrap):
    tx = optax.chain(sfd.scale_by_sign_decoder(5), optax.trace(0.9), optax.scale(-0.1))
    if wrap == "chain":
        state = tx.init(jnp.zeros(300))
        key = jax.random.key(0)
        for _ in range(3):
            key, own = jax.random.split(key)
            gradients = 1 + jax.random.normal(own, (5, 300))
            _, state = tx.update(gradients.at[4].multiply(-1), state)
    else:
        simulated = sfd.simulation(
            lambda x, y: jnp.sum((x - y) ** 2),
            *(tx,),
            num_workers=5,
            attack=sfd.attacks.sign_inversion(),
            sign_error=False,
        )
        state = simulated.init(
            jax.random.key(0), jnp.ones(300), jnp.arange(5, dtype=jnp.int32) == 4
        )
        draw = lambda key: jax.random.normal(key, (5, 300))  # noqa: E731
        state, _ = sfd.run(simulated, state, draw, 3)
    said = jax.jit(sfd.verdicts)(state)
    assert names(said) == ["honest"] * 4 + ["inverted"]


def test_info_tells_the_same():
    rng = np.random.default_rng(6)
    crossover = np.where(np.arange(12) < 9, 0.25, 0.75)
    votes, _ = coin_votes(rng, crossover, 1, 5, 2_000)
    votes[:, :, 1] = votes[:, :, 0]
    state = DECODER.init(12, jnp.zeros(2_000))
    for vote in jnp.asarray(votes[0], jnp.int8):
        _, state, info = DECODER.decode(state, vote)
    assert info.confidence == 1
    np.testing.assert_array_equal(info.polarity, np.sign(0.5 - crossover))
    assert info.duplicates.tolist() == [1, 0] + [-1] * 10
    silent = sfd.scale_by_sign_decoder(9, sfd.majority_vote())
    _, held = silent.update(jnp.ones((9, 4)), silent.init(jnp.zeros(4)))
    assert held.info.confidence == -1

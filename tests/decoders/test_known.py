"""Laws of what is known beforehand: trusted workers, stakes, shares."""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from played import coin_votes, play

import signfd_jax as sfd
from signfd_jax.decoders._known import capped
from signfd_jax.signs import packed

DECODER = sfd.correlation_defense()
COMMITTEE = sfd.correlation_defense(committee=10)
ROUNDS, SIZE = 8, 2_000


def knowing(decoder=DECODER, **known):
    """The decoder, told the same in every round."""
    known = {name: jnp.asarray(value) for name, value in known.items()}
    return decoder._replace(decode=functools.partial(decoder.decode, **known))


def is_last(num_workers):
    return np.arange(num_workers) == num_workers - 1


@pytest.mark.parametrize("decoder", [DECODER, COMMITTEE], ids=["all", "committee"])
@pytest.mark.parametrize("num_byzantine", [8, 11, 14])
def test_one_trusted_worker_outweighs_any_number_that_flip(decoder, num_byzantine):
    """Every liar is read backwards, and as much is decoded right as with no liar."""
    rng = np.random.default_rng(num_byzantine)
    crossover = np.where(np.arange(15) < num_byzantine, 0.7, 0.3)
    votes, truth = coin_votes(rng, crossover, 4, ROUNDS, SIZE)
    told = knowing(decoder, trusted=is_last(15))
    decoded, weights, _ = play(told, votes)
    # Of 15 votes that err with .3 the majority errs with .05. Four rounds and eight
    # thousand coordinates have a standard error of .0012.
    assert np.mean(decoded[:, -1] == truth[:, -1]) > 0.94
    np.testing.assert_array_equal(
        np.sign(weights[:, -1]), np.broadcast_to(np.sign(0.5 - crossover), (4, 15))
    )
    untold, _, _ = play(decoder, votes)
    assert np.mean(untold[:, -1] == truth[:, -1]) < 0.1


def test_random_votes_and_copies_leave_the_trusted_vote():
    """All others say nothing: what the trusted worker votes is decoded."""
    rng = np.random.default_rng(0)
    votes, _ = coin_votes(rng, np.full(15, 0.5), 4, 30, SIZE)
    votes[:, :, 3:9] = votes[:, :, 3:4]
    decoded, weights, _ = play(knowing(trusted=is_last(15)), votes)
    np.testing.assert_array_equal(weights[..., -1], np.ones_like(weights[..., -1]))
    # A chance correlation lies beyond two standard errors in one case of twenty, and
    # then counts in proportion to it.
    assert np.mean(decoded == votes[:, :, -1]) > 0.95


@pytest.mark.parametrize("known", ["trusted", "stakes", "shares"])
@pytest.mark.parametrize("decoder", [DECODER, COMMITTEE], ids=["all", "committee"])
def test_nothing_known_changes_nothing(decoder, known):
    """Nobody trusted, and equal stakes and shares: the same decoded signs."""
    rng = np.random.default_rng(1)
    votes, _ = coin_votes(rng, np.linspace(0.2, 0.6, 15), 3, ROUNDS, 600)
    told = knowing(
        decoder, **{known: np.zeros(15, bool) if known == "trusted" else np.full(15, 3)}
    )
    ours, theirs = play(told, votes), play(decoder, votes)
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-5)


def test_permuted_workers_have_permuted_weights_and_negated_ones_negated():
    rng = np.random.default_rng(2)
    crossover = np.linspace(0.15, 0.8, 11)
    votes, _ = coin_votes(rng, crossover, 3, ROUNDS, SIZE)
    known = {
        "trusted": np.arange(11) == 2,
        "stakes": np.linspace(1, 2, 11),
        "shares": np.linspace(3, 1, 11),
    }
    decoded, weights, _ = play(knowing(**known), votes)
    order = rng.permutation(11)
    moved = play(
        knowing(**{name: value[order] for name, value in known.items()}),
        votes[:, :, order],
    )
    np.testing.assert_array_equal(moved[0], decoded)
    np.testing.assert_allclose(moved[1], weights[:, :, order], atol=1e-5)
    votes[:, :, 7] *= -1
    negated = play(knowing(**known), votes)
    np.testing.assert_array_equal(negated[0], decoded)
    sign = np.where(np.arange(11) == 7, -1, 1)
    np.testing.assert_allclose(negated[1], sign * weights, atol=1e-5)


def test_a_trusted_worker_may_be_absent():
    """What it said before is remembered; who is there is still read rightly."""
    rng = np.random.default_rng(3)
    crossover = np.where(np.arange(9) < 6, 0.75, 0.25)
    votes, truth = coin_votes(rng, crossover, 3, 12, SIZE)
    votes[:, 6:, -1] = 0
    decoded, weights, _ = play(knowing(trusted=is_last(9)), votes)
    assert np.all(weights[:, -1, :6] < -0.9)
    assert np.mean(decoded[:, -1] == truth[:, -1]) > 0.9


def test_several_trusted_workers_speak_by_their_majority():
    """One of three trusted ones turns out to lie: the other two prevail."""
    rng = np.random.default_rng(4)
    crossover = np.array([0.7] * 8 + [0.3] * 4 + [0.9, 0.1, 0.1])
    votes, truth = coin_votes(rng, crossover, 3, ROUNDS, SIZE)
    decoded, weights, _ = play(knowing(trusted=np.arange(15) >= 12), votes)
    assert np.all(weights[:, -1, :8] < -0.5)
    assert np.mean(decoded[:, -1] == truth[:, -1]) > 0.95


# Stakes -------------------------------------------------------------------------------


def test_the_majority_is_of_stake():
    """Forty that flip have a hundredth of a stake each; seven honest ones have one."""
    rng = np.random.default_rng(5)
    crossover = np.array([0.2] * 7 + [0.8] * 40)
    votes, truth = coin_votes(rng, crossover, 3, ROUNDS, SIZE)
    stakes = np.where(np.arange(47) < 7, 1.0, 0.01)
    decoded, weights, _ = play(knowing(stakes=stakes), votes)
    np.testing.assert_array_equal(
        np.sign(weights[:, -1]), np.broadcast_to(np.sign(0.5 - crossover), (3, 47))
    )
    assert np.mean(decoded[:, -1] == truth[:, -1]) > 0.95
    untold, _, _ = play(DECODER, votes)
    assert np.mean(untold[:, -1] == truth[:, -1]) < 0.05


@pytest.mark.parametrize("factor", [1e-3, 0.25, 7.0, 1e6])
def test_scaled_stakes_change_nothing(factor):
    rng = np.random.default_rng(6)
    votes, _ = coin_votes(rng, np.linspace(0.1, 0.7, 9), 3, ROUNDS, 600)
    stakes = rng.uniform(0.5, 2, 9).astype(np.float32)
    decoded, weights, _ = play(knowing(stakes=stakes), votes)
    scaled = play(knowing(stakes=stakes * factor), votes)
    np.testing.assert_array_equal(scaled[0], decoded)
    np.testing.assert_allclose(scaled[1], weights, atol=1e-5)


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("split", [0, 8], ids=["honest", "liar"])
@pytest.mark.slow
def test_a_split_worker_with_its_stake_divided_changes_nothing(parts, split):
    """Without the rules on duplicates, which would make its parts one vote or less."""
    rng = np.random.default_rng(7)
    crossover = np.where(np.arange(9) < 6, 0.2, 0.8)
    votes, _ = coin_votes(rng, crossover, 3, ROUNDS, SIZE)
    apart = sfd.Thresholds(duplicate=1e6)
    whole = knowing(sfd.correlation_defense(apart), stakes=np.ones(9))
    decoded, weights, _ = play(whole, votes)
    order = np.concatenate([np.arange(9), np.full(parts - 1, split)])
    stakes = np.where(order == split, 1 / parts, 1.0)
    divided = knowing(sfd.correlation_defense(apart), stakes=stakes)
    ours, each, _ = play(divided, votes[:, :, order])
    # From the second round on there is no doubt, in which copies count less.
    np.testing.assert_array_equal(ours[:, 2:], decoded[:, 2:])
    held = np.zeros((9, len(order)))
    held[order, np.arange(len(order))] = 1
    np.testing.assert_allclose(each[:, 2:] @ held.T, weights[:, 2:], atol=1e-5)


def test_a_split_worker_gains_nothing_by_the_rules_on_duplicates():
    rng = np.random.default_rng(8)
    votes, _ = coin_votes(rng, np.full(9, 0.25), 3, ROUNDS, SIZE)
    order = np.concatenate([np.arange(9), [0, 0]])
    stakes = np.where(order == 0, 1 / 3, 1.0)
    _, weights, _ = play(knowing(stakes=stakes), votes[:, :, order])
    assert np.all(np.abs(weights)[..., order == 0].sum(axis=-1) <= 1 + 1e-6)


# Shares -------------------------------------------------------------------------------


@given(st.lists(st.just(0.0) | st.floats(1e-6, 1e6), min_size=3, max_size=8))
def test_nobody_counts_for_more_than_half_of_the_others(values):
    values = np.array(values, np.float32)
    lowered = np.asarray(capped(jnp.asarray(values)))
    assert np.all(lowered <= values)
    others = lowered.sum() - lowered
    if np.count_nonzero(values) >= 3:
        assert np.all(lowered <= others / 2 * (1 + 1e-5))
        # No more is taken away than must be: what is below the largest stays.
        below = lowered < lowered.max() * (1 - 1e-6)
        np.testing.assert_array_equal(lowered[below], values[below])
        if np.all(values <= (values.sum() - values) / 2 * (1 - 1e-5)):
            np.testing.assert_allclose(lowered, values, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([5.0], [5.0]), ([5.0, 1.0], [1.0, 1.0]), ([0.0, 5.0, 1.0], [0.0, 1.0, 1.0])],
)
def test_of_fewer_than_three_none_is_above_the_other(values, expected):
    np.testing.assert_array_equal(capped(jnp.array(values)), np.array(expected))


@pytest.mark.parametrize("decoder", [sfd.majority_vote(), DECODER])
@pytest.mark.parametrize("known", ["stakes", "shares"])
def test_votes_weigh_as_their_shares(decoder, known):
    """In doubt, and under a majority vote: the sign of the weighted sum."""
    rng = np.random.default_rng(9)
    votes = rng.choice([-1, 0, 1], (7, 400)).astype(np.int8)
    shares = np.array([0.3, 0.2, 0.1, 0.1, 0.1, 0.15, 0.05], np.float32)
    state = decoder.init(7, jnp.zeros(400))
    decoded, _, info = decoder.decode(state, jnp.asarray(votes), **{known: shares})
    np.testing.assert_allclose(info.weights, shares / 0.3, rtol=1e-5)
    total = shares @ votes
    clear = np.abs(total) > 1e-4
    np.testing.assert_array_equal(decoded[clear], np.sign(total[clear]))


def test_a_small_site_changes_only_what_is_nearly_a_tie():
    """Whatever it sends, the others' margin there is at most its share."""
    rng = np.random.default_rng(10)
    votes = rng.choice([-1, 1], (8, 4_000)).astype(np.int8)
    shares = np.array([0.517, 0.1, 0.1, 0.1, 0.08, 0.06, 0.037, 0.006], np.float32)
    decoder = sfd.majority_vote()
    outcomes = []
    for said in (-1, 0, 1):
        votes[-1] = said
        state = decoder.init(8, jnp.zeros(4_000))
        decoded, _, info = decoder.decode(state, jnp.asarray(votes), shares=shares)
        outcomes.append(np.asarray(decoded))
    weights = np.asarray(info.weights)
    assert weights[0] <= weights[1:].sum() / 2 + 1e-6
    margin = np.abs(weights[:-1] @ votes[:-1])
    changed = (outcomes[0] != outcomes[1]) | (outcomes[2] != outcomes[1])
    assert np.all(margin[changed] <= weights[-1] + 1e-5)


# Everywhere alike ---------------------------------------------------------------------


KNOWN = {
    "trusted": is_last(12),
    "stakes": np.linspace(1, 2, 12),
    "shares": np.linspace(2, 1, 12),
}


def test_packed_votes_are_votes():
    rng = np.random.default_rng(11)
    votes, _ = coin_votes(rng, np.linspace(0.1, 0.8, 12), 1, 3, 3_000)
    plain = held = DECODER.init(12, jnp.zeros(3_000))
    for vote in jnp.asarray(votes[0], jnp.int8):
        decoded, plain, _ = DECODER.decode(plain, vote, **KNOWN)
        same, held, _ = DECODER.decode(held, packed.pack_ternary(vote), **KNOWN)
        np.testing.assert_array_equal(same, decoded)
    jax.tree.map(np.testing.assert_array_equal, held, plain)


@pytest.mark.parametrize("decoder", [DECODER, COMMITTEE], ids=["all", "committee"])
@pytest.mark.slow
def test_split_over_devices_is_whole(decoder):
    rng = np.random.default_rng(12)
    votes, _ = coin_votes(rng, np.linspace(0.1, 0.8, 12), 1, 3, 12 * 8 * 4)
    mesh = jax.make_mesh((4,), ("slice",), axis_types=(AxisType.Auto,))
    told = knowing(decoder, **KNOWN)
    split = jax.jit(
        jax.shard_map(
            lambda state, votes: told.decode(state, votes, axis_name="slice")[:2],
            mesh=mesh,
            in_specs=(P(), P(None, "slice")),
            out_specs=(P("slice"), P()),
        )
    )
    plain = apart = decoder.init(12, jnp.zeros(12 * 8 * 4))
    for vote in jnp.asarray(votes[0], jnp.int8):
        decoded, plain, _ = told.decode(plain, vote)
        same, apart = split(apart, vote)
        np.testing.assert_array_equal(same, decoded)
        np.testing.assert_array_equal(apart.cd_weights, plain.cd_weights)
    # What is only told may differ by how a compiler rounds.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, apart, plain)


@pytest.mark.parametrize("worker_chunk", [None, 5])
def test_a_simulation_is_told(worker_chunk):
    """Fourteen of fifteen invert; one is trusted, also through a chain and chunks."""
    tx = sfd.sign_sgd(0.05, num_workers=15)
    simulated = sfd.simulation(
        lambda x, target: jnp.sum((x - target) ** 2),
        tx,
        num_workers=15,
        attack=sfd.attacks.sign_inversion(),
        worker_chunk=worker_chunk,
        sign_error=False,
    )
    state = simulated.init(
        jax.random.key(0), jnp.ones(40), jnp.arange(15, dtype=jnp.int32) < 14
    )

    def draw(key):
        return 0.1 * jax.random.normal(key, (15, 40))

    state, _ = sfd.run(simulated, state, draw, 40, trusted=jnp.asarray(is_last(15)))
    assert jnp.max(jnp.abs(state.params)) < 0.3

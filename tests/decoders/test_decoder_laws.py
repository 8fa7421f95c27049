"""What holds for every decoder, and what the default promises under every attack."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from channels import channel_votes
from choices import slow_but
from compiling import OPTIMISED
from hypothesis import given, settings
from hypothesis import strategies as st

import signfd_jax as sfd
from signfd_jax import attacks, decoders

DECODERS = {
    "majority vote": sfd.majority_vote(),
    "federated defense": sfd.federated_defense(2),
    "pooled, forgetful": sfd.federated_defense(None, forgetting=0.9),
    "leave own out": sfd.federated_defense(None, leave_own_out=True),
    "leave own out, anchored": sfd.federated_defense(
        2, leave_own_out=True, anchor=True, forgetting=0.9
    ),
    "federated voting": sfd.federated_voting(2),
    "correlation defense": sfd.correlation_defense(),
    "correlations of a sample": sfd.correlation_defense(sample=256),
    "Dawid-Skene": sfd.dawid_skene(),
    "M-MSR": decoders.m_msr(),
    "triangles": decoders.triangular_estimation(),
    "KOS": decoders.kos(),
}
RARELY = ("M-MSR", "triangles", "KOS")  # without `-m slow`, in test_crowd.py alone
each = pytest.mark.parametrize("name", slow_but({*DECODERS} - {*RARELY}, DECODERS))
seeds = st.integers(0, 2**16)
M, SIZE, ROUNDS = 7, 600, 5
# Weights from an eigenvector, or in the fixed point of another M, differ in their last
# bits: that can decide a tally that nearly ties.
NEAR_TIES = 1e-3


@functools.cache
def _jitted(decoder, options):
    return jax.jit(decoder.decode, compiler_options=dict(options))


def jitted(decoder, options=None):
    """One function for each decoder and each set of the compiler's options."""
    return _jitted(decoder, tuple((options or {}).items()))


def play(decoder, votes):
    """Decode round after round: signs `[T, N]`, infos stacked, and the last state."""
    state = decoder.init(votes.shape[1], jnp.zeros(votes.shape[2:]))
    signs, infos = [], []
    for vote in votes:
        decoded, state, info = jitted(decoder)(state, jnp.asarray(vote))
        signs.append(np.asarray(decoded))
        infos.append(info)
    return np.array(signs), jax.tree.map(lambda *i: np.array(i), *infos), state


def draw_crossover(rng):
    """Five honest workers of unlike reliability, and two that invert their votes."""
    crossover = rng.uniform(0.1, 0.35, M)
    crossover[:2] = 1 - crossover[:2]
    return rng.permutation(crossover)


@each
@settings(max_examples=6)
@given(seed=seeds)
def test_permuting_the_workers_permutes_the_weights_only(name, seed):
    rng = np.random.default_rng(seed)
    votes, _ = channel_votes(seed, draw_crossover(rng), ROUNDS, SIZE, abstain=0.2)
    order = rng.permutation(M)
    signs, infos, _ = play(DECODERS[name], votes)
    permuted, permuted_infos, _ = play(DECODERS[name], votes[:, order])
    np.testing.assert_allclose(
        permuted_infos.weights, infos.weights[:, order], rtol=1e-3, atol=1e-4
    )
    assert np.mean(permuted != signs) <= NEAR_TIES


@each
@settings(max_examples=6)
@given(seed=seeds)
def test_a_worker_that_always_abstains_changes_nothing(name, seed):
    """As an absent worker does, or one that sends nothing but NaN."""
    rng = np.random.default_rng(seed)
    votes, _ = channel_votes(seed, draw_crossover(rng), ROUNDS, SIZE, abstain=0.2)
    place = int(rng.integers(0, M + 1))
    gradients = np.insert(np.float32(votes), place, np.nan, axis=1)
    with_absent = np.asarray(sfd.votes(jnp.asarray(gradients)))
    signs, infos, _ = play(DECODERS[name], votes)
    same, more_infos, _ = play(DECODERS[name], with_absent)
    assert np.mean(same != signs) <= NEAR_TIES
    for one, other in zip(more_infos[:2], infos[:2], strict=True):
        others = np.delete(one, place, axis=1)
        np.testing.assert_allclose(others, other, rtol=2e-3, atol=2e-3)
        assert np.all(np.isfinite(one))


# A majority vote keeps no estimates: it reports each round's own.
@pytest.mark.parametrize(
    "name",
    slow_but(
        {*DECODERS} - {*RARELY}, [name for name in DECODERS if name != "majority vote"]
    ),
)
def test_estimates_of_the_others_survive_a_worker_that_comes_and_goes(name):
    """Their errors shift by no more than one vote in seven decides."""
    crossover = np.array([0.2, 0.25, 0.3, 0.2, 0.25, 0.3, 0.8])
    votes, _ = channel_votes(0, crossover, 12, SIZE)
    there, infos, _ = play(DECODERS[name], votes)
    left = votes.copy()
    left[3:9, 3] = 0
    gone, gone_infos, _ = play(DECODERS[name], left)
    others = np.arange(M) != 3
    np.testing.assert_allclose(
        gone_infos.crossover[:, others], infos.crossover[:, others], atol=0.05
    )
    assert np.all(np.isfinite(gone_infos.weights))
    assert np.all(gone_infos.weights[9:, 3] > 0)  # It is still known when it returns.
    np.testing.assert_array_equal(gone[:3], there[:3])


@each
def test_votes_of_nothing_but_zeros(name):
    decoder = DECODERS[name]
    signs, infos, state = play(decoder, np.zeros((4, M, SIZE), np.int8))
    np.testing.assert_array_equal(signs, np.zeros((4, SIZE)))
    for leaf in jax.tree.leaves((infos, state, decoder.weights(state))):
        assert np.all(np.isfinite(leaf))
    np.testing.assert_array_equal(infos.weights, np.ones((4, M)))
    votes, _ = channel_votes(1, [0.3] * M, 1, SIZE)
    decoded, _, _ = jitted(decoder)(state, jnp.asarray(votes[0]))
    expected = np.sign(votes[0].sum(axis=0))
    assert np.mean(np.asarray(decoded) == expected) > 0.85


@each
def test_state_type_is_stable_under_scan(name):
    decoder = DECODERS[name]
    votes, _ = channel_votes(2, [0.3] * M, 4, SIZE)
    signs, _, _ = play(decoder, votes)

    def one(state, vote):
        decoded, state, info = decoder.decode(state, vote)
        return state, (decoded, info)

    state = decoder.init(M, jnp.zeros(SIZE))
    # Scan itself refuses a state whose type changes.
    after, (scanned, _) = jax.jit(lambda s, v: jax.lax.scan(one, s, v))(
        state, jnp.asarray(votes)
    )
    assert np.mean(scanned != signs) <= NEAR_TIES
    assert jax.tree.structure(after) == jax.tree.structure(state)


@each
def test_one_worker_is_sign_sgd(name):
    votes, _ = channel_votes(3, [0.3], 4, 40, abstain=0.3)
    signs, infos, _ = play(DECODERS[name], votes)
    np.testing.assert_array_equal(signs, votes[:, 0])
    assert np.all(np.isfinite(infos.weights))


@pytest.mark.parametrize("num_workers", [2, 4])
@each
def test_an_even_number_of_workers_ties_where_equals_disagree(name, num_workers):
    votes = np.ones((3, num_workers, 40), np.int8)
    votes[:, : num_workers // 2, :20] = -1
    signs, infos, _ = play(DECODERS[name], votes)
    np.testing.assert_array_equal(signs[:, 20:], np.ones((3, 20)))
    np.testing.assert_array_equal(signs[:, :20], np.zeros((3, 20)))
    assert np.all(np.isfinite(infos.weights))


def test_three_workers_of_whom_one_inverts():
    """Two of three identical reliability outvote the third, which is read backwards."""
    votes, truth = channel_votes(4, [0.2, 0.2, 0.8], 3, 4_000)
    signs, infos, _ = play(sfd.correlation_defense(), votes)
    np.testing.assert_array_equal(np.sign(infos.weights), [[1, 1, -1]] * 3)
    # Three of p = .2 err with .104; 5 standard errors of 12,000 signs.
    assert abs(np.mean(signs != truth) - 0.104) < 5 * 0.0028


# The default decoder -----------------------------------------------------------------

DEFAULT = sfd.correlation_defense()


@settings(max_examples=25)
@given(seed=seeds, copies=st.integers(0, 6), abstain=st.sampled_from([0.0, 0.5, 0.99]))
@pytest.mark.parametrize("num_workers", [8, 15])
def test_influence_is_bounded(num_workers, seed, copies, abstain):
    """Whatever workers send, nobody has more than one vote."""
    rng = np.random.default_rng(seed)
    crossover = rng.uniform(0, 1, num_workers)
    votes, _ = channel_votes(seed, crossover, 3, 300, abstain)
    votes[:, :copies] = votes[:, :1]
    _, infos, _ = play(DEFAULT, votes)
    assert np.all(np.abs(infos.weights) <= 1)


CATALOGUE = {
    "no_attack": attacks.no_attack(),
    "sign_inversion": attacks.sign_inversion(),
    "stochastic_sign_flip(.5)": attacks.stochastic_sign_flip(0.5),
    "stochastic_sign_flip(.75)": attacks.stochastic_sign_flip(0.75),
    "random_vote": attacks.random_vote(),
    "zero": attacks.zero(),
    "gaussian": attacks.gaussian(),
    "non_finite(inf)": attacks.non_finite(np.inf),
    "alie": attacks.alie(),
    "sign_alie": attacks.sign_alie(),
    "ipm": attacks.ipm(),
    "min_max": attacks.min_max(),
    "min_sum": attacks.min_sum(),
    "fang": attacks.fang(),
    "mimic": attacks.mimic(),
    "majority_opposition": attacks.majority_opposition(),
    "random_collusion": attacks.random_collusion(),
    "swing": attacks.swing(DEFAULT),
    "budgeted_swing(.1)": attacks.budgeted_swing(0.1, DEFAULT),
    "budgeted_swing(.3)": attacks.budgeted_swing(0.3, DEFAULT),
    "sleeper": attacks.sleeper(4),
    "sleeper, opposing": attacks.sleeper(4, attacks.majority_opposition()),
    "on_off": attacks.on_off(4),
    "on_off, opposing": attacks.on_off(4, 0.5, attacks.majority_opposition()),
    "warm_up_capture": attacks.warm_up_capture(4),
    "coordinate_specialist(.1)": attacks.coordinate_specialist(0.1, 4),
    "coordinate_specialist(.5)": attacks.coordinate_specialist(0.5, 4),
    "near_duplicate_collusion": attacks.near_duplicate_collusion(0.1),
    "near_duplicate_opposition": attacks.near_duplicate_collusion(
        0.2, attacks.majority_opposition()
    ),
    "weight_aware": attacks.weight_aware(DEFAULT),
    "disguised_opposition": attacks.disguised_opposition(0.4, 1.0, 0.5),
    "adaptive": attacks.adaptive(DEFAULT, trials=1, horizon=2, sample=1024),
}
# Number of Byzantine workers, and the crossover probabilities of all when honest.
SETTINGS = {
    "L=7, p=.3": (7, np.full(15, 0.3)),
    "L=6, p=.45": (6, np.full(15, 0.45)),
    "L=7, p=.05 to .45": (7, np.linspace(0.05, 0.45, 15)),
}


@functools.cache
def honest_gradients(setting):
    """Gradients `[T, M, N]` whose signs err with the crossover probabilities.

    Each coordinate's gradient is a common signal of one size and noise of its own.
    """
    _, crossover = SETTINGS[setting]
    rng = np.random.default_rng(sum(map(ord, setting)))
    truth = rng.choice([-1.0, 1.0], (18, 1, 10_000))
    signal = -np.asarray(jax.scipy.stats.norm.ppf(jnp.asarray(crossover)))
    order = rng.permutation(15)
    noise = rng.normal(size=(18, 15, 10_000))
    return np.float32(truth * signal[order][:, None] + noise)


@functools.cache
def votes_under(attack_name):
    """A round's votes under an attack, as one program, and the attack's next state."""

    def votes(t, gradient, byzantine, state, attack_state):
        key = jax.random.fold_in(jax.random.key(0), t)
        context = attacks.AttackContext(t, state)
        sent, attack_state = CATALOGUE[attack_name].apply(
            key, gradient, byzantine, context, attack_state
        )
        return sfd.votes(sent), attack_state

    return jax.jit(votes, compiler_options=OPTIMISED)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("attack_name", CATALOGUE)
def test_what_all_honest_workers_agree_on_is_decoded(attack_name, setting):
    """On 99 % of those coordinates, after round 5, under any attack by a minority."""
    attack = CATALOGUE[attack_name]
    num_byzantine, _ = SETTINGS[setting]
    byzantine = jnp.arange(15) < num_byzantine
    state = DEFAULT.init(15, jnp.zeros(10_000))
    attack_state = attack.init(15, jnp.zeros(10_000))
    agreed = decoded_so = 0
    for t, gradient in enumerate(honest_gradients(setting)):
        sent, attack_state = votes_under(attack_name)(
            jnp.int32(t), jnp.asarray(gradient), byzantine, state, attack_state
        )
        decoded, state, _ = jitted(DEFAULT, OPTIMISED)(state, sent)
        if t > 5:
            honest = np.sign(gradient[num_byzantine:])
            unanimous = np.all(honest == honest[:1], axis=0)
            agreed += np.sum(unanimous)
            decoded_so += np.sum(unanimous & (np.asarray(decoded) == honest[0]))
    assert agreed > 500
    assert decoded_so >= 0.99 * agreed

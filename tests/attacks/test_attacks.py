"""Attacks: definitions by naive NumPy, and what every attack must do."""

import functools
import itertools
import statistics

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from signfd_jax import attacks, signs
from signfd_jax.aggregators import (
    centered_clipping,
    krum,
    mean,
    recurrent,
    stateless,
    trimmed_mean,
)
from signfd_jax.attacks import AttackContext
from signfd_jax.attacks import _observations as knowledge
from signfd_jax.decoders import Decoder, federated_defense, majority_vote
from signfd_jax.experiments import registry
from signfd_jax.experiments._choices import choose
from signfd_jax.simulate import run, simulation
from signfd_jax.transforms import scale_by_sign_decoder

NUM_WORKERS = 7
BYZANTINE = np.array([False, True, False, False, True, False, True])
HONEST = ~BYZANTINE
DECODER = federated_defense(initial_rounds=2)

# Everything registered that enters at the gradient or the vote, and some options. The
# round of the tests is 1000, so that the patient ones are awake.
FACTS = {"decoder": DECODER, "num_workers": NUM_WORKERS, "num_classes": 10}
REGISTERED = {
    name: choose(registry.ATTACKS, "attack", name).make(FACTS)
    for name in registry.ATTACKS
}
REGISTERED = {n: attack for n, attack in REGISTERED.items() if attack.entry != "data"}
ATTACKS = REGISTERED | {
    "stochastic_sign_flip": attacks.stochastic_sign_flip(0.3),
    "infinity": attacks.non_finite(jnp.inf),
    "alie_unnoticed": attacks.alie(None),
    "min_max_unit": attacks.min_max("unit"),
    "min_sum_sign": attacks.min_sum("sign"),
    "budgeted_swing": attacks.budgeted_swing(0.3, DECODER),
    "on_off": attacks.on_off(period=10, duty=1.0),
    "flattery": attacks.warm_up_capture(2000),
    "coordinate_specialist": attacks.coordinate_specialist(0.5),
    "disguised_opposition": attacks.disguised_opposition(0.1, 1.0, 0.5),
    "adaptive": attacks.adaptive(DECODER, trials=1, horizon=2),
    "line_search": attacks.line_search(
        stateless(trimmed_mean, num_byzantine=0), attacks.ipm
    ),
    "neurotoxin": attacks.neurotoxin(attacks.badnets(10), 0.3).then,
}
every_attack = pytest.mark.parametrize("name", ATTACKS)


JITTED = {name: jax.jit(attack.apply) for name, attack in ATTACKS.items()}


def some_gradients(key, num_workers=NUM_WORKERS):
    """Two leaves, one of them bfloat16; workers who mostly agree."""
    keys = jax.random.split(key, 4)

    def leaf(common, own, shape, dtype):
        values = jax.random.normal(keys[common], (1, *shape))
        return (values + jax.random.normal(keys[own], (num_workers, *shape))).astype(
            dtype
        )

    return {"a": leaf(0, 1, (4, 5), jnp.float32), "b": leaf(2, 3, (11,), jnp.bfloat16)}


def params_of(gradients):
    return jax.tree.map(lambda g: jnp.zeros(g.shape[1:], g.dtype), gradients)


@jax.jit
def decoder_state_for(gradients):
    """The state of a server that has run DECODER for three rounds."""
    votes = signs.votes(gradients)
    num_workers = jax.tree.leaves(votes)[0].shape[0]
    state = DECODER.init(num_workers, params_of(gradients))
    for _ in range(3):
        _, state, _ = DECODER.decode(state, votes)
    return state


def context_for(gradients, round=1000):
    """What the attackers see of that server."""
    return AttackContext(jnp.int32(round), decoder_state_for(gradients))


def send(attack, gradients, byzantine=BYZANTINE, *, key=None, context=None):
    """What the workers send in one round, as a NumPy array or a tree."""
    key = jax.random.key(7) if key is None else key
    state = attack.init(len(byzantine), params_of(gradients))
    given = key, gradients, jnp.asarray(byzantine), context, state
    sent, _ = jax.jit(attack.apply)(*given)
    return np.asarray(sent) if isinstance(sent, jax.Array) else sent


def send_jitted(name, gradients, byzantine=BYZANTINE, round=1000):
    """The same, through the one program that all tests of an attack share."""
    state = ATTACKS[name].init(len(byzantine), params_of(gradients))
    context = context_for(gradients, round)
    given = jax.random.key(7), gradients, jnp.asarray(byzantine), context, state
    return JITTED[name](*given)[0]


def table(shape=(NUM_WORKERS, 40), seed=0):
    """One leaf of float32 gradients with zeros among them, as NumPy has it."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(1, *shape[1:])) + random.normal(size=shape)
    return np.where(random.random(shape) < 0.1, 0, values).astype(np.float32)


# --- What every attack must do ---


def rows_of(tree, which):
    """The rows of all leaves, as float32 NumPy arrays."""
    return [np.asarray(leaf, np.float32)[which] for leaf in jax.tree.leaves(tree)]


def assert_close(one, two):
    """Equal up to the rounding of sums in another order."""
    for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True):
        precision = 1e-5 if a.dtype == jnp.float32 else 1e-2
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=precision, atol=1e-5)


@every_attack
def test_honest_rows_are_bit_equal(name, key):
    gradients = some_gradients(key)
    sent = send_jitted(name, gradients)
    for ours, theirs in zip(*map(jax.tree.leaves, (gradients, sent)), strict=True):
        assert (theirs.dtype, theirs.shape) == (ours.dtype, ours.shape)
        ours, theirs = np.asarray(ours)[HONEST], np.asarray(theirs)[HONEST]
        assert ours.tobytes() == theirs.tobytes()


@every_attack
@pytest.mark.parametrize("round", [0, 1000])
@pytest.mark.slow
def test_nobody_lies_where_nobody_is_byzantine(name, round, key):
    gradients = some_gradients(key)
    sent = send_jitted(name, gradients, np.zeros(NUM_WORKERS, bool), round)
    for ours, theirs in zip(*map(jax.tree.leaves, (gradients, sent)), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


@every_attack
@pytest.mark.slow
def test_one_program_serves_all_masks_and_rounds(name, key):
    gradients = some_gradients(key)
    before = [send_jitted(name, gradients), JITTED[name]._cache_size()]
    send_jitted(name, gradients, HONEST, round=3)
    assert JITTED[name]._cache_size() == before[1]


@every_attack
@pytest.mark.slow
def test_jit_is_eager(name, key):
    attack = ATTACKS[name]
    gradients = some_gradients(key)
    given = jax.random.key(7), gradients, jnp.asarray(BYZANTINE)
    state = attack.init(NUM_WORKERS, params_of(gradients))
    eager, _ = attack.apply(*given, context_for(gradients), state)
    assert_close(eager, send_jitted(name, gradients))


@every_attack
@pytest.mark.parametrize("num_workers", [1, NUM_WORKERS])
@pytest.mark.slow
def test_all_byzantine_send_numbers(name, num_workers, key):
    gradients = some_gradients(key, num_workers)
    sent = send_jitted(name, gradients, np.ones(num_workers, bool))
    is_finite = all(np.isfinite(leaf).all() for leaf in rows_of(sent, slice(None)))
    assert is_finite != (name in ("non_finite", "infinity"))


@every_attack
@pytest.mark.slow
def test_non_finite_honest_gradients_do_not_spread(name, key):
    gradients = some_gradients(key)
    gradients["a"] = gradients["a"].at[0].set(jnp.nan).at[2, 0].set(jnp.inf)
    rows = rows_of(send_jitted(name, gradients), BYZANTINE)
    if name == "mimic" and np.isnan(rows[0]).all():
        return  # It copies worker 0, as it is.
    is_finite = all(np.isfinite(leaf).all() for leaf in rows)
    assert is_finite != (name in ("non_finite", "infinity"))


@every_attack
@pytest.mark.slow
def test_attacks_on_the_vote_send_votes(name, key):
    entry = ATTACKS[name].entry
    assert entry in ("inside", "gradient", "vote")
    rows = rows_of(send_jitted(name, some_gradients(key)), BYZANTINE)
    are_votes = all(np.isin(leaf, (-1, 0, 1)).all() for leaf in rows)
    assert are_votes or entry != "vote"


@pytest.mark.parametrize("name", [n for n, a in ATTACKS.items() if a.row_wise])
def test_rows_of_a_row_wise_attack_need_no_other_row(name, key):
    gradients = some_gradients(key)
    others = jax.tree.map(lambda g: (-3 * g).at[1].set(g[1]), gradients)
    first, second = (rows_of(send_jitted(name, g), 1) for g in (gradients, others))
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, two)


# Those with a state, a branch or a decoder; the others are elementwise.
@pytest.mark.parametrize(
    "name", ["mimic", "warm_up_capture", "weight_aware", "adaptive"]
)
@pytest.mark.slow
def test_vmap_is_a_loop(name, key):
    both = [some_gradients(k) for k in jax.random.split(key)]
    gradients = jax.tree.map(lambda *g: jnp.stack(g), *both)
    masks, context = jnp.stack([BYZANTINE, HONEST]), context_for(both[0])
    state = ATTACKS[name].init(NUM_WORKERS, params_of(both[0]))
    mapped = jax.jit(jax.vmap(ATTACKS[name].apply, in_axes=(None, 0, 0, None, None)))
    key = jax.random.key(7)
    sent, _ = mapped(key, gradients, masks, context, state)
    for i in range(2):
        alone, _ = JITTED[name](key, both[i], masks[i], context, state)
        assert_close(jax.tree.map(lambda leaf: leaf[i], sent), alone)  # noqa: B023


@every_attack
@pytest.mark.slow
def test_lowers_for_every_platform(name, key):
    gradients = some_gradients(key)
    state = ATTACKS[name].init(NUM_WORKERS, params_of(gradients))
    given = gradients, jnp.asarray(BYZANTINE), context_for(gradients), state
    # Plain leaves: an export does not know our NamedTuples, nor a typed key.
    leaves, treedef = jax.tree.flatten(given)

    def flat(seed, *leaves):
        key = jax.random.key(seed)
        return jax.tree.leaves(ATTACKS[name].apply(key, *treedef.unflatten(leaves)))

    platforms = ("cpu", "cuda", "tpu")
    exported = jax.export.export(jax.jit(flat), platforms=platforms)(
        jnp.uint32(0), *leaves
    )
    assert exported.platforms == platforms


def test_every_public_attack_is_registered():
    """Each attack, and so each of its conformance tests, has a name."""
    makers = {"followed_by", "replace_rows", "split_like", "stateless", "tuned"}
    makers |= {"line_search"}
    public = {
        name
        for name in attacks.__all__
        if name[0].islower() and name not in makers | set(attacks.membership.__all__)
    }
    assert public - {"no_attack"} <= set(registry.ATTACKS)


# --- Definitions: attacks without accomplices ---


def test_zero_scaling_and_non_finite():
    gradients = table()
    np.testing.assert_array_equal(send(attacks.zero(), gradients)[BYZANTINE], 0)
    np.testing.assert_array_equal(
        send(attacks.scaling(-2.0), gradients)[BYZANTINE], -2 * gradients[BYZANTINE]
    )
    for value in (np.nan, np.inf, -np.inf):
        sent = send(attacks.non_finite(value), gradients)
        np.testing.assert_array_equal(sent[BYZANTINE], value)


def test_random_votes_and_noise_have_their_distribution():
    # 30,000 draws: five standard errors, false alarm below 1e-5 in all.
    gradients = np.full((NUM_WORKERS, 10_000), 0.5, np.float32)
    votes = send(attacks.random_vote(), gradients)[BYZANTINE]
    assert abs(votes.mean()) < 5 / np.sqrt(votes.size)
    assert abs(np.corrcoef(votes)[0, 1]) < 5 / np.sqrt(10_000)
    noise = send(attacks.additive_noise(2.0), gradients)[BYZANTINE] - 0.5
    assert abs(noise.mean()) < 5 * 2 / np.sqrt(noise.size)
    assert abs(noise.std() - 2) < 5 * 2 / np.sqrt(2 * noise.size)


def test_label_flip_enters_at_the_data():
    attack = attacks.label_flip(10)
    labels = np.arange(NUM_WORKERS)[:, None] % 10
    inputs = np.ones((NUM_WORKERS, 1, 2), np.float32)
    (same, sent), _ = attack.apply(None, (inputs, labels), BYZANTINE, None, ())
    np.testing.assert_array_equal(same, inputs)
    np.testing.assert_array_equal(sent[HONEST], labels[HONEST])
    np.testing.assert_array_equal(sent[BYZANTINE], 9 - labels[BYZANTINE])
    assert attack.entry == "data"


# --- Definitions: omniscient attacks ---


def test_alie_and_ipm_are_their_formulas():
    gradients = table()
    mean, deviation = gradients[HONEST].mean(0), gradients[HONEST].std(0)
    expected = {
        attacks.alie(1.5): mean - 1.5 * deviation,
        attacks.sign_alie(0.7): mean - 0.7 * deviation * np.sign(mean),
        attacks.ipm(0.5): -0.5 * mean,
    }
    for attack, vector in expected.items():
        sent = send(attack, gradients)[BYZANTINE]
        np.testing.assert_allclose(sent, np.tile(vector, (3, 1)), atol=1e-5)


def test_sign_alie_flips_exactly_the_narrow_coordinates():
    gradients = table()
    mean, deviation = gradients[HONEST].mean(0), gradients[HONEST].std(0)
    sent = send(attacks.sign_alie(1.0), gradients)[1]
    flipped = np.sign(sent) == -np.sign(mean)
    np.testing.assert_array_equal(flipped, np.abs(mean) < deviation)
    assert 0 < flipped.mean() < 1


@pytest.mark.parametrize(("total", "liars"), [(15, 6), (20, 4), (50, 12)])
def test_alie_finds_the_z_of_its_paper(total, liars):
    gradients = table((total, 30))
    byzantine = np.arange(total) < liars
    supporters = total // 2 + 1 - liars
    share = (total - liars - supporters) / (total - liars)
    z = statistics.NormalDist().inv_cdf(share)
    honest = gradients[~byzantine]
    sent = send(attacks.alie(None), gradients, byzantine)
    np.testing.assert_allclose(sent[0], honest.mean(0) - z * honest.std(0), atol=1e-4)


@pytest.mark.parametrize("deviation", ["standard_deviation", "unit", "sign"])
@pytest.mark.parametrize("rule", ["min_max", "min_sum"])
def test_min_max_and_min_sum_step_as_far_as_they_may(rule, deviation):
    gradients = table()
    honest = gradients[HONEST].astype(np.float64)
    mean = honest.mean(0)
    direction = {
        "standard_deviation": -honest.std(0),
        "unit": -mean / np.linalg.norm(mean),
        "sign": -np.sign(mean),
    }[deviation]
    squared = [[((a - b) ** 2).sum() for b in honest] for a in honest]

    def allowed(step):
        there = [((mean + step * direction - g) ** 2).sum() for g in honest]
        if rule == "min_max":
            return max(there) <= np.max(squared)
        return sum(there) <= np.max(np.sum(squared, axis=1))

    low, high = 0.0, 1e3
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if allowed(middle) else (low, middle)
    assert 0 < low < 1e3
    sent = send(getattr(attacks, rule)(deviation), gradients)
    expected = np.tile(mean + low * direction, (3, 1))
    np.testing.assert_allclose(sent[BYZANTINE], expected, atol=1e-3)


def test_fang_draws_beyond_the_honest_extreme():
    gradients = table((NUM_WORKERS, 400))
    honest = gradients[HONEST]
    sent = send(attacks.fang(2.0), gradients)[BYZANTINE]
    for n in range(gradients.shape[1]):
        low, high = honest[:, n].min(), honest[:, n].max()
        if honest[:, n].mean() >= 0:
            end = low / 2 if low > 0 else 2 * low
        else:
            low, end = high, (2 * high if high > 0 else high / 2)
        inside = (sent[:, n] >= min(low, end) - 1e-6) & (
            sent[:, n] <= max(low, end) + 1e-6
        )
        assert inside.all()
    assert (sent.std(axis=0) > 0).mean() > 0.5  # Each draws its own.


def test_mimic_copies_along_the_direction_of_largest_variance():
    random = np.random.default_rng(0)
    axis = random.normal(size=40)
    axis /= np.linalg.norm(axis)
    along = np.array(
        [-3.0, 0, 4, -2, 0, 1, 0]
    )  # Worker 2 is furthest among the honest.
    attack = attacks.mimic(warm_up_rounds=3)
    state = attack.init(NUM_WORKERS, jnp.zeros(40))
    apply = jax.jit(attack.apply)
    for round in range(5):
        noise = 0.01 * random.normal(size=(NUM_WORKERS, 40))
        sign = 1 if round < 3 else -1  # After the warm-up, it keeps to its target.
        gradients = (along[:, None] * axis * sign + noise).astype(np.float32)
        sent, state = apply(
            jax.random.key(round), gradients, jnp.asarray(BYZANTINE), None, state
        )
        target = int(state.mimic_target)
        np.testing.assert_array_equal(sent[BYZANTINE], gradients[[target] * 3])
    towards = np.dot(state.mimic_direction, axis)
    assert abs(towards) > 0.999
    assert target == (2 if towards > 0 else 0)


def test_mimic_leaves_a_target_that_turns_byzantine():
    gradients = table()
    attack = attacks.mimic(warm_up_rounds=1)
    state = attack.init(NUM_WORKERS, jnp.zeros(40))
    key = jax.random.key(0)
    _, state = attack.apply(key, gradients, jnp.asarray(BYZANTINE), None, state)
    mask = BYZANTINE.copy()
    mask[int(state.mimic_target)] = True
    _, state = attack.apply(key, gradients, jnp.asarray(mask), None, state)
    assert not mask[int(state.mimic_target)]


# --- Definitions: attacks on the vote ---


def knows(weights):
    """A decoder that gives these weights, and a context in which it runs."""
    decoder = Decoder(None, None, lambda state: state["weights"])
    return decoder, AttackContext(jnp.int32(0), {"weights": weights})


def test_majority_opposition_negates_the_honest_majority():
    gradients = table()
    tally = np.sign(gradients[HONEST]).sum(0)
    sent = send(attacks.majority_opposition(), gradients)[BYZANTINE]
    np.testing.assert_array_equal(sent, np.tile(-np.sign(tally), (3, 1)))
    assert (tally == 0).any()


def test_random_colluders_send_one_vector_anew_each_round():
    # 10,000 coordinates: five standard errors, false alarm below 1e-6.
    gradients = np.zeros((NUM_WORKERS, 10_000), np.float32)
    first, second = (
        send(attacks.random_collusion(), gradients, key=jax.random.key(i))
        for i in range(2)
    )
    np.testing.assert_array_equal(first[1], first[4])
    assert abs(np.mean(first[1])) < 0.05
    assert abs(np.mean(first[1] * second[1])) < 0.05


@pytest.mark.parametrize("per_coordinate", [False, True])
def test_swing_turns_what_can_be_turned(per_coordinate):
    gradients = table()
    random = np.random.default_rng(1)
    shape = gradients.shape if per_coordinate else (NUM_WORKERS, 1)
    weights = random.normal(size=shape).astype(np.float32) + 0.5
    given = weights if per_coordinate else weights[:, 0]
    decoder, context = knows(jnp.asarray(given))
    sent = send(attacks.swing(decoder), gradients, context=context)
    weights = np.broadcast_to(weights, gradients.shape)
    turned = 0
    for n in range(gradients.shape[1]):
        w, votes = weights[:, n], np.sign(gradients[:, n])
        tally = (w * votes)[HONEST].sum()
        power = np.abs(w[BYZANTINE]).sum()
        if 0 < abs(tally) < power:
            turned += 1
            expected = -np.sign(tally) * np.sign(w[BYZANTINE])
            decision = tally + (w[BYZANTINE] * sent[BYZANTINE, n]).sum()
            assert np.sign(decision) == -np.sign(tally)
        else:
            expected = votes[BYZANTINE]
        np.testing.assert_array_equal(sent[BYZANTINE, n], expected)
    assert 0 < turned < gradients.shape[1]


def test_swing_counts_heads_where_the_server_has_no_decoder():
    gradients = table()
    context = AttackContext(jnp.int32(0), None)
    with_decoder = send(attacks.swing(majority_vote()), gradients, context=context)
    np.testing.assert_array_equal(with_decoder, send(attacks.swing(), gradients))


def test_swing_refuses_the_state_of_another_decoder():
    gradients = table()
    state = majority_vote().init(NUM_WORKERS, jnp.zeros(40))
    context = AttackContext(jnp.int32(0), state)
    with pytest.raises(ValueError, match="built for another decoder"):
        send(attacks.swing(DECODER), gradients, context=context)


@pytest.mark.parametrize("budget", [0.0, 0.1, 0.5, 1.0])
def test_budgeted_swing_keeps_to_the_narrowest(budget):
    # The threshold is the quantile of 4096 samples: 4 standard errors are .032.
    gradients = table((15, 20_000))
    byzantine = np.arange(15) < 6
    votes = np.sign(gradients)
    margin = np.abs(votes[~byzantine].sum(0))
    sent = send(attacks.budgeted_swing(budget), gradients, byzantine)
    everything = send(attacks.swing(), gradients, byzantine)
    turned = ((sent != votes) & byzantine[:, None]).any(0)
    could = ((everything != votes) & byzantine[:, None]).any(0)
    assert not (turned & ~could).any()
    if budget == 1:
        np.testing.assert_array_equal(sent[byzantine], everything[byzantine])
        return
    turned = (sent[0] == -np.sign(votes[~byzantine].sum(0))) & (margin > 0)
    chosen = np.asarray(
        knowledge.smallest_share(jax.random.key(7), jnp.asarray(margin), budget)
    )
    assert abs(chosen.sum() / (margin > 0).sum() - budget) < 0.032
    if chosen.any():
        assert margin[chosen].max() <= margin[~chosen & (margin > 0)].min()
    np.testing.assert_array_equal(
        sent[byzantine],
        np.where(
            chosen & (margin < 6), -np.sign(votes[~byzantine].sum(0)), votes[byzantine]
        ),
    )
    assert turned.mean() >= (chosen & (margin < 6)).mean()


# --- Definitions: attacks on what was learned ---


def through_time(attack, gradients, rounds):
    """What is sent in each of these rounds, `[T, M, ...]`; its state too."""

    def one(state, round):
        context = AttackContext(round, None)
        key = jax.random.fold_in(jax.random.key(7), round)
        mask = jnp.asarray(BYZANTINE)
        sent, state = attack.apply(key, gradients, mask, context, state)
        return state, (sent, state)

    gradients = jnp.asarray(gradients)
    state = attack.init(NUM_WORKERS, params_of(gradients))
    rounds = jnp.asarray(rounds, jnp.int32)
    return jax.tree.map(np.asarray, jax.lax.scan(one, state, rounds)[1])


def test_schedules():
    gradients = table()
    inverted = np.where(BYZANTINE[:, None], -gradients, gradients)
    opposed = send(attacks.majority_opposition(), gradients)
    for attack, active, hostile in (
        (attacks.sleeper(5), lambda t: t >= 5, inverted),
        (attacks.sleeper(3, attacks.majority_opposition()), lambda t: t >= 3, opposed),
        (attacks.on_off(5, 0.4), lambda t: t % 5 >= 3, inverted),
        (attacks.on_off(5, 0.0), lambda t: False, inverted),
        (attacks.on_off(1, 1.0), lambda t: True, inverted),
    ):
        sent, _ = through_time(attack, gradients, range(12))
        for round in range(12):
            expected = hostile if active(round) else gradients
            np.testing.assert_array_equal(sent[round], expected)


def test_a_sleeping_attack_remembers_nothing():
    _, state = through_time(attacks.sleeper(2, attacks.mimic()), table(), range(5))
    np.testing.assert_array_equal(state.mimic_round, [0, 0, 1, 2, 3])


def test_schedules_take_attacks_on_the_data():
    attack = attacks.sleeper(3, attacks.label_flip(10))
    assert attack.entry == "data"
    labels = np.zeros((NUM_WORKERS, 1), np.int32)
    for round, label in ((2, 0), (3, 9)):
        context = AttackContext(jnp.int32(round), None)
        (_, sent), _ = attack.apply(None, (labels, labels), BYZANTINE, context, ())
        np.testing.assert_array_equal(sent[BYZANTINE], label)


def test_warm_up_capture_flatters_then_attacks():
    gradients = table()
    majority = np.sign(np.sign(gradients[HONEST]).sum(0))
    attack = attacks.warm_up_capture(4, attacks.sign_inversion())
    (early, late), _ = through_time(attack, gradients, (3, 4))
    np.testing.assert_array_equal(early[BYZANTINE], np.tile(majority, (3, 1)))
    np.testing.assert_array_equal(late[BYZANTINE], -gradients[BYZANTINE])


def test_coordinate_specialist_keeps_its_coordinates():
    # 20,000 coordinates: 5 standard errors of the share .2 are .014.
    gradients = np.abs(table((NUM_WORKERS, 20_000))) + 1
    attack = attacks.coordinate_specialist(0.2, 10, attacks.sign_inversion())

    sent, _ = through_time(attack, gradients, (10, 99, 9))
    first, second, early = sent < 0
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first[1], first[4])
    assert abs(first[1].mean() - 0.2) < 0.014
    assert not first[HONEST].any()
    assert not early.any()


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5])
def test_near_duplicates_correlate_as_stated(noise):
    # 20,000 coordinates: 5 standard errors of a correlation are at most .036.
    gradients = table((NUM_WORKERS, 20_000))
    common = attacks.majority_opposition()
    attack = attacks.near_duplicate_collusion(noise, common)
    sent = send(attack, gradients)
    target = send(common, gradients)
    voted = target[1] != 0
    pair = (sent[1] * sent[4])[voted].mean()
    assert abs(pair - (1 - 2 * noise) ** 2) < 0.036
    assert abs((sent[1] * target[1])[voted].mean() - (1 - 2 * noise)) < 0.036


@pytest.mark.parametrize("crossover", [0.0, 0.2, 0.45])
def test_weight_aware_swings_within_its_trust(crossover):
    gradients = table((15, 20_000))
    byzantine = np.arange(15) < 6
    weights = np.linspace(-0.3, 1.1, 15).astype(np.float32)
    decoder, context = knows(jnp.asarray(weights))
    attack = attacks.weight_aware(decoder, crossover)
    sent = send(attack, gradients, byzantine, context=context)
    tally = weights[~byzantine] @ np.sign(gradients[~byzantine])
    power = np.maximum(weights[byzantine], 0).sum()
    margin = jnp.abs(jnp.asarray(tally))
    narrow = knowledge.smallest_share(jax.random.key(7), margin, crossover)
    turned = np.asarray(narrow) & (np.abs(tally) < power)
    for m in np.flatnonzero(byzantine):
        lie = turned & (weights[m] > 0)
        expected = np.where(lie, -1, 1) * np.sign(tally)
        same = sent[m] == expected
        assert same.mean() > 0.999  # Float sums may order near-equal margins otherwise.
        disagrees = (sent[m] == -np.sign(tally)) & (tally != 0)
        # 4 standard errors of the threshold's 4096 samples.
        assert disagrees.sum() <= (crossover + 0.032) * (tally != 0).sum()
    assert turned.any() == (crossover > 0)


# --- The adaptive attack ---


def test_disguised_opposition_spans_the_simpler_attacks():
    gradients = table()
    context = AttackContext(jnp.int32(0), None)
    sent = send(attacks.disguised_opposition(), gradients, context=context)
    opposed = send(attacks.majority_opposition(), gradients)
    votes = np.where(BYZANTINE[:, None], np.sign(gradients), gradients)
    tied = np.sign(gradients[HONEST]).sum(0) == 0
    np.testing.assert_array_equal(sent, np.where(tied, votes, opposed))
    for options in ((1.0, 1.0, 1.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0)):
        attack = attacks.disguised_opposition(*options)
        np.testing.assert_array_equal(send(attack, gradients, context=context), votes)
    half = attacks.disguised_opposition(duty=0.5)
    sent, _ = through_time(half, gradients, range(6))
    active = [bool((values != votes).any()) for values in sent]
    assert active == [False, True] * 3


@pytest.mark.parametrize("decoder", [majority_vote(), DECODER])
def test_adaptive_sends_the_candidate_that_hurts_most(decoder):
    gradients = table((15, 300))
    byzantine = np.arange(15) < 6
    candidates = list(itertools.product((0.0, 0.3), (1.0, 0.5), (0.2, 1.0)))
    attack = attacks.adaptive(
        decoder, candidates=candidates, trials=len(candidates), horizon=3, sample=None
    )
    decoder_state = decoder.init(15, jnp.zeros(300))
    gradients = jnp.asarray(gradients)
    for _ in range(3):
        _, decoder_state, _ = decoder.decode(decoder_state, signs.votes(gradients))
    truth = np.sign(np.asarray(gradients)[~byzantine].sum(0))
    trial_key, send_key = jax.random.split(jax.random.key(7))

    @jax.jit
    def one_round(candidate, step, state):
        fixed = attacks.disguised_opposition(*candidate)
        context = AttackContext(4 + step, state)
        key = jax.random.fold_in(trial_key, step)
        sent, _ = fixed.apply(key, gradients, jnp.asarray(byzantine), context, ())
        return decoder.decode(state, signs.votes(sent))[:2]

    damages = []
    for candidate in candidates:
        state, errors = decoder_state, []
        for step in range(3):
            decoded, state = one_round(candidate, jnp.int32(step), state)
            errors.append(np.mean((np.asarray(decoded) != truth)[truth != 0]))
        damages.append(np.mean(errors))
    context = AttackContext(jnp.int32(4), decoder_state)
    state = attack.init(15, jnp.zeros(300))
    state = state._replace(adaptive_decoder_state=decoder_state)
    sent, state = jax.jit(attack.apply)(
        jax.random.key(7), gradients, jnp.asarray(byzantine), context, state
    )
    np.testing.assert_allclose(state.adaptive_scores, damages, atol=1e-6)
    best = int(np.argmax(damages))
    assert int(state.adaptive_best) == best
    assert max(damages) > min(damages)
    fixed = attacks.disguised_opposition(*candidates[best])
    expected = send(fixed, gradients, byzantine, key=send_key, context=context)
    np.testing.assert_array_equal(sent, expected)
    _, learned, _ = decoder.decode(decoder_state, signs.votes(sent))
    chex.assert_trees_all_close(state.adaptive_decoder_state, learned, rtol=1e-5)


def test_adaptive_tries_all_candidates_in_turn():
    attack = attacks.adaptive(majority_vote(), trials=5, horizon=1)
    _, states = through_time(attack, jnp.asarray(table()), range(5))
    tried = (states.adaptive_scores >= 0).sum(axis=1)
    np.testing.assert_array_equal(tried, [5, 10, 15, 20, len(attacks.OPPOSITIONS)])


def test_adaptive_plays_on_one_sample_of_the_coordinates(key):
    gradients = some_gradients(key)
    seen = []

    def decode(state, votes, axis_name=None):
        seen.append((jax.tree.map(jnp.shape, state), jax.tree.map(jnp.shape, votes)))
        return DECODER.decode(state, votes, axis_name)

    attack = attacks.adaptive(DECODER._replace(decode=decode), sample=12)
    state = attack.init(NUM_WORKERS, params_of(gradients))
    # The server has no decoder at all: the attackers do not need its state.
    context = AttackContext(jnp.int32(0), None)
    given = key, gradients, jnp.asarray(BYZANTINE), context, state
    sent, _ = jax.eval_shape(attack.apply, *given)
    assert jax.tree.map(jnp.shape, sent) == jax.tree.map(jnp.shape, gradients)
    assert len(seen) >= 2  # In the trials, and after them.
    for state, votes in seen:
        assert votes == {"a": (NUM_WORKERS, 8), "b": (NUM_WORKERS, 5)}
        assert state.fd_counters == votes


def naive_line_search(damage, evaluations):
    """ByzFL's two phases, from 0 by steps of 10."""
    best, most, step, left = 0.0, damage(0.0), 10.0, evaluations - 1
    while left:
        left -= 1
        there = damage(best + step)
        if there <= most:
            break
        best, most, step = best + step, there, 2 * step
    for _ in range(left):
        step *= 0.8
        there = damage(best + step)
        if there > most:
            best, most = best + step, there
    return best


RULES = {
    "mean": stateless(mean),
    "trimmed_mean": stateless(trimmed_mean, num_byzantine=2),
    "krum": stateless(krum, num_byzantine=2),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family", [attacks.ipm, attacks.alie])
def test_line_search_is_that_of_byzfl(rule, family):
    attack = attacks.line_search(RULES[rule], family, evaluations=9)
    apply, factors = jax.jit(attack.apply), set()
    aggregate = jax.jit(RULES[rule].aggregate)
    for seed in range(3):
        gradients = table(seed=seed)
        centre, deviation = gradients[HONEST].mean(0), gradients[HONEST].std(0)

        def rows(x, gradients=gradients, centre=centre, deviation=deviation):
            lie = -x * centre if family is attacks.ipm else centre - x * deviation
            return np.where(BYZANTINE[:, None], lie, gradients).astype(np.float32)

        def damage(x, rows=rows, centre=centre):
            return np.linalg.norm(aggregate((), rows(x))[0] - centre)

        expected = naive_line_search(damage, 9)
        state = attack.init(NUM_WORKERS, jnp.zeros(40))
        given = None, gradients, jnp.asarray(BYZANTINE), None, state
        sent, state = apply(*given)
        np.testing.assert_allclose(state.line_search_factor, expected, rtol=1e-5)
        np.testing.assert_allclose(sent, rows(expected), rtol=1e-4, atol=1e-4)
        factors.add(round(expected, 3))
    assert rule != "mean" or factors == {10.0 * (2**8 - 1)}  # as far as it gets


def test_line_search_keeps_a_copy_of_the_rule():
    """Which sees what was sent, and so clips around the last aggregate."""
    rule = recurrent(centered_clipping, clip_norm=1.0)
    attack = attacks.line_search(rule, attacks.ipm, evaluations=5)
    state = attack.init(NUM_WORKERS, jnp.zeros(40))
    servers = rule.init(NUM_WORKERS, 40)
    apply = jax.jit(attack.apply)
    for seed in range(3):
        given = None, table(seed=seed), jnp.asarray(BYZANTINE), None, state
        sent, state = apply(*given)
        _, servers = rule.aggregate(servers, sent)
        np.testing.assert_allclose(state.line_search_rule_state, servers, atol=1e-5)


def test_tuned_is_the_fixed_attack_of_most_damage():
    gradients = jnp.asarray(table((15, 200)))
    byzantine = jnp.arange(15) < 6
    truth = jnp.sign(gradients[6:].sum(0))

    def damage(attack):
        sent, _ = attack.apply(None, gradients, byzantine, None, ())
        return jnp.mean(jnp.sign(jnp.sign(sent).sum(0)) != truth)

    candidates = [[0.1], [1.0], [4.0]]
    attack, damages = attacks.tuned(
        lambda p: attacks.sign_alie(p[0]), candidates, damage
    )
    expected = [damage(attacks.sign_alie(z)) for (z,) in candidates]
    np.testing.assert_allclose(damages, expected, atol=1e-6)
    best = candidates[int(np.argmax(expected))][0]
    np.testing.assert_allclose(
        send(attack, gradients, byzantine),
        send(attacks.sign_alie(best), gradients, byzantine),
        rtol=1e-6,
    )


# --- Membership, and whole simulations ---


def test_drawn_and_rotating_keep_the_number_of_liars(key):
    mask = jnp.asarray(BYZANTINE)
    drawn = attacks.drawn_each_round()
    masks = [
        np.asarray(drawn(jax.random.fold_in(key, t), mask, t)[0]) for t in range(20)
    ]
    assert {m.sum() for m in masks} == {3}
    assert len({m.tobytes() for m in masks}) > 5  # 35 are possible.
    rotating = attacks.rotating(period=2)
    for t in range(20):
        turned, present = rotating(key, mask, jnp.int32(t))
        np.testing.assert_array_equal(turned, np.roll(BYZANTINE, t // 2))
        assert present is None


def test_leaving_attackers_come_back(key):
    membership = attacks.leaving(period=5, away=2)
    for t in range(12):
        byzantine, present = membership(key, jnp.asarray(BYZANTINE), jnp.int32(t))
        np.testing.assert_array_equal(byzantine, BYZANTINE)
        np.testing.assert_array_equal(present, HONEST | (t % 5 < 3))


def test_drop_out_has_its_rate(key):
    # 7000 draws: five standard errors of .3 are .027.
    keys = jax.random.split(key, 1000)
    membership = attacks.drop_out(0.3)
    _, present = jax.vmap(lambda k: membership(k, jnp.asarray(BYZANTINE), 0))(keys)
    assert abs(float(present.mean()) - 0.7) < 0.027


@pytest.mark.parametrize("share", [0.0, 0.1, 0.52, 1.0])
def test_sampled_takes_as_many_workers_every_round(share, key):
    mask = jnp.arange(25) < 5
    membership = jax.vmap(attacks.sampled(share), (0, None, None))
    keys = jax.random.split(key, 200)
    byzantine, present = membership(keys, mask, jnp.int32(0))
    np.testing.assert_array_equal(byzantine, np.tile(mask, (200, 1)))
    np.testing.assert_array_equal(present.sum(1), round(share * 25))
    # Each worker equally often: the largest of 25 deviations, five standard errors.
    error = np.sqrt(share * (1 - share) / 200)
    np.testing.assert_allclose(present.mean(0), round(share * 25) / 25, atol=5 * error)


@functools.cache
def churned(period=4, groups=3, num_workers=11, liars=4, stretches=9, seed=0):
    """Who lies and who is there in each round, `[T, M]` each."""
    membership = attacks.churn(period, groups, seed)
    byzantine = jnp.arange(num_workers) < liars
    rounds = jnp.arange(period * stretches, dtype=jnp.int32)
    of_rounds = jax.jit(jax.vmap(lambda t: membership(None, byzantine, t)))
    return jax.tree.map(np.asarray, of_rounds(rounds))


def test_churn_changes_only_who_was_away():
    """And as many of a group's newcomers lie as of those who left."""
    masks, present = churned()
    np.testing.assert_array_equal(masks[0], np.arange(11) < 4)
    changed = False
    for t in range(1, len(masks)):
        away = ~present[t - 1]
        returned = away & present[t]
        np.testing.assert_array_equal(masks[t][~returned], masks[t - 1][~returned])
        assert masks[t][returned].sum() == masks[t - 1][returned].sum()
        assert returned.any() == (t % 4 == 0)
        changed |= bool((masks[t] != masks[t - 1]).any())
    assert changed


def test_churn_deals_everybody_and_the_liars_evenly():
    """Every group is away once in turn, so that the honest stay the majority."""
    masks, present = churned()
    stretches = present.reshape(9, 4, 11)
    assert (stretches == stretches[:, :1]).all()
    away = ~stretches[:, 0]
    np.testing.assert_array_equal(away[:3].sum(0), np.ones(11))
    np.testing.assert_array_equal(away, np.tile(away[:3], (3, 1)))
    assert set(away.sum(1)) == {3, 4}
    assert set((masks & ~present).sum(1)) == {1, 2}
    np.testing.assert_array_equal(masks.sum(1), 4)


def test_newcomers_lie_with_equal_probability_in_each_slot():
    """Over 400 seeds; five standard errors."""
    membership = attacks.churn(2, 2)
    byzantine = jnp.arange(8) < 4

    def much_later(seed):
        return attacks.churn(2, 2, seed)(None, byzantine, jnp.int32(20))[0]

    masks = jax.vmap(much_later)(jnp.arange(400))
    error = 0.5 / np.sqrt(400)
    np.testing.assert_allclose(masks.mean(0), 0.5, atol=5 * error)
    keys = jax.random.split(jax.random.key(0), 2)
    one, other = (membership(k, byzantine, jnp.int32(20)) for k in keys)
    chex.assert_trees_all_equal(one, other)  # by the seed and the round alone


MEMBERSHIPS = {
    "churn": attacks.churn(2, 3),
    "drawn": attacks.drawn_each_round(),
    "rotating": attacks.rotating(3),
    "leaving": attacks.leaving(4, 2),
    "drop_out": attacks.drop_out(),
    "sampled": attacks.sampled(0.4),
}


@pytest.mark.parametrize("name", ["mimic", "weight_aware", "adaptive"])
@pytest.mark.slow
def test_attacks_run_in_a_simulation(name, key):
    """Under each membership; one program has them all, and is told which to follow."""
    decoders = {"adaptive": DECODER, "weight_aware": DECODER}
    tx = optax.chain(
        scale_by_sign_decoder(NUM_WORKERS, decoders.get(name)),
        optax.scale_by_learning_rate(0.01),
    )

    def loss_fn(x, target):
        return jnp.mean((x[None] - target) ** 2)

    def draw(key):
        return 1 + jax.random.normal(key, (NUM_WORKERS, 2, 9))

    def simulated(membership=None):
        return simulation(
            loss_fn,
            tx,
            num_workers=NUM_WORKERS,
            attack=ATTACKS[name],
            membership=membership,
        )

    def everyone_if_none(membership, key, byzantine, round):
        byzantine, present = membership(key, byzantine, round)
        return byzantine, jnp.ones(NUM_WORKERS, bool) if present is None else present

    branches = [
        functools.partial(everyone_if_none, each) for each in MEMBERSHIPS.values()
    ]

    @jax.jit
    def rounds(which, state):
        chosen = lambda *given: jax.lax.switch(which, branches, *given)  # noqa: E731
        return run(simulated(chosen), state, draw, 8)

    start = simulated().init(key, jnp.zeros(9), BYZANTINE)
    fixed = jax.jit(lambda state: run(simulated(), state, draw, 8))
    for which in (*range(len(branches)), None):
        state, infos = fixed(start) if which is None else rounds(which, start)
        assert bool(jnp.isfinite(state.params).all())
        # Not measured where no honest worker took part.
        measured = np.asarray(infos.num_honest > 0)
        error = np.asarray(infos.sign_error)
        assert (error[measured] >= 0).all()
        assert np.isnan(error[~measured]).all()

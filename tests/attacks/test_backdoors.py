"""Backdoors: what is stamped and relabelled, by naive loops; and rounds with them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import signfd_jax as sfd
from signfd_jax import attacks
from signfd_jax.attacks import AttackContext
from signfd_jax.attacks._by_row import apply_by_row

M, B, H, W, C = 7, 6, 4, 5, 2
BYZANTINE = np.array([False, True, True, False, True, False, True])
CLASSES = 4


def some_batch(seed=0):
    """Inputs [M, B, H, W, C] and labels; honest ones have a NaN and an infinity."""
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(M, B, H, W, C)).astype(np.float32)
    inputs[0, 0, 0, 0], inputs[3, 1, 1, 1] = np.nan, np.inf
    return inputs, random.integers(0, CLASSES, (M, B)).astype(np.int32)


def lower_right(size, columns):
    """The pixels of some columns of the square."""
    return [(r, W - size + c) for r in range(H - size, H) for c in columns]


def stamped(image, pixels, value):
    image = image.copy()
    for r, c in pixels:
        image[r, c, :] = value
    return image


# Of each attack: the attack, what a liar's stamped image is, given how many liars have
# a smaller number, the class that is attacked (None: all), the target and the share.
CASES = {
    "badnets": (
        attacks.badnets(CLASSES, target=3, fraction=0.5, size=2, value=1.5),
        lambda image, rank: stamped(image, lower_right(2, [0, 1]), 1.5),
        *(None, 3, 0.5),
    ),
    "distributed": (
        attacks.distributed_trigger(CLASSES, 2, 0.7, size=3, value=9.0, parts=3),
        lambda image, rank: stamped(image, lower_right(3, [rank % 3]), 9.0),
        *(None, 2, 0.7),
    ),
    "unequal parts": (
        attacks.distributed_trigger(CLASSES, 2, 1.0, size=4, parts=3),
        lambda image, rank: stamped(
            image, lower_right(4, [[0, 1], [2], [3]][rank % 3]), 2.0
        ),
        *(None, 2, 1.0),
    ),
    "pair": (
        attacks.label_flip_pair(CLASSES, source=1, target=3),
        lambda image, rank: image,
        *(1, 3, 1.0),
    ),
    "edge": (
        attacks.edge_case(CLASSES, source=2, target=0, fraction=0.5),
        lambda image, rank: -image,
        *(2, 0, 0.5),
    ),
}
every_case = pytest.mark.parametrize("name", CASES)


def whole(name, image):
    """What the test stamps on an image."""
    size = {"badnets": 2, "distributed": 3, "unequal parts": 4}.get(name)
    value = {"badnets": 1.5, "distributed": 9.0, "unequal parts": 2.0}.get(name)
    if size:
        return stamped(image, lower_right(size, range(size)), value)
    return -image if name == "edge" else image


def naive(name, inputs, labels):
    """The batch after the attack, example by example."""
    _, stamp, source, target, share = CASES[name]
    inputs, labels = inputs.copy(), labels.copy()
    rank = 0
    for m in range(M):
        if not BYZANTINE[m]:
            continue
        poisoned = 0
        for i in range(B):
            if poisoned + 1 <= (i + 1) * share + 1e-6:  # as many as are due by now
                poisoned += 1
                if source in (None, labels[m, i]):
                    inputs[m, i] = stamp(inputs[m, i], rank)
                    labels[m, i] = target
        rank += 1
    return inputs, labels


@every_case
def test_a_share_is_stamped_and_relabelled(name):
    attack = CASES[name][0]
    batch = some_batch()
    counted = np.ones((M, B), np.float32)
    sent, state = jax.jit(attack.apply)(
        jax.random.key(0), (*batch, counted), jnp.asarray(BYZANTINE), None, ()
    )
    for ours, theirs in zip(sent, (*naive(name, *batch), counted), strict=True):
        assert np.asarray(ours).tobytes() == theirs.tobytes()
    assert attack.entry == "data" and attack.row_wise and state == ()


@every_case
def test_the_test_has_the_whole_trigger_and_counts_those_attacked(name):
    attack, _, source, target, _ = CASES[name]
    inputs, labels = some_batch()
    sent = np.asarray(attack.backdoor.stamp(inputs[1]))
    for ours, image in zip(sent, inputs[1], strict=True):
        np.testing.assert_array_equal(ours, whole(name, image))
    expected = [
        target if (y == source if source is not None else y != target) else -1
        for y in labels.ravel()
    ]
    assert attack.backdoor.wanted(labels.ravel()).tolist() == expected
    assert {-1, target} == set(expected)


def test_a_worker_stamps_the_same_part_whichever_rows_are_there():
    attack = CASES["distributed"][0]
    batch, byzantine = some_batch(), jnp.asarray(BYZANTINE)
    context = AttackContext(jnp.int32(0), None, byzantine)
    key, rows = jax.random.key(0), jnp.array([6, 2, 3])
    some = jax.tree.map(lambda leaf: jnp.asarray(leaf)[rows], batch)
    mask = byzantine[rows]
    sent = jax.jit(lambda: apply_by_row(attack, key, rows, some, mask, context))()
    for ours, theirs in zip(sent, naive("distributed", *batch), strict=True):
        np.testing.assert_array_equal(ours, theirs[rows])


@pytest.mark.slow
def test_a_share_may_be_traced():
    batch = some_batch()

    @jax.jit
    def labels(fraction):
        attack = attacks.badnets(CLASSES, target=3, fraction=fraction)
        given = jax.random.key(0), batch, jnp.asarray(BYZANTINE), None, ()
        return attack.apply(*given)[0][1]

    np.testing.assert_array_equal(labels(0.5), naive("badnets", *batch)[1])
    np.testing.assert_array_equal(labels(0.0), batch[1])
    assert (np.asarray(labels(1.0))[BYZANTINE] == 3).all()


# --- Rounds ---


def loss_fn(params, batch):
    inputs, labels = batch
    logits = inputs.reshape(len(labels), -1) @ params["w"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


PARAMS = {"w": jnp.zeros((H * W * C, CLASSES))}


def finite_batch():
    return tuple(map(jnp.asarray, jax.tree.map(np.nan_to_num, some_batch())))


def states(attack, tx, num_rounds=1, **options):
    """The state after each of some rounds of the same batch."""
    sim = sfd.simulation(loss_fn, tx, num_workers=M, attack=attack, **options)
    state, found = sim.init(jax.random.key(0), PARAMS, BYZANTINE), []
    batch, step = finite_batch(), jax.jit(sim.step)
    for _ in range(num_rounds):
        state, _ = step(state, batch)
        found.append(state)
    return found


def kept():
    """A server that keeps what it is sent, and steps along worker 0's gradient."""

    def update(updates, state, params=None, **extra_args):
        del state, params, extra_args
        return jax.tree.map(lambda g: -0.1 * g[0], updates), updates

    rows = jax.tree.map(lambda p: jnp.zeros((M, *p.shape)), PARAMS)
    return optax.GradientTransformationExtraArgs(lambda params: rows, update)


honest_ones = jax.jit(jax.vmap(jax.grad(loss_fn), (None, 0)))


def gradients(params, batch):
    """What the workers compute on such a batch."""
    return np.array(honest_ones(params, batch)["w"])


def test_model_replacement_scales_what_poisoned_data_give():
    data_attack = CASES["distributed"][0]
    (state,) = states(attacks.model_replacement(data_attack, 4.0), kept())
    poisoned = naive("distributed", *map(np.asarray, finite_batch()))
    expected = gradients(PARAMS, poisoned)
    expected[BYZANTINE] *= 4
    np.testing.assert_allclose(state.opt_state["w"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_votes_do_not_feel_model_replacement():
    votes = [
        states(attack, sfd.sign_sgd_mv(0.1, num_workers=M), 3)[-1].params["w"]
        for attack in (
            CASES["badnets"][0],
            attacks.model_replacement(CASES["badnets"][0], 100.0),
        )
    ]
    np.testing.assert_array_equal(*votes)


def test_chunks_of_workers_are_poisoned_as_all_at_once():
    attack = attacks.model_replacement(CASES["distributed"][0], 3.0)
    runs = ((attack, {}), (attack, {"worker_chunk": 1}), (None, {}))
    whole, chunked, clean = (
        states(of, sfd.sign_sgd_mv(0.1, num_workers=M), 2, **options)[-1].params["w"]
        for of, options in runs
    )
    np.testing.assert_array_equal(whole, chunked)
    assert (whole != clean).any()


def test_neurotoxin_stays_off_what_honest_workers_changed_most():
    spared = 0.25
    attack = attacks.neurotoxin(CASES["badnets"][0], spared)
    poisoned = naive("badnets", *map(np.asarray, finite_batch()))
    params, before = PARAMS, None
    for state in states(attack, kept(), 3):
        expected = gradients(params, poisoned)
        honest = expected[~BYZANTINE].mean(0)
        if before is not None:
            sizes = np.sort(np.abs(before).ravel())[::-1]
            first_left = sizes[int(spared * sizes.size)]
            for m in np.flatnonzero(BYZANTINE):
                expected[m][np.abs(before) > first_left] = 0
            share = np.mean(expected[BYZANTINE] == 0)
            assert 0.2 < share <= 0.25  # where several are as large, fewer
        np.testing.assert_allclose(state.opt_state["w"], expected, atol=1e-6)
        params, before = state.params, honest
        np.testing.assert_allclose(state.attack_state["w"], honest, atol=1e-6)


@pytest.mark.slow
def test_a_sleeping_backdoor_wakes_with_what_follows():
    attack = attacks.sleeper(2, attacks.model_replacement(CASES["badnets"][0], 4.0))
    assert attack.backdoor is CASES["badnets"][0].backdoor
    clean = tuple(map(np.asarray, finite_batch()))
    _, asleep, awake = states(attack, kept(), 3)
    _, honest = states(None, kept(), 2)
    np.testing.assert_array_equal(asleep.opt_state["w"], honest.opt_state["w"])
    expected = gradients(asleep.params, naive("badnets", *clean))
    expected[BYZANTINE] *= 4
    np.testing.assert_allclose(awake.opt_state["w"], expected, rtol=1e-5, atol=1e-6)


# --- What is refused ---


def on(attack, inputs):
    labels = jnp.zeros(inputs.shape[:2], jnp.int32)
    given = jax.random.key(0), (inputs, labels), jnp.ones(len(inputs), bool), None, ()
    return lambda: attack.apply(*given)


IMAGES = jnp.zeros((1, 2, 3, 4, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attacks.badnets(4, target=4), "target must be one of the 4 classes"),
        (lambda: attacks.edge_case(3, source=7), "source must be one of the 3 classes"),
        (lambda: attacks.label_flip_pair(3, 2, 2), "must be two classes, but both are"),
        (
            lambda: attacks.distributed_trigger(4, size=2, parts=3),
            "parts must be at most the 2 columns",
        ),
        (on(attacks.badnets(4), jnp.zeros((1, 2, 9))), "stamped on images"),
        (lambda: attacks.badnets(4).backdoor.stamp(IMAGES[0, 0]), "stamped on images"),
        (on(attacks.badnets(4, size=4), IMAGES), "at most the 3 pixels of an image"),
        (
            on(attacks.edge_case(4), jnp.zeros((1, 2, 9), jnp.int32)),
            "negatives of real numbers, but the inputs are int32",
        ),
        (
            lambda: sfd.simulation(
                loss_fn,
                sfd.sign_sgd_mv(0.1, num_workers=M),
                num_workers=M,
                worker_chunk=1,
                attack=attacks.neurotoxin(attacks.badnets(4)),
            ),
            "worker_chunk needs a row-wise attack",
        ),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

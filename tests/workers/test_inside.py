"""Attacks inside a worker's own steps: against loops by hand, and other workers."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import signfd_jax as sfd
from signfd_jax import attacks, workers
from signfd_jax.experiments import Experiment
from signfd_jax.experiments._engine.prepare import check
from signfd_jax.experiments._engine.program import program_key
from signfd_jax.experiments.run import run_experiment

M, N, B, H = 5, 40, 8, 4
LIARS = jnp.arange(M) < 2
PARAMS = {"x": jnp.zeros(N), "y": jnp.ones(3)}
TARGET = jnp.linspace(-1.0, 1.0, N)
ASCENDING = attacks.inside(attacks.sign_inversion())


def loss(params, batch):  # batch [B, N]
    far = jnp.sum((params["x"][None] - batch) ** 2, axis=1)
    return jnp.mean(far) / 2 + jnp.sum(params["y"] ** 2) * jnp.mean(batch)


def opposite(params, batch):
    return -loss(params, batch)


def draw(key):
    return TARGET[None, None] + 0.5 * jax.random.normal(key, (M, B, N))


def local(loss_fn, *, keep_state=False, tx=None):
    tx = optax.sgd(0.05, 0.9) if tx is None else tx
    return workers.local_steps(loss_fn, tx, H, keep_state=keep_state)


ADAGRAD = optax.chain(optax.add_decayed_weights(0.1), optax.adagrad(0.05))
WORKERS = {
    "gradient": workers.gradient,
    "local steps": local,
    "adagrad that stays": lambda f: local(f, keep_state=True, tx=ADAGRAD),
    "momentum": lambda f: workers.momentum(local(f)),
    "error feedback": lambda f: workers.error_feedback(local(f)),
    "stochastic": lambda f: workers.stochastic_signs(local(f), 2.0),
    "dct": lambda f: workers.dct_top_k(local(f), 3, chunk=8),
    "clipped and late": lambda f: workers.late(
        workers.transformed(local(f), optax.clip(0.1)), 2
    ),
}

RECORDER = optax.GradientTransformation(
    lambda params: jax.tree.map(lambda p: jnp.zeros((M, *p.shape)), params),
    lambda sent, state, params: (jax.tree.map(lambda s: 0.01 * s[-1], sent), sent),
)


def rounds(worker, number=5, *, tx=RECORDER, liars=LIARS, **options):
    """The states after each round; the server steps along what the last worker sent."""
    simulated = sfd.simulation(
        worker, tx, num_workers=M, **({"sign_error": False} | options)
    )
    state = jax.jit(simulated.init)(jax.random.key(0), PARAMS, liars)
    step = jax.jit(simulated.step)
    seen = []
    for round in range(number):
        state, _ = step(state, draw(jax.random.key(10 + round)))
        seen.append(state)
    return seen


@pytest.mark.parametrize("name", WORKERS)
@pytest.mark.slow
def test_who_ascends_is_a_worker_of_the_opposite_loss(name):
    """What liars send and remember; honest workers do what they do without them."""
    attacked = rounds(WORKERS[name](loss), attack=ASCENDING)
    honest = rounds(WORKERS[name](loss))
    liars = rounds(WORKERS[name](opposite), tx=following(honest))
    for ours, own, theirs in zip(attacked, honest, liars, strict=True):
        for field in ("opt_state", "worker_state"):
            rows = [getattr(state, field) for state in (ours, own, theirs)]
            if field == "opt_state":
                rows[2] = rows[2][1]
            found, as_honest, as_liars = (jax.tree.leaves(row) for row in rows)
            for leaf, by_honest, by_liars in zip(
                found, as_honest, as_liars, strict=True
            ):
                expected = np.concatenate([by_liars[:2], by_honest[2:]])
                np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-6)


def following(states):
    """A server that takes the steps of another run, and shows what was sent to it."""
    steps = [jax.tree.map(lambda s: 0.01 * s[-1], state.opt_state) for state in states]
    steps = jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps)

    def update(sent, state, params):
        del params
        return jax.tree.map(lambda s: s[state[0]], steps), (state[0] + 1, sent)

    return optax.GradientTransformation(
        lambda params: (jnp.int32(0), RECORDER.init(params)), update
    )


@pytest.mark.parametrize("keep_state", [False, True])
@pytest.mark.parametrize("factor", [-1.0, 0.5, -3.0])
@pytest.mark.slow
def test_steps_by_hand(factor, keep_state):
    """Rounds of a loop in which each gradient is multiplied, and nothing else."""
    tx = optax.sgd(0.05, 0.9)
    attack = attacks.inside(attacks.scaling(factor))
    found = rounds(local(loss, keep_state=keep_state), 3, attack=attack)
    params, own = PARAMS, [tx.init(PARAMS)] * M
    for round, state in enumerate(found):
        batch = draw(jax.random.key(10 + round))
        for m in range(M):
            here = params
            own[m] = own[m] if keep_state else tx.init(params)
            for part in np.split(batch[m], H):
                gradient = jax.grad(loss)(here, part)
                if LIARS[m]:
                    gradient = jax.tree.map(lambda g: factor * g, gradient)
                updates, own[m] = tx.update(gradient, own[m], here)
                here = optax.apply_updates(here, updates)
            moved = jax.tree.map(jnp.subtract, params, here)
            sent = jax.tree.map(lambda leaf, m=m: leaf[m], state.opt_state)
            chex.assert_trees_all_close(sent, moved, atol=1e-5)
        params = state.params


@pytest.mark.parametrize(
    "worker",
    [workers.gradient(loss), workers.local_steps(loss, optax.sgd(0.1), 1)],
    ids=["gradient", "a step"],
)
def test_one_step_that_ascends_is_an_inversion(worker):
    tx = sfd.sign_sgd(0.02, M)
    inside = rounds(worker, tx=tx, attack=ASCENDING)
    after = rounds(worker, tx=tx, attack=attacks.sign_inversion())
    chex.assert_trees_all_equal(inside, after)


def test_steps_and_workers_are_attacked_by_draws_of_their_own():
    """H steps of +1 or -1, each drawn: their sum has variance H; were they alike, H^2.

    Of 10,000 coordinates, for each of two workers and rounds; five standard errors.
    """
    size, steps = 10_000, 4
    worker = workers.local_steps(
        lambda x, batch: jnp.sum(x) + 0 * jnp.sum(batch), optax.sgd(1.0), steps
    )
    simulated = sfd.simulation(
        worker,
        RECORDER,
        num_workers=M,
        attack=attacks.inside(attacks.stochastic_sign_flip(0.5)),
        sign_error=False,
    )
    state = simulated.init(jax.random.key(0), jnp.zeros(size), LIARS)
    seen = []
    for _ in range(2):
        state, _ = jax.jit(simulated.step)(state, jnp.zeros((M, steps)))
        seen += list(np.asarray(state.opt_state)[:2])
        np.testing.assert_array_equal(state.opt_state[2:], steps)
    for sent in seen:
        # A sum of H signs has the fourth moment 3 H^2 - 2 H.
        error = np.sqrt((3 * steps**2 - 2 * steps - steps**2) / size)
        assert abs(np.mean(sent**2) - steps) < 5 * error
    products = np.array([[np.mean(a * b) for a in seen] for b in seen])
    apart = products[~np.eye(len(seen), dtype=bool)]
    assert np.abs(apart).max() < 5 * steps / np.sqrt(size)


@pytest.mark.parametrize("name", ["local steps", "stochastic"])
def test_chunks_are_the_whole(name):
    attack = attacks.inside(attacks.stochastic_sign_flip(0.8))
    options = {"tx": sfd.sign_sgd(0.02, M), "attack": attack, "sign_error": True}
    whole = rounds(WORKERS[name](loss), **options)[-1]
    chunked = rounds(WORKERS[name](loss), worker_chunk=1, **options)[-1]
    chex.assert_trees_all_equal(whole.params, chunked.params)
    chex.assert_trees_all_close(whole.worker_state, chunked.worker_state, atol=1e-6)


def test_a_traced_rate_is_a_number():
    def sent(rate):
        attack = attacks.inside(attacks.stochastic_sign_flip(rate))
        simulated = sfd.simulation(local(loss), RECORDER, num_workers=M, attack=attack)
        state = simulated.init(jax.random.key(0), PARAMS, LIARS)
        return simulated.step(state, draw(jax.random.key(10)))[0].opt_state

    found = jax.jit(jax.vmap(sent))(jnp.array([0.0, 1.0]))
    for row, attack in enumerate((None, ASCENDING)):
        [expected] = rounds(local(loss), 1, attack=attack)
        ours = jax.tree.map(lambda leaf, row=row: leaf[row], found)
        chex.assert_trees_all_close(ours, expected.opt_state, atol=1e-6)


def test_who_is_absent_is_as_before():
    simulated = sfd.simulation(
        workers.momentum(local(loss)),
        sfd.sign_sgd(0.02, M),
        num_workers=M,
        attack=ASCENDING,
    )
    state = simulated.init(jax.random.key(0), PARAMS, LIARS)
    after, _ = simulated.step(
        state, draw(jax.random.key(1)), present=jnp.arange(M) != 0
    )
    ema = after.worker_state[1].ema["x"]
    assert not ema[0].any()
    assert ema[1].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attacks.inside(attacks.alie()), "no gradient but its own"),
        (lambda: attacks.inside(attacks.label_flip(3)), "enters at the data"),
        (lambda: attacks.inside(ASCENDING), "enters at the inside"),
        (
            lambda: sfd.simulation(
                loss,
                RECORDER,
                num_workers=M,
                attack=attacks.alie()._replace(entry="inside"),
            ),
            "no gradient but its own",
        ),
        (
            lambda: sfd.simulation(
                workers.momentum(
                    workers.Worker(lambda *_: (), lambda key, params, batch, state: 0)
                ),
                RECORDER,
                num_workers=M,
                attack=ASCENDING,
            ),
            "its send takes no corrupt, only key, params, batch, state",
        ),
        (
            lambda: sfd.simulation(
                loss,
                RECORDER,
                num_workers=M,
                attack=ASCENDING._replace(init=lambda num_workers, params: params),
            ).init(jax.random.key(0), PARAMS, LIARS),
            "an attack has no memory",
        ),
        (lambda: check(Experiment(attack="inside:alie")), "no gradient but its own"),
        (lambda: check(Experiment(attack="inside:label_flip")), "enters at the data"),
        (lambda: check(Experiment(attack="inside:invert")), "unknown attack 'invert'"),
    ],
)
def test_what_cannot_enter_there(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_worker_of_ones_own_that_takes_corrupt():
    def send(key, params, batch, state, corrupt=None):
        value, sent = jax.value_and_grad(loss)(params, batch)
        return sent if corrupt is None else corrupt(0, sent), state, value

    own = workers.momentum(workers.Worker(lambda key, params: (), send))
    ours = rounds(own, attack=ASCENDING)
    theirs = rounds(workers.momentum(workers.gradient(loss)), attack=ASCENDING)
    chex.assert_trees_all_equal(ours, theirs)


# By name ------------------------------------------------------------------------------

TINY = Experiment(
    model="softmax_regression",
    num_workers=5,
    num_byzantine=2,
    batch_size=4,
    rounds=4,
    eval_every=4,
    worker="local_steps:1",
)


def tiny(**fields):
    return dataclasses.replace(TINY, **fields)


@pytest.mark.slow
def test_one_step_is_an_inversion_on_the_command_line_too(tmp_path):
    digests = set()
    for attack in ("sign_inversion", "inside", "inside:sign_inversion"):
        config = tiny(attack=attack)
        _, summary = run_experiment(config, tmp_path / attack, progress=False)
        digests.add(summary["params_sha256"])
    assert len(digests) == 1


def test_a_rate_inside_needs_no_program_of_its_own():
    one = tiny(attack="inside:stochastic_sign_flip")
    other = tiny(attack="inside:stochastic_sign_flip", flip_probability=0.8)
    assert program_key(one) == program_key(other)
    check(tiny(attack="inside:stochastic_sign_flip:0.8"))
    check(tiny(attack="inside:attack=scaling:-3"))

"""What workers send: against loops by hand, and in the simulation."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.fft

import signfd_jax as sfd
from signfd_jax import attacks, signs, transforms, workers
from signfd_jax.transforms import cosine

M, N, B = 5, 40, 8
TARGET = jnp.linspace(-1.0, 1.0, N)


def loss(params, batch):  # batch [B, N]
    return jnp.mean(jnp.sum((params["x"][None] - batch) ** 2, axis=1)) / 2


def draw(key):
    return TARGET[None, None] + 0.5 * jax.random.normal(key, (M, B, N))


PARAMS = {"x": jnp.zeros(N)}
GRADIENT = workers.gradient(loss)
LOCAL = workers.local_steps(loss, optax.sgd(0.05, 0.9), 4, keep_state=True)
WORKERS = {
    "gradient": GRADIENT,
    "local steps": LOCAL,
    "momentum": workers.momentum(LOCAL),
    "error feedback": workers.error_feedback(GRADIENT),
    "stochastic": workers.stochastic_signs(GRADIENT, 2.0),
    "dct": workers.dct_top_k(GRADIENT, 3, chunk=8),
    "rsa": workers.rsa(workers.momentum(GRADIENT), 0.05, 0.1),
    "clipped": workers.transformed(LOCAL, optax.clip(0.1)),
    "late": workers.late(GRADIENT, 3),
    "late, drawn": workers.late(workers.momentum(GRADIENT), 2, drawn=True),
}


def trained(worker, rounds=12, *, tx=None, num_byzantine=0, split=(), **options):
    tx = sfd.sign_sgd(0.02, M) if tx is None else tx
    if worker is WORKERS["dct"]:
        tx = optax.chain(sfd.scale_by_sign_decoder(M), transforms.undo_dct(8))
        tx = optax.chain(tx, optax.scale_by_learning_rate(0.02))
    simulated = sfd.simulation(worker, tx, num_workers=M, **options)
    start = jax.jit(simulated.init)
    state = start(jax.random.key(0), PARAMS, jnp.arange(M) < num_byzantine)
    infos = []
    for length in split or (rounds,):
        go = functools.partial(sfd.run, simulated, sample_batch=draw, num_rounds=length)
        go = jax.jit(lambda state, go=go: go(state))
        state, info = go(state)
        infos.append(info)
    return state, jax.tree.map(lambda *parts: jnp.concatenate(parts), *infos)


def test_a_loss_is_a_worker_that_sends_its_gradient():
    chex.assert_trees_all_equal(trained(loss), trained(GRADIENT))


@pytest.mark.slow
def test_one_local_step_is_the_gradient():
    """To the bit, from parameters that are much larger than a step."""
    worker = workers.local_steps(loss, optax.sgd(1e-9), 1)
    (one, one_info), (other, other_info) = trained(worker), trained(GRADIENT)
    chex.assert_trees_all_equal(one.params, other.params)
    chex.assert_trees_all_equal(one_info.weights, other_info.weights)
    large = {"x": jnp.full(N, 1e6)}
    batch = 1e6 + jax.random.normal(jax.random.key(1), (B, N))
    sent = [w.send(None, large, batch, ())[0] for w in (worker, GRADIENT)]
    chex.assert_trees_all_equal(*map(signs.votes, sent))
    assert jnp.all(sent[0]["x"] != 0)


@pytest.mark.parametrize("keep_state", [False, True])
def test_local_steps_by_hand(keep_state):
    """Two rounds of optax in a loop."""
    tx, steps = optax.sgd(0.05, 0.9), 4
    worker = workers.local_steps(loss, tx, steps, keep_state=keep_state)
    params, state = PARAMS, worker.init(jax.random.key(0), PARAMS)
    own = tx.init(params)
    for round in range(2):
        batch = draw(jax.random.key(round))[0]
        sent, state, first = worker.send(jax.random.key(9), params, batch, state)
        here = params
        own = own if keep_state else tx.init(params)
        for h in range(steps):
            part = batch[2 * h : 2 * h + 2]
            value, gradient = jax.value_and_grad(loss)(here, part)
            if h == 0:
                np.testing.assert_allclose(first, value, rtol=1e-6)
            updates, own = tx.update(gradient, own, here)
            here = optax.apply_updates(here, updates)
        moved = jax.tree.map(jnp.subtract, params, here)
        chex.assert_trees_all_close(sent, moved, atol=1e-6)
        params = here


@pytest.mark.slow
def test_momentum_and_feedback_are_those_of_a_chain():
    """A worker's own transformation stands inside, or before the decoder."""
    pairs = [
        (workers.momentum(GRADIENT, 0.8), optax.ema(0.8, debias=False)),
        (workers.error_feedback(GRADIENT), transforms.error_feedback_sign()),
    ]
    for worker, tx in pairs:
        chain = optax.chain(transforms.per_worker(tx, M), sfd.sign_sgd(0.02, M))
        inside, _ = trained(worker)
        before, _ = trained(GRADIENT, tx=chain)
        chex.assert_trees_all_equal(inside.params, before.params)


def test_stochastic_signs_have_the_right_mean_and_a_key_of_their_own():
    value = jnp.array([-3.0, -0.5, 0.0, 1.0, jnp.nan])
    worker = workers.stochastic_signs(workers.gradient(lambda x, b: x @ b), 2.0)
    keys = jax.random.split(jax.random.key(2), 20_000)
    send = jax.vmap(lambda key: worker.send(key, jnp.ones(5), value, ())[0])
    sent = send(keys)
    assert np.isnan(sent[:, 4]).all()
    mean = sent[:, :4].mean(0)
    np.testing.assert_allclose(mean, [-1, -0.25, 0, 0.5], atol=5 / np.sqrt(20_000))


@pytest.mark.parametrize("drawn", [False, True])
def test_late_is_a_list_of_what_was_sent(drawn):
    inner = workers.momentum(workers.stochastic_signs(GRADIENT))
    worker = workers.late(inner, 3, drawn=drawn)
    init = jax.jit(worker.init)
    states = [init(key, PARAMS) for key in jax.random.split(jax.random.key(1), 40)]
    lags = [int(state.lag) for state in states]
    assert set(lags) == ({0, 1, 2, 3} if drawn else {3})
    send, now = jax.jit(worker.send), jax.jit(inner.send)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    for lag in set(lags):
        state, made = states[lags.index(lag)], []
        own = state.worker
        for round in range(9):
            key, batch_key = jax.random.split(jax.random.key(round))
            params = jax.tree.map(lambda x, t=round: x + t, PARAMS)
            batch = draw(batch_key)[0]
            fresh, own, loss_now = now(key, params, batch, own)
            made.append(fresh)
            arrived, state, loss_late = send(key, params, batch, state)
            due = made[round - lag] if round >= lag else zeros
            chex.assert_trees_all_equal(arrived, due)
            assert loss_late == loss_now
        chex.assert_trees_all_equal(state.worker, own)


def test_delays_are_drawn_with_equal_probability():
    """Of 4,000 workers, for each of four lags; five standard errors."""
    worker = workers.late(GRADIENT, 3, drawn=True)
    keys = jax.random.split(jax.random.key(0), 4_000)
    lags = jax.vmap(lambda key: worker.init(key, PARAMS).lag)(keys)
    shares = np.bincount(lags, minlength=4) / 4_000
    np.testing.assert_allclose(shares, 0.25, atol=5 * np.sqrt(0.25 * 0.75 / 4_000))


def test_who_is_not_late_is_the_worker():
    assert workers.late(GRADIENT, 0) is GRADIENT
    assert workers.late(LOCAL, 0, drawn=True) is LOCAL


# The cosine basis ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "sides"), [((12,), (6,)), ((6, 10), (6, 5)), ((2, 3, 7, 16), (7, 8))]
)
def test_dct_of_blocks_by_scipy(shape, sides):
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    chunk = max(sides)
    found = np.asarray(cosine.dct(jnp.asarray(array), chunk))
    expected = np.empty_like(array)
    kept = np.zeros_like(array)
    rows = range(0, shape[-2] if len(sides) == 2 else 1, sides[0])
    for lead in np.ndindex(*shape[: -len(sides)]):
        for row in rows if len(sides) == 2 else [None]:
            for column in range(0, shape[-1], sides[-1]):
                block = (*lead, slice(column, column + sides[-1]))
                if row is not None:
                    last = slice(column, column + sides[-1])
                    block = (*lead, slice(row, row + sides[0]), last)
                expected[block] = scipy.fft.dctn(array[block], norm="ortho")
                least = np.sort(np.abs(array[block]).ravel())[-3]
                kept[block] = np.where(np.abs(array[block]) >= least, array[block], 0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(
        cosine.inverse_dct(jnp.asarray(expected), chunk), array, atol=1e-5
    )
    largest = cosine.keep_largest(jnp.asarray(array), 3, chunk)
    np.testing.assert_array_equal(largest, kept)


def test_dct_top_k_loses_nothing():
    """What was sent and what is kept add up to all gradients, decay aside."""
    worker = workers.dct_top_k(GRADIENT, 2, chunk=8, decay=1.0)
    state, total, gone = worker.init(jax.random.key(0), PARAMS), 0.0, 0.0
    for round in range(6):
        batch = draw(jax.random.key(round))[0]
        sent, state, _ = worker.send(jax.random.key(9), PARAMS, batch, state)
        total = total + jax.grad(loss)(PARAMS, batch)["x"]
        gone = gone + cosine.inverse_dct(sent["x"], 8)
        assert np.count_nonzero(sent["x"]) == 2 * N / 8
    np.testing.assert_allclose(gone + state[1]["x"], total, atol=1e-4)


def test_the_published_rule():
    """Mean of the signs that were sent, inverse transform, sign: to the bit."""
    tx = optax.chain(
        transforms.scale_by_mean_vote(M, sfd.majority_vote()), transforms.undo_dct(8)
    )
    rng = np.random.default_rng(1)
    sent = rng.normal(size=(M, 16, 24)).astype(np.float32)
    sent *= rng.random(sent.shape) < 0.3
    updates, _ = tx.update(jnp.asarray(sent), tx.init(jnp.zeros((16, 24))))
    counts = np.maximum((sent != 0).sum(0), 1).astype(np.float32)
    mean = np.sign(sent).sum(0) / counts
    expected = jnp.sign(cosine.inverse_dct(jnp.asarray(mean), 8))
    np.testing.assert_array_equal(updates, expected)
    blocks = mean.reshape(2, 8, 3, 8).swapaxes(1, 2)
    by_scipy = scipy.fft.idctn(blocks, axes=(-2, -1), norm="ortho")
    by_scipy = by_scipy.swapaxes(1, 2).reshape(16, 24)
    clear = np.abs(by_scipy) > 1e-5  # else rounding decides
    np.testing.assert_array_equal(np.sign(by_scipy)[clear], np.asarray(updates)[clear])


def test_mean_vote_by_hand():
    """Weights of either sign, abstentions, an absent worker, nobody at all."""
    gradients = jnp.array([[1.0, 0.0, 2.0], [-1.0, 0.0, 3.0], [4.0, 0.0, -1.0]])
    tx = transforms.scale_by_mean_vote(3, sfd.oracle(jnp.array([0.1, 0.2, 0.7])))
    present = jnp.array([True, True, False])
    means, state = tx.update(gradients, tx.init(jnp.zeros(3)), present=present)
    w = np.asarray(state.info.weights)
    by_hand = [(w[0] - w[1]) / (w[0] + w[1]), 0.0, 1.0]
    np.testing.assert_allclose(means, by_hand, rtol=1e-6)


def test_mean_vote_of_all_workers_by_hand():
    """Who abstains, or is absent, counts as a vote of 0."""
    gradients = jnp.array([[1.0, 0.0, 2.0], [-1.0, 0.0, 3.0], [4.0, 0.0, -1.0]])
    decoder = sfd.oracle(jnp.array([0.1, 0.2, 0.7]))
    tx = transforms.scale_by_mean_vote(3, decoder, abstentions=True)
    present = jnp.array([True, True, False])
    means, state = tx.update(gradients, tx.init(jnp.zeros(3)), present=present)
    w = np.asarray(state.info.weights)
    by_hand = np.array([w[0] - w[1], 0.0, w[0] + w[1]]) / np.abs(w).sum()
    np.testing.assert_allclose(means, by_hand, rtol=1e-6)


# Models of the workers' own -----------------------------------------------------------


def naive_rsa(batches, rate, penalty, decay, liars):
    """The paper's two updates, worker by worker; who lies sends the opposite."""
    server, models, shown = np.zeros(N), np.zeros((M, N)), []
    for batch in batches:
        pull = decay * server  # the gradient of f_0
        for m in range(M):
            vote = np.sign(server - models[m])
            pull = pull + penalty * (-vote if m in liars else vote)
        for m in range(M):
            own = models[m] - batch[m].mean(0)
            models[m] = models[m] - rate * (own + penalty * np.sign(models[m] - server))
        server = server - rate * pull
        shown.append((server, models.copy()))
    return shown


def test_rsa_is_the_published_loop():
    rate, penalty, decay = 0.05, 0.3, 0.2
    tx = optax.chain(
        transforms.scale_by_mean_vote(M, sfd.majority_vote(), abstentions=True),
        optax.add_decayed_weights(decay / (penalty * M)),
        optax.scale_by_learning_rate(rate * penalty * M),
    )
    simulated = sfd.simulation(
        workers.rsa(GRADIENT, rate, penalty),
        tx,
        num_workers=M,
        attack=attacks.sign_inversion(),
    )
    state = simulated.init(jax.random.key(0), PARAMS, jnp.arange(M) < 2)
    step = jax.jit(simulated.step)
    batches = [draw(jax.random.key(round)) for round in range(20)]
    expected = naive_rsa(np.asarray(batches), rate, penalty, decay, liars=(0, 1))
    for batch, (server, models) in zip(batches, expected, strict=True):
        state, _ = step(state, batch)
        np.testing.assert_allclose(state.params["x"], server, atol=1e-5)
        np.testing.assert_allclose(state.worker_state[1]["x"], models, atol=1e-5)


def test_workers_of_rsa_agree_where_the_penalty_is_large_enough():
    """On unlike data, with exact gradients: on the mean of their data, within steps."""
    rate, penalty = 0.01, 3.0
    tx = transforms.scale_by_mean_vote(M, sfd.majority_vote(), abstentions=True)
    tx = optax.chain(tx, optax.scale_by_learning_rate(rate * penalty * M))
    worker = workers.rsa(GRADIENT, rate, penalty)
    simulated = sfd.simulation(worker, tx, num_workers=M)
    state = simulated.init(jax.random.key(0), PARAMS, jnp.zeros(M, bool))
    data = jax.random.normal(jax.random.key(1), (M, 1, N))
    go = functools.partial(sfd.run, simulated, num_rounds=500)
    state, _ = jax.jit(lambda state: go(state, lambda key: data))(state)
    own = np.asarray(state.worker_state[1]["x"])
    step = rate * penalty * M
    assert np.abs(own - np.asarray(state.params["x"])).max() < 2 * step
    mean = np.asarray(data).mean((0, 1))
    assert np.abs(own.mean(0) - mean).max() < 2 * step


# In the simulation --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["momentum", "dct"])
@pytest.mark.slow
def test_scanned_is_split_and_the_state_rides_along(name):
    whole = trained(WORKERS[name], split=(12,))
    chex.assert_trees_all_equal(whole, trained(WORKERS[name], split=(5, 7)))
    state, info = whole
    for leaf in jax.tree.leaves(state.worker_state):
        assert leaf.shape[0] == M
    assert jnp.all(jnp.isfinite(info.loss))
    assert info.loss[-1] < info.loss[0]


QUICK = ("local steps", "stochastic")
EVERY = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in WORKERS
]


@pytest.mark.parametrize("name", EVERY)
def test_chunks_are_the_whole(name):
    options = {"num_byzantine": 2, "attack": attacks.sign_inversion()}
    whole, infos = trained(WORKERS[name], **options)
    chunked, chunked_infos = trained(WORKERS[name], worker_chunk=1, **options)
    chex.assert_trees_all_equal(whole.params, chunked.params)
    chex.assert_trees_all_equal(infos.weights, chunked_infos.weights)
    chex.assert_trees_all_close(whole.worker_state, chunked.worker_state, atol=1e-6)


def test_workers_draw_by_keys_of_their_own():
    """The same batch for all: stochastic signs differ between workers and rounds."""
    worker = workers.stochastic_signs(workers.gradient(lambda x, b: jnp.sum(x * b)))
    seen = []
    recording = optax.GradientTransformation(
        lambda params: jnp.zeros((M, N)),
        lambda sent, state, params: (sent.sum(0), sent),
    )
    simulated = sfd.simulation(worker, recording, num_workers=M)
    state = simulated.init(jax.random.key(0), jnp.zeros(N), jnp.zeros(M, bool))
    for _ in range(2):
        state, _ = simulated.step(state, jnp.zeros((M, N)))
        seen += list(np.asarray(state.opt_state))
    assert len({row.tobytes() for row in seen}) == 2 * M


def test_who_is_absent_keeps_its_state():
    worker = workers.momentum(GRADIENT)
    simulated = sfd.simulation(worker, sfd.sign_sgd(0.02, M), num_workers=M)
    state = simulated.init(jax.random.key(0), PARAMS, jnp.zeros(M, bool))
    present = jnp.arange(M) != 2
    after, _ = simulated.step(state, draw(jax.random.key(1)), present=present)
    moved = jax.tree.map(
        lambda a, b: jnp.any(a != b, axis=1),
        *(s.worker_state[1].ema["x"] for s in (state, after)),
    )
    np.testing.assert_array_equal(moved, present)


def test_nothing_arrives_while_a_worker_is_absent():
    """It goes on where it was: the rounds of its absence are as if they had not been.

    Worker 2 is away for three rounds, and what it sent before them arrives after them.
    """
    arrived = []
    recording = optax.GradientTransformation(
        lambda params: jnp.zeros((M, N)),
        lambda sent, state, params: (sent.sum(0), sent),
    )
    worker = workers.late(workers.gradient(lambda x, b: jnp.sum(x * b)), 2)
    simulated = sfd.simulation(worker, recording, num_workers=M, sign_error=False)
    state = simulated.init(jax.random.key(0), jnp.zeros(N), jnp.zeros(M, bool))
    step = jax.jit(simulated.step)
    for round in range(8):
        present = (jnp.arange(M) != 2) | (round not in (3, 4, 5))
        batch = jnp.full((M, N), 1.0 + round)
        state, _ = step(state, batch, present=present)
        arrived.append(np.asarray(state.opt_state)[:, 0])
    arrived = np.array(arrived)
    np.testing.assert_array_equal(arrived[:, 0], [0, 0, 1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(arrived[[0, 1, 2, 6, 7], 2], [0, 0, 1, 2, 3])


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.slow
def test_late_inverters_gain_nothing(drawn):
    """Weights as of those who are in time, from the second round after the delay on."""
    many, size, delay = 9, 1000, 3
    target = jnp.linspace(-1.0, 1.0, size)
    worker = workers.gradient(lambda x, b: jnp.sum((x - b) ** 2) / 2)
    simulated = sfd.simulation(
        workers.late(worker, delay, drawn=drawn),
        sfd.sign_sgd(0.01, many),
        num_workers=many,
        attack=attacks.sign_inversion(),
    )
    byzantine = jnp.arange(many) < 4

    def sample(key):
        return target[None] + 0.5 * jax.random.normal(key, (many, size))

    @jax.jit
    def go(key):
        state = simulated.init(key, jnp.zeros(size), byzantine)
        return sfd.run(simulated, state, sample, 120)

    state, infos = go(jax.random.key(0))
    right = np.where(np.asarray(byzantine), -1, 1)
    settled = infos.weights[delay + 1 :]
    np.testing.assert_array_equal(settled, np.tile(right, (len(settled), 1)))
    assert jnp.mean(jnp.abs(state.params - target)) < 0.1


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.slow
def test_inverters_are_read_backwards_to_the_end(steps):
    """Seven of fifteen, whose local steps leave little noise in what they send."""
    many, size, rounds = 15, 2000, 80
    target = jnp.linspace(-1.0, 1.0, size)

    def loss(params, batch):
        return jnp.mean(jnp.sum((params[None] - batch) ** 2, axis=1)) / 2

    worker = workers.local_steps(loss, optax.sgd(0.1), steps)
    simulated = sfd.simulation(
        worker,
        sfd.sign_sgd(0.01, many),
        num_workers=many,
        attack=attacks.sign_inversion(),
    )
    byzantine = jnp.arange(many) < 7

    def sample(key):
        noise = jax.random.normal(key, (many, steps, size))
        return target[None, None] + 2.0 * noise

    @jax.jit
    def go(key):
        state = simulated.init(key, jnp.zeros(size), byzantine)
        return sfd.run(simulated, state, sample, rounds)

    state, infos = go(jax.random.key(0))
    assert jnp.all(infos.weights[10:, :7] < 0)
    assert jnp.all(infos.weights[10:, 7:] > 0)
    assert jnp.mean(jnp.abs(state.params - target)) < 0.1


def test_steps_that_do_not_divide_the_batch():
    worker = workers.local_steps(loss, optax.sgd(0.1), 3)
    with pytest.raises(ValueError, match="num_steps=3 must divide"):
        worker.send(None, PARAMS, jnp.zeros((B, N)), ())

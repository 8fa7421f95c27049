"""One round, many rounds, and what a round shows."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import OPTIMISED

import signfd_jax as sfd
from signfd_jax import attacks, signs, simulate
from signfd_jax.attacks import Attack
from signfd_jax.transforms import scale_by_sign_decoder

M, B, D = 5, 3, 8
BYZANTINE = jnp.array([True, False, False, True, False])
TARGET = jnp.asarray(np.random.default_rng(0).normal(size=D), jnp.float32)


def loss_fn(params, batch):
    """Least squares; the batch is inputs [B, D] and what they should give [B]."""
    inputs, outputs = batch
    return jnp.mean((inputs @ params["w"] + params["b"] - outputs) ** 2)


def sample_batch(key):
    input_key, noise_key = jax.random.split(key)
    inputs = jax.random.uniform(input_key, (M, B, D), minval=-2, maxval=2)
    noise = jax.random.uniform(noise_key, (M, B), minval=-1, maxval=1)
    return inputs, inputs @ TARGET + noise


PARAMS = {"w": jnp.zeros(D), "b": jnp.zeros(())}
gradients_of = jax.jit(jax.vmap(jax.grad(loss_fn), in_axes=(None, 0)))


def quick(attack=None, tx=None, **options):
    tx = sfd.sign_sgd_fd(0.05, M, initial_rounds=None) if tx is None else tx
    return sfd.simulation(loss_fn, tx, num_workers=M, attack=attack, **options)


def start(simulation, key, byzantine=BYZANTINE):
    return simulation.init(key, PARAMS, byzantine)


def with_keys_as_data(state):
    return state._replace(key=jax.random.key_data(state.key))


def assert_same(one, other):
    chex.assert_trees_all_equal(with_keys_as_data(one), with_keys_as_data(other))


def assert_same_but_sign_error(one, other):
    error = optax.tree.get(other.opt_state, "sign_error")
    opt_state = optax.tree.set(one.opt_state, sign_error=error)
    assert_same(one._replace(opt_state=opt_state), other)


@functools.cache
def runner(simulation, num_rounds):
    return jax.jit(lambda state: sfd.run(simulation, state, sample_batch, num_rounds))


ATTACKS = {
    "inversion": attacks.sign_inversion(),
    "flips": attacks.stochastic_sign_flip(0.5),
}


@pytest.mark.parametrize("name", ["per coordinate", "majority"])
def test_scan_equals_loop(name, key):
    simulation = {
        "per coordinate": lambda: quick(tx=sfd.sign_sgd_fd(0.05, M, initial_rounds=3)),
        "majority": lambda: quick(ATTACKS["flips"], sfd.sign_sgd_mv(0.05, M)),
    }[name]()
    scanned, infos = runner(simulation, 6)(start(simulation, key))

    @jax.jit
    def round_(state):
        key, batch_key = jax.random.split(state.key)
        return simulation.step(state._replace(key=key), sample_batch(batch_key))

    state = start(simulation, key)
    for t in range(6):
        assert int(state.round) == t
        state, info = round_(state)
        chex.assert_trees_all_close(
            info, jax.tree.map(lambda leaf, t=t: leaf[t], infos), rtol=1e-5, atol=1e-6
        )
    chex.assert_trees_all_close(
        with_keys_as_data(state), with_keys_as_data(scanned), rtol=1e-5, atol=1e-6
    )


def test_two_runs_of_ten_rounds_are_one_of_twenty(key):
    simulation = quick(ATTACKS["flips"])
    half, first = runner(simulation, 10)(start(simulation, key))
    end, second = runner(simulation, 10)(half)
    whole, infos = runner(simulation, 20)(start(simulation, key))
    assert_same(end, whole)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)
    chex.assert_trees_all_equal(both, infos)
    assert infos.loss.shape == (20,) and infos.weights.shape == (20, M)


def test_vmap_over_seeds_is_every_seed_alone():
    simulation = quick(ATTACKS["flips"])

    def train(key):
        state = simulation.init(key, PARAMS, BYZANTINE)
        return sfd.run(simulation, state, sample_batch, 8)

    keys = jax.random.split(jax.random.key(3), 3)
    together, infos = jax.jit(jax.vmap(train))(keys)
    alone = [jax.jit(train)(key) for key in keys]
    for index, (state, info) in enumerate(alone):
        pick = lambda leaf, index=index: leaf[index]  # noqa: E731
        chex.assert_trees_all_close(
            jax.tree.map(pick, (together.params, infos)),
            (state.params, info),
            rtol=1e-4,
            atol=1e-5,
        )
    assert not np.allclose(alone[0][0].params["w"], alone[1][0].params["w"])


def test_vmap_over_learning_rates_and_strengths_is_each_alone(key):
    """What a program reads as a number may be an axis; so may the number of liars."""

    def train(learning_rate, flip_probability, num_byzantine):
        tx = sfd.sign_sgd_fd(learning_rate, M, initial_rounds=None)
        simulation = quick(attacks.stochastic_sign_flip(flip_probability), tx)
        state = simulation.init(key, PARAMS, jnp.arange(M) < num_byzantine)
        return sfd.run(simulation, state, sample_batch, 8)[0].params

    rates, strengths = jnp.array([0.01, 0.05]), jnp.array([0.0, 0.5, 1.0])
    over_liars = jax.vmap(train, (None, None, 0))
    over_strengths = jax.vmap(over_liars, (None, 0, None))
    grid = jax.vmap(over_strengths, (0, None, None))
    together = jax.jit(grid)(rates, strengths, jnp.array([1, 2]))
    assert together["w"].shape == (2, 3, 2, D)
    alone = jax.jit(train)
    for i, j, k in np.ndindex(2, 3, 2):
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, at=(i, j, k): leaf[at], together),
            alone(rates[i], strengths[j], k + 1),
            rtol=1e-4,
            atol=1e-5,
        )


def test_it_learns_under_attack(key):
    """One of five inverts; the noise leaves a mean loss of 1/3."""
    simulation, liar = quick(ATTACKS["inversion"]), jnp.arange(M) == 3
    state, infos = runner(simulation, 200)(start(simulation, key, liar))
    np.testing.assert_allclose(state.params["w"], TARGET, atol=0.3)
    assert infos.loss[:5].mean() > 2 and infos.loss[-50:].mean() < 0.7
    np.testing.assert_array_equal(infos.crossover[-1] > 0.5, liar)


def recorder():
    """A server that keeps the gradients that it is sent, and moves nothing."""

    def update(updates, state, params=None, **extra_args):
        del state, params, extra_args
        return jax.tree.map(lambda g: 0 * g[0], updates), {"sent": updates}

    def init(params):
        rows = jax.tree.map(lambda p: jnp.zeros((M, *p.shape), p.dtype), params)
        return {"sent": rows}

    return optax.GradientTransformationExtraArgs(init, update)


def sent_and_honest(attack, key, batch=None, **options):
    simulation = quick(attack, recorder(), **options)
    batch = sample_batch(jax.random.key(7)) if batch is None else batch
    state, info = jax.jit(simulation.step)(start(simulation, key), batch)
    honest = gradients_of(PARAMS, batch)
    return state.opt_state["sent"], honest, info


def test_honest_rows_reach_the_server_as_they_are(key):
    lying = np.asarray(BYZANTINE)
    for attack in (attacks.gaussian(3.0), attacks.sign_inversion()):
        sent, honest, _ = sent_and_honest(attack, key)
        for s, h in zip(jax.tree.leaves(sent), jax.tree.leaves(honest), strict=True):
            np.testing.assert_allclose(s[~lying], h[~lying], rtol=1e-5)
            assert not np.any(np.isclose(s[lying], h[lying], rtol=1e-3))
    for s, h in zip(jax.tree.leaves(sent), jax.tree.leaves(honest), strict=True):
        np.testing.assert_allclose(s[lying], -h[lying], rtol=1e-5)


def classifier_loss(params, batch):
    inputs, labels = batch
    logits = inputs @ params["w"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def test_label_flip_enters_the_data(key):
    params = {"w": jnp.zeros((D, 4))}
    inputs = jax.random.normal(jax.random.key(1), (M, B, D))
    labels = jax.random.randint(jax.random.key(2), (M, B), 0, 4)
    simulation = sfd.simulation(
        classifier_loss, recorder(), num_workers=M, attack=attacks.label_flip(4)
    )
    state = simulation.init(key, params, BYZANTINE)
    state, info = jax.jit(simulation.step)(state, (inputs, labels))
    flipped = jnp.where(BYZANTINE[:, None], 3 - labels, labels)
    grads = jax.jit(jax.vmap(jax.value_and_grad(classifier_loss), in_axes=(None, 0)))
    losses, expected = grads(params, (inputs, flipped))
    np.testing.assert_allclose(
        state.opt_state["sent"]["w"], expected["w"], rtol=1e-5, atol=1e-6
    )
    assert float(info.loss) == pytest.approx(
        float(jnp.mean(losses[~np.asarray(BYZANTINE)])), rel=1e-5
    )


def test_loss_is_the_mean_of_the_honest_present_workers(key):
    batch = sample_batch(jax.random.key(7))
    simulation = quick(ATTACKS["inversion"])
    losses = jax.vmap(loss_fn, in_axes=(None, 0))(PARAMS, batch)
    step, state = jax.jit(simulation.step), start(simulation, key)
    _, info = step(state, batch)
    assert float(info.loss) == pytest.approx(float(losses[jnp.array([1, 2, 4])].mean()))
    present = jnp.array([True, True, False, True, False])
    after, info = step(state, batch, present)
    assert float(info.loss) == pytest.approx(float(losses[1]))
    decoder_state = optax.tree.get(after.opt_state, "decoder_state")
    np.testing.assert_array_equal(decoder_state.fd_evidence > 0, present)


def test_membership_decides_who_lies_and_who_is_there(key):
    asked = []

    def membership(key, byzantine, round):
        assert key.shape == () and round.dtype == jnp.int32
        asked.append(byzantine.shape)
        lies = jnp.roll(byzantine, round)
        return lies, jnp.arange(M) != round

    simulation = quick(ATTACKS["inversion"], recorder(), membership=membership)
    batch = sample_batch(jax.random.key(7))
    honest = jax.vmap(jax.grad(loss_fn), in_axes=(None, 0))(PARAMS, batch)["b"]
    state = start(simulation, key)
    step = jax.jit(simulation.step)
    for t in range(3):
        state, info = step(state, batch)
        lies = np.roll(np.asarray(BYZANTINE), t)
        np.testing.assert_allclose(
            state.opt_state["sent"]["b"], np.where(lies, -honest, honest), rtol=1e-5
        )
        np.testing.assert_array_equal(state.byzantine, BYZANTINE)
        losses = jax.vmap(loss_fn, in_axes=(None, 0))(PARAMS, batch)
        counted = ~lies & (np.arange(M) != t)
        assert float(info.loss) == pytest.approx(float(losses[counted].mean()))
    assert asked == [(M,)]  # Traced once.
    # A worker must be there for both: the membership, and the caller.
    simulation = quick(None, membership=membership)
    after, _ = jax.jit(simulation.step)(
        start(simulation, key), batch, jnp.arange(M) != 3
    )
    heard = optax.tree.get(after.opt_state, "decoder_state").fd_evidence > 0
    np.testing.assert_array_equal(heard, [False, True, True, False, True])


def spy_decoder():
    """A majority vote that keeps the votes it saw."""
    majority = sfd.majority_vote()

    def decode(state, votes, axis_name=None):
        decoded, inner, info = majority.decode(state[0], votes, axis_name)
        return decoded, (inner, votes), info

    def init(num_workers, params):
        votes = jax.tree.map(
            lambda p: jnp.zeros((num_workers, *p.shape), jnp.int8), params
        )
        return majority.init(num_workers, params), votes

    return sfd.Decoder(init, decode, lambda state: majority.weights(state[0]))


@pytest.mark.parametrize("wire", ["ternary", "one_bit"])
def test_wire(wire, key):
    tx = optax.chain(scale_by_sign_decoder(M, spy_decoder()), optax.scale(-0.01))
    simulation = quick(None, tx, wire=wire)
    inputs, outputs = sample_batch(jax.random.key(7))
    inputs = inputs.at[:, :, ::2].set(0)  # Half of the inputs are dead.
    state = start(simulation, key)
    step = jax.jit(simulation.step)
    for t in range(2):
        before = state.params
        state, _ = step(state, (inputs, outputs))
        _, votes = optax.tree.get(state.opt_state, "decoder_state")
        gradients = gradients_of(before, (inputs, outputs))
        expected = sfd.votes(gradients)
        assert np.all(expected["w"][:, ::2] == 0)
        if wire == "one_bit":
            expected = signs.to_wire(expected, t)
            assert set(np.unique(votes["w"])) == {-1, 1}
        chex.assert_trees_all_equal(votes, expected)
    moved = np.asarray(state.params["w"] != before["w"])
    assert np.all(moved) if wire == "one_bit" else not np.any(moved[::2])


def test_an_absent_worker_sends_no_bit(key):
    tx = scale_by_sign_decoder(M, spy_decoder())
    simulation = quick(None, tx, wire="one_bit")
    present = jnp.array([True, True, False, True, True])
    batch = sample_batch(jax.random.key(7))
    step = jax.jit(simulation.step)
    state, _ = step(start(simulation, key), batch, present)
    _, votes = optax.tree.get(state.opt_state, "decoder_state")
    np.testing.assert_array_equal(
        jnp.abs(votes["w"]).sum(axis=1), D * np.asarray(present)
    )


def test_a_server_without_decoder_has_nothing_to_show(key):
    mean = optax.stateless(lambda g, _: jax.tree.map(lambda x: x.mean(axis=0), g))
    simulation = quick(ATTACKS["inversion"], optax.chain(mean, optax.sgd(0.1)))
    state, infos = runner(simulation, 3)(start(simulation, key))
    assert infos[1:5] == (None,) * 4
    assert np.all(np.isfinite(infos.loss))
    assert float(jnp.abs(state.params["w"]).max()) > 0


@pytest.mark.parametrize("repeats", [1, simulate._LONG // 4 + 1])
def test_sign_error_by_hand(key, repeats):
    """Three workers in four coordinates; the attacker takes the majority in one.

    What it found in the last is not a number.
    """

    def linear(params, batch):
        return jnp.sum(params * batch)

    simulation = sfd.simulation(
        linear,
        sfd.sign_sgd_mv(0.1, 3),
        num_workers=3,
        attack=attacks.sign_inversion(),
    )
    params = jnp.zeros(4 * repeats)
    state = simulation.init(key, params, jnp.array([True, False, False]))
    #               inverted: -1, -1, 0, no vote      mean honest sign: +, +, 0, +
    batch = jnp.array(
        [[1.0, 1.0, 0.0, jnp.nan], [1.0, 3.0, 0.0, 1.0], [1.0, -1.0, 0.0, 1.0]]
    )
    state, info = jax.jit(simulation.step)(state, jnp.tile(batch, repeats))
    # Votes: -++, -+-, 000, 0++; decoded +, -, tie, +. The third has no honest sign.
    np.testing.assert_allclose(state.params, np.tile([-0.1, 0.1, 0.0, -0.1], repeats))
    assert float(info.sign_error) == pytest.approx(1 / 3)
    np.testing.assert_array_equal(info.weights, np.ones(3))


@pytest.mark.parametrize("worker_chunk", [None, 2])
def test_without_the_sign_error_all_else_is_the_same(worker_chunk, key):
    options = {"attack": ATTACKS["flips"], "worker_chunk": worker_chunk}
    decoder = CHUNKABLE["majority"]()
    state, infos = trained_by_indices(decoder, key, **options)
    bare, without = trained_by_indices(decoder, key, sign_error=False, **options)
    assert np.all(np.isfinite(infos.sign_error))
    assert without.sign_error is None
    assert_same_but_sign_error(bare, state)
    chex.assert_trees_all_equal(without._replace(sign_error=infos.sign_error), infos)


def test_an_attack_sees_the_server_and_remembers(key):
    """Each round it sends its own memory, which it then replaces by the round."""

    def apply(key, values, byzantine, context, state):
        assert context.decoder_state.fd_agreement.shape == (M,)
        theirs = jax.tree.map(lambda v: jnp.full_like(v, state), values)
        sent = attacks.replace_rows(byzantine, theirs, values)
        return sent, context.round + 10

    attack = Attack(lambda num_workers, params: jnp.int32(-1), apply)
    simulation = quick(attack)
    state, step = start(simulation, key), jax.jit(simulation.step)
    for t in range(2):
        state, _ = step(state, sample_batch(jax.random.key(t)))
        assert int(state.attack_state) == t + 10


def test_the_state_can_be_donated(key):
    simulation = quick(ATTACKS["flips"])
    step = jax.jit(simulation.step, donate_argnums=0, keep_unused=True)
    params = jax.tree.map(jnp.copy, PARAMS)
    state = simulation.init(key, params, jnp.copy(BYZANTINE))
    state = state._replace(key=jax.random.clone(key))
    infos = []
    for t in range(3):
        state, info = step(state, sample_batch(jax.random.key(t)))
        infos.append(info)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(infos))


def test_refusals(key):
    with pytest.raises(ValueError, match="wire must be one of ternary, one_bit"):
        quick(wire="morse")
    simulation = quick()
    with pytest.raises(ValueError, match=r"mask of 5 workers.*\(4,\)"):
        simulation.init(key, PARAMS, jnp.zeros(4, bool))
    state = start(simulation, key)
    inputs, outputs = sample_batch(key)
    with pytest.raises(ValueError, match=r"\[1\] has shape \(3,\).*the 5 workers"):
        simulation.step(state, (inputs, outputs[0]))
    with pytest.raises(ValueError, match=r"shape \(\)"):
        simulation.step(state, (inputs, jnp.float32(1)))


CHUNKABLE = {
    "majority": lambda: sfd.majority_vote(),
    "pooled": lambda: sfd.federated_defense(initial_rounds=None),
    "counters": lambda: sfd.federated_defense(initial_rounds=1),
    "correlation": lambda: sfd.correlation_defense(sample=6),
}
CHUNK_M = 6
EXAMPLES = jax.random.uniform(jax.random.key(7), (50, D), minval=-2, maxval=2)


def lookup(indices):
    inputs = EXAMPLES[indices]
    return inputs, inputs @ TARGET + 0.5


def trained_by_indices(decoder, key, compiler_options=None, **options):
    """Four rounds of six workers whose batches are indices."""
    simulation = sfd.simulation(
        loss_fn,
        sfd.sign_sgd(0.05, CHUNK_M, decoder=decoder),
        num_workers=CHUNK_M,
        membership=attacks.drop_out(0.2),
        lookup=lookup,
        **options,
    )
    state = simulation.init(key, PARAMS, jnp.arange(CHUNK_M) < 2)
    draw = lambda key: jax.random.randint(key, (CHUNK_M, B), 0, len(EXAMPLES))  # noqa: E731
    train = jax.jit(
        lambda state: sfd.run(simulation, state, draw, 4),
        compiler_options=compiler_options,
    )
    return train(state)


@pytest.mark.parametrize(
    ("decoder", "wire"),
    [
        ("majority", "one_bit"),
        pytest.param("correlation", "ternary", marks=pytest.mark.slow),
        pytest.param("majority", "ternary", marks=pytest.mark.slow),
        pytest.param("pooled", "ternary", marks=pytest.mark.slow),
        pytest.param("pooled", "one_bit", marks=pytest.mark.slow),
        pytest.param("correlation", "one_bit", marks=pytest.mark.slow),
    ],
)
def test_chunks_are_the_whole_bit_for_bit(decoder, wire, key):
    """Also where the attackers draw at random, and workers are absent."""
    options = {"attack": ATTACKS["flips"], "wire": wire, "compiler_options": OPTIMISED}
    whole, infos = trained_by_indices(CHUNKABLE[decoder](), key, **options)
    state, chunked = trained_by_indices(
        CHUNKABLE[decoder](), key, worker_chunk=2, **options
    )
    # Only the honest mean loss and gradient are summed in another order.
    assert_same_but_sign_error(state, whole)
    exact = lambda info: (info.weights, info.crossover, info.margin)  # noqa: E731
    chex.assert_trees_all_equal(exact(chunked), exact(infos))
    np.testing.assert_allclose(chunked.loss, infos.loss, rtol=1e-6)
    np.testing.assert_allclose(chunked.sign_error, infos.sign_error, atol=0.2)
    assert not np.array_equal(whole.params["w"], PARAMS["w"])


ROW_WISE = {
    "gaussian": attacks.gaussian(),
    "noise": attacks.additive_noise(2.0),
    "random vote": attacks.random_vote(),
    "on and off": attacks.on_off(2, 0.5, attacks.stochastic_sign_flip(0.5)),
    "zero": attacks.zero(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROW_WISE)
def test_every_row_wise_attack_is_the_same_in_chunks(name, key):
    whole, _ = trained_by_indices(sfd.majority_vote(), key, attack=ROW_WISE[name])
    chunked, _ = trained_by_indices(
        sfd.majority_vote(), key, attack=ROW_WISE[name], worker_chunk=3
    )
    chex.assert_trees_all_equal(chunked.params, whole.params)


def test_a_row_wise_attacker_draws_of_its_own(key):
    """Two workers of equal gradients send different noise."""
    batch = jax.tree.map(lambda x: x[:1].repeat(M, 0), sample_batch(key))
    sent, _, _ = sent_and_honest(attacks.random_vote(), key, batch)
    assert len(np.unique(sent["w"][np.asarray(BYZANTINE)], axis=0)) > 1


def test_memory_of_chunks_is_that_of_the_bits():
    """Temporaries of M N / 4 bytes and of one chunk's gradients, not of all of them."""
    num_workers, size = 512, 1024

    def temporaries(worker_chunk):
        simulation = sfd.simulation(
            lambda x, noise: jnp.sum((x - noise) ** 2),
            sfd.sign_sgd_mv(0.1, num_workers),
            num_workers=num_workers,
            worker_chunk=worker_chunk,
            lookup=lambda seeds: jnp.sin(
                jnp.outer(seeds.astype(jnp.float32), jnp.arange(1.0, size + 1))
            ),
        )
        mask = jnp.zeros(num_workers, bool)
        state = simulation.init(jax.random.key(0), jnp.zeros(size), mask)
        batch = jnp.zeros((num_workers,), jnp.int32)
        compiled = jax.jit(simulation.step).lower(state, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    packed_bytes = num_workers * size // 4
    assert temporaries(8) < 3 * packed_bytes + 8 * 8 * 4 * size
    assert temporaries(None) > 4 * num_workers * size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"worker_chunk": 2}, r"does not divide the 5 workers; take 1"),
        ({"worker_chunk": 6}, r"int from 1 to the 5 workers"),
        ({"worker_chunk": True}, r"int from 1 to the 5 workers"),
        ({"worker_chunk": 5, "attack": attacks.alie()}, "looks at the rows of all"),
    ],
)
def test_chunks_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        quick(**options)


def test_chunks_refuse_what_has_a_state_or_no_decoder(key):
    remembering = attacks.sign_inversion()._replace(init=lambda m, p: jnp.zeros(m))
    with pytest.raises(ValueError, match="attack without memory"):
        start(quick(remembering, worker_chunk=5), key)
    tx = optax.stateless(lambda g, _: jax.tree.map(lambda leaf: jnp.mean(leaf, 0), g))
    with pytest.raises(ValueError, match="rule for real numbers"):
        start(quick(tx=tx, worker_chunk=5), key)

"""The round on a mesh equals the simulation, bit for bit.

Gradients here are exact in float32 (small integers and halves), so that no order of a
sum, in a batch or over devices, can turn a sign: any difference is the collective's.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from choices import slow_but
from compiling import OPTIMISED
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import signfd_jax as sfd
from signfd_jax import attacks, signs
from signfd_jax.decoders import released_code
from signfd_jax.distributed import (
    scale_by_sign_decoder_sharded,
    sign_all_reduce,
    slice_state,
)
from signfd_jax.experiments import registry

M, ROUNDS = 8, 50
PARAMS = {
    "a": jnp.zeros((5, 3)),
    "b": jnp.zeros(()),
    "c": jnp.zeros((2, 3, 2), jnp.bfloat16),
}  # 28 coordinates, 36 of padding
DECODERS = {
    # The released code counts padding: it has tests of its own below.
    **{
        name: make()
        for name, make in registry.DECODERS.items()
        if name != "released_code"
    },
    "each coordinate's own": sfd.federated_defense(initial_rounds=10),
    "int8 counters": sfd.federated_defense(initial_rounds=5, counter_dtype="int8"),
    "forgetting": sfd.federated_defense(initial_rounds=10, forgetting=0.9),
    "leave own out": sfd.federated_defense(10, leave_own_out=True, anchor=True),
    "voting, then weights": sfd.federated_voting(initial_rounds=10),
    "oracle": sfd.oracle(jnp.linspace(0.1, 0.9, M)),
}
IN_DEFAULT_SET = ("majority_vote", "each coordinate's own")
slow = pytest.mark.slow


def mesh_of(num_devices, **options):
    devices = jax.devices()[:num_devices]
    return jax.make_mesh((num_devices,), ("workers",), devices=devices, **options)


def on(mesh, tree, spec):
    return jax.device_put(tree, NamedSharding(mesh, spec))


def as_numpy(leaf):
    return np.asarray(leaf).astype(np.float32)


def assert_equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(as_numpy(a), as_numpy(b))


def assert_states_equal(ours, theirs):
    """The same numbers, where what is kept per coordinate is one flat leaf, padded."""
    for name, value in ours._asdict().items():
        other = getattr(theirs, name)
        if name == "cd_verdict":  # it decides nothing: as a compiler rounds
            for ours_told, told in zip(value, other, strict=True):
                np.testing.assert_allclose(ours_told, told, rtol=1e-4, atol=1e-5)
            continue
        if jax.tree.structure(other) == jax.tree.structure(PARAMS):
            rows = [as_numpy(leaf).reshape(M, -1) for leaf in jax.tree.leaves(other)]
            other = np.concatenate(rows, axis=1)
            value = as_numpy(value)[:, : other.shape[1]]
        np.testing.assert_array_equal(as_numpy(value), as_numpy(other), err_msg=name)


def loss_fn(params, batch):
    """Half the squared distance from integers: its gradients are exact."""
    squares = jax.tree.map(
        lambda x, target: jnp.sum((x[None] - target) ** 2).astype(jnp.float32),
        params,
        batch,
    )
    return sum(jax.tree.leaves(squares)) / (2 * 2)


def batches(seed=0, num_workers=M, rounds=ROUNDS):
    """Targets `[T, M, 2, ...]` around one; the gradients are often zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(
            np.round(rng.normal(1, 1.5, (rounds, num_workers, 2, *leaf.shape))),
            leaf.dtype,
        ),
        PARAMS,
    )


def simulated(decoder, attack, data):
    """A function of the liars: parameters of every round, and the last state."""
    tx = optax.chain(sfd.scale_by_sign_decoder(M, decoder), optax.scale(-0.125))
    sim = sfd.simulation(loss_fn, tx, num_workers=M, attack=attack, wire="one_bit")

    def step(state, batch):
        state, _ = sim.step(state, batch)
        return state, state.params

    @jax.jit
    def run(liars):
        state = sim.init(jax.random.key(7), PARAMS, liars)
        state, trajectory = lax.scan(step, state, data)
        return trajectory, state.opt_state[0]

    return run


def distributed(decoder, attack, data, mesh):
    """The same, every device with its own workers' batches, gradients and lies."""
    per_device = M // mesh.shape["workers"]
    aggregate = scale_by_sign_decoder_sharded(
        M, decoder=decoder, workers_per_device=per_device
    )
    tx = optax.chain(aggregate, optax.scale(-0.125))

    def step(liars, carry, batch):
        params, opt_state, key = carry
        key, attack_key, _ = jax.random.split(key, 3)  # as in the simulation
        own = jax.tree.map(lambda p: lax.pcast(p, "workers", to="varying"), params)
        gradients = jax.vmap(jax.grad(loss_fn), in_axes=(None, 0))(own, batch)
        workers = lax.axis_index("workers") * per_device + jnp.arange(per_device)
        context = attacks.AttackContext(opt_state[0].sign_round, None)

        def send(worker, gradient):
            row, liar = jax.tree.map(lambda leaf: leaf[None], gradient), liars[worker]
            own_key = jax.random.fold_in(attack_key, worker)
            row, _ = attack.apply(own_key, row, liar[None], context, ())
            return jax.tree.map(lambda leaf: leaf[0], row)

        gradients = jax.vmap(send)(workers, gradients)
        if per_device == 1:
            gradients = jax.tree.map(lambda leaf: leaf[0], gradients)
        updates, opt_state = tx.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, opt_state, key), params

    def rounds(params, liars, key, data):
        carry = (params, tx.init(params), key)
        carry, trajectory = lax.scan(
            lambda carry, batch: step(liars, carry, batch), carry, data
        )
        return trajectory, carry[1][0]

    all_rounds = jax.jit(
        jax.shard_map(
            rounds,
            mesh=mesh,
            in_specs=(P(), P(), P(), P(None, "workers")),
            out_specs=(P(), aggregate.state_specs),
        )
    )
    data = on(mesh, data, P(None, "workers"))
    params, key = on(mesh, (PARAMS, jax.random.key(7)), P())
    return lambda liars: all_rounds(params, on(mesh, liars, P()), key, data)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in IN_DEFAULT_SET else slow)
        for name in DECODERS
    ],
)
def test_fifty_rounds_equal_the_simulation(name):
    """Parameters of every round, so every decoded sign; attacked, and nobody lying."""
    data, attack = batches(), attacks.stochastic_sign_flip(0.8)
    one = simulated(DECODERS[name], attack, data)
    other = distributed(DECODERS[name], attack, data, mesh_of(8))
    for num_liars in (0, 3):
        theirs, their_state = one(jnp.arange(M) < num_liars)
        ours, our_state = other(jnp.arange(M) < num_liars)
        assert_equal(ours, theirs)
        assert_states_equal(our_state.decoder_state, their_state.decoder_state)
        assert our_state.sign_round == ROUNDS
        assert np.any(as_numpy(ours["a"])[-1] != as_numpy(ours["a"])[-2])


# The cases below have gradients `[M, ...]` of their own, and look at the updates.


def random_gradients(rounds, num_workers=M, params=PARAMS, seed=1):
    """A list of gradients, a third of them zero."""
    rng = np.random.default_rng(seed)
    return [
        jax.tree.map(
            lambda leaf: jnp.asarray(
                np.round(1.2 * rng.normal(0.3, 1, (num_workers, *leaf.shape))),
                leaf.dtype,
            ),
            params,
        )
        for _ in range(rounds)
    ]


def update_on(
    mesh,
    tx,
    params=PARAMS,
    check_vma=True,
    per_device=1,
    param_specs=None,
    compiler_options=None,
    **known,
):
    """`tx.update` under `jit` and `shard_map`, and its first state.

    It takes gradients `[M, ...]` and gives updates that all devices agree on.
    """

    def update(gradients, state, present):
        if per_device == 1:
            gradients = jax.tree.map(lambda leaf: leaf[0], gradients)
        return tx.update(gradients, state, present=present, **known)

    param_specs = P() if param_specs is None else param_specs
    is_spec = lambda node: isinstance(node, P)  # noqa: E731
    gradient_specs = jax.tree.map(
        lambda spec: P("workers", *spec), param_specs, is_leaf=is_spec
    )
    sharded = jax.jit(
        jax.shard_map(
            update,
            mesh=mesh,
            in_specs=(gradient_specs, tx.state_specs, P()),
            out_specs=(param_specs, tx.state_specs),
            check_vma=check_vma,
        ),
        compiler_options=compiler_options,
    )

    def place(gradients):
        return jax.tree.map(
            lambda spec, subtree: on(mesh, subtree, spec),
            gradient_specs,
            gradients,
            is_leaf=is_spec,
        )

    def step(gradients, state, present=None):
        if present is None:
            present = jnp.ones(jax.tree.leaves(gradients)[0].shape[0], bool)
        return sharded(place(gradients), state, on(mesh, present, P()))

    with jax.set_mesh(mesh):
        return step, tx.init(params)


def reference(decoder, num_workers=M, params=PARAMS, compiler_options=None, **known):
    tx = sfd.scale_by_sign_decoder(num_workers, decoder)
    step = jax.jit(
        lambda gradients, state, present=None: tx.update(
            gradients, state, params, present=present, wire="one_bit", **known
        ),
        compiler_options=compiler_options,
    )
    return step, tx.init(params)


DEFENSE = sfd.federated_defense(initial_rounds=2)
MAJORITY = sfd.majority_vote()


@slow
@pytest.mark.parametrize("num_devices", [1, 2, 4])
def test_any_number_of_workers_on_a_device(num_devices):
    """Even the state is the same array, so a run may go on with fewer devices."""
    per_device = M // num_devices
    mesh = mesh_of(num_devices)
    tx = scale_by_sign_decoder_sharded(
        M, decoder=DEFENSE, workers_per_device=per_device
    )
    step, state = update_on(mesh, tx, per_device=per_device)
    one, expected = reference(DEFENSE)
    for gradients in random_gradients(5):
        updates, state = step(gradients, state)
        wanted, expected = one(gradients, expected)
        assert_equal(updates, wanted)
    assert_states_equal(state.decoder_state, expected.decoder_state)
    assert state.decoder_state.fd_counters.shape == (M, 64)
    np.testing.assert_allclose(state.info.margin, expected.info.margin, rtol=1e-5)


@pytest.mark.parametrize(
    "size", [65, *(pytest.param(size, marks=slow) for size in (1, 63, 64))]
)
def test_any_number_of_coordinates(size):
    params = jnp.zeros(size)
    tx = scale_by_sign_decoder_sharded(M, decoder=sfd.majority_vote())
    step, state = update_on(mesh_of(8), tx, params)
    one, expected = reference(sfd.majority_vote(), params=params)
    for gradients in random_gradients(2, params=params):
        updates, state = step(gradients, state)
        wanted, expected = one(gradients, expected)
        assert updates.shape == (size,)
        np.testing.assert_array_equal(updates, wanted)
    for ours, theirs in zip(state.info, expected.info, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)  # padding counts nowhere


@pytest.mark.parametrize("num_workers", slow_but([8], [8, 64, 128]))
def test_the_default_at_any_number_of_workers(num_workers):
    """Everybody or a committee is compared, on all coordinates or on a sample.

    Decoded signs, weights and the state are the simulation's, bit for bit, attacked
    and not, while some workers are absent.
    """
    params = {"a": jnp.zeros((1200, 8)), "b": jnp.zeros(5)}
    rng = np.random.default_rng(num_workers)
    decoder, per_device = sfd.default_decoder(), num_workers // 8
    tx = scale_by_sign_decoder_sharded(
        num_workers, decoder=decoder, workers_per_device=per_device
    )
    step, first = update_on(
        mesh_of(8), tx, params, per_device=per_device, compiler_options=OPTIMISED
    )
    one, first_expected = reference(
        decoder, num_workers, params, compiler_options=OPTIMISED
    )
    for num_liars in (0, 3 * num_workers // 8):
        state, expected = first, first_expected
        for number in range(4):
            truth = jax.tree.map(lambda p: rng.choice([-0.5, 0.5], p.shape), params)
            lies = np.where(np.arange(num_workers) < num_liars, -1.0, 1.0)
            gradients = jax.tree.map(
                lambda p, lies=lies: jnp.asarray(
                    (p + rng.normal(size=(num_workers, *p.shape)))
                    * lies.reshape(-1, *(1,) * p.ndim),
                    jnp.float32,
                ),
                truth,
            )
            present = jnp.asarray(np.arange(num_workers) % 8 != number)
            updates, state = step(gradients, state, present)
            wanted, expected = one(gradients, expected, present)
            assert_equal(updates, wanted)
            assert_equal(state.info.weights, expected.info.weights)
        assert_equal(state.decoder_state, expected.decoder_state)
        weights = np.asarray(state.info.weights)
        np.testing.assert_array_equal(weights, np.asarray(lies))


@pytest.mark.slow
def test_what_is_known_of_the_workers_is_known_on_a_mesh():
    """Who is trusted, stakes and shares: the same signs and weights."""
    known = {
        "trusted": jnp.arange(M) == 5,
        "stakes": jnp.linspace(1.0, 2.0, M),
        "shares": jnp.linspace(3.0, 1.0, M),
    }
    decoder, mesh = sfd.default_decoder(), mesh_of(4)
    tx = scale_by_sign_decoder_sharded(M, decoder=decoder, workers_per_device=2)
    step, state = update_on(mesh, tx, per_device=2, **known)
    one, expected = reference(decoder, **known)
    for gradients in random_gradients(4):
        updates, state = step(gradients, state)
        wanted, expected = one(gradients, expected)
        assert_equal(updates, wanted)
        np.testing.assert_array_equal(state.info.weights, expected.info.weights)


def test_absent_and_non_finite_workers_abstain():
    """The others are decoded, and weighted, as if those had sent zeros."""
    decoder, mesh = sfd.federated_defense(initial_rounds=None), mesh_of(4)
    tx = scale_by_sign_decoder_sharded(M, decoder=decoder, workers_per_device=2)
    step, state = update_on(mesh, tx, per_device=2)
    one, expected = reference(decoder)
    present = jnp.arange(M) != 3
    for gradients in random_gradients(4):
        bad = jax.tree.map(
            lambda leaf: leaf.at[1].set(jnp.nan).at[6].set(-jnp.inf), gradients
        )
        bad["a"] = bad["a"].at[4, :2].set(jnp.nan)  # this worker is mostly finite
        updates, state = step(bad, state, present)
        wanted, expected = one(bad, expected, present)
        assert_equal(updates, wanted)
    assert_states_equal(state.decoder_state, expected.decoder_state)
    evidence = np.asarray(state.decoder_state.fd_evidence)
    np.testing.assert_array_equal(evidence > 0, ~np.isin(np.arange(M), [1, 3, 6]))
    # A round in which nobody is there changes nothing that was learned.
    updates, alone = step(bad, state, jnp.zeros(M, bool))
    assert_equal(alone.decoder_state.fd_agreement, state.decoder_state.fd_agreement)
    for leaf in jax.tree.leaves((updates, alone)):
        assert np.all(np.isfinite(as_numpy(leaf)))


@pytest.mark.slow
def test_sharded_parameters_equal_the_simulation_of_their_shards():
    """Parameters sharded over another axis, and leaves that are whole over it.

    The simulation sees the tree of shards, in the order in which blocks are numbered.
    """
    mesh = jax.make_mesh((4, 2), ("workers", "fsdp"))
    params = {"v": jnp.zeros(2), "w": jnp.zeros((3, 4))}
    specs = {"v": P(), "w": P(None, "fsdp")}
    tx = scale_by_sign_decoder_sharded(4, decoder=DEFENSE, param_specs=specs)
    step, state = update_on(mesh, tx, params, param_specs=specs)

    padding = 32 - 6 - 1  # of a block: 6 coordinates of w, 1 of v, a multiple of 8 * 4
    columns = [slice(0, 2), slice(2, 4)]

    def shards(gradients):
        """Blocks, the padding as coordinates on which everyone abstains."""
        return [
            [
                gradients["w"][..., column],
                gradients["v"][..., index, None],
                jnp.full((4, padding), jnp.nan),
            ]
            for index, column in enumerate(columns)
        ]

    @jax.jit
    def simulate(gradients, state, round):
        sent = signs.to_wire(sfd.votes(shards(gradients)), round)
        for block in sent:
            block[2] = jnp.zeros_like(block[2])
        decoded, state, _ = DEFENSE.decode(state, sent)
        decoded = signs.fill_ties(decoded, round)
        w = jnp.concatenate([block[0] for block in decoded], axis=1)
        v = jnp.concatenate([block[1] for block in decoded])
        return {"v": v, "w": w}, state

    all_rounds = random_gradients(4, 4, params)
    one_worker = jax.tree.map(lambda leaf: leaf[0], shards(all_rounds[0]))
    expected = DEFENSE.init(4, one_worker)
    for number, gradients in enumerate(all_rounds):
        updates, state = step(gradients, state)
        wanted, expected = simulate(gradients, expected, number)
        assert_equal(updates, wanted)
    assert_equal(state.decoder_state.fd_agreement, expected.fd_agreement)
    pieces = [as_numpy(piece.data) for piece in updates["v"].addressable_shards]
    assert all(np.array_equal(piece, pieces[0]) for piece in pieces)


# Types -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
def test_state_keeps_its_type(axis_type):
    """However it was made: eagerly, jitted, or inside `shard_map`, checked or not."""
    decoder = sfd.federated_defense()
    mesh = mesh_of(8, axis_types=(axis_type,))
    tx = scale_by_sign_decoder_sharded(M, decoder=decoder)
    params = on(mesh, PARAMS, P())
    inside = jax.shard_map(tx.init, mesh=mesh, in_specs=P(), out_specs=tx.state_specs)
    wanted = tx.state_sharding(mesh)
    states = [tx.init(params), inside(params)]
    with jax.set_mesh(mesh):
        states += [tx.init(PARAMS), jax.jit(tx.init)(PARAMS)]
    if axis_type == AxisType.Auto:
        states += [jax.jit(tx.init, out_shardings=wanted)(params)]
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), PARAMS
    )
    shape = tx.init(abstract)
    assert jax.tree.map(jnp.shape, shape) == jax.tree.map(
        jnp.shape, jax.eval_shape(tx.init, PARAMS)
    )
    for state in states:
        for leaf, size, sharding in zip(
            *map(jax.tree.leaves, (state, shape, wanted)), strict=True
        ):
            assert (leaf.shape, leaf.dtype) == (size.shape, size.dtype)
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    types = jax.tree.map(jax.typeof, states[0])
    step, state = update_on(mesh, tx, check_vma=axis_type == AxisType.Explicit)
    _, state = step(random_gradients(1)[0], state)
    assert jax.tree.map(jax.typeof, state) == types


def sharded_step(step, mesh, specs):
    """A step on replicated parameters, a state of these specs, and split gradients."""
    return jax.jit(
        jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(P(), specs, P("workers")),
            out_specs=(P(), specs),
        )
    )


@slow
def test_in_a_chain_with_momentum_decay_and_a_schedule():
    """Everything after the aggregation is optax's own, and sees no worker axis."""
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) + 1, PARAMS)
    mesh = mesh_of(8)
    aggregate = scale_by_sign_decoder_sharded(M, decoder=sfd.majority_vote())

    def chain(first):
        return optax.chain(
            first,
            optax.trace(0.9),
            optax.add_decayed_weights(1e-2),
            optax.scale_by_learning_rate(optax.linear_schedule(0.1, 0.0, 10)),
        )

    ours = chain(aggregate)
    theirs = chain(sfd.scale_by_sign_decoder(M, sfd.majority_vote()))
    specs = (aggregate.state_specs, P(), P(), P())

    def step(params, state, gradients):
        own = jax.tree.map(lambda leaf: leaf[0], gradients)
        updates, state = ours.update(own, state, params)
        return optax.apply_updates(params, updates), state

    step = sharded_step(step, mesh, specs)

    @jax.jit
    def one_device_step(params, state, gradients):
        updates, state = theirs.update(gradients, state, params, wire="one_bit")
        return optax.apply_updates(params, updates), state

    here, there = on(mesh, params, P()), params
    state, expected = ours.init(here), theirs.init(params)
    for gradients in random_gradients(3, params=params):
        here, state = step(here, state, on(mesh, gradients, P("workers")))
        there, expected = one_device_step(there, expected, gradients)
    for one, other in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert optax.tree.get(state, "sign_round") == 3


@jax.numpy_dtype_promotion("standard")  # of optax
def multi_steps(accumulator_spec):
    """Parameters after each of six steps, of which every second one counts."""
    mesh, params = mesh_of(8), {"a": PARAMS["a"]}
    aggregate = scale_by_sign_decoder_sharded(M, decoder=MAJORITY)
    tx = optax.MultiSteps(optax.chain(aggregate, optax.scale(-0.125)), 2)
    specs = optax.MultiStepsState(
        mini_step=P(),
        gradient_step=P(),
        inner_opt_state=(aggregate.state_specs, P()),
        acc_grads=accumulator_spec,
        skip_state=(),
    )
    split = accumulator_spec != P()

    def step(params, state, gradients):
        own = jax.tree.map(lambda leaf: leaf[0], gradients)
        if split:
            accumulators = jax.tree.map(lambda leaf: leaf[0], state.acc_grads)
            state = state._replace(acc_grads=accumulators)
        updates, state = tx.update(own, state, params)
        if split:
            accumulators = jax.tree.map(lambda leaf: leaf[None], state.acc_grads)
            state = state._replace(acc_grads=accumulators)
        return optax.apply_updates(params, updates), state

    step = sharded_step(step, mesh, specs)
    here = on(mesh, params, P())
    state = tx.init(here)
    if split:
        zeros = jax.tree.map(lambda leaf: jnp.zeros((M, *leaf.shape)), params)
        state = state._replace(acc_grads=on(mesh, zeros, P("workers")))
    trajectory = []
    for gradients in random_gradients(6, params=params):
        here, state = step(here, state, on(mesh, gradients, P("workers")))
        trajectory.append(np.asarray(here["a"]))
    return trajectory


def test_multi_steps_accumulate_on_each_device():
    params = {"a": PARAMS["a"]}
    gradients = random_gradients(6, params=params)
    one, state = reference(MAJORITY, params=params)
    expected = [params["a"]]
    for first, second in zip(gradients[::2], gradients[1::2], strict=True):
        mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
        updates, state = one(mean, state)
        expected += [expected[-1], expected[-1] - 0.125 * updates["a"]]
    trajectory = multi_steps(P("workers"))
    np.testing.assert_array_equal(trajectory, expected[1:])
    with pytest.raises(ValueError, match="already summed over the workers"):
        multi_steps(P())


# What is refused ---------------------------------------------------------------------


def trace(step, *arguments, num_devices=8, **options):
    """Trace a step under `shard_map`, alike on all devices."""
    mesh = options.pop("mesh", None) or mesh_of(num_devices)
    options = dict(in_specs=P(), out_specs=P()) | options
    jax.eval_shape(jax.shard_map(step, mesh=mesh, **options), *arguments)


def reduce_signs(gradients, decoder=MAJORITY, **options):
    state = slice_state(decoder, gradients)
    return sign_all_reduce(gradients, decoder, state, round=0, **options)[0]


def test_summed_gradients_are_refused():
    """As `jax.grad` gives them with respect to replicated parameters."""
    params, data = jnp.zeros(3), jax.ShapeDtypeStruct((8, 3), jnp.float32)

    def step(params, data):
        return reduce_signs(jax.grad(lambda p: jnp.sum((p - data[0]) ** 2))(params))

    def own(params, data):
        return step(lax.pcast(params, "workers", to="varying"), data)

    specs = dict(in_specs=(P(), P("workers")))
    mesh = mesh_of(8, axis_types=(AxisType.Auto,))
    with pytest.raises(ValueError, match="already summed over the workers"):
        trace(step, params, data, mesh=mesh, **specs)
    trace(own, params, data, mesh=mesh, **specs)
    trace(step, params, data, mesh=mesh, check_vma=False, **specs)


def test_what_cannot_be_decoded_is_refused():
    gradients = jnp.ones(3)
    with pytest.raises(ValueError, match="no mesh axis 'workers' here"):
        reduce_signs(gradients)
    two_axes = jax.make_mesh((4, 2), ("workers", "model"))
    with pytest.raises(ValueError, match="leaves the mesh axes model to XLA"):
        trace(reduce_signs, gradients, mesh=two_axes, axis_names={"workers"})
    unchecked = dict(check_vma=False)
    with pytest.raises(ValueError, match="must lead with the 2 workers"):
        trace(lambda g: reduce_signs(g, workers_per_device=2), gradients, **unchecked)
    with pytest.raises(ValueError, match="masked leaves"):
        masked = {"w": gradients, "b": optax.MaskedNode()}
        trace(lambda g: reduce_signs(masked), gradients, **unchecked)
    with pytest.raises(ValueError, match="the workers' axis, but every worker"):
        trace(
            lambda g: reduce_signs(g, param_specs=P("workers")), gradients, **unchecked
        )

    def of_other_slices(gradients):
        state = slice_state(DEFENSE, jnp.zeros(1000))
        return sign_all_reduce(gradients, DEFENSE, state, round=0)[0]

    with pytest.raises(ValueError, match="state has the shapes"):
        trace(of_other_slices, gradients, **unchecked)


def test_the_reference_decoder_would_count_padding():
    decoder = released_code(3)
    with pytest.raises(ValueError, match="coordinates of padding"):
        trace(lambda g: reduce_signs(g, decoder), jnp.ones(65), check_vma=False)


@slow
def test_the_reference_decoder_without_padding():
    decoder = released_code(3)
    tx = scale_by_sign_decoder_sharded(M, decoder=decoder)
    params = jnp.zeros(64)
    step, state = update_on(mesh_of(8), tx, params)
    one, expected = reference(decoder, params=params)
    for gradients in random_gradients(5, params=params):
        updates, state = step(gradients, state)
        wanted, expected = one(gradients, expected)
        np.testing.assert_array_equal(updates, wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_workers=0), "num_workers must be an int >= 1"),
        (dict(num_workers=True), "num_workers must be an int >= 1"),
        (dict(num_workers=8, workers_per_device=0), "workers_per_device must be"),
        (dict(num_workers=8, workers_per_device=3), "must divide num_workers"),
        (dict(num_workers=8, param_specs=P("workers")), "the workers' axis"),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        scale_by_sign_decoder_sharded(**arguments)


def test_a_mesh_of_another_size_is_refused():
    tx = scale_by_sign_decoder_sharded(6, workers_per_device=2)
    with jax.set_mesh(mesh_of(8)):
        with pytest.raises(ValueError, match="8 devices with 2 workers each"):
            tx.init(PARAMS)
    tx = scale_by_sign_decoder_sharded(8, param_specs=P("fsdp"))
    with pytest.raises(ValueError, match="param_specs are given, but not the mesh"):
        tx.init(PARAMS)

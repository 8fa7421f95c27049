"""The optax transformations: what they compute, and what they live with."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from optax.experimental import aggregating

import signfd_jax as sfd
from signfd_jax import signs
from signfd_jax._checks import check_size
from signfd_jax.decoders import released_code

M = 5
PARAMS = {"w": jnp.zeros((3, 2)), "b": jnp.zeros(())}
TRANSFORMATIONS = {
    "fd": lambda num_workers: sfd.scale_by_sign_fd(num_workers, initial_rounds=2),
    "pooled": lambda num_workers: sfd.scale_by_sign_fd(
        num_workers, initial_rounds=None
    ),
    "forgetful": lambda num_workers: sfd.scale_by_sign_fd(num_workers, forgetting=0.9),
    "released": lambda num_workers: sfd.scale_by_sign_decoder(
        num_workers, released_code()
    ),
    "mv": sfd.scale_by_sign_mv,
}
each = pytest.mark.parametrize("make", TRANSFORMATIONS.values(), ids=TRANSFORMATIONS)


def gradients_like(params, num_workers=M, seed=0):
    rng = np.random.default_rng(seed)

    def draw(leaf):
        normal = rng.normal(size=(num_workers, *leaf.shape)) * (
            rng.random((num_workers, *leaf.shape)) > 0.2
        )
        return jnp.asarray(normal, leaf.dtype)

    return jax.tree.map(draw, params)


def types(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)


def majority(gradients):
    return jax.tree.map(
        lambda g: np.sign(np.sum(np.sign(np.asarray(g, np.float64)), axis=0)), gradients
    )


@each
def test_rounds_of_a_donated_state_without_a_second_compilation(make):
    """The first round is a majority vote, in the shapes of the parameters."""
    tx = optax.chain(make(M), optax.scale(-0.5))
    # Every leaf is used, so that none is dropped from what is donated.
    update = jax.jit(
        chex.assert_max_traces(tx.update, n=1), donate_argnums=1, keep_unused=True
    )
    state = tx.init(PARAMS)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers)
    for seed in range(3):
        gradients, before = gradients_like(PARAMS, seed=seed), state
        updates, state = update(gradients, before, PARAMS)
        if seed == 0:
            expected = jax.tree.map(lambda sign: -0.5 * sign, majority(gradients))
            chex.assert_trees_all_equal(updates, expected)
        assert types(updates) == types(PARAMS)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert int(state[0].sign_round) == 3
    assert state[0].info.weights.shape == state[0].info.crossover.shape == (M,)
    assert np.all(np.isfinite(state[0].info.weights))
    chex.clear_trace_counter()


def test_an_eager_update_is_the_jitted_one_and_can_be_donated_too():
    tx = TRANSFORMATIONS["fd"](M)
    eager, state = tx.init(PARAMS), tx.init(PARAMS)
    update = jax.jit(tx.update, donate_argnums=1, keep_unused=True)
    for seed in range(4):
        gradients = gradients_like(PARAMS, seed=seed)
        updates, state = update(gradients, state, PARAMS)
        expected, eager = tx.update(gradients, eager, PARAMS)
        chex.assert_trees_all_equal(updates, expected)
    chex.assert_trees_all_close(state, eager, rtol=1e-5, atol=1e-6)
    update(gradients, eager, PARAMS)


@each
def test_state_type_is_stable_in_scan_and_cond(make):
    tx = optax.chain(make(M), optax.sgd(optax.linear_schedule(0.1, 0.0, 10), 0.9))
    state, gradients = tx.init(PARAMS), gradients_like(PARAMS)

    def round_(carry, skip):
        params, state = carry
        updates, state = jax.lax.cond(
            skip,
            lambda s: (jax.tree.map(jnp.zeros_like, params), s),
            lambda s: tx.update(gradients, s, params),
            state,
        )
        return (optax.apply_updates(params, updates), state), None

    skips = jnp.array([False, True, False])
    run = jax.jit(lambda carry: jax.lax.scan(round_, carry, skips)[0])
    params, after = run((PARAMS, state))
    assert types(after) == types(state)
    assert int(optax.tree.get(after, "sign_round")) == 2
    assert float(jnp.abs(params["w"]).max()) > 0.1


@each
def test_init_needs_shapes_only(make):
    tx = make(M)
    shapes = jax.eval_shape(lambda: PARAMS)
    from_shapes = tx.init(shapes)
    chex.assert_trees_all_equal(from_shapes, tx.init(PARAMS))
    abstract = jax.eval_shape(tx.init, PARAMS)
    assert jax.tree.map(lambda s: (s.shape, s.dtype), abstract) == jax.tree.map(
        lambda s: (s.shape, s.dtype), from_shapes
    )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@each
def test_updates_keep_the_dtype_of_the_parameters(make, dtype):
    params = {"w": jnp.zeros((3, 2), dtype), "b": jnp.zeros((), jnp.float32)}
    tx, gradients = make(M), gradients_like(params)
    state = tx.init(params)
    updates, after = jax.eval_shape(tx.update, gradients, state, params)
    assert types(updates) == types(params)
    assert types(after) == types(state)
    # Parameters in full precision, gradients in half: the parameters decide, and
    # without them the gradients.
    master = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    assert types(jax.eval_shape(tx.update, gradients, state, master)[0]) == types(
        master
    )
    assert types(jax.eval_shape(tx.update, gradients, state)[0]) == types(params)


def test_half_precision_gradients_are_heard():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    tx, gradients = sfd.scale_by_sign_mv(M), gradients_like(params)
    updates, _ = jax.jit(tx.update)(gradients, tx.init(params), params)
    signs_ = jax.tree.map(lambda u: u.astype(jnp.float32), updates)
    chex.assert_trees_all_equal(signs_, majority(gradients))


@each
def test_double_precision(make):
    with jax.enable_x64(True):
        params = {"w": jnp.zeros((3, 2), jnp.float64), "b": jnp.zeros((), jnp.float32)}
        tx = optax.chain(make(M), optax.scale_by_learning_rate(0.1))
        state, gradients = tx.init(params), gradients_like(params)
        updates, after = jax.eval_shape(tx.update, gradients, state, params)
        assert types(updates) == types(params)
        assert types(after) == types(state)
        if make is TRANSFORMATIONS["fd"]:
            updates, _ = jax.jit(tx.update)(gradients, state, params)
            expected = jax.tree.map(lambda sign: -0.1 * sign, majority(gradients))
            chex.assert_trees_all_close(updates, expected)


def test_chain_with_a_schedule_keeps_names_apart():
    schedule = lambda count: jnp.where(count < 1, 1.0, 0.5)  # noqa: E731
    tx = optax.chain(sfd.scale_by_sign_fd(M), optax.scale_by_schedule(schedule))
    state, gradients = tx.init(PARAMS), gradients_like(PARAMS)
    sizes = []
    for _ in range(3):
        updates, state = tx.update(gradients, state, PARAMS)
        sizes.append(float(jnp.abs(updates["w"]).max()))
    assert sizes == [1.0, 0.5, 0.5]
    # Each name is found once, or optax.tree.get raises KeyError.
    assert int(optax.tree.get(state, "sign_round")) == 3
    assert int(optax.tree.get(state, "count")) == 3
    assert int(optax.tree.get(state, "fd_round")) == 3
    assert optax.tree.get(state, "info").weights.shape == (M,)


def test_two_sign_decoders_are_told_apart_by_their_paths():
    """A server that decodes and takes the sign again, of one worker: itself."""
    again = optax.stateless(lambda u, _: jax.tree.map(lambda leaf: leaf[None], u))
    tx = optax.chain(
        sfd.scale_by_sign_fd(M),
        again,
        sfd.scale_by_sign_mv(1),
        optax.scale_by_schedule(optax.constant_schedule(0.1)),
    )
    state = tx.init(PARAMS)
    updates, state = jax.jit(tx.update)(gradients_like(PARAMS), state)
    assert float(jnp.abs(updates["w"]).max()) == pytest.approx(0.1)
    found = optax.tree.get_all_with_path(state, "sign_round")
    assert [int(value) for _, value in found] == [1, 1]
    with pytest.raises(KeyError):
        optax.tree.get(state, "sign_round")
    assert int(optax.tree.get(state, "fd_round")) == 1


STATIC = ("num_workers",)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "options",
    [{}, {"initial_rounds": None, "forgetting": 0.5}],
    ids=["default", "pooled"],
)
def test_inject_hyperparams(options, dtype):
    params = jax.tree.map(lambda p: p.astype(dtype), PARAMS)
    make = optax.inject_hyperparams(sfd.sign_sgd_fd, static_args=STATIC)
    halve = lambda count: jnp.where(count < 1, 0.5, 0.25).astype(dtype)  # noqa: E731
    tx = make(halve, M, **options)
    state, gradients = tx.init(params), gradients_like(params)
    updates, after = jax.eval_shape(tx.update, gradients, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    assert types(updates) == types(params)
    if options:
        return
    update = jax.jit(tx.update)
    for size in (0.5, 0.25, 0.25):
        updates, state = update(gradients, state, params)
        assert float(jnp.abs(updates["w"]).max()) == size
    assert update._cache_size() <= 2  # Weak types of the initial hyperparameters.


def test_injected_hyperparams_take_effect():
    make = optax.inject_hyperparams(sfd.sign_sgd_fd, static_args=STATIC)
    tx = make(0.1, M, initial_rounds=None)
    gradients = jax.tree.map(lambda g: jnp.ones_like(g), gradients_like(PARAMS))
    _, state = tx.update(gradients, tx.init(PARAMS), PARAMS)
    _, after = tx.update(gradients, state, PARAMS)
    np.testing.assert_allclose(
        optax.tree.get(after, "info").weights, np.log(8), rtol=1e-5
    )
    state.hyperparams["max_llr"] = jnp.float32(0.5)
    _, after = tx.update(gradients, state, PARAMS)
    np.testing.assert_array_equal(optax.tree.get(after, "info").weights, [0.5] * M)


def test_inject_hyperparams_without_static_workers_says_what_to_do():
    seen = []
    tx = optax.inject_hyperparams(
        lambda num_workers: seen.append(num_workers) or optax.identity()
    )(M)
    tx.init(PARAMS)
    assert isinstance(seen[0], jax.Array)  # This is what would set shapes.
    # The check itself, because the type checker of these tests comes before it.
    with pytest.raises(ValueError, match="static_args="):
        check_size("num_workers", seen[0])


@each
def test_map_params_finds_what_is_shaped_like_the_parameters(make):
    tx = optax.chain(make(M), optax.trace(0.9))
    state = tx.init(PARAMS)
    marked = optax.tree.map_params(tx, lambda leaf: "p", state)
    leaves = jax.tree.leaves(marked)
    counters = {"fd", "forgetful", "released"}
    per_coordinate = make in [TRANSFORMATIONS[name] for name in counters]
    # Two leaves of momentum; two of counters, where there are any.
    assert sum(isinstance(leaf, str) for leaf in leaves) == 2 + 2 * per_coordinate
    assert len(leaves) == len(jax.tree.leaves(state))


def test_present_workers_alone_are_heard():
    gradients = gradients_like(PARAMS)
    present = jnp.array([True, False, True, True, False])
    rows = np.flatnonzero(present)
    for wire in ("ternary", "one_bit"):
        tx = sfd.scale_by_sign_fd(M)
        update = jax.jit(tx.update, static_argnames="wire")
        updates, state = update(
            gradients, tx.init(PARAMS), PARAMS, present=present, wire=wire
        )
        votes = sfd.votes(gradients)
        if wire == "one_bit":
            votes = signs.to_wire(votes, 0)
        tally = jax.tree.map(lambda v: np.sum(np.asarray(v)[rows], axis=0), votes)
        chex.assert_trees_all_equal(updates, jax.tree.map(np.sign, tally))
        np.testing.assert_array_equal(state.info.crossover == 0.5, ~present)


def test_one_bit_wire_fills_abstentions_and_ties_and_drops_the_nan_worker():
    params = jnp.zeros(200)
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(4, 200)) * (rng.random((4, 200)) < 0.3)
    gradients[3] = np.nan
    gradients[0, :50] = np.nan
    tx = sfd.scale_by_sign_fd(4, initial_rounds=2)
    state = tx.init(params)
    update = jax.jit(tx.update, static_argnames="wire")
    for round_ in range(4):
        updates, state = update(
            jnp.asarray(gradients, jnp.float32), state, params, wire="one_bit"
        )
        assert np.all(np.abs(updates) == 1)
        if round_ == 0:  # Three voters of one bit each: no ties in a majority vote.
            votes = sfd.votes(jnp.asarray(gradients, jnp.float32))
            sent = signs.to_wire(votes, 0)[:3]
            np.testing.assert_array_equal(updates, np.sign(np.sum(sent, axis=0)))
        evidence = state.decoder_state.fd_evidence
        np.testing.assert_array_equal(evidence, [200.0 * (round_ + 1)] * 3 + [0])
    nobody, _ = update(
        jnp.full((4, 200), jnp.nan), tx.init(params), params, wire="one_bit"
    )
    filled = signs.fill_ties(jnp.zeros(200, jnp.int8), 0)
    np.testing.assert_array_equal(nobody, filled)


def test_sign_error_by_hand():
    tx = sfd.scale_by_sign_mv(3)
    gradients = jnp.array([[1.0, -1, 1, 0], [1, -1, 0, 0], [1, 1, -1, 0]])
    state = tx.init(jnp.zeros(4))
    assert float(state.sign_error) == -1  # not measured
    for honest, error in (
        ([1, -1, 0, 0], 0),
        ([1, 1, 1, 1], 3 / 4),  # Decoded: +, -, tie, tie.
        ([0, 0, 0, 0], -1),  # No sign to compare with: not measured.
        ([-1, 0, 0, 0], 1),
    ):
        _, state = tx.update(
            gradients, state, honest_sign=jnp.asarray(honest, jnp.int8)
        )
        assert float(state.sign_error) == error
    _, state = tx.update(gradients, state)
    assert float(state.sign_error) == -1


def test_process_of_optax():
    tx = aggregating.process(
        optax.identity(), sfd.scale_by_sign_fd(M), optax.sgd(0.1, momentum=0.5)
    )
    assert isinstance(tx, aggregating.Aggregator)
    gradients = gradients_like(PARAMS)
    update = jax.jit(tx.update)
    updates, state = update(gradients, tx.init(PARAMS), PARAMS)
    expected = jax.tree.map(lambda sign: -0.1 * sign, majority(gradients))
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)
    updates, _ = update(gradients, state, PARAMS)
    assert types(updates) == types(PARAMS)


def test_it_is_an_aggregator_of_optax():
    assert isinstance(sfd.scale_by_sign_fd(3), aggregating.Aggregator)
    assert isinstance(sfd.scale_by_sign_fd(3), optax.GradientTransformationExtraArgs)


class TestRefusals:
    """What cannot work says why, and what to do."""

    gradients = gradients_like(PARAMS)

    @pytest.mark.parametrize("params", [PARAMS, None])
    def test_masked(self, params):
        tx = optax.masked(sfd.scale_by_sign_fd(M), {"w": True, "b": False})
        with pytest.raises(ValueError, match=r"masked leaves.*mask what comes after"):
            tx.update(self.gradients, tx.init(PARAMS), params)

    def test_partition(self):
        both = {"sign": sfd.scale_by_sign_fd(M), "sgd": optax.sgd(0.1)}
        tx = optax.partition(both, {"w": "sign", "b": "sgd"})
        with pytest.raises(ValueError, match="masked leaves"):
            tx.update(self.gradients, tx.init(PARAMS), PARAMS)

    def test_masking_after_it_works(self):
        tx = optax.chain(
            sfd.scale_by_sign_fd(M),
            optax.masked(optax.scale(0.0), {"w": True, "b": False}),
        )
        updates, _ = tx.update(self.gradients, tx.init(PARAMS), PARAMS)
        assert float(jnp.abs(updates["w"]).max()) == 0
        assert float(updates["b"]) == majority(self.gradients)["b"]

    def test_gradients_without_a_worker_axis(self):
        tx = sfd.scale_by_sign_fd(M)
        one = jax.tree.map(lambda g: g[0], self.gradients)
        with pytest.raises(ValueError, match=r"'b'.*5 workers need \(5,\).*jax\.vmap"):
            tx.update(one, tx.init(PARAMS), PARAMS)
        with pytest.raises(ValueError, match="stacked on a leading axis"):
            tx.update(one, tx.init(PARAMS))

    def test_another_number_of_workers(self):
        tx = sfd.scale_by_sign_fd(M + 1)
        with pytest.raises(ValueError, match=r"shape \(5,\), but 6 workers"):
            tx.update(self.gradients, tx.init(PARAMS), PARAMS)

    def test_a_worker_axis_that_is_not_the_first(self):
        tx = sfd.scale_by_sign_fd(M)
        with pytest.raises(ValueError, match=r"\(2, 5\).*\(5, 2\)"):
            tx.update(jnp.ones((2, M)), tx.init(jnp.zeros(2)), jnp.zeros(2))

    def test_another_tree(self):
        tx = sfd.scale_by_sign_fd(M)
        with pytest.raises(ValueError, match="they must be alike"):
            tx.update({"w": self.gradients["w"]}, tx.init(PARAMS), PARAMS)

    def test_complex_gradients(self):
        tx = sfd.scale_by_sign_fd(M)
        params = jnp.zeros(2, jnp.complex64)
        with pytest.raises(ValueError, match="no sign"):
            tx.update(jnp.ones((M, 2), jnp.complex64), tx.init(params), params)

    def test_unknown_wire(self):
        tx = sfd.scale_by_sign_fd(M)
        with pytest.raises(ValueError, match="wire must be one of ternary, one_bit"):
            tx.update(self.gradients, tx.init(PARAMS), PARAMS, wire="bits")

    @pytest.mark.parametrize("num_workers", [0, -1, True])
    def test_number_of_workers(self, num_workers):
        with pytest.raises(ValueError, match="num_workers"):
            sfd.scale_by_sign_decoder(num_workers)

    def test_apply_if_finite_is_refused_by_optax_itself(self):
        tx = optax.apply_if_finite(sfd.sign_sgd_fd(0.1, M), 3)
        with pytest.raises(TypeError, match="cond branches must have equal output"):
            tx.update(self.gradients, tx.init(PARAMS), PARAMS)

    def test_multi_steps(self):
        tx = optax.MultiSteps(sfd.sign_sgd_fd(0.1, M), 2)
        with pytest.raises(ValueError, match="accumulate in the worker instead"):
            tx.update(self.gradients, tx.init(PARAMS), PARAMS)


def shardings(tree):
    return jax.tree.map(lambda leaf: jax.typeof(leaf).sharding.spec, tree)


def test_explicit_mesh_with_the_workers_sharded():
    """The state takes the workers' sharding in two updates, and then keeps it."""
    mesh = jax.make_mesh((M - 1,), ("workers",), axis_types=(AxisType.Explicit,))
    tx = TRANSFORMATIONS["fd"](M - 1)
    plain = gradients_like(PARAMS, num_workers=M - 1)
    with jax.set_mesh(mesh):
        gradients = jax.tree.map(
            lambda g: jax.device_put(g, NamedSharding(mesh, P("workers"))), plain
        )
        initial = tx.init(PARAMS)
        update = jax.jit(tx.update)
        updates, state = update(gradients, initial, PARAMS)
        chex.assert_trees_all_equal(updates, majority(plain))
        assert shardings(updates) == shardings(PARAMS)
        # Should this ever fail, the docstring can lose a paragraph.
        assert shardings(state.decoder_state) != shardings(initial.decoder_state)
        _, state = update(gradients, state, PARAMS)
        assert shardings(state.info.crossover) == P("workers")

        def one(state, _):
            updates, state = tx.update(gradients, state, PARAMS)
            return state, updates

        last, _ = jax.jit(lambda s: jax.lax.scan(one, s, length=3))(state)
        assert shardings(last) == shardings(state)
        assert int(last.sign_round) == 5

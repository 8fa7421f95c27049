"""Every leaf that optax takes: none, Python numbers, NumPy's, 0-d and empty ones."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import signfd_jax as sfd
from signfd_jax import aggregators, distributed, signs
from signfd_jax.decoders import released_code
from signfd_jax.transforms import scale_by_aggregator, variants, worker_side

M = 9

DECODERS = {
    "correlation": sfd.correlation_defense,
    "dawid_skene": sfd.dawid_skene,
    "federated_defense": sfd.federated_defense,
    "pooled": lambda: sfd.federated_defense(initial_rounds=None),
    "leave_own_out": lambda: sfd.federated_defense(leave_own_out=True),
    "released": released_code,
    "federated_voting": sfd.federated_voting,
    "majority_vote": sfd.majority_vote,
    "oracle": lambda: sfd.oracle(jnp.full(M, 0.2)),
    "committee": lambda: sfd.correlation_defense(committee=5, sample=64),
}
TRANSFORMATIONS = {
    **{
        name: lambda make=make: sfd.scale_by_sign_decoder(M, make())
        for name, make in DECODERS.items()
    },
    **{
        name: lambda make=make: scale_by_aggregator(make(1, jax.random.key(0)), M)
        for name, make in aggregators.RULES.items()
    },
    "signum": lambda: variants.scale_by_signum(M),
    "ef_sign": lambda: variants.scale_by_ef_sign(M),
    "stochastic_sign": lambda: variants.scale_by_stochastic_sign(M),
    "sparse_sign": lambda: variants.scale_by_sparse_sign(M),
    "distributed_lion": lambda: variants.scale_by_distributed_lion(M),
}

# In the default set: one of each kind.
OFTEN = ("correlation", "majority_vote", "pooled", "mean", "signum")
# All rules get their rows from the same lines, which the mean tries with every tree.
RULES = {*aggregators.RULES} - {"mean"}
OF_RULES = ("0-d", "empty leaf", "half")  # one coordinate, several, a narrow dtype

# Of 0, 1 or 4 coordinates: leaves of unlike kinds meet the same programs.
TREES = {
    "no leaves": {},
    "nested without leaves": {"a": {}, "b": None},
    "Python number": {"b": 0.0},
    "NumPy float64": {"w": np.zeros((1, 3)), "b": np.float64(1.0)},
    "0-d": {"b": jnp.zeros(())},
    "empty leaf": {"e": jnp.zeros((0, 2)), "w": jnp.zeros(4)},
    "only empty leaves": {"e": jnp.zeros((0,))},
    "half": {"w": jnp.zeros(3, jnp.bfloat16), "b": jnp.zeros((), jnp.float16)},
}


def gradients_like(params, kind):
    """Rows of workers of which most agree, as jax or as numpy arrays."""

    def rows(leaf):
        shape = np.shape(leaf)
        signs = np.where(np.arange(M) < 2, -1.0, 1.0).reshape((M,) + (1,) * len(shape))
        dtype = getattr(leaf, "dtype", np.float64)
        dtype = jax.dtypes.canonicalize_dtype(dtype) if kind is jnp else dtype
        return kind.asarray(np.broadcast_to(signs, (M, *shape)), dtype)

    return jax.tree.map(rows, params)


CASES = [
    pytest.param(name, tree, marks=() if name in OFTEN else pytest.mark.slow)
    for name in TRANSFORMATIONS
    for tree in TREES
    if name not in RULES or tree in OF_RULES
]


@pytest.mark.parametrize(("name", "tree"), CASES)
def test_takes_what_optax_takes(name, tree):
    """Three steps, without a warning, give what the parameters' leaves are like."""
    params = TREES[tree]
    gradients = gradients_like(params, np if "NumPy" in tree else jnp)
    tx = TRANSFORMATIONS[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = tx.init(params)
        for given in (params, params, None):
            updates, state = tx.update(gradients, state, given)
        optax.apply_updates(params, updates)
        expected = jax.tree.map(jnp.asarray, params)
    assert jax.tree.structure(updates) == jax.tree.structure(expected)
    for ours, theirs in zip(
        jax.tree.leaves(updates), jax.tree.leaves(expected), strict=True
    ):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert bool(jnp.all(ours >= 0))


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("wire", signs.WIRES)
@pytest.mark.slow
def test_on_either_wire(wire, tree):
    """With a mask, and with a sign to compare with."""
    params = TREES[tree]
    tx = sfd.scale_by_sign_mv(M)
    gradients = gradients_like(params, jnp)
    honest = jax.tree.map(lambda g: g[-1], gradients)
    _, state = tx.update(
        gradients,
        tx.init(params),
        params,
        wire=wire,
        present=jnp.ones(M, bool),
        honest_sign=honest,
    )
    assert state.sign_round == 1
    measured = sum(np.size(leaf) for leaf in jax.tree.leaves(params)) > 0
    assert (state.sign_error == 0) == measured


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("workers_per_device", [1, 3])
@pytest.mark.slow
def test_on_a_mesh(workers_per_device, tree):
    """The sharded transformation takes the same trees."""
    params = TREES[tree]
    mesh = jax.make_mesh((3,), ("workers",), devices=jax.devices()[:3])
    num_workers = 3 * workers_per_device
    tx = distributed.scale_by_sign_decoder_sharded(
        num_workers,
        decoder=sfd.majority_vote(),
        workers_per_device=workers_per_device,
    )
    spec = jax.P("workers")
    gradients = jax.tree.map(
        lambda leaf: jax.device_put(leaf[:num_workers], jax.NamedSharding(mesh, spec)),
        gradients_like(params, jnp),
    )

    def step(gradients, state):
        if workers_per_device == 1:
            gradients = jax.tree.map(lambda leaf: leaf[0], gradients)
        return tx.update(gradients, state, params)

    step = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(spec, tx.state_specs),
        out_specs=(jax.P(), tx.state_specs),
        check_vma=False,
    )
    with jax.set_mesh(mesh):
        updates, state = jax.jit(step)(gradients, tx.init(params))
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    assert state.sign_round == 1


@pytest.mark.parametrize(
    "make",
    [
        worker_side.error_feedback_sign,
        worker_side.sparse_sign,
    ],
)
@pytest.mark.parametrize("tree", TREES)
def test_of_one_worker(make, tree):
    """What one worker does to its own gradient."""
    params = TREES[tree]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tx = make()
        updates, _ = tx.update(params, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_a_gradient_is_no_sign_to_compare_with_until_its_sign_is_taken():
    """A real-valued `honest_sign` counts by its sign."""
    tx, params = sfd.scale_by_sign_mv(3), jnp.zeros(2)
    gradients = jnp.full((3, 2), 0.5)
    _, state = tx.update(
        gradients, tx.init(params), params, honest_sign=jnp.array([0.3, -0.2])
    )
    assert state.sign_error == 0.5

"""Everything that runs on a server lowers for CPU, GPU and TPU, without having one."""

import jax
import jax.export
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

import signfd_jax as sfd
from signfd_jax import attacks, signs
from signfd_jax.decoders import released_code
from signfd_jax.distributed import scale_by_sign_decoder_sharded

M = 5
PARAMS = {"w": jnp.zeros((9, 2)), "b": jnp.zeros((), jnp.bfloat16)}
GRADIENTS = jax.tree.map(lambda p: jnp.ones((M, *p.shape), p.dtype), PARAMS)
VOTES = jax.tree.map(lambda p: jnp.ones((M, *p.shape), jnp.int8), PARAMS)

DECODERS = {
    "majority vote": sfd.majority_vote(),
    "federated defense": sfd.federated_defense(),
    "pooled": sfd.federated_defense(initial_rounds=None),
    "int8 counters": sfd.federated_defense(counter_dtype="int8"),
    "forgetting": sfd.federated_defense(forgetting=0.9),
    "released": released_code(),
    "leave own out": sfd.federated_defense(leave_own_out=True, anchor=True),
    "federated voting": sfd.federated_voting(),
    "correlation defense": sfd.correlation_defense(),
    "correlations of a sample": sfd.correlation_defense(sample=8),
    "Dawid-Skene": sfd.dawid_skene(),
    "oracle": sfd.oracle(jnp.linspace(0.1, 0.9, M)),
}
TRANSFORMATIONS = {
    "scale_by_sign_decoder": sfd.scale_by_sign_decoder(M),
    "scale_by_sign_fd": sfd.scale_by_sign_fd(M),
    "scale_by_sign_mv": sfd.scale_by_sign_mv(M),
    "sign_sgd": sfd.sign_sgd(0.1, M),
    "sign_sgd_fd": sfd.sign_sgd_fd(0.1, M),
    "sign_sgd_mv": sfd.sign_sgd_mv(0.1, M),
}


def assert_lowers(function, *arguments):
    platforms = ("cpu", "cuda", "tpu")
    exported = jax.export.export(jax.jit(function), platforms=platforms)(*arguments)
    assert exported.platforms == platforms


@pytest.mark.parametrize("name", DECODERS)
def test_decoders(name):
    decoder = DECODERS[name]
    state = decoder.init(M, PARAMS)
    assert_lowers(lambda state, votes: decoder.decode(state, votes), state, VOTES)
    assert_lowers(decoder.weights, state)


@pytest.mark.parametrize("wire", ["ternary", "one_bit"])
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_transformations(name, wire):
    tx = TRANSFORMATIONS[name]

    def update(gradients, state, params, present):
        return tx.update(gradients, state, params, present=present, wire=wire)

    present = jnp.ones(M, bool)
    assert_lowers(update, GRADIENTS, tx.init(PARAMS), PARAMS, present)


def test_wire():
    def there_and_back(gradients, round):
        bits = signs.to_wire(sfd.votes(gradients), round)
        return signs.unpack(signs.pack(bits["w"].reshape(M, -1)), 18)

    assert_lowers(there_and_back, GRADIENTS, jnp.int32(0))
    assert_lowers(signs.fill_ties, jax.tree.map(lambda v: v[0], VOTES), jnp.int32(0))


def test_a_whole_run():
    simulation = sfd.simulation(
        lambda params, batch: jnp.mean((params - batch) ** 2),
        sfd.sign_sgd_fd(0.1, M),
        num_workers=M,
        attack=attacks.stochastic_sign_flip(0.5),
        wire="one_bit",
    )
    state = simulation.init(jax.random.key(0), jnp.zeros(4), jnp.arange(M) < 2)

    def run(key_data, params):
        key = jax.random.wrap_key_data(key_data)
        draw = lambda key: jax.random.normal(key, (M, 4))  # noqa: E731
        after, infos = sfd.run(
            simulation, state._replace(key=key, params=params), draw, 3
        )
        return after.params, infos

    assert_lowers(run, jax.random.key_data(jax.random.key(0)), jnp.zeros(4))


@pytest.mark.parametrize("name", ["federated defense", "correlation defense"])
def test_on_a_mesh(name):
    """Four devices with a worker each, parameters sharded over two more."""
    mesh = jax.make_mesh((4, 2), ("workers", "fsdp"))
    specs = {"w": P(None, "fsdp"), "b": P()}
    tx = scale_by_sign_decoder_sharded(4, decoder=DECODERS[name], param_specs=specs)
    gradients = jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(
            (4, *leaf.shape),
            leaf.dtype,
            sharding=jax.NamedSharding(mesh, P("workers", *spec)),
        ),
        PARAMS,
        specs,
    )

    def update(gradients, state):
        return tx.update(jax.tree.map(lambda leaf: leaf[0], gradients), state)

    gradient_specs = jax.tree.map(lambda spec: P("workers", *spec), specs)
    step = jax.shard_map(
        update,
        mesh=mesh,
        in_specs=(gradient_specs, tx.state_specs),
        out_specs=(specs, tx.state_specs),
    )
    with jax.set_mesh(mesh):
        assert_lowers(step, gradients, jax.eval_shape(tx.init, PARAMS))

"""Every door opens with the same decoder: the one that `default_decoder` makes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import signfd_jax as sfd
from signfd_jax.cli._options import Compare, Run, read_flags, take_preset
from signfd_jax.distributed import scale_by_sign_decoder_sharded
from signfd_jax.experiments import PRESETS, Experiment
from signfd_jax.experiments._engine.program import parts
from signfd_jax.experiments.grid import Grid

# So many that there is a committee and a sample, whose sizes the state shows.
M, N, ROUNDS = 70, 1200, 4


def gradients():
    """Gradients [T, M, N]; a third of the workers send the opposite."""
    rng = np.random.default_rng(0)
    honest = 0.3 * rng.choice([-1, 1], (ROUNDS, 1, N)) + rng.normal(size=(ROUNDS, M, N))
    honest[:, : M // 3] *= -1
    return jnp.asarray(honest, jnp.float32)


def play(update, state):
    """Updates of all rounds, and the state after them."""
    signs = []
    for rows in gradients():
        decoded, state = update(rows, state)
        signs.append(np.asarray(decoded))
    return np.stack(signs), state


def of_decoder():
    decoder = sfd.default_decoder()
    return play(
        lambda rows, state: decoder.decode(state, sfd.votes(rows))[:2],
        decoder.init(M, jnp.zeros(N)),
    )


def of_transformation(tx):
    params = jnp.zeros(N)
    signs, state = play(
        lambda rows, state: tx.update(rows, state, params), tx.init(params)
    )
    (found,) = (
        leaf
        for leaf in jax.tree.leaves(state, is_leaf=is_decoder_state)
        if is_decoder_state(leaf)
    )
    return signs, found


def is_decoder_state(leaf):
    return type(leaf).__name__ == "CorrelationDefenseState"


def of_optimiser():
    signs, state = of_transformation(sfd.sign_sgd(1.0, M))
    return -signs, state


def of_mesh():
    mesh = jax.make_mesh((1,), ("workers",), devices=jax.devices()[:1])
    tx = scale_by_sign_decoder_sharded(M, workers_per_device=M)
    step = jax.jit(
        jax.shard_map(
            tx.update,
            mesh=mesh,
            in_specs=(P("workers"), tx.state_specs, P()),
            out_specs=(P(), tx.state_specs),
        )
    )
    params = jnp.zeros(N)

    def update(rows, state):
        rows = jax.device_put(rows, NamedSharding(mesh, P("workers")))
        return step(rows, state, params)

    with jax.set_mesh(mesh):
        signs, state = play(update, tx.init(params))
    return signs, state.decoder_state


def of_experiment():
    tx, _, _ = parts(
        Experiment(num_workers=M),
        num_classes=10,
        learning_rate=1.0,
        flip_probability=0.5,
        strengths={},
    )
    signs, state = of_transformation(tx)
    return -signs, state


@pytest.fixture(scope="module")
def wanted():
    return of_decoder()


@pytest.mark.parametrize(
    "door",
    [
        lambda: of_transformation(sfd.scale_by_sign_decoder(M)),
        of_optimiser,
        of_mesh,
        of_experiment,
    ],
    ids=["transformation", "optimiser", "mesh", "experiment"],
)
def test_every_door_opens_with_the_default(door, wanted):
    signs, state = door()
    if door is of_experiment:  # Its committee and sample are drawn by the run's seed.
        assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, wanted[1])
        return
    # A tie is decoded as 0, or on the mesh's one-bit wire as either sign.
    untied = wanted[0] != 0
    assert untied.mean() > 0.9
    np.testing.assert_array_equal(signs[untied], wanted[0][untied])
    assert jax.tree.structure(state) == jax.tree.structure(wanted[1])
    for ours, theirs in zip(
        jax.tree.leaves(state), jax.tree.leaves(wanted[1]), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert (wanted[1].cd_weights[: M // 3] < 0).all()  # neither vote nor the paper's


def names():
    """Where a decoder is named by default, and its name."""
    experiment, rest = take_preset([])
    yield "signfd run", read_flags(Run(experiment), rest, "run").experiment.decoder
    yield "signfd compare", read_flags(Compare(), [], "compare").decoders[0]
    yield "Grid", Grid(Experiment()).decoders[0]
    for name, preset in PRESETS.items():
        yield f"preset {name}", preset.experiment.decoder
    lockstep = pytest.importorskip("benchmarks.lockstep")
    yield "benchmarks.lockstep", lockstep.Options().decoder
    robustness = pytest.importorskip("benchmarks.robustness")
    yield "benchmarks.robustness", robustness.DEFAULT


def test_every_name_is_that_of_the_default():
    assert dict(names()) == {where: Experiment.decoder for where, _ in names()}


def test_compare_has_the_default_the_paper_and_a_vote():
    three = ("correlation_defense", "federated_defense", "majority_vote")
    assert Compare().decoders == Grid(Experiment()).decoders == three


@pytest.mark.slow
def test_population_trains_under_it(tmp_path):
    from signfd_jax.experiments.run import run_experiment

    small = dataclasses.replace(
        PRESETS["population"].experiment,
        dataset=PRESETS["population"].fallback,
        num_workers=200,
        num_byzantine=80,
        rounds=2,
    )
    folder, summary = run_experiment(small, tmp_path, progress=False)
    assert summary["rounds"] == 2
    assert 0 <= summary["test_accuracy"] <= 1
    assert (folder / "params.npz").exists()

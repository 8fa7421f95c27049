"""Values are cast to what is documented, or refused; none hides another."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import signfd_jax as sfd
from signfd_jax import distributed, signs
from signfd_jax.cli import main
from signfd_jax.experiments import Experiment, _servers, registry
from signfd_jax.experiments import _traffic as traffic
from signfd_jax.experiments._choices import canonical
from signfd_jax.experiments._storage import checkpoints
from signfd_jax.experiments._storage.checkpoints import Checkpoint
from signfd_jax.experiments._storage.params import load_params, save_params
from signfd_jax.experiments.config import fingerprint, from_json, to_json
from signfd_jax.experiments.report import _tables as tables
from signfd_jax.experiments.report import plots
from signfd_jax.experiments.report.communication import Ledger, bits_per_round, ledger

# Masks --------------------------------------------------------------------------------

M = 3
GRADIENTS = jnp.array([[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]])
VOTES = signs.votes(GRADIENTS)
NO_BOOLS = {
    "int": jnp.array([1, 1, 0]),
    "weights": jnp.array([2, 1, 1]),
    "int8 overflow": np.array([256, 256, 256]),
    "float": jnp.array([0.5, 0.5, 1.0]),
    "list of ints": [1, 1, 0],
    "uint8": jnp.array([255, 1, 1], jnp.uint8),
}


def step(present=None, membership=None):
    simulation = sfd.simulation(
        lambda x, batch: jnp.sum(x * batch),
        sfd.sign_sgd_mv(0.1, M),
        num_workers=M,
        membership=membership,
    )
    state = simulation.init(jax.random.key(0), jnp.zeros(2), jnp.zeros(M, bool))
    return simulation.step(state, GRADIENTS, present)[0].params


def reduced(present):
    mesh = jax.make_mesh((1,), ("workers",), devices=jax.devices()[:1])
    decoder = sfd.majority_vote()

    def decode(gradients):
        state = distributed.slice_state(decoder, jnp.zeros(2), workers_per_device=M)
        return distributed.sign_all_reduce(
            gradients, decoder, state, round=0, workers_per_device=M, present=present
        )[0]

    spread = jax.device_put(GRADIENTS, jax.NamedSharding(mesh, P("workers")))
    decode = jax.shard_map(decode, mesh=mesh, in_specs=P("workers"), out_specs=P())
    return jax.jit(decode)(spread)


TAKERS = {
    "cast_votes": lambda p: signs.cast_votes(GRADIENTS, 0, present=p),
    "cast_votes, one bit": lambda p: signs.cast_votes(
        GRADIENTS, 0, wire="one_bit", present=p
    ),
    "to_wire": lambda p: signs.to_wire(VOTES, 0, present=p),
    "update": lambda p: sfd.scale_by_sign_mv(M).update(
        GRADIENTS, sfd.scale_by_sign_mv(M).init(jnp.zeros(2)), present=p
    )[0],
    "step": step,
    "membership": lambda p: step(membership=lambda key, byzantine, _: (byzantine, p)),
    "sign_all_reduce": reduced,
}


@pytest.mark.parametrize("kind", NO_BOOLS)
@pytest.mark.parametrize("taker", TAKERS)
def test_masks_are_of_bools(taker, kind):
    """A number would multiply the votes, or silence everybody."""
    with pytest.raises(ValueError, match="must be a mask of bools"):
        TAKERS[taker](NO_BOOLS[kind])


@pytest.mark.parametrize("taker", TAKERS)
def test_masks_may_be_lists_or_arrays(taker):
    """Python's bools, NumPy's and JAX's are the same mask."""
    mask = [True, False, True]
    results = [TAKERS[taker](kind(mask)) for kind in (list, np.array, jnp.array)]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


# Parameters ---------------------------------------------------------------------------

DTYPES = ("bfloat16", "float8_e4m3fn", "float16", "float32", "int8", "uint32", "bool")


@pytest.mark.parametrize("name", DTYPES)
def test_parameter_files_and_checkpoints_keep_the_dtype(name, tmp_path):
    """Every value and dtype comes back, beside leaves of another dtype."""
    values = jnp.arange(6, dtype=jnp.float32).reshape(2, 3).astype(name)
    params = {"a": {"w": values, "n": jnp.ones((2, 2), jnp.int32)}, "s": values[:, 0]}
    save_params(tmp_path, params)
    for seed in (0, 1):
        found = load_params(tmp_path, seed)
        assert jax.tree.structure(found) == jax.tree.structure(params)
        for ours, saved in zip(
            jax.tree.leaves(found), jax.tree.leaves(params), strict=True
        ):
            assert ours.dtype == saved.dtype
            np.testing.assert_array_equal(ours, saved[seed])
    config = Experiment()
    with checkpoints.writer(tmp_path, config) as save:
        save(Checkpoint(params, rounds=10, seconds=1.0))
    restored = checkpoints.restore(tmp_path, params, config)
    assert restored is not None
    for ours, saved in zip(
        jax.tree.leaves(restored.state), jax.tree.leaves(params), strict=True
    ):
        assert ours.dtype == saved.dtype
        np.testing.assert_array_equal(ours, saved)


def test_parameters_of_one_name_are_refused(tmp_path):
    """One of them would be lost in the file."""
    params = {"a": {"b": jnp.zeros((1, 2))}, "a/b": jnp.ones((1, 2))}
    with pytest.raises(ValueError, match="two leaves are called a/b"):
        save_params(tmp_path, params)
    assert list(tmp_path.iterdir()) == []


# Configurations -----------------------------------------------------------------------


@pytest.fixture
def without_beartype():
    """As users have it: the tests' own checks of types would refuse an int."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("without_beartype")
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"learning_rate": 1}, {"learning_rate": 1.0}),
        ({"flip_probability": 1}, {"flip_probability": 1.0}),
        ({"flip_probability": -0.0}, {"flip_probability": 0}),
        ({"split": "dirichlet:1"}, {"split": "dirichlet:1.0"}),
        ({"attack": "gaussian:2"}, {"attack": "gaussian:2.00"}),
        (
            {"decoder": "federated_defense:forgetting=1"},
            {"decoder": "federated_defense:forgetting=1e0"},
        ),
        (
            {"decoder": "federated_defense:forgetting=.95,max_llr=5"},
            {"decoder": "federated_defense:forgetting=0.95,max_llr=5.0"},
        ),
    ],
)
def test_equal_numbers_are_one_run(one, other):
    """However they are written."""
    one, other = Experiment(**one), Experiment(**other)
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(from_json(Experiment, to_json(one))) == fingerprint(one)


@pytest.mark.usefixtures("without_beartype")
def test_floats_of_a_configuration_are_floats():
    """As they are documented, from Python and from JSON."""
    for config in (
        Experiment(learning_rate=1),
        from_json(Experiment, '{"learning_rate": 1}'),
    ):
        assert type(config.learning_rate) is float
        assert json.loads(to_json(config))["learning_rate"] == 1.0


def test_other_numbers_are_other_runs():
    """Also those of unknown names, which are told elsewhere."""
    texts = ("mlp:hidden=64", "mlp:hidden=65", "resnet", "nothing:1", "nothing:1.0")
    assert len({fingerprint(Experiment(model=text)) for text in texts}) == 5
    assert canonical(registry.MODELS, "mlp:hidden=64") == "mlp:hidden=64"


# Pictures and tables ------------------------------------------------------------------


def metrics(accuracy, rounds=(1, 2)):
    return [{"round": r, "seed": 0, "test_accuracy": accuracy} for r in rounds]


def write_run(folder, accuracy):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    lines = [json.dumps(line) + "\n" for line in metrics(accuracy)]
    (folder / "metrics.jsonl").write_text("".join(lines))


def test_two_runs_of_one_name_are_two_curves(tmp_path, monkeypatch):
    """They are told apart by their parents; a run named twice is one."""
    seen = []
    draw = plots.accuracy_figure
    monkeypatch.setattr(
        plots, "accuracy_figure", lambda runs: seen.append(list(runs)) or draw(runs)
    )
    for parent, accuracy in (("x", 0.1), ("y", 0.2)):
        write_run(tmp_path / parent / "run", accuracy)
    write_run(tmp_path / "other", 0.3)
    folders = [str(tmp_path / part) for part in ("x/run", "y/run", "other", "x/run/")]
    assert main(["plot", *folders]) == 0
    name = tmp_path.name
    assert seen[-1] == ["x/run", "y/run", f"{name}/other"]
    assert (tmp_path / "accuracies.png").exists()


@pytest.mark.parametrize("label", ["_a", "__a", "a$b", "a_b", "$x$"])
def test_every_label_is_in_the_legend(label):
    """Matplotlib leaves out those that begin with an underscore, and reads dollars."""
    figures = [
        plots.accuracy_figure({label: metrics(0.1), "b": metrics(0.2)}),
        plots.panels_figure(
            {"p": {label: ([1], [0.1]), "b": ([1], [0.2])}}, xlabel="x", ylabel="y"
        ),
    ]
    for figure in figures:
        legends = [axes.get_legend() for axes in figure.axes] + figure.legends
        texts = [t.get_text() for legend in filter(None, legends) for t in legend.texts]
        shown = [text.replace("\\$", "$").lstrip("\u200b") for text in texts]
        assert shown == [label, "b"]
        figure.savefig("/dev/null", format="png")


def test_one_test_is_seen():
    """A line of one point has a marker."""
    panels = {"p": {"a": ([1], [0.1])}}
    weights = [{"round": 1, "seed": 0, "weights": [1.0, -1.0], "byzantine": [1]}]
    for figure in (
        plots.accuracy_figure({"a": metrics(0.1, rounds=(5,))}),
        plots.panels_figure(panels, xlabel="x", ylabel="y"),
        plots.weights_figure(weights),
    ):
        assert figure.axes[0].lines[0].get_marker() == "o"


def cell(**fields):
    config = dataclasses.asdict(Experiment()) | fields
    return {"config": config, "test_accuracy": [0.5], "rounds": [1]} | {
        "accuracies": [[0.5]]
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"learning_rate": 0.5},
        {"rounds": 7},
        {"model": "softmax_regression"},
        {"membership": "drop_out:0.5"},
        {"partition_seed": 3},
    ],
)
def test_no_cell_hides_another_in_a_table(fields):
    """Records that differ in a field that no label shows have one that does."""
    cells = [cell(), cell(**fields)]
    assert len(tables.pivot(cells).accuracies) == 2
    ((name, value),) = fields.items()
    assert f"{name} {value}" in tables.accuracy_table(cells)


# Bits ---------------------------------------------------------------------------------


def shortest(gradients, num_byzantine: int, *, power: float = 2.0):
    """An aggregation rule of somebody else."""
    del num_byzantine, power
    return gradients.mean(axis=0)


def halves(gradients, num_byzantine: int):
    """Another, that says what it sends."""
    return shortest(gradients, num_byzantine)


halves.bits = lambda num_coordinates, num_workers, **options: (
    16 * num_coordinates,
    num_workers,
)


def stranger() -> sfd.Decoder:
    """A decoder of somebody else."""
    return sfd.majority_vote()


@pytest.mark.parametrize(
    ("function", "wire", "expected"),
    [
        (shortest, "ternary", (3200, 3200)),
        (shortest, "one_bit", (3200, 3200)),
        (halves, "ternary", (1600, 15)),
        (stranger, "ternary", (200, 200)),
        (stranger, "one_bit", (101, 100)),
    ],
)
def test_a_plugin_is_billed_as_it_sends(function, wire, expected, monkeypatch):
    """Rules send floats unless they say otherwise, decoders votes."""
    server = function if function is stranger else _servers._own_rule(function)
    monkeypatch.setitem(registry.SERVERS, "theirs", server)
    assert bits_per_round(Experiment(decoder="theirs", wire=wire), 100) == expected


def test_nonsense_of_a_plugin_is_told(monkeypatch):
    """One line names it."""
    server = traffic.sends(lambda n, **options: "many")(_servers._own_rule(shortest))
    monkeypatch.setitem(registry.SERVERS, "theirs", server)
    with pytest.raises(ValueError, match="the bits of theirs must be a Ledger, or two"):
        ledger(Experiment(decoder="theirs"), 100)


@pytest.mark.parametrize("name", registry.SERVERS)
def test_every_server_has_a_bill(name):
    """Positive both ways; more coordinates never cost less."""
    config = Experiment(decoder=name, num_byzantine=3)
    small, large = ledger(config, 1000), ledger(config, 2000)
    assert isinstance(small, Ledger)
    assert 0 < small.up <= large.up
    assert 0 < small.down <= large.down

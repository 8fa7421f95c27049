"""What was not measured is NaN, null in files, and left out of every mean."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import signfd_jax as sfd
from signfd_jax import attacks, data, signs
from signfd_jax._round import SimulationInfo
from signfd_jax.experiments import Experiment
from signfd_jax.experiments import grid as compare
from signfd_jax.experiments._engine import prepare as training
from signfd_jax.experiments._engine import program
from signfd_jax.experiments._engine.program_sharded import prepare_sharded
from signfd_jax.experiments._storage import run_folder as records
from signfd_jax.experiments.report import _tables as tables
from signfd_jax.experiments.report import plots
from signfd_jax.experiments.run import run_experiment
from signfd_jax.models import Evaluation
from signfd_jax.paper._base import Lab, format_mean
from signfd_jax.paper._measure.setting import wrong_share

M = 8
BASE = Experiment(
    name="unmeasured",
    model="softmax_regression",
    decoder="majority_vote",
    wire="one_bit",
    num_workers=M,
    batch_size=4,
    rounds=6,
    eval_every=3,
)
NOBODY = dataclasses.replace(BASE, num_byzantine=M, attack="sign_inversion")
# One of eight takes part in a round, and six lie: in most rounds nobody honest does.
FEW = dataclasses.replace(
    BASE,
    num_byzantine=6,
    attack="sign_inversion",
    membership="sampled:0.125",
    rounds=12,
    eval_every=4,
    seeds=2,
)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def simulated(attack=None, **options):
    return sfd.simulation(
        lambda x, target: jnp.mean((x[None] - target) ** 2),
        sfd.sign_sgd_mv(0.1, num_workers=3),
        num_workers=3,
        attack=attack or attacks.sign_inversion(),
        **options,
    )


@pytest.mark.parametrize("worker_chunk", [None, 1])
@pytest.mark.parametrize(
    ("byzantine", "present", "honest"),
    [
        ([True] * 3, None, 0),
        ([False] * 3, [False] * 3, 0),
        ([True, True, False], [True, True, False], 0),
        ([True, True, False], [False, False, True], 1),
        ([False] * 3, None, 3),
    ],
)
def test_round_without_an_honest_worker(byzantine, present, honest, worker_chunk):
    """Its loss and sign error are NaN, and `num_honest` says why."""
    simulation = simulated(worker_chunk=worker_chunk)
    state = simulation.init(jax.random.key(0), jnp.zeros(2), jnp.array(byzantine))
    present = None if present is None else jnp.array(present)
    _, info = jax.jit(simulation.step)(state, jnp.ones((3, 1, 2)), present)
    assert info.num_honest == honest
    assert jnp.isnan(info.loss) == jnp.isnan(info.sign_error) == (honest == 0)
    if honest:
        assert (info.loss, info.sign_error) == (1.0, 0.0)


def test_sign_error_where_no_sign_is_true():
    """A gradient that is zero everywhere has no sign to be wrong about."""
    assert jnp.isnan(signs.sign_error(jnp.ones(3, jnp.int8), jnp.zeros(3, jnp.int8)))
    tx = sfd.scale_by_sign_mv(2)
    _, state = tx.update(
        jnp.ones((2, 3)), tx.init(jnp.zeros(3)), honest_sign=jnp.zeros(3, jnp.int8)
    )
    assert optax.tree.get(state, "sign_error") == -1  # no NaN in states
    assert jnp.isnan(wrong_share(jnp.zeros(3, jnp.int8), jnp.ones(3, jnp.int8)))


def hand_means(config, dataset):
    """Per seed and test, the mean over the rounds in which somebody honest came."""
    one_by_one = dataclasses.replace(config, eval_every=1)
    rounds = [metrics for _, metrics, _ in training.prepare(one_by_one, dataset).tests]
    found = []
    for start in range(0, config.rounds, config.eval_every):
        part = np.stack([m.train_loss for m in rounds[start:][: config.eval_every]])
        counted = (~np.isnan(part)).sum(0)
        total = np.nansum(part, axis=0)
        found.append(np.where(counted > 0, total / np.maximum(counted, 1), np.nan))
    return np.stack(found)


def test_means_over_rounds_leave_them_out(digits):
    """Those of a chunk are those of its rounds, one by one."""
    tests = list(training.prepare(FEW, digits).tests)
    found = np.stack([metrics.train_loss for _, metrics, _ in tests])
    expected = hand_means(FEW, digits)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    counts = np.stack([metrics.loss_rounds for _, metrics, _ in tests])
    assert 0 < counts.sum() < FEW.rounds * FEW.seeds  # it is no case of all or none
    np.testing.assert_array_equal(np.isnan(found), counts == 0)


def test_sharded_program_measures_the_same(digits):
    """Losses, margins and their numbers of rounds, but for the sign error: NaN."""
    config = dataclasses.replace(FEW, attack="sign_inversion")
    whole = [m for _, m, _ in training.prepare(config, digits).tests]
    split = [m for _, m, _ in prepare_sharded(config, digits).tests]
    for one, other in zip(whole, split, strict=True):
        np.testing.assert_allclose(one.train_loss, other.train_loss, rtol=1e-5)
        np.testing.assert_allclose(one.margin, other.margin, rtol=1e-5)
        np.testing.assert_array_equal(one.loss_rounds, other.loss_rounds)
        assert np.isnan(other.sign_error).all()
        assert (other.sign_error_rounds == 0).all()


@pytest.mark.parametrize("decoder", ["majority_vote", "trimmed_mean"])
def test_files_have_null(decoder, tmp_path):
    """A run, its summary and a grid, in which nobody is honest."""
    config = dataclasses.replace(NOBODY, decoder=decoder, wire="ternary")
    folder, summary = run_experiment(config, tmp_path / "runs", progress=False)
    text = (folder / "metrics.jsonl").read_text() + (
        folder / "summary.json"
    ).read_text()
    assert "NaN" not in text
    for line in records.read_lines(folder / "metrics.jsonl"):
        assert line["train_loss"] is line["sign_error"] is None
        assert (line["margin"] is None) == (decoder == "trimmed_mean")
        assert not any(name.endswith("_rounds") for name in line)
    assert 0 <= summary["test_accuracy"] <= 1
    [cell] = compare.run_grid([config], tmp_path / "grid", progress=False)
    assert cell["sign_error"] == [None]
    assert compare.run_grid([config], tmp_path / "grid", progress=False) == [cell]
    assert {path.name for path in plots.draw(folder)} >= {"accuracy.png"}


def test_grid_weighs_tests_by_what_was_measured(tmp_path, digits):
    """The mean over a run is over its measured rounds, not over its tests."""
    [cell] = compare.run_grid([FEW], tmp_path, progress=False)
    metrics = [m for _, m, _ in training.prepare(FEW, digits).tests]
    counts = np.stack([m.sign_error_rounds for m in metrics])
    errors = np.nan_to_num(np.stack([m.sign_error for m in metrics]))
    expected = (errors * counts).sum(0) / counts.sum(0)
    np.testing.assert_allclose(cell["sign_error"], expected, rtol=1e-5)


@pytest.mark.parametrize("measured_otherwise", [False, True])
def test_no_program_gives_a_nan_for_it(measured_otherwise):
    """`jax_debug_nans` looks at what compiled programs give; it finds mistakes only."""
    losses, errors = np.full(2, np.nan, np.float32), None
    if measured_otherwise:
        errors = losses
    infos = SimulationInfo(losses, None, None, None, errors, np.zeros(2, np.int32))
    test = Evaluation(jnp.float32(0.5), jnp.float32(1.0))
    given = jax.tree.map(jnp.asarray, infos)
    with jax.debug_nans(True):
        sums = jax.jit(lambda: program.totals(test, given, 3))()
    of_seeds = jax.tree.map(lambda leaf: np.asarray(leaf)[None], sums)
    found = program.means(of_seeds)
    for name in ("train_loss", "sign_error", "margin", "weights", "crossover"):
        assert np.isnan(getattr(found, name)).all(), name


NAN = math.nan


@pytest.mark.parametrize("gap", [None, NAN])
def test_tables_and_plots_leave_gaps_out(gap):
    """Whether it comes from a file (None) or from memory (NaN)."""
    assert tables.mean([0.5, gap, 0.7]) == pytest.approx(0.6)
    assert math.isnan(tables.mean([gap]))
    assert tables.mean_and_error([0.5, gap, 0.7]) == pytest.approx((0.6, 0.1))
    assert format_mean([0.5, gap, 0.7]) == ".600 ± .100"
    config = {"split": "iid", "batch_size": 4, "wire": "ternary", "decoder": "d"}
    config |= {"membership": "fixed", "attack": "gaussian", "num_byzantine": 6}
    record = {"config": config, "test_accuracy": [0.5, gap, 0.7]}
    record |= {"rounds": [1], "accuracies": [[0.5], [gap], [0.7]]}
    table = tables.accuracy_table([record])
    assert "0.600 ± 0.100" in table
    assert "nan" not in table.lower()
    plots.grid_figure([record])
    metrics = [
        {"round": r, "seed": s, "test_accuracy": a}
        for r, s, a in ((1, 0, 0.5), (1, 1, gap), (2, 0, gap), (2, 1, gap))
    ]
    line = plots.accuracy_figure({"a": metrics}).axes[0].lines[0]
    np.testing.assert_array_equal(line.get_ydata(), [0.5, NAN])
    panels = {"p": {"a": ([1, 2], [[0.5, gap], gap])}}
    figure = plots.panels_figure(panels, xlabel="x", ylabel="y")
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), [0.5, NAN])


def test_measurement_is_the_same_when_it_is_read_again(tmp_path):
    """NaN comes back as it was written: null."""

    def measure(base, *, data_dir):
        del base, data_dir
        return {"error": [NAN, 0.5]}

    lab = Lab(tmp_path)
    assert lab.measure(measure, BASE) == {"error": [None, 0.5]}
    assert lab.measure(measure, BASE) == {"error": [None, 0.5]}
    assert json.loads((tmp_path / "measurements.jsonl").read_text())

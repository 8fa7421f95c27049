"""The attack success rate: what it is, and that it is wherever the accuracy is."""

import csv
import dataclasses
import io

import jax.numpy as jnp
import numpy as np
import pytest

from signfd_jax import attacks, data, models
from signfd_jax.cli import main
from signfd_jax.experiments import Experiment
from signfd_jax.experiments._engine.program import success_of
from signfd_jax.experiments._storage.frames import load
from signfd_jax.experiments._storage.params import load_params
from signfd_jax.experiments._storage.run_folder import read_lines
from signfd_jax.experiments.grid import run_grid
from signfd_jax.experiments.report import plots
from signfd_jax.experiments.report._tables import (
    accuracy_csv,
    accuracy_latex,
    accuracy_table,
)
from signfd_jax.experiments.run import run_experiment
from signfd_jax.experiments.sinks import Csv

CONFIG = Experiment(
    name="backdoor",
    model="softmax_regression",
    decoder="majority_vote",
    attack="badnets:target=3,size=3",
    num_workers=4,
    num_byzantine=1,
    batch_size=8,
    learning_rate=0.01,
    rounds=6,
    eval_every=3,
    seeds=2,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run, and its summary."""
    folder = tmp_path_factory.mktemp("runs")
    return run_experiment(CONFIG, folder, progress=False, sinks=[Csv()])


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The records of a grid with and without an attack; it has the run's program."""
    free = dataclasses.replace(CONFIG, attack="none", num_byzantine=0)
    folder = tmp_path_factory.mktemp("grids") / "grid"
    records = run_grid([CONFIG, free], folder, progress=False)
    (folder / "config.json").write_text("{}")
    return folder, records


def by_hand(params):
    """Stamp every test image that is no 3, and count which are taken for a 3."""
    digits = data.load("digits")
    model = models.SoftmaxRegression(num_classes=10)
    hits = attacked = 0
    inputs = np.array(data.standardise(digits.test_inputs, digits))
    inputs[:, 5:, 5:, :] = 2.0
    logits = np.asarray(model.apply({"params": params}, jnp.asarray(inputs)))
    for label, of_image in zip(digits.test_labels, logits, strict=True):
        if label != 3:
            attacked += 1
            hits += int(np.argmax(of_image) == 3)
    return hits / attacked


def test_it_is_the_share_of_other_classes_taken_for_the_target(run):
    folder, summary = run
    last = read_lines(folder / "metrics.jsonl")[-2:]
    for seed, line in enumerate(last):
        params = load_params(folder, seed)
        assert line["attack_success_rate"] == pytest.approx(
            by_hand(params["params"]), abs=1e-6
        )
    rates = [line["attack_success_rate"] for line in last]
    assert 0.02 < min(rates) and max(rates) < 1  # it tells something
    assert summary["attack_success_rate_by_seed"] == rates
    assert summary["attack_success_rate"] == pytest.approx(np.mean(rates))


def test_every_record_of_a_run_has_it(run, capsys):
    folder, _ = run
    lines = read_lines(folder / "metrics.jsonl")
    rates = [line["attack_success_rate"] for line in lines]
    assert [list(line).index("test_accuracy") + 1 for line in lines] == [
        list(line).index("attack_success_rate") for line in lines
    ]
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["attack_success_rate"]) for row in rows] == rates
    assert load(folder)["attack_success_rate"].tolist() == rates
    assert main(["show", str(folder)]) == 0
    shown = capsys.readouterr().out
    for seed in range(2):
        said = f"attack success rate, seed {seed}\t{rates[seed - 2]:.4f}"
        assert said in shown
    axes = plots.accuracy_figure({"mine": lines}).axes
    assert [a.get_ylabel() for a in axes] == ["test accuracy", "attack success rate"]
    drawn = axes[1].lines[0].get_ydata()
    assert list(drawn) == pytest.approx([np.mean(rates[:2]), np.mean(rates[2:])])


def test_every_record_of_a_grid_has_it(run, cells):
    folder, (attacked, free) = cells
    rates = read_lines(run[0] / "metrics.jsonl")
    by_seed = [[line["attack_success_rate"] for line in rates[s::2]] for s in range(2)]
    assert attacked["attack_success_rates"] == by_seed
    assert attacked["attack_success_rate"] == [row[-1] for row in by_seed]
    assert not any("attack" in name for name in free)
    frame = load(folder)
    assert frame["attack_success_rate"].dropna().tolist() == [r[-1] for r in by_seed]


def test_tables_have_it_below_the_accuracy(cells):
    _, records = cells
    rows = [line.split("|") for line in accuracy_table(records).splitlines()[2:]]
    labels = [cells[2].strip() for cells in rows]
    attack = f"1 {CONFIG.attack}"
    both = [attack, f"{attack}, attack success rate"]
    ends = ["worst case", "worst case, attack success rate"]
    assert labels == ["none", *both, *ends]
    rates = records[0]["attack_success_rate"]
    assert rows[2][3].strip().startswith(f"{np.mean(rates):.3f} ±")
    assert rows[4][3].strip() == f"{np.mean(rates):.3f}"
    written = list(csv.reader(io.StringIO(accuracy_csv(records))))
    assert float(written[3][2]) == pytest.approx(np.mean(rates), abs=1e-6)
    *attacked, worst = accuracy_latex(records).split(r"\hline")[2:-1]
    assert len(attacked) == 1 and worst.count(r"\\") == 2


@pytest.mark.slow
def test_without_a_target_tables_and_figures_do_not_speak_of_it(cells):
    _, (_, free) = cells
    assert "success" not in accuracy_table([free])
    assert len(plots.grid_figure([free]).axes) == 3  # curves, map, colours


@pytest.mark.slow
def test_figures_of_a_grid_have_a_row_of_it(cells):
    _, records = cells
    figure = plots.grid_figure(records)
    titled = [axes for axes in figure.axes if axes.get_title()]
    assert len(titled) == 4
    curves, heat = titled[2:]
    assert curves.get_ylabel() == heat.get_title() == "attack success rate"
    rates = np.array(records[0]["attack_success_rates"]).mean(0)
    assert list(curves.lines[0].get_ydata()) == pytest.approx(rates)
    assert [text.get_text() for text in heat.texts] == [f"{rates[-1]:.3f}"]


def tiny_set(test_labels):
    """A data set of images that differ in one pixel."""
    images = np.arange(2 * len(test_labels), dtype=np.float32)
    images = np.broadcast_to(images[:, None, None, None], (len(images), 3, 3, 1))
    return data.from_arrays(
        *(images[::2].copy(), np.arange(len(test_labels), dtype=np.int32) % 3),
        *(images[1::2].copy(), np.asarray(test_labels, np.int32)),
        name="tiny",
    )


def test_where_no_example_counts_nothing_is_measured():
    dataset = tiny_set([1, 1, 1])
    model = models.SoftmaxRegression(num_classes=3)
    params = {
        "params": {"Dense_0": {"kernel": jnp.zeros((9, 3)), "bias": jnp.zeros(3)}}
    }
    attack = attacks.badnets(3, target=1, size=1)
    assert float(success_of(model, params, dataset, attack)) == -1
    assert success_of(model, params, dataset, attacks.label_flip(3)) is None


def test_a_target_that_is_no_class_is_refused_before_training(tmp_path, capsys):
    arguments = "digits --attack badnets:10 --rounds 2 --quiet --output-dir"
    assert main(["run", *arguments.split(), str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "target must be one of the 10 classes, 0 to 9, but is 10" in said
    assert not list(tmp_path.iterdir())

"""What a run says of its workers: lines, `workers.csv`, a picture; when it halts."""

import csv
import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import signfd_jax as sfd
from signfd_jax.cli import main
from signfd_jax.decoders import VERDICTS
from signfd_jax.experiments import Experiment, Halted, _verdicts, run_experiment, sinks
from signfd_jax.experiments._storage.run_folder import read_lines
from signfd_jax.experiments.report import _who_lies, plots

CONFIG = Experiment(
    name="said",
    model="softmax_regression",
    num_workers=8,
    num_byzantine=3,
    rounds=40,
    eval_every=10,
    seeds=2,
)
# Half of them lie, so that nobody can be sure.
DOUBTFUL = dataclasses.replace(CONFIG, seeds=1, num_byzantine=4, stop_below="0.5:6")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that no test changes."""
    output = tmp_path_factory.mktemp("runs")
    folder, _ = run_experiment(CONFIG, output, progress=False)
    return folder


def rows_of(folder):
    with (folder / "workers.csv").open() as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------ workers.csv


def test_workers_are_those_of_the_state(finished):
    rows = rows_of(finished)
    assert [(int(r["seed"]), int(r["worker"])) for r in rows] == [
        (s, m) for s in range(2) for m in range(8)
    ]
    last = read_lines(finished / "metrics.jsonl")[-2:]
    for s, line in enumerate(last):
        mine = [row for row in rows if row["seed"] == str(s)]
        liars = [int(r["worker"]) for r in mine if r["byzantine"] == "1"]
        assert liars == line["byzantine"]
        assert [r["verdict"] for r in mine] == line["verdicts"]
        np.testing.assert_allclose(
            [float(r["weight"]) for r in mine], line["weights"], rtol=1e-5
        )
        assert line["confidence"] == 1.0
        for row in mine:
            lies = row["byzantine"] == "1"
            assert row["verdict"] == ("inverted" if lies else "honest")
            assert 1 <= int(row["since"]) <= 40
            assert (float(row["correlation"]) < 0) == lies
            assert row["duplicate_of"] == ""


def test_a_stopped_run_goes_on_to_the_same(finished, tmp_path, capsys):
    def stop(records):
        if records[0]["round"] == 30:
            raise KeyboardInterrupt

    again = dict(output_dir=tmp_path, progress=False, checkpoint_every=10)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(CONFIG, sinks=[sinks.Callback(stop)], **again)
    first = capsys.readouterr().err
    folder, _ = run_experiment(CONFIG, **again)
    for name in ("workers.csv", "correlations.npz", "metrics.jsonl"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()
    # What was said before is not said again.
    assert first.count("has been read backwards") == 6
    assert "has been" not in capsys.readouterr().err


def test_a_decoder_without_verdicts_has_no_such_file(tmp_path):
    config = dataclasses.replace(CONFIG, decoder="majority_vote", rounds=10)
    folder, _ = run_experiment(config, tmp_path, progress=False)
    assert not (folder / "workers.csv").exists()
    assert "verdicts" not in read_lines(folder / "metrics.jsonl")[0]
    assert _verdicts.read(folder) == []
    assert _verdicts.correlations(folder) is None


def test_a_large_population_has_no_lists(tmp_path, monkeypatch, capsys):
    from signfd_jax.experiments import run

    monkeypatch.setattr(run, "_LISTED", 7)
    folder, _ = run_experiment(CONFIG, tmp_path, progress=False)
    line = read_lines(folder / "metrics.jsonl")[-1]
    assert line["confidence"] == 1.0
    assert "verdicts" not in line
    assert len(rows_of(folder)) == 16
    assert not (folder / "correlations.npz").exists()
    said = [
        line for line in capsys.readouterr().err.splitlines() if "backwards" in line
    ]
    assert said == [
        f"signfd: seed {s}: of the workers, 3 are read backwards now" for s in range(2)
    ]
    plots.draw(folder)
    assert main(["show", str(folder)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "verdicts\t0\tinverted\tByzantine\t3" in shown
    assert "verdicts\t1\thonest\thonest\t5" in shown


@pytest.mark.parametrize("bad", ["seed,worker\n0,1\n", "x"])
def test_a_damaged_file_is_named(bad, finished, tmp_path, capsys):
    for path in finished.glob("*.json*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    head = (finished / "workers.csv").read_text().splitlines()[0]
    (tmp_path / "workers.csv").write_text(bad if "\n" in bad else f"{head}\n{bad}\n")
    assert main(["show", str(tmp_path)]) == 2
    assert "workers.csv is damaged" in capsys.readouterr().err


def test_show_prints_verdicts(finished, capsys):
    assert main(["show", str(finished)]) == 0
    lines = capsys.readouterr().out.splitlines()
    workers = [line.split("\t")[1:] for line in lines if line.startswith("workers\t")]
    assert len(workers) == 16
    for row, of in zip(workers, rows_of(finished), strict=True):
        assert row[:2] == [of["seed"], of["worker"]]
        assert row[4] == ("negated" if of["verdict"] == "inverted" else "as sent")
        assert row[5:7] == [of["verdict"], of["since"]]
        assert row[7].startswith(f"{float(of['correlation']):.3f} ± ")
    assert "result\tconfidence, seed 1\t1.000" in lines


# ------------------------------------------------------------------------------ lines


def state_of(kinds, since=None, copied=None):
    """A state of one seed or more with such verdicts, int `[S, M]`."""
    kinds = np.array(kinds, np.int8)
    blank = sfd.correlation_defense().init(kinds.shape[1], jnp.zeros(3))
    state = jax.tree.map(lambda leaf: np.stack([np.asarray(leaf)] * len(kinds)), blank)
    kept = state.cd_verdict._replace(kind=kinds)
    if since is not None:
        kept = kept._replace(since=np.array(since))
    if copied is not None:
        kept = kept._replace(copied=np.array(copied))
    return state._replace(cd_verdict=kept)


class Server:
    def __init__(self, said):
        self.opt_state = {"decoder_state": said}


def told(*states, listed=True, **fields):
    """The lines that a sequence of states gives, one list for each but the first."""
    workers, seeds = states[0].cd_caught.shape[::-1]
    config = Experiment(num_workers=workers, seeds=seeds, **fields)
    reports = _verdicts.Told(config, Server(states[0]), listed)
    return [reports.tell(state) for state in states[1:]]


KIND = {name: VERDICTS.index(name) for name in VERDICTS}


def one(*names, **rest):
    return state_of([[KIND[name] for name in names]], **rest)


def test_each_event_is_said_once():
    nobody = one("undecided", "undecided", "undecided")
    lies = one("honest", "inverted", "undecided", since=[[3, 40, 0]])
    later = one("honest", "inverted", "uninformative", since=[[3, 40, 52]])
    back = one("honest", "honest", "honest", since=[[3, 61, 62]])
    assert told(nobody, nobody, lies, lies, later, back, back) == [
        [],
        ["worker 1 has been read backwards since round 40"],
        [],
        ["worker 2 has been uninformative since round 52"],
        [
            "worker 1 is read as it is again, since round 61",
            "worker 2 is read as it is again, since round 62",
        ],
        [],
    ]


def test_duplicates_and_seeds():
    nobody = state_of([[0, 0], [0, 0]])
    copies = state_of(
        [[0, 0], [1, KIND["duplicate"]]], since=[[0, 0], [2, 9]], copied=[[-1, 0]] * 2
    )
    assert told(nobody, copies, seed=4) == [
        ["seed 5: worker 1 has been a duplicate of worker 0 since round 9"]
    ]


@pytest.mark.parametrize(("number", "listed"), [(21, True), (2, False)])
def test_of_many_only_the_number_is_said(number, listed):
    before = one(*["undecided"] * number, "inverted")
    after = one(*["inverted"] * number, "honest")
    assert told(before, after, listed=listed) == [
        [
            f"of the workers, {number} are read backwards, 1 are read as they are "
            "again now"
        ]
    ]


def test_who_was_away_is_not_named_anew():
    lies = one("honest", "inverted", since=[[3, 4]])
    away = lies._replace(cd_round=np.array([50], np.int32))
    assert np.asarray(sfd.verdicts(away).kind).tolist() == [[KIND["absent"]] * 2]
    assert told(lies, away, lies) == [[], []]


# ---------------------------------------------------------------------------- picture


def test_the_picture_shows_every_worker(finished):
    drawn = plots.draw(finished, format="svg")
    assert [path.name for path in drawn][-1] == "workers.svg"
    metrics = read_lines(finished / "metrics.jsonl")
    found = _verdicts.correlations(finished)
    figure = _who_lies.workers_figure(metrics, found, [-1] * 8, "votes")
    left, right, _ = figure.axes
    assert len(left.collections) == 8
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels[-1] == "Byzantine"
    assert {"honest", "inverted"} <= set(labels)
    numbers = [int(label.get_text()) for label in right.get_xticklabels()]
    assert sorted(numbers) == list(range(8))
    liars = metrics[0]["byzantine"]
    assert set(numbers[:5]) == set(range(8)) - set(liars)
    for path in drawn:
        path.unlink()


def test_one_test_and_no_matrix():
    record = {"round": 1, "seed": 0, "byzantine": [], "weights": [1.0, 0.5]}
    record["verdicts"] = ["honest", "duplicate"]
    figure = _who_lies.workers_figure([record], None, [-1, 0], "votes")
    assert len(figure.axes) == 1


def test_clusters_stand_together():
    side = np.array([1, -1, 1, 1, -1, 1, -1])
    matrix = 0.3 * np.outer(side, side)
    matrix[0, 3] = matrix[3, 0] = 0.9
    np.fill_diagonal(matrix, 0)
    copies = np.array([-1, -1, -1, 0, -1, -1, -1])
    order = _who_lies.cluster_order(matrix, copies).tolist()
    assert sorted(order) == list(range(7))
    assert {*order[:4]} == {0, 2, 3, 5}
    assert order.index(3) == order.index(0) + 1


# -------------------------------------------------------------------------- fail closed


@pytest.fixture(scope="module")
def halted(tmp_path_factory):
    output = tmp_path_factory.mktemp("halted")
    with pytest.raises(Halted, match="halted in round 12: the decoder's confidence"):
        run_experiment(DOUBTFUL, output, progress=False)
    (folder,) = output.iterdir()
    return folder


def test_a_halted_run_keeps_what_was_done(halted):
    names = {path.name for path in halted.iterdir()}
    assert {"metrics.jsonl", "workers.csv", "checkpoints"} <= names
    assert "summary.json" not in names
    lines = read_lines(halted / "metrics.jsonl")
    assert [line["round"] for line in lines] == [10, 20]
    assert [line["halted_in"] for line in lines] == [None, 12]
    assert (halted / "checkpoints" / "20").is_dir()


def test_the_same_command_stops_there_again(halted, capsys):
    before = (halted / "metrics.jsonl").read_bytes()
    with pytest.raises(Halted, match="halted in round 12"):
        run_experiment(DOUBTFUL, halted.parent, progress=False)
    assert "resuming from round 20" in capsys.readouterr().err
    assert (halted / "metrics.jsonl").read_bytes() == before


def test_show_says_that_it_halted(halted, capsys):
    assert main(["show", str(halted)]) == 0
    assert (
        "run\tstate\thalted in round 12: the confidence was below 0.5 for 6 rounds\n"
        in capsys.readouterr().out
    )


def test_the_command_has_a_code_of_its_own(tmp_path, capsys):
    flags = {
        field.name: getattr(DOUBTFUL, field.name)
        for field in dataclasses.fields(Experiment)
        if getattr(DOUBTFUL, field.name) != field.default
    }
    (tmp_path / "halts.json").write_text(json.dumps(flags))
    command = ["run", str(tmp_path / "halts.json"), "--quiet", "--output-dir"]
    assert main([*command, str(tmp_path / "runs")]) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("signfd: halted in round 12: ")


def test_several_seeds_are_named(tmp_path):
    config = dataclasses.replace(DOUBTFUL, seeds=2, seed=3)
    with pytest.raises(Halted, match="halted seed 3: in round 12, seed 4: in round 12"):
        run_experiment(config, tmp_path, progress=False)


def test_who_is_sure_finishes(finished, tmp_path):
    config = dataclasses.replace(CONFIG, stop_below="0.5:20")
    folder, summary = run_experiment(config, tmp_path, progress=False)
    assert (
        summary["params_sha256"]
        == json.loads((finished / "summary.json").read_text())["params_sha256"]
    )
    assert {line["halted_in"] for line in read_lines(folder / "metrics.jsonl")} == {
        None
    }


@pytest.mark.slow
@pytest.mark.xdist_group("jobs of many processes")
def test_processes_halt_together(tmp_path):
    flags = "--model softmax_regression --num-workers 8 --num-byzantine 4 --rounds 40"
    flags += " --stop-below 0.5:6 --wire one_bit --processes 2 --quiet --output-dir"
    command = [sys.executable, "-m", "signfd_jax", "run", *flags.split(), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 4, ended.stderr
    assert ended.stderr.count("signfd: halted in round 12: ") == 1
    (folder,) = tmp_path.iterdir()
    assert (folder / "checkpoints" / "20").is_dir()
    assert len(rows_of(folder)) == 8

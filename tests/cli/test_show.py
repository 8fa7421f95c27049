"""`signfd show`: what was run, what came out, and how the workers were read."""

import json

import pytest

from signfd_jax.cli import main
from signfd_jax.cli._show import tables
from signfd_jax.experiments import Experiment

TINY = """--name tiny --model softmax_regression --decoder majority_vote --num-workers 5
    --num-byzantine 2 --batch-size 4 --rounds 4 --eval-every 2 --seeds 2 --quiet"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with one finished run, which no test changes."""
    folder = tmp_path_factory.mktemp("runs")
    assert main(["run", *TINY.split(), "--output-dir", str(folder)]) == 0
    return folder


def shown(capsys, folder):
    """The plain rows of each table, by its title."""
    assert main(["show", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return by_title([line.split("\t") for line in out.splitlines()])


def by_title(rows):
    found = {}
    for title, *cells in rows:
        found.setdefault(title, []).append(cells)
    return found


def rows(config, metrics, summary):
    """The rows of each table, from records."""
    made = tables("runs/a", config, metrics, summary)
    return {table.title: [list(row) for row in table.rows] for table in made}


def record(**fields):
    known = {"round": 10, "seed": 0, "byzantine": [1], "test_accuracy": 0.5}
    known |= {"weights": [1.0, -0.5, 0.0], "bits_up": 20, "bits_down": 10}
    return known | fields


SUMMARY = {"seconds_per_round": 0.5, "compile_seconds": 3.0, "device": "cpu: cpu"}


def test_a_finished_run(runs, capsys):
    (folder,) = runs.iterdir()
    found = shown(capsys, folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert list(found) == ["run", "configuration", "result", "workers"]
    run = dict(found["run"])
    assert run["folder"] == str(folder)
    assert run["state"] == "finished"
    result = dict(found["result"])
    for seed, accuracy in enumerate(summary["test_accuracy_by_seed"]):
        assert result[f"test accuracy, seed {seed}"] == f"{accuracy:.4f}"
    assert result["rounds"] == "4"
    assert result["bits from each worker"] == str(summary["bits_per_worker_up"])
    assert result["bits to each worker"] == str(summary["bits_per_worker_down"])
    assert float(result["seconds of training"]) >= 0
    assert len(found["workers"]) == 2 * 5
    assert {tuple(row[3:]) for row in found["workers"]} == {("1", "as sent")}
    assert [row[2] for row in found["workers"]].count("Byzantine") == 2 * 2


def test_fields_that_differ_from_the_defaults(runs, capsys):
    (folder,) = runs.iterdir()
    rows = {field: rest for field, *rest in shown(capsys, folder)["configuration"]}
    config = json.loads((folder / "config.json").read_text())
    default = json.loads(json.dumps(Experiment().__dict__))
    differing = {k for k, v in config.items() if v != default[k]}
    assert set(rows) == differing
    assert rows["num_workers"] == ["5", "15"]
    assert rows["decoder"] == ["majority_vote", "correlation_defense"]


def test_who_was_read_how():
    found = rows(Experiment(num_workers=3), [record()], SUMMARY | {"rounds": 10})
    assert found["workers"] == [
        ["0", "0", "honest", "1", "as sent"],
        ["0", "1", "Byzantine", "-0.5", "negated"],
        ["0", "2", "honest", "0", "not counted"],
    ]


def test_the_last_test_counts():
    config = Experiment(num_workers=3, seeds=2, rounds=30)
    metrics = [record(round=r, seed=s) for r in (10, 20) for s in (0, 1)]
    metrics[-1]["test_accuracy"] = 0.9
    found = rows(config, metrics, None)
    result = dict(found["result"])
    assert dict(found["run"])["state"] == "stopped after round 20 of 30"
    assert result["test accuracy, seed 0"] == "0.5000"
    assert result["test accuracy, seed 1"] == "0.9000"
    assert result["test accuracy, mean"] == "0.7000 ± 0.2000"
    assert result["rounds"] == "20"
    assert "seconds of training" not in result
    assert len(found["workers"]) == 6


def test_a_run_without_a_test():
    found = rows(Experiment(), [], None)
    assert dict(found["run"])["state"] == "stopped before the first test"
    assert set(found) == {"run"}  # nothing differs from the defaults


def test_a_server_without_weights():
    metrics = [record(weights=[None] * 3, test_accuracy=None, bits_up=None)]
    found = rows(Experiment(decoder="krum", num_workers=3), metrics, None)
    assert [row[3:] for row in found["workers"]] == [["", "not by a weight"]] * 3
    result = dict(found["result"])
    assert result["test accuracy, seed 0"] == "not measured"
    assert result["bits from each worker"] == "not measured"


def test_liars_that_change_are_those_of_the_start():
    config = Experiment(num_workers=3, num_byzantine=1, membership="drawn_each_round")
    found = rows(config, [record()], None)
    assert [row[2] for row in found["workers"]].count("Byzantine at first") == 1


def test_a_large_population_has_quantiles():
    line = record()
    del line["weights"]
    line["weights_quantiles_honest"] = [-1.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    line["weights_quantiles_byzantine"] = [-1.0, -1.0, -1.0, -0.25, 0.0, 0.0, 1.0]
    found = rows(Experiment(num_workers=2000), [line], None)
    assert found["workers"] == [
        ["0", "the median", "honest", "0.5", "as sent"],
        ["0", "the median", "Byzantine", "-0.25", "negated"],
    ]


def fails(capsys, *arguments):
    assert main(["show", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("signfd: ")
    assert err.count("\n") == 1
    return err


def test_wrong_arguments(capsys, tmp_path):
    assert "give the folder of one run: signfd show RUN" in fails(capsys)
    assert "give the folder of one run" in fails(capsys, "a", "b")
    assert "give the folder of one run" in fails(capsys, "--quiet")
    assert "nowhere holds no run" in fails(capsys, tmp_path / "nowhere")
    assert "holds no run" in fails(capsys, tmp_path)


def test_a_grid_is_no_run(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"base": {}, "decoders": []}')
    assert "is a grid" in fails(capsys, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", "{", "config.json is not JSON"),
        ("config.json", "[]", "config.json must hold a JSON object"),
        ("config.json", '{"rounds": -1}', "config.json: rounds must be >= 1"),
        ("config.json", '{"bogus": 1}', "config.json: unknown fields bogus"),
        ("config.json", b"\xff\xfe\x00", "is not text in UTF-8"),
        ("metrics.jsonl", "{\n", "metrics.jsonl, line 1, is not JSON"),
        ("metrics.jsonl", '{"round": 1}\n', "has damaged records"),
        ("metrics.jsonl", '{"round": 1, "seed": 0, "byzantine": 3}\n', "has damaged"),
        ("metrics.jsonl", json.dumps(record(weights=["a"])) + "\n", "has damaged"),
        ("metrics.jsonl", json.dumps(record(weights=None)) + "\n", "has damaged"),
        ("summary.json", "", "summary.json is not JSON"),
        ("summary.json", "3", "summary.json must hold"),
        ("summary.json", "{}", "has damaged records"),
        ("summary.json", '{"seconds_per_round": "x"}', "has damaged records"),
    ],
)
def test_a_damaged_file_is_one_line(name, content, says, runs, capsys, tmp_path):
    (folder,) = runs.iterdir()
    for path in folder.glob("*.json*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(content)
    assert says in fails(capsys, tmp_path)

"""The leaderboard: frozen challenges, rows that come out again, and the page."""

import copy
import json
import math
import shutil
import statistics
from pathlib import Path

import pytest
from test_plugins import install, signfd, titled

from signfd_jax.cli import main
from signfd_jax.experiments import Experiment, run_experiment
from signfd_jax.experiments.challenges import (
    Challenge,
    freeze,
    names,
    read_challenge,
)
from signfd_jax.experiments.leaderboard import enter, read_rows, regenerate
from signfd_jax.experiments.report._leaderboard import page, summary

ROOT = Path(__file__).parents[2]
BOARD = ROOT / "benchmarks" / "leaderboard"

TINY = Challenge(
    "Four rounds.",
    Experiment(
        name="tiny",
        model="softmax_regression",
        num_workers=5,
        batch_size=4,
        rounds=4,
        eval_every=4,
        seeds=2,
    ),
    attacks=("none", "sign_inversion"),
    num_byzantine=(2,),
)


@pytest.fixture(scope="module")
def entered(tmp_path_factory):
    """A leaderboard with one row, and the folder of the runs."""
    folder, runs = (tmp_path_factory.mktemp(name) for name in ("board", "runs"))
    (folder / "tiny.json").write_text(freeze(TINY))
    challenge = read_challenge(folder, "tiny")
    row = regenerate(challenge, "majority_vote", runs, progress=False)
    enter(folder, challenge, row)
    return folder, runs


@pytest.fixture
def board(entered, tmp_path):
    """A copy of it, with a function that runs the command there."""
    shutil.copytree(entered[0], tmp_path / "board")

    def run(*arguments):
        where = ["--folder", str(tmp_path / "board"), "--quiet"]
        runs = ["--output-dir", str(tmp_path / "runs")]
        return main(["leaderboard", "run", *arguments, *where, *runs])

    return tmp_path / "board", run


def changed(path, change):
    """Change a JSON file by a function of what it holds."""
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def test_a_row_is_what_its_cells_give_when_each_is_run_alone(entered, tmp_path):
    folder, _ = entered
    challenge = read_challenge(folder, "tiny")
    cells = read_rows(folder, challenge)["majority_vote"]["cells"]
    assert [(c["num_byzantine"], c["attack"]) for c in cells] == [
        (0, "none"),
        (2, "sign_inversion"),
    ]
    for cell, config in zip(cells, challenge.cells("majority_vote"), strict=True):
        alone, result = run_experiment(config, tmp_path, progress=False)
        assert cell["test_accuracy"] == result["test_accuracy_by_seed"]
        assert cell["bits_up"] == result["bits_per_worker_up"]
        assert cell["bits_down"] == result["bits_per_worker_down"]
        lines = (alone / "metrics.jsonl").read_text().splitlines()[-2:]
        assert cell["test_loss"] == [json.loads(line)["test_loss"] for line in lines]


def test_a_row_comes_out_again_or_says_where_not(board, capsys):
    folder, run = board
    path = folder / "results" / "tiny" / "majority_vote.json"
    assert run("tiny", "--decoder", "majority_vote") == 0
    out = capsys.readouterr().out
    assert out == "majority_vote: equal bit for bit, on the same platform\n"
    before = path.read_text()

    changed(path, lambda row: row["cells"][1]["test_loss"].__setitem__(0, 7.0))
    assert run("tiny") == 1  # without a decoder, all rows
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("majority_vote: 1 of 2 cells differ, accuracies by at most")
    assert "0.0000, on the same platform" in first
    assert second.startswith("2 sign_inversion, iid: test_loss was [7.0, ")

    path.write_text(before)
    changed(path, lambda row: row["environment"]["versions"].update(jax="0.0.1"))
    assert run("tiny") == 0
    assert "on another platform (that one had jax 0.0.1)" in capsys.readouterr().out


def test_what_was_finished_begins_anew_and_what_was_stopped_goes_on(entered, tmp_path):
    folder, runs = entered
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    challenge = read_challenge(folder, "tiny")
    (run,) = tmp_path.iterdir()
    cells, finished = run / "cells.jsonl", run / "row.json"
    row = json.loads(finished.read_text())
    clean, attacked = cells.read_text().splitlines(keepends=True)
    forged = json.loads(clean) | {"test_accuracy": [0.0, 0.0]}

    cells.write_text(json.dumps(forged) + "\n" + attacked)
    again = regenerate(challenge, "majority_vote", tmp_path, progress=False)
    assert again["cells"] == row["cells"]

    finished.unlink()  # as if it had been stopped after its first cell
    cells.write_text(json.dumps(forged) + "\n")
    again = regenerate(challenge, "majority_vote", tmp_path, progress=False)
    assert again["cells"][0]["test_accuracy"] == [0.0, 0.0]
    assert again["cells"][1] == row["cells"][1]


def test_an_entry_has_one_file_however_it_is_written(entered, tmp_path):
    folder, _ = entered
    challenge = read_challenge(folder, "tiny")
    row = read_rows(folder, challenge)["majority_vote"]
    paths = [
        enter(tmp_path, challenge, row | {"entry": entry})
        for entry in ("krum:scale=3", "krum:scale=3.0", "krum:scale=4", "krum")
    ]
    assert paths[0] == paths[1] and len(set(paths)) == 3


TAMPERED = [
    ("tiny.json", lambda c: c["base"].update(rounds=5), "is not the challenge that"),
    ("tiny.json", lambda c: c.update(num_byzantine=[1]), "is not the challenge that"),
    ("tiny.json", lambda c: c.pop("sha256"), "is not the challenge that was frozen"),
    ("results/tiny/majority_vote.json", lambda r: r.pop("cells"), "it lacks cells"),
    (
        "results/tiny/majority_vote.json",
        lambda r: r.update(sha256="0" * 64),
        "is of another version of tiny",
    ),
    (
        "results/tiny/majority_vote.json",
        lambda r: r.update(entry="krum"),
        "holds the row of another entry, krum",
    ),
]


@pytest.mark.parametrize(("name", "change", "says"), TAMPERED)
def test_tampering_is_told_in_one_line(name, change, says, board, capsys):
    folder, run = board
    changed(folder / name, change)
    assert run("tiny", "--decoder", "majority_vote") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and says in err


WRONG = [
    ([], "give list, run or page"),
    (["enter"], "unknown action 'enter'"),
    (["run"], "give a challenge"),
    (["run", "--decoder", "krum"], "give a challenge"),
    (["run", "tiny"], "there is no leaderboard in benchmarks/leaderboard"),
    (["list"], "call signfd in a checkout"),
    (["page", "--folder", "nowhere"], "there is no leaderboard in nowhere"),
    (["run", "tinny", "--folder", "board"], "did you mean tiny?"),
    (["run", "tiny", "--folder", "board", "--decoder", "krun"], "did you mean krum?"),
    (["list", "--decoder", "krum"], "signfd leaderboard list --help lists"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG)
def test_wrong_words(arguments, says, board, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["leaderboard", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and says in err
    assert not (tmp_path / "runs").exists()


def test_a_row_of_a_package_that_is_not_here_does_not_end_the_others(board, capsys):
    folder, run = board
    challenge = read_challenge(folder, "tiny")
    row = read_rows(folder, challenge)["majority_vote"]
    enter(folder, challenge, row | {"entry": "abroad"})
    assert run("tiny") == 1
    out, err = capsys.readouterr()
    assert out.startswith("majority_vote: equal bit for bit")
    assert "abroad: unknown decoder" in err and err.count("\n") == 1


def row_of(accuracies, successes):
    """A row with these numbers, a list of seeds for each cell."""
    cells = [
        {
            "attack": f"attack{number}",
            "num_byzantine": number,
            "split": "iid",
            "test_accuracy": accuracy,
            "test_loss": accuracy,
            "bits_up": 30 * (number + 1),
            "bits_down": 60,
        }
        | ({"attack_success_rate": success} if success else {})
        for number, (accuracy, success) in enumerate(
            zip(accuracies, successes, strict=True)
        )
    ]
    return {"rounds": 3, "cells": cells}


def test_summary_by_hand():
    found = summary(
        row_of([[0.5, 0.7], [0.1, 0.5], [0.9, 0.9]], [None, [0.25, 0.75], [0.0, 0.25]])
    )
    assert math.isclose(found.accuracy, 0.6)  # the seeds have .5 and .7
    assert math.isclose(found.error, statistics.stdev([0.5, 0.7]) / math.sqrt(2))
    assert math.isclose(found.worst, 0.3) and math.isclose(found.worst_error, 0.2)
    assert found.attackers == "1 attack1"
    assert found.attack_success == 0.5
    assert (found.bits_up, found.bits_down) == (30, 20)
    assert math.isnan(summary(row_of([[0.5, 0.7]], [None])).attack_success)


def test_the_page_has_a_line_of_each_entry_in_order(board, tmp_path):
    folder, _ = board
    challenge = read_challenge(folder, "tiny")
    row = read_rows(folder, challenge)["majority_vote"]
    best = copy.deepcopy(row) | {"entry": "mean"}
    for cell in best["cells"]:
        cell |= {"test_accuracy": [1.0, 1.0], "attack_success_rate": [0.5, 0.25]}
    enter(folder, challenge, best)
    command = ["leaderboard", "page", "--folder", str(folder)]
    assert main([*command, "--output", str(tmp_path / "new" / "page.md")]) == 0
    text = (tmp_path / "new" / "page.md").read_text()
    assert text == page(folder)
    first, second = [line for line in text.splitlines() if line.startswith("| `")]
    assert first.startswith("| `mean`") and second.startswith("| `majority_vote`")
    cells = [cell.strip() for cell in first.split("|")[1:-1]]
    assert cells[1:5] == ["1.000 ± .000", "1.000 ± .000", "none", ".375"]
    assert [cell.strip() for cell in second.split("|")][5] == "—"
    assert challenge.sha256[:12] in text


def test_the_list_has_the_challenges(board, capsys):
    folder, _ = board
    assert main(["leaderboard", "list", "--folder", str(folder)]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    _, name, version, entries, sha256, about = line.split("\t")
    assert (name, version, entries, about) == ("tiny", "1", "majority_vote", TINY.about)
    assert sha256 == json.loads(freeze(TINY))["sha256"]


@pytest.mark.skipif(not BOARD.exists(), reason="not a checkout")
def test_the_page_of_the_repository_is_what_its_rows_give():
    assert (ROOT / "docs" / "leaderboard.md").read_text("utf-8") == page(BOARD)


@pytest.mark.skipif(not BOARD.exists(), reason="not a checkout")
def test_the_rows_of_the_repository_have_all_cells():
    for name in names(BOARD):
        challenge = read_challenge(BOARD, name)
        rows = read_rows(BOARD, challenge)
        assert len(rows) > 5
        cells = challenge.cells("mean")
        wanted = [(c.attack, c.num_byzantine, c.split) for c in cells]
        for row in rows.values():
            told = [(c["attack"], c["num_byzantine"], c["split"]) for c in row["cells"]]
            assert told == wanted


@pytest.mark.slow
def test_a_stranger_enters_a_rule_by_one_command(board, tmp_path):
    folder, _ = board
    install(tmp_path, titled("stranger.py"), titled("pyproject.toml"))
    command = ["leaderboard", "run", "tiny", "--decoder", "shortest:power=1"]
    command += ["--folder", str(folder), "--quiet"]
    process = signfd(tmp_path, *command)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("shortest:power=1: entered, accuracy ")
    process = signfd(tmp_path, *command)
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith("equal bit for bit, on the same platform\n")
    (path,) = folder.glob("results/tiny/shortest-power-1-0-*.json")
    row = json.loads(path.read_text())
    assert row["environment"]["versions"]["stranger"] == "0.1"
    process = signfd(tmp_path, "leaderboard", "page", "--folder", str(folder))
    assert process.returncode == 0, process.stderr
    assert "| `shortest:power=1.0` | " in (
        tmp_path / "docs" / "leaderboard.md"
    ).read_text().replace("  ", "")

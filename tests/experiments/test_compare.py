"""Grids: which cells there are, resuming, tables; and the main job on digits."""

import csv
import dataclasses
import io
import json
import re

import numpy as np
import pytest

from signfd_jax.experiments import PRESETS, Experiment
from signfd_jax.experiments._engine.program import compile_program
from signfd_jax.experiments._storage.run_folder import read_lines
from signfd_jax.experiments.grid import Grid, cells, run_grid
from signfd_jax.experiments.report._tables import (
    accuracy_csv,
    accuracy_latex,
    accuracy_table,
    markdown,
    mean_and_error,
    pivot,
)

TINY = Experiment(
    name="tiny",
    model="softmax_regression",
    num_workers=5,
    rounds=2,
    eval_every=2,
    seeds=2,
)
GRID = Grid(
    TINY,
    decoders=("majority_vote",),
    num_byzantine=(0, 2),
    splits=("iid", "dirichlet:0.3"),
    batch_sizes=(4,),
)


def label(cell):
    return cell.split, cell.decoder, cell.attack, cell.num_byzantine


def test_unattacked_cells_occur_once():
    grid = dataclasses.replace(
        GRID,
        decoders=("majority_vote", "federated_defense"),
        attacks=("sign_inversion", "gaussian", "none"),
        batch_sizes=(4, 8),
    )
    found = cells(grid)
    assert len(set(found)) == len(found)
    unattacked = [cell for cell in found if cell.num_byzantine == 0]
    # Two decoders, two splits, two batch sizes; and two attacks by 2 workers.
    assert len(unattacked) == 8
    assert len(found) == 8 + 16
    assert {cell.attack for cell in unattacked} == {"none"}


@pytest.mark.parametrize("attacks", [("none",), ("none", "gaussian")])
def test_without_an_attack_nobody_lies(attacks):
    """One cell, whatever the numbers of Byzantine workers; beside it the attacked."""
    grid = dataclasses.replace(GRID, attacks=attacks, num_byzantine=(1, 2))
    found = [(cell.attack, cell.num_byzantine) for cell in cells(grid)]
    attacked = [("gaussian", 1), ("gaussian", 2)] * (len(attacks) - 1)
    assert found == 2 * [("none", 0), *attacked]  # of two splits


def test_empty_grid_is_refused():
    with pytest.raises(ValueError, match="the grid is empty"):
        cells(dataclasses.replace(GRID, decoders=()))


def test_grid_resumes_and_shares_programs(tmp_path):
    every = cells(GRID)
    compile_program.cache_clear()
    records = run_grid(every, tmp_path / "whole", progress=False)
    # A start and a chunk for each of two attacks: the splits share them.
    assert compile_program.cache_info().misses == 4
    assert [label(Experiment(**_tuples(r["config"]))) for r in records] == [
        label(cell) for cell in every
    ]

    run_grid(every[:2], tmp_path, progress=False)
    path = tmp_path / "cells.jsonl"
    first = read_lines(path)
    with path.open("a") as file:
        file.write('{"cell": "cut o')  # as a kill in mid-write leaves it
    resumed = run_grid(every, tmp_path, progress=False)
    assert resumed == records
    assert read_lines(path)[:2] == first
    assert len(read_lines(path)) == len(every)
    assert sorted(map(json.dumps, read_lines(path))) == sorted(map(json.dumps, records))


def _tuples(config):
    return {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}


def test_finished_grid_trains_nothing(tmp_path, monkeypatch):
    from signfd_jax.experiments._engine import prepare as training

    done = run_grid(cells(GRID), tmp_path, progress=False)
    monkeypatch.delattr(training, "prepare")
    assert run_grid(cells(GRID), tmp_path, progress=False) == done


def test_damaged_records_are_refused(tmp_path):
    (tmp_path / "cells.jsonl").write_text('{"cell": \n{"cell": "1"}\n')
    with pytest.raises(ValueError, match=r"cells.jsonl, line 1, is not JSON"):
        run_grid(cells(GRID), tmp_path, progress=False)


def record(decoder, attack, num_byzantine, accuracies, **fields):
    config = dataclasses.asdict(TINY) | fields
    config |= {"decoder": decoder, "attack": attack, "num_byzantine": num_byzantine}
    return {"config": config, "test_accuracy": accuracies}


def test_table_by_hand():
    table = accuracy_table(
        [
            record("d", "a", 2, [0.5, 0.7]),
            record("e", "a", 2, [0.4]),
            record("d", "none", 0, [0.9, 0.9], wire="one_bit"),
        ]
    )
    assert table.splitlines() == [
        "| data                   | Byzantine workers | d             | e     |",
        "|------------------------|-------------------|---------------|-------|",
        "| iid, batch 16          | 2 a               | 0.600 ± 0.100 | 0.400 |",
        "| iid, batch 16, one bit | none              | 0.900 ± 0.000 |       |",
        "| iid, batch 16          | worst case        | 0.600         | 0.400 |",
        "| iid, batch 16, one bit | worst case        | 0.900         |       |",
    ]


def test_who_does_not_lie_is_nobody():
    """Byzantine workers that attack with nothing; other numbers stay apart."""
    silent = record("d", "none", 2, [0.7])
    table = pivot([record("d", "a", 2, [0.5]), silent])
    assert table.attackers == ["none", "2 a"]
    both = pivot([silent, record("d", "none", 0, [0.9])])
    assert both.attackers == ["none"]
    assert sorted(both.accuracies.values()) == [[0.7], [0.9]]


def test_csv_by_hand():
    text = accuracy_csv(
        [
            record("d", "a", 2, [0.5, 0.7]),
            record('say "x", y', "none", 0, [0.4]),
        ]
    )
    head, *rows = csv.reader(io.StringIO(text))
    assert head[:4] == ["data", "Byzantine workers", "d", "d: standard error"]
    assert head[4:] == ['say "x", y', 'say "x", y: standard error']
    assert rows[0] == ["iid, batch 16", "none", "", "", "0.4", ""]
    assert rows[1][:2] == ["iid, batch 16", "2 a"]
    assert [float(cell) for cell in rows[1][2:4]] == pytest.approx([0.6, 0.1])
    assert rows[2] == ["iid, batch 16", "worst case", "0.6", "", "0.4", ""]
    assert len(rows) == 3


def test_latex_by_hand():
    hard = "x:a=50%,b=#1_{2}$&~^\\|<>"
    records = [
        record("federated_defense", "sign_inversion", 2, [0.5, 0.7]),
        record("federated_defense", "none", 0, [0.5], split=hard),
    ]
    text = accuracy_latex(records)
    assert r"\texttt" not in text
    lines = text.splitlines()
    assert lines[0] == r"\begin{tabular}{llr}"
    assert lines[-1] == r"\end{tabular}"
    assert r"iid, batch 16 & 2 sign\_inversion & $0.600 \pm 0.100$ \\" in lines
    assert not re.search(r"(?<!\\)[_#%]", text)
    names = r"\\text(backslash|asciitilde|asciicircum|bar|less|greater)\{\}"
    for line in (line for line in lines if line.endswith(r" \\")):
        plain = re.sub(names, "", line.removesuffix(r" \\"))
        plain = re.sub(r"\$[\d.]+( \\pm [\d.]+)?\$", "", plain)
        plain = re.sub(r"\\[_#%&{}$]", "", plain)
        assert plain.count("&") == 2
        assert not set(plain) & set("_#%{}$~^\\|<>")


def test_markdown_keeps_a_bar_in_its_cell():
    head, _, row = markdown([["a", "b"], ["x|y", "1\n2"]]).splitlines()
    assert head == "| a    | b   |"
    assert row == r"| x\|y | 1 2 |"


def test_worst_case_is_the_lowest_mean():
    table = pivot(
        [
            record("d", "none", 0, [0.9]),
            record("d", "a", 2, [0.1, 0.9]),
            record("d", "b", 2, [0.3, 0.3]),
        ]
    )
    assert table.attackers[0] == "none"
    assert table.worst("iid, batch 16", "d") == pytest.approx((0.3, "2 b"))


def test_records_of_before_a_field_was_there_stand_beside_others():
    old, new = record("d", "a", 2, [0.1]), record("e", "a", 2, [0.2])
    old["config"].pop("worker", None)
    new["config"]["worker"] = Experiment.worker
    assert pivot([old, new]).settings == ["iid, batch 16"]
    new["config"]["worker"] = "local_steps:5"
    assert len(pivot([old, new]).settings) == 2


def test_standard_error_matches_numpy():
    values = [0.91, 0.95, 0.94]
    mean, error = mean_and_error(values)
    assert mean == pytest.approx(np.mean(values))
    assert error == pytest.approx(np.std(values, ddof=1) / np.sqrt(3))


@pytest.mark.slow
def test_the_claim_on_digits(tmp_path):
    # Seven of fifteen invert every sign; each of the three seeds of the quickstart.
    digits = PRESETS["digits"].experiment
    grid = Grid(
        dataclasses.replace(digits, eval_every=digits.rounds, seeds=3),
        num_byzantine=(7,),
        batch_sizes=(16,),
    )
    attacked = cells(grid)
    # Without Byzantine workers sign inversion is nothing, and its program is at hand.
    free = [dataclasses.replace(cell, num_byzantine=0) for cell in attacked]
    results = pivot(run_grid([*attacked, *free], tmp_path, progress=False))

    def accuracies(attackers, decoder):
        return np.array(results.accuracies["iid, batch 16", attackers, decoder])

    assert np.all(accuracies("7 sign_inversion", "federated_defense") >= 0.94)
    # Near the optimum the votes do not tell, but whom it has caught it remembers.
    assert np.all(accuracies("7 sign_inversion", "correlation_defense") >= 0.95)
    assert np.all(accuracies("7 sign_inversion", "majority_vote") <= 0.80)
    for decoder in grid.decoders:
        assert np.all(accuracies("none", decoder) >= 0.95)

"""The command line as a user types it: what it does, and what it says to bad input."""

import csv
import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from signfd_jax.cli import main
from signfd_jax.experiments._storage.run_folder import read_lines

# The tiny experiment of test_experiments.py, whose programs may be at hand.
TINY = """--name tiny --model softmax_regression --decoder majority_vote --num-workers 5
    --num-byzantine 2 --batch-size 4 --rounds 4 --eval-every 2 --quiet""".split()


def fails(capsys, *arguments):
    """The one line on stderr of a command that exits with 2."""
    assert main(list(map(str, arguments))) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("signfd: ")
    assert err.count("\n") == 1
    return err


def test_the_environment_is_left_as_it_was(monkeypatch, capsys):
    """In a notebook, figures are drawn as before a command was called."""
    for backend in (None, "svg"):
        monkeypatch.delenv("MPLBACKEND", raising=False)
        if backend:
            monkeypatch.setenv("MPLBACKEND", backend)
        assert main(["list", "splits"]) == 0
        assert os.environ.get("MPLBACKEND") == backend


def test_run_then_again_then_plot(tmp_path, capsys):
    command = ["run", "digits", *TINY, "--output_dir", str(tmp_path)]
    assert main(command) == 0
    assert "test accuracy" in capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("tiny-")
    assert sorted(path.name for path in folder.iterdir()) == [
        "accuracy.png",
        "checkpoints",
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "params.npz",
        "summary.json",
        "weights.png",
    ]
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert main(command) == 0
    assert "finished before; --force" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before

    (folder / "accuracy.png").unlink()
    assert main(["plot", str(folder)]) == 0
    assert (folder / "accuracy.png").stat().st_size > 0
    # The same run from its own configuration is the same run.
    again = ["run", str(folder / "config.json"), "--output-dir", str(tmp_path)]
    assert main(again) == 0
    assert "finished before" in capsys.readouterr().out


def test_compare_leaves_a_table_and_a_picture(tmp_path, capsys):
    command = """compare --decoders majority_vote --num-byzantine 0 2 --seeds 1
        --rounds 2 --quiet --output-dir""".split()
    assert main([*command, str(tmp_path)]) == 0
    out = capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    table = (folder / "table.md").read_text()
    assert table in out
    assert "| 2 sign_inversion " in table
    assert "| worst case " in table
    assert (folder / "comparison.png").stat().st_size > 0
    assert len(read_lines(folder / "cells.jsonl")) == 2
    assert json.loads((folder / "config.json").read_text())["num_byzantine"] == [0, 2]
    assert main([*command, str(tmp_path)]) == 0  # nothing is left to train
    assert capsys.readouterr().out == out


@pytest.mark.slow
def test_compare_takes_a_worker_as_run_does(tmp_path, capsys):
    """Told in two ways it is one grid, whose cells are those workers'."""
    command = """compare --decoders majority_vote --num-byzantine 2 --seeds 1
        --rounds 2 --attacks inside sign_inversion --quiet --output-dir""".split()
    outs = []
    for flags in (["--local-steps", "2"], ["--worker", "local_steps:2"]):
        assert main([*command, str(tmp_path), *flags]) == 0
        outs.append(capsys.readouterr().out)
    assert outs[0] == outs[1]
    (folder,) = tmp_path.iterdir()
    lines = read_lines(folder / "cells.jsonl")
    assert [line["config"]["worker"] for line in lines] == ["local_steps:2"] * 2
    assert {line["config"]["attack"] for line in lines} == {"inside", "sign_inversion"}


def test_compare_says_how_far_rules_step(tmp_path, capsys):
    """They get real numbers, which are smaller than a sign."""
    command = """compare --decoders majority_vote mean krum:scale=30 --seeds 1
        --num-byzantine 0 --rounds 2 --quiet --output-dir""".split()
    assert main([*command, str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "mean: real numbers, 300 times the learning rate\n" in out
    assert "krum:scale=30: real numbers, 30 times the learning rate\n" in out
    assert "majority_vote: " not in out


@pytest.mark.parametrize("chosen", ["markdown", "csv", "latex"])
def test_compare_prints_the_format_that_is_asked_for(chosen, tmp_path, capsys):
    command = """compare --decoders majority_vote --num-byzantine 0 2 --seeds 2
        --rounds 2 --quiet --output-dir""".split()
    assert main([*command, str(tmp_path), "--format", chosen]) == 0
    out, err = capsys.readouterr()
    (folder,) = tmp_path.iterdir()
    assert (folder / "table.md").read_text().startswith("| data ")
    assert str(folder) in (out if chosen == "markdown" else err)
    if chosen == "markdown":
        assert (folder / "table.md").read_text() in out
    elif chosen == "csv":
        head, *rows = csv.reader(io.StringIO(out))
        assert head[2:] == ["majority_vote", "majority_vote: standard error"]
        assert [row[1] for row in rows] == ["none", "2 sign_inversion", "worst case"]
        assert all(0 <= float(row[2]) <= 1 for row in rows)
    else:
        assert out.startswith(r"\begin{tabular}{llr}")
        assert out.endswith("\\end{tabular}\n")
        assert not re.search(r"(?<!\\)_", out)


def test_compare_takes_the_default_the_paper_and_a_vote(tmp_path, capsys):
    command = "compare --num-byzantine 2 --seeds 1 --rounds 1 --quiet --output-dir"
    assert main([*command.split(), str(tmp_path)]) == 0
    head, *_ = capsys.readouterr().out.splitlines()
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    assert columns[2:] == ["correlation_defense", "federated_defense", "majority_vote"]


@pytest.mark.parametrize(
    ("workers", "attack", "warned"),
    [
        ((5, 2), "sign_inversion", False),
        ((5, 3), "sign_inversion", True),
        ((4, 2), "sign_inversion", True),
        ((5, 3), "none", False),
    ],
)
@pytest.mark.slow
def test_run_warns_where_half_or_more_lie(workers, attack, warned, tmp_path, capsys):
    num_workers, num_byzantine = map(str, workers)
    flags = ["--num-workers", num_workers, "--num-byzantine", num_byzantine]
    flags += ["--attack", attack, "--output-dir", str(tmp_path)]
    assert main(["run", *TINY, *flags]) == 0
    err = capsys.readouterr().err
    found = [line for line in err.splitlines() if "warning" in line]
    assert len(found) == warned
    for line in found:
        assert line.startswith(f"signfd: warning: {num_byzantine} of {num_workers} ")
        assert "no decoder can tell liars from honest workers" in line


def test_compare_warns_in_one_line(tmp_path, capsys):
    command = """compare --decoders majority_vote --num-byzantine 0 7 8 9 --seeds 1
        --rounds 1 --quiet --output-dir""".split()
    assert main([*command, str(tmp_path)]) == 0
    err = capsys.readouterr().err
    assert err.startswith("signfd: warning: 8 of 15, 9 of 15 workers are Byzantine")
    assert err.count("\n") == 1


def test_what_cannot_be_run_is_told_without_a_warning(capsys):
    flags = "--num-byzantine 9 --decoder majority".split()
    assert "unknown decoder" in fails(capsys, "run", *flags)


def test_list_names_everything(capsys):
    from signfd_jax.experiments import PRESETS, registry

    assert main(["list"]) == 0
    words = capsys.readouterr().out.split()
    for names in (PRESETS, registry.DECODERS, registry.ATTACKS, registry.SPLITS):
        assert set(names) <= set(words)


@pytest.mark.parametrize("command", ["run", "compare"])
def test_help_lists_the_options(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    flags = "--num-byzantine --rounds --data-dir --flip-probability --worker"
    for flag in [*flags.split(), "--local-steps"]:
        assert flag in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("walk", "unknown command 'walk'; known are run"),
        ("run mnist-mpl", "unknown preset 'mnist-mpl'; known are digits"),
        ("run --decoder majority", "unknown decoder 'majority' (did you mean"),
        ("run --attack invert", "unknown attack 'invert'"),
        ("run --num-byzantine 16", "num_byzantine must lie in [0, 15]"),
        ("run --flip-probability 1.5", "flip_probability must lie in [0, 1]"),
        ("run --flip-probability -0.1", "flip_probability must lie in [0, 1]"),
        ("run --rounds 0", "rounds must be >= 1, but is 0"),
        ("run --rounds many", "--rounds"),
        ("run --round 3", "--round"),
        ("run --wire morse", "wire must be one of"),
        ("run --data-dir nowhere --dataset mnist", "nowhere does not exist"),
        ("run --data-dir . --dataset shakespeare", "put there shakespeare/ with input"),
        ("run --split writers", "these data do not say who wrote which example"),
        ("run --dataset python_docs --split one_class", "texts have no classes"),
        ("run --dataset breast_canser", "unknown data set 'breast_canser'; known are"),
        ("run missing.json", "missing.json"),
        ("compare --num-byzantine 16", "num_byzantine must lie in [0, 15]"),
        ("compare --decoders majority", "unknown decoder 'majority'"),
        ("compare --rounds 0", "rounds must be >= 1"),
        ("compare --seeds 0", "seeds must be >= 1"),
        ("compare --format html", "--format"),
        ("compare --worker steps", "unknown worker 'steps'"),
        ("compare --worker momentum --local-steps 2", "give --worker or --local-steps"),
        ("compare --local-steps 0", "num_steps must be an int >= 1, but is 0"),
        ("compare --attacks inside:alie", "no gradient but its own"),
        ("run --worker momentum --local-steps 2", "give --worker or --local-steps"),
        ("plot", "give the folders"),
        ("plot nowhere", "nowhere holds no run"),
        ("list all", "unknown kind 'all'; known are presets"),
    ],
)
def test_bad_input(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *arguments.split())
    assert list(tmp_path.glob("runs/*")) == []


def test_no_command_prints_the_usage(capsys):
    assert main([]) == 2
    assert "signfd run" in capsys.readouterr().err


IDX = {
    "train-images-idx3-ubyte": bytes([0, 0, 8, 3, 0, 0, 234, 96, 0, 0, 0, 28]),
    "train-labels-idx1-ubyte": bytes([0, 0, 8, 1, 0, 0, 234, 96]),
    "t10k-images-idx3-ubyte": bytes([0, 0, 8, 3, 0, 0, 39, 16, 0, 0, 0, 28]),
    "t10k-labels-idx1-ubyte": bytes([0, 0, 8, 1, 0, 0, 39, 16]),
}


@pytest.mark.parametrize("damage", ["truncated", "gzip"])
def test_damaged_data(damage, capsys, tmp_path):
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    for name, header in IDX.items():
        if damage == "truncated":
            (folder / name).write_bytes(header)
        else:
            packed = gzip.compress(header + bytes(10_000))
            (folder / f"{name}.gz").write_bytes(packed[: len(packed) // 2])
    flags = ["--data-dir", folder.parent, "--output-dir", tmp_path / "runs"]
    assert str(folder) in fails(capsys, "run", "mnist-mlp", *flags)
    assert list((tmp_path / "runs").glob("*")) == []


def test_output_folder_that_cannot_be_written(capsys, tmp_path):
    # Below a file nobody can make a folder, not even root.
    (tmp_path / "file").write_text("mine")
    message = fails(capsys, "run", *TINY, "--output-dir", tmp_path / "file" / "runs")
    assert "cannot write in" in message
    assert "--output-dir" in message
    assert (tmp_path / "file").read_text() == "mine"


def signfd(code, *arguments):
    """Start a fresh interpreter that runs `code`, then the command line."""
    program = f"import sys; {code}; from signfd_jax.cli import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )


def test_without_the_extra_one_line_says_what_to_install():
    blocked = "flax matplotlib orbax pooch rich sklearn tqdm tyro".split()
    code = f"sys.modules.update(dict.fromkeys({blocked}))"
    with signfd(code) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.count("\n") == 1
    assert "pip install 'signfd-jax[experiments]'" in err


def test_wrong_type_in_a_configuration(tmp_path):
    # In a fresh interpreter: here the tests' own type checker would speak first.
    path = tmp_path / "config.json"
    path.write_text('{"rounds": 2.5}')
    with signfd("pass", "run", str(path)) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err == f"signfd: {path}: rounds must be of type int, but is 2.5\n"


@pytest.mark.skipif(os.name == "nt", reason="there are no POSIX signals")
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        pytest.param(signal.SIGINT, 130, "interrupted", marks=pytest.mark.slow),
        (signal.SIGTERM, 143, "terminated"),  # as schedulers of clusters send it
    ],
)
@pytest.mark.slow
def test_signal_in_mid_run(number, code, word, tmp_path):
    command = ["run", *TINY, "--rounds", "10000000", "--output-dir", str(tmp_path)]
    # A shell may start this in the background, where Ctrl-C is ignored.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    with signfd(heed, *command) as process:
        deadline = time.monotonic() + 240
        while not any(
            path.read_text().count("\n") > 1
            for path in tmp_path.glob("*/metrics.jsonl")
        ):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()  # else the test would wait for it
                pytest.fail(f"ended with {process.poll()}, or did not train")
            time.sleep(0.1)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.splitlines()[-1] == f"signfd: {word}; the same command goes on from here"
    assert "Traceback" not in err
    (folder,) = tmp_path.iterdir()
    metrics = read_lines(folder / "metrics.jsonl")
    assert [record["round"] for record in metrics[:2]] == [2, 4]
    assert not (folder / "summary.json").exists()
    # Nothing is lost: the first test has its checkpoint, and so has the last.
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"2", str(metrics[-1]["round"])}
    assert main(["plot", str(folder)]) == 0

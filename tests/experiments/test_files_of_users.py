"""Folders and files as users have them: byte order marks, `~`, no locks, read-only."""

import errno
import json
import os
import shutil

import pytest

from signfd_jax.cli import main
from signfd_jax.experiments import Experiment, from_json, to_json
from signfd_jax.experiments._storage import run_folder as records
from signfd_jax.experiments._storage.run_folder import locked

TINY = """--name tiny --model softmax_regression --decoder majority_vote --num-workers 5
    --num-byzantine 2 --batch-size 4 --rounds 4 --eval-every 2 --quiet""".split()


def one_line(capsys, *arguments):
    """What the command says, which is one line, and ends with 2."""
    capsys.readouterr()
    assert main(list(map(str, arguments))) == 2
    err = capsys.readouterr().err
    assert err.startswith("signfd: ")
    assert err.count("\n") == 1
    return err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, which no test changes."""
    runs = tmp_path_factory.mktemp("finished")
    assert main(["run", *TINY, "--output-dir", str(runs)]) == 0
    (folder,) = runs.iterdir()
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """The folder of a finished run, for one test to change."""
    return shutil.copytree(finished, tmp_path / "runs" / finished.name)


# ----------------------------------------------------------------------------- texts


def test_byte_order_mark_is_passed_over(run, capsys):
    for name in ("config.json", "environment.json", "summary.json", "metrics.jsonl"):
        path = run / name
        path.write_text(path.read_text(), encoding="utf-8-sig")
    text = to_json(Experiment(rounds=7))
    assert from_json(Experiment, "\ufeff" + text).rounds == 7
    config = str(run / "config.json")
    again = ["run", config, "--output-dir", str(run.parent), "--quiet"]
    assert main(again) == 0
    assert "finished before" in capsys.readouterr().out
    assert main(["plot", str(run)]) == 0
    assert main(["run", "--from", str(run), "--quiet"]) == 0
    assert "bit for bit the run in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{}".encode("utf-16"), "is not text in UTF-8"),
        (b"\x89PNG\xff", "is not text in UTF-8"),
        (b"", "not a JSON configuration"),
        (b"rounds = 3", "not a JSON configuration"),
        (b"[1]", "must be a JSON object"),
        (b'{"round": 3}', "unknown fields round"),
        (b'{"num_workers": 5, "num_byzantine": 7}', "num_byzantine must lie in"),
    ],
)
@pytest.mark.parametrize("command", ["run", "compare"])
def test_configuration_that_is_none_is_named(command, content, says, tmp_path, capsys):
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    err = one_line(capsys, command, path)
    assert str(path) in err
    assert says in err


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("summary.json", ["run", *TINY, "--output-dir", "RUNS"]),
        ("config.json", ["run", "--from", "RUN"]),
        ("config.json", ["plot", "RUN"]),
        ("metrics.jsonl", ["plot", "RUN"]),
        ("environment.json", ["run", "--from", "RUN", "--quiet"]),
    ],
)
@pytest.mark.parametrize("content", [b"\xff\xfe", b"\x00\x00\n{}\n"])
def test_damaged_file_of_a_run_is_named(name, command, content, run, capsys):
    (run / name).write_bytes(content)
    places = {"RUN": run, "RUNS": run.parent}
    command = [places.get(argument, argument) for argument in command]
    err = one_line(capsys, *command) if name != "environment.json" else None
    if err is None:  # the run is repeated first
        capsys.readouterr()
        assert main(list(map(str, command))) == 2
        err = capsys.readouterr().err.splitlines()[-1]
    assert str(run / name) in err


def test_damaged_metrics_of_a_run_that_goes_on(run, capsys):
    (run / "summary.json").unlink()
    before = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(before[:-9] + b"\xff\x00")
    assert main(["run", *TINY, "--output-dir", str(run.parent)]) == 0
    assert (run / "metrics.jsonl").read_bytes() == before


def test_folder_of_a_run_in_the_place_of_a_preset(run, capsys):
    err = one_line(capsys, "run", run)
    assert f"--from {run}" in err


# ----------------------------------------------------------------------------- paths


def test_home_is_found_wherever_a_path_is_given(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    assert main(["run", *TINY, "--output-dir", "~/runs"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    tilde = f"~/runs/{folder.name}"
    for command in (
        ["plot", tilde],
        ["run", f"{tilde}/config.json", "--output-dir=~/runs", "--quiet"],
        ["run", "--from", tilde, "--quiet"],
        "compare --num-byzantine 0 --seeds 1 --rounds 2 --quiet --decoders "
        "majority_vote --output-dir ~/grids".split(),
    ):
        assert main(command) == 0, capsys.readouterr().err
    assert list((tmp_path / "grids").glob("compare-*/table.md"))
    assert list((tmp_path / "work").iterdir()) == []  # no folder called "~"


@pytest.mark.parametrize(
    "command",
    [
        ["run", "mnist-mlp", "--data-dir", "~nobody-is-called-so/data"],
        ["run", "--from", "~nobody-is-called-so/run"],
        ["run", "~nobody-is-called-so/config.json"],
        ["compare", "mnist-mlp", "--data-dir", "~nobody-is-called-so", "--quiet"],
        ["plot", "~nobody-is-called-so/run"],
    ],
)
def test_home_of_nobody(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "~nobody-is-called-so" in one_line(capsys, *command)


# ------------------------------------------------------------------------ file systems


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_a_run_goes_on_and_says_so(number, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(records.fcntl, "flock", refuse)
    assert main(["run", *TINY, "--output-dir", str(tmp_path)]) == 0
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "summary.json").read_text())["rounds"] == 4
    line = capsys.readouterr().err.splitlines()[0]
    assert line.startswith(f"signfd: {folder} cannot be locked (")


def test_lock_that_another_has_is_none_that_is_missing(tmp_path, monkeypatch):
    def refuse(*_):
        raise BlockingIOError(errno.EAGAIN, "taken")

    monkeypatch.setattr(records.fcntl, "flock", refuse)
    with pytest.raises(ValueError, match="another process"), locked(tmp_path):
        pass


def test_finished_run_is_read_where_nothing_can_be_written(run, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(records.tempfile, "TemporaryFile", refuse)
    assert main(["run", *TINY, "--output-dir", str(run.parent)]) == 0
    err = one_line(capsys, "run", *TINY, "--seed", "5", "--output-dir", run.parent)
    assert f"cannot write in {run.parent} (Read-only file system)" in err

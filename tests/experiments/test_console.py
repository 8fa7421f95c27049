"""Terminals that are gone or poor in letters, figures that cannot be drawn."""

import errno
import io
import json
import os
import re
import subprocess
import sys

import jax.numpy as jnp
import matplotlib
import matplotlib.figure
import pytest

from signfd_jax.cli import main
from signfd_jax.experiments import Experiment
from signfd_jax.experiments._processes import console
from signfd_jax.experiments.run import run_experiment

# The tiny experiment of test_cli.py, whose programs may be at hand.
TINY = """--name tiny --model softmax_regression --decoder majority_vote --num-workers 5
    --num-byzantine 2 --batch-size 4 --rounds 4 --eval-every 2""".split()
GRID = """compare --decoders majority_vote --num-byzantine 0 2 --seeds 2
    --rounds 2""".split()


class Failing(io.StringIO):
    """A file whose every write or flush fails."""

    def __init__(self, number, at):
        super().__init__()
        self.number, self.at = number, at

    def write(self, text):
        if self.at == "write":
            raise OSError(self.number, os.strerror(self.number))
        return super().write(text)

    def flush(self):
        if self.at == "flush":
            raise OSError(self.number, os.strerror(self.number))


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS = {
    "gone": lambda: None,
    "closed": closed,
    "ascii": lambda: io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True),
    "latin": lambda: io.TextIOWrapper(io.BytesIO(), "cp1252", write_through=True),
    "nobody reads": lambda: Failing(errno.EPIPE, "write"),
    "nobody reads any more": lambda: Failing(errno.EPIPE, "flush"),
    "full": lambda: Failing(errno.ENOSPC, "flush"),
    "hung up": lambda: Failing(errno.EIO, "write"),
}
# What each command prints on, its exit code, and the results that it must leave.
COMMANDS = {
    "run": (["run", *TINY], 0, ["tiny-*/summary.json", "tiny-*/accuracy.png"]),
    "compare": (GRID, 0, ["compare-*/table.md", "compare-*/comparison.png"]),
    "list": (["list"], 0, []),
    "help": (["run", "--help"], 0, []),
    "bad flag": (["run", "--bogus", "3"], 2, []),
    "bad input": (["run", "--rounds", "0"], 2, []),
}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_printed_decides_nothing(command, stream, tmp_path, monkeypatch):
    arguments, expected, results = COMMANDS[command]
    monkeypatch.chdir(tmp_path)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, STREAMS[stream]())
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == expected
    for result in results:
        (path,) = (tmp_path / "runs").glob(result)
        assert path.stat().st_size > 0


def test_full_disk_behind_stdout_is_told_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Failing(errno.ENOSPC, "flush"))
    assert main(["list"]) == 0
    line = "signfd: nothing more can be printed (No space left on device)\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("stream", STREAMS)
def test_library_prints_as_patiently(stream, tmp_path, monkeypatch):
    config = Experiment(rounds=4, eval_every=2, batch_size=4, decoder="majority_vote")
    monkeypatch.setattr(sys, "stderr", STREAMS[stream]())
    folder, _ = run_experiment(config, tmp_path)
    assert (folder / "summary.json").exists()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_letters_that_an_encoding_lacks_are_spelled_out(encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding, newline="")
    text = "0.5 ± 0.1 │ 数 \udcff"  # the last is a byte of a file's name
    print(text, file=console.patient(stream), flush=True)
    said = stream.buffer.getvalue().decode(encoding)
    if encoding == "ascii":
        assert said == "0.5 +/- 0.1 | \\u6570 \\udcff\n"
    else:
        assert said.startswith("0.5 ± 0.1 ")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
@pytest.mark.parametrize(
    ("flags", "says"),
    [("--bogus 3", "Unrecognized options: --bogus"), ("--rounds many", "--rounds")],
)
def test_complaint_is_one_line_on_any_terminal(
    flags, says, encoding, monkeypatch, capsys
):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", narrow)
    assert main(["run", *flags.split()]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert says in err
    assert "---" not in err
    assert "──" not in err


# ------------------------------------------------------------------- progress bars


def frames(text):
    """What a bar showed, one after the other."""
    return [frame for frame in re.split(r"[\r\n]", text) if "|" in frame]


@pytest.mark.parametrize(
    ("columns", "expected"), [(None, 80), ("60", 60), ("80", 80), ("200", 200)]
)
@pytest.mark.parametrize("total", [5, 3000, 1_000_000])
def test_a_bar_fits_and_says_the_accuracy(columns, expected, total, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    title = "correlation_defense, 7 stochastic_sign_flip:flip_probability=0.25"
    with console.bar(total) as bar:
        bar.start_t -= 50 * 3600 / total  # so that many hours are left
        for done in range(3):
            console.show(bar, title, f"accuracy {done / 7:.3f}")
            bar.update()
            bar.refresh()
    shown = frames(screen.getvalue())
    assert max(map(len, shown)) < expected
    assert "accuracy 0.286" in shown[-1]
    assert f"/{total} [" in shown[-1]
    assert (title in shown[-1]) == (expected == 200)
    assert shown[-1].startswith("c")


def test_a_bar_that_is_not_wanted_is_silent(capsys):
    with console.bar(3, shown=False) as bar:
        console.show(bar, "title", "accuracy 0.5")
        bar.update(3)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("command", ["run", "compare"])
def test_progress_of_a_command(command, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    arguments, *_ = COMMANDS[command]
    assert main([*arguments, "--output-dir", str(tmp_path)]) == 0
    shown = frames(capsys.readouterr().err)
    assert max(map(len, shown)) < 80
    assert re.search(r"accuracy \d\.\d{3}\]$", shown[-1])


# ------------------------------------------------------------------------- drawing


def no_latex(monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    monkeypatch.setenv("PATH", "")


def no_font(monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "font.family", ["no such font"])


def no_memory(monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", fail)


def no_plots(monkeypatch):
    from signfd_jax.experiments import report

    monkeypatch.delattr(report, "plots", raising=False)
    monkeypatch.setitem(sys.modules, "signfd_jax.experiments.report.plots", None)


@pytest.mark.parametrize(
    ("trouble", "drawn"),
    [(no_latex, True), (no_font, True), (no_memory, False), (no_plots, False)],
)
@pytest.mark.parametrize("command", ["run", "compare"])
def test_drawing_fails_with_one_line(
    command, trouble, drawn, tmp_path, monkeypatch, capsys
):
    trouble(monkeypatch)
    arguments, _, (result, picture) = COMMANDS[command]
    assert main([*arguments, "--quiet", "--output-dir", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "test accuracy" in out or "| worst case" in out
    assert list(tmp_path.glob(result))
    assert bool(list(tmp_path.glob(picture))) == drawn
    lines = [line for line in err.splitlines() if "no checkpoint in" not in line]
    (line,) = lines
    assert line.startswith("signfd: figures: " if drawn else "signfd: no figures: ")


def test_plot_says_in_one_line_what_it_cannot_draw(tmp_path, monkeypatch, capsys):
    assert main(["run", *TINY, "--quiet", "--output-dir", str(tmp_path)]) == 0
    (folder,) = tmp_path.iterdir()
    capsys.readouterr()
    no_memory(monkeypatch)
    assert main(["plot", str(folder)]) == 2
    err = capsys.readouterr().err
    assert err == f"signfd: cannot draw {folder / 'accuracy.png'}: MemoryError\n"


def test_report_of_the_paper_is_written_first(tmp_path, monkeypatch, capsys):
    from signfd_jax.paper import report
    from signfd_jax.paper._base import Claim, Finding, Outcome

    panels = {"left": {"a": ([1, 2], [0.5, 0.7])}}
    found = Outcome((Claim("so it is", True),), [["a"], ["1"]], panels)
    finding = Finding("a finding", "something", lambda scale, lab: found)
    monkeypatch.setitem(report.FINDINGS, "inversion", finding)
    no_memory(monkeypatch)
    path, verdicts = report.reproduce(["inversion"], output_dir=tmp_path)
    assert verdicts == {"inversion": "reproduced"}
    assert "so it is" in path.read_text()
    err = capsys.readouterr().err
    assert err.startswith("signfd: no figures: cannot draw ")
    assert err.count("\n") == 1


# -------------------------------------------------------------------- real processes

SIGNFD = "python -c 'import sys; from signfd_jax.cli import main; sys.exit(main())'"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    ("around", "environment"),
    [
        ("{} >&-", {}),
        ("{} 2>&-", {}),
        ("{} <&- >&- 2>&-", {}),
        ("{} >/dev/full", {}),
        ("{} 2>/dev/full", {}),
        ("{} | true; exit ${{PIPESTATUS[0]}}", {}),
        ("{} 2>&1 >/dev/null | true; exit ${{PIPESTATUS[0]}}", {}),
        ("{} --processes 2 --wire one_bit --num-workers 6 >&- 2>&-", {}),
        ("{}", {"PYTHONIOENCODING": "ascii", "MPLBACKEND": "no such backend"}),
        ("{}", {"MATPLOTLIBRC": "matplotlibrc"}),
    ],
)
def test_real_files(around, environment, compiled, tmp_path):
    """Closed, full and abandoned; results are there, and no traceback is."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: none such\n")
    command = " ".join([SIGNFD, "run", *TINY]).replace("python", sys.executable, 1)
    process = subprocess.run(
        ["bash", "-c", around.format(command)],
        cwd=tmp_path,
        env=os.environ | compiled | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
    assert "Broken pipe" not in process.stderr
    assert "Exception ignored" not in process.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    json.loads((folder / "summary.json").read_text())
    assert (folder / "accuracy.png").stat().st_size > 0
    text = (folder / "metrics.jsonl").read_text()  # nothing else was written into it
    assert [json.loads(line)["round"] for line in text.splitlines()] == [2, 4]
    assert jnp.isfinite(json.loads(text.splitlines()[0])["test_accuracy"])

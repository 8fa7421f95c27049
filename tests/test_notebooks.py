"""Notebooks: stored with the outputs of their code, ending in a figure."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "notebooks"))

from execute import code_hash  # noqa: E402

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


# As many steps as show that a notebook runs, where all of them take a minute.
FEWER = {
    "data_parallel": ("STEPS = 150\n", "STEPS = 30\n"),
    "outer_steps": ("STEPS = 240\n", "STEPS = 30\n"),
}


def test_there_are_notebooks():
    names = {path.stem for path in NOTEBOOKS}
    assert {"quickstart", "decoding_signs", "reproduce_the_paper"} <= names


def image(cell):
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_of_this_code(path):
    """`python notebooks/execute.py` makes them anew, where the code has changed."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.metadata["code_sha256"] == code_hash(notebook), (
        f"the code of {path.name} has changed: python notebooks/execute.py {path.stem}"
    )
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for output in (output for cell in code for output in cell.outputs):
        assert output.output_type != "error" and output.get("name") != "stderr"
        assert "/tmp/" not in output.get("text", "")
    last = notebook.cells[-1]
    assert last.cell_type == "code" and image(last), "a notebook ends in one figure"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_ends_in_a_figure(path, tmp_path):
    """In a copy, so that the outputs can be read and nothing is left in the tree."""
    copy = tmp_path / path.name
    notebook = nbformat.read(path, as_version=4)
    if path.stem in FEWER:
        steps, fewer = FEWER[path.stem]
        (cell,) = [cell for cell in notebook.cells if steps in cell.source]
        cell.source = cell.source.replace(steps, fewer)
    nbformat.write(notebook, copy)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")  # the results they read
    command = [sys.executable, "-m", "pytest", "--nbmake", "--overwrite", "-q"]
    command += ["--nbmake-timeout=600", f"--rootdir={tmp_path}", str(copy)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert image(nbformat.read(copy, as_version=4).cells[-1])

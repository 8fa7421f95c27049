"""Notebooks: stored without output, executed from top to bottom, ending in a figure."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


# As many steps as show that a notebook runs, where all of them take a minute.
FEWER = {"data_parallel": ("STEPS = 150\n", "STEPS = 30\n")}


def test_there_are_notebooks():
    names = {path.stem for path in NOTEBOOKS}
    assert {"quickstart", "decoding_signs", "reproduce_the_paper"} <= names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_valid_and_stripped(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
    last = notebook.cells[-1]
    assert last.cell_type == "code", "a notebook ends in one figure"
    assert "figure" in last.source


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
    outputs = nbformat.read(copy, as_version=4).cells[-1].outputs
    assert any("image/png" in output.get("data", {}) for output in outputs)

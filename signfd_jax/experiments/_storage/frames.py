"""What runs and grids wrote, as a table for pandas."""

from pathlib import Path
from typing import Any

from signfd_jax.experiments._storage import files
from signfd_jax.experiments._storage import run_folder as records
from signfd_jax.experiments._success import SUCCESS


def load(folder: str | Path) -> Any:
    """Read the records of a run, of a grid, or of a folder of these.

    Args:
        folder: what `signfd run` or `signfd compare` wrote, or a folder that holds such
            folders, such as `runs`.

    Returns:
        A `pandas.DataFrame`. Of a run it has a row for each test and seed: the columns
        of `metrics.jsonl`, lists for what each worker has. Of a grid it has a row for
        each cell and seed, with its `test_accuracy` and, where the attack has a target,
        its `attack_success_rate`. Before them are `run`, the name of the folder, and
        the fields of the experiment.

    Raises:
        ValueError: there is no run in it, a file is damaged, or pandas is missing.

    Examples:
        >>> from signfd_jax.experiments import Experiment, run_experiment
        >>> config = Experiment(rounds=2, eval_every=1, batch_size=4)
        >>> folder, _ = run_experiment(config, getfixture("tmp_path"), progress=False)
        >>> frame = load(folder)
        >>> frame["round"].tolist(), frame["decoder"].unique().tolist()
        ([1, 2], ['correlation_defense'])
    """
    try:
        import pandas
    except ImportError:
        raise ValueError("load needs pandas: pip install pandas") from None
    folder = files.expanded(folder)
    if (folder / "config.json").is_file():
        return pandas.DataFrame(_rows(folder))
    found = sorted(path.parent for path in folder.glob("*/config.json"))
    if not found:
        raise ValueError(
            f"{folder} holds no run: there is no config.json in it, nor in a folder of "
            "its own"
        )
    return pandas.DataFrame([row for each in found for row in _rows(each)])


def _rows(folder):
    """A dict for each row."""
    cells = folder / "cells.jsonl"
    if cells.is_file():
        for cell in records.read_lines(cells):
            config = cell["config"]
            scores = [name for name in ("test_accuracy", SUCCESS) if name in cell]
            for s in range(len(cell["test_accuracy"])):
                yield {
                    "run": folder.name,
                    **config,
                    "seed": config["seed"] + s,
                    **{name: cell[name][s] for name in scores},
                }
        return
    config, lines = records.read_run(folder)
    for line in lines:
        yield {"run": folder.name} | config | line

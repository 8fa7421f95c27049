"""Experiments: configurations, presets, compiled runs, grids and their records.

Start with `Experiment`, which says what to run. `run_experiment` runs it into a folder,
`run_grid` runs many; `load` reads what they wrote. `PRESETS` are experiments with a
name. What needs the extra `experiments` is imported when it is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from signfd_jax.experiments.config import Experiment, fingerprint, from_json, to_json
from signfd_jax.experiments.presets import PRESETS, Preset

if TYPE_CHECKING:
    from signfd_jax.experiments._storage.frames import load
    from signfd_jax.experiments._storage.params import load_params
    from signfd_jax.experiments.grid import Grid, run_grid
    from signfd_jax.experiments.run import Halted, run_experiment

__all__ = [
    "PRESETS",
    "Experiment",
    "Grid",
    "Halted",
    "Preset",
    "fingerprint",
    "from_json",
    "load",
    "load_params",
    "run_experiment",
    "run_grid",
    "to_json",
]

_HOMES = {
    "Grid": "grid",
    "Halted": "run",
    "load": "_storage.frames",
    "load_params": "_storage.params",
    "run_experiment": "run",
    "run_grid": "grid",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

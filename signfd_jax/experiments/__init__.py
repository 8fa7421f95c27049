"""Experiments: configurations, presets, compiled runs, grids and their records.

`PRESETS` are experiments with a name. Light to import: what needs the extra
`experiments` is in the modules `registry`, `training`, `runs` and `compare`.
"""

from signfd_jax.experiments.config import Experiment, fingerprint, from_json, to_json
from signfd_jax.experiments.presets import PRESETS, Preset

__all__ = ["PRESETS", "Experiment", "Preset", "fingerprint", "from_json", "to_json"]

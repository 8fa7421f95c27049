"""Two camps of workers, and the thresholds by which they are found and judged."""

import jax
import numpy as np

from signfd_jax import evidence, heads, judging
from signfd_jax import structure as structure_module

THRESHOLDS = {
    name: value
    for module in (evidence, heads, structure_module, judging)
    for name, value in vars(module).items()
    if name.isupper() and name.startswith("_")
}

find = jax.jit(structure_module.structure)


def ramp(value, name):
    start, end = THRESHOLDS[name]
    return min(max((value - start) / (end - start), 0.0), 1.0)


def liars(*workers):
    v = np.full(15, 0.3)
    v[list(workers)] = -0.3
    return v

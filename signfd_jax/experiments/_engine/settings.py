"""The settings of JAX and XLA that change results.

They are no part of a configuration: they are recorded beside it, and a run goes on
under those that it was begun with, or not at all.
"""

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

# Of jax.config: what numbers are drawn, in which precision, by which derivative rules
# and by which passes of the compiler. The others only check, log, or place things.
_NAMES = (
    "jax_allow_f16_reductions",
    "jax_compiler_enable_remat_pass",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_disable_jit",
    "jax_disable_most_optimizations",
    "jax_enable_x64",
    "jax_exec_time_optimization_effort",
    "jax_explicit_x64_dtypes",
    "jax_high_dynamic_range_gumbel",
    "jax_memory_fitting_effort",
    "jax_memory_fitting_level",
    "jax_optimization_level",
    "jax_random_seed_offset",
    "jax_softmax_custom_jvp",
    "jax_threefry_partitionable",
    "jax_use_direct_linearize",
)
_VARIABLES = ("LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE", "XLA_FLAGS")
# Flags of XLA that write files, or say how many devices there are.
_HARMLESS = ("--xla_dump_", "--xla_force_host_platform_device_count")


def settings() -> dict[str, Any]:
    """The settings of this process, as far as they change results."""
    missing = object()
    found = {name: getattr(jax.config, name, missing) for name in _NAMES}
    return {
        **{n: _plain(value) for n, value in found.items() if value is not missing},
        **{name: _flags(os.environ.get(name, "")) for name in _VARIABLES},
    }


def _plain(value):
    return value if isinstance(value, str | int | float | None) else value.name.lower()


def _flags(text):
    kept = (flag for flag in text.split() if not flag.startswith(_HARMLESS))
    return " ".join(sorted(kept))


def changed_settings(then: Mapping[str, Any]) -> str:
    """Which settings are others now."""
    now = settings()
    before = then.get("settings") or {}
    return ", ".join(
        f"{name} was {_shown(before[name])} and is {_shown(now[name])}"
        for name in now
        if name in before and before[name] != now[name]
    )


def _shown(value):
    return "not set" if value == "" else value


def check_settings(folder: str | Path) -> None:
    """Refuse to go on under other settings of JAX than a run was begun with."""
    found = Path(folder).glob("checkpoints/*/about.json")
    for path in sorted(found, key=_rounds, reverse=True):
        try:
            changed = changed_settings(json.loads(path.read_text())["environment"])
        except (OSError, ValueError, LookupError, AttributeError):
            continue  # damaged: `checkpoints.restore` sets it aside
        if changed and _rounds(path) >= 0:
            raise ValueError(
                f"checkpoint {_rounds(path)} of {folder} was written under other "
                f"settings of JAX ({changed}), and the run would equal neither; set "
                "them back, or begin again with --force"
            )
        return


def _rounds(path):
    """Rounds of a checkpoint; -1 of what is half written or set aside."""
    return int(path.parent.name) if path.parent.name.isdecimal() else -1


def processor() -> str:
    """What a program for this CPU depends on, in a few letters."""
    features = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((x for x in lines if x[:5].lower() in ("flags", "featu")), "")
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"

"""Measuring: times side by side, what the machine can do, and the file of results.

A benchmark checks its answers first (`check_equal`), compiles apart (`compiled`), and
times competitors in turns, A B A B (`interleaved`), because a machine that is shared
changes its mind within seconds: compare the ratios of one run. What the machine can do
is measured in that same run: `read_pass`, one read of an array, `copy_pass`, one read
and one write, and `matrix_rate`. Every section of a file of results carries its own
environment (`write_section`).

Products of float32 matrices are computed in float32, as PyTorch does: left to itself,
XLA takes TensorFloat-32 on a GPU.
"""

import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from signfd_jax.experiments._storage import run_folder as records

jax.config.update("jax_default_matmul_precision", "highest")

__all__ = [
    "Timing",
    "WrongAnswer",
    "check_equal",
    "compiled",
    "copy_in_place",
    "copy_pass",
    "environment",
    "interleaved",
    "matrix_rate",
    "peak_memory",
    "ratio",
    "read_pass",
    "write_section",
]


class WrongAnswer(AssertionError):
    """What is to be timed does not compute what it should."""


class Timing(NamedTuple):
    """How long something took, over and over.

    Attributes:
        samples: seconds of every call, in order.
    """

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median (seconds)."""
        return statistics.median(self.samples)

    def of_one(self, number: int) -> "Timing":
        """Time for one of so many equal parts (int) of a call."""
        return Timing(tuple(seconds / number for seconds in self.samples))

    def summary(self) -> dict[str, Any]:
        """Median, minimum and quartiles (seconds), for a file of results."""
        low, _, high = _quartiles(self.samples)
        return {
            "median_s": self.median,
            "min_s": min(self.samples),
            "quartiles_s": [low, high],
            "repeats": len(self.samples),
        }

    def __str__(self) -> str:
        """For people: milliseconds."""
        low, _, high = _quartiles(self.samples)
        return (
            f"{1e3 * self.median:9.2f} ms [{1e3 * low:.2f}, {1e3 * high:.2f}], "
            f"min {1e3 * min(self.samples):.2f}, {len(self.samples)} runs"
        )


def _quartiles(samples: Sequence[float]) -> list[float]:
    return [float(q) for q in np.quantile(samples, (0.25, 0.5, 0.75))]


_BRIEF = 0.1  # seconds; threads of OpenMP spin for some milliseconds


def interleaved(
    competitors: Mapping[str, Callable[[], Any]],
    *,
    seconds: float = 5.0,
    most: int = 50,
    least: int = 3,
) -> dict[str, Timing]:
    """Time competitors in turns, so that a busy moment falls on all of them.

    Brief calls are made twice, and the second is timed.

    Args:
        competitors: functions without arguments by name; a JAX result is waited for,
            tensors of PyTorch on a CPU are there when the call returns.
        seconds: stop after about this long (seconds) ...
        most: ... or after so many calls of each (int),
        least: but not before so many (int).

    Returns:
        A `Timing` of each, calls of one position belonging together.
    """
    for run in competitors.values():
        jax.block_until_ready(run())
    samples: dict[str, list[float]] = {name: [] for name in competitors}
    names = list(competitors)
    end = time.perf_counter() + seconds
    for turn in range(most):
        if turn >= least and time.perf_counter() > end:
            break
        # The order rotates: nobody always comes after the one who fills the cache.
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if turn and samples[name][-1] < _BRIEF:
                # Not timed: meanwhile the last one's threads stop waiting for work.
                jax.block_until_ready(competitors[name]())
            start = time.perf_counter()
            jax.block_until_ready(competitors[name]())
            samples[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(times)) for name, times in samples.items()}


def ratio(slow: Timing, fast: Timing) -> dict[str, Any]:
    """How many times as long as another one something took, call by call.

    Args:
        slow: of the numerator.
        fast: of the denominator, from the same `interleaved`.

    Returns:
        Median and quartiles of the ratios of the calls that belong together.
    """
    ratios = [a / b for a, b in zip(slow.samples, fast.samples, strict=True)]
    low, median, high = _quartiles(ratios)
    return {"median": median, "quartiles": [low, high]}


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Compile a function for its arguments, apart from any timing.

    Args:
        function: pure, of arrays; or already jitted, with its donations.
        *arguments: arrays, or trees of them, or of `jax.ShapeDtypeStruct`.

    Returns:
        The compiled function, and how long that took (seconds).
    """
    jitted = function if hasattr(function, "lower") else jax.jit(function)
    start = time.perf_counter()
    program = jitted.lower(*arguments).compile()  # pyright: ignore
    return program, time.perf_counter() - start


def read_pass(array: jax.Array) -> Callable[[], jax.Array]:
    """One read of an array: the least that any function of all of it can cost.

    Args:
        array: float32 of any shape.

    Returns:
        A function without arguments for `interleaved`: it adds all numbers up.
    """
    program, _ = compiled(jnp.sum, array)
    return lambda: program(array)


def copy_pass(array: jax.Array) -> Callable[[], jax.Array]:
    """One read and one write of an array: the least that touching it all can cost.

    Args:
        array: float32 of any shape.

    Returns:
        A function without arguments for `interleaved`: it adds one to every number, and
        writes to fresh memory, as any function that returns an array must.
    """
    program, _ = compiled(lambda x: x + jnp.float32(1), array)
    return lambda: program(array)


def copy_in_place(array: jax.Array) -> Callable[[], jax.Array]:
    """The same into the memory that it came from: what no new page has to be asked for.

    Args:
        array: float32 of any shape; a copy of it is kept.

    Returns:
        A function without arguments for `interleaved`.
    """
    add_one = jax.jit(lambda x: x + jnp.float32(1), donate_argnums=0)
    kept = [jnp.copy(array)]

    def run():
        kept[0] = add_one(kept[0])
        return kept[0]

    return run


def matrix_rate(size: int = 2048, *, seconds: float = 2.0) -> float:
    """Rate of one large float32 matrix product, the ceiling of all arithmetic.

    Args:
        size: rows and columns (int).
        seconds: how long to measure (seconds).

    Returns:
        Operations a second: twice `size`^3 over the shortest time.
    """
    square = jnp.ones((size, size), jnp.float32)
    program, _ = compiled(jnp.matmul, square, square)
    times = interleaved({"": lambda: program(square, square)}, seconds=seconds)[""]
    return 2 * size**3 / min(times.samples)


def check_equal(name: str, found: Any, expected: Any, *, tolerance: float = 0.0):
    """Refuse to time a wrong answer.

    Args:
        name: what is checked, for the message.
        found: array, or a tree of them.
        expected: the same from a slow definition.
        tolerance: largest difference allowed, times the largest expected number.

    Raises:
        WrongAnswer: shapes differ, or numbers by more than the tolerance (NaN always).
    """
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for one, other in pairs:
        one, other = np.asarray(one), np.asarray(other)
        if one.shape != other.shape:
            raise WrongAnswer(f"{name}: shape {one.shape}, expected {other.shape}")
        one, other = one.astype(np.float64), other.astype(np.float64)
        allowed = tolerance * np.abs(other).max(initial=0.0)
        wrong = ~(np.abs(one - other) <= allowed)
        if wrong.any():
            first = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise WrongAnswer(
                f"{name}: {wrong.sum()} of {wrong.size} numbers are wrong; at {first} "
                f"stands {one[first]}, expected {other[first]}"
            )


def peak_memory() -> int:
    """Most memory held since this process began (bytes): the GPU's, where it uses one.

    Returns:
        Bytes on the first device, or of the process where the device counts none.
    """
    on_device = jax.devices()[0].memory_stats()
    if on_device is not None:
        return on_device["peak_bytes_in_use"]
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def environment() -> dict[str, Any]:
    """What a timing depends on: device, versions, commit, and who else is computing."""
    found = records.environment()
    return found | {
        "versions": found["versions"] | _peer_versions(),
        "processor": _processor(),
        "commit": _commit(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def _peer_versions() -> dict[str, str]:
    """Of what the library is compared with, as far as it is installed."""
    installed = {}
    for name in ("torch", "byzfl"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def _processor() -> str:
    """Model of the CPU, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    """Abbreviated hash, with a + where tracked files differ from it."""

    def git(*words):
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True)

    try:
        changed = git("status", "--porcelain", "--untracked-files=no").stdout
        return git("rev-parse", "--short=12", "HEAD").stdout.strip() + "+" * any(
            not line.endswith(".json") for line in changed.splitlines()
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_section(path: str | Path, section: str, result: Mapping[str, Any]) -> None:
    """Write one benchmark's results into a file that holds several.

    Args:
        path: file of JSON; its folder and it are made where they do not exist.
        section: "decode", "round" or "population"; replaced where it exists.
        result: plain values; `environment()` is added.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sections = json.loads(path.read_text()) if path.exists() else {}
    sections[section] = {"environment": environment(), **result}
    text = json.dumps(dict(sorted(sections.items())), indent=1)
    records.write_atomically(path, text + "\n")

"""How long it takes to start: tracing, compiling, and the command line.

Trace and compile of one update of many leaves, in turns with adam's: a decoder may
depend on the size of a tree, hardly on the number of its leaves. Then the processor
time and the wait for the first line of `signfd --help`, `signfd --version` and a
`signfd run` that finds its programs compiled.

    python -m benchmarks.start
"""

import dataclasses
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro

import signfd_jax as sfd
from benchmarks import measure
from benchmarks.faults import SIGNFD
from signfd_jax.experiments._processes import console

BASELINE = "adam"


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    leaves: tuple[int, ...] = (100, 300)
    """Numbers of leaves."""
    leaf_size: int = 4096
    """Coordinates of each."""
    num_workers: int = 4
    """Workers."""
    repeats: int = 5
    """Times that everything is done."""
    json: Path | None = None
    """Write a section of this file."""


def trace_and_compile(make, gradients, params) -> float:
    """Seconds from the transformation to a compiled update, with nothing cached."""
    jax.clear_caches()
    tx = make()
    state = tx.init(params)
    begun = time.perf_counter()
    jax.jit(tx.update).lower(gradients, state, params).compile()
    return time.perf_counter() - begun


def compilation(options: Options, num_leaves: int) -> dict[str, list[float]]:
    """Seconds of every repetition, by transformation."""
    num_workers, size = options.num_workers, options.leaf_size
    params = {f"leaf {i}": jnp.zeros(size) for i in range(num_leaves)}
    votes = {name: jnp.ones((num_workers, size)) for name in params}
    makers = {
        BASELINE: (lambda: optax.adam(0.1), params),
        "majority vote": (lambda: sfd.sign_sgd_mv(0.1, num_workers), votes),
        "default": (lambda: sfd.sign_sgd(0.1, num_workers), votes),
        "federated defense": (lambda: sfd.sign_sgd_fd(0.1, num_workers), votes),
    }
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    # The first compilation of a process pays for the compiler's own start.
    trace_and_compile(*makers["default"], params)
    for _ in range(options.repeats):
        for name, (make, gradients) in makers.items():
            seconds[name].append(trace_and_compile(make, gradients, params))
    return seconds


def command(compiled: str, *arguments: str) -> tuple[float, float]:
    """Processor time of `signfd`, and the seconds to its first output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    process = subprocess.Popen(
        [*SIGNFD, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"SIGNFD_COMPILED": compiled},
    )
    assert process.stdout is not None
    process.stdout.read(1)
    first = time.perf_counter() - begun
    process.stdout.read()
    if process.wait():
        sys.exit(f"signfd {' '.join(arguments)} ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, first


def command_line(repeats: int) -> dict[str, dict[str, list[float]]]:
    """Times of each command; a run is new each time, its programs are not."""
    result: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        compiled = str(Path(folder, "compiled"))

        def run(number):
            runs = str(Path(folder, str(number)))
            return "run", "digits", "--rounds", "50", "--output-dir", runs

        command(compiled, *run("first"))
        for repeat in range(repeats):
            for arguments in (("--help",), ("--version",), run(repeat)):
                name = " ".join(["signfd", *arguments[:4]])
                times = result.setdefault(name, {"used": [], "first": []})
                for key, value in zip(
                    times, command(compiled, *arguments), strict=True
                ):
                    times[key].append(value)
    return result


def main() -> None:
    """Print the medians, and write all samples where that was asked for."""
    options = tyro.cli(Options, description=__doc__)
    result: dict[str, Any] = {"compilation": {}}
    for num_leaves in options.leaves:
        seconds = compilation(options, num_leaves)
        result["compilation"][str(num_leaves)] = seconds
        baseline = statistics.median(seconds[BASELINE])
        for name, samples in seconds.items():
            middle = statistics.median(samples)
            print(
                f"{num_leaves} leaves, {name}: {middle:.2f} s "
                f"({min(samples):.2f} to {max(samples):.2f}), "
                f"{middle / baseline:.1f} times {BASELINE}"
            )
    result["command_line"] = command_line(options.repeats)
    for name, times in result["command_line"].items():
        used, first = (statistics.median(times[key]) for key in ("used", "first"))
        print(f"{name}: {used:.2f} s of processor time, first output in {first:.2f} s")
    if options.json is not None:
        measure.write_section(options.json, "start", result)


if __name__ == "__main__":
    with console.steady():  # results are kept, wherever they are printed
        main()

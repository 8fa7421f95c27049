"""Runs that are killed at random moments, and what becomes of them.

Two runs are left alone; each of the others is killed (SIGKILL) at a moment drawn from
the whole time that the second one took, start included, and the same command is given
again. (The first one fills a cache of compiled programs; a run that has ended before
its moment comes is not counted as killed, and another moment is drawn.) Counted are the
final results that equal those of the first run, bit for bit (parameters and metrics),
and the checkpoints that a kill left unreadable.

    python -m benchmarks.faults --rounds 4000 --json benchmarks/results/faults.json

It exits with 1 unless all results are identical and all checkpoints readable.
"""

import dataclasses
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tyro

from signfd_jax import data
from signfd_jax.experiments import checkpoints, records, training
from signfd_jax.experiments.config import Experiment, to_json

COMMAND = (
    sys.executable,
    "-c",
    "import sys; from signfd_jax.cli import main; sys.exit(main())",
    "run",
)
CONFIG = Experiment(
    name="faults",
    attack="sign_inversion",
    decoder="federated_defense",
    num_byzantine=7,
    seeds=2,
    rounds=1500,
    eval_every=10,
)


@dataclasses.dataclass(frozen=True)
class Options:
    """How often to kill, and what to write."""

    kills: int = 20
    """Number of runs that are killed."""
    rounds: int = CONFIG.rounds
    """Rounds of each run."""
    checkpoint_every: int = 50
    """Rounds from one checkpoint to the next."""
    seed: int = 0
    """Of the moments."""
    json: Path | None = None
    """File for the results."""


def start(options: Options, folder: Path) -> subprocess.Popen[str]:
    """Start a run, or go on with it: the same command."""
    config = folder / "config.json"
    folder.mkdir(exist_ok=True)
    config.write_text(to_json(dataclasses.replace(CONFIG, rounds=options.rounds)))
    flags = ["--checkpoint-every", str(options.checkpoint_every), "--quiet"]
    return subprocess.Popen(
        [*COMMAND, str(config), "--output-dir", str(folder), *flags],
        env=os.environ
        | {
            "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a run that must succeed; what it had to say."""
    _, err = process.communicate()
    if process.returncode:
        sys.exit(f"a run ended with {process.returncode}: {err}")
    return err


def outcome(folder: Path) -> tuple[bytes, str]:
    """Metrics and digest of the parameters of a finished run."""
    (run,) = folder.glob(f"{CONFIG.name}-*")
    summary = json.loads((run / "summary.json").read_text())
    return (run / "metrics.jsonl").read_bytes(), summary["params_sha256"]


def examine(folder: Path, template, config: Experiment) -> tuple[list[int], int]:
    """Rounds of the readable checkpoints, and the number of the others."""
    readable, unreadable = [], 0
    for path in folder.glob(f"{CONFIG.name}-*/checkpoints/*"):
        if path.name.isdecimal():
            try:
                checkpoints.examine(path, template, config)
                readable.append(checkpoints.read(path, template).rounds)
            except Exception as error:
                print(f"{path}: {error}", file=sys.stderr)
                unreadable += 1
    return sorted(readable), unreadable


def run(options: Options) -> dict[str, Any]:
    """Kill and count."""
    config = dataclasses.replace(CONFIG, rounds=options.rounds)
    template = training.prepare(config, data.load(config.dataset)).start()
    moments = random.Random(options.seed)
    kills: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        finish(start(options, folder / "whole"))
        whole = outcome(folder / "whole")
        begun = time.monotonic()
        finish(start(options, folder / "again"))
        took = time.monotonic() - begun
        if outcome(folder / "again") != whole:
            sys.exit("two runs that were left alone differ")
        print(f"undisturbed: {took:.1f} s", flush=True)
        while len(kills) < options.kills:
            killed = folder / str(len(kills))
            process = start(options, killed)
            moment = moments.uniform(0, took)
            time.sleep(moment)
            process.kill()
            process.communicate()
            if process.returncode == 0:  # it was faster than its forerunner
                shutil.rmtree(killed)
                continue
            readable, unreadable = examine(killed, template, config)
            said = finish(start(options, killed))
            kills.append(
                {
                    "seconds": round(moment, 3),
                    "checkpoints": readable,
                    "unreadable": unreadable,
                    "refused": said.count(" refused "),
                    "identical": outcome(killed) == whole,
                }
            )
            print(f"{len(kills):3d}: {json.dumps(kills[-1])}", flush=True)
    return {
        "kills": options.kills,
        "identical": sum(kill["identical"] for kill in kills),
        "unreadable": sum(kill["unreadable"] + kill["refused"] for kill in kills),
        "with_checkpoints": sum(bool(kill["checkpoints"]) for kill in kills),
        "median_moment": statistics.median(kill["seconds"] for kill in kills),
        "undisturbed_seconds": round(took, 3),
        "checkpoint_every": options.checkpoint_every,
        "config": json.loads(to_json(config)),
        "environment": records.environment(),
        "each": kills,
    }


def main() -> int:
    """Run, print the count, write the file."""
    options = tyro.cli(Options, description=__doc__)
    result = run(options)
    print(
        f"{result['kills']} kills, {result['identical']} identical results, "
        f"{result['unreadable']} unreadable checkpoints"
    )
    if options.json is not None:
        records.write_atomically(options.json, json.dumps(result, indent=1) + "\n")
    return int(result["identical"] < result["kills"] or result["unreadable"] > 0)


if __name__ == "__main__":
    sys.exit(main())

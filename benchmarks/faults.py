"""Runs that are stopped at random moments, and what becomes of them.

Two runs are left alone; each of the others is stopped at a moment, and the same command
is given again. Half of the kills (SIGKILL) strike in the first ten seconds, start and
compilation included, and with checkpoints as a run writes them of itself; the other
half at any time that the second run took, with a checkpoint every 50 rounds. Then come
SIGTERMs, as a cluster's scheduler sends them, at any time likewise. (The first run
fills a cache of compiled programs; a run that has ended before its moment comes is not
counted, and another moment is drawn.)

Counted are the final results that equal those of the first run, bit for bit (parameters
and metrics); the checkpoints that were left unreadable; and the second starts that did
not say, rightly, where they went on.

    python -m benchmarks.faults --rounds 4000 --json benchmarks/results/faults.json

It exits with 1 unless all results are identical, all checkpoints readable, all starts
told and all SIGTERMs heeded.
"""

import dataclasses
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tyro

from signfd_jax import data
from signfd_jax.experiments._engine import prepare as training
from signfd_jax.experiments._processes import console
from signfd_jax.experiments._storage import checkpoints
from signfd_jax.experiments._storage import run_folder as records
from signfd_jax.experiments.config import Experiment, to_json

SIGNFD = (
    sys.executable,
    "-c",
    "import sys; from signfd_jax.cli import main; sys.exit(main())",
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
    """How often to stop a run, and what to write."""

    kills: int = 20
    """Number of runs that are killed, half of them in the first seconds."""
    terminations: int = 5
    """Number of runs that SIGTERM stops."""
    early: float = 10.0
    """The first seconds."""
    rounds: int = CONFIG.rounds
    """Rounds of each run."""
    checkpoint_every: int = 50
    """Rounds from one checkpoint to the next, but for the early kills."""
    seed: int = 0
    """Of the moments."""
    json: Path | None = None
    """File for the results."""


def start(
    options: Options, folder: Path, every: int | None = None
) -> subprocess.Popen[str]:
    """Start a run, or go on with it: the same command."""
    config = folder / "config.json"
    folder.mkdir(exist_ok=True)
    config.write_text(to_json(dataclasses.replace(CONFIG, rounds=options.rounds)))
    flags = ["--quiet"]
    if every is not None:
        flags += ["--checkpoint-every", str(every)]
    return subprocess.Popen(
        [*SIGNFD, "run", str(config), "--output-dir", str(folder), *flags],
        env=os.environ
        | {
            "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a run that must succeed; what it had to say."""
    out, err = process.communicate()
    if process.returncode:
        sys.exit(f"a run ended with {process.returncode}: {err}")
    return err + out


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


def told(said: str, readable: list[int], finished: bool) -> bool:
    """Whether a start said where it goes on: at the newest checkpoint, or at none.

    A run may also have been stopped after its last result, before it could end.
    """
    if finished:
        return "finished before" in said
    if not readable:
        return said.count(": starting from round 0\n") == 1
    return f"signfd: resuming from round {readable[-1]} (checkpoint of " in said


def plan(options: Options, took: float) -> Iterator[tuple[str, int, float, int | None]]:
    """What stops a run and when: name, signal, latest second, checkpoint interval."""
    for number in range(options.kills):
        if number % 2:
            yield "kill", signal.SIGKILL, took, options.checkpoint_every
        else:
            yield "early kill", signal.SIGKILL, min(options.early, took), None
    for _ in range(options.terminations):
        yield "termination", signal.SIGTERM, took, options.checkpoint_every


def run(options: Options) -> dict[str, Any]:
    """Stop, start again and count."""
    config = dataclasses.replace(CONFIG, rounds=options.rounds)
    template = training.prepare(config, data.load(config.dataset)).start()
    moments = random.Random(options.seed)
    each: list[dict[str, Any]] = []
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
        for what, number, latest, every in plan(options, took):
            stopped = folder / str(len(each))
            code = 0
            while code == 0:  # it was faster than its forerunner
                shutil.rmtree(stopped, ignore_errors=True)
                process = start(options, stopped, every)
                moment = moments.uniform(0, latest)
                time.sleep(moment)
                process.send_signal(number)
                process.communicate()
                code = process.returncode
            readable, unreadable = examine(stopped, template, config)
            finished = any(stopped.glob("*/summary.json"))
            said = finish(start(options, stopped, every))
            each.append(
                {
                    "what": what,
                    "seconds": round(moment, 3),
                    "exit_code": code,
                    "checkpoints": readable,
                    "unreadable": unreadable,
                    "refused": said.count(" refused "),
                    "finished": finished,
                    "told": told(said, readable, finished),
                    "identical": outcome(stopped) == whole,
                }
            )
            print(f"{len(each):3d}: {json.dumps(each[-1])}", flush=True)
    kills = [one for one in each if one["what"] != "termination"]
    terminations = [one for one in each if one["what"] == "termination"]
    return {
        "kills": len(kills),
        "early_kills": sum(one["what"] == "early kill" for one in kills),
        "terminations": len(terminations),
        # 143; or, before Python could hear it, the system's own end by SIGTERM.
        "heeded": sum(one["exit_code"] in (143, -15) for one in terminations),
        "identical": sum(one["identical"] for one in each),
        "told": sum(one["told"] for one in each),
        "unreadable": sum(one["unreadable"] + one["refused"] for one in each),
        "with_checkpoints": sum(bool(one["checkpoints"]) for one in each),
        "median_moment": statistics.median(one["seconds"] for one in each),
        "undisturbed_seconds": round(took, 3),
        "checkpoint_every": options.checkpoint_every,
        "config": json.loads(to_json(config)),
        "environment": records.environment(),
        "each": each,
    }


def main() -> int:
    """Run, write the file, print the count."""
    options = tyro.cli(Options, description=__doc__)
    result = run(options)
    if options.json is not None:
        records.write_atomically(options.json, json.dumps(result, indent=1) + "\n")
    stopped = result["kills"] + result["terminations"]
    print(
        f"{result['kills']} kills, {result['early_kills']} of them early, and "
        f"{result['terminations']} SIGTERMs, {result['heeded']} of them heeded: "
        f"{result['identical']} identical results, {result['told']} starts told, "
        f"{result['unreadable']} unreadable checkpoints"
    )
    return int(
        result["identical"] < stopped
        or result["told"] < stopped
        or result["heeded"] < result["terminations"]
        or result["unreadable"] > 0
    )


if __name__ == "__main__":
    with console.steady():  # results are kept, wherever they are printed
        sys.exit(main())

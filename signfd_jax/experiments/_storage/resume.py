"""When a run writes a checkpoint, how it stops, and where it goes on.

Shapes: `S` seeds.
"""

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from signfd_jax.experiments._storage import checkpoints
from signfd_jax.experiments._storage import run_folder as records
from signfd_jax.experiments._storage.checkpoints import Checkpoint
from signfd_jax.experiments.config import Experiment

_SECONDS = 30.0  # from one checkpoint to the next
_SHARE = 20  # checkpoints take at most the twentieth part of the time


def resume(
    folder: Path,
    config: Experiment,
    start: Checkpoint,
    *,
    report: Callable[[str], None] = print,
) -> Checkpoint:
    """Find the checkpoint to go on from, and let the metrics end where it does."""
    path = folder / "metrics.jsonl"
    if jax.process_index() > 0:  # the first process knows which one
        found = checkpoints.restore(folder, start.state, config)
        return start if found is None else found
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = text.splitlines(keepends=True)
    tests = [*range(config.eval_every, config.rounds, config.eval_every), config.rounds]
    heads = [(t, config.seed + s) for t in tests for s in range(config.seeds)]
    whole = 0
    while whole < min(len(lines), len(heads)) and _head(lines[whole]) == heads[whole]:
        whole += 1
    found = checkpoints.restore(
        folder,
        start.state,
        config,
        newest=[0, *tests][whole // config.seeds],
        report=report,
    )
    if found is None:
        found = start
        report(f"no checkpoint in {folder}: starting from round 0")
    else:
        when = checkpoints.written(folder, found.rounds)
        report(f"resuming from round {found.rounds} (checkpoint of {when})")
    kept = sum(rounds <= found.rounds for rounds, _ in heads)
    records.write_atomically(path, "".join(lines[:kept]))
    return found


def _head(line):
    """Round and seed of a record; None if the line was cut off or damaged."""
    try:
        record = json.loads(line)
        return (record["round"], record["seed"]) if line.endswith("\n") else None
    except (ValueError, TypeError, KeyError):
        return None


def agreed(number: int) -> int:
    """The highest number of any process: all save, and stop, at the same test."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.asarray(number)).max())


def schedule(
    save: Callable[[Checkpoint], None],
    *,
    every: int | None,
    rounds: int,
    last: int | None = None,
    agree: Callable[[int], int] = int,
) -> Callable[[Checkpoint, bool], None]:
    """Decide at each test whether it is time for a checkpoint."""
    last_time, pause = time.monotonic(), 0.0

    def offer(checkpoint, now):
        nonlocal rounds, last_time, pause
        begun = time.monotonic()
        if every is None:
            due = begun - last_time >= pause and checkpoint.rounds != last
            now = now or due
        else:
            now = now or checkpoint.rounds // every > rounds // every
        if agree(now) and checkpoint.rounds > rounds:
            save(checkpoint)
            rounds, last_time = checkpoint.rounds, time.monotonic()
            pause = max(_SECONDS, _SHARE * (last_time - begun))

    return offer


def heeded_signals() -> dict[int, Any]:
    """Handlers of Ctrl-C and SIGTERM, without those of them that are ignored.

    A shell's background jobs ignore Ctrl-C: it is meant for another.
    """
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    return {n: h for n, h in handlers.items() if h not in (signal.SIG_IGN, None)}


@contextlib.contextmanager
def held_back_signals() -> Iterator[list[int]]:
    """Hold back the first Ctrl-C or SIGTERM, so that a run can stop in good order.

    The second one does what it always does. Signals that are ignored, as Ctrl-C is by
    a shell's background jobs, still are.
    """
    stopped: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stopped  # signals are for the main thread alone
        return
    heeded = heeded_signals()

    def hold_back(number, _):
        stopped.append(number)
        signal.signal(number, heeded[number])

    for number in heeded:
        signal.signal(number, hold_back)
    try:
        yield stopped
    finally:
        for number, handler in heeded.items():
            signal.signal(number, handler)

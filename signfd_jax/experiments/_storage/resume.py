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

__all__ = ["agreed", "heeded_signals", "held_back_signals", "resume", "schedule"]

_SECONDS = 30.0  # from one checkpoint to the next
_SHARE = 20  # checkpoints take at most the twentieth part of the time


def resume(
    folder: Path,
    config: Experiment,
    start: Checkpoint,
    *,
    report: Callable[[str], None] = print,
) -> Checkpoint:
    """Find the checkpoint to go on from, and let the metrics end where it does.

    Args:
        folder: the run's folder.
        config: the experiment.
        start: the state before the first round, after 0 of them.
        report: called with one line for each checkpoint that is refused, and one that
            says where the run goes on.

    Returns:
        The newest `Checkpoint` that can be used, or `start`.

    Examples:
        >>> folder = getfixture("tmp_path")
        >>> start = Checkpoint({}, rounds=0, seconds=0.0)
        >>> resume(folder, Experiment(), start).rounds
        no checkpoint in ...: starting from round 0
        0
        >>> (folder / "metrics.jsonl").read_text()
        ''
    """
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
    """The highest number that any process says: all save, and stop, at the same test.

    Args:
        number: what this process says, such as the signal that stops it, or 0.

    Returns:
        The highest of all.

    Examples:
        >>> agreed(signal.SIGTERM) == signal.SIGTERM
        True
    """
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
    """Decide at each test whether it is time for a checkpoint.

    Args:
        save: writes one.
        every: rounds from one to the next; None: one at the first test, and from then
            on one at the first test after 30 seconds, or after 20 times what the one
            before took, whichever is later.
        rounds: rounds of the checkpoint that there is, 0 without one.
        last: rounds of the whole run, after which none is written of itself; None: not
            known.
        agree: see `agreed`.

    Returns:
        `offer(checkpoint, now)`, which saves the checkpoint if it is time, and in any
        case with `now`; but not twice.

    Examples:
        >>> offer = schedule(lambda c: print(c.rounds), every=20, rounds=0)
        >>> for rounds in (15, 30, 35, 60):
        ...     offer(Checkpoint({}, rounds, seconds=0.0), False)
        30
        60
    """
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

    Returns:
        The handler of each, by the signal's number.

    Examples:
        >>> before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        >>> [signal.Signals(number).name for number in heeded_signals()]
        ['SIGTERM']
        >>> _ = signal.signal(signal.SIGINT, before)
    """
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    return {n: h for n, h in handlers.items() if h not in (signal.SIG_IGN, None)}


@contextlib.contextmanager
def held_back_signals() -> Iterator[list[int]]:
    """Hold back the first Ctrl-C or SIGTERM, so that a run can stop in good order.

    The second one does what it always does. Signals that are ignored, as Ctrl-C is by
    a shell's background jobs, still are.

    Returns:
        A context manager that gives a list, empty until a signal comes.

    Examples:
        >>> import os
        >>> with held_back_signals() as stopped:
        ...     os.kill(os.getpid(), signal.SIGTERM)
        ...     bool(stopped)
        True
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

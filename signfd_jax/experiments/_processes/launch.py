"""Several processes that train together: starting them, watching them, joining them.

`launch` starts processes on this machine, each of which calls `join`; under another
launcher (SLURM, MPI, a shell on each host) they call `join` alone. What they say to
each other is JAX's own runtime.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from signfd_jax.experiments._processes import addresses, console
from signfd_jax.experiments._processes import signals as interrupts
from signfd_jax.experiments._storage.resume import heeded_signals

_PROGRAM = "import sys; from signfd_jax.cli import main; sys.exit(main())"
_PLACE = "SIGNFD_PLACE"  # coordinator, number of processes, id, log
_LOST = 3  # exit code of a process that lost the others
HALTED = 4  # and of one whose run halted, as its `stop_below` says
_POLL = 0.05  # seconds


def join(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat: int = 30,
) -> None:
    """Join the other processes of a job; to be called before anything else of JAX."""
    if heartbeat < 1:
        raise ValueError(f"heartbeat must be >= 1 second, but is {heartbeat}")
    devices = None
    bind = None
    if coordinator is None and _PLACE in os.environ:
        coordinator, count, place, log = os.environ[_PLACE].split(",", 3)
        num_processes, process_id = int(count), int(place)
        devices = [process_id]  # of this machine's accelerators
        bind = coordinator  # nobody else's business
        _log_to(log)
        threading.Thread(target=_end_with_launcher, daemon=True).start()
    try:
        if coordinator is not None:
            addresses.check_coordinator(coordinator)
        addresses.past_proxies(here=bind is not None)
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            local_device_ids=devices,
            coordinator_bind_address=bind,
            heartbeat_timeout_seconds=heartbeat,
        )
        # The runtime has put a handler of its own in the place of ours.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        if coordinator is not None:
            addresses.name_this_machine(coordinator)
        # CPUs wait 30 seconds for each other's addresses, no more: exchange them while
        # all are here, not after the data are read, which takes each its own time.
        multihost_utils.sync_global_devices("joined")
    except (ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise ValueError(
            f"cannot join the other processes: {reason} (give --coordinator HOST:PORT, "
            "--num-processes and --process-id, or use --processes on one machine)"
        ) from None


def _log_to(path):
    """What the runtime says goes to a file, what we say goes where it went."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for number, name in ((1, "stdout"), (2, "stderr")):
        ours = os.dup(number)
        os.dup2(log, number)
        stream = os.fdopen(ours, "w", buffering=1)
        setattr(sys, name, console.patient(stream))


def _end_with_launcher():
    """The launcher holds the other end of our stdin: when it is gone, so are we."""
    while os.read(0, 1024):
        pass
    os._exit(_LOST)


def guarded(run: Callable[[], int]) -> int:
    """Run one process of a job; leave at once if the others are lost."""
    try:
        return run()
    except jax.errors.JaxRuntimeError as error:
        text = traceback.format_exc()
        os.write(2, text.encode())
        if _PLACE not in os.environ:  # else the launcher says it
            line = (str(error).splitlines() or [""])[0][:200]
            console.warn(f"the job ended: {line}")
        os._exit(_LOST)  # JAX would wait for the others


def launch(arguments: Sequence[str], num_processes: int) -> int:
    """Start the processes of a job on this machine, and watch them.

    If one dies, the others are ended within a second, and one line says so. One that
    is silent for `--heartbeat` seconds ends the job likewise. Ctrl-C and SIGTERM are
    passed on, so that the job stops at the next test with a checkpoint; the second one
    ends it at once. The processes end with the launcher, however that ends.
    """
    if num_processes < 1:
        raise ValueError(f"processes must be >= 1, but is {num_processes}")
    logs = Path(tempfile.mkdtemp(prefix="signfd-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    processes = []
    try:
        for number in range(num_processes):
            log = logs / f"process-{number}.log"
            place = f"{coordinator},{num_processes},{number},{log}"
            processes.append(_start(arguments, place, quiet=number > 0))
        code = _watch(processes, logs)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
    if code != 1:  # else the line that was said names them
        shutil.rmtree(logs, ignore_errors=True)
    return code


def _start(arguments, place, quiet):
    output = subprocess.DEVNULL if quiet else None
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, "run", *arguments, "--distributed"],
        env=os.environ | {_PLACE: place},
        stdin=subprocess.PIPE,  # see _end_with_launcher
        stdout=output,
        stderr=output,
        start_new_session=True,  # Ctrl-C comes to us, and from us
    )


def _watch(processes, logs):
    """Wait until all have ended or one has died; the exit code."""
    passed_on = []

    def pass_on(number, _):
        passed_on.append(number)
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    before = heeded_signals()
    for number in before:
        signal.signal(number, pass_on)
    try:
        while True:
            codes = [process.poll() for process in processes]
            if any(codes):
                # The one that died first may not be the first one that we see.
                time.sleep(4 * _POLL)
                codes = [process.poll() for process in processes]
                break
            if None not in codes:
                return 0
            time.sleep(_POLL)
        if codes[0] == 2 or not {HALTED, 130, 143}.isdisjoint(codes):
            # Told by process 0 itself; the others have the same reason.
            return processes[0].wait() or max(code or 0 for code in codes)
        if passed_on:  # before the processes could heed it
            raise interrupts.stopped_by(passed_on[0])
        died = [n for n, code in enumerate(codes) if code not in (None, 0)]
        place = min(died, key=lambda n: (codes[n] != -signal.SIGKILL, codes[n]))
        how = f"ended with exit code {codes[place]}"
        if codes[place] < 0:
            how = f"was ended by {signal.Signals(-codes[place]).name}"
        console.warn(
            f"process {place} of {len(processes)} {how}, which ends the job "
            f"(logs: {logs}); give the command again, with as many processes or fewer, "
            "to go on from the last checkpoint"
        )
        return 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

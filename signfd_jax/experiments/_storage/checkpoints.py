"""Checkpoints: what survives a run that is killed.

`<run>/checkpoints/<rounds>/` is an orbax checkpoint of one item, `state`: the
`SimulationState` of all seeds, with keys as their data. Its `about.json` has the
configuration's fingerprint, the environment, and the SHA-256 of each file of the state.
The batches are drawn from the state's key: it is the cursor into the data.

Orbax renames a checkpoint into place when it is whole, and old ones are renamed away
before they are deleted: a folder with a number for its name is a whole checkpoint.

Where several processes train together, all of them save and restore, into one folder
that all of them see, and the first of them decides.
"""

import contextlib
import datetime
import hashlib
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from signfd_jax.experiments._engine.settings import check_settings
from signfd_jax.experiments._processes import console
from signfd_jax.experiments._storage import run_folder as records
from signfd_jax.experiments._storage.params import is_key, is_split, leaves, to_numpy
from signfd_jax.experiments.config import Experiment, fingerprint

# Orbax numbers the writes of a process: two at a time, of two threads, wait for ever.
_WRITING = threading.RLock()

# Checkpoints that are on their way in or out.
_PASSING = ("*.orbax-checkpoint-tmp*", "old-*")


class Checkpoint(NamedTuple):
    """What `restore` gives back.

    Attributes:
        state: the `SimulationState` of all seeds.
        rounds: rounds done.
        seconds: time that these took.
    """

    state: Any
    rounds: int
    seconds: float


@contextlib.contextmanager
def writer(
    folder: str | Path,
    config: Experiment,
    *,
    keep: int = 2,
    report: Callable[[str], None] = print,
) -> Iterator[Callable[[Checkpoint], None]]:
    """Write checkpoints of a run in the background, and keep the newest.

    A checkpoint that cannot be written is reported, and the run goes on. Nothing is
    imported or made before the first one.
    """
    if keep < 1:
        raise ValueError(f"keep must be >= 1, but is {keep}: a run resumes from one")
    directory = Path(folder).absolute() / "checkpoints"
    stack = contextlib.ExitStack()
    checkpointer: Any = None
    about: dict[str, Any] = {}  # of the checkpoint that is being written

    def seal():
        """Orbax calls it in the background, just before the rename."""
        for path in directory.glob(f"{about['rounds']}.orbax-checkpoint-tmp*"):
            if jax.process_index() == 0:
                whole = about | {"files": _hashes(path)}
                text = json.dumps(whole | {"seal": _seal(whole)}, indent=1) + "\n"
                records.write_atomically(path / "about.json", text)

    def finish():
        try:
            checkpointer.wait_until_finished()
        except Exception as error:  # whatever orbax makes of a full disk
            fail(error)
        finally:
            _WRITING.release()
        about.clear()
        if jax.process_index() == 0:
            for old in _rounds(directory)[keep:]:
                path = directory / f"old-{old}"
                (directory / str(old)).rename(path)
                shutil.rmtree(path, ignore_errors=True)

    def fail(error):
        reason = console.reason(error)
        report(f"no checkpoint of round {about['rounds']}, the run goes on: {reason}")
        _clean(directory)

    def save(checkpoint):
        nonlocal checkpointer
        import orbax.checkpoint as ocp

        if checkpointer is None:
            checkpointer = ocp.AsyncCheckpointer(
                ocp.CompositeCheckpointHandler(),
                async_options=ocp.options.AsyncOptions(post_finalization_callback=seal),
            )
            stack.callback(checkpointer.close)
        elif about:
            finish()
        arrays = to_numpy(checkpoint.state)
        _WRITING.acquire()
        about.update(
            fingerprint=fingerprint(config),
            rounds=checkpoint.rounds,
            seconds=checkpoint.seconds,
            leaves=leaves(arrays),
            environment=records.environment(),
        )
        items = ocp.args.Composite(state=ocp.args.StandardSave(arrays))
        try:
            directory.mkdir(parents=True, exist_ok=True)
            path = directory / str(checkpoint.rounds)
            checkpointer.save(path, items, force=True)
        except Exception as error:
            _WRITING.release()
            fail(error)
            about.clear()

    with _quiet_orbax(), stack:
        try:
            yield save
        finally:
            if about:
                finish()


def restore(
    folder: str | Path,
    template: Any,
    config: Experiment,
    *,
    newest: int | None = None,
    report: Callable[[str], None] = print,
) -> Checkpoint | None:
    """Read the newest checkpoint that is whole and belongs to the experiment.

    One that is not is set aside as `refused-<rounds>`, with one line that says why, and
    the one before is tried. What a killed run left half written is deleted.
    """
    directory = Path(folder).absolute() / "checkpoints"
    rounds = 0
    check_settings(folder)
    if jax.process_index() == 0:
        _clean(directory)
        rounds = _choose(directory, template, config, newest, report)
    if jax.process_count() > 1:
        rounds = int(multihost_utils.broadcast_one_to_all(np.int32(rounds)))
    return read(directory / str(rounds), template) if rounds else None


def _choose(directory, template, config, newest, report):
    """Rounds of the newest checkpoint that `examine` passes, or 0."""
    for rounds in _rounds(directory):
        try:
            if newest is not None and rounds > newest:
                raise ValueError(f"metrics.jsonl has no lines after round {newest}")
            then = examine(directory / str(rounds), template, config)["environment"]
        except (ValueError, OSError) as error:
            aside = _set_aside(directory / str(rounds))
            report(
                f"checkpoint {rounds} refused (set aside as {aside.name}): "
                f"{console.reason(error)}"
            )
            continue
        if changes := records.changes(then, records.environment()):
            report(
                f"checkpoint {rounds} was written elsewhere ({changes}): what follows "
                "may differ in the last bits"
            )
        return rounds
    return 0


def examine(path: str | Path, template: Any, config: Experiment) -> dict[str, Any]:
    """See that a checkpoint is whole and belongs to the experiment."""
    path = Path(path)
    try:
        about = json.loads((path / "about.json").read_text())
        intact = about.pop("seal") == _seal(about)
    except (ValueError, LookupError, AttributeError, FileNotFoundError):
        intact = False
    if not intact:
        raise ValueError("damaged: its about.json is not the one that was written")
    if about["files"] != _hashes(path):
        raise ValueError("damaged: its files are not those that were written")
    if about["fingerprint"] != fingerprint(config):
        raise ValueError(
            f"of another configuration, {about['fingerprint']}, and not "
            f"{fingerprint(config)}"
        )
    wanted, given = leaves(jax.tree.map(_plain, template)), about["leaves"]
    for name in wanted.keys() | given.keys():
        if wanted.get(name) != given.get(name):
            raise ValueError(f"its state is of another kind: {name} differs")
    return about


def read(path: str | Path, template: Any) -> Checkpoint:
    """Read a checkpoint that `examine` has passed."""
    import orbax.checkpoint as ocp

    path = Path(path).absolute()
    about = json.loads((path / "about.json").read_text())
    blank = jax.tree.map(_blank, template)
    handler = ocp.CompositeCheckpointHandler()
    with _quiet_orbax(), ocp.Checkpointer(handler) as checkpointer:
        items = ocp.args.Composite(state=ocp.args.StandardRestore(blank))
        arrays = checkpointer.restore(path, items)["state"]
    state = jax.tree.map(_from_numpy, arrays, template)
    return Checkpoint(state, about["rounds"], about["seconds"])


def written(folder: str | Path, rounds: int) -> str:
    """When a checkpoint was written."""
    path = Path(folder) / "checkpoints" / str(rounds) / "about.json"
    then = datetime.datetime.fromtimestamp(path.stat().st_mtime)
    today = then.date() == datetime.date.today()
    return then.strftime("%H:%M" if today else "%Y-%m-%d %H:%M")


def _plain(leaf):
    """The shape and dtype that a leaf is written in."""
    return jax.eval_shape(jax.random.key_data, leaf) if is_key(leaf) else leaf


def _blank(leaf):
    if is_split(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    return np.zeros(_plain(leaf).shape, _plain(leaf).dtype)


def _from_numpy(array, like):
    if is_split(like):
        return array
    sharding = getattr(like, "sharding", None)
    if sharding is not None:
        array = jax.make_array_from_callback(
            array.shape, sharding, lambda index: np.array(array[index], copy=True)
        )
    if is_key(like):
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
    return jnp.asarray(array)


def _rounds(directory):
    """Rounds of the checkpoints in a folder, newest first."""
    names = (path.name for path in directory.glob("*") if path.is_dir())
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _seal(about):
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _hashes(path):
    """SHA-256 of every file of a checkpoint's state, by its name."""
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((path / "state").rglob("*"))
        if file.is_file()
    }


def _clean(directory):
    for pattern in _PASSING:
        for path in directory.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def _set_aside(path):
    aside = path.with_name(f"refused-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    return path.rename(aside)


@contextlib.contextmanager
def _quiet_orbax():
    """Our own lines say what goes wrong."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)

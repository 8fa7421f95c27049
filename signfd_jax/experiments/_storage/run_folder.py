"""The folder of a run: what is in it, and how it is written so that it is never half.

A run owns `<output_dir>/<name>-<hash>/` with `config.json`, `environment.json`,
`metrics.jsonl` (a line for each test and seed, without timings: the same command writes
the same bytes), its checkpoints, `params.npz`, `summary.json` (written last: a run that
has one is finished) and its figures.
"""

import contextlib
import functools
import json
import math
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from signfd_jax import __version__
from signfd_jax.experiments import _plugins as plugins
from signfd_jax.experiments._engine.settings import changed_settings, settings
from signfd_jax.experiments._processes import console
from signfd_jax.experiments._storage import files
from signfd_jax.experiments.config import Experiment, fingerprint

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def run_folder(output_dir: str | Path, config: Experiment) -> Path:
    """Where a run writes."""
    return files.expanded(output_dir) / f"{config.name}-{fingerprint(config)}"


def make_folder(path: str | Path) -> Path:
    """Make a folder with its parents, and see that it can be written."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write in {path} ({error.strerror}); choose another --output-dir"
        ) from None
    return path


@contextlib.contextmanager
def locked(
    folder: Path, *, report: Callable[[str], None] = console.warn
) -> Iterator[None]:
    """Keep a run's folder to this process; a process that dies frees it.

    Some file systems have no locks, such as some of clusters. There the folder is left
    open, and one line says so.
    """
    if fcntl is None:  # a system without such locks
        yield
        return
    path = folder / ".lock"
    while True:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"another process is at work in {folder}; wait until it ends, or "
                    "choose another --output-dir"
                ) from None
            except OSError as error:
                report(
                    f"{folder} cannot be locked ({console.reason(error)}); see that no "
                    "other process is at work in it"
                )
            # Whoever had it may have removed the file before it was free.
            if not path.exists() or not os.path.samestat(
                os.fstat(file.fileno()), path.stat()
            ):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: a temporary file beside it, then a rename."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    r"""Append records to a file of JSON lines, and flush it."""
    lines = [json.dumps(plain(record)) + "\n" for record in records]
    with path.open("a") as file:
        file.writelines(lines)


def plain(value: Any) -> Any:
    """What comes back when a record has been written and read."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def drop_cut_line(path: Path) -> None:
    r"""Take off a last line that was cut off, so that lines can be appended again."""
    if path.exists():
        text = files.read_text(path)
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            write_atomically(path, whole)


def read_lines(path: Path) -> list[dict[str, Any]]:
    r"""Read a file of JSON lines, leaving out a last line that was cut off."""
    if not path.exists():
        return []
    lines = files.read_text(path).split("\n")
    records = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(
                f"{path}, line {number}, is not JSON, or is not a record; the file is "
                "damaged: remove it to begin again"
            )
        records.append(record)
    return records


def read_run(folder: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read what a run wrote, finished or not."""
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no run: there is no config.json in it")
    return files.read_json(path), read_lines(folder / "metrics.jsonl")


def environment() -> dict[str, Any]:
    """What a result depends on beside its configuration."""
    libraries = ("jax", "jaxlib", "optax", "flax", "numpy")
    versions = {"python": platform.python_version(), "signfd_jax": __version__}
    versions |= {library: metadata.version(library) for library in libraries}
    versions |= plugins.versions()
    device = jax.devices()[0]
    return {
        "versions": versions,
        "device": f"{device.platform}: {device.device_kind}",
        "devices": jax.device_count(),
        "settings": settings(),
        "commit": _commit(),
    }


def keep_environment(folder: Path, *, begun: bool) -> None:
    """Record the environment of a folder, or compare with what it was begun in."""
    path = folder / "environment.json"
    if not begun:
        write_atomically(path, json.dumps(environment(), indent=2) + "\n")
    elif path.exists() and (changed := changed_settings(files.read_json(path))):
        raise ValueError(
            f"{folder} holds results under other settings of JAX ({changed}): others "
            "cannot stand beside them; set them back, choose another --output-dir, or "
            "begin again with --force"
        )


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What of an `environment` has changed."""
    parts = ("versions", "settings")
    one, other = (
        {k: v for k, v in e.items() if k not in parts}
        | {k: v for part in parts for k, v in e.get(part, {}).items()}
        for e in (then, now)
    )
    if "settings" not in then:  # of a version that did not record them
        other = {k: v for k, v in other.items() if k not in now.get("settings", {})}
    names = [name for name in other if one.get(name) != other[name]]
    return ", ".join(
        f"{name} {'not set' if one.get(name) == '' else one.get(name)}"
        for name in names
    )


@functools.cache
def _commit():
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():  # a package in somebody else's checkout
        return None

    def git(*arguments):
        # Read only: refreshing the index of a full disk would fail.
        command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
        output = subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True)
        return output.strip()

    try:
        changed = git("status", "--porcelain", "--", "signfd_jax")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None

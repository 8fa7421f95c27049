"""Sinks by their names, and all of a run's sinks at work."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from signfd_jax.experiments._processes import console
from signfd_jax.experiments.config import Experiment
from signfd_jax.experiments.sinks import SINKS, Record, Sink


def named(names: Iterable[str]) -> list[Sink]:
    """The sinks of these names, each once, where what they need is installed."""
    found = []
    for name in dict.fromkeys(names):
        if name not in SINKS:
            raise ValueError(console.unknown("sink", name, sorted(SINKS)))
        package = getattr(SINKS[name], "package", None)
        if package and importlib.util.find_spec(package) is None:
            raise ValueError(
                f"--log {name} needs the package {package}: pip install {package}"
            )
        found.append(SINKS[name]())
    return found


@contextlib.contextmanager
def opened(
    sinks: Iterable[Sink],
    folder: Path,
    config: Experiment,
    before: Sequence[Record],
    *,
    report: Callable[[str], None],
) -> Iterator[Callable[[Sequence[Record]], None]]:
    """What writes to all of them; one that fails later is left out, with a line."""
    at_work: list[Sink] = []

    def spared(sink, act):
        try:
            act()
        except Exception as error:  # whatever a stranger's library raises
            at_work.remove(sink)
            report(
                f"{type(sink).__name__} is left out from here on "
                f"({type(error).__name__}: {console.reason(error)}); the run goes on"
            )

    def write(records):
        for sink in tuple(at_work):
            spared(sink, lambda sink=sink: sink.write(records))

    try:
        for sink in sinks:
            try:
                sink.open(folder, config, before)
            except Exception as error:
                raise ValueError(
                    f"the sink {type(sink).__name__} cannot be opened "
                    f"({type(error).__name__}: {console.reason(error)}); nothing was "
                    "trained"
                ) from error
            at_work.append(sink)
        yield write
    finally:
        for sink in tuple(at_work):
            spared(sink, sink.close)

"""What other packages add to the registries, by entry points.

A package that declares `[project.entry-points."signfd_jax.attacks"]` in its
pyproject.toml has its attacks in every configuration once it is installed. `GROUPS` are
the groups there are, `PACKAGES` says who added what, and `BROKEN` what was left out.
"""

import contextlib
import functools
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterator
from importlib import metadata
from typing import Any

from signfd_jax.experiments._processes import console

GROUPS = tuple(
    f"signfd_jax.{kind}"
    for kind in ("attacks", "datasets", "decoders", "models", "presets", "rules")
)

BROKEN: dict[str, str] = {}
"""Names that were left out, each with what is wrong, as one line."""

PACKAGES: dict[str, dict[str, str]] = {group: {} for group in GROUPS}
"""The packages of the names that were added, by group and name."""

_told: set[str] = set()


def load(
    group: str,
    taken: Collection[str] = (),
    make: Callable[[Callable[..., Any]], Any] = lambda function: function,
) -> dict[str, Any]:
    """Import what installed packages declare.

    What a package gets wrong is left out, and goes to `BROKEN`: it cannot be imported,
    gives no function, or uses a name that is taken.

    Args:
        group: one of `GROUPS`.
        taken: the names that are in use.
        make: what turns a function into an entry of the registry.

    Returns:
        By name, the functions.

    Examples:
        >>> load("signfd_jax.attacks", taken=["sign_inversion"])
        {}
    """
    found: dict[str, Any] = {}
    for point in _points(group):
        try:
            found[point.name] = make(_function(point, {*taken, *found}))
            PACKAGES[group][point.name] = _package(point)
        except (Exception, SystemExit) as error:
            whose = f"{group} {point.name!r} of the package {_package(point)}"
            BROKEN[point.name] = f"{whose}: {console.reason(error)}"
    return found


def _function(point, taken):
    """The function of an entry point, or what is wrong with it."""
    if point.name in taken:
        raise ValueError("the name is taken; choose another")
    of_words = point.group.endswith(".presets")  # no options follow
    if not (point.name.replace("-", "_") if of_words else point.name).isidentifier():
        raise ValueError(
            "a name must consist of letters, digits and '_', because options follow it "
            "in a configuration"
        )
    try:
        function = point.load()
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"it cannot be imported from {point.value} ({type(error).__name__}: "
            f"{console.reason(error)}); mend that package or uninstall it"
        ) from None
    if not callable(function):
        raise ValueError(f"{point.value} is no function")
    inspect.signature(function)  # by which its options are found
    return function


def imported(module: str, name: str) -> Callable[..., Any]:
    """What `module:name` stands for, also of a file in the folder where one is."""
    where = f"{module}:{name}"
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise ValueError(f"{where} is no package.module:Name")
    try:
        found = importlib.util.find_spec(module.split(".")[0])
        if found is None and os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())  # as `python -m` does
        made = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{where} cannot be imported ({type(error).__name__}: "
            f"{console.reason(error)}) from {os.getcwd()} or what is installed"
        ) from None
    if not callable(made):
        raise ValueError(f"{where} is no class or function that makes a model")
    return made


@functools.lru_cache(maxsize=1)
def _installed(path):
    """All entry points, read once: it opens a file of every package on the path."""
    return metadata.entry_points()


def _points(group) -> Iterator[metadata.EntryPoint]:
    """The entry points of a group; of all packages but those that cannot be read."""
    try:
        yield from _installed(tuple(sys.path)).select(group=group)
        return
    except Exception:  # whatever Python makes of a damaged file
        seen = set()
    for package in metadata.distributions():
        name = None
        try:
            name = package.metadata["Name"]
            points = [] if name in seen else package.entry_points.select(group=group)
            yield from points
        except Exception as error:
            whose = f"the package {name or 'of no name'}"
            BROKEN[whose] = f"{whose} has entry points that cannot be read ({error})"
        seen.add(name)


def warn_of_broken() -> None:
    """Say of each thing that was left out what is wrong with it, once."""
    for name, wrong in BROKEN.items():
        if name not in _told:
            _told.add(name)
            console.warn(f"{wrong}; it is left out")


def versions() -> dict[str, str]:
    """Versions of the packages that add something."""
    found = {}
    for point in (point for group in GROUPS for point in _points(group)):
        with contextlib.suppress(Exception):  # a package that does not say
            if point.dist:
                found[point.dist.name] = point.dist.version
    return found


def _package(point):
    name = None
    with contextlib.suppress(Exception):
        name = point.dist.name
    return name or "of no name"

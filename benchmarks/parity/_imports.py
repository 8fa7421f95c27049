"""Import single files of a library, without what they do not need.

A rule is imported from the file that has it. What that file imports besides, of
servers, clients and loggers, is replaced by stand-ins.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class MissingLibrary(Exception):
    """A library is not where it was looked for."""


def installed(package: str, module: str, how: str) -> tuple[Any, dict[str, str]]:
    """A module of a package from pip, and the package's version."""
    try:
        found = importlib.import_module(module)
        return found, {package: importlib.metadata.version(package)}
    except ImportError as error:
        raise MissingLibrary(f"cannot import {module} ({error}); {how}") from error


def needed(*modules: str) -> None:
    """Check that pip's modules that a clone imports are there."""
    names = {"sklearn": "scikit-learn"}
    lacking = [
        names.get(name, name)
        for name in modules
        if name not in sys.modules and importlib.util.find_spec(name) is None
    ]
    if lacking:
        raise MissingLibrary(
            f"the clones import what is not installed; pip install {' '.join(lacking)}"
        )


def versions_of(*packages: str) -> dict[str, str]:
    """The versions of those packages that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def commit_of(folder: Path) -> str:
    """The commit of a clone; unknown where git does not tell."""
    command = ["git", "-C", str(folder), "rev-parse", "--short=7", "HEAD"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        said = subprocess.run(command, capture_output=True, text=True, check=True)
        return said.stdout.strip()
    return "unknown"


class StandIn:
    """A class or decorator that a file imports, and that plays no part in its rule."""

    def __new__(cls, *arguments, **_):
        """As a decorator it gives back what it decorates."""
        if arguments and callable(arguments[0]):
            return arguments[0]
        return super().__new__(cls)

    def __init__(self, *arguments, **named):
        """Take whatever there is."""

    def __call__(self, decorated):
        """A decorator with arguments gives back what it decorates, too."""
        return decorated


class _StandIns(types.ModuleType):
    """A module that has every name."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (StandIn,), {})


def stand_in(name: str, **contents: Any) -> None:
    """Put a module there that has `contents`, and a stand-in for any other name."""
    module = _StandIns(name)
    vars(module).update(contents, __path__=[])
    sys.modules[name] = module


def package(name: str, folder: Path, **contents: Any) -> None:
    """Make the files of a folder importable, without running its `__init__`."""
    module = types.ModuleType(name)
    vars(module).update(contents, __path__=[str(folder)])
    sys.modules[name] = module


def single(name: str, file: Path) -> Any:
    """Import one file as a module of this name."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def replaced(module: Any, **contents: Any) -> Iterator[None]:
    """Give a module other contents for a while."""
    before = {name: getattr(module, name) for name in contents}
    vars(module).update(contents)
    try:
        yield
    finally:
        vars(module).update(before)

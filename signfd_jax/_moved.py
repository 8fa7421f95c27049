"""Modules that have moved are still found under their old names.

`from signfd_jax.decoding import Decoder` gives what `signfd_jax.decoders` has.
"""

import importlib
import importlib.abc
import importlib.util
import sys

MOVED = {
    "decoding": "decoders.base",
    "defense": "decoders.federated",
    "experiments.runs": "experiments.run",
    "experiments.training": "experiments._engine.prepare",
    "likelihood": "decoders.likelihood",
    "packed": "signs.packed",
    "partition": "data.partition",
    "plots": "experiments.report.plots",
    "sign_family": "transforms.variants",
    "tally": "signs._tally",
    "transform": "transforms",
}
"""Old place to new one, below the package."""

_PACKAGE = __name__.rpartition(".")[0]


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds, and loads, a module of an old name as a second name of the new one."""

    def find_spec(self, name, path=None, target=None):
        package, _, old = name.partition(".")
        if package == _PACKAGE and old in MOVED:
            return importlib.util.spec_from_loader(name, self)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        old = module.__name__.partition(".")[2]
        new = importlib.import_module(f"{_PACKAGE}.{MOVED[old]}")
        names = {key: value for key, value in vars(new).items() if key[:2] != "__"}
        vars(module).update(names, __doc__=new.__doc__)


def install() -> None:
    """Let the import system ask here, after all other places."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())

"""What can be named: the names of each kind, with their options and a line on each.

Everything is read from the registries, the signatures and the docstrings.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from signfd_jax import data
from signfd_jax.experiments import _aliases, registry
from signfd_jax.experiments import _plugins as plugins
from signfd_jax.experiments._choices import written_options
from signfd_jax.experiments.presets import PRESETS
from signfd_jax.experiments.sinks import SINKS


class Entry(NamedTuple):
    """One name.

    Attributes:
        name: the name.
        options: the options that can be written behind it, each with its default as it
            would be written; "..." where there is none.
        package: the package that added it; "": this one.
        description: the first line of its docstring.
    """

    name: str
    options: dict[str, str]
    package: str
    description: str


def entries(kind: str) -> list[Entry]:
    """The entries of a kind, such as "attacks", in the order of its registry."""
    if kind == "aliases":
        return [Entry(name, {}, "", about) for name, about in _aliases.listed()]
    table, *groups = _REGISTRIES[kind]
    packages: dict[str, str] = {}
    for group in groups:
        packages |= plugins.PACKAGES[group]
    if kind == "presets":
        return [
            Entry(name, {}, packages.get(name, ""), preset.description)
            for name, preset in table.items()
        ]
    ours = data.DATASETS if kind == "datasets" else ()
    return [
        *(Entry(name, {}, "", _about_data(name)) for name in ours),
        *(
            Entry(
                name, written_options(factory), packages.get(name, ""), _about(factory)
            )
            for name, factory in table.items()
        ),
    ]


# The registry of each kind, and the groups of entry points that add to it.
_REGISTRIES: dict[str, tuple[Any, ...]] = {
    "presets": (PRESETS, "signfd_jax.presets"),
    "datasets": (registry.DATASETS, "signfd_jax.datasets"),
    "models": (registry.MODELS, "signfd_jax.models"),
    "splits": (registry.SPLITS,),
    "decoders": (registry.SERVERS, "signfd_jax.decoders", "signfd_jax.rules"),
    "attacks": (registry.ATTACKS, "signfd_jax.attacks"),
    "memberships": (registry.MEMBERSHIPS,),
    "workers": (registry.WORKERS,),
    "optimizers": (registry.OPTIMIZERS,),
    "schedules": (registry.SCHEDULES,),
    "sinks": (SINKS,),
}


def _about(factory: Callable[..., Any]) -> str:
    """The first line of its docstring."""
    line, *_ = (inspect.getdoc(factory) or "").split("\n")
    return in_plain_letters(line)


def _about_data(name: str) -> str:
    """What the table in the docstring of `signfd_jax.data` says of a data set."""
    row = rf"^\| `{name}` \| ([\d,]+), ([\d,]+) \| (.*?) \| (.*?) \|$"
    found = re.search(row, data.__doc__ or "", re.MULTILINE)
    if found is None:
        return ""
    train, test, example, where = found.groups()
    about = f"{train} examples to train on and {test} to test on, {example}; {where}."
    return in_plain_letters(about)


_SYMBOLS: Mapping[str, str] = {"leftarrow": "<-", "sim": "~"}


def in_plain_letters(line: str) -> str:
    r"""A line of a docstring without the marks of Markdown and TeX."""
    return re.sub(r"\$(.*?)\$", _without_tex, line).replace("`", "")


def _without_tex(formula):
    """A formula as one would type it."""
    text = re.sub(r"\\operatorname\{(\w+)\}", r"\\\1", formula[1])
    text = re.sub(r"(?<=\w)(?=\\)", " ", text)
    text = re.sub(r"\\(\w+)", lambda m: _SYMBOLS.get(m[1], m[1]), text)
    return re.sub(r"[{}]", "", text)

"""`signfd list`: what can be named, with the options of each name."""

from signfd_jax.cli._printing import Table, print_tables
from signfd_jax.experiments._processes import console

KINDS = (
    "presets",
    "datasets",
    "models",
    "splits",
    "decoders",
    "attacks",
    "memberships",
    "workers",
    "optimizers",
    "schedules",
    "sinks",
    "aliases",
)
"""What there is to list."""

_HEAD = ("name", "options", "package", "what it is")


def list_names(kinds: list[str]) -> int:
    """Print the names of some kinds; of all where none is given."""
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(console.unknown("kind", kind, KINDS))
    from signfd_jax.experiments import _catalogue, _plugins

    _plugins.warn_of_broken()
    print_tables(
        [
            Table(kind, _HEAD, [_row(entry) for entry in _catalogue.entries(kind)])
            for kind in kinds or KINDS
        ]
    )
    return 0


def _row(entry):
    options = [f"{option}={default}" for option, default in entry.options.items()]
    return entry.name, options, entry.package, entry.description

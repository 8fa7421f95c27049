"""The page of the leaderboard: what each row says in one line of a table.

Shapes: `S` seeds. A standard error is over seeds, of which each has its own mean over
the cells: they share parameters and batches.
"""

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from signfd_jax.experiments import challenges, leaderboard
from signfd_jax.experiments._success import SUCCESS
from signfd_jax.experiments.report._tables import (
    markdown,
    mean,
    mean_and_error,
    measured,
)

_PAGE = """\
# Leaderboard

<!-- `signfd leaderboard page` writes this page: what is changed by hand is lost. -->

A challenge is a frozen list of experiments: a model, data, attacks, numbers of
Byzantine workers and seeds. Each entry is a decoder or an aggregation rule that was run
in all of them. `benchmarks/leaderboard/` of the repository has the challenges, with the
SHA-256 of their fields, and the rows: of each entry the accuracies and losses of each
cell and seed.

```bash
signfd leaderboard list
signfd leaderboard run digits-iid --decoder krum
signfd leaderboard run digits-iid
signfd leaderboard page
```

`run` trains an entry anew and compares all numbers with its row. Without a decoder it
does so with all rows. It ends with the exit code 1 where a number differs.

To enter a decoder or a rule of yours, install
[the package that adds it](plugins.md), and name it: `signfd leaderboard run digits-iid
--decoder my_decoder`. This writes its row, and `signfd leaderboard page` writes this
page again.

**On the same platform a row comes out bit for bit.** On another one it may differ: the
order in which a compiled program adds up depends on the processor, and where a sum is
near 0 its sign may turn. `run` then says what of the platform differs, and by how much
the accuracies do.

| column | meaning |
|---|---|
| accuracy | of the test set, after the last round: the mean over cells and seeds |
| worst case | the lowest mean over seeds of a cell; beside it who attacks there |
| attack success | the highest mean over seeds of a cell with a backdoor |
| up, down | bits that a worker sends and receives in a round |
| seconds | processor time of all the training, without compiling; not compared |

What follows ± is the standard error over seeds. Entries are sorted by their worst case.
Aggregation rules are told how many workers are Byzantine; decoders are not. The runs
are short: the first 100 rounds of federated defense are its initial phase.
"""


class Summary(NamedTuple):
    """A row in short.

    Attributes:
        accuracy: mean over cells and seeds.
        error: its standard error over seeds; NaN of one seed.
        worst: the lowest mean over seeds of a cell.
        worst_error: its standard error.
        attackers: who attacks there, such as "7 alie".
        attack_success: the highest mean over seeds of a cell; NaN without a backdoor.
        bits_up: bits that a worker sends in a round, the most of all cells.
        bits_down: bits that it receives, likewise.
    """

    accuracy: float
    error: float
    worst: float
    worst_error: float
    attackers: str
    attack_success: float
    bits_up: int
    bits_down: int


def summary(row: Mapping[str, Any]) -> Summary:
    """What a row comes to."""
    cells = row["cells"]
    by_seed = zip(*(cell["test_accuracy"] for cell in cells), strict=True)
    accuracy, error = mean_and_error([statistics.fmean(seed) for seed in by_seed])
    worst = min(cells, key=lambda cell: mean(cell["test_accuracy"]))
    several = len({cell["split"] for cell in cells}) > 1
    successes = [mean(cell.get(SUCCESS, [])) for cell in cells]
    return Summary(
        accuracy,
        error,
        *mean_and_error(worst["test_accuracy"]),
        attackers(worst) + f", {worst['split']}" * several,
        max(measured(successes), default=math.nan),
        *(max(cell[name] for cell in cells) // row["rounds"] for name in _BITS),
    )


_BITS = ("bits_up", "bits_down")


def attackers(cell: Mapping[str, Any]) -> str:
    """Who attacks in a cell."""
    number = cell["num_byzantine"]
    return f"{number} {cell['attack']}" if number else "none"


def page(folder: str | Path) -> str:
    """The page: what a leaderboard is, and a table of each challenge."""
    parts = [_PAGE]
    for name in challenges.names(folder):
        challenge = challenges.read_challenge(folder, name)
        rows = leaderboard.read_rows(folder, challenge)
        parts += [f"## {name}", _about(challenge, len(challenge.cells("mean")))]
        if rows:
            parts += [_table(rows), *_platforms(rows)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _about(challenge, num_cells):
    base = challenge.base
    seeds = range(base.seed, base.seed + base.seeds)
    return (
        f"{challenge.about} {base.model} on {base.dataset}; {base.num_workers} "
        f"workers; {base.rounds} rounds; {num_cells} cells; seeds "
        f"{', '.join(map(str, seeds))}; version {challenge.version}; SHA-256 "
        f"`{challenge.sha256[:12]}`."
    )


_HEAD = ("entry", "accuracy", "worst case", "under", "attack success")
_HEAD += ("up", "down", "seconds")


def _table(rows):
    """The rows, the best worst case first."""
    found = {entry: summary(row) for entry, row in rows.items()}
    in_order = sorted(found, key=lambda e: (-found[e].worst, -found[e].accuracy, e))
    lines = [_line(entry, found[entry], rows[entry]["seconds"]) for entry in in_order]
    return markdown([_HEAD, *lines])


def _line(entry, row, seconds):
    return (
        f"`{entry}`",
        _with_error(row.accuracy, row.error),
        _with_error(row.worst, row.worst_error),
        row.attackers,
        "—" if math.isnan(row.attack_success) else _short(row.attack_success),
        f"{row.bits_up:,}",
        f"{row.bits_down:,}",
        f"{seconds:.1f}",
    )


def _with_error(value, error):
    return _short(value) if math.isnan(error) else f"{_short(value)} ± {_short(error)}"


def _short(value):
    return f"{value:.3f}".removeprefix("0")


def _platforms(rows):
    """A line of each platform, with the entries if there are several."""
    entries = {}
    for entry, row in rows.items():
        entries.setdefault(_platform(row["environment"]), []).append(f"`{entry}`")
    for platform, those in sorted(entries.items()):
        whose = "All rows" if len(entries) == 1 else ", ".join(those)
        yield f"{whose}: {platform}."


def _platform(environment):
    versions = environment["versions"]
    libraries = ", ".join(f"{name} {versions[name]}" for name in ("jax", "jaxlib"))
    return (
        f"{libraries}, Python {versions['python']}, {environment['device']}, processor "
        f"{environment['processor']}, {environment['cores']} cores"
    )

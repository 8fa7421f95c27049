"""The leaderboard: the rows that were entered in a challenge, and whether they hold.

A row says what a decoder or a rule reached in a `challenges.Challenge`. It is a file of
`results/NAME/` in the leaderboard's folder, which `enter` writes.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from signfd_jax._checks import check_flag
from signfd_jax.experiments._choices import canonical
from signfd_jax.experiments._engine.settings import processor
from signfd_jax.experiments._storage import files
from signfd_jax.experiments._storage import run_folder as records
from signfd_jax.experiments._success import SUCCESS
from signfd_jax.experiments.challenges import Challenge, check_challenge
from signfd_jax.experiments.grid import run_grid
from signfd_jax.experiments.registry import SERVERS
from signfd_jax.experiments.report._tables import measured

__all__ = ["Comparison", "compare", "enter", "read_rows", "regenerate"]


class Comparison(NamedTuple):
    """Whether a row came out again.

    Attributes:
        equal: all accuracies, losses and bits are equal, bit for bit.
        report: the same in a line, which says whether libraries, settings of JAX and
            processor are the same; and a line of each cell that differs.
    """

    equal: bool
    report: str


def _row_path(folder, name, entry):
    """Where the row of an entry lies; no two entries have one file."""
    entry = canonical(SERVERS, entry)
    stem = re.sub(r"\W+", "-", entry)
    if stem != entry:  # a file may not be called so
        stem += "-" + hashlib.sha256(entry.encode()).hexdigest()[:8]
    return files.expanded(folder) / "results" / name / f"{stem}.json"


def read_rows(folder: str | Path, challenge: Challenge) -> dict[str, dict[str, Any]]:
    """Read the rows that were entered in a challenge.

    Args:
        folder: the leaderboard's folder.
        challenge: the challenge.

    Returns:
        By entry, the rows that `regenerate` gave.

    Raises:
        ValueError: a row is damaged, lies where another's should, or is of another
            version of the challenge.

    Examples:
        >>> from signfd_jax.experiments import Experiment
        >>> challenge = Challenge("Inversion.", Experiment(), ("sign_inversion",), (7,))
        >>> read_rows(getfixture("tmp_path"), challenge)
        {}
    """
    check_challenge(challenge)
    rows, name = {}, challenge.base.name
    for path in sorted(_row_path(folder, name, "any").parent.glob("*.json")):
        row = files.read_json(path)
        _check_row(str(path), row)
        if row["sha256"] != challenge.sha256:
            raise ValueError(
                f"{path} is of another version of {name}: its hash is "
                f"{str(row['sha256'])[:12]}, the challenge's {challenge.sha256[:12]}; "
                "remove the file, and enter it anew"
            )
        if path != _row_path(folder, name, row["entry"]):
            raise ValueError(f"{path} holds the row of another entry, {row['entry']}")
        rows[row["entry"]] = row
    return rows


_MEASURED = ("test_accuracy", "test_loss", SUCCESS, "bits_up", "bits_down")
_TOLD = ("attack", "num_byzantine", "split")
_FIELDS = ("entry", "sha256", "rounds", "seconds", "environment", "cells")


def _check_row(what, row):
    """Refuse what `regenerate` did not give."""
    owed = {*_TOLD, *_MEASURED} - {SUCCESS}
    try:
        lacking = [name for name in _FIELDS if name not in row]
        lacking += [n for cell in row["cells"] for n in sorted(owed - set(cell))]
    except (KeyError, TypeError):
        lacking = ["cells"]
    if lacking:
        raise ValueError(f"{what} is no row of a leaderboard: it lacks {lacking[0]}")


def regenerate(
    challenge: Challenge,
    entry: str,
    output_dir: str | Path = "runs",
    *,
    data_dir: str | Path | None = None,
    force: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Train and attack an entry as a challenge says; what was stopped goes on.

    Args:
        challenge: the challenge, as `read_challenge` gives it.
        entry: a decoder or a rule of `signfd list decoders`, with options.
        output_dir: the folder of all runs; the row is `row.json` in one of its own.
        data_dir: the folder of the data sets; None: see `data.load`.
        force: begin anew what was stopped.
        progress: show a progress bar on stderr.

    Returns:
        A row: the `challenge` with its `version` and `sha256`; the `entry`; the first
        `seed` and the number of `seeds`; `rounds`; `seconds` of the processor for all
        the training, without compiling; the `environment`; and of each of its `cells`
        who attacks, `test_accuracy`, `test_loss` and, where it is measured,
        `attack_success_rate` (each a number a seed), and `bits_up` and `bits_down` of a
        worker in all rounds.

    Raises:
        ValueError: there is no such decoder, or it cannot be run in the challenge.

    Examples:
        >>> from signfd_jax.experiments import Experiment
        >>> base = Experiment(model="softmax_regression", rounds=2, seeds=2)
        >>> challenge = Challenge("Two rounds.", base, ("none",), (0,))
        >>> folder = getfixture("tmp_path")
        >>> row = regenerate(challenge, "majority_vote", folder, progress=False)
        >>> [cell["attack"] for cell in row["cells"]], len(row["cells"][0]["test_loss"])
        (['none'], 2)
    """
    check_flag("force", force)
    check_challenge(challenge)
    if not isinstance(entry, str):
        raise ValueError(f"entry must be the name of a decoder, but is {entry!r}")
    entry, name = canonical(SERVERS, entry), challenge.base.name
    experiments = challenge.cells(entry)
    stem = _row_path("", name, entry).stem
    part = f"leaderboard-{name}-{challenge.sha256[:8]}-{stem}"
    folder = records.make_folder(files.expanded(output_dir) / part)
    finished = folder / "row.json"
    force = force or finished.exists()
    finished.unlink(missing_ok=True)
    found = run_grid(
        experiments, folder, data_dir=data_dir, force=force, progress=progress
    )
    timings = records.read_lines(folder / "timings.jsonl")
    row = {
        "challenge": name,
        "version": challenge.version,
        "sha256": challenge.sha256,
        "entry": entry,
        "seed": challenge.base.seed,
        "seeds": challenge.base.seeds,
        "rounds": challenge.base.rounds,
        "seconds": round(sum(t["processor_seconds"] for t in timings), 2),
        "environment": _environment(),
        "cells": [_cell(record) for record in found],
    }
    records.write_atomically(finished, json.dumps(row, indent=2) + "\n")
    return row


def _cell(record):
    """What a row keeps of the record of a cell."""
    told = {name: record["config"][name] for name in _TOLD}
    found = {name: record.get(name) for name in _MEASURED}
    if not measured(found[SUCCESS] or []):  # such as without a backdoor
        del found[SUCCESS]
    return told | found


def _environment():
    """What the last bits of a result may depend on, beside the code."""
    own = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 0))
    found = records.environment() | {"processor": processor(), "cores": len(own(0))}
    return {name: value for name, value in found.items() if name != "commit"}


def enter(folder: str | Path, challenge: Challenge, row: Mapping[str, Any]) -> Path:
    """Write a row into the leaderboard's folder.

    Args:
        folder: the leaderboard's folder.
        challenge: the challenge.
        row: what `regenerate` gave.

    Returns:
        The file.

    Raises:
        ValueError: the row is of another challenge.

    Examples:
        >>> from signfd_jax.experiments import Experiment
        >>> challenge = Challenge("Inversion.", Experiment(), ("sign_inversion",), (7,))
        >>> row = dict.fromkeys(["entry", "rounds", "seconds", "environment"], "krum")
        >>> row |= {"sha256": challenge.sha256, "cells": []}
        >>> enter(getfixture("tmp_path"), challenge, row).name
        'krum.json'
    """
    check_challenge(challenge)
    _check_row("row", row)
    if row["sha256"] != challenge.sha256:
        raise ValueError(f"the row is not of {challenge.base.name}: regenerate it")
    path = _row_path(folder, challenge.base.name, row["entry"])
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write_atomically(path, json.dumps(row, indent=2) + "\n")
    return path


def compare(then: Mapping[str, Any], now: Mapping[str, Any]) -> Comparison:
    """Compare a row with one that was regenerated, bit for bit.

    Args:
        then: the row as it was entered.
        now: the row as `regenerate` gives it.

    Returns:
        A `Comparison`. Seconds are not compared.

    Examples:
        >>> cell = {"attack": "none", "num_byzantine": 0, "split": "iid"}
        >>> cell |= {"test_loss": [2.0], "bits_up": 8, "bits_down": 8}
        >>> row = dict.fromkeys(["entry", "sha256", "rounds", "seconds"])
        >>> row |= {"environment": {}, "cells": [cell | {"test_accuracy": [0.5]}]}
        >>> compare(row, row).report
        'equal bit for bit, on the same platform'
        >>> print(
        ...     compare(row, row | {"cells": [cell | {"test_accuracy": [0.7]}]}).report
        ... )
        1 of 1 cells differ, accuracies by at most 0.2000, on the same platform
        0 none, iid: test_accuracy was [0.5], is [0.7]
    """
    for name, row in (("then", then), ("now", now)):
        _check_row(name, row)
    changed = records.changes(then["environment"], now["environment"])
    elsewhere = f"on another platform (that one had {changed})"
    where = elsewhere if changed else "on the same platform"
    before, after = ({_label(cell): cell for cell in r["cells"]} for r in (then, now))
    lines, most = [], 0.0
    for label in {**before, **after}:
        was, found = before.get(label, {}), after.get(label, {})
        differ = [name for name in _MEASURED if was.get(name) != found.get(name)]
        if differ:
            n = differ[0]
            lines.append(f"{label}: {n} was {was.get(n)}, is {found.get(n)}")
        accuracies = (cell.get("test_accuracy", []) for cell in (was, found))
        most = max([most, *(abs(a - b) for a, b in zip(*accuracies, strict=False))])
    if not lines:
        return Comparison(True, f"equal bit for bit, {where}")
    by = f"cells differ, accuracies by at most {most:.4f}"
    head = f"{len(lines)} of {len(after)} {by}, {where}"
    return Comparison(False, "\n".join([head, *lines]))


def _label(cell):
    return f"{cell['num_byzantine']} {cell['attack']}, {cell['split']}"

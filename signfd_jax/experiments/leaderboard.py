"""The leaderboard: frozen challenges, the rows that were entered, whether they hold.

A `Challenge` is a file `NAME.json` of the leaderboard's folder. A row says what a
decoder or a rule reached in it: a file of `results/NAME/`, written by `enter`.
"""

import dataclasses
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
from signfd_jax.experiments._processes import console
from signfd_jax.experiments._storage import files
from signfd_jax.experiments._storage import run_folder as records
from signfd_jax.experiments.config import Experiment, from_json, to_json
from signfd_jax.experiments.grid import Grid, cells, run_grid
from signfd_jax.experiments.registry import SERVERS
from signfd_jax.experiments.report._tables import measured

__all__ = [
    "Challenge",
    "Comparison",
    "compare",
    "enter",
    "freeze",
    "names",
    "read_challenge",
    "read_rows",
    "regenerate",
]


@dataclasses.dataclass(frozen=True)
class Challenge:
    """What every entry of one table is trained with and attacked by.

    Attributes:
        about: what it is, in one line for readers.
        base: what its cells have in common; its `name` is the challenge's, and an entry
            takes the place of its `decoder`.
        attacks: attacks, as `Grid` has them; none is the unattacked cell.
        num_byzantine: numbers of Byzantine workers.
        splits: splits of the data.
        version: its version; a challenge that is changed gets the next one.
        sha256: hash of all the other fields as they stand in the file; "" before it is
            frozen.
    """

    about: str
    base: Experiment
    attacks: tuple[str, ...]
    num_byzantine: tuple[int, ...]
    splits: tuple[str, ...] = ("iid",)
    version: int = 1
    sha256: str = ""

    def cells(self, entry: str) -> list[Experiment]:
        """The experiments of an entry, each once."""
        grid = Grid(
            base=self.base,
            decoders=(entry,),
            attacks=self.attacks,
            num_byzantine=self.num_byzantine,
            splits=self.splits,
            batch_sizes=(self.base.batch_size,),
        )
        return cells(grid)


class Comparison(NamedTuple):
    """Whether a row came out again.

    Attributes:
        equal: all accuracies, losses and bits are equal, bit for bit.
        report: the same in a line, which says whether libraries, settings of JAX and
            processor are the same; and a line of each cell that differs.
    """

    equal: bool
    report: str


def freeze(challenge: Challenge) -> str:
    """Write a challenge with its hash, as its file must have it.

    Args:
        challenge: the challenge; a hash that it has is not looked at.

    Returns:
        Indented JSON. The hash is the SHA-256 of the other fields, written as JSON with
        sorted keys and without spaces.

    Raises:
        ValueError: it is no challenge.

    Examples:
        >>> challenge = Challenge("Inversion.", Experiment(), ("sign_inversion",), (7,))
        >>> len(json.loads(freeze(challenge))["sha256"])
        64
    """
    if not isinstance(challenge, Challenge):
        raise ValueError(f"challenge must be a Challenge(), but is {challenge!r}")
    challenge.cells(challenge.base.decoder)
    fields = json.loads(to_json(challenge))
    fields["sha256"] = _hash(fields)
    return json.dumps(fields, indent=2) + "\n"


def _hash(fields):
    """The hash of all fields but the hash."""
    fields = {name: value for name, value in fields.items() if name != "sha256"}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def names(folder: str | Path) -> list[str]:
    """The challenges of a leaderboard's folder.

    Args:
        folder: the folder.

    Returns:
        Their names, sorted; where there are none, it raises a `ValueError`.

    Examples:
        >>> folder = getfixture("tmp_path")
        >>> _ = (folder / "tiny.json").write_text("{}")
        >>> names(folder)
        ['tiny']
    """
    folder = files.expanded(folder)
    if found := sorted(path.stem for path in folder.glob("*.json")):
        return found
    raise ValueError(
        f"there is no leaderboard in {folder}: call signfd in a checkout of "
        "signfd_jax, or give its folder benchmarks/leaderboard as --folder"
    )


def read_challenge(folder: str | Path, name: str) -> Challenge:
    """Read a challenge, and see that it is as it was frozen.

    Args:
        folder: the leaderboard's folder.
        name: the challenge's name.

    Returns:
        The `Challenge`.

    Raises:
        ValueError: there is none of that name, it is damaged, or its hash is not that
            of its fields.

    Examples:
        >>> challenge = Challenge("Inversion.", Experiment(), ("sign_inversion",), (7,))
        >>> folder = getfixture("tmp_path")
        >>> _ = (folder / "digits.json").write_text(freeze(challenge))
        >>> read_challenge(folder, "digits").num_byzantine
        (7,)
    """
    known = names(folder)
    if name not in known:
        raise ValueError(console.unknown("challenge", name, known))
    path = files.expanded(folder) / f"{name}.json"
    fields = files.read_json(path)
    if (found := _hash(fields)) != fields.get("sha256"):
        raise ValueError(
            f"{path} is not the challenge that was frozen: its fields have the hash "
            f"{found[:12]}, but sha256 is {str(fields.get('sha256'))[:12]}; a changed "
            "challenge is a new file with a new name or version"
        )
    try:
        base = from_json(Experiment, json.dumps(fields.pop("base", None)))
        read = from_json(Challenge, json.dumps(fields | {"base": None}))
        challenge = dataclasses.replace(read, base=base)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no challenge: {error}") from None
    if base.name != name:
        raise ValueError(f"{path} holds the challenge {base.name}: rename the file")
    return challenge


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
        >>> challenge = Challenge("Inversion.", Experiment(), ("sign_inversion",), (7,))
        >>> read_rows(getfixture("tmp_path"), challenge)
        {}
    """
    rows, name = {}, challenge.base.name
    for path in sorted(_row_path(folder, name, "any").parent.glob("*.json")):
        row = files.read_json(path)
        if lacking := {"entry", "sha256", "cells", "environment"} - set(row):
            raise ValueError(f"{path} is no row: it lacks {', '.join(sorted(lacking))}")
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
        `attack_success` (each a number a seed), `bits_up` and `bits_down` of a worker
        in all rounds.

    Raises:
        ValueError: there is no such decoder, or it cannot be run in the challenge.

    Examples:
        >>> base = Experiment(model="softmax_regression", rounds=2, seeds=2)
        >>> challenge = Challenge("Two rounds.", base, ("none",), (0,))
        >>> folder = getfixture("tmp_path")
        >>> row = regenerate(challenge, "majority_vote", folder, progress=False)
        >>> [cell["attack"] for cell in row["cells"]], len(row["cells"][0]["test_loss"])
        (['none'], 2)
    """
    check_flag("force", force)
    if not isinstance(challenge, Challenge) or not isinstance(entry, str):
        raise ValueError(
            "regenerate takes a Challenge and the name of a decoder, but has "
            f"{challenge!r:.60} and {entry!r:.60}"
        )
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


_MEASURED = ("test_accuracy", "test_loss", "attack_success", "bits_up", "bits_down")


def _cell(record):
    """What a row keeps of the record of a cell."""
    told = {n: record["config"][n] for n in ("attack", "num_byzantine", "split")}
    found = {name: record.get(name) for name in _MEASURED}
    if not measured(found["attack_success"] or []):  # such as without a backdoor
        del found["attack_success"]
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
        >>> challenge = Challenge("Inversion.", Experiment(), ("sign_inversion",), (7,))
        >>> row = {"entry": "krum", "sha256": "", "cells": [], "environment": {}}
        >>> enter(getfixture("tmp_path"), challenge, row).name
        'krum.json'
    """
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
        >>> then = {"cells": [cell | {"test_accuracy": [0.5]}], "environment": {}}
        >>> compare(then, then).report
        'equal bit for bit, on the same platform'
        >>> now = {"cells": [cell | {"test_accuracy": [0.75]}], "environment": {}}
        >>> print(compare(then, now).report)
        1 of 1 cells differ, accuracies by at most 0.2500, on the same platform
        0 none, iid: test_accuracy was [0.5], is [0.75]
    """
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

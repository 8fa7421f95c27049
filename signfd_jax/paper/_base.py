"""What a finding is, and what comes out of it.

Shapes: `S` seeds. A `Lab` runs what a finding asks for, once, and keeps it. Accuracies
that differ by no more than `CLOSE` count as equal.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from signfd_jax.experiments import Experiment, fingerprint
from signfd_jax.experiments._storage import run_folder as records
from signfd_jax.experiments.grid import run_grid
from signfd_jax.experiments.report._tables import mean_and_error
from signfd_jax.paper.scales import Scale

CLOSE = 0.01


class Claim(NamedTuple):
    """One sentence that the numbers bear out or not.

    Attributes:
        text: the sentence, with the numbers.
        holds: whether they bear it out.
    """

    text: str
    holds: bool


class Outcome(NamedTuple):
    """What came out of a finding.

    Attributes:
        claims: what the paper says, each held against the numbers.
        rows: a table, its first row the head.
        panels: curves, as `plots.panels_figure` takes them.
        xlabel: what the curves' x axis is.
        ylabel: what their y axis is.
        log_x: whether x is logarithmic.
        remarks: where the outcome differs from the paper, and why.
    """

    claims: tuple[Claim, ...]
    rows: Sequence[Sequence[str]]
    panels: Mapping[str, Mapping[str, tuple[Sequence[int | float], Sequence[Any]]]]
    xlabel: str = "round"
    ylabel: str = "test accuracy"
    log_x: bool = False
    remarks: str = ""


class Finding(NamedTuple):
    """A claim of the paper that can be run.

    Attributes:
        title: what it is about.
        reported: what the paper reports.
        run: `(scale, lab) -> Outcome`.
    """

    title: str
    reported: str
    run: Callable[..., Outcome]


def verdict(outcome: Outcome) -> str:
    """Sum up the claims of an outcome.

    Args:
        outcome: what came out.

    Returns:
        `reproduced`, `reproduced in part` or `not reproduced`.

    Examples:
        >>> claims = (Claim("one", True), Claim("two", False))
        >>> verdict(Outcome(claims, [], {}))
        'reproduced in part'
    """
    held = [claim.holds for claim in outcome.claims]
    if all(held):
        return "reproduced"
    return "reproduced in part" if any(held) else "not reproduced"


@dataclasses.dataclass(frozen=True)
class Lab:
    """Runs experiments and measurements, each once, into one folder.

    Attributes:
        folder: where `cells.jsonl` and `measurements.jsonl` lie or will lie.
        data_dir: folder of the data sets, or None.
        progress: show progress bars.
    """

    folder: Path
    data_dir: Path | None = None
    progress: bool = True

    def train(
        self, experiments: Iterable[Experiment]
    ) -> dict[Experiment, dict[str, Any]]:
        """The records of `compare.run_grid`, by experiment."""
        wanted = list(dict.fromkeys(experiments))
        found = run_grid(
            wanted, self.folder, data_dir=self.data_dir, progress=self.progress
        )
        return dict(zip(wanted, found, strict=True))

    def measure(
        self, function: Callable[..., dict[str, Any]], base: Experiment, *arguments
    ) -> dict[str, Any]:
        """What a measurement gives, `(base, *arguments) -> plain values`, kept."""
        path = records.make_folder(self.folder) / "measurements.jsonl"
        given = [function.__name__, fingerprint(base), *arguments]
        key = json.loads(json.dumps(given))
        records.drop_cut_line(path)
        for line in records.read_lines(path):
            if line["key"] == key:
                return line["found"]
        begun = path.exists() or (self.folder / "cells.jsonl").exists()
        records.keep_environment(self.folder, begun=begun)
        found = function(base, *arguments, data_dir=self.data_dir)
        found = records.plain(found)  # as it will be read the next time
        records.append_lines(path, [{"key": key, "found": found}])
        return found

    def vary(self, scale: Scale, **changes) -> Experiment:
        """The scale's experiment with other fields; no liars: no attack."""
        if "num_byzantine" in changes and not changes["num_byzantine"]:
            changes.pop("attack", None)
        return dataclasses.replace(scale.base, **changes)


def final(record: Mapping[str, Any], tests: int = 1) -> float:
    """Test accuracy at the end of training."""
    return statistics.fmean(
        statistics.fmean(accuracies[-tests:]) for accuracies in record["accuracies"]
    )


def format_mean(values: Sequence[float | None]) -> str:
    """Write a mean over seeds with its standard error."""
    mean, error = mean_and_error(values)
    text = f"{mean:.3f}" if math.isnan(error) else f"{mean:.3f} ± {error:.3f}"
    return text.replace("0.", ".")


def curve(record):
    """Accuracies of a record against the round."""
    return record["rounds"], list(map(list, zip(*record["accuracies"], strict=True)))

"""Every decoder against every attack, on i.i.d. and on very unlike data.

MNIST, MLP 784-128-10, 15 workers, learning rate 1e-3, 300 rounds, 3 seeds. Runs that
are compared share their keys, so differences are paired: "worse by more than x" means
that the mean paired difference is below -x less two standard errors.

    python -m benchmarks.robustness --folder runs/robustness
    python -m benchmarks.robustness --folder runs/one-bit --wire one_bit \
        --settings iid/64 iid/4 --decoders correlation_defense majority_vote \
        --beside runs/robustness

Each decoder has its own folder of cells, so several processes can share the work
(`--decoders`), and a grid that was stopped goes on. `--report` runs nothing: it writes
the table of what is there (`--json`, `--figure`). Two errors of three seeds are passed
by chance once in eleven times, so a cell that is near is run with more, and judged by
them: `--seeds 12 --folder FOLDER`, then `--more FOLDER` in the report.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tyro

from signfd_jax.experiments._processes import console
from signfd_jax.experiments._storage import run_folder as records
from signfd_jax.experiments.config import Experiment, fingerprint
from signfd_jax.experiments.grid import run_grid
from signfd_jax.experiments.report import plots
from signfd_jax.experiments.report._tables import mean

DEFAULT = "correlation_defense"
BASELINE = "majority_vote"
DECODERS = (DEFAULT, BASELINE, "federated_defense")
SETTINGS = ("iid/64", "iid/4", "dirichlet:1.0/64", "dirichlet:0.3/64", "one_class/64")

# Every attack of the catalogue by its name in the registry; a membership that is not
# fixed stands behind an @ and is met with sign inversion. The adaptive one searches
# against the decoder that the server runs.
ATTACKS = (
    "sign_inversion",
    "stochastic_sign_flip",
    "gaussian",
    "label_flip",
    "alie",
    "sign_alie:0.5",
    "ipm",
    "min_max",
    "min_sum",
    "mimic",
    "fang",
    "majority_opposition",
    "random_collusion",
    "swing",
    "budgeted_swing:0.3",
    "sleeper",
    "on_off",
    "warm_up_capture",
    "coordinate_specialist",
    "near_duplicate_collusion",
    "weight_aware",
    "adaptive",
    "sign_inversion@drawn_each_round",
    "sign_inversion@rotating",
    "sign_inversion@leaving",
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run, and what to write."""

    folder: Path = Path("runs/robustness")
    """Where the cells lie."""
    decoders: tuple[str, ...] = DECODERS
    """Decoders to run, in this order."""
    settings: tuple[str, ...] = SETTINGS
    """Splits with batch sizes."""
    attacks: tuple[str, ...] = ATTACKS
    """Attacks to run."""
    num_byzantine: tuple[int, ...] = (6, 7)
    """Numbers of attackers, of 15 workers; none is always run."""
    wire: str = "ternary"
    """ternary, or one_bit."""
    beside: Path | None = None
    """Folder of the same cells with ternary votes: which lose more than .01 to them?"""
    seeds: int = 3
    """Paired training seeds."""
    more: Path | None = None
    """Folder of some of the same cells with `more_seeds`, by which those are judged."""
    more_seeds: int = 12
    """Paired training seeds of the cells in `more`."""
    data_dir: Path | None = None
    """Folder of the data sets; default: the variable SIGNFD_DATA."""
    report: bool = False
    """Run nothing; report on the cells that are there."""
    json: Path | None = None
    """Write the table here."""
    figure: Path | None = None
    """Draw the heat map here."""


def cell(options: Options, decoder: str, setting: str, attack: str, num: int):
    """The experiment of one cell.

    Args:
        options: what is run.
        decoder: its name.
        setting: `split/batch size`.
        attack: `attack` or `attack@membership`.
        num: number of Byzantine workers.

    Returns:
        An `Experiment`.
    """
    split, _, batch_size = setting.rpartition("/")
    attack, _, membership = attack.partition("@")
    attack = f"adaptive:{decoder}" if attack == "adaptive" else attack
    return Experiment(
        name="robustness",
        dataset="mnist",
        model="mlp:hidden=128",
        split=split,
        decoder=decoder,
        attack=attack if num else "none",
        membership=(membership or "fixed") if num else "fixed",
        num_byzantine=num,
        wire=options.wire,
        batch_size=int(batch_size),
        learning_rate=1e-3,
        rounds=300,
        eval_every=300,
        seeds=options.seeds,
    )


def grid(options: Options) -> dict[tuple[str, str, str, int], Experiment]:
    """All cells by (setting, decoder, attack, number of attackers)."""
    found = {}
    for setting in options.settings:
        for decoder in options.decoders:
            found[setting, decoder, "none", 0] = cell(
                options, decoder, setting, "none", 0
            )
            for attack in options.attacks:
                for num in options.num_byzantine:
                    found[setting, decoder, attack, num] = cell(
                        options, decoder, setting, attack, num
                    )
    return found


def paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Mean paired difference and its standard error.

    Args:
        ours: an accuracy of each seed.
        theirs: the same seeds' other accuracy.

    Returns:
        Mean of `ours - theirs`, and its standard error (0 for one seed).
    """
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    spread = statistics.stdev(differences) if len(differences) > 1 else 0.0
    return statistics.fmean(differences), spread / math.sqrt(len(differences))


def worse(ours: Sequence[float], theirs: Sequence[float], by: float) -> bool:
    """Whether ours is worse by more than `by`, two standard errors allowed for."""
    mean, error = paired(ours, theirs)
    return mean < -by - 2 * error


def judge(
    table: Mapping[tuple[str, str, str, int], Sequence[float]],
    more: Mapping[tuple[str, str, str, int], Sequence[float]] = MappingProxyType({}),
) -> dict[str, Any]:
    """Hold the default against the two promises, cell by cell.

    Args:
        table: accuracies of the seeds by (setting, decoder, attack, attackers).
        more: of some cells, of more seeds; they decide where both decoders have them.

    Returns:
        The cells in which the default is worse than majority vote by more than .01
        (or, unattacked, than the attack-free accuracy), those in which it is that far
        below only if two errors are not allowed for, and the i.i.d. cells in which it
        is not within .02 (fewer than 7 attackers) or .04 (7) of the attack-free.
    """
    below_vote, within_errors, off_target, judged, decided = [], [], [], 0, 0
    for (setting, decoder, attack, num), ours in table.items():
        if decoder != DEFAULT:
            continue
        free = table.get((setting, BASELINE, "none", 0))
        entry = {"setting": setting, "attack": attack, "num_byzantine": num}
        target = 0.02 if num < 7 else 0.04
        if free is not None and setting.startswith("iid") and worse(ours, free, target):
            off_target.append(entry | _difference(ours, free))
        vote_cell = setting, BASELINE, attack, num
        vote = table.get(vote_cell)
        if vote is None:
            continue
        judged += 1
        if (setting, DEFAULT, attack, num) in more and vote_cell in more:
            ours, vote = more[setting, DEFAULT, attack, num], more[vote_cell]
            decided += 1
        if paired(ours, vote)[0] < -0.01:
            cells = below_vote if worse(ours, vote, 0.01) else within_errors
            cells.append(entry | _difference(ours, vote))
    return {
        "cells_judged": judged,
        "cells_with_more_seeds": decided,
        "worse_than_majority_vote": below_vote,
        "below_it_within_two_errors": within_errors,
        "iid_off_target": off_target,
    }


def _difference(ours, theirs):
    mean, error = paired(ours, theirs)
    return {"difference": mean, "error": error, "seeds": len(ours)}


def lost_to(
    theirs: Mapping[tuple[str, str, str, int], Sequence[float]],
    ours: Mapping[tuple[str, str, str, int], Sequence[float]],
    by: float = 0.01,
) -> dict[str, Any]:
    """Cells that are worse than the same cells of another table.

    Args:
        theirs: accuracies of the seeds by (setting, decoder, attack, attackers).
        ours: the same, on another wire.
        by: how much may be lost; two standard errors are allowed for.

    Returns:
        How many cells both have, and those that lose more, the largest loss first.
    """
    both = [cell for cell in ours if cell in theirs]
    losses = []
    for cell in both:
        if worse(ours[cell], theirs[cell], by):
            names = ("setting", "decoder", "attack", "num_byzantine")
            losses.append(
                dict(zip(names, cell, strict=True))
                | _difference(ours[cell], theirs[cell])
            )
    losses.sort(key=lambda entry: entry["difference"])
    return {"cells_compared": len(both), "lost_to_ternary_votes": losses}


def summary(table: Mapping[tuple[str, str, str, int], Sequence[float]]) -> str:
    """The worst attack of each decoder, as a Markdown table with a row a setting.

    Args:
        table: accuracies of the seeds by (setting, decoder, attack, attackers).

    Returns:
        The table; cells that have not been run are not in it.
    """
    decoders = list(dict.fromkeys(decoder for _, decoder, _, _ in table))
    lines = [
        "| data / batch | attack-free | " + " | ".join(decoders) + " |",
        "|---" * (2 + len(decoders)) + "|",
    ]
    for setting in dict.fromkeys(setting for setting, *_ in table):
        free = table.get((setting, BASELINE, "none", 0))
        row = [setting, f"{statistics.fmean(free):.3f}" if free else ""]
        for decoder in decoders:
            cells = [
                (statistics.fmean(accuracies), f"{attack}, L = {num}")
                for (s, d, attack, num), accuracies in table.items()
                if (s, d) == (setting, decoder) and num
            ]
            low, attack = min(cells, default=(math.nan, "not run"))
            row.append(f"{low:.3f} ({attack}; {len(cells)} cells)")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def collect(options: Options) -> list[dict[str, Any]]:
    """Read the cells that are there, one record each."""
    found = []
    for (setting, decoder, attack, num), experiment in grid(options).items():
        lines = _lines(options.folder / decoder.partition(":")[0] / "cells.jsonl")
        if (record := lines.get(fingerprint(experiment))) is None:
            continue
        found.append(
            {
                "setting": setting,
                "decoder": decoder,
                "attack": attack,
                "num_byzantine": num,
                "accuracy": statistics.fmean(record["test_accuracy"]),
                "accuracies": record["test_accuracy"],
                "sign_error": mean(record["sign_error"]),
                "record": record,
            }
        )
    return found


_cache: dict[Path, dict[str, Any]] = {}


def _lines(path):
    if path not in _cache:
        lines = records.read_lines(path) if path.exists() else []
        _cache[path] = {line["cell"]: line for line in lines}
    return _cache[path]


def report(options: Options) -> dict[str, Any]:
    """Print the table and write what was asked for."""
    found = collect(options)
    table = _table(found)
    for setting in options.settings:
        print(f"\n{setting}")
        print(f"  {'attack':34s}L  " + "  ".join(f"{d:>19s}" for d in options.decoders))
        for attack in ("none", *options.attacks):
            for num in (0,) if attack == "none" else options.num_byzantine:
                row = [table.get((setting, d, attack, num)) for d in options.decoders]
                if any(row):
                    cells = [_entry(values) for values in row]
                    print(f"  {attack:34s}{num}  " + "  ".join(cells))
    print(f"\nThe worst attack on each:\n\n{summary(table)}\n")
    more = {}
    if options.more is not None:
        again = dataclasses.replace(
            options, folder=options.more, seeds=options.more_seeds
        )
        more = _table(collect(again))
    verdict = judge(table, more)
    if options.beside is not None:
        ternary = dataclasses.replace(options, folder=options.beside, wire="ternary")
        verdict |= lost_to(_table(collect(ternary)), table)
    print(json.dumps(verdict, indent=1))
    result = {
        "about": (__doc__ or "").split("\n\n")[1],
        "wire": options.wire,
        "cells_expected": len(grid(options)),
        "cells": [{k: v for k, v in r.items() if k != "record"} for r in found],
        "verdict": verdict,
        "environment": records.environment(),
    }
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        records.write_atomically(options.json, json.dumps(result, indent=1) + "\n")
    if options.figure is not None:
        figure = plots.grid_figure([r["record"] for r in found])
        figure.savefig(options.figure, dpi=110)
    return result


def _table(found):
    return {
        (r["setting"], r["decoder"], r["attack"], r["num_byzantine"]): r["accuracies"]
        for r in found
    }


def _entry(values):
    if values is None:
        return f"{'':>19s}"
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    error = spread / math.sqrt(len(values))
    return f"{statistics.fmean(values):>12.3f} ±{error:.3f}"


def main() -> None:
    """Run what is missing, then report."""
    options = tyro.cli(Options, description=__doc__)
    if not options.report:
        for decoder in options.decoders:
            chosen = dataclasses.replace(options, decoders=(decoder,))
            folder = options.folder / decoder.partition(":")[0]
            run_grid(grid(chosen).values(), folder, data_dir=options.data_dir)
    report(options)


if __name__ == "__main__":
    with console.steady():  # results are kept, wherever they are printed
        main()

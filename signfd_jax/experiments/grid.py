"""A grid of experiments: decoders, attacks, attackers, splits, batch sizes, seeds.

A cell is one `Experiment`; its seeds train side by side, and its outcome is one line
of `cells.jsonl`. A grid that was stopped goes on where it stopped. Cells that differ in
nothing but inputs of a program share that program.
"""

import dataclasses
import itertools
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from signfd_jax._checks import check_flag
from signfd_jax.experiments import _plugins as plugins
from signfd_jax.experiments._aliases import ours
from signfd_jax.experiments._engine import known
from signfd_jax.experiments._engine import prepare as training
from signfd_jax.experiments._engine.program import program_key
from signfd_jax.experiments._processes import console
from signfd_jax.experiments._storage import files
from signfd_jax.experiments._storage import run_folder as records
from signfd_jax.experiments._success import SUCCESS, scores
from signfd_jax.experiments.config import Experiment, fingerprint, to_json
from signfd_jax.experiments.registry import load_dataset
from signfd_jax.experiments.report.communication import bits_per_round

__all__ = ["Grid", "cells", "run_grid"]


@dataclasses.dataclass(frozen=True)
class Grid:
    """Experiments that differ in what is compared.

    A decoder that cannot use what the base gives of `trusted`, `stakes` and `shares` is
    not told it. Its cells have the same workers, and say so in `withheld`.

    Attributes:
        base: what they have in common.
        decoders: decoders, each met by every attack; by default the default decoder,
            the paper's and a majority vote.
        attacks: attacks, each with every number of Byzantine workers above 0; none is
            one unattacked cell, whatever the numbers.
        num_byzantine: numbers of Byzantine workers; 0 is one unattacked cell.
        splits: splits of the data.
        batch_sizes: examples of each worker in each round.
    """

    base: Experiment
    decoders: tuple[str, ...] = (
        Experiment.decoder,
        "federated_defense",
        "majority_vote",
    )
    attacks: tuple[str, ...] = ("sign_inversion",)
    num_byzantine: tuple[int, ...] = (0, 3, 6, 7)
    splits: tuple[str, ...] = ("iid",)
    batch_sizes: tuple[int, ...] = (64,)

    def __post_init__(self):
        """Call everything by our name."""
        for field in ("decoder", "attack", "split"):
            names = tuple(ours(field, name) for name in getattr(self, f"{field}s"))
            object.__setattr__(self, f"{field}s", names)


def cells(grid: Grid) -> list[Experiment]:
    """The experiments of a grid.

    Args:
        grid: the grid.

    Returns:
        One experiment a cell, each once: where nobody lies, as without an attack or
        without Byzantine workers, there is one cell for each decoder, split and batch
        size.

    Raises:
        ValueError: nothing to run, or a cell that is not a valid experiment.

    Examples:
        >>> grid = Grid(Experiment(), attacks=("sign_inversion", "gaussian"))
        >>> len(cells(grid))  # 3 decoders x (1 unattacked + 2 attacks x 3 numbers)
        21
    """
    experiments = {}
    for split, batch_size, decoder, attack, num_byzantine in itertools.product(
        grid.splits, grid.batch_sizes, grid.decoders, grid.attacks, grid.num_byzantine
    ):
        lying = 0 if attack == "none" else num_byzantine
        cell = dataclasses.replace(
            grid.base,
            split=split,
            batch_size=batch_size,
            decoder=decoder,
            attack=attack if lying else "none",
            num_byzantine=lying,
            byzantine_ids=(),
        )
        cell = known.withholding(cell)
        training.check(cell)
        experiments[fingerprint(cell)] = cell
    if not experiments:
        raise ValueError(
            "the grid is empty: give at least one decoder, attack, number of "
            "Byzantine workers, split and batch size"
        )
    return list(experiments.values())


@jax.transfer_guard("allow")  # What a run moves to the device, it means to.
def run_grid(
    experiments: Iterable[Experiment],
    folder: str | Path,
    *,
    data_dir: str | Path | None = None,
    force: bool = False,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Run the cells that have no line in `cells.jsonl` yet.

    Args:
        experiments: the cells, in any order; one that occurs twice is run once.
        folder: where `cells.jsonl` lies or will lie.
        data_dir: the folder of the data sets; None: see `data.load`.
        force: run every cell again.
        progress: show a progress bar on stderr.

    Returns:
        One record for each cell, in the order given: `cell` (the experiment's
        `fingerprint`), `config` (its fields), `rounds` of the tests, and of each seed
        `test_accuracy` (the last), `test_loss`, `sign_error` and `margin` (the means
        over all rounds in which they were measured; None where there is none, as
        where the server decodes no signs), and `accuracies` (a row of tests), and
        `bits_up` and `bits_down`, what a worker sent and received in all rounds. Where
        the attack has a target, also `attack_success_rate` (the last) and
        `attack_success_rates` (a row of tests).
        What differs from call to call is in `timings.jsonl` beside it: of each cell
        the `compile_seconds`, and the `processor_seconds` of its training.

    Raises:
        ValueError: a cell is not a valid experiment, `cells.jsonl` is damaged, or its
            cells were run under other settings of JAX.
        OSError: the folder cannot be written.

    Examples:
        >>> config = Experiment(rounds=2, eval_every=2, batch_size=4, seeds=2)
        >>> folder = getfixture("tmp_path")
        >>> [record] = run_grid([config], folder, progress=False)
        >>> len(record["test_accuracy"]), record["rounds"]
        (2, [2])
        >>> run_grid([config], folder, progress=False) == [record]  # nothing to do
        True
    """
    if not isinstance(experiments, Iterable):
        raise ValueError(f"experiments must be many of them, but is {experiments!r}")
    check_flag("force", force)
    in_order = list(experiments)
    for cell in in_order:
        training.check(cell)
    keys = [fingerprint(cell) for cell in in_order]
    cells = dict(zip(keys, in_order, strict=True))
    plugins.warn_of_broken()
    path = records.make_folder(files.expanded(folder)) / "cells.jsonl"
    timings = path.with_name("timings.jsonl")
    for file in (path, timings):
        if force:
            file.unlink(missing_ok=True)
        records.drop_cut_line(file)
    done = {record["cell"]: record for record in records.read_lines(path)}
    missing = {key: cell for key, cell in cells.items() if key not in done}
    if missing:
        begun = bool(done) or (path.parent / "measurements.jsonl").exists()
        records.keep_environment(path.parent, begun=begun and not force)
    names = {cell.dataset for cell in missing.values()}
    datasets = {
        name: jax.tree.map(jnp.asarray, load_dataset(name, data_dir))
        for name in sorted(names)
    }
    for cell in missing.values():  # before any is trained
        training.check(cell, datasets[cell.dataset])
    splits = _splits(missing.values(), datasets)
    finished = len(cells) - len(missing)
    with console.bar(len(cells), initial=finished, shown=progress) as bar:
        # Neighbours share their program, which is compiled once.
        for key in sorted(missing, key=lambda k: to_json(program_key(missing[k]))):
            cell = missing[key]
            split = splits[_split_key(cell)]
            done[key], timing = _run_cell(key, cell, datasets[cell.dataset], split, bar)
            records.append_lines(timings, [timing])
            records.append_lines(path, [done[key]])
            bar.update()
    return [done[key] for key in keys]


def _run_cell(key, cell, dataset, split, bar):
    """The record of one cell, and how long it took."""
    title = f"{cell.decoder}, {cell.num_byzantine} {cell.attack}"
    console.show(bar, title, "compiling ...")
    prepared = training.prepare(cell, dataset, split)
    bits = bits_per_round(cell, prepared.num_coordinates, prepared.shapes)
    begun = time.process_time()
    record = _record(key, cell, _told(prepared.tests, bar, title), bits)
    timing = {
        "cell": key,
        "compile_seconds": prepared.compile_seconds,
        "processor_seconds": time.process_time() - begun,
    }
    return record, timing


def _told(tests, bar, title):
    """The tests of a cell, each shown on the bar as it comes."""
    for test in tests:
        _, metrics, _ = test
        console.show(bar, title, scores(metrics))
        yield test


def _split_key(cell):
    roots = cell.trusted if cell.root_examples else 0, cell.root_examples
    return cell.dataset, cell.split, cell.num_workers, cell.partition_seed, *roots


def _splits(cells, datasets):
    """All splits of the cells, padded to one width, so that they share programs."""
    splits = {
        _split_key(cell): training.split_examples(cell, datasets[cell.dataset])
        for cell in cells
    }
    width = max((split.indices.shape[1] for split in splits.values()), default=0)
    return {
        key: split._replace(
            indices=np.pad(split.indices, ((0, 0), (0, width - split.indices.shape[1])))
        )
        for key, split in splits.items()
    }


def _record(key, cell, tests, bits):
    """The line of one cell, without timings."""
    rounds, metrics, _ = zip(*tests, strict=True)

    def mean(field):
        by_test = np.stack([getattr(m, field) for m in metrics])
        weights = np.stack([getattr(m, f"{field}_rounds") for m in metrics])
        there = weights.sum(0) > 0
        total = np.where(weights > 0, by_test * weights, 0.0).sum(0)
        return np.where(there, total / np.maximum(weights.sum(0), 1), np.nan).tolist()

    def by_seed(field):
        return np.stack([getattr(m, field) for m in metrics]).T.tolist()

    success = {}
    if metrics[-1].attack_success_rate is not None:
        rates = by_seed("attack_success_rate")
        success = {SUCCESS: [row[-1] for row in rates], f"{SUCCESS}s": rates}
    record = {
        "cell": key,
        "config": json.loads(to_json(cell)),
        "test_accuracy": metrics[-1].test_accuracy.tolist(),
        "test_loss": metrics[-1].test_loss.tolist(),
        "sign_error": mean("sign_error"),
        "margin": mean("margin"),
        "rounds": list(rounds),
        "accuracies": by_seed("test_accuracy"),
        "bits_up": bits[0] * rounds[-1],
        "bits_down": bits[1] * rounds[-1],
        **success,
    }
    return records.plain(record)

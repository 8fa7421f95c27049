"""What the commands do: each takes its arguments and returns the exit code.

`COMMANDS` maps a command's name to its function.
"""

import dataclasses
import functools
import inspect
import itertools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from signfd_jax.cli._compiled import keep_compiled
from signfd_jax.cli._completion import completion
from signfd_jax.cli._leaderboard import leaderboard
from signfd_jax.cli._list import list_names
from signfd_jax.cli._options import (
    Compare,
    Paper,
    Plot,
    Run,
    fitting,
    local_steps_of,
    read_flags,
    read_run_flags,
    take_preset,
)
from signfd_jax.cli._printing import Table, print_tables
from signfd_jax.cli._show import show
from signfd_jax.experiments import PRESETS, fingerprint, to_json
from signfd_jax.experiments._processes import console
from signfd_jax.experiments._storage import files


def _run(arguments) -> int:
    earlier, given = None, arguments
    if arguments and arguments[0] == "--from":
        from signfd_jax.experiments._storage import run_folder as records

        if len(arguments) < 2:
            raise ValueError("give the folder of the run: signfd run --from RUN ...")
        earlier = files.expanded(arguments[1])
        records.read_run(earlier)  # or it says that there is none
        arguments = [str(earlier / "config.json"), *arguments[2:]]
    experiment, rest = take_preset(arguments)
    default = Run(experiment)
    if earlier is not None:
        default = dataclasses.replace(default, output_dir=earlier.parent / "repeats")
    options, fitted = read_run_flags(default, rest)
    preset = PRESETS.get(experiment.name)
    experiment = options.experiment
    if preset and preset.fallback and experiment.dataset == preset.experiment.dataset:
        experiment = _with_data(experiment, preset.fallback, options.data_dir)
    if options.redraw_byzantine:
        experiment = dataclasses.replace(experiment, membership="drawn_each_round")
    experiment = _called_as_its_data(experiment)
    from signfd_jax.experiments._processes import launch

    if options.processes != 1 and not options.distributed:
        return launch.launch(given, options.processes)
    for line in fitted:
        console.warn(line)
    if options.distributed:
        launch.join(
            options.coordinator,
            options.num_processes,
            options.process_id,
            heartbeat=options.heartbeat,
        )
        return launch.guarded(lambda: _run_here(options, experiment, earlier))
    return _run_here(options, experiment, earlier)


def _called_as_its_data(experiment):
    """A preset on a data set of the user's own is called as the data are."""
    if experiment.name not in PRESETS or not re.search(r"[./\\]", experiment.dataset):
        return experiment
    name = re.sub(r"[^\w.-]", "-", Path(experiment.dataset).stem) or experiment.name
    return dataclasses.replace(experiment, name=name)


def _run_here(options, experiment, earlier) -> int:
    import jax

    from signfd_jax.experiments._engine import prepare as training
    from signfd_jax.experiments._engine.settings import changed_settings
    from signfd_jax.experiments._processes import launch
    from signfd_jax.experiments._sinks import named
    from signfd_jax.experiments._storage import repeats
    from signfd_jax.experiments._success import said
    from signfd_jax.experiments.run import Halted, run_experiment

    keep_compiled()
    sinks = named(options.log)
    training.check(experiment)
    if jax.process_index() == 0:
        _warn_of_byzantine_majority([experiment])
        _warn_of_momentum(experiment)
    try:
        folder, summary = run_experiment(
            experiment,
            options.output_dir,
            data_dir=options.data_dir,
            force=options.force,
            progress=not options.quiet,
            checkpoint_every=options.checkpoint_every,
            keep_checkpoints=options.keep_checkpoints,
            distributed=options.distributed,
            sinks=sinks,
        )
    except Halted as halted:
        if jax.process_index() == 0:
            console.warn(halted)
        return launch.HALTED
    if jax.process_index() > 0:
        return 0
    if summary["finished_before"]:
        changed = changed_settings(summary)
        elsewhere = f" under other settings of JAX ({changed})" if changed else ""
        print(f"finished before{elsewhere}; --force runs it again")
    else:
        _draw(folder)
    print(f"test accuracy {summary['test_accuracy']:.4f}, {said(summary)}", end="")
    print(f"{1e3 * summary['seconds_per_round']:.1f} ms a round: {folder}")
    if earlier is not None:
        print(repeats.difference(earlier, folder))
    return 0


def _draw(folder):
    """The figures of a run or a grid; none, and one line, if they cannot be drawn."""
    with console.spared("no figures"):
        from signfd_jax.experiments.report import plots

        return plots.draw(folder)
    return []


def _with_data(experiment, fallback, data_dir):
    """The experiment, with another data set where its own cannot be had."""
    from signfd_jax import data

    try:
        data.load(experiment.dataset, data_dir=data_dir)
    except data.DataError as error:
        console.warn(f"{error}; {fallback} instead")
        return dataclasses.replace(experiment, dataset=fallback)
    return experiment


def _warn_of_byzantine_majority(experiments):
    """One line on stderr where half of the workers or more lie, and none is trusted."""
    lying = {
        f"{e.num_byzantine} of {e.num_workers}": None
        for e in experiments
        if e.attack != "none" and 2 * e.num_byzantine >= e.num_workers
    }
    told = any(e.trusted and "trusted" not in e.withheld for e in experiments)
    if lying and not told:
        console.warn(
            f"warning: {', '.join(lying)} workers are Byzantine; with half or more, "
            "no decoder can tell liars from honest workers, unless it is told of a "
            "trusted one (--trusted)"
        )


def _warn_of_momentum(experiment):
    """One line on stderr where signs that agree add up to longer steps."""
    from signfd_jax.experiments.registry import resolve

    optimizer = resolve(experiment).optimizer
    momentum = dict(optimizer.options).get("momentum")
    if optimizer.name == "sgd" and momentum is not None and 0 < momentum < 1:
        times = 1 / (1 - momentum)
        console.warn(
            f"under momentum {momentum:g} signs that agree add up to steps "
            f"{times:.3g} times as long, {times * experiment.learning_rate:.3g}; a "
            "smaller --learning-rate makes up for it"
        )


def _compare(arguments) -> int:
    experiment, rest = take_preset(arguments)
    options = read_flags(fitting(Compare(), experiment), rest, "compare")
    from signfd_jax.experiments import grid as compare
    from signfd_jax.experiments._storage import run_folder as records
    from signfd_jax.experiments.report import _tables as tables

    keep_compiled()
    worker = options.worker
    if options.local_steps is not None:
        worker = local_steps_of(options, given=worker is not None)
    given = {
        "rounds": options.rounds,
        "learning_rate": options.learning_rate,
        "worker": worker,
        "membership": "drawn_each_round" if options.redraw_byzantine else None,
        "trusted": options.trusted,
        "root_examples": options.root_examples,
        "stakes": options.stakes or None,
        "shares": options.shares or None,
    }
    if options.trusted:  # each cell has a number of its own, which may fit better
        given |= {"num_byzantine": 0, "byzantine_ids": ()}
    base = dataclasses.replace(
        experiment,
        seeds=options.seeds,
        seed=options.seed,
        wire=options.wire,
        flip_probability=options.flip_probability,
        **{field: value for field, value in given.items() if value is not None},
    )
    grid = compare.Grid(
        base=dataclasses.replace(base, eval_every=max(1, base.rounds // 10)),
        decoders=options.decoders,
        attacks=options.attacks,
        num_byzantine=options.num_byzantine,
        splits=options.splits or (base.split,),
        batch_sizes=options.batch_sizes or (base.batch_size,),
    )
    cells = compare.cells(grid)
    _warn_of_byzantine_majority(cells)
    name = f"compare-{base.name}-{fingerprint(grid)}"
    folder = records.make_folder(files.expanded(options.output_dir) / name)
    records.write_atomically(folder / "config.json", to_json(grid))
    results = compare.run_grid(
        cells,
        folder,
        data_dir=options.data_dir,
        force=options.force,
        progress=not options.quiet,
    )
    notes = [*_steps(grid.decoders), *_untold(cells)]
    table = tables.accuracy_table(results)
    text = "\n".join([table, "", *notes] if notes else [table])
    records.write_atomically(folder / "table.md", text + "\n")
    drawn = [f"and picture: {picture}" for picture in _draw(folder)]
    where = " ".join(["table", *(drawn or [f": {folder / 'table.md'}"])])
    if options.format == "table" and sys.stdout.isatty():
        head, *rows = tables.accuracy_cells(results)
        named = [name.replace("_", " ") for name in head]
        print_tables([Table("test accuracy", named, rows)])
        print(*notes, where, sep="\n")
        return 0
    if options.format in ("table", "markdown"):
        print(table, "", *notes, where, sep="\n")
        return 0
    # Nothing but the table goes to stdout, for the program that reads it.
    write = {"csv": tables.accuracy_csv, "latex": tables.accuracy_latex}
    print(write[options.format](results).rstrip("\n"))
    for line in (*notes, where):
        console.warn(line)
    return 0


def _steps(decoders):
    """A line for each decoder that does not step by signs."""
    from signfd_jax.experiments import registry
    from signfd_jax.experiments._choices import choose

    for decoder in decoders:
        choice = choose(registry.SERVERS, "decoder", decoder)
        scale = inspect.signature(choice.factory).parameters.get("scale")
        if scale is not None:
            times = dict(choice.options).get("scale", scale.default)
            yield f"{decoder}: real numbers, {times:g} times the learning rate"


def _untold(cells):
    """A line for each decoder that is not told all that is known of the workers."""
    for decoder, withheld in {cell.decoder: cell.withheld for cell in cells}.items():
        if withheld:
            yield f"{decoder}: does not use {' and '.join(f'--{n}' for n in withheld)}"


def _paper(arguments) -> int:
    figures = arguments[
        : next((i for i, a in enumerate(arguments) if a[:1] == "-"), None)
    ]
    options = read_flags(Paper(), arguments[len(figures) :], "paper")
    if not figures:
        raise ValueError("give a figure, or all: signfd paper all --scale small")
    from signfd_jax.paper import reproduce

    keep_compiled()
    report, verdicts = reproduce(
        figures,
        options.scale,
        options.output_dir,
        data_dir=options.data_dir,
        force=options.force,
        progress=not options.quiet,
    )
    for figure, verdict in verdicts.items():
        print(f"{figure:18}{verdict}")
    print(report)
    return 0


def _plot(arguments) -> int:
    given = list(itertools.takewhile(lambda text: text[:1] != "-", arguments))
    options = read_flags(Plot(), arguments[len(given) :], "plot")
    if not given:
        raise ValueError("give the folders of one or several runs: signfd plot RUN ...")
    from signfd_jax.experiments._storage.run_folder import read_run
    from signfd_jax.experiments.report import plots

    folders = [files.expanded(argument) for argument in given]
    # Two grids have no curve in common; their pictures are drawn one by one.
    runs = [folder for folder in folders if not _is_grid(folder)]
    labels = options.labels
    if labels and len(labels) != len(runs):
        raise ValueError(f"there are {len(labels)} labels, but {len(runs)} runs")
    look = {"format": options.format, "title": options.title, "size": options.size}
    for folder in folders:
        label = labels[runs.index(folder)] if labels and folder in runs else None
        for path in plots.draw(folder, label=label, **look):
            print(path)
    named = _named(dict.fromkeys(run.resolve() for run in runs))
    if len(named) > 1:
        if labels:
            named = dict(zip(labels, runs, strict=True))
        metrics = {name: read_run(folder)[1] for name, folder in named.items()}
        path = Path(os.path.commonpath([run.resolve() for run in runs]))
        path /= f"accuracies.{options.format}"
        make = functools.partial(plots.accuracy_figure, metrics)
        plots.save({path: make}, title=options.title, size=options.size)
        print(path)
    return 0


def _completion(arguments) -> int:
    if len(arguments) != 1:
        raise ValueError("give a shell: signfd completion bash, or zsh")
    print(completion(arguments[0], list(COMMANDS)), end="")
    return 0


def _is_grid(folder):
    return (Path(folder) / "cells.jsonl").exists()


def _named(folders):
    """Folders by their names, with as many parents as it takes to tell them apart."""
    folders, parts = list(folders), 1
    while len({folder.parts[-parts:] for folder in folders}) < len(folders):
        parts += 1
    return {"/".join(folder.parts[-parts:]): folder for folder in folders}


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": _run,
    "compare": _compare,
    "paper": _paper,
    "leaderboard": leaderboard,
    "plot": _plot,
    "show": show,
    "list": list_names,
    "completion": _completion,
}
"""The commands by their names."""

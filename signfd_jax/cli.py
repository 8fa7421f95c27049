"""The command `signfd`: run, compare, paper, plot, list.

Light to import: each command imports what it needs, so that the message about a missing
extra, and the help, come at once.
"""

import contextlib
import dataclasses
import importlib.util
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from signfd_jax.experiments import PRESETS, Experiment, fingerprint, from_json, to_json
from signfd_jax.experiments.interrupts import heeded_interrupts

__all__ = ["Compare", "Paper", "Run", "main"]

_EXTRA = ("flax", "matplotlib", "pooch", "sklearn", "tqdm", "tyro")

USAGE = """\
usage: signfd run [PRESET] [--field value ...]        train once, or go on
       signfd run --from RUN [--field value ...]      repeat the run of that folder
       signfd compare [PRESET] [--option value ...]   decoders x attacks x attackers
       signfd paper FIGURE [--option value ...]       the paper's findings, and a report
       signfd plot FOLDER [FOLDER ...]                draw runs and grids again
       signfd list                                    presets, and every name there is

A configuration's JSON file can stand for a PRESET. `signfd run --help`, `signfd
compare --help` and `signfd paper --help` list the options. FIGURE is one of inversion,
flip-probability, initial-phase, estimation, gaussian, batch-sizes, invariance, quirks,
or all."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Train with liars among the workers, and write a folder of records.

    A run that was stopped, by whatever, goes on when the same command is given again.
    `signfd run --from RUN` repeats the run of that folder, and compares the records.

    Attributes:
        experiment: the experiment.
        data_dir: folder of the data sets; else SIGNFD_DATA, else a download.
        output_dir: folder of all runs.
        checkpoint_every: rounds between checkpoints; none: at most every 30 seconds.
        keep_checkpoints: number of checkpoints that stay, the newest.
        processes: start so many processes on this machine, and watch them.
        distributed: join the processes that another launcher has started.
        coordinator: HOST:PORT of the first of them; none: as the launcher says.
        num_processes: how many they are; none: likewise.
        process_id: which one this is, from 0; none: likewise.
        heartbeat: seconds of silence after which a process counts as dead.
        redraw_byzantine: others lie each round; --membership drawn_each_round.
        force: run again what is finished.
        quiet: no progress bar.
    """

    experiment: Experiment
    data_dir: Path | None = None
    output_dir: Path = Path("runs")
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    processes: int = 1
    distributed: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    heartbeat: int = 30
    redraw_byzantine: bool = False
    force: bool = False
    quiet: bool = False


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare decoders under attack; a grid that was stopped goes on.

    Attributes:
        decoders: decoders, each met by every attack.
        attacks: attacks, each with every number of Byzantine workers above 0.
        num_byzantine: numbers of Byzantine workers; 0 is one unattacked cell.
        splits: splits of the data; empty: the preset's.
        batch_sizes: examples of each worker in each round; empty: the preset's.
        seeds: number of training seeds.
        seed: the first of them.
        rounds: number of rounds; none: the preset's.
        learning_rate: step along the decoded sign; none: the preset's.
        wire: ternary or one_bit.
        flip_probability: r of stochastic_sign_flip, in [0, 1].
        redraw_byzantine: others lie each round.
        data_dir: folder of the data sets; else SIGNFD_DATA, else a download.
        output_dir: folder of all runs.
        force: run again what is finished.
        quiet: no progress bar.
    """

    decoders: tuple[str, ...] = ("federated_defense", "majority_vote")
    attacks: tuple[str, ...] = ("sign_inversion",)
    num_byzantine: tuple[int, ...] = (0, 3, 6, 7)
    splits: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = ()
    seeds: int = 3
    seed: int = 0
    rounds: int | None = None
    learning_rate: float | None = None
    wire: str = "ternary"
    flip_probability: float = 0.5
    redraw_byzantine: bool = False
    data_dir: Path | None = None
    output_dir: Path = Path("runs")
    force: bool = False
    quiet: bool = False


@dataclasses.dataclass(frozen=True)
class Paper:
    """Run findings of the paper, and write a report with a verdict for each.

    Attributes:
        scale: small (digits, minutes on two CPU cores) or full (the paper's own
            setting, for a GPU).
        data_dir: folder of the data sets; else SIGNFD_DATA, else a download.
        output_dir: folder of all runs.
        force: run again what is finished.
        quiet: no progress bar.
    """

    scale: str = "small"
    data_dir: Path | None = None
    output_dir: Path = Path("runs")
    force: bool = False
    quiet: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: what follows `signfd`; None: `sys.argv`.

    Returns:
        The exit code: 0; 2 for bad input, with one line on stderr; 130 for Ctrl-C.

    Examples:
        >>> main(["compute"])
        2
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if missing := [name for name in _EXTRA if not importlib.util.find_spec(name)]:
        return _complain(
            f"{', '.join(missing)} not found; the command line needs the extra "
            "'experiments': pip install 'signfd-jax[experiments]'"
        )
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    commands = {
        "run": _run,
        "compare": _compare,
        "paper": _paper,
        "plot": _plot,
        "list": _list,
    }
    try:
        if arguments[0] not in commands:
            raise ValueError(
                f"unknown command {arguments[0]!r}; known are {', '.join(commands)}"
            )
        with heeded_interrupts():
            return commands[arguments[0]](arguments[1:])
    except (ValueError, OSError) as error:
        return _complain(error)
    except KeyboardInterrupt:
        return _complain("interrupted; the same command goes on from here", 130)


def _complain(message, code=2):
    """One line on stderr, whatever the message was."""
    print("signfd:", " ".join(str(message).split()), file=sys.stderr)
    return code


def _parse(kind, default: Any, arguments, command):
    """Read flags into a dataclass; its nested fields have flags without a prefix."""
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                kind,
                default=default,
                args=arguments,
                prog=f"signfd {command} " + ("FIGURE" if kind is Paper else "[PRESET]"),
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
    # Tyro draws a box: its first lines say what is wrong, up to a rule.
    said = [line.strip("│ ") for line in complaint.getvalue().splitlines()[1:]]
    reason = " ".join(said[: next(i for i, s in enumerate(said) if not s.strip("─╰╯"))])
    reason = reason.removeprefix("Error parsing experiment: ")
    raise ValueError(f"{reason} (signfd {command} --help lists the options)")


def _preset(arguments) -> tuple[Experiment, list[str]]:
    """Take the preset's name, or a configuration's file, off the arguments."""
    if not arguments or arguments[0].startswith("-"):
        return PRESETS["digits"].experiment, list(arguments)
    name, *rest = arguments
    if name in PRESETS:
        return PRESETS[name].experiment, rest
    if name.endswith(".json"):
        return from_json(Experiment, Path(name).read_text()), rest
    raise ValueError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}")


def _run(arguments) -> int:
    from signfd_jax.experiments import records

    earlier, given = None, arguments
    if arguments and arguments[0] == "--from":
        if len(arguments) < 2:
            raise ValueError("give the folder of the run: signfd run --from RUN ...")
        earlier = Path(arguments[1])
        records.read_run(earlier)  # or it says that there is none
        arguments = [str(earlier / "config.json"), *arguments[2:]]
    experiment, rest = _preset(arguments)
    default = Run(experiment)
    if earlier is not None:
        default = dataclasses.replace(default, output_dir=earlier.parent / "repeats")
    options = _parse(Run, default, rest, "run")
    preset = PRESETS.get(experiment.name)
    experiment = options.experiment
    if preset and preset.fallback and experiment.dataset == preset.experiment.dataset:
        experiment = _with_data(experiment, preset.fallback, options.data_dir)
    if options.redraw_byzantine:
        experiment = dataclasses.replace(experiment, membership="drawn_each_round")
    from signfd_jax.experiments import launch

    if options.processes != 1 and not options.distributed:
        return launch.launch(given, options.processes)
    if options.distributed:
        launch.join(
            options.coordinator,
            options.num_processes,
            options.process_id,
            heartbeat=options.heartbeat,
        )
        return launch.guarded(lambda: _run_here(options, experiment, earlier))
    return _run_here(options, experiment, earlier)


def _run_here(options, experiment, earlier) -> int:
    import jax

    from signfd_jax import plots
    from signfd_jax.experiments import repeats
    from signfd_jax.experiments.runs import run_experiment

    folder, summary = run_experiment(
        experiment,
        options.output_dir,
        data_dir=options.data_dir,
        force=options.force,
        progress=not options.quiet,
        checkpoint_every=options.checkpoint_every,
        keep_checkpoints=options.keep_checkpoints,
        distributed=options.distributed,
    )
    if jax.process_index() > 0:
        return 0
    if summary["finished_before"]:
        print("finished before; --force runs it again")
    else:
        plots.draw(folder)
    print(f"test accuracy {summary['test_accuracy']:.4f}, ", end="")
    print(f"{1e3 * summary['seconds_per_round']:.1f} ms a round: {folder}")
    if earlier is not None:
        print(repeats.difference(earlier, folder))
    return 0


def _with_data(experiment, fallback, data_dir):
    """The experiment, with another data set where its own cannot be had."""
    from signfd_jax import data

    try:
        data.load(experiment.dataset, data_dir=data_dir)
    except data.DataError as error:
        print(f"signfd: {error}; {fallback} instead", file=sys.stderr)
        return dataclasses.replace(experiment, dataset=fallback)
    return experiment


def _compare(arguments) -> int:
    experiment, rest = _preset(arguments)
    options = _parse(Compare, Compare(), rest, "compare")
    from signfd_jax import plots
    from signfd_jax.experiments import compare, records
    from signfd_jax.experiments.tables import accuracy_table

    given = {
        "rounds": options.rounds,
        "learning_rate": options.learning_rate,
        "membership": "drawn_each_round" if options.redraw_byzantine else None,
    }
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
    name = f"compare-{base.name}-{fingerprint(grid)}"
    folder = records.make_folder(options.output_dir / name)
    records.write_atomically(folder / "config.json", to_json(grid))
    results = compare.run_grid(
        cells,
        folder,
        data_dir=options.data_dir,
        force=options.force,
        progress=not options.quiet,
    )
    table = accuracy_table(results)
    records.write_atomically(folder / "table.md", table + "\n")
    (picture,) = plots.draw(folder)
    print(f"{table}\n\ntable and picture: {picture}")
    return 0


def _paper(arguments) -> int:
    figures = arguments[
        : next((i for i, a in enumerate(arguments) if a[:1] == "-"), None)
    ]
    options = _parse(Paper, Paper(), arguments[len(figures) :], "paper")
    if not figures:
        raise ValueError("give a figure, or all: signfd paper all --scale small")
    from signfd_jax.paper import reproduce

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
    if not arguments or any(argument.startswith("-") for argument in arguments):
        raise ValueError("give the folders of one or several runs: signfd plot RUN ...")
    from signfd_jax import plots
    from signfd_jax.experiments.records import read_run

    for folder in arguments:
        for path in plots.draw(folder):
            print(path)
    if len(arguments) > 1:
        runs = {Path(folder).name: read_run(folder)[1] for folder in arguments}
        path = Path(os.path.commonpath([os.path.abspath(a) for a in arguments]))
        plots.accuracy_figure(runs).savefig(path / "accuracies.png", dpi=120)
        print(path / "accuracies.png")
    return 0


def _list(arguments) -> int:
    if arguments:
        raise ValueError("signfd list takes no arguments")
    from signfd_jax import data
    from signfd_jax.experiments import registry

    print("presets")
    for name, preset in PRESETS.items():
        print(f"  {name:20}{preset.description}")
    kinds = {
        "datasets": data.DATASETS,
        "models": registry.MODELS,
        "splits": registry.SPLITS,
        "decoders": registry.SERVERS,
        "attacks": registry.ATTACKS,
        "memberships": registry.MEMBERSHIPS,
    }
    for kind, names in kinds.items():
        print(f"{kind}\n  {' '.join(names)}")
    return 0

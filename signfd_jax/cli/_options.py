"""What each command can be told, and how it is read from the command line."""

import contextlib
import dataclasses
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

from signfd_jax.experiments import PRESETS, Experiment, from_json
from signfd_jax.experiments._storage import files

_Options = TypeVar("_Options")


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
        local_steps: steps of each worker in a round; --worker local_steps:H.
        momentum: of the server's optimizer; --optimizer sgd:momentum=M.
        weight_decay: of the server's optimizer; --optimizer sgd:weight_decay=W.
        log: where the records go besides: csv, tensorboard, wandb or mlflow; may be
            given again for another.
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
    local_steps: int | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    log: tuple[str, ...] = ()
    force: bool = False
    quiet: bool = False


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare decoders under attack; a grid that was stopped goes on.

    Attributes:
        decoders: decoders, each met by every attack: the default, the paper's, ...
        attacks: attacks, each with every number of Byzantine workers above 0; none is
            one unattacked cell, whatever the numbers.
        num_byzantine: numbers of Byzantine workers; 0 is one unattacked cell. Of fewer
            than 15 workers, at most the largest minority, unless it is given.
        splits: splits of the data; empty: the preset's.
        batch_sizes: examples of each worker in each round; empty: the preset's.
        seeds: number of training seeds.
        seed: the first of them.
        rounds: number of rounds; none: the preset's.
        learning_rate: step along the decoded sign; none: the preset's.
        worker: what a worker sends, e.g. local_steps:5; none: the preset's.
        local_steps: steps of each worker in a round; --worker local_steps:H.
        trusted: number of trusted workers, the last ones; none: the preset's. A decoder
            that cannot use them, or stakes or shares, runs without, and a line says so.
        root_examples: examples of its own that each trusted worker has; none: the
            preset's.
        stakes: how many workers each counts as, or examples, as many as it holds;
            empty: the preset's.
        shares: how much a worker's vote may weigh, or examples, as many as it holds;
            empty: the preset's.
        wire: ternary or one_bit.
        flip_probability: r of stochastic_sign_flip, in [0, 1].
        redraw_byzantine: others lie each round.
        format: how the table is printed; table: drawn on a terminal, else Markdown.
            The file table.md is always Markdown.
        data_dir: folder of the data sets; else SIGNFD_DATA, else a download.
        output_dir: folder of all runs.
        force: run again what is finished.
        quiet: no progress bar.
    """

    decoders: tuple[str, ...] = (
        Experiment.decoder,
        "federated_defense",
        "majority_vote",
    )
    attacks: tuple[str, ...] = ("sign_inversion",)
    num_byzantine: tuple[int, ...] = (0, 3, 6, 7)
    splits: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = ()
    seeds: int = 3
    seed: int = 0
    rounds: int | None = None
    learning_rate: float | None = None
    worker: str | None = None
    local_steps: int | None = None
    trusted: int | None = None
    root_examples: int | None = None
    stakes: tuple[float, ...] | str = ()
    shares: tuple[float, ...] | str = ()
    wire: str = "ternary"
    flip_probability: float = 0.5
    redraw_byzantine: bool = False
    format: Literal["table", "markdown", "csv", "latex"] = "table"
    data_dir: Path | None = None
    output_dir: Path = Path("runs")
    force: bool = False
    quiet: bool = False


@dataclasses.dataclass(frozen=True)
class Plot:
    """Draw the figures of runs and grids again. Several runs also share one figure.

    Attributes:
        format: png, pdf or svg.
        title: above each figure.
        labels: what the runs are called, in the order of their folders.
        size: width and height in inches.
    """

    format: Literal["png", "pdf", "svg"] = "png"
    title: str | None = None
    labels: tuple[str, ...] = ()
    size: tuple[float, float] | None = None


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


@dataclasses.dataclass(frozen=True)
class LeaderboardRun:
    """Run an entry of the leaderboard: enter it, or compare it with what was entered.

    Attributes:
        decoder: the entry, a decoder or a rule of signfd list decoders, or of a package
            of yours; none: all that were entered.
        folder: folder of the leaderboard.
        data_dir: folder of the data sets; else SIGNFD_DATA, else a download.
        output_dir: folder of all runs.
        force: begin anew what was stopped.
        quiet: no progress bar.
    """

    decoder: str | None = None
    folder: Path = Path("benchmarks/leaderboard")
    data_dir: Path | None = None
    output_dir: Path = Path("runs")
    force: bool = False
    quiet: bool = False


@dataclasses.dataclass(frozen=True)
class LeaderboardPage:
    """Write the page of the leaderboard from its rows.

    Attributes:
        folder: folder of the leaderboard.
        output: the page.
    """

    folder: Path = Path("benchmarks/leaderboard")
    output: Path = Path("docs/leaderboard.md")


@dataclasses.dataclass(frozen=True)
class LeaderboardList:
    """List the challenges of the leaderboard.

    Attributes:
        folder: folder of the leaderboard.
    """

    folder: Path = Path("benchmarks/leaderboard")


_POSITIONAL = {
    LeaderboardList: "",
    LeaderboardPage: "",
    LeaderboardRun: "NAME",
    Paper: "FIGURE",
    Plot: "FOLDER [FOLDER ...]",
}


def read_flags(default: _Options, arguments: Sequence[str], command: str) -> _Options:
    """Read flags into a dataclass; its nested fields have flags without a prefix."""
    import tyro

    what = _POSITIONAL.get(type(default), "[PRESET]")
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                type(default),
                default=default,
                args=arguments,
                prog=f"signfd {command} {what}".rstrip(),
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
    # Tyro draws a box: a title, maybe a rule, what is wrong, and a rule.
    said = [line.strip("│| ") for line in complaint.getvalue().splitlines()[1:]]
    is_rule = lambda line: not line.strip("─╰╯-+")  # noqa: E731
    said = itertools.dropwhile(is_rule, said)
    reason = " ".join(itertools.takewhile(lambda line: not is_rule(line), said))
    reason = reason.removeprefix("Error parsing experiment: ")
    raise ValueError(f"{reason} (signfd {command} --help lists the options)")


def read_run_flags(default: Run, arguments: Sequence[str]) -> tuple[Run, list[str]]:
    """Read the flags of `signfd run`; with fewer workers, fit in what was for more."""
    ours = default.experiment
    arguments = _gathered("--log", arguments)
    names = {argument.split("=")[0].replace("_", "-") for argument in arguments}
    dependent = {"num_byzantine": _largest_minority, "worker_chunk": _largest_divisor}
    if "--num-workers" not in names:
        dependent = {}
    dependent = {
        name: fit
        for name, fit in dependent.items()
        if getattr(ours, name) and "--" + name.replace("_", "-") not in names
    }
    blank = dataclasses.replace(ours, **dict.fromkeys(dependent, 0))
    if "--byzantine-ids" in names or ours.byzantine_ids:
        dependent.pop("num_byzantine", None)  # it follows from these
    options = read_flags(
        dataclasses.replace(default, experiment=blank), arguments, "run"
    )
    options = _in_short(options, names)
    workers, fitted, lines = options.experiment.num_workers, {}, []
    for name, fit in dependent.items():
        given = getattr(ours, name)
        fitted[name], why = fit(given, ours.num_workers, workers)
        if fitted[name] != given:
            flag = "--" + name.replace("_", "-")
            lines.append(
                f"{name} is {fitted[name]}, {why} of {workers} workers; {ours.name} "
                f"has {given} for {ours.num_workers} ({flag} sets it)"
            )
    try:
        experiment = dataclasses.replace(options.experiment, **fitted)
    except ValueError as error:
        raise ValueError(f"{error}, as {ours.name} has it") from None
    return dataclasses.replace(options, experiment=experiment), lines


def _in_short(options, names):
    """The experiment, with what flags say that stand for an option of a name."""
    changes = {}
    if options.local_steps is not None:
        changes["worker"] = local_steps_of(options, given="--worker" in names)
    optimizer = options.experiment.optimizer
    for option in ("momentum", "weight_decay"):
        value = getattr(options, option)
        if value is not None:
            if f"{option}=" in optimizer:
                raise ValueError(
                    f"--optimizer {optimizer} has the option {option} already"
                )
            optimizer += f"{',' if ':' in optimizer else ':'}{option}={value}"
    if optimizer != options.experiment.optimizer:
        changes["optimizer"] = optimizer
    return dataclasses.replace(
        options, experiment=dataclasses.replace(options.experiment, **changes)
    )


def local_steps_of(options: Run | Compare, *, given: bool) -> str:
    """The worker that --local-steps stands for, unless --worker is given too."""
    if given:
        raise ValueError("give --worker or --local-steps, not both")
    return f"local_steps:{options.local_steps}"


def _gathered(flag, arguments):
    """A flag that was given several times, given once with all its values."""
    rest, values, taking = [], [], False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        taking = name == flag or (taking and not argument.startswith("-"))
        if not taking:
            rest.append(argument)
        elif name != flag:
            values.append(argument)
        elif equals:
            values.append(value)
    return [*rest, flag, *values] if values or len(rest) < len(arguments) else rest


def _largest_minority(given, before, workers):
    """What was a minority remains one."""
    is_one = 2 * given < workers or 2 * given >= before
    return given if is_one else (workers - 1) // 2, "the largest minority"


def _largest_divisor(given, _, workers):
    """Chunks are of one size."""
    sizes = range(min(given, workers), 0, -1)
    return next(size for size in sizes if workers % size == 0), "the largest divisor"


def fitting(default: Compare, experiment: Experiment) -> Compare:
    """Let the numbers of Byzantine workers be minorities."""
    most = (experiment.num_workers - 1) // 2
    numbers = sorted({min(number, most) for number in default.num_byzantine})
    return dataclasses.replace(default, num_byzantine=tuple(numbers))


def take_preset(arguments: Sequence[str]) -> tuple[Experiment, list[str]]:
    """Take the preset's name, or a configuration's file, off the arguments."""
    if not arguments or arguments[0].startswith("-"):
        return PRESETS["digits"].experiment, list(arguments)
    name, *rest = arguments
    if name in PRESETS:
        return PRESETS[name].experiment, rest
    path = files.expanded(name)
    if path.is_file():
        return read_configuration(path), rest
    if path.suffix.lower() == ".json":
        raise ValueError(f"there is no configuration {name}")
    if (path / "config.json").is_file():
        raise ValueError(
            f"{name} is the folder of a run: give {path / 'config.json'}, or --from "
            f"{name} to repeat it"
        )
    raise ValueError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}")


def read_configuration(path: Path) -> Experiment:
    """Read an experiment from a file; what is wrong begins with the file's name."""
    text = files.read_text(path)
    try:
        return from_json(Experiment, text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None

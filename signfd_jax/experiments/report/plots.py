"""Records as figures, in one of `FORMATS`.

With `_who_lies` this is the only module that imports matplotlib. `_style` says how
things are called and drawn.

Shapes: `S` seeds, `T` tests, `M` workers.
"""

import contextlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from signfd_jax._checks import check_choice, check_flag, check_size
from signfd_jax.experiments import _verdicts, registry
from signfd_jax.experiments._choices import choose
from signfd_jax.experiments._processes.console import reason, warn
from signfd_jax.experiments._storage.run_folder import read_lines, read_run
from signfd_jax.experiments._success import SUCCESS
from signfd_jax.experiments.report import _style, _who_lies
from signfd_jax.experiments.report._tables import mean, measured, pivot

__all__ = [
    "FORMATS",
    "accuracy_figure",
    "draw",
    "grid_figure",
    "panels_figure",
    "save",
    "weights_figure",
]


FORMATS = ("png", "pdf", "svg")


def accuracy_figure(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Test accuracy of one or several runs, against the round.

    Where the attack of one has a target, its success rate stands beside it.

    Args:
        runs: label of a run to its metrics, one record for each test and seed.

    Returns:
        A figure: a line for the mean over seeds, a band from the lowest to the highest.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> metrics = [{"round": 1, "test_accuracy": 0.5, "seed": 0}]
        >>> accuracy_figure({"mine": metrics}).axes[0].get_ylabel()
        'test accuracy'
    """
    for label, metrics in runs.items():
        _check_records(f"run {label}", metrics, ("round", "test_accuracy"))
    scores = _scores(record for metrics in runs.values() for record in metrics)
    figure = Figure(figsize=(6 * len(scores), 4), layout="constrained")
    row = figure.subplots(1, len(scores), squeeze=False)[0]
    drawn = _style.styles(runs)
    for axes, score in zip(row, scores, strict=True):
        for label, metrics in runs.items():
            by_round: dict[int, list[float]] = {}
            for record in metrics:
                if score in record:
                    by_round.setdefault(record["round"], []).append(record[score])
            if by_round:
                seeds = list(by_round.values())
                _curve(axes, label, list(by_round), seeds, drawn[label])
        _finish(axes, len(runs) > 1, score)
    if any(len(set(r["round"] for r in m)) < len(m) for m in runs.values()):
        _footer(figure, _BAND)
    return figure


def _scores(records):
    """What is drawn of records, a panel each."""
    attacked = any(SUCCESS in record for record in records)
    return ("test_accuracy", SUCCESS) if attacked else ("test_accuracy",)


def _check_records(whose, records, fields):
    if not records:
        raise ValueError(f"{whose} has no metrics yet: nothing to draw")
    for number, record in enumerate(records, start=1):
        if lacking := [field for field in fields if field not in record]:
            raise ValueError(
                f"{whose}, record {number}, lacks {', '.join(lacking)}; it was not "
                "written by signfd, or by another version"
            )


def _curve(axes: Axes, label, rounds, accuracies, style):
    """One line; `accuracies` has a row of seeds for each round."""
    line = _mean_line(axes, rounds, accuracies, label=_label(label), **style)
    _band(axes, rounds, accuracies, color=line.get_color(), alpha=0.2)


def _mean_line(axes, x, seeds, **style):
    """The mean over seeds; a single point has a marker, or it would not be seen."""
    marker = "o" if sum(bool(measured(values)) for values in seeds) == 1 else None
    (line,) = axes.plot(x, [mean(values) for values in seeds], marker=marker, **style)
    return line


def _band(axes, x, seeds, **style):
    """From the lowest to the highest seed; a gap where nothing was measured."""
    there = [measured(values) or [math.nan] for values in seeds]
    axes.fill_between(x, list(map(min, there)), list(map(max, there)), **style)


def _label(text):
    """A label that matplotlib shows as it is written."""
    # Those that begin with an underscore are left out of legends; a dollar is maths.
    text = str(text).replace("$", r"\$")
    return f"\N{ZERO WIDTH SPACE}{text}" if text.startswith("_") else text


def _finish(axes, legend, score="test_accuracy"):
    axes.set(xlabel="round", ylabel=_style.spoken(score))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(fontsize="small", loc="best", handlelength=3)


_BAND = "Lines are means over seeds, bands reach from the lowest to the highest."


def _footer(figure, text):
    """A line of small print below everything."""
    figure.supxlabel(_label(text), x=0.01, ha="left", fontsize=7, color="0.35")


def panels_figure(
    panels: Mapping[str, Mapping[str, tuple[Sequence[int | float], Sequence[Any]]]],
    *,
    xlabel: str,
    ylabel: str,
    log_x: bool = False,
) -> Figure:
    """Curves side by side, under one legend, with one meaning of each colour.

    Args:
        panels: title of a panel to its curves, each a label with the x values and, for
            every x, one number or one number a seed.
        xlabel: what the x axes show.
        ylabel: what the y axes show; the panels share it.
        log_x: whether the x axes are logarithmic.

    Returns:
        A figure: a line for the mean over seeds, a band from the lowest to the highest.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> curves = {
        ...     "a": ([1, 2], [0.5, 0.7]),
        ...     "b": ([1, 2], [[0.1, 0.2], [0.3, 0.4]]),
        ... }
        >>> figure = panels_figure({"left": curves}, xlabel="round", ylabel="error")
        >>> figure.axes[0].get_title(), len(figure.axes[0].lines)
        ('left', 2)
    """
    if not panels:
        raise ValueError("there are no panels: nothing to draw")
    for name, text in (("xlabel", xlabel), ("ylabel", ylabel)):
        if not isinstance(text, str):
            raise ValueError(f"{name} must be a text, but is {text!r}")
    check_flag("log_x", log_x)
    labels = list(
        dict.fromkeys(label for curves in panels.values() for label in curves)
    )
    figure = Figure(figsize=(1.2 + 3.2 * len(panels), 3.6), layout="constrained")
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    lines, drawn = {}, _style.styles(labels)
    for axes, (title, curves) in zip(row, panels.items(), strict=True):
        for label, (x, values) in curves.items():
            seeds = [v if isinstance(v, Sequence) else [v] for v in values]
            line = _mean_line(axes, x, seeds, **drawn[label])
            _band(axes, x, seeds, color=line.get_color(), alpha=0.15)
            lines[_label(label)] = line
        axes.set(title=title, xlabel=xlabel, xscale="log" if log_x else "linear")
        axes.grid(alpha=0.3)
    row[0].set_ylabel(ylabel)
    figure.legend(
        lines.values(), lines.keys(), loc="outside lower center", ncols=4, fontsize=7
    )
    return figure


def weights_figure(
    metrics: Sequence[Mapping[str, Any]], *, unit: str = "votes"
) -> Figure:
    """Weight of each worker's vote against the round, for the first seed.

    Args:
        metrics: of one run, one record for each test and seed.
        unit: of the weights: votes, or nats where they are log-likelihood ratios.

    Returns:
        A figure with a line for each worker, dashed where it is Byzantine.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> metrics = [
        ...     {"round": 1, "seed": 0, "weights": [1.0, -0.5], "byzantine": [1]}
        ... ]
        >>> figure = weights_figure(metrics)
        >>> [line.get_linestyle() for line in figure.axes[0].lines]
        ['-', '--', '-']
    """
    fields = ("round", "seed", "weights", "byzantine")
    _check_records("the run", metrics, fields)
    check_choice("unit", unit, ("votes", "nats"))
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    first = [record for record in metrics if record["seed"] == metrics[0]["seed"]]
    rounds = [record["round"] for record in first]
    labelled = set()
    marker = "o" if len(rounds) == 1 else None
    for worker in range(len(first[0]["weights"])):
        lies = worker in first[0]["byzantine"]
        label = "Byzantine" if lies else "honest"
        axes.plot(
            rounds,
            [record["weights"][worker] for record in first],
            linestyle="--" if lies else "-",
            marker=marker,
            color="#D55E00" if lies else "#0072B2",
            label=None if label in labelled else label,
        )
        labelled.add(label)
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set(xlabel="round", ylabel=f"weight of the vote ({unit})")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def grid_figure(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Heat map of a grid: rows are the attackers, columns decoders, a map a setting.

    Where there is one setting, the learning curves of all decoders against the
    attackers that cost the most stand beside it. Where attacks have a target, a row
    below shows the same of their success rates.

    Args:
        records: what `compare.run_grid` returned.

    Returns:
        A figure; each cell shows the mean test accuracy over seeds.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> config = {"split": "iid", "batch_size": 4, "wire": "ternary"}
        >>> config |= {"membership": "fixed", "attack": "gaussian", "num_byzantine": 6}
        >>> record = {"config": config | {"decoder": "d"}, "test_accuracy": [0.5, 0.7]}
        >>> record |= {"rounds": [1, 2], "accuracies": [[0.1, 0.5], [0.2, 0.7]]}
        >>> [axes.get_title() for axes in grid_figure([record]).axes[:2]]
        ['6 lie: gaussian', 'test accuracy']
    """
    fields = ("config", "test_accuracy", "rounds", "accuracies")
    _check_records("the grid", records, fields)
    scores = [pivot(records, score) for score in _scores(records)]
    table = scores[0]
    with_curves = len(table.settings) == 1
    panels = len(table.settings) + with_curves
    width = 1.5 + 1.1 * len(table.decoders)
    height = 1.8 + 0.32 * len(table.attackers)
    width = 2.2 + panels * max(width, 4.5 * with_curves)
    height = len(scores) * max(height, 3.6)
    figure = Figure(figsize=(width, height), layout="constrained")
    rows = figure.subplots(len(scores), panels, squeeze=False)
    for found, row in zip(scores, rows, strict=True):
        if with_curves:
            _worst_curves(row[0], records, found)
        axes = list(row[with_curves:])
        while len(axes) > len(found.settings):  # nobody has a target in some
            axes.pop().set_axis_off()
        _heat_maps(figure, axes, found, with_curves)
    _footer(figure, _said_of(records, table, with_curves))
    return figure


def _heat_maps(figure, axes, table, with_curves):
    """A map of each setting, side by side under one scale of colours."""
    said = _style.spoken(table.score)
    for axis, name in zip(axes, table.settings, strict=True):
        image = _heat_map(axis, table, name)
        several = "" if table.score == "test_accuracy" else f"{said}: "
        axis.set_title(said if with_curves else several + _setting(name))
        if axis is not axes[0]:
            axis.set_yticklabels([])
    figure.colorbar(image, ax=axes, shrink=0.8)


def _said_of(records, table, with_curves):
    """What the grid is of: data, workers, seeds, and what the band is."""
    config = records[0]["config"]
    what = [
        config.get("dataset"),
        *(map(_setting, table.settings) if with_curves else ()),
        f"{config['num_workers']} workers" if "num_workers" in config else None,
        f"{len(records[0]['test_accuracy'])} seeds",
    ]
    text = ", ".join(filter(None, what)) + "."
    return f"{text} {_BAND}" if with_curves else text


def _setting(label):
    """`iid, batch 16` in words."""
    split, _, rest = label.partition(", ")
    return ", ".join(filter(None, [_style.spoken(split), rest]))


def _heat_map(axes, table, setting):
    values = [
        [mean(table.accuracies.get((setting, a, d), [])) for d in table.decoders]
        for a in table.attackers
    ]
    # What is bright is good for the server.
    attacked = table.score == SUCCESS
    cmap = "viridis_r" if attacked else "viridis"
    image = axes.imshow(values, vmin=0, vmax=1, aspect="auto", cmap=cmap)
    decoders = [_label(_style.spoken(decoder)) for decoder in table.decoders]
    axes.set_xticks(range(len(decoders)), decoders, rotation=20, ha="right")
    axes.set_yticks(range(len(table.attackers)), map(_style.attackers, table.attackers))
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if not math.isnan(value):
                colour = (
                    "black" if (1 - value if attacked else value) > 0.6 else "white"
                )
                text = f"{value:.3f}"
                axes.text(j, i, text, ha="center", va="center", color=colour, size=8)
    return image


def _worst_curves(axes, records, table):
    """Curves of every decoder under the attackers that had the most success."""
    (name,) = table.settings
    _, attackers = table.worst(name)
    curves = f"{SUCCESS}s" if table.score == SUCCESS else "accuracies"
    axes.set_title(_label(_style.attackers(attackers)))
    drawn = _style.styles(table.decoders)
    for record in records:
        decoder = record["config"]["decoder"]
        if pivot([record]).attackers == [attackers]:
            by_round = list(zip(*record[curves], strict=True))
            said = _style.spoken(decoder)
            _curve(axes, said, record["rounds"], by_round, drawn[decoder])
    _finish(axes, legend=True, score=table.score)


def draw(
    folder: str | Path,
    *,
    format: str = "png",
    title: str | None = None,
    label: str | None = None,
    size: tuple[float, float] | None = None,
) -> list[Path]:
    r"""Draw what a run or a grid wrote, finished or not, into its own folder.

    Args:
        folder: the folder of a run (`accuracy.png` and, where each worker's weight was
            recorded, `weights.png` are drawn, and with verdicts on them `workers.png`)
            or of a grid (`comparison.png`).
        format: of the files: one of `FORMATS`. The last two are vector graphics.
        title: above each figure; None: none.
        label: what a run is called; None: as its decoder.
        size: width and height in inches; None: as suits the figure.

    Returns:
        The files written.

    Raises:
        ValueError: the folder holds neither, or nothing to draw yet; an argument is out
            of range.

    Examples:
        >>> folder = getfixture("tmp_path")
        >>> _ = (folder / "config.json").write_text("{}")
        >>> _ = (folder / "metrics.jsonl").write_text(
        ...     '{"round": 1, "seed": 0, "test_accuracy": 0.5, "weights": [1.0], '
        ...     '"byzantine": []}\n'
        ... )
        >>> [path.name for path in draw(folder)]
        ['accuracy.png', 'weights.png']
    """
    check_choice("format", format, FORMATS)
    if label is not None and not isinstance(label, str):
        raise ValueError(f"label must be a text, but is {label!r}")
    folder = Path(folder)
    figures: dict[str, Callable[[], Figure]]
    if (folder / "cells.jsonl").exists():
        records = read_lines(folder / "cells.jsonl")
        figures = {"comparison": lambda: grid_figure(records)}
    else:
        config, metrics = read_run(folder)
        decoder = str(config.get("decoder", folder.name))
        name = _style.spoken(decoder) if label is None else label
        figures = {"accuracy": lambda: accuracy_figure({name: metrics})}
        if metrics and any(measured(metrics[0].get("weights", ()))):
            figures["weights"] = lambda: weights_figure(metrics, unit=_unit(config))
            if all("verdicts" in record for record in metrics):
                figures["workers"] = lambda: _said_of_workers(folder, config, metrics)
    made = {folder / f"{name}.{format}": make for name, make in figures.items()}
    save(made, title=title, size=size)
    return list(made)


def _said_of_workers(folder, config, metrics):
    rows = _verdicts.of_first_seed(_verdicts.read(folder))
    copied = [int(row["duplicate_of"] or -1) for row in rows]
    found = _verdicts.correlations(folder) if rows else None
    return _who_lies.workers_figure(metrics, found, copied, _unit(config))


def _unit(config):
    """What the decoder of a run counts its weights in."""
    try:
        choice = choose(registry.DECODERS, "decoder", config.get("decoder", ""))
        return choice.make({"num_workers": config.get("num_workers", 1)}).unit
    except ValueError:  # of a package that is not here
        return "votes"


def save(
    figures: Mapping[Path, Callable[[], Figure]],
    *,
    dpi: int = 120,
    title: str | None = None,
    size: tuple[float, float] | None = None,
) -> None:
    """Draw figures into files.

    Where the user's settings of matplotlib ask for what is not there, such as LaTeX,
    its own settings are used. One line on stderr says so, or what else matplotlib has
    to say.

    Args:
        figures: by its file, what makes a figure.
        dpi: pixels an inch.
        title: above each figure; None: none.
        size: width and height in inches; None: as suits the figure.

    Raises:
        ValueError: there is nothing to draw, it cannot be drawn, or an argument is out
            of range.
        OSError: a file cannot be written.

    Examples:
        >>> path = getfixture("tmp_path") / "empty.png"
        >>> save({path: Figure})
        >>> path.exists()
        True
    """
    if not figures:
        raise ValueError("there are no figures: nothing to draw")
    check_size("dpi", dpi)
    if title is not None and not isinstance(title, str):
        raise ValueError(f"title must be a text, but is {title!r}")
    if size is not None:
        if len(size) != 2 or not all(0 < length <= 100 for length in size):
            raise ValueError(
                f"size must be a width and a height of at most 100 inches, not {size!r}"
            )
    with _overheard() as said, matplotlib.rc_context(_style.SETTINGS):
        try:
            _save(figures, dpi, title, size)
        except Exception as error:  # whatever a setting leads to
            said.append(f"{reason(error)}; drawn with matplotlib's own settings")
            with matplotlib.rc_context():
                matplotlib.rcdefaults()
                _save(figures, dpi, title, size)
    if said:
        warn(f"figures: {said[0]}")


def _save(figures, dpi, title, size):
    for path, make in figures.items():
        try:
            figure = make()
            if title is not None:
                figure.suptitle(_label(title))
            if size is not None:
                figure.set_size_inches(size)
            figure.savefig(path, dpi=dpi)
        except (ValueError, OSError):
            raise
        except Exception as error:
            message = f"cannot draw {path}: {reason(error)}"
            raise ValueError(message) from error


@contextlib.contextmanager
def _overheard() -> Iterator[list[str]]:
    """A list of what matplotlib would print, the first to count at its beginning."""
    said: list[str] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("matplotlib")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(listener)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            yield said
        said += [str(warning.message) for warning in caught]
    finally:
        logger.removeHandler(listener)
        logger.propagate = propagate

"""Records of a grid as tables: what `signfd compare` prints, and its heat map shows.

Shapes: `S` seeds. A mean is over seeds, and so is its standard error (the sample
standard deviation over the root of S).
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Pivot", "accuracy_table", "markdown", "mean_and_error", "pivot"]


class Pivot(NamedTuple):
    """Accuracies by setting, attackers and decoder.

    Attributes:
        settings: what is trained on, such as "iid, batch 64".
        attackers: who attacks and how, such as "6 sign_inversion"; "none" comes first.
        decoders: the decoders.
        accuracies: `(setting, attackers, decoder)` to one test accuracy a seed; a cell
            that was not run is not in it.
    """

    settings: list[str]
    attackers: list[str]
    decoders: list[str]
    accuracies: dict[tuple[str, str, str], list[float]]

    def worst(self, setting: str, decoder: str) -> tuple[float, str]:
        """The lowest mean accuracy of a decoder in a setting, and who attacked.

        It is NaN where the decoder was not run.
        """
        means = (
            (statistics.fmean(accuracies), attackers)
            for (s, attackers, d), accuracies in self.accuracies.items()
            if (s, d) == (setting, decoder)
        )
        return min(means, default=(math.nan, "none"))


def pivot(records: Iterable[Mapping[str, Any]]) -> Pivot:
    """Arrange the records of a grid.

    Args:
        records: what `compare.run_grid` returned.

    Returns:
        A `Pivot`, in the order of the records.

    Examples:
        >>> config = {"split": "iid", "batch_size": 4, "wire": "ternary"}
        >>> config |= {"membership": "fixed", "attack": "gaussian", "num_byzantine": 6}
        >>> record = {"config": config | {"decoder": "d"}, "test_accuracy": [0.5, 0.7]}
        >>> pivot([record]).worst("iid, batch 4", "d")
        (0.6, '6 gaussian')
    """
    accuracies = {}
    for record in records:
        config = record["config"]
        key = _setting(config), _attackers(config), config["decoder"]
        accuracies[key] = record["test_accuracy"]
    settings, attackers, decoders = (
        list(dict.fromkeys(key[axis] for key in accuracies)) for axis in range(3)
    )
    attackers.sort(key=lambda label: label != "none")
    return Pivot(settings, attackers, decoders, accuracies)


def _setting(config):
    wire = "" if config["wire"] == "ternary" else ", one bit"
    return f"{config['split']}, batch {config['batch_size']}{wire}"


def _attackers(config):
    if config["num_byzantine"] == 0:
        return "none"
    drawn = "" if config["membership"] == "fixed" else f", {config['membership']}"
    return f"{config['num_byzantine']} {config['attack']}{drawn}"


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and its standard error.

    Args:
        values: one number a seed.

    Returns:
        The mean, and the standard error; NaN where there is one seed.

    Examples:
        >>> mean_and_error([0.5, 0.7])
        (0.6, 0.1)
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, statistics.stdev(values) / math.sqrt(len(values))


def accuracy_table(records: Iterable[Mapping[str, Any]]) -> str:
    """Write accuracies as a Markdown table, a column for each decoder.

    The last rows are each decoder's worst case over all that attacked it.

    Args:
        records: what `compare.run_grid` returned.

    Returns:
        The table: mean test accuracy over seeds, with its standard error.

    Examples:
        >>> config = {"split": "iid", "batch_size": 4, "wire": "ternary"}
        >>> config |= {"membership": "fixed", "attack": "gaussian", "num_byzantine": 6}
        >>> record = {"config": config | {"decoder": "d"}, "test_accuracy": [0.5, 0.7]}
        >>> print(accuracy_table([record]))
        | data         | Byzantine workers | d             |
        |--------------|-------------------|---------------|
        | iid, batch 4 | 6 gaussian        | 0.600 ± 0.100 |
        | iid, batch 4 | worst case        | 0.600         |
    """
    table = pivot(records)
    rows = [["data", "Byzantine workers", *table.decoders]]
    for setting in table.settings:
        for attackers in table.attackers:
            keys = [(setting, attackers, decoder) for decoder in table.decoders]
            if any(key in table.accuracies for key in keys):
                cells = [_cell(table.accuracies.get(key)) for key in keys]
                rows.append([setting, attackers, *cells])
    for setting in table.settings:
        worst = [table.worst(setting, decoder)[0] for decoder in table.decoders]
        cells = ["" if math.isnan(mean) else f"{mean:.3f}" for mean in worst]
        rows.append([setting, "worst case", *cells])
    return markdown(rows)


def _cell(values):
    if values is None:
        return ""
    mean, error = mean_and_error(values)
    return f"{mean:.3f}" if math.isnan(error) else f"{mean:.3f} ± {error:.3f}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table.

    Args:
        rows: the rows of cells, the head first.

    Returns:
        The table, its columns padded to equal widths.

    Examples:
        >>> print(markdown([["a", "b"], ["1", "23"]]))
        | a | b  |
        |---|----|
        | 1 | 23 |
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)

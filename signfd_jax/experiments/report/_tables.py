"""Records of a grid as tables: what `signfd compare` prints, and its heat map shows.

Shapes: `S` seeds. A mean is over seeds, and so is its standard error (the sample
standard deviation over the root of S).
"""

import csv
import dataclasses
import io
import itertools
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from signfd_jax.experiments._success import SUCCESS
from signfd_jax.experiments.config import Experiment


class Pivot(NamedTuple):
    """Accuracies by setting, attackers and decoder.

    Attributes:
        settings: what is trained on, such as "iid, batch 64".
        attackers: who attacks and how, such as "6 sign_inversion"; "none" comes first.
        decoders: the decoders.
        accuracies: `(setting, attackers, decoder)` to one test accuracy a seed; a cell
            that was not run is not in it. Or, as `score` says, attack success rates.
        score: the name in the records of what is shown.
    """

    settings: list[str]
    attackers: list[str]
    decoders: list[str]
    accuracies: dict[tuple[str, str, str], list[float]]
    score: str = "test_accuracy"

    def worst(self, setting: str, decoder: str | None = None) -> tuple[float, str]:
        """The lowest mean accuracy of a decoder in a setting, and who attacked.

        None: of all decoders. Of attack success rates it is the highest. It is NaN
        where the decoder was not run.
        """
        means = (
            (mean(accuracies), attackers)
            for (s, attackers, d), accuracies in self.accuracies.items()
            if s == setting and decoder in (None, d) and measured(accuracies)
        )
        worst_of = max if self.score == SUCCESS else min
        return worst_of(means, default=(math.nan, "none"))


def measured(values: Iterable[float | None]) -> list[float]:
    """Those of some numbers that there are."""
    return [v for v in values if v is not None and not math.isnan(v)]


def mean(values: Iterable[float | None]) -> float:
    """Mean of what was measured."""
    there = measured(values)
    return statistics.fmean(there) if there else math.nan


def pivot(records: Iterable[Mapping[str, Any]], score: str = "test_accuracy") -> Pivot:
    """Arrange the records of a grid, those that have the score."""
    records = list(records)
    # Records of before a field was there have its default.
    default = dataclasses.asdict(Experiment())
    configs = [default | record["config"] for record in records]
    others = _differing(configs)
    accuracies = {}
    for record, config in zip(records, configs, strict=True):
        key = _setting(config, others), _attackers(config), config["decoder"]
        if score in record:
            accuracies[key] = record[score]
    settings, attackers, decoders = (
        list(dict.fromkeys(key[axis] for key in accuracies)) for axis in range(3)
    )
    attackers.sort(key=lambda label: label != "none")
    return Pivot(settings, attackers, decoders, accuracies, score)


# The fields that labels show, and those that change no result or are told by others.
_SHOWN = ("split", "batch_size", "wire", "decoder", "attack", "num_byzantine")
_SHOWN += ("membership", "name", "worker_chunk", "withheld")


def _differing(configs):
    """Fields in which records of one label would differ, so that none hides another."""
    fields = dict.fromkeys(field for config in configs for field in config)
    differ = [f for f in fields if f not in _SHOWN and _several(configs, f)]
    # Where nobody lies, the label of the attackers does not say who is there.
    free = [config for config in configs if _attackers(config) == "none"]
    differ += [f for f in ("membership", "num_byzantine") if _several(free, f)]
    # What a decoder is not told goes with its name, unless it was run in both ways.
    ways = {(config["decoder"], json.dumps(config["withheld"])) for config in configs}
    both = len(ways) > len({config["decoder"] for config in configs})
    return differ + ["withheld"] * both


def _several(configs, field):
    # In JSON, as a tuple is the list that is read again.
    return len({json.dumps(config.get(field)) for config in configs}) > 1


def _setting(config, others):
    wire = "" if config["wire"] == "ternary" else ", one bit"
    more = "".join(f", {field} {config.get(field)}" for field in others)
    return f"{config['split']}, batch {config['batch_size']}{wire}{more}"


def _attackers(config):
    if config["num_byzantine"] == 0 or config["attack"] == "none":
        return "none"
    drawn = "" if config["membership"] == "fixed" else f", {config['membership']}"
    return f"{config['num_byzantine']} {config['attack']}{drawn}"


def mean_and_error(values: Sequence[float | None]) -> tuple[float, float]:
    """Mean over seeds and its standard error."""
    there = measured(values)
    if len(there) < 2:
        return mean(there), math.nan
    return mean(there), statistics.stdev(there) / math.sqrt(len(there))


def accuracy_cells(records: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """Accuracies as text: the head, then the rows, a column for each decoder.

    The last rows are each decoder's worst case over all that attacked it. Where an
    attack has a target, a row below that of its accuracies has its success rates.
    """
    decoders, rows = _accuracy_rows(records)
    return [
        [*_HEAD, *decoders],
        *([*label, *map(_cell, pairs)] for label, pairs in rows),
    ]


def accuracy_table(records: Iterable[Mapping[str, Any]]) -> str:
    """Write accuracies as a Markdown table."""
    return markdown(accuracy_cells(records))


def accuracy_csv(records: Iterable[Mapping[str, Any]]) -> str:
    r"""Write accuracies as comma-separated values, two columns for each decoder."""
    decoders, rows = _accuracy_rows(records)
    head = [column for d in decoders for column in (d, f"{d}: standard error")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_HEAD, *head])
    for label, pairs in rows:
        numbers = [number for pair in pairs for number in pair]
        cells = ["" if math.isnan(n) else repr(round(n, 6)) for n in numbers]
        writer.writerow([*label, *cells])
    return text.getvalue()


def accuracy_latex(records: Iterable[Mapping[str, Any]]) -> str:
    r"""Write accuracies as a `tabular` of LaTeX, which needs no package."""
    decoders, rows = _accuracy_rows(records)
    attacked, worst = (
        [
            [*map(_in_latex, label), *map(_latex_cell, pairs)]
            for label, pairs in rows
            if label[1].startswith(_WORST) == is_worst
        ]
        for is_worst in (False, True)
    )
    parts = [[[_in_latex(name) for name in (*_HEAD, *decoders)]], attacked, worst]
    lines = [rf"\begin{{tabular}}{{ll{'r' * len(decoders)}}}", r"\hline"]
    for part in parts:
        lines += [*(" & ".join(cells) + r" \\" for cells in part), r"\hline"]
    return "\n".join([*lines, r"\end{tabular}"])


_HEAD = ("data", "Byzantine workers")
_WORST = "worst case"
_SUCCESS = ", attack success rate"


def _accuracy_rows(records):
    """The decoders; and of each row its label, and a mean and its error by decoder."""
    records = list(records)
    table = pivot(records)
    both = (("", table), (_SUCCESS, pivot(records, SUCCESS)))
    rows = []
    for setting, attackers in itertools.product(table.settings, table.attackers):
        keys = [(setting, attackers, decoder) for decoder in table.decoders]
        for what, found in both:
            if any(key in found.accuracies for key in keys):
                pairs = [mean_and_error(found.accuracies.get(key, [])) for key in keys]
                rows.append(((setting, attackers + what), pairs))
    for setting in table.settings:
        for what, found in both:
            if setting in found.settings:
                worst = [found.worst(setting, decoder)[0] for decoder in table.decoders]
                pairs = [(value, math.nan) for value in worst]
                rows.append(((setting, _WORST + what), pairs))
    return table.decoders, rows


def _cell(pair):
    """A mean with its error; nothing where nothing was measured."""
    value, error = pair
    if math.isnan(value):
        return ""
    return f"{value:.3f}" if math.isnan(error) else f"{value:.3f} ± {error:.3f}"


def _latex_cell(pair):
    """The same as a formula."""
    text = _cell(pair).replace("±", r"\pm")
    return text and f"${text}$"


_LATEX = {character: "\\" + character for character in "_#%&{}$"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def _in_latex(text):
    """A text whose every character stands for itself in LaTeX."""
    return re.sub(r"[_#%&{}$\\~^|<>]", lambda m: _LATEX[m[0]], text)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table, the head first; a bar in a cell is escaped."""
    rows = [[c.replace("|", r"\|").replace("\n", " ") for c in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)

"""`signfd show`: what was run, what came out, and how each worker was read."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from signfd_jax.cli._options import read_configuration
from signfd_jax.cli._printing import Table, print_tables
from signfd_jax.experiments import Experiment
from signfd_jax.experiments._stop_rule import stop_rule
from signfd_jax.experiments._storage import files


def show(arguments: list[str]) -> int:
    """Print what the folder of a run holds, finished or not."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise ValueError("give the folder of one run: signfd show RUN")
    from signfd_jax.experiments._storage.run_folder import read_run

    folder = files.expanded(arguments[0])
    fields, metrics = read_run(folder)
    if "base" in fields:
        raise ValueError(
            f"{folder} is a grid: its table is {folder / 'table.md'}, and signfd plot "
            f"{folder} draws it"
        )
    config = read_configuration(folder / "config.json")
    path = folder / "summary.json"
    summary = files.read_json(path) if path.exists() else None
    from signfd_jax.experiments._verdicts import read

    workers = read(folder)
    try:
        found = tables(str(folder), config, metrics, summary, workers)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{folder} has damaged records, or those of another version ({what})"
        ) from None
    print_tables(found)
    return 0


def tables(
    folder: str,
    config: Experiment,
    metrics: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any] | None,
    workers: Sequence[Mapping[str, str]] = (),
) -> list[Table]:
    """The tables on a run: what was run, its result, and its workers.

    `workers` are the rows of `workers.csv`.
    """
    last = [line for line in metrics if line["round"] == metrics[-1]["round"]]
    found = [
        Table("run", ("", ""), _run_rows(folder, config, last, summary)),
        Table("configuration", ("field", "value", "default"), _changed_rows(config)),
        Table("result", ("", ""), _result_rows(last, summary)),
        *_worker_tables(config, last, workers),
    ]
    return [table for table in found if table.rows]


_WORKERS = ("seed", "worker", "who", "last weight", "votes are read")
_VERDICT = ("verdict", "since round", "correlation", "confidence")


def _worker_tables(config, last, workers):
    """The workers with their verdicts; of a large population, how many of each."""
    rows = _worker_rows(config, last)
    if not workers:
        return [Table("workers", _WORKERS, rows)]
    if len(rows) == len(workers) and "weights" in last[0]:
        rows = [(*row, *_verdict(of)) for row, of in zip(rows, workers, strict=True)]
        return [Table("workers", (*_WORKERS, *_VERDICT), rows)]
    who = {"0": "honest", "1": _liar(config)}
    counts = Counter((w["seed"], w["verdict"], who[w["byzantine"]]) for w in workers)
    counted = [(*key, str(number)) for key, number in counts.items()]
    names = ("seed", "verdict", "who", "workers")
    return [Table("workers", _WORKERS, rows), Table("verdicts", names, counted)]


def _verdict(worker):
    """The verdict on a worker, since when, and the evidence."""
    said = worker["verdict"]
    if worker["duplicate_of"]:
        said = f"{said} of {worker['duplicate_of']}"
    correlation, error = float(worker["correlation"]), float(worker["error"])
    evidence = f"{correlation:.3f} ± {error:.3f}"
    return said, worker["since"], evidence, f"{float(worker['confidence']):.3f}"


def _liar(config):
    return "Byzantine" if config.membership == "fixed" else "Byzantine at first"


def _run_rows(folder, config, last, summary):
    """Where the run is, how far it came, and who met whom."""
    state = "stopped before the first test"
    if summary is not None:
        state = "finished"
    elif halted := _halted(config, last):
        state = halted
    elif last:
        state = f"stopped after round {last[0]['round']} of {config.rounds}"
    return [
        ("folder", folder),
        ("state", state),
        ("training", f"{config.model} on {config.dataset}, split {config.split}"),
        ("decoder", config.decoder),
        ("attack", f"{config.attack}, {config.num_byzantine} of {config.num_workers}"),
        *([("trusted", _trusted(config))] if config.trusted else []),
    ]


def _halted(config, last):
    """That a run halted, and why; "" if it has not."""
    rounds = [str(line["halted_in"]) for line in last if line.get("halted_in")]
    if not rounds:
        return ""
    confidence, length = stop_rule(config.stop_below)
    return (
        f"halted in round {', '.join(rounds)}: the confidence was below "
        f"{confidence:g} for {length} rounds"
    )


def _trusted(config):
    numbers = range(config.num_workers - config.trusted, config.num_workers)
    own = f", with {config.root_examples} examples each" if config.root_examples else ""
    return f"{', '.join(map(str, numbers))}{own}"


def _changed_rows(config):
    """The fields that differ from their defaults."""
    default = Experiment()
    names = [field.name for field in dataclasses.fields(config)]
    pairs = {name: (getattr(config, name), getattr(default, name)) for name in names}
    return [
        (name, _written(value), _written(usual))
        for name, (value, usual) in pairs.items()
        if value != usual
    ]


def _written(value):
    """A field as the command line takes it."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _result_rows(last, summary):
    """The last accuracies, and what they took."""
    if not last:
        return []
    from signfd_jax.experiments._success import SUCCESS
    from signfd_jax.experiments.report._tables import mean_and_error

    accuracies = {line["seed"]: line["test_accuracy"] for line in last}
    rows = [
        (f"test accuracy, seed {seed}", _number(accuracy, ".4f"))
        for seed, accuracy in accuracies.items()
    ]
    if len(accuracies) > 1:
        value, error = mean_and_error(list(accuracies.values()))
        more = "" if math.isnan(error) else f" ± {error:.4f}"
        rows.append(("test accuracy, mean", _number(value, ".4f") + more))
    rows += [
        (f"attack success rate, seed {line['seed']}", _number(line[SUCCESS], ".4f"))
        for line in last
        if SUCCESS in line
    ]
    rows += [
        (f"confidence, seed {line['seed']}", _number(line["confidence"], ".3f"))
        for line in last
        if "confidence" in line
    ]
    rounds = last[0]["round"]
    rows.append(("rounds", str(rounds)))
    if summary is not None:
        each = summary["seconds_per_round"]
        rows += [
            ("seconds of training", _number(rounds * each, ".1f")),
            ("seconds of compiling", _number(summary["compile_seconds"], ".1f")),
            ("milliseconds a round", _number(1e3 * each, ".1f")),
            ("device", summary["device"]),
        ]
    return [
        *rows,
        ("bits from each worker", _number(last[0]["bits_up"], ".0f")),
        ("bits to each worker", _number(last[0]["bits_down"], ".0f")),
    ]


def _number(value, layout):
    """A number that may not have been measured."""
    if value is None or math.isnan(value):
        return "not measured"
    return format(value, layout)


def _worker_rows(config, last):
    """How each worker was read at the last test; of a large population, the medians."""
    liar = _liar(config)
    rows = []
    for line in last:
        if "weights" in line:
            byzantine = set(line["byzantine"])
            read = [
                (str(worker), liar if worker in byzantine else "honest", weight)
                for worker, weight in enumerate(line["weights"])
            ]
        else:
            groups = {"honest": "honest", "byzantine": liar}
            quantiles = {
                who: line.get(f"weights_quantiles_{group}")
                for group, who in groups.items()
            }
            read = [
                ("the median", who, values[len(values) // 2])
                for who, values in quantiles.items()
                if values
            ]
        rows += [(str(line["seed"]), *names, *_reading(w)) for *names, w in read]
    return rows


def _reading(weight):
    """A weight, and what it does to a vote."""
    if weight is None:
        return "", "not by a weight"
    how = "as sent" if weight > 0 else "negated" if weight < 0 else "not counted"
    return f"{weight:.3g}", how

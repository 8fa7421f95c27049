"""Where a run's records go beside its folder: TensorBoard, W&B, MLflow, CSV, or you.

A `Record` is a line of `metrics.jsonl`, as a dict: one of each test and seed. Its
numbers are the scalars, its lists have a number for each worker. `SINKS` are those that
`signfd run --log` knows; any object with the three methods of `Sink` is one.
"""

import csv
import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from signfd_jax._checks import check_callable
from signfd_jax.experiments.config import Experiment

__all__ = [
    "SINKS",
    "Callback",
    "Csv",
    "MLflow",
    "Record",
    "Sink",
    "TensorBoard",
    "Wandb",
    "entries",
]

Record = Mapping[str, Any]


@runtime_checkable
class Sink(Protocol):
    """What takes the records of a run, as they are made.

    `open(folder, config, before)` is called once before the first record, with the
    run's folder, its `Experiment`, and the records of a run that goes on, which are not
    written again. `write(records)` is called after each test, with a record of each
    seed, and `close()` in the end, also where the run was stopped.
    """

    def open(self, folder: Path, config: Experiment, before: Sequence[Record]) -> None:
        """Begin."""

    def write(self, records: Sequence[Record]) -> None:
        """Take the records of a test."""

    def close(self) -> None:
        """End."""


def entries(record: Record) -> dict[str, float]:
    """The numbers of a record by name; those of worker 3 are called `weights/3`.

    Args:
        record: a line of `metrics.jsonl`.

    Returns:
        Floats by name, without round and seed, and without what was not measured.

    Examples:
        >>> entries({"round": 10, "seed": 0, "test_loss": 0.5, "weights": [1.0, None]})
        {'test_loss': 0.5, 'weights/0': 1.0}
    """
    found = {}
    for name, value in record.items():
        if name in ("round", "seed", "byzantine", "verdicts"):
            continue
        numbers = value if isinstance(value, list) else [value]
        for worker, number in enumerate(numbers):
            if number is not None:
                key = f"{name}/{worker}" if isinstance(value, list) else name
                found[key] = float(number)
    return found


class Callback:
    """Call a function with the records of each test.

    Args:
        function: `function(records)`, a list of a dict for each seed.

    Raises:
        ValueError: it is no function.

    Examples:
        >>> shown = []
        >>> sink = Callback(lambda records: shown.append(records[0]["round"]))
        >>> sink.write([{"round": 10, "seed": 0}])
        >>> shown
        [10]
    """

    def __init__(self, function: Callable[[Sequence[Record]], None]):
        """Keep the function."""
        check_callable("function", function, "(records) -> None")
        self.write = function

    def open(self, folder: Path, config: Experiment, before: Sequence[Record]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Csv:
    """Write `metrics.csv` into the run's folder: a row of each test and seed."""

    def open(self, folder: Path, config: Experiment, before: Sequence[Record]) -> None:
        """Write the rows before, in the place of what is there."""
        del config
        self._file = (folder / "metrics.csv").open("w", newline="")
        self._columns = None
        self.write(before)

    def write(self, records: Sequence[Record]) -> None:
        """Append rows."""
        for record in records:
            row = {"round": record["round"], "seed": record["seed"]}
            if self._columns is None:
                self._columns = [*row, *_columns(record)]
                csv.writer(self._file).writerow(self._columns)
            writer = csv.DictWriter(self._file, self._columns)
            writer.writerow(row | entries(record))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _columns(record):
    """What `entries` may ever have of such a record."""
    filled = {
        name: [0.0] * len(value) if isinstance(value, list) else 0.0
        for name, value in record.items()
    }
    return list(entries(filled))


class TensorBoard:
    """Write event files into `tensorboard/seed-0` and so on of the run's folder.

    `tensorboard --logdir runs` shows them. Needs the package `tensorboardX`.
    """

    package = "tensorboardX"

    def open(self, folder: Path, config: Experiment, before: Sequence[Record]) -> None:
        """Begin a file of each seed, which supersedes later steps of an earlier one."""
        writer = importlib.import_module(self.package).SummaryWriter
        begun = before[-1]["round"] if before else 0
        # Two files of one second would have one name without it.
        after: dict[str, Any] = {"filename_suffix": f".from-{begun}"}
        if before:
            after["purge_step"] = begun + 1
        self._writers = {
            seed: writer(str(folder / "tensorboard" / f"seed-{seed}"), **after)
            for seed in range(config.seed, config.seed + config.seeds)
        }

    def write(self, records: Sequence[Record]) -> None:
        """Write a point of each curve."""
        for record in records:
            writer = self._writers[record["seed"]]
            for name, value in entries(record).items():
                writer.add_scalar(name, value, record["round"])
            writer.flush()

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()


class Wandb:
    """Log to Weights & Biases: one run, called as the folder is.

    Of several seeds the names begin with `seed-0/` and so on. Its own variables, such
    as `WANDB_MODE=offline` and `WANDB_PROJECT`, apply. Needs the package `wandb`.
    """

    package = "wandb"

    def open(self, folder: Path, config: Experiment, before: Sequence[Record]) -> None:
        """Begin the run, or go on with it."""
        del before  # the service knows what it has
        self._several = config.seeds > 1
        self._run = importlib.import_module(self.package).init(
            id=folder.name,
            name=folder.name,
            dir=str(folder),
            config=dataclasses.asdict(config),
            resume="allow",
        )

    def write(self, records: Sequence[Record]) -> None:
        """Log one step, of all seeds."""
        self._run.log(_of_seeds(records, self._several), step=records[0]["round"])

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class MLflow:
    """Log to MLflow: one run, called as the folder is; `mlflow-run.txt` has its id.

    Of several seeds the names begin with `seed-0/` and so on. Its own variables, such
    as `MLFLOW_TRACKING_URI`, apply. Needs the package `mlflow` or `mlflow-skinny`.
    """

    package = "mlflow"

    def open(self, folder: Path, config: Experiment, before: Sequence[Record]) -> None:
        """Begin the run, or go on with it after the last step that it has."""
        self._several = config.seeds > 1
        self._client = importlib.import_module(self.package).MlflowClient()
        path = folder / "mlflow-run.txt"
        self._last = 0
        if before and path.exists():
            self._id = path.read_text().strip()
            name = next(iter(_of_seeds(before[-1:], self._several)))
            history = self._client.get_metric_history(self._id, name)
            self._last = max((point.step for point in history), default=0)
            return
        run = self._client.create_run("0", run_name=folder.name)
        self._id = run.info.run_id
        path.write_text(self._id + "\n")
        for name, value in dataclasses.asdict(config).items():
            self._client.log_param(self._id, name, value)

    def write(self, records: Sequence[Record]) -> None:
        """Log one step, of all seeds."""
        step = records[0]["round"]
        if step > self._last:
            for name, value in _of_seeds(records, self._several).items():
                self._client.log_metric(self._id, name, value, step=step)

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self._id)


def _of_seeds(records, several):
    """The numbers of all seeds, by names that tell them apart."""
    return {
        (f"seed-{record['seed']}/" if several else "") + name: value
        for record in records
        for name, value in entries(record).items()
    }


SINKS: dict[str, Callable[[], Sink]] = {
    "csv": Csv,
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": MLflow,
}
"""The sinks that have a name."""

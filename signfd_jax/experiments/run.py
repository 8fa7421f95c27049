"""One experiment, run into its folder.

Shapes: `S` seeds, `M` workers.
"""

import contextlib
import dataclasses
import json
import math
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from signfd_jax import data, theory
from signfd_jax._checks import check_flag, check_kind, check_size
from signfd_jax.experiments import _plugins as plugins
from signfd_jax.experiments import _verdicts
from signfd_jax.experiments._choices import OWN
from signfd_jax.experiments._engine import prepare as training
from signfd_jax.experiments._engine import program_sharded as sharded
from signfd_jax.experiments._engine.settings import check_settings
from signfd_jax.experiments._processes import console
from signfd_jax.experiments._processes import signals as interrupts
from signfd_jax.experiments._sinks import opened
from signfd_jax.experiments._storage import checkpoints, files
from signfd_jax.experiments._storage import resume as resuming
from signfd_jax.experiments._storage import run_folder as records
from signfd_jax.experiments._storage.checkpoints import Checkpoint
from signfd_jax.experiments._storage.params import digest, save_params
from signfd_jax.experiments._success import SUCCESS, scores
from signfd_jax.experiments._verdicts import Halted
from signfd_jax.experiments.config import Experiment, to_json
from signfd_jax.experiments.registry import load_dataset
from signfd_jax.experiments.report._tables import mean
from signfd_jax.experiments.report.communication import bits_per_round
from signfd_jax.experiments.sinks import Sink

__all__ = ["Halted", "run_experiment"]

_LISTED = 1000  # workers: of more, records hold quantiles instead of lists
_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


@jax.transfer_guard("allow")  # What a run moves to the device, it means to.
def run_experiment(
    config: Experiment,
    output_dir: str | Path = "runs",
    *,
    data_dir: str | Path | None = None,
    force: bool = False,
    progress: bool = True,
    checkpoint_every: int | None = None,
    keep_checkpoints: int = 2,
    distributed: bool = False,
    sinks: Sequence[Sink] = (),
    dataset: data.Dataset | None = None,
    model: Any = None,
) -> tuple[Path, dict[str, Any]]:
    """Run an experiment into its folder, unless it has been; go on if it was stopped.

    A run that was stopped at any moment, and started again on the same device, leaves
    the same metrics and parameters, bit for bit, as one that was not. Ctrl-C and
    SIGTERM stop it at the next test, where it writes a checkpoint.

    It says on stderr where it goes on, or that there is no checkpoint. What these cost:
    `signfd run digits --decoder federated_defense --checkpoint-every 100` (300 rounds)
    takes 3 % more processor time than without (11.9 s; 11.5 s), and with
    `--checkpoint-every 20` 9 % (12.5 s).

    Args:
        config: the experiment.
        output_dir: the folder of all runs.
        data_dir: the folder of the data sets; None: see `data.load`.
        force: run again what is finished, and from the start what was stopped.
        progress: show a progress bar on stderr.
        checkpoint_every: rounds from one checkpoint to the next, counted at the tests;
            None: one at the first test, and then one every 30 seconds, but no more than
            a twentieth of the time goes into them.
        keep_checkpoints: number of checkpoints that stay, the newest.
        distributed: share the workers out to all devices of all processes that have
            joined (`launch.join`), which must see the same `output_dir`.
        sinks: where the records go besides, such as `sinks.TensorBoard()`, or
            `sinks.Callback(function)`, which is called after each test.
        dataset: a data set of your own, such as `data.from_arrays(inputs, labels)`; in
            the configuration its name takes the place of what is there.
        model: a flax module of your own, or one like it: `init(key, inputs)`, and
            `apply(params, inputs)` gives logits float `[B, num_classes]`; likewise.

    Returns:
        The run's folder, and its summary. `summary["finished_before"]` is not in the
        file: it tells whether the run had been finished already.

    Raises:
        ValueError: the configuration or the data are not as they should be, another
            process is at work in the folder, or the run was begun under other settings
            of JAX.
        OSError: the folder cannot be written.
        Halted: it halted, as `stop_below` says, at the test after that round, or where
            the same run is begun again. The records and a checkpoint are kept.
        KeyboardInterrupt: it was stopped; what was done is kept. By SIGTERM, it is an
            `interrupts.Terminated`.

    Examples:
        >>> config = Experiment(rounds=2, eval_every=1, batch_size=4)
        >>> folder, summary = run_experiment(
        ...     config, getfixture("tmp_path"), progress=False
        ... )
        >>> summary["rounds"], sorted(path.suffix for path in folder.iterdir())
        (2, ['', '.csv', '.json', '.json', '.json', '.jsonl', '.npz', '.npz'])
    """
    config = _of_own(config, dataset, model)
    training.check(config, dataset, model)
    check_flag("force", force)
    check_flag("distributed", distributed)
    if checkpoint_every is not None:
        check_size("checkpoint_every", checkpoint_every)
    check_size("keep_checkpoints", keep_checkpoints)
    for sink in sinks:
        check_kind("each of sinks", sink, ("open", "write", "close"), "sinks.Csv()")
    folder = records.run_folder(output_dir, config)
    summary_path = folder / "summary.json"
    same = config.dataset in data.DATASETS and config.dataset not in data.VARYING
    if dataset is None and not same:
        dataset = load_dataset(config.dataset)
    own = None if dataset is None else digest(_arrays(dataset))
    if not force:
        _check_data(folder, own)
    if summary_path.exists() and not force:
        return folder, files.read_json(summary_path) | {"finished_before": True}
    if not force:
        check_settings(folder)
    if distributed:
        sharded.check_sharded(config, jax.device_count())
    first = jax.process_index() == 0
    if first:
        plugins.warn_of_broken()
    records.make_folder(folder.parent)
    if dataset is None:
        dataset = load_dataset(config.dataset, data_dir)
    split = training.split_examples(config, dataset)
    prepare = sharded.prepare_sharded if distributed else training.prepare
    records.make_folder(folder)
    try:
        lock = records.locked(folder, report=_report)
        with lock if first else contextlib.nullcontext():
            if first and progress:
                _report("compiling ...")
            prepared = prepare(config, dataset, split, model)
            if first:
                _set_up(folder, config, force, own)
            start = Checkpoint(prepared.start(), 0, 0.0)
            begin = resuming.resume(folder, config, start, report=_report)
            del start
            writer = checkpoints.writer(
                folder, config, keep=keep_checkpoints, report=_report
            )
            told = _opened(sinks if first else (), folder, config)
            with writer as save, resuming.held_back_signals() as stopped, told as tell:
                offer = resuming.schedule(
                    save,
                    every=checkpoint_every,
                    rounds=begin.rounds,
                    last=config.rounds,
                    agree=resuming.agreed,
                )
                bar = progress and first
                end = _train(folder, config, prepared, begin, offer, stopped, bar, tell)
            if first:
                summary = _summary(folder, config, prepared, end)
                text = json.dumps(records.plain(summary), indent=2) + "\n"
                records.write_atomically(summary_path, text)
            resuming.agreed(True)  # nobody reads it before it is written
    finally:
        if first:
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()
    return folder, files.read_json(summary_path) | {"finished_before": False}


def _report(line):
    tqdm.write(f"signfd: {line}", file=console.patient(sys.stderr))


def _of_own(config, dataset, model):
    """The configuration, with the names of a data set and a model that are given."""
    names = {}
    if dataset is not None:
        if not isinstance(dataset, data.Dataset):
            raise ValueError(
                "dataset must be a data.Dataset, such as data.from_arrays gives, but "
                f"is {type(dataset).__name__}"
            )
        names["dataset"] = dataset.name
    if model is not None:
        kind = type(model)
        fields = getattr(model, "__dataclass_fields__", {})
        written = {
            name: getattr(value, "__name__", value)
            for name in fields
            if name not in ("parent", "name")
            and (value := getattr(model, name)) != fields[name].default
        }
        options = ",".join(f"{name}={value}" for name, value in written.items())
        names["model"] = f"{OWN}:{kind.__module__}.{kind.__qualname__}({options})"
    return dataclasses.replace(config, **names) if names else config


def _arrays(dataset):
    """What of a data set changes a run."""
    names = ["train_inputs", "train_labels", "test_inputs", "test_labels"]
    names += ["writers"] * (dataset.writers is not None)
    return {name: np.asarray(getattr(dataset, name)) for name in names}


def _check_data(folder, own):
    """Refuse to go on in a folder that was begun with other data of the same name."""
    path = folder / "environment.json"
    before = files.read_json(path).get("data_sha256") if path.is_file() else own
    if before != own:
        raise ValueError(
            f"{folder} was begun with other data of the same name; give the data "
            "another name, choose another --output-dir, or begin again with --force"
        )


def _set_up(folder, config, force, own):
    if force:
        written = ("summary.json", "params.npz", "metrics.jsonl")
        for name in (*written, "workers.csv", "correlations.npz"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    environment = records.environment() | ({"data_sha256": own} if own else {})
    environment = json.dumps(environment, indent=2) + "\n"
    records.write_atomically(folder / "environment.json", environment)
    records.write_atomically(folder / "config.json", to_json(config))


def _opened(sinks, folder, config):
    """The sinks, told of what was recorded before."""
    before = records.read_lines(folder / "metrics.jsonl") if sinks else []
    return opened(sinks, folder, config, before, report=_report)


def _train(folder, config, prepared, begin, offer, stopped, progress, tell):
    """Train from a checkpoint to the end, which is returned as another one."""
    state, rounds, seconds = begin
    up, down = bits_per_round(config, prepared.num_coordinates, prepared.shapes)
    total, first = config.rounds, jax.process_index() == 0
    _verdicts.check_halted(config, state)
    listed = config.num_workers <= _LISTED
    told = _verdicts.Told(config, state, listed)
    with console.bar(total, initial=rounds, shown=progress) as bar:
        console.show(bar, config.name)
        while rounds < total:
            begun = time.perf_counter()
            state, rounds, metrics = prepared.advance(state, rounds)
            seconds += time.perf_counter() - begun
            said = _verdicts.said_by(state)
            lines = _lines(config, rounds, metrics, (up * rounds, down * rounds))
            lines = _with_verdicts(lines, said, _verdicts.halted_in(state))
            halted = any(line.get("halted_in") for line in lines)
            if first:
                records.append_lines(folder / "metrics.jsonl", lines)
                tell([records.plain(line) for line in lines])
                for line in told.tell(said):
                    _report(line)
            stop = resuming.agreed(stopped[0] if stopped else 0)
            if first and (listed or stop or halted or rounds == total):
                _verdicts.write(folder, config, said, listed)
            bar.update(rounds - bar.n)
            console.show(bar, config.name, scores(metrics))
            offer(Checkpoint(state, rounds, seconds), bool(stop) or halted)
            if halted:
                _verdicts.check_halted(config, state)
            if stop and rounds < total:
                raise interrupts.stopped_by(stop)
    return Checkpoint(state, rounds, seconds)


def _with_verdicts(lines, said, halted):
    """The records, with what the decoder says of the workers, and who halted."""
    listed = all("byzantine" in line for line in lines)
    for s, found in enumerate(_verdicts.record(said, listed)):
        lines[s] |= found
    for s, number in enumerate(halted):
        lines[s]["halted_in"] = number
    return lines


def _lines(config, rounds, metrics, bits):
    """One record a seed."""
    lines = []
    for s in range(config.seeds):
        values = {
            name: array[s]
            for name, array in metrics._asdict().items()
            if array is not None and not name.endswith("_rounds")
        }
        seed = config.seed + s
        mask = training.byzantine_mask(config, seed)
        head: dict[str, Any] = {"round": rounds, "seed": seed}
        # What the theory makes of the estimates, to hold beside `sign_error`.
        crossover, error_bound = metrics.crossover[s], math.nan
        if not np.isnan(crossover).any():  # the server estimates them
            bounds = theory.bhattacharyya_bounds(jnp.asarray(crossover.clip(0, 1)))
            error_bound = float(bounds[1])
        if config.num_workers <= _LISTED:
            head["byzantine"] = mask.nonzero()[0].tolist()
        else:
            for name in ("weights", "crossover"):
                head |= _quantiles(name, values.pop(name), mask)
        values = {name: array.tolist() for name, array in values.items()}
        values["error_bound"] = error_bound
        lines.append(head | values | {"bits_up": bits[0], "bits_down": bits[1]})
    return lines


def _quantiles(name, values, byzantine):
    """Of the honest and of the Byzantine workers, instead of a number for each."""
    groups = {"honest": values[~byzantine], "byzantine": values[byzantine]}
    return {
        f"{name}_quantiles_{group}": np.quantile(some, _QUANTILES).tolist()
        for group, some in groups.items()
        if some.size
    }


def _summary(folder, config, prepared, end):
    """What `summary.json` holds, beside the parameters, which are written first."""
    last = records.read_lines(folder / "metrics.jsonl")[-config.seeds :]
    accuracies = [line["test_accuracy"] for line in last]
    losses = [line["test_loss"] for line in last]
    success = [line[SUCCESS] for line in last if SUCCESS in line]
    rates = {SUCCESS: mean(success), f"{SUCCESS}_by_seed": success}
    return {
        "test_accuracy": mean(accuracies),
        "test_accuracy_by_seed": accuracies,
        **(rates if success else {}),
        # A loss that is null was measured: it is beyond what JSON can say.
        "test_loss": math.nan if None in losses else mean(losses),
        "rounds": config.rounds,
        "compile_seconds": prepared.compile_seconds,
        "seconds_per_round": end.seconds / config.rounds,
        "num_coordinates": prepared.num_coordinates,
        "bits_per_worker_up": last[-1]["bits_up"],
        "bits_per_worker_down": last[-1]["bits_down"],
        "seed": config.seed,
        "seeds": config.seeds,
        "params_sha256": save_params(folder, end.state.params),
        **records.environment(),
    }

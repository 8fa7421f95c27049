"""One experiment, run into its folder.

Shapes: `S` seeds, `M` workers.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from signfd_jax import data
from signfd_jax.experiments import records, training
from signfd_jax.experiments.config import Experiment, to_json
from signfd_jax.experiments.ledger import bits_per_round

__all__ = ["run_experiment"]


def run_experiment(
    config: Experiment,
    output_dir: str | Path = "runs",
    *,
    data_dir: str | Path | None = None,
    force: bool = False,
    progress: bool = True,
) -> tuple[Path, dict[str, Any]]:
    """Run an experiment into its folder, unless it has been.

    Args:
        config: the experiment.
        output_dir: the folder of all runs.
        data_dir: the folder of the data sets; None: see `data.load`.
        force: run again what is finished.
        progress: show a progress bar on stderr.

    Returns:
        The run's folder, and its summary. `summary["finished_before"]` is not in the
        file: it tells whether the run had been finished already.

    Raises:
        ValueError: the configuration or the data are not as they should be.
        OSError: the folder cannot be written.

    Examples:
        >>> config = Experiment(rounds=2, eval_every=1, batch_size=4)
        >>> folder, summary = run_experiment(
        ...     config, getfixture("tmp_path"), progress=False
        ... )
        >>> summary["rounds"], sorted(path.name for path in folder.iterdir())
        (2, ['config.json', 'metrics.jsonl', 'summary.json'])
    """
    training.check(config)
    folder = records.run_folder(output_dir, config)
    summary_path = folder / "summary.json"
    if summary_path.exists() and not force:
        return folder, json.loads(summary_path.read_text()) | {"finished_before": True}
    records.make_folder(output_dir)
    dataset = data.load(config.dataset, data_dir=data_dir)
    prepared = training.prepare(config, dataset)
    records.make_folder(folder)
    summary_path.unlink(missing_ok=True)
    records.write_atomically(folder / "config.json", to_json(config))
    metrics_path = folder / "metrics.jsonl"
    records.write_atomically(metrics_path, "")

    up, down = bits_per_round(config, prepared.num_coordinates)
    seconds = []
    lines: list[dict[str, Any]] = []
    with tqdm(total=config.rounds, unit="round", disable=not progress) as bar:
        bar.set_description(folder.name)
        for rounds, metrics, took in prepared.tests:
            lines = _lines(config, rounds, metrics, (up * rounds, down * rounds))
            records.append_lines(metrics_path, lines)
            seconds.append(took)
            accuracy = statistics.fmean(line["test_accuracy"] for line in lines)
            bar.set_postfix_str(f"test accuracy {accuracy:.3f}")
            bar.update(rounds - bar.n)
    summary = _summary(config, prepared, lines, sum(seconds))
    records.write_atomically(summary_path, json.dumps(summary, indent=2) + "\n")
    return folder, summary | {"finished_before": False}


def _lines(config, rounds, metrics, bits):
    """One record a seed."""
    lines = []
    for s in range(config.seeds):
        values = {name: array[s].tolist() for name, array in metrics._asdict().items()}
        seed = config.seed + s
        lies = training.byzantine_mask(config, seed).nonzero()[0].tolist()
        head = {"round": rounds, "seed": seed, "byzantine": lies}
        lines.append(head | values | {"bits_up": bits[0], "bits_down": bits[1]})
    return lines


def _summary(config, prepared, lines, seconds):
    """What `summary.json` holds; `lines` are the records of the last test."""
    accuracies = [line["test_accuracy"] for line in lines]
    return {
        "test_accuracy": statistics.fmean(accuracies),
        "test_accuracy_by_seed": accuracies,
        "test_loss": statistics.fmean(line["test_loss"] for line in lines),
        "rounds": config.rounds,
        "compile_seconds": prepared.compile_seconds,
        "seconds_per_round": seconds / config.rounds,
        "num_coordinates": prepared.num_coordinates,
        "bits_per_worker_up": lines[-1]["bits_up"],
        "bits_per_worker_down": lines[-1]["bits_down"],
        "seed": config.seed,
        "seeds": config.seeds,
        **records.environment(),
    }

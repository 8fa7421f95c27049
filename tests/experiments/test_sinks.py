"""Sinks: what they wrote, read back by the libraries that it is for."""

import csv
import json
import struct

import numpy as np
import pytest

from signfd_jax.experiments import Experiment, load, run_experiment, sinks
from signfd_jax.experiments._sinks import named
from signfd_jax.experiments._storage.run_folder import read_lines

CONFIG = Experiment(rounds=6, eval_every=2, batch_size=4, num_workers=5, seeds=2)
NAMES = ("test_accuracy", "test_loss", "weights/0", "weights/4", "crossover/2")


def run(folder, *of, stop=None, config=CONFIG):
    """Run with these sinks, and stop after that round; its folder and records."""

    def stopped(records):
        if records[0]["round"] == stop:
            raise KeyboardInterrupt

    callback = [] if stop is None else [sinks.Callback(stopped)]
    arguments = {"progress": False, "checkpoint_every": 2}
    if stop is not None:
        with pytest.raises(KeyboardInterrupt):
            run_experiment(config, folder, sinks=[*of, *callback], **arguments)
        return None
    where, _ = run_experiment(config, folder, sinks=of, **arguments)
    return where, read_lines(where / "metrics.jsonl")


def expected(records, seed, name):
    """The points of one curve, as the records have them."""
    return [
        (record["round"], sinks.entries(record)[name])
        for record in records
        if record["seed"] == seed
    ]


def check(curves, records, names=NAMES):
    """Each curve, `curves(seed, name) -> [(round, value)]`, has its points once."""
    for seed in (0, 1):
        for name in names:
            found, wanted = curves(seed, name), expected(records, seed, name)
            assert len(wanted) == 3
            np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_entries_are_the_numbers_of_a_record():
    record = {"round": 2, "seed": 0, "byzantine": [1], "test_loss": None}
    record |= {"weights": [1.0, None, -1.0], "bits_up": 7}
    wanted = {"weights/0": 1.0, "weights/2": -1.0, "bits_up": 7.0}
    assert sinks.entries(record) == wanted


@pytest.mark.slow
def test_csv_is_whole_after_a_stop(tmp_path):
    whole, records = run(tmp_path / "whole", sinks.Csv())
    run(tmp_path / "stopped", sinks.Csv(), stop=4)
    again, _ = run(tmp_path / "stopped", sinks.Csv())
    text = (again / "metrics.csv").read_text()
    assert text == (whole / "metrics.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    check(
        lambda seed, name: [
            (int(row["round"]), float(row[name]))
            for row in rows
            if row["seed"] == str(seed)
        ],
        records,
    )


def test_what_was_not_measured_is_empty_in_csv(tmp_path):
    config = Experiment(rounds=2, eval_every=2, batch_size=4, decoder="krum")
    folder, _ = run(tmp_path, sinks.Csv(), config=config)
    (row,) = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    assert row["weights/0"] == row["margin"] == "" != row["test_loss"]


def test_tensorboard_has_each_step_once(tmp_path):
    pytest.importorskip("tensorboardX")
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    run(tmp_path, sinks.TensorBoard(), stop=4)
    folder, records = run(tmp_path, sinks.TensorBoard())
    read = []
    for seed in (0, 1):
        read.append(
            events.EventAccumulator(str(folder / "tensorboard" / f"seed-{seed}"))
        )
        read[-1].Reload()
    check(
        lambda seed, name: [(p.step, p.value) for p in read[seed].Scalars(name)],
        records,
    )


def blocks(path):
    """The records of a file of W&B: a log of LevelDB, whose header has 7 bytes."""
    content, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_wandb_has_what_was_logged_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    for name, value in (("MODE", "offline"), ("SILENT", "true")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    folder, records = run(tmp_path, sinks.Wandb())
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    logged = []
    for content in blocks(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        if record.HasField("history"):
            items = record.history.item
            keys = [item.key or "/".join(item.nested_key) for item in items]
            values = [json.loads(item.value_json) for item in items]
            logged.append(dict(zip(keys, values, strict=True)))
    check(
        lambda seed, name: [
            (row["_step"], row[f"seed-{seed}/{name}"]) for row in logged
        ],
        records,
    )


def test_mlflow_has_each_step_once(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    run(tmp_path / "runs", sinks.MLflow(), stop=4)
    folder, records = run(tmp_path / "runs", sinks.MLflow())
    client = mlflow.MlflowClient()
    (found,) = client.search_runs(["0"])
    assert found.info.run_id == (folder / "mlflow-run.txt").read_text().strip()
    assert (found.info.run_name, found.info.status) == (folder.name, "FINISHED")
    assert found.data.params["num_workers"] == "5"
    check(
        lambda seed, name: [
            (point.step, point.value)
            for point in client.get_metric_history(
                found.info.run_id, f"seed-{seed}/{name}"
            )
        ],
        records,
    )


def test_a_sink_that_fails_is_left_out(tmp_path, capsys):
    seen = []

    def fail(records):
        seen.append(records[0]["round"])
        raise OSError("the disk is full")

    others = []
    broken, whole = sinks.Callback(fail), sinks.Callback(others.append)
    _, records = run(tmp_path, broken, whole)
    assert (seen, len(others), len(records)) == ([2], 3, 6)
    assert others[0] == records[:2]
    assert capsys.readouterr().err.count("Callback is left out from here on") == 1


def test_a_sink_that_cannot_be_opened_ends_the_run(tmp_path):
    sink = sinks.Csv()
    sink.open = lambda *_: (_ for _ in ()).throw(OSError("no room"))
    with pytest.raises(ValueError, match=r"Csv cannot be opened .*no room"):
        run(tmp_path, sink)


def test_names_of_sinks(monkeypatch):
    assert [type(s) for s in named(["csv", "csv"])] == [sinks.Csv]
    with pytest.raises(ValueError, match="unknown sink 'cvs'"):
        named(["cvs"])
    monkeypatch.setattr(sinks.TensorBoard, "package", "no_such_package")
    with pytest.raises(ValueError, match="needs the package no_such_package"):
        named(["tensorboard"])


def test_records_are_a_data_frame(tmp_path):
    pytest.importorskip("pandas")
    folder, records = run(tmp_path)
    frame = load(folder)
    assert len(frame) == 6
    for name in ("round", "seed", "test_accuracy", "weights"):
        assert frame[name].tolist() == [record[name] for record in records]
    assert set(frame["run"]) == {folder.name}
    assert frame.equals(load(tmp_path))
    with pytest.raises(ValueError, match="holds no run"):
        load(tmp_path / "nowhere")


def test_a_grid_is_a_data_frame(tmp_path):
    pytest.importorskip("pandas")
    from signfd_jax.experiments import Grid, run_grid
    from signfd_jax.experiments.config import to_json
    from signfd_jax.experiments.grid import cells

    grid = Grid(base=CONFIG, decoders=("majority_vote",), num_byzantine=(0, 2))
    results = run_grid(cells(grid), tmp_path, progress=False)
    (tmp_path / "config.json").write_text(to_json(grid))
    frame = load(tmp_path)
    found = frame.groupby("num_byzantine")["test_accuracy"].apply(list).to_dict()
    assert found == {
        cell["config"]["num_byzantine"]: cell["test_accuracy"] for cell in results
    }
    assert frame["seed"].tolist() == [0, 1, 0, 1]

"""Real processes that train together: equal to one, killed, resumed by fewer."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from ports import free_port

from signfd_jax import data
from signfd_jax.cli import main
from signfd_jax.data import batches, partition
from signfd_jax.experiments import Experiment, registry
from signfd_jax.experiments._engine.prepare import prepare
from signfd_jax.experiments._engine.program_sharded import (
    check_sharded,
    prepare_sharded,
    share_out,
)
from signfd_jax.experiments._storage.params import digest
from signfd_jax.experiments._storage.run_folder import read_lines
from signfd_jax.experiments.run import run_experiment

# With `--dist loadgroup` one after the other: two jobs at once would share the cores.
pytestmark = pytest.mark.xdist_group("jobs of many processes")

# Eight devices in one process (conftest.py), two workers on each.
CONFIG = Experiment(
    name="shared",
    model="softmax_regression",
    decoder="majority_vote",
    wire="one_bit",
    num_workers=16,
    num_byzantine=5,
    batch_size=4,
    rounds=10,
    eval_every=4,
)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def trained(prepared):
    state, rounds, metrics = prepared.start(), 0, []
    while rounds < prepared.rounds:
        state, rounds, of_test = prepared.advance(state, rounds)
        metrics.append(of_test)
    return state, metrics


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        # Several options in each, because each compiles two programs.
        {"attack": "random_vote", "num_workers": 8},
        {
            "decoder": "federated_defense",
            "seeds": 2,
            "attack": "gaussian",
            "worker": "momentum",
            "membership": "drop_out",
        },
        {
            "decoder": "correlation_defense",
            "attack": "label_flip",
            "split": "dirichlet:0.3",
            "worker": "late:delay=2,drawn=true",
            "membership": "churn:3",
        },
        {
            "attack": "distributed_trigger",
            "learning_rate": 0.03,
            "optimizer": "sgd:momentum=0.9",
            "schedule": "cosine:warmup=2",
        },
        {
            "worker": "local_steps:2",
            "attack": "inside:stochastic_sign_flip:0.8",
        },
    ],
)
def test_devices_train_as_one_process_does(fields, digits):
    config = dataclasses.replace(CONFIG, **fields)
    one, one_metrics = trained(prepare(config, digits))
    many, many_metrics = trained(prepare_sharded(config, digits))
    assert digest(many.params) == digest(one.params)
    for ours, theirs in zip(many_metrics, one_metrics, strict=True):
        np.testing.assert_array_equal(ours.test_accuracy, theirs.test_accuracy)
        rates = ours.attack_success_rate, theirs.attack_success_rate
        np.testing.assert_array_equal(*rates)
        assert (rates[0] is None) == ("trigger" not in config.attack)
        # Means over coordinates, with the padding.
        np.testing.assert_allclose(ours.weights, theirs.weights, rtol=1e-3)
        np.testing.assert_allclose(ours.train_loss, theirs.train_loss, rtol=1e-6)
        assert np.isnan(ours.sign_error).all()


@pytest.mark.parametrize("augment", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_rows_of_some_workers_draw_what_they_would_among_all(augment, digits):
    split = partition.dirichlet(digits.train_labels, 6, 0.3)
    rows = split._replace(indices=split.indices[2:5])
    everyone = batches.worker_batches(digits, split, 4, augment=augment)
    some = batches.worker_batches(digits, rows, 4, augment=augment, first_worker=2)
    key = jax.random.key(0)
    for ours, theirs in zip(some(key), everyone(key), strict=True):
        np.testing.assert_array_equal(ours, theirs[2:5])


def test_a_device_has_the_examples_of_its_workers(digits):
    split = partition.dirichlet(digits.train_labels, 16, 0.3)
    mesh = jax.make_mesh((8,), ("workers",))
    shards = share_out(digits, split, mesh)
    assert shards.inputs.addressable_shards[0].data.shape[0] == 1
    assert shards.inputs.shape[1] < len(digits.train_labels)
    inputs, labels, indices, *_ = jax.device_get(shards)
    for worker in range(16):
        device, size = worker // 2, split.sizes[worker]
        here = indices[worker, :size]
        for ours, theirs in (
            (inputs, digits.train_inputs),
            (labels, digits.train_labels),
        ):
            np.testing.assert_array_equal(
                ours[device, here], theirs[split.indices[worker, :size]]
            )


@pytest.mark.parametrize(
    ("fields", "devices", "message"),
    [
        ({"wire": "ternary"}, 4, "add --wire one_bit"),
        ({"num_workers": 15}, 4, "take 12 or 16 workers"),
        ({"num_workers": 3}, 4, "take 4 or 4 workers"),
        ({"attack": "mimic"}, 4, "mimic needs the gradients of other workers"),
    ],
)
def test_what_cannot_be_shared_out(fields, devices, message):
    fields = {"num_byzantine": 1, **fields}
    with pytest.raises(ValueError, match=message):
        check_sharded(dataclasses.replace(CONFIG, **fields), devices)


def test_every_attack_either_runs_or_is_refused():
    runs = 0
    for attack in registry.ATTACKS:
        try:
            check_sharded(dataclasses.replace(CONFIG, attack=attack), 8)
            runs += 1
        except ValueError as error:
            assert "needs the gradients of other workers" in str(error)
    assert runs >= 8


@pytest.mark.slow
def test_run_on_devices_resumes_to_the_same_bits(tmp_path, monkeypatch):
    from signfd_jax.experiments._storage import run_folder as records

    options = {"progress": False, "distributed": True, "checkpoint_every": 4}
    config = dataclasses.replace(CONFIG, decoder="federated_defense", seeds=2)
    whole, summary = run_experiment(config, tmp_path / "whole", **options)
    append = records.append_lines

    def killed(path, lines):
        append(path, lines)
        if lines[0]["round"] == 8:
            raise RuntimeError("killed")

    monkeypatch.setattr(records, "append_lines", killed)
    with pytest.raises(RuntimeError, match="killed"):
        run_experiment(config, tmp_path, **options)
    monkeypatch.undo()
    folder, again = run_experiment(config, tmp_path, **options)
    assert again["params_sha256"] == summary["params_sha256"]
    name = "metrics.jsonl"
    assert (folder / name).read_bytes() == (whole / name).read_bytes()


# ------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--processes 0", "processes must be >= 1, but is 0"),
        ("--distributed --heartbeat 0", "heartbeat must be >= 1 second"),
    ],
)
def test_bad_input(arguments, message, capsys, tmp_path):
    command = ["run", *arguments.split(), "--output-dir", str(tmp_path)]
    assert main(command) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------- real processes

SIGNFD = [sys.executable, "-c", "import sys; from signfd_jax.cli import main"]
SIGNFD[-1] += "; sys.exit(main())"
FLAGS = """run --name shared --wire one_bit --num-workers 16 --num-byzantine 5
    --rounds 100 --eval-every 10 --checkpoint-every 20 --heartbeat 10 --quiet""".split()


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """What a process of one test has compiled, those of the next need not."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("compiled")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        yield


# A job that is ended long before its last round, with a program that is small.
ENDLESS = ("--processes", 2, "--rounds", 1_000_000, "--decoder", "majority_vote")


def start(folder, *arguments, control_c=signal.SIG_DFL):
    before = signal.signal(signal.SIGINT, control_c)  # what the process inherits
    # Bits are compared as users have them. JAX keeps the programs of process 0 alone:
    # where none are compared, the others compile theirs quickly.
    flags = {} if arguments[: len(ENDLESS)] == ENDLESS else {"XLA_FLAGS": ""}
    try:
        return subprocess.Popen(
            [*SIGNFD, *FLAGS, "--output-dir", str(folder), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | flags,
        )
    finally:
        signal.signal(signal.SIGINT, before)


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def summary_of(folder):
    (path,) = folder.glob("shared-*/summary.json")
    return json.loads(path.read_text())


def children(process):
    """Process ids of what the launcher started, in their order."""
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        return [int(number) for number in file.read().split()]


def until(process, condition):
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def checkpoints(folder):
    names = [path.name for path in folder.glob("shared-*/checkpoints/*")]
    return [int(name) for name in names if name.isdecimal()]


def begins(err):
    """Whether a line says that there is no checkpoint yet; others say who lies."""
    first = r"signfd: no checkpoint in .*: starting from round 0\n"
    return re.fullmatch(first + r"(signfd: worker \d+ has been .*\n)*", err)


def has_checkpoint(folder, least):
    return any(rounds >= least for rounds in checkpoints(folder))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run in one process."""
    folder = tmp_path_factory.mktemp("one")
    with start(folder) as process:
        code, _, err = finish(process)
    assert code == 0
    assert begins(err)
    return summary_of(folder)


@pytest.mark.slow
def test_four_processes_train_as_one_does(tmp_path, undisturbed):
    """Two do so below: a job goes on with two, and a cluster starts two."""
    with start(tmp_path, "--processes", 4) as process:
        code, out, err = finish(process)
    assert code == 0
    assert begins(err)
    assert out.count("test accuracy") == 1
    summary = summary_of(tmp_path)
    assert summary["devices"] == 4
    assert summary["params_sha256"] == undisturbed["params_sha256"]
    assert summary["test_accuracy"] == undisturbed["test_accuracy"] > 0.9


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs /proc")
def test_job_of_four_that_is_killed_goes_on_with_two(tmp_path, undisturbed):
    with start(tmp_path, "--processes", 4) as process:
        until(process, lambda: has_checkpoint(tmp_path, 20))
        os.kill(children(process)[2], signal.SIGKILL)
        begun = time.monotonic()
        code, _, err = finish(process)
        took = time.monotonic() - begun
    assert code == 1
    *begun, ended = err.splitlines(keepends=True)
    assert begins("".join(begun))
    assert ended.startswith(
        "signfd: process 2 of 4 was ended by SIGKILL, which ends the job"
    )
    assert took < 60  # not the runtime's own 100 seconds, nor for ever
    assert not list(tmp_path.glob("shared-*/summary.json"))

    with start(tmp_path, "--processes", 2) as process:
        code, _, err = finish(process)
    assert code == 0
    assert re.fullmatch(
        r"signfd: checkpoint (\d+) was written elsewhere \(devices 4\): .*\n"
        r"signfd: resuming from round \1 \(checkpoint of \d\d:\d\d\)\n",
        err,
    )
    summary = summary_of(tmp_path)
    assert abs(summary["test_accuracy"] - undisturbed["test_accuracy"]) <= 0.01
    assert summary["params_sha256"] == undisturbed["params_sha256"]
    (metrics,) = tmp_path.glob("shared-*/metrics.jsonl")
    rounds = [record["round"] for record in read_lines(metrics)]
    assert rounds == list(range(10, 101, 10))


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs /proc")
def test_silent_process_and_control_c(tmp_path):
    with start(tmp_path / "silent", *ENDLESS) as process:
        until(process, lambda: has_checkpoint(tmp_path / "silent", 20))
        os.kill(children(process)[1], signal.SIGSTOP)
        code, _, err = finish(process)
    assert code == 1
    assert "\nsignfd: process " in err
    assert err.count("\n") == 2

    with start(tmp_path / "stopped", *ENDLESS) as process:
        until(process, lambda: has_checkpoint(tmp_path / "stopped", 20))
        process.send_signal(signal.SIGINT)
        code, _, err = finish(process)
    assert (code, err.count("\n")) == (130, 2)
    assert "\nsignfd: interrupted" in err
    (metrics,) = (tmp_path / "stopped").glob("shared-*/metrics.jsonl")
    assert has_checkpoint(tmp_path / "stopped", read_lines(metrics)[-1]["round"])


@pytest.mark.slow
def test_background_job_ignores_control_c(tmp_path):
    with start(tmp_path, *ENDLESS, control_c=signal.SIG_IGN) as process:
        until(process, lambda: has_checkpoint(tmp_path, 20))
        process.send_signal(signal.SIGINT)
        now = max(checkpoints(tmp_path))
        until(process, lambda: has_checkpoint(tmp_path, now + 40))
        process.send_signal(signal.SIGTERM)
        code, _, err = finish(process)
    assert (code, err.count("\n")) == (143, 2)
    assert "\nsignfd: terminated; the same command goes on from here" in err


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs /proc")
def test_processes_end_with_their_launcher(tmp_path):
    with start(tmp_path, *ENDLESS) as process:
        until(process, lambda: has_checkpoint(tmp_path, 20))
        pids = children(process)
        process.kill()
        finish(process)
    deadline = time.monotonic() + 30
    for pid in pids:
        while os.path.exists(f"/proc/{pid}/exe"):
            assert time.monotonic() < deadline
            time.sleep(0.1)


@pytest.mark.slow
def test_launcher_tells_bad_input_once(tmp_path):
    with start(tmp_path, "--processes", 3) as process:
        code, _, err = finish(process)
    assert code == 2
    assert err == (
        "signfd: 16 workers cannot be shared out evenly to 3 devices; take 15 or 18 "
        "workers, or another number of devices\n"
    )


@pytest.mark.slow
def test_external_launcher(tmp_path, undisturbed):
    """Two processes that the test itself starts, as a cluster would."""
    coordinator = f"127.0.0.1:{free_port()}"
    jobs = [
        start(
            tmp_path,
            *("--distributed", "--coordinator", coordinator),
            *("--num-processes", 2, "--process-id", number),
        )
        for number in range(2)
    ]
    results = [finish(job) for job in jobs]
    assert [code for code, _, _ in results] == [0, 0]
    assert summary_of(tmp_path)["params_sha256"] == undisturbed["params_sha256"]

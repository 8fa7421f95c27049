"""Runs that survive: checkpoints, damage to them, kills, locks, repeats."""

import dataclasses
import functools
import gc
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import signfd_jax
from signfd_jax.cli import main
from signfd_jax.experiments import Experiment, registry
from signfd_jax.experiments._engine.program import parts
from signfd_jax.experiments._processes.signals import Terminated, heeded_interrupts
from signfd_jax.experiments._storage import checkpoints
from signfd_jax.experiments._storage.checkpoints import (
    Checkpoint,
    examine,
    restore,
    writer,
)
from signfd_jax.experiments._storage.params import digest, load_params, save_params
from signfd_jax.experiments._storage.resume import held_back_signals, schedule
from signfd_jax.experiments._storage.run_folder import locked, read_lines, run_folder
from signfd_jax.experiments.run import run_experiment
from signfd_jax.simulate import simulation

# The tiny experiment of test_experiments.py, whose programs may be at hand.
TINY = Experiment(
    name="tiny",
    model="softmax_regression",
    decoder="majority_vote",
    attack="sign_inversion",
    num_byzantine=2,
    num_workers=5,
    batch_size=4,
    rounds=10,
    eval_every=2,
)


@functools.cache
def state_of(config):
    """A state that such an experiment may have, of two seeds."""
    server, attack, membership = parts(
        config, num_classes=10, learning_rate=1e-3, flip_probability=0.5, strengths={}
    )
    workers = config.num_workers
    simulated = simulation(
        lambda params, batch: jnp.float32(0),
        server,
        num_workers=workers,
        attack=attack,
        membership=membership,
    )
    params = {"params": {"a": jnp.ones((2, 3)), "b": jnp.zeros(4)}}
    byzantine = jnp.arange(workers) < 2
    keys = jax.random.split(jax.random.key(1), 2)
    return jax.jit(jax.vmap(lambda key: simulated.init(key, params, byzantine)))(keys)


def written(folder, config=TINY, rounds=(10, 20), keep=2):
    """A state, of which each checkpoint holds another multiple."""
    state = state_of(config)
    with writer(folder, config, keep=keep, report=pytest.fail) as save:
        for number in rounds:
            save(Checkpoint(scaled(state, number), number, 0.5 * number))
    return state


def scaled(state, number):
    return state._replace(params=jax.tree.map(lambda x: x * number, state.params))


# --------------------------------------------------------------------- round trips


@pytest.mark.parametrize(
    "fields",
    [{"decoder": name} for name in registry.DECODERS]
    + [{"attack": name} for name in ("mimic", "adaptive", "warm_up_capture")],
)
def test_state_comes_back_bit_for_bit(fields, tmp_path):
    config = dataclasses.replace(TINY, **fields)
    state = written(tmp_path, config)
    found = restore(tmp_path, state, config, report=pytest.fail)
    assert (found.rounds, found.seconds) == (20, 10.0)
    assert jax.tree.structure(found.state) == jax.tree.structure(state)
    assert digest(found.state) == digest(scaled(state, 20))
    assert jax.tree.map(jnp.shape, found.state) == jax.tree.map(jnp.shape, state)


def test_state_may_be_consumed_once_save_returns(tmp_path):
    state = {"a": jnp.arange(100_000.0)}
    before = digest(state)
    consume = jax.jit(lambda x: jax.tree.map(lambda y: y * 0, x), donate_argnums=0)
    with writer(tmp_path, TINY) as save:
        save(Checkpoint(state, 10, 0.0))
        state = consume(state)
    assert digest(restore(tmp_path, state, TINY).state) == before != digest(state)


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_are_kept(keep, tmp_path):
    written(tmp_path, rounds=range(10, 60, 10), keep=keep)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["10", "20", "30", "40", "50"][-keep:]


def test_writer_refuses_to_keep_none(tmp_path):
    with pytest.raises(ValueError, match="keep must be >= 1"):
        writer(tmp_path, TINY, keep=0).__enter__()


def test_no_checkpoint_no_folder_no_orbax(tmp_path):
    with writer(tmp_path, TINY):
        pass
    assert restore(tmp_path, {}, TINY) is None
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------- damage


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, os.unlink])
def test_damage_to_any_file_is_found_or_does_no_harm(damage, tmp_path):
    state = written(tmp_path / "whole")
    whole = {number: digest(scaled(state, number)) for number in (10, 20)}
    files = (tmp_path / "whole" / "checkpoints" / "20").rglob("*")
    names = [p.relative_to(tmp_path / "whole") for p in files if p.is_file()]
    refused = 0
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        damage(folder / name)
        said = []
        found = restore(folder, state, TINY, report=said.append)
        assert digest(found.state) == whole[found.rounds]
        assert len(said) == (found.rounds == 10)
        for line in said:
            assert line.startswith("checkpoint 20 refused (set aside as refused-20): ")
            assert "\n" not in line
            refused += 1
    assert refused >= len(names) // 3


def test_all_damaged_is_as_none(tmp_path):
    state = written(tmp_path)
    for path in (tmp_path / "checkpoints").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    said = []
    assert restore(tmp_path, state, TINY, report=said.append) is None
    assert [line.split(" (")[0] for line in said] == [
        "checkpoint 20 refused",
        "checkpoint 10 refused",
    ]


def test_foreign_checkpoints_are_refused(tmp_path):
    state = written(tmp_path)
    other = dataclasses.replace(TINY, learning_rate=1.0)
    said = []
    assert restore(tmp_path, state, other, report=said.append) is None
    assert len(said) == 2
    assert all("of another configuration" in line for line in said)

    said.clear()
    shutil.rmtree(tmp_path / "checkpoints")
    written(tmp_path)
    larger = state_of(dataclasses.replace(TINY, decoder="federated_defense"))
    assert restore(tmp_path, larger, TINY, report=said.append) is None
    assert all("its state is of another kind: opt_state/" in line for line in said)


def test_checkpoint_without_its_metrics_is_refused(tmp_path):
    state = written(tmp_path)
    said = []
    found = restore(tmp_path, state, TINY, newest=19, report=said.append)
    assert found.rounds == 10
    assert "metrics.jsonl has no lines after round 19" in said[0]


def test_other_versions_are_told_and_used(tmp_path, monkeypatch):
    from signfd_jax.experiments._storage import run_folder as records

    state = written(tmp_path)
    now = records.environment()
    then = now | {"versions": now["versions"] | {"jax": "0.1"}}
    monkeypatch.setattr(records, "environment", lambda: then)
    said = []
    assert restore(tmp_path, state, TINY, report=said.append).rounds == 20
    assert len(said) == 1
    assert f"written elsewhere (jax {jax.__version__})" in said[0]


def test_the_commit_is_that_of_the_checkout():
    from signfd_jax.experiments._storage import run_folder as records

    root = Path(signfd_jax.__file__).parents[1]
    if not (root / ".git").exists():
        pytest.skip("not a checkout")
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    head = subprocess.check_output(command, text=True).strip()
    assert records.environment()["commit"].removesuffix("-dirty") == head


def test_what_a_kill_leaves_is_cleared(tmp_path):
    state = written(tmp_path)
    directory = tmp_path / "checkpoints"
    shutil.copytree(directory / "20", directory / "30.orbax-checkpoint-tmp")
    shutil.copytree(directory / "20", directory / "old-5")
    assert restore(tmp_path, state, TINY, report=pytest.fail).rounds == 20
    assert sorted(path.name for path in directory.iterdir()) == ["10", "20"]


def test_full_disk_is_told_and_the_run_goes_on(tmp_path):
    state, said = {"a": jnp.arange(100_000.0)}, []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with writer(tmp_path, TINY, report=said.append) as save:
        save(Checkpoint(state, 10, 0.0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            # The one in the background may or may not have got through.
            save(Checkpoint(state, 20, 0.0))
            save(Checkpoint(state, 30, 0.0))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        save(Checkpoint(state, 40, 0.0))
    assert any(line.startswith("no checkpoint of round 20, the run") for line in said)
    assert all("\n" not in line for line in said)
    found = restore(tmp_path, state, TINY, report=pytest.fail)
    assert found.rounds == 40
    for path in (tmp_path / "checkpoints").iterdir():
        examine(path, state, TINY)


# ----------------------------------------------------------------------- schedules


def test_schedule_by_rounds_and_now():
    saved = []
    offer = schedule(lambda c: saved.append(c.rounds), every=25, rounds=30)
    for rounds in (30, 40, 50, 60, 70, 80, 90):
        offer(Checkpoint({}, rounds, 0.0), rounds == 60)
    offer(Checkpoint({}, 90, 0.0), True)
    offer(Checkpoint({}, 90, 0.0), True)
    assert saved == [50, 60, 80, 90]


def test_schedule_by_time(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    saved = []

    def save(checkpoint):
        nonlocal now
        saved.append(checkpoint.rounds)
        now += 5  # so that the next comes no sooner than in 100 seconds

    offer = schedule(save, every=None, rounds=0)
    for rounds in range(1, 100):
        now += 3
        offer(Checkpoint({}, rounds, 0.0), False)
    assert saved[:3] == [1, 35, 69]


def test_schedule_of_itself_writes_nothing_at_the_end():
    saved = []
    offer = schedule(lambda c: saved.append(c.rounds), every=None, rounds=0, last=5)
    offer(Checkpoint({}, 5, 0.0), False)
    assert saved == []
    offer(Checkpoint({}, 5, 0.0), True)
    assert saved == [5]


def test_second_signal_is_heeded():
    got = []
    before = signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
    try:
        with held_back_signals() as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
            assert (stopped, got) == ([signal.SIGTERM], [])
            os.kill(os.getpid(), signal.SIGTERM)
            assert (stopped, got) == ([signal.SIGTERM], [signal.SIGTERM])
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(got) == 2
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("number", "expected"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)],
)
@pytest.mark.slow
def test_interrupt_that_the_garbage_collector_swallows_is_sent_again(
    number, expected, capsys
):
    struck = []

    def strike(phase, info):
        if not struck:
            struck.append(phase)
            signal.raise_signal(number)

    def wait():
        # In a function: an interrupt at the jump back of a loop that ends a `with`
        # is not seen by that `with` (Python 3.13's exception table leaves it out).
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            pass

    # A shell's background job ignores Ctrl-C, and so do its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as caught, heeded_interrupts():
            gc.callbacks.append(strike)  # not before: a collection may come at any time
            gc.collect()
            wait()
    finally:
        gc.callbacks.remove(strike)
        signal.signal(signal.SIGINT, before)
    assert struck
    assert caught.type is expected
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------ the model


def test_model_is_loadable_and_its_digest_is_in_the_summary(tmp_path):
    from signfd_jax import data, models
    from signfd_jax.data import standardise

    config = dataclasses.replace(TINY, seeds=2)
    folder, summary = run_experiment(config, tmp_path, progress=False)
    both = [load_params(folder, seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *both)
    assert digest(stacked) == summary["params_sha256"]
    digits = data.load("digits")
    model = models.SoftmaxRegression(num_classes=10)
    for params, accuracy in zip(both, summary["test_accuracy_by_seed"], strict=True):
        logits = model.apply(params, standardise(digits.test_inputs, digits))
        right = jnp.argmax(logits, axis=-1) == digits.test_labels
        assert float(right.mean()) == pytest.approx(accuracy, abs=1e-6)
    with pytest.raises(ValueError, match=r"seed must lie in \[0, 2\)"):
        load_params(folder, seed=2)
    with pytest.raises(ValueError, match="the run has not finished"):
        load_params(tmp_path)


def test_digest_sees_every_bit():
    tree = {"a": np.zeros(3, np.float32)}
    others = [
        {"b": np.zeros(3, np.float32)},
        {"a": np.zeros(3, np.int32)},
        {"a": np.zeros((3, 1), np.float32)},
        {"a": np.array([0, 0, -0.0], np.float32)},
    ]
    assert len({digest(each) for each in (tree, *others)}) == 5
    assert digest(tree) == digest(jax.tree.map(jnp.asarray, tree))


def test_same_params_same_file(tmp_path):
    params = {"params": {"a": jnp.ones((1, 3))}}
    contents = set()
    for _ in range(2):
        save_params(tmp_path, params)
        contents.add((tmp_path / "params.npz").read_bytes())
    assert len(contents) == 1


# ------------------------------------------------------------ runs that are stopped


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder, summary = run_experiment(
        TINY, tmp_path_factory.mktemp("undisturbed"), progress=False
    )
    return (folder / "metrics.jsonl").read_bytes(), summary["params_sha256"]


@pytest.mark.parametrize(
    "stop_at", [2, *(pytest.param(at, marks=pytest.mark.slow) for at in (4, 6, 8)), 10]
)
@pytest.mark.parametrize("written", [0, 1, 30, 10_000])
def test_stopped_run_goes_on_to_the_same_bits(
    stop_at, written, tmp_path, monkeypatch, undisturbed
):
    """As if killed while it appended the line of a test, so many bytes of it there."""
    from signfd_jax.experiments._storage import run_folder as records

    append = records.append_lines

    def stop(path, lines):
        before = path.read_bytes()
        append(path, lines)
        if lines[0]["round"] == stop_at:
            path.write_bytes(path.read_bytes()[: len(before) + written])
            raise RuntimeError("killed")

    monkeypatch.setattr(records, "append_lines", stop)
    options = {"progress": False, "checkpoint_every": 4}
    with pytest.raises(RuntimeError, match="killed"):
        run_experiment(TINY, tmp_path, **options)
    monkeypatch.undo()
    begun = []
    advance_from(monkeypatch, begun)
    folder, summary = run_experiment(TINY, tmp_path, **options)
    # The checkpoint of a round is written after its line.
    assert begun[0] == 4 * ((stop_at - 1) // 4)
    assert ((folder / "metrics.jsonl").read_bytes(), summary["params_sha256"]) == (
        undisturbed
    )


def advance_from(monkeypatch, begun):
    """Note the rounds that training goes on from."""
    from signfd_jax.experiments._engine import prepare as training

    prepare = training.prepare

    def noting(*arguments):
        prepared = prepare(*arguments)

        def advance(state, rounds):
            begun.append(rounds)
            return prepared.advance(state, rounds)

        return prepared._replace(advance=advance)

    monkeypatch.setattr(training, "prepare", noting)


def test_stopped_before_the_summary(tmp_path, monkeypatch, undisturbed):
    from signfd_jax.experiments import run as runs

    def killed(*_):
        raise RuntimeError("killed")

    monkeypatch.setattr(runs, "save_params", killed)
    with pytest.raises(RuntimeError, match="killed"):
        run_experiment(TINY, tmp_path, progress=False, checkpoint_every=2)
    monkeypatch.undo()
    begun = []
    advance_from(monkeypatch, begun)
    folder, summary = run_experiment(TINY, tmp_path, progress=False)
    assert begun == []
    assert ((folder / "metrics.jsonl").read_bytes(), summary["params_sha256"]) == (
        undisturbed
    )


def test_signal_stops_at_a_test_and_nothing_is_lost(tmp_path, monkeypatch, undisturbed):
    from signfd_jax.experiments._storage import run_folder as records

    append = records.append_lines

    def interrupt(path, lines):
        os.kill(os.getpid(), signal.SIGTERM)
        append(path, lines)

    monkeypatch.setattr(records, "append_lines", interrupt)
    with pytest.raises(Terminated):
        run_experiment(TINY, tmp_path, progress=False)
    monkeypatch.undo()
    begun = []
    advance_from(monkeypatch, begun)
    folder, summary = run_experiment(TINY, tmp_path, progress=False)
    assert begun == [2, 4, 6, 8]
    assert ((folder / "metrics.jsonl").read_bytes(), summary["params_sha256"]) == (
        undisturbed
    )


@pytest.mark.parametrize(
    ("place", "stop_at", "goes_on"),
    [
        ("load", 0, 0),  # before anything is written
        ("prepare", 0, 0),
        ("resume", 0, 0),
        ("append_lines", 2, 0),  # the first test, before its checkpoint
        ("append_lines", 4, 2),
        ("append_lines", 10, 2),
        ("save_params", 0, 2),
    ],
)
def test_no_start_is_silent(
    place, stop_at, goes_on, tmp_path, monkeypatch, capsys, undisturbed
):
    """As if killed anywhere within the first half minute."""
    from signfd_jax.experiments import run as runs
    from signfd_jax.experiments._engine import prepare as training
    from signfd_jax.experiments._storage import resume as resuming
    from signfd_jax.experiments._storage import run_folder as records

    modules = {
        "load": runs.data,
        "prepare": training,
        "resume": resuming,
        "append_lines": records,
        "save_params": runs,
    }
    whole = getattr(modules[place], place)

    def killed(*arguments, **options):
        if not stop_at or arguments[1][0]["round"] == stop_at:
            raise RuntimeError("killed")
        return whole(*arguments, **options)

    monkeypatch.setattr(modules[place], place, killed)
    with pytest.raises(RuntimeError, match="killed"):
        run_experiment(TINY, tmp_path, progress=False)
    monkeypatch.undo()
    capsys.readouterr()
    folder, summary = run_experiment(TINY, tmp_path, progress=False)
    said = capsys.readouterr().err
    if goes_on:
        line = rf"signfd: resuming from round {goes_on} \(checkpoint of \d\d:\d\d\)\n"
        assert re.fullmatch(line, said)
    else:
        assert said == f"signfd: no checkpoint in {folder}: starting from round 0\n"
    assert ((folder / "metrics.jsonl").read_bytes(), summary["params_sha256"]) == (
        undisturbed
    )


def test_time_of_a_checkpoint(tmp_path):
    written(tmp_path)
    about = tmp_path / "checkpoints" / "20" / "about.json"
    assert re.fullmatch(r"\d\d:\d\d", checkpoints.written(tmp_path, 20))
    os.utime(about, (0, 1_000_000_000))
    assert checkpoints.written(tmp_path, 20).startswith("2001-09-")


def test_force_begins_again(tmp_path, monkeypatch, undisturbed):
    options = {"progress": False, "checkpoint_every": 2}
    run_experiment(TINY, tmp_path, **options)
    begun = []
    advance_from(monkeypatch, begun)
    _, summary = run_experiment(TINY, tmp_path, force=True, **options)
    assert begun == [0, 2, 4, 6, 8]
    assert summary["params_sha256"] == undisturbed[1]


def test_checkpoints_that_cannot_be_written_do_not_stop_a_run(
    tmp_path, capsys, undisturbed
):
    folder = run_folder(tmp_path, TINY)
    folder.mkdir()
    (folder / "checkpoints").write_text("mine")  # a file, where a folder should be
    _, summary = run_experiment(TINY, tmp_path, progress=False, checkpoint_every=6)
    err = capsys.readouterr().err
    begun, missing = err.splitlines()
    assert begun == f"signfd: no checkpoint in {folder}: starting from round 0"
    assert missing.startswith("signfd: no checkpoint of round 6, the run goes on: ")
    assert summary["params_sha256"] == undisturbed[1]
    assert (folder / "checkpoints").read_text() == "mine"


@pytest.mark.parametrize("name", ["checkpoint_every", "keep_checkpoints"])
def test_impossible_intervals(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name} must be an int >= 1, but is 0"):
        run_experiment(TINY, tmp_path, progress=False, **{name: 0})


# ------------------------------------------------------------------ the command line

FLAGS = """--name tiny --model softmax_regression --decoder majority_vote
    --num-workers 5 --num-byzantine 2 --batch-size 4 --rounds 10 --eval-every 2
    --quiet""".split()


def test_two_runs_in_one_folder(tmp_path, capsys):
    folder = run_folder(tmp_path, TINY)
    folder.mkdir()
    with locked(folder):
        assert main(["run", *FLAGS, "--output-dir", str(tmp_path)]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"signfd: another process is at work in {folder}")
        assert err.count("\n") == 1
        assert [path.name for path in folder.iterdir()] == [".lock"]
    assert main(["run", *FLAGS, "--output-dir", str(tmp_path)]) == 0


def test_from_repeats_a_run(tmp_path, capsys):
    assert main(["run", *FLAGS, "--output-dir", str(tmp_path)]) == 0
    (folder,) = tmp_path.iterdir()
    capsys.readouterr()
    assert main(["run", "--from", str(folder), "--quiet"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"bit for bit the run in {folder}"
    (repeat,) = (tmp_path / "repeats").iterdir()
    assert repeat.name == folder.name

    metrics = folder / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    lines[2] = lines[2].replace('"round": 6', '"round": 7')
    metrics.write_text("".join(lines))
    environment = json.loads((folder / "environment.json").read_text())
    environment["commit"] = "abc"
    (folder / "environment.json").write_text(json.dumps(environment))
    assert main(["run", "--from", str(folder), "--quiet"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"differs from {folder} from round 6 on (that one had commit abc)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--from", "give the folder of the run"),
        ("--from nowhere", "nowhere holds no run"),
        (
            "--checkpoint-every 0",
            "checkpoint_every must be an int >= 1",
        ),
        (
            "--keep-checkpoints 0",
            "keep_checkpoints must be an int >= 1",
        ),
    ],
)
def test_bad_input(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", *arguments.split()]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------- real processes

SIGNFD = "import sys; from signfd_jax.cli import main; sys.exit(main())"
LONG = [*FLAGS, "--rounds", "4000", "--eval-every", "20", "--checkpoint-every", "40"]


def start(*arguments, first=""):
    """Start a run; its process does `first` what a `preexec_fn` would have to fork for.

    JAX, in this process, warns of a fork.
    """
    return subprocess.Popen(
        [sys.executable, "-c", f"{first}\n{SIGNFD}", "run", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(process, condition):
    """Wait for something that the process does."""
    deadline = time.monotonic() + 240
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()  # else the test would wait for it
            pytest.fail(f"ended with {process.poll()}, or did not get there")
        time.sleep(0.01)


def finish(process):
    _, err = process.communicate(timeout=240)
    return process.returncode, err


def resumed(end):
    """Whether it went on, said so in one line, and ended well."""
    line = r"signfd: resuming from round [1-9]\d* \(checkpoint of \d\d:\d\d\)\n"
    return end[0] == 0 and re.fullmatch(line, end[1])


def outcome(folder):
    (folder,) = folder.glob("tiny-*")
    summary = json.loads((folder / "summary.json").read_text())
    return (folder / "metrics.jsonl").read_bytes(), summary["params_sha256"]


@pytest.mark.slow
def test_two_kills_and_the_same_result(tmp_path):
    with start(*LONG, "--output-dir", tmp_path / "whole") as process:
        assert finish(process)[0] == 0
    killed = tmp_path / "killed"

    def rounds():
        names = (path.name for path in killed.glob("tiny-*/checkpoints/*"))
        return max((int(name) for name in names if name.isdecimal()), default=0)

    for least in (400, 2000):
        with start(*LONG, "--output-dir", killed) as process:
            until(process, lambda least=least: rounds() >= least)
            process.kill()
            finish(process)
    with start(*LONG, "--output-dir", killed) as process:
        assert resumed(finish(process))  # no checkpoint was refused
    assert outcome(killed) == outcome(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there are no POSIX signals")
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_signal_in_compilation(number, code, word, tmp_path):
    # Under a shell's background job Ctrl-C is ignored, and so it is here.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    with start(*LONG, "--output-dir", tmp_path, first=heed) as process:
        until(process, lambda: list(tmp_path.glob("tiny-*/.lock")))
        process.send_signal(number)
        end = finish(process)
    said = f"signfd: {word}; the same command goes on from here\n"
    assert end == (code, said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_full_disk_in_a_run(tmp_path):
    small = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (20_000, 20_000))"
    with start(*LONG, "--output-dir", tmp_path, first=small) as process:
        code, err = finish(process)
    assert code == 2
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("signfd: [Errno 27] File too large")
    with start(*LONG, "--output-dir", tmp_path) as process:
        assert resumed(finish(process))
    with start(*LONG, "--output-dir", tmp_path / "whole") as process:
        assert finish(process)[0] == 0
    assert outcome(tmp_path) == outcome(tmp_path / "whole")
    metrics = read_lines(next(tmp_path.glob("tiny-*")) / "metrics.jsonl")
    assert metrics[-1]["round"] == 4000

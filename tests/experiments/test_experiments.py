"""Experiments: configurations, names, paired seeds, compiled once, run folders."""

import dataclasses
import json
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from signfd_jax import data
from signfd_jax.experiments import (
    PRESETS,
    Experiment,
    fingerprint,
    from_json,
    registry,
    to_json,
)
from signfd_jax.experiments._engine.prepare import byzantine_mask, check, prepare
from signfd_jax.experiments._engine.program import (
    compile_program,
    program_key,
    step_of,
)
from signfd_jax.experiments._storage.run_folder import read_lines, read_run, run_folder
from signfd_jax.experiments.grid import Grid
from signfd_jax.experiments.report.communication import bits_per_round
from signfd_jax.experiments.run import run_experiment

# Small, and the same in most tests, which then share its compiled programs.
TINY = Experiment(
    name="tiny",
    model="softmax_regression",
    decoder="majority_vote",
    attack="sign_inversion",
    num_byzantine=2,
    num_workers=5,
    batch_size=4,
    rounds=4,
    eval_every=2,
)
# So small a step that the parameters stay what they were: losses show the batches.
STANDING = dataclasses.replace(TINY, learning_rate=1e-30)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def vary(config, **fields):
    return dataclasses.replace(config, **fields)


def metrics_of(config, dataset):
    return [metrics for _, metrics, _ in prepare(config, dataset).tests]


# ------------------------------------------------------------------ configurations


@given(
    rounds=st.integers(1, 9),
    learning_rate=st.floats(1e-6, 1),
    num_byzantine=st.integers(0, 15),
    ids=st.lists(st.integers(0, 14), unique=True).map(tuple),
    augment=st.booleans(),
)
def test_json_gives_the_configuration_back(
    rounds, learning_rate, num_byzantine, ids, augment
):
    config = Experiment(
        rounds=rounds,
        learning_rate=learning_rate,
        num_byzantine=num_byzantine,
        byzantine_ids=ids,
        augment=augment,
    )
    again = from_json(Experiment, to_json(config))
    assert again == config
    assert fingerprint(again) == fingerprint(config)


OTHER = {"attack": "none", "wire": "one_bit", "byzantine_ids": (1,), "augment": True}
OTHER |= {"stakes": (1.0,) * 15, "shares": "examples", "withheld": ("trusted",)}
OTHER |= {"stop_below": "0.5:20"}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Experiment)])
def test_fingerprint_covers_all_that_changes_the_result(field):
    config = Experiment(trusted=1)
    old = getattr(config, field)
    new = OTHER.get(field, old / 2 if isinstance(old, float) else None)
    new = (f"{old}x" if isinstance(old, str) else old + 1) if new is None else new
    changed = vary(config, **{field: new})
    assert (fingerprint(changed) == fingerprint(config)) == (field == "name")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_byzantine": 16}, r"num_byzantine must lie in \[0, 15\]"),
        ({"num_byzantine": -1}, "num_byzantine"),
        ({"byzantine_ids": (3, 3)}, "distinct"),
        ({"byzantine_ids": (15,)}, r"\[0, 15\)"),
        ({"flip_probability": 1.5}, r"flip_probability must lie in \[0, 1\]"),
        ({"flip_probability": float("nan")}, "flip_probability"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"rounds": 0}, "rounds must be >= 1"),
        ({"seeds": 0}, "seeds must be >= 1"),
        ({"seed": -1}, "seed must lie"),
        ({"name": "../elsewhere"}, "name must consist of"),
        ({"rounds": True}, "rounds must be of type int"),
    ],
)
def test_configuration_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        Experiment(**fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a JSON configuration"),
        ("[1]", "must be a JSON object"),
        ('{"round": 3}', "unknown fields round; known are"),
    ],
)
def test_from_json_refuses(text, message):
    with pytest.raises(ValueError, match=message):
        from_json(Experiment, text)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_described(name):
    preset = PRESETS[name]
    assert preset.experiment.name == name
    assert preset.description
    check(preset.experiment)


# --------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder": "majorityvote"}, "did you mean majority_vote"),
        ({"decoder": "federated_defense:forgeting=1"}, "has no option 'forgeting'"),
        ({"attack": "alie:z=x"}, "neither a number nor"),
        ({"decoder": "federated_defense:max_llr=x"}, "neither a number nor"),
        ({"attack": "none:3"}, "has no option"),
        ({"attack": "stochastic_sign_flip:1.5"}, r"must lie in \[0, 1\]"),
        ({"split": "dirichlet"}, "needs alpha"),
        ({"split": "labels:num_workers=3"}, "has no option 'num_workers'"),
        ({"model": "cnn"}, "unknown model 'cnn'"),
        ({"membership": "random"}, "unknown membership"),
        ({"dataset": "imagenet"}, "unknown data set 'imagenet'; known are digits"),
        ({"wire": "analog"}, "wire must be one of ternary, one_bit"),
    ],
)
def test_check_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        check(Experiment(**fields))


def test_every_registered_name_can_be_made():
    for kind in (registry.SERVERS, registry.ATTACKS, registry.MEMBERSHIPS):
        assert kind
    for decoder, factory in registry.SERVERS.items():
        trusted = int("trusted" in getattr(factory, "needs", ()))
        check(Experiment(decoder=decoder, trusted=trusted))
    for attack in registry.ATTACKS:
        check(Experiment(attack=attack))
    for membership in registry.MEMBERSHIPS:
        check(Experiment(membership=membership))


# ----------------------------------------------------------------------- who lies


def test_byzantine_workers_are_drawn_by_the_seed_and_nested():
    masks = [byzantine_mask(vary(TINY, num_byzantine=n), seed=3) for n in range(6)]
    assert [mask.sum() for mask in masks] == list(range(6))
    assert all((big | small == big).all() for small, big in pairwise(masks))
    wide = Experiment(num_workers=40, num_byzantine=20)
    # Two of C(40, 20) sets coincide with probability below 1e-10.
    assert (byzantine_mask(wide, 0) != byzantine_mask(wide, 1)).any()


def test_byzantine_ids_go_before_the_number():
    config = vary(TINY, byzantine_ids=(4, 1))
    assert byzantine_mask(config, seed=0).nonzero()[0].tolist() == [1, 4]


# ------------------------------------------------------------------- paired seeds


@pytest.mark.parametrize(
    "fields",
    [
        {"decoder": "federated_defense"},
        {"attack": "none"},
        {"membership": "rotating"},
        {"wire": "one_bit"},
    ],
)
def test_same_seed_same_parameters_and_batches(digits, fields):
    # The loss of the honest workers shows their batches; nobody is Byzantine here.
    config = vary(STANDING, num_byzantine=0, eval_every=1, rounds=3)
    for one, other in zip(
        metrics_of(config, digits),
        metrics_of(vary(config, **fields), digits),
        strict=True,
    ):
        assert one.test_loss == pytest.approx(other.test_loss, rel=1e-6)
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-6)


def test_seeds_differ_and_a_seed_beside_others_is_the_same(digits):
    together = metrics_of(vary(TINY, seed=5, seeds=2), digits)[-1]
    alone = metrics_of(vary(TINY, seed=6), digits)[-1]
    assert together.test_loss[0] != together.test_loss[1]
    assert together.test_loss[1] == pytest.approx(alone.test_loss[0], rel=1e-5)
    np.testing.assert_allclose(together.weights[1], alone.weights[0], rtol=1e-5)


def test_training_seed_leaves_the_partition_alone(digits):
    from signfd_jax.experiments._engine.prepare import split_examples

    first, second = (split_examples(vary(TINY, seed=s), digits) for s in (0, 1))
    np.testing.assert_array_equal(first.indices, second.indices)
    third = split_examples(vary(TINY, partition_seed=1), digits)
    assert (first.indices != third.indices).any()


# ------------------------------------------------------------------ compiled once


@pytest.mark.parametrize(
    "fields",
    [
        {"num_byzantine": 1},
        {"byzantine_ids": (0, 3)},
        {"seed": 9},
        {"partition_seed": 9},
        {"learning_rate": 0.5},
        {"rounds": 8},
        {"flip_probability": 0.1},
        {"name": "other"},
    ],
)
def test_inputs_of_a_program_do_not_recompile(digits, fields):
    prepare(TINY, digits)
    before = compile_program.cache_info().misses
    prepare(vary(TINY, **fields), digits)
    assert compile_program.cache_info().misses == before


def test_strength_of_an_attack_is_an_input(digits):
    one, other = (
        vary(TINY, attack=f"stochastic_sign_flip:{r}", num_byzantine=4) for r in (0, 1)
    )
    assert program_key(one) == program_key(other) != program_key(TINY)
    # A flip with probability 0 is honest, with probability 1 sign inversion.
    never, always = (metrics_of(config, digits)[-1] for config in (one, other))
    honest = metrics_of(vary(TINY, num_byzantine=0), digits)[-1]
    inverted = metrics_of(vary(TINY, num_byzantine=4), digits)[-1]
    assert never.test_loss == pytest.approx(honest.test_loss, rel=1e-5)
    assert always.test_loss == pytest.approx(inverted.test_loss, rel=1e-5)


def test_rounds_that_the_tests_do_not_divide(digits):
    counts = [r for r, _, _ in prepare(vary(TINY, rounds=5), digits).tests]
    assert counts == [2, 4, 5]


# -------------------------------------------------------------------- run folders


def test_run_folder_holds_what_it_should(tmp_path):
    folder, summary = run_experiment(vary(TINY, seeds=2), tmp_path, progress=False)
    assert folder == run_folder(tmp_path, vary(TINY, seeds=2))
    config, metrics = read_run(folder)
    assert from_json(Experiment, json.dumps(config)) == vary(TINY, seeds=2)
    assert [(m["round"], m["seed"]) for m in metrics] == [
        (2, 0),
        (2, 1),
        (4, 0),
        (4, 1),
    ]
    for record in metrics:
        assert 0 <= record["test_accuracy"] <= 1
        assert len(record["weights"]) == len(record["crossover"]) == 5
        assert len(record["byzantine"]) == 2
        assert 0 <= record["sign_error"] <= 1
        assert not {key for key in record if "second" in key}
    # 8 x 8 pixels and a bias, 10 classes; two bit planes.
    assert metrics[-1]["bits_up"] == metrics[-1]["bits_down"] == 2 * 650 * 4
    on_disk = json.loads((folder / "summary.json").read_text())
    assert on_disk | {"finished_before": False} == summary
    last = [m["test_accuracy"] for m in metrics[-2:]]
    assert summary["test_accuracy_by_seed"] == last
    assert summary["test_accuracy"] == pytest.approx(np.mean(last))
    assert summary["rounds"] == 4
    assert summary["num_coordinates"] == 650
    assert summary["bits_per_worker_up"] == metrics[-1]["bits_up"]
    assert summary["seconds_per_round"] > 0 <= summary["compile_seconds"]
    assert summary["versions"]["jax"] == jax.__version__


def test_same_command_same_bytes(tmp_path):
    one, _ = run_experiment(TINY, tmp_path / "one", progress=False)
    compile_program.cache_clear()
    other, _ = run_experiment(TINY, tmp_path / "other", progress=False)
    files = [(folder / "metrics.jsonl").read_bytes() for folder in (one, other)]
    assert files[0] == files[1] != b""


def test_finished_run_is_not_run_again_unless_forced(tmp_path):
    folder, first = run_experiment(TINY, tmp_path, progress=False)
    before = (folder / "summary.json").read_bytes()
    _, again = run_experiment(TINY, tmp_path, progress=False)
    assert again == first | {"finished_before": True}
    assert (folder / "summary.json").read_bytes() == before
    _, forced = run_experiment(TINY, tmp_path, force=True, progress=False)
    assert not forced["finished_before"]
    assert (folder / "summary.json").read_bytes() != before  # other timings


def test_interrupted_run_leaves_what_it_had(tmp_path, monkeypatch):
    from signfd_jax.experiments._storage import run_folder as records

    whole, _ = run_experiment(TINY, tmp_path / "whole", progress=False)
    append = records.append_lines

    def interrupt_second(path, lines):
        if read_lines(path):
            raise KeyboardInterrupt
        append(path, lines)

    monkeypatch.setattr(records, "append_lines", interrupt_second)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(TINY, tmp_path, progress=False)
    folder = run_folder(tmp_path, TINY)
    _, metrics = read_run(folder)
    assert [record["round"] for record in metrics] == [2]
    assert not (folder / "summary.json").exists()
    monkeypatch.undo()
    run_experiment(TINY, tmp_path, progress=False)
    name = "metrics.jsonl"
    assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_ledger():
    ternary, one_bit = (vary(TINY, wire=wire) for wire in ("ternary", "one_bit"))
    assert bits_per_round(ternary, 1000) == (2000, 2000)
    # One more bit says that the worker is there.
    assert bits_per_round(one_bit, 1000) == (1001, 1000)


def test_chunks_of_workers_train_as_the_whole(digits):
    """Same batches, attack and votes: the same tests of the same parameters."""
    base = Experiment(
        model="softmax_regression",
        decoder="majority_vote",
        attack="stochastic_sign_flip",
        num_workers=6,
        num_byzantine=2,
        rounds=4,
        eval_every=4,
    )
    whole, chunked = (
        metrics_of(vary(base, worker_chunk=chunk), digits)[-1] for chunk in (0, 3)
    )
    np.testing.assert_array_equal(chunked.test_accuracy, whole.test_accuracy)
    np.testing.assert_array_equal(chunked.crossover, whole.crossover)
    with pytest.raises(ValueError, match="does not divide the 6 workers; take 3"):
        prepare(vary(base, worker_chunk=4), digits)
    for fields in ({"worker_chunk": 7}, {"worker_chunk": 3, "augment": True}):
        with pytest.raises(ValueError, match="worker_chunk"):
            vary(base, **fields)


def test_records_of_large_populations_are_short(tmp_path, monkeypatch):
    monkeypatch.setattr("signfd_jax.experiments.run._LISTED", 10)
    config = Experiment(
        decoder="majority_vote", batch_size=2, num_byzantine=5, rounds=1, eval_every=1
    )
    folder, _ = run_experiment(config, tmp_path, progress=False)
    (record,) = read_lines(folder / "metrics.jsonl")
    assert not {"weights", "crossover", "byzantine"} & record.keys()
    assert record["weights_quantiles_honest"] == [1.0] * 7
    low, *_, high = record["crossover_quantiles_byzantine"]
    assert 0 <= low < high <= 1


# Optimisers and schedules of the server ----------------------------------------------


def test_step_is_that_of_optax():
    """Momentum on a cosine, against optax's own, over some rounds of signs."""
    rounds = 20
    config = Experiment(
        optimizer="sgd:momentum=0.9", schedule="cosine:warmup=5", rounds=rounds
    )
    ours = step_of(config, jnp.float32(0.1))
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.1, 5, rounds)
    with jax.numpy_dtype_promotion("standard"):  # as optax has it
        theirs = optax.sgd(schedule, momentum=0.9)
        signs = jax.random.rademacher(jax.random.key(0), (rounds, 8), jnp.float32)
        states = ours.init(signs[0]), theirs.init(signs[0])
        for sign in signs:
            one, mine = ours.update(sign, states[0])
            other, its = theirs.update(sign, states[1])
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
            states = mine, its


def test_plain_steps_are_as_ever():
    """Hashes of what names none of the newer fields: those of before, a grid's too."""
    assert fingerprint(Experiment()) == "c67daa02"
    grid = Grid(
        base=Experiment(),
        decoders=("majority_vote",),
        attacks=("alie",),
        num_byzantine=(0,),
        splits=("iid",),
        batch_sizes=(16,),
    )
    assert fingerprint(grid) == "a14c98c2"
    assert fingerprint(Experiment()) == fingerprint(
        Experiment(worker="gradient", optimizer="sgd", schedule="constant")
    )
    for other in (
        {"worker": "momentum"},
        {"optimizer": "adam"},
        {"schedule": "cosine"},
    ):
        assert fingerprint(Experiment(**other)) != fingerprint(Experiment())
    tx = step_of(Experiment(), 0.25)
    updates, _ = tx.update(jnp.array([1.0, -1.0, 0.0]), tx.init(jnp.zeros(3)))
    np.testing.assert_array_equal(updates, [-0.25, 0.25, 0.0])

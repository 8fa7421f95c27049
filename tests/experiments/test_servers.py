"""Servers by name: what may stand for a decoder, what it assumes, what it sends."""

import dataclasses
import functools
import math

import jax
import numpy as np
import optax
import pytest
from choices import slow_but

import signfd_jax as sfd
from signfd_jax import data, models, workers
from signfd_jax.aggregators import RULES, TRUSTED_RULES, fltrust, stateless
from signfd_jax.cli import main
from signfd_jax.data import batches, partition
from signfd_jax.experiments import Experiment, _servers, registry, run_experiment
from signfd_jax.experiments._engine import known
from signfd_jax.experiments._engine.prepare import (
    byzantine_mask,
    check,
    prepare,
    split_examples,
)
from signfd_jax.experiments._engine.program import program_key, step_of
from signfd_jax.experiments.grid import run_grid
from signfd_jax.experiments.report.communication import Ledger, ledger
from signfd_jax.transforms import scale_by_aggregator, scale_by_zeno


def test_every_rule_is_a_server():
    rules = {*RULES, *TRUSTED_RULES}
    assert rules | set(registry.DECODERS) < set(registry.SERVERS)


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        ("multi_krum:num_byzantine=7", "M > 2f + 2"),
        ("bulyan:4", "M >= 4f + 3"),
        ("multi_krum:neighbours=3", "has no option 'neighbours'; it has num_byzantine"),
        ("mean:num_selected=3", "has no option 'num_selected'"),
        ("signum:1.5", "momentum must lie in"),
        ("s3gd_mv:fraction=0", "fraction must lie in"),
        ("multi_krum:num_neighbours=15", "give 1 to 14"),
        ("signun", "did you mean signum"),
    ],
)
def test_check_refuses(decoder, message):
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        check(Experiment(decoder=decoder, num_byzantine=3))


def test_rule_assumes_as_many_as_there_are_or_as_many_as_it_allows():
    """Krum at M = 15 allows 6: with 7 it is built as for 6, and runs."""
    for number in (0, 6, 7, 15):
        check(Experiment(decoder="krum", num_byzantine=number))
    told = Experiment(decoder="krum:num_byzantine=2", num_byzantine=3)
    assert program_key(told) == program_key(
        Experiment(decoder="krum:num_byzantine=2", num_byzantine=5)
    )
    keys = {
        program_key(Experiment(decoder="krum", num_byzantine=number))
        for number in (0, 3, 3, 6)
    }
    assert len(keys) == 3
    decoders = {
        program_key(Experiment(decoder="majority_vote", num_byzantine=number))
        for number in (0, 3, 6)
    }
    assert len(decoders) == 1


def test_record_without_signs_reads_as_it_was_written(tmp_path):
    cell = Experiment(decoder="multi_krum:scale=50", num_byzantine=3, rounds=2)
    [found] = run_grid([cell], tmp_path, progress=False)
    assert found["sign_error"] == found["margin"] == [None]
    assert run_grid([cell], tmp_path, progress=False) == [found]


@pytest.mark.parametrize("membership", ["drawn_each_round", "rotating"])
def test_rule_meets_liars_who_change_places(membership, tmp_path):
    cell = Experiment(
        decoder="coordinate_median",
        membership=membership,
        num_byzantine=3,
        rounds=2,
        batch_size=4,
    )
    [found] = run_grid([cell], tmp_path, progress=False)
    assert 0 < found["test_accuracy"][0] < 1


def test_rule_refuses_workers_who_stay_away(tmp_path):
    cell = Experiment(
        decoder="coordinate_median", membership="sampled", rounds=2, batch_size=4
    )
    with pytest.raises(ValueError, match="an aggregation rule needs a row from each"):
        run_grid([cell], tmp_path, progress=False)


def test_attackers_take_a_rule_for_a_majority_vote():
    for attack in ("swing", "weight_aware", "adaptive"):
        check(Experiment(decoder="trimmed_mean", attack=attack, num_byzantine=3))


# Servers that must be told whom to trust ----------------------------------------------


NEEDING = ["fltrust", "fltrust_sign", "monna", "zeno"]
TRUSTING = Experiment(
    model="softmax_regression",
    num_workers=8,
    num_byzantine=5,
    trusted=2,
    root_examples=20,
    batch_size=8,
    rounds=6,
    eval_every=3,
)


def varied(**fields):
    return dataclasses.replace(TRUSTING, **fields)


def test_who_must_be_told_is_known():
    found = [n for n, f in registry.SERVERS.items() if getattr(f, "needs", ())]
    assert found == NEEDING
    assert {registry.SERVERS[name].needs for name in found} == {("trusted",)}


@pytest.mark.parametrize("decoder", NEEDING)
def test_who_is_not_told_whom_to_trust_is_refused(decoder, capsys):
    wrong = f"{decoder} needs trusted; add --trusted to say who is known to be honest"
    for fields in ({"trusted": 0, "root_examples": 0}, {"withheld": ("trusted",)}):
        with pytest.raises(ValueError, match=wrong):
            check(varied(decoder=decoder, **fields))
    with pytest.raises(ValueError, match=f"{decoder} cannot use shares; leave out"):
        check(varied(decoder=decoder, shares="examples"))
    assert main(["run", "--decoder", decoder]) == 2
    assert capsys.readouterr() == ("", f"signfd: {wrong}\n")


def test_a_rule_of_another_package_is_told(monkeypatch, tmp_path):
    def theirs(gradients, trusted):
        return gradients[jax.numpy.argmax(trusted)]

    server = _servers._own_rule(theirs)
    monkeypatch.setitem(registry.SERVERS, "theirs", server)
    with pytest.raises(ValueError, match="theirs needs trusted"):
        check(varied(decoder="theirs", trusted=0, root_examples=0))
    [found] = run_grid([varied(decoder="theirs")], tmp_path, progress=False)
    assert 0 <= found["test_accuracy"][0] <= 1


def by_hand(name, digits, split, loss_fn):
    """The server's transformation as the library has it, and what it is told."""
    rate = TRUSTING.learning_rate
    if name == "fltrust":
        aggregate = scale_by_aggregator(stateless(fltrust), 8)
        return aggregate, 300.0, {"trusted": jax.numpy.arange(8) >= 6}
    own = np.concatenate([split.indices[6, :20], split.indices[7, :20]])
    images = data.standardise(digits.train_inputs[own], digits)
    root = images, digits.train_labels[own]
    tx = scale_by_zeno(
        *(8, loss_fn),
        num_byzantine=5,
        learning_rate=3000 * rate,
        penalty=0.3 * 3000 * rate,
    )
    update = functools.partial(tx.update, root_batch=root)
    return optax.GradientTransformationExtraArgs(tx.init, update), 3000.0, {}


# Steps so long that the loss is not linear in them: who is left out depends on them.
@pytest.mark.parametrize("decoder", ["fltrust", "zeno:scale=3000,penalty=0.3"])
@pytest.mark.slow
def test_a_server_by_name_is_that_of_the_library(decoder):
    digits = data.load("digits")
    config = varied(decoder=decoder)
    split = split_examples(config, digits)
    model = models.SoftmaxRegression(10)
    loss_fn = models.loss_fn(model)
    tx, scale, told = by_hand(decoder.partition(":")[0], digits, split, loss_fn)
    step = optax.scale_by_learning_rate(scale * config.learning_rate)
    simulated = sfd.simulation(
        *(loss_fn, optax.chain(tx, step)),
        num_workers=8,
        attack=sfd.attacks.sign_inversion(),
    )
    model_key, run_key = jax.random.split(jax.random.key(0))
    params = model.init(model_key, jax.numpy.zeros((1, 8, 8, 1)))
    state = simulated.init(run_key, params, byzantine_mask(config, 0))
    draw = batches.worker_batches(digits, split, [8] * 6 + [20, 20])
    state, _ = sfd.run(simulated, state, draw, config.rounds, **told)
    prepared = prepare(config, digits, split)
    ours, rounds = prepared.start(), 0
    while rounds < config.rounds:
        ours, rounds, _ = prepared.advance(ours, rounds)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one[0], other, 1e-4, 1e-4),
        *(ours.params, state.params),
    )


@pytest.mark.parametrize("own", [0, 3])
def test_the_root_batch_is_what_the_trusted_hold(own):
    """Each example once, however the split is padded."""
    config = varied(root_examples=own)
    sizes = np.array([4] * 6 + ([own, own] if own else [5, 2]), np.int32)
    indices = np.arange(8 * 9, dtype=np.int32).reshape(8, 9)
    split = partition.Partition(*map(jax.numpy.asarray, (indices, sizes)))
    rows, counted = known.root_batch(config, split, lambda batch: batch)
    held = [*indices[6, : sizes[6]], *indices[7, : sizes[7]]]
    assert rows[counted == 1].tolist() == held
    assert set(np.unique(counted)) <= {0, 1}


@pytest.mark.slow
def test_one_trusted_worker_saves_a_run_of_each():
    """Ten of fifteen invert: a majority vote learns the opposite of its data."""
    digits = data.load("digits")
    accuracy = {}
    for decoder in ("majority_vote", *NEEDING):
        config = Experiment(
            decoder=decoder,
            model="softmax_regression",
            num_byzantine=10,
            trusted=1,
            root_examples=100,
            withheld=("trusted",) if decoder == "majority_vote" else (),
            rounds=100,
            eval_every=100,
        )
        prepared = prepare(config, digits)
        _, _, metrics = prepared.advance(prepared.start(), 0)
        accuracy[decoder] = float(metrics.test_accuracy[0])
    assert accuracy.pop("majority_vote") < 0.2
    assert min(accuracy.values()) > 0.6, accuracy


N = 582_026


@pytest.mark.parametrize(
    ("decoder", "wire", "expected"),
    [
        ("federated_defense", "one_bit", Ledger(N + 1, 0, N, 0)),
        ("federated_defense", "ternary", Ledger(2 * N, 0, 2 * N, 0)),
        ("signum", "one_bit", Ledger(N + 1, 0, N, 0)),
        ("multi_krum:scale=2", "ternary", Ledger(32 * N, 0, 32 * N, 0)),
        # k = 58,203 values with indices of 20 bits; 9 rows' supports: dense is less.
        (
            "top_k_multi_krum",
            "ternary",
            Ledger(32 * 58_203, 20 * 58_203, 32 * N, 0),
        ),
        (
            "top_k_multi_krum:fraction=0.001",
            "ternary",
            Ledger(32 * 582, 20 * 582, 32 * 9 * 582, 20 * 9 * 582),
        ),
        ("s3gd_mv:fraction=0.001", "ternary", Ledger(582, 20 * 582, 2 * N, 0)),
        ("ef_sign_sgd", "ternary", Ledger(N + 32, 0, 32 * N, 0)),
        ("fltrust", "one_bit", Ledger(32 * N, 0, 32 * N, 0)),
        ("fltrust_sign", "one_bit", Ledger(2 * N, 0, 2 * N, 0)),
        ("zeno", "ternary", Ledger(32 * N, 0, 32 * N, 0)),
    ],
)
def test_ledger_by_hand(decoder, wire, expected):
    assert math.ceil(math.log2(N)) == 20
    config = Experiment(decoder=decoder, wire=wire, num_byzantine=6)
    assert ledger(config, N) == expected


def test_coefficients_are_counted_as_they_are_sent():
    """What the worker leaves from 0, with a sign and its place in its block."""
    shapes = [(256, 100), (3, 7), (130,), ()]
    params = [jax.random.normal(jax.random.key(n), s) for n, s in enumerate(shapes)]
    worker = workers.dct_top_k(
        workers.gradient(lambda x, batch: optax.tree.sum(optax.tree.mul(x, batch))), 2
    )
    state = worker.init(jax.random.key(0), params)
    sent, _, _ = jax.jit(worker.send)(jax.random.key(1), params, params, state)
    signs = sum(int((leaf != 0).sum()) for leaf in sent)
    # Eight blocks of 64 x 50, one of 3 x 7, five of 26, one of 1.
    places = [2 * 8 * 12, 2 * 5, 2 * 5 * 5, 0]
    size = sum(leaf.size for leaf in params)
    found = ledger(Experiment(worker="dct_top_k:k=2"), size, shapes)
    assert found == Ledger(signs, sum(places), 2 * size, 0)
    with pytest.raises(ValueError, match="give their shapes"):
        ledger(Experiment(worker="dct_top_k"), size)


def test_the_run_of_coefficients_is_the_published_rule(tmp_path):
    config = Experiment(rounds=20, eval_every=20, worker="dct_top_k:k=4,chunk=16")
    _, summary = run_experiment(config, tmp_path, progress=False)
    assert summary["test_accuracy"] > 0.5
    up, down = summary["bits_per_worker_up"], summary["bits_per_worker_down"]
    assert up < 0.2 * 20 * summary["num_coordinates"]
    assert down == 2 * 20 * summary["num_coordinates"]


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"decoder": "krum"}, "needs a decoder of votes"),
        ({"wire": "one_bit"}, "the ternary wire"),
        ({"worker_chunk": 5}, "needs worker_chunk=0"),
    ],
)
def test_coefficients_need_votes_that_abstain(fields, wrong):
    with pytest.raises(ValueError, match=wrong):
        check(Experiment(worker="dct_top_k", **fields))


@pytest.mark.parametrize("wire", slow_but(["ternary"], ["ternary", "one_bit"]))
def test_the_run_of_rsa_sends_votes(tmp_path, wire):
    worker = "rsa:rate=0.1,penalty=0.02"
    config = Experiment(rounds=40, eval_every=40, worker=worker, wire=wire)
    config = dataclasses.replace(config, learning_rate=0.03, num_byzantine=3)
    _, summary = run_experiment(config, tmp_path, progress=False)
    assert summary["test_accuracy"] > 0.5
    votes = Experiment(rounds=40, wire=wire)
    size = summary["num_coordinates"]
    assert summary["bits_per_worker_up"] == 40 * ledger(votes, size).up


@pytest.mark.parametrize("fields", [{"decoder": "krum"}, {"worker_chunk": 5}])
def test_rsa_needs_votes_that_are_not_packed(fields):
    with pytest.raises(ValueError, match="a decoder of votes and worker_chunk=0"):
        check(Experiment(worker="rsa", **fields))


@pytest.mark.parametrize("name", registry.OPTIMIZERS)
def test_every_optimizer_steps_against_the_sign(name):
    config = Experiment(optimizer=name, schedule="linear", rounds=10)

    @jax.jit
    def step(rate):
        tx = step_of(config, rate)
        params = {"x": jax.numpy.ones((4, 3))}
        updates, _ = tx.update(params, tx.init(params), params)
        return updates["x"]

    with jax.numpy_dtype_promotion("standard"):  # as users have it
        assert (step(jax.numpy.float32(0.01)) < 0).all()


def test_weight_decay_has_no_part_in_the_momentum():
    config = Experiment(optimizer="sgd:momentum=0.5,weight_decay=0.1")
    tx, params = step_of(config, 1.0), jax.numpy.full(2, 4.0)
    state = tx.init(params)
    for trace in (1.0, 1.5):
        updates, state = tx.update(jax.numpy.ones(2), state, params)
        np.testing.assert_allclose(updates, -(trace + 0.1 * 4), rtol=1e-6)

"""Servers by name: what may stand for a decoder, what it assumes, what it sends."""

import math

import jax
import numpy as np
import optax
import pytest

from signfd_jax import workers
from signfd_jax.aggregators import RULES
from signfd_jax.experiments import Experiment, registry, run_experiment
from signfd_jax.experiments._engine.prepare import check
from signfd_jax.experiments._engine.program import program_key, step_of
from signfd_jax.experiments.grid import run_grid
from signfd_jax.experiments.report.communication import Ledger, ledger


def test_every_rule_is_a_server():
    assert set(RULES) | set(registry.DECODERS) < set(registry.SERVERS)


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

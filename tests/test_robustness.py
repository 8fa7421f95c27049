"""How the published grid is judged; what it measures is not tested here."""

import dataclasses

import pytest

robustness = pytest.importorskip("benchmarks.robustness", reason="not a checkout")

FREE = ("iid/64", "majority_vote", "none", 0)


def cell(decoder, attack="alie", num_byzantine=6, setting="iid/64"):
    return setting, decoder, attack, num_byzantine


def test_a_paired_difference_is_judged_with_two_standard_errors():
    mean, error = robustness.paired([0.9, 0.8, 0.7], [0.9, 0.9, 0.9])
    assert mean == pytest.approx(-0.1)
    assert error == pytest.approx(0.1 / 3**0.5)
    # A common difference has no error; one as large in the mean may be chance.
    assert robustness.worse([0.88, 0.68], [0.9, 0.7], 0.01)
    assert not robustness.worse([0.8, 0.78], [0.7, 0.9], 0.01)
    assert not robustness.worse([0.895], [0.9], 0.01)


@pytest.mark.parametrize(
    ("ours", "num_byzantine", "below_vote", "off_target"),
    [
        (0.95, 6, 0, 0),
        (0.89, 6, 1, 1),  # worse than the majority's .92, and .06 off
        (0.925, 6, 0, 1),  # .025 off
        (0.925, 7, 0, 0),  # allowed with seven
    ],
)
def test_the_two_promises(ours, num_byzantine, below_vote, off_target):
    table = {
        FREE: [0.95, 0.95],
        cell("majority_vote", num_byzantine=num_byzantine): [0.92, 0.92],
        cell("correlation_defense", num_byzantine=num_byzantine): [ours, ours],
        cell("federated_defense", num_byzantine=num_byzantine): [0.1, 0.1],
    }
    verdict = robustness.judge(table)
    assert verdict["cells_judged"] == 1
    assert len(verdict["worse_than_majority_vote"]) == below_vote
    assert len(verdict["iid_off_target"]) == off_target


def test_a_loss_within_its_errors_is_named_but_not_counted():
    table = {cell("majority_vote"): [0.9, 0.9], cell(robustness.DEFAULT): [0.9, 0.8]}
    verdict = robustness.judge(table)
    assert verdict["worse_than_majority_vote"] == []
    [near] = verdict["below_it_within_two_errors"]
    assert near["difference"] == pytest.approx(-0.05)
    assert near["error"] == pytest.approx(0.05)


def test_more_seeds_decide_where_both_decoders_have_them():
    ours, vote = cell(robustness.DEFAULT), cell("majority_vote")
    table = {vote: [0.9, 0.9], ours: [0.8, 0.8]}
    assert len(robustness.judge(table)["worse_than_majority_vote"]) == 1
    assert len(robustness.judge(table, {ours: [0.9] * 4})["worse_than_majority_vote"])
    verdict = robustness.judge(table, {ours: [0.8, 0.9, 1.0], vote: [0.9] * 3})
    assert verdict["cells_with_more_seeds"] == 1
    assert verdict["worse_than_majority_vote"] == []


def test_only_iid_data_have_a_target():
    table = {
        ("one_class/64", "majority_vote", "none", 0): [0.7],
        cell("correlation_defense", setting="one_class/64"): [0.3],
    }
    assert robustness.judge(table)["iid_off_target"] == []


def test_what_one_bit_loses():
    ternary = {cell("majority_vote"): [0.9, 0.9], cell("correlation_defense"): [0.9]}
    one_bit = {
        cell("majority_vote"): [0.88, 0.87],
        cell("correlation_defense"): [0.9],
        cell("correlation_defense", "fang"): [0.1],
    }
    verdict = robustness.lost_to(ternary, one_bit)
    assert verdict["cells_compared"] == 2
    [lost] = verdict["lost_to_ternary_votes"]
    assert (lost["decoder"], lost["attack"]) == ("majority_vote", "alie")
    assert lost["difference"] == pytest.approx(-0.025)


def test_the_grid_has_every_cell_once():
    options = robustness.Options()
    grid = robustness.grid(options)
    each = 1 + len(options.attacks) * len(options.num_byzantine)
    assert len(grid) == len(options.settings) * len(options.decoders) * each
    assert len(set(grid.values())) == len(grid)
    assert {e.wire for e in grid.values()} == {"ternary"}
    one_bit = robustness.grid(dataclasses.replace(options, wire="one_bit"))
    assert {e.wire for e in one_bit.values()} == {"one_bit"}

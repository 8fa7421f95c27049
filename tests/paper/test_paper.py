"""The paper's findings: measured against the theory, kept, judged and written down."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from signfd_jax import paper, theory
from signfd_jax.cli import main
from signfd_jax.experiments import Experiment
from signfd_jax.paper import _base as outcome
from signfd_jax.paper import report
from signfd_jax.paper._measure import channel_error, side_by_side
from signfd_jax.paper._measure.setting import make_setting, wrong_share

pytestmark = pytest.mark.slow

TINY = Experiment(rounds=4, batch_size=4, num_workers=5, seeds=2, eval_every=2)


def test_every_figure_says_what_the_paper_reports():
    """Seven findings and the quirks, in the order of the report."""
    assert list(paper.FINDINGS) == [
        "inversion",
        "flip-probability",
        "initial-phase",
        "estimation",
        "gaussian",
        "batch-sizes",
        "invariance",
        "quirks",
    ]
    assert all(found.title and found.reported for found in paper.FINDINGS.values())


def test_scales_have_equally_many_examples_in_every_mode():
    for scale in paper.SCALES.values():
        totals = {sum(n * size for n, size in kinds) for kinds in scale.batch_sizes}
        workers = {sum(n for n, _ in kinds) for kinds in scale.batch_sizes}
        assert len(totals) == 1
        assert workers == {scale.base.num_workers}
    assert {0.0, 0.5, 1.0} <= set(paper.SCALES["small"].flip_probabilities)


def test_verdict_counts_the_claims():
    def judged(*holds):
        claims = tuple(paper.Claim("so it is", hold) for hold in holds)
        return paper.verdict(paper.Outcome(claims, [], {}))

    assert judged(True, True) == "reproduced"
    assert judged(True, False) == "reproduced in part"
    assert judged(False) == "not reproduced"


def test_learned_weights_approach_the_oracle():
    """The error of estimates from a million samples is that of exact weights."""
    crossover = (0.1, 0.3, 0.3, 0.4, 0.8)
    found = channel_error.weights_from_samples(crossover, (2, 10**6), draws=1000)
    exact = float(theory.decoding_error(jnp.array(crossover)))
    assert found["oracle"] == exact
    assert found["error"][1] == pytest.approx(exact, abs=1e-4)
    assert found["error"][0] > found["error"][1]
    assert all(e <= b for e, b in zip(found["error"], found["bound"], strict=True))
    # The root mean square of a smoothed frequency of two samples, by hand; 5 standard
    # errors of its square are .004 of .040.
    p = np.array(crossover)
    mean = (2 * p + 1) / 4
    expected = np.sqrt(np.mean(2 * p * (1 - p) / 16 + (mean - p) ** 2))
    assert found["deviation"][0] == pytest.approx(expected, rel=0.05)


def test_wrong_share_by_hand():
    vote = {"a": jnp.array([1, -1, 0], jnp.int8), "b": jnp.array([[1]], jnp.int8)}
    truth = {"a": jnp.array([1, 1, 1], jnp.int8), "b": jnp.array([[0]], jnp.int8)}
    assert wrong_share(vote, truth) == 0.5


def test_whole_loss_is_the_loss_over_all_examples():
    from signfd_jax import data, models

    setting = make_setting(TINY)
    params = setting.init(jax.random.key(0))
    digits = data.load("digits")
    inputs = data.standardise(jnp.asarray(digits.train_inputs), digits)
    expected = models.loss_fn(models.MLP(hidden=(64,), num_classes=10))(
        params, (inputs, jnp.asarray(digits.train_labels))
    )
    np.testing.assert_allclose(setting.whole_loss(params), expected, rtol=1e-5)


def test_lab_measures_once(tmp_path):
    calls = []

    def measured(base, number, *, data_dir):
        calls.append(number)
        return {"rounds": base.rounds, "number": number}

    lab = outcome.Lab(tmp_path, progress=False)
    expected = {"rounds": 4, "number": 3}
    assert lab.measure(measured, TINY, 3) == expected
    assert lab.measure(measured, TINY, 3) == expected
    assert outcome.Lab(tmp_path).measure(measured, TINY, 3) == expected
    other = dataclasses.replace(TINY, rounds=5)
    assert lab.measure(measured, other, 3)["rounds"] == 5
    assert calls == [3, 3]


def test_report_has_a_verdict_for_each_finding(tmp_path, monkeypatch, capsys):
    """Invariance alone, as the command runs it; nothing runs twice."""
    scale = dataclasses.replace(paper.SCALES["small"], base=TINY)
    monkeypatch.setitem(report.SCALES, "small", scale)
    command = ["paper", "invariance", "--quiet", "--output-dir", str(tmp_path)]
    monkeypatch.setattr(
        side_by_side, "lockstep", _fewer(side_by_side.lockstep, calls := [])
    )
    assert main(command) == 0
    assert "invariance        reproduced\n" in capsys.readouterr().out
    text = (tmp_path / "paper-small" / "report.md").read_text()
    assert "| invariance | Invariance: trajectories" in text
    assert "yes: over 4 rounds no parameter ever differs" in text
    assert (tmp_path / "paper-small" / "invariance.png").stat().st_size > 0
    assert main(command) == 0
    assert len(calls) == 1
    assert main([*command, "--force"]) == 0
    assert len(calls) == 2


def _fewer(function, calls):
    """The measurement with two numbers of inverters, at M = 5."""

    def lockstep(base, numbers, *, data_dir):
        calls.append(numbers)
        found = function(base, (0, 2), data_dir=data_dir)
        difference = [[row[0]] + [row[1]] * 7 for row in found["difference"]]
        accuracy = [found["accuracy"][0]] + [found["accuracy"][1]] * 7
        return {**found, "difference": difference, "accuracy": accuracy}

    return lockstep


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "give a figure, or all"),
        ("--scale small", "give a figure, or all"),
        ("accuracy", "unknown figure 'accuracy'; known are all, inversion"),
        ("all --scale huge", "unknown scale 'huge'; known are small, full"),
        ("all --rounds 3", "--rounds"),
    ],
)
def test_bad_input(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["paper", *arguments.split()]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["flip-probability", "gaussian", "batch-sizes"])
def test_finding_runs_and_is_kept(name, tmp_path):
    small = paper.SCALES["small"]
    base = dataclasses.replace(small.base, rounds=20, seeds=2)
    scale = dataclasses.replace(
        small,
        base=base,
        flip_probabilities=(0.5, 1.0),
        batch_sizes=small.batch_sizes[-1:],
    )
    lab = outcome.Lab(tmp_path, progress=False)
    found = paper.FINDINGS[name].run(scale, lab)
    assert found.claims
    assert len({len(row) for row in found.rows}) == 1
    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert paper.FINDINGS[name].run(scale, lab) == found
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files
    assert any(name.endswith(".jsonl") for name in files)
    for name, text in files.items():
        whole = text.split("\n")[:-1] if name.endswith(".jsonl") else [text]
        assert all(map(json.loads, whole))

"""Tables and texts in whole runs: what they learn, and what does not fit."""

import dataclasses

import numpy as np
import pytest
from choices import slow_but

from signfd_jax import data
from signfd_jax.experiments import Experiment, run_experiment
from signfd_jax.experiments._engine.prepare import prepare

TABLE = Experiment(
    name="table",
    dataset="breast_cancer",
    model="softmax_regression",
    num_byzantine=3,
    learning_rate=0.02,
    rounds=30,
    eval_every=30,
)
TEXT = Experiment(
    name="text",
    dataset="python_docs",
    model="transformer:width=8,layers=1,heads=2",
    split="writers",
    num_workers=5,
    num_byzantine=1,
    learning_rate=0.01,
    rounds=60,
    eval_every=60,
)


DECODERS = ["majority_vote", "correlation_defense"]


@pytest.mark.parametrize("decoder", slow_but(DECODERS[:1], DECODERS))
def test_a_table_is_learned_beside_liars(decoder):
    dataset = data.load("breast_cancer")
    config = dataclasses.replace(TABLE, decoder=decoder)
    ((_, metrics, _),) = prepare(config, dataset).tests
    most = np.bincount(dataset.test_labels).max() / len(dataset.test_labels)
    assert most < 0.65
    assert metrics.test_accuracy[0] > 0.9


@pytest.mark.slow
def test_a_text_is_learned_beside_a_liar():
    dataset = data.load("python_docs")
    config = dataclasses.replace(TEXT, attack="label_flip")
    ((_, metrics, _),) = prepare(config, dataset).tests
    commonest = np.bincount(dataset.train_labels.ravel()).argmax()
    assert metrics.test_accuracy[0] > np.mean(dataset.test_labels == commonest)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model": "mlp"}, "MLP (gives logits|cannot read an input) of shape"),
        ({"model": "resnet18"}, "ResNet18 cannot read an input of shape .1, 32."),
        ({"model": "transformer:heads=3"}, "width must be a multiple of heads"),
        ({"split": "dirichlet:1"}, "texts have no classes: take iid, everything or a"),
        ({"split": "labels:2"}, "texts have no classes"),
        ({"split": "one_class"}, "texts have no classes"),
        ({"dataset": "digits", "model": "mlp"}, "do not say who wrote which example"),
        (
            {"dataset": "digits", "split": "iid"},
            "wants tokens int32 .N, T., but got float32",
        ),
        (
            {"dataset": "wine", "model": "resnet", "split": "iid"},
            "ResNet cannot read an input of shape .1, 13.",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(fields, says, tmp_path):
    config = dataclasses.replace(TEXT, **fields)
    with pytest.raises(ValueError, match=says) as error:
        run_experiment(config, tmp_path, progress=False)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_does_not_go_on_with_the_topics_of_another_python(tmp_path, monkeypatch):
    short = dataclasses.replace(TEXT, decoder="majority_vote", rounds=1, eval_every=1)
    monkeypatch.setattr(
        "pydoc_data.topics.topics", {"if": "if this\n" * 40, "for": "for that\n" * 40}
    )
    folder, _ = run_experiment(short, tmp_path, progress=False)
    assert (folder / "summary.json").exists()
    monkeypatch.setattr("pydoc_data.topics.topics", {"if": "if not\n" * 90})
    with pytest.raises(ValueError, match="was begun with other data of the same name"):
        run_experiment(short, tmp_path, progress=False)

"""Experiments with a name, each with what it takes and what it gives.

`PRESETS` maps the name to the `Preset`.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from signfd_jax.experiments import _plugins as plugins
from signfd_jax.experiments.config import Experiment

__all__ = ["PRESETS", "Preset"]


class Preset(NamedTuple):
    """A named experiment.

    Attributes:
        experiment: the configuration.
        description: what it is, the time it takes on two CPU cores and the test
            accuracy to expect.
        fallback: the data set to take where the experiment's cannot be had; "": none.
    """

    experiment: Experiment
    description: str
    fallback: str = ""


_DIGITS = Experiment(name="digits", num_byzantine=7)
_MNIST_MLP = dataclasses.replace(
    _DIGITS,
    name="mnist-mlp",
    dataset="mnist",
    model="mlp:hidden=128",
    batch_size=64,
    learning_rate=1e-3,
    rounds=400,
    eval_every=25,
)
_MNIST_CNN = dataclasses.replace(
    _MNIST_MLP, name="mnist-cnn", model="mnist_cnn", num_byzantine=6, rounds=3000
)
_CIFAR10_RESNET56 = dataclasses.replace(
    _MNIST_CNN,
    name="cifar10-resnet56",
    dataset="cifar10",
    model="resnet:depth=56",
    eval_every=50,
    augment=True,
)
_POPULATION = Experiment(
    name="population",
    dataset="mnist",
    model="softmax_regression",
    num_workers=100_000,
    num_byzantine=40_000,
    batch_size=8,
    worker_chunk=100,
    learning_rate=1e-3,
    rounds=60,
    eval_every=1,
)

_TABULAR = dataclasses.replace(
    _DIGITS,
    name="tabular",
    dataset="breast_cancer",
    model="mlp:hidden=32",
    rounds=200,
)
_TEXT = dataclasses.replace(
    _DIGITS,
    name="text",
    dataset="python_docs",
    model="transformer",
    optimizer="sgd:momentum=0.9",
    learning_rate=1e-3,
    eval_every=50,
)

PRESETS: dict[str, Preset] = {
    preset.experiment.name: preset
    for preset in (
        Preset(
            _DIGITS,
            "scikit-learn's digits, MLP 64-64-10, 7 of 15 liars. 5 s; accuracy .97.",
        ),
        Preset(
            _MNIST_MLP,
            "MNIST, MLP 784-128-10, 7 of 15 liars. 8 s; accuracy .96.",
        ),
        Preset(
            _MNIST_CNN,
            "MNIST, the paper's CNN (582,026 parameters), 6 of 15 liars. 0.4 s a "
            "round, 20 min in all; accuracy .97 after 300 (--rounds 300: 2 min).",
        ),
        Preset(
            dataclasses.replace(
                _CIFAR10_RESNET56, name="cifar10-resnet20", model="resnet:depth=20"
            ),
            "CIFAR-10, ResNet-20 (269,722 parameters), 6 of 15 liars. 6 s a round, 5 h "
            "in all: for a GPU; accuracy .44 after 100 rounds (--rounds 100: 11 min).",
        ),
        Preset(
            _CIFAR10_RESNET56,
            "CIFAR-10, the paper's ResNet-56 (853,018 parameters), 6 of 15 liars. 21 s "
            "of processor time a round (2 were run), 18 h in all: for a GPU; accuracy "
            "not measured.",
        ),
        Preset(
            dataclasses.replace(
                _CIFAR10_RESNET56, name="cifar100-resnet56", dataset="cifar100"
            ),
            "CIFAR-100, the paper's ResNet-56 (858,868 parameters), 6 of 15 liars. But "
            "for its head the model of cifar10-resnet56, so 18 h in all: for a GPU; "
            "accuracy not measured.",
        ),
        Preset(
            _TABULAR,
            "scikit-learn's breast cancer, MLP 30-32-2, 7 of 15 liars. 12 s of "
            "processor time; accuracy .97, where .63 are of one class.",
        ),
        Preset(
            _TEXT,
            "The topics of Python's help(), transformer (32,736 parameters), 7 of 15 "
            "liars. 1 min of processor time; the next character is right .45 of the "
            "time, the commonest one .18.",
        ),
        Preset(
            _POPULATION,
            "MNIST (or else digits), softmax regression, 100,000 workers, 40,000 of "
            "them liars. 4 min and 1.4 GiB; accuracy .69.",
            fallback="digits",
        ),
    )
}


def _own_preset(function: Callable[[], Any]) -> Preset:
    """A preset of another package: its function gives an `Experiment`."""
    found = function()
    if not isinstance(found, Experiment):
        raise ValueError("a preset is a function that returns an Experiment")
    line, *_ = (inspect.getdoc(function) or "").split("\n")
    return Preset(found, line)


PRESETS |= plugins.load("signfd_jax.presets", taken=PRESETS, make=_own_preset)

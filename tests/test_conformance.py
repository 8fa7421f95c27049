"""What holds for whatever is registered: a new decoder, attack, rule, split too."""

import inspect

import jax
import numpy as np
import pytest

from signfd_jax.experiments import registry
from signfd_jax.experiments._choices import FACTS

GIVEN = {
    "num_workers": 11,
    "actual_byzantine": 2,
    "key": jax.random.key(0),
    "decoder": registry.DECODERS["majority_vote"](),
    "num_classes": 10,
    "labels": np.arange(110) % 10,
    "learning_rate": 0.1,
    "loss_fn": lambda params, batch: 0.0,
    "root_batch": None,
    "rounds": 10,
    "seed": 0,
    "writers": np.arange(110) % 13,
}
# Options that must be given, and what does.
NEEDED = {"alpha": 0.5, "num_labels": 2, "group_size": 3}
NEEDED |= {"num_shards": 2, "share": 0.5}
# What an error calls an option that a user writes otherwise, or that is a name.
CALLED = {
    "flip_probability": "probability",
    "then": "the attack that follows",
    "against": "unknown decoder",
}
TABLES = {  # but those of flax and optax
    field: table
    for field, table in registry.REGISTRIES.items()
    if field not in ("model", "optimizer")
}


def parameters_of(factory):
    return inspect.signature(factory).parameters


def needed(factory):
    """Arguments of the factory without a default."""
    required = [
        name
        for name, parameter in parameters_of(factory).items()
        if parameter.default is parameter.empty
    ]
    return {name: (GIVEN | NEEDED)[name] for name in required}


def options():
    """Every option of everything that has a name."""
    for field, table in TABLES.items():
        for name, factory in table.items():
            for option in parameters_of(factory):
                if option not in FACTS:
                    case = f"{field}-{name}-{option}"
                    yield pytest.param(factory, option, id=case)


@pytest.mark.parametrize(("factory", "option"), list(options()))
@pytest.mark.usefixtures("without_beartype")
def test_an_option_refuses_nonsense_by_name(factory, option):
    factory(**needed(factory))
    with pytest.raises(ValueError, match=CALLED.get(option, option)):
        factory(**(needed(factory) | {option: "nonsense"}))

"""Names: the only place where a decoder, an attack or a model becomes a string.

Each registry is a plain dict from a name to a factory: `ATTACKS`, `DATASETS`,
`DECODERS`, `MEMBERSHIPS`, `MODELS`, `OPTIMIZERS`, `SCHEDULES`, `SERVERS`, `SPLITS`,
`WORKERS`.
Decoders, attacks and memberships are those that their packages list in `__all__`.
`SERVERS` has all that may stand for a decoder: the decoders themselves, the rest of the
sign family, the aggregation rules and Zeno. `REAL_VALUED` is the step of those that
send real numbers. `OPTIMIZERS` are optax's, for what the server makes of the decoded
signs. `REGISTRIES` says which field of a configuration names what, and `resolve` parses
them all.

A choice is written `name`, `name:value` or `name:option=value,option=value`: the
options are the factory's own arguments, a lone value its first one. Arguments called
like a fact of the experiment (`num_workers`, `decoder`, ...) are no options: they are
filled in.

Other packages add attacks, data sets, decoders, models, presets and aggregation rules
by entry points (`signfd_jax.experiments._plugins`). A model may also be
`package.module:Name`, and a data set a path.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from signfd_jax import data, models
from signfd_jax.data import partition
from signfd_jax.experiments import _plugins as plugins
from signfd_jax.experiments._adversaries import ATTACKS, MEMBERSHIPS
from signfd_jax.experiments._choices import Choice, choose
from signfd_jax.experiments._servers import DECODERS, REAL_VALUED, SERVERS
from signfd_jax.experiments._steps import OPTIMIZERS, SCHEDULES
from signfd_jax.experiments._workers import WORKERS
from signfd_jax.experiments.config import Experiment

__all__ = [
    "ATTACKS",
    "DATASETS",
    "DECODERS",
    "MEMBERSHIPS",
    "MODELS",
    "OPTIMIZERS",
    "REAL_VALUED",
    "REGISTRIES",
    "SCHEDULES",
    "SERVERS",
    "SPLITS",
    "WORKERS",
    "Names",
    "check_dataset",
    "load_dataset",
    "resolve",
]


def _mlp(num_classes: int, hidden: int = 128) -> models.MLP:
    """One hidden layer on the flattened image."""
    return models.MLP(hidden=(hidden,), num_classes=num_classes)


MODELS: dict[str, Callable[..., Any]] = {
    "softmax_regression": models.SoftmaxRegression,
    "mlp": _mlp,
    "mnist_cnn": models.MnistCNN,
    "resnet": models.ResNet,
    "resnet18": models.ResNet18,
    "vgg11": models.VGG11,
    "transformer": models.Transformer,
}
MODELS |= plugins.load("signfd_jax.models", taken=MODELS)

DATASETS: dict[str, Callable[[], data.Dataset]] = plugins.load(
    "signfd_jax.datasets", taken=data.DATASETS
)
"""The data sets that other packages add."""


def load_dataset(
    name: str, data_dir: str | os.PathLike[str] | None = None
) -> data.Dataset:
    """Load a data set that a configuration names.

    Args:
        name: of this library, of another package, or a path, see `data.load`.
        data_dir: the folder of this library's data sets; None: see `data.load`.

    Returns:
        A `Dataset`.

    Raises:
        DataError: see `data.load`.
        ValueError: the other package gives no data set.

    Examples:
        >>> load_dataset("digits").num_classes
        10
    """
    if name not in DATASETS:
        return data.load(name, data_dir=data_dir)
    found = DATASETS[name]()
    if not isinstance(found, data.Dataset):
        raise ValueError(
            f"the data set {name} of another package must be a data.Dataset, such as "
            f"data.from_arrays gives, but is {type(found).__name__}"
        )
    return found


def check_dataset(name: str) -> None:
    """Refuse a data set that is none.

    Args:
        name: as `load_dataset` takes it.

    Raises:
        ValueError: there is none of that name.

    Examples:
        >>> check_dataset("digits")
    """
    if name in plugins.BROKEN:
        raise ValueError(plugins.BROKEN[name])
    if name not in DATASETS:
        data.check_name(name)


SPLITS: dict[str, Callable[..., partition.Partition]] = {
    "iid": partition.iid,
    "dirichlet": partition.dirichlet,
    "everything": partition.everything,
    "labels": partition.labels_per_worker,
    "one_class": partition.one_class_per_worker,
    "replicated": partition.replicated,
    "shards": partition.shards,
    "similarity": partition.similarity,
    "writers": partition.by_writer,
}


REGISTRIES: dict[str, dict[str, Callable[..., Any]]] = {
    "model": MODELS,
    "split": SPLITS,
    "decoder": SERVERS,
    "attack": ATTACKS,
    "membership": MEMBERSHIPS,
    "worker": WORKERS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
}


class Names(NamedTuple):
    """What the names in a configuration stand for.

    Attributes:
        model: a choice of `MODELS`.
        split: a choice of `SPLITS`.
        decoder: a choice of `SERVERS`.
        attack: a choice of `ATTACKS`.
        membership: a choice of `MEMBERSHIPS`.
        worker: a choice of `WORKERS`.
        optimizer: a choice of `OPTIMIZERS`.
        schedule: a choice of `SCHEDULES`.
    """

    model: Choice
    split: Choice
    decoder: Choice
    attack: Choice
    membership: Choice
    worker: Choice
    optimizer: Choice
    schedule: Choice


def resolve(config: Experiment) -> Names:
    """Parse the names in a configuration: the only place where they become functions.

    Args:
        config: the experiment.

    Returns:
        `Names`, a choice for each field of `REGISTRIES`.

    Raises:
        ValueError: a name or an option does not exist.

    Examples:
        >>> resolve(Experiment(attack="gaussian:2")).attack.options
        (('standard_deviation', 2.0),)
    """
    return Names(
        *(
            choose(table, field, getattr(config, field))
            for field, table in REGISTRIES.items()
        )
    )

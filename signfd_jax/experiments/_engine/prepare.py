"""Setting up one experiment: checks, the split, who lies, and how training goes on.

Shapes: `S` seeds, `M` workers.
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from signfd_jax import data
from signfd_jax.data import partition
from signfd_jax.experiments._choices import choose
from signfd_jax.experiments._engine import known
from signfd_jax.experiments._engine.program import (
    Inputs,
    Metrics,
    compile_program,
    means,
    model_of,
    parts,
    program_key,
    worker_of,
)
from signfd_jax.experiments._processes import console
from signfd_jax.experiments.config import Experiment
from signfd_jax.experiments.registry import MODELS, check_dataset, resolve
from signfd_jax.signs import check_wire

ANY_CLASSES = 2**31 - 1
"""A number of classes before the data are loaded: no target is refused for it."""


class Training(NamedTuple):
    """A compiled experiment, ready to run; made by `prepare`.

    Attributes:
        start: `start() -> state`, the `SimulationState` of all seeds before round 1.
        advance: `advance(state, rounds) -> (state, rounds, Metrics)`, from the state
            after so many rounds to the next test; the state is consumed.
        rounds: number of rounds in all.
        num_coordinates: number N of the model's parameters.
        compile_seconds: time that compilation took; near 0 where all was at hand.
        shapes: those of the model's arrays.
    """

    start: Callable[[], Any]
    advance: Callable[[Any, int], tuple[Any, int, Metrics]]
    rounds: int
    num_coordinates: int
    compile_seconds: float
    shapes: tuple[tuple[int, ...], ...]

    @property
    def tests(self) -> Iterator[tuple[int, Metrics, float]]:
        """Train from the start: `(rounds, Metrics, seconds since the last test)`."""
        state, rounds = self.start(), 0
        while rounds < self.rounds:
            begun = time.perf_counter()
            state, rounds, metrics = self.advance(state, rounds)
            yield rounds, metrics, time.perf_counter() - begun


@jax.transfer_guard("allow")  # What is moved here to the device is meant to be.
def check(config: Experiment, dataset: Any = None, model: Any = None) -> None:
    """Refuse names and options that do not exist, before anything is loaded.

    A data set or a model that is given has no name to check.
    """
    if not isinstance(config, Experiment):
        raise ValueError(f"an experiment must be an Experiment(), but is {config!r}")
    if dataset is None:
        check_dataset(config.dataset)
    if model is None:
        choose(MODELS, "model", config.model)
    check_wire(config.wire)
    # The factories refuse Python numbers out of range; in a program they are traced.
    worker_of(config, lambda params, batch: 0.0)
    parts(
        config,
        num_classes=ANY_CLASSES if dataset is None else dataset.num_classes,
        learning_rate=config.learning_rate,
        flip_probability=config.flip_probability,
        strengths={},
    )
    known.check_known(config)


def byzantine_mask(config: Experiment, seed: int) -> np.ndarray:
    """Who lies: the workers named in the configuration, or drawn by the seed.

    The draws are nested: with the same seed, the attackers of a smaller
    `num_byzantine` are among those of a larger one. Trusted workers are passed over.
    """
    mask = np.zeros(config.num_workers, bool)
    if config.byzantine_ids:
        mask[list(config.byzantine_ids)] = True
    else:
        # Not the key of the parameters and batches, nor any that is split off it.
        key = jax.random.fold_in(jax.random.key(seed), config.num_workers)
        order = np.asarray(jax.random.permutation(key, config.num_workers))
        order = order[order < config.num_workers - config.trusted]
        mask[order[: config.num_byzantine]] = True
    return mask


def split_examples(config: Experiment, dataset: data.Dataset) -> partition.Partition:
    """Split the training examples over the workers, as the configuration says."""
    labels = np.asarray(dataset.train_labels)
    writers = dataset.writers
    roots = config.trusted if config.root_examples else 0
    facts = {
        "labels": labels,
        "num_workers": config.num_workers - roots,
        "seed": config.partition_seed,
        "writers": None if writers is None else np.asarray(writers),
    }
    split = resolve(config).split.make(facts)
    return known.with_roots(config, split, len(labels)) if roots else split


def prepare(
    config: Experiment,
    dataset: data.Dataset,
    split: partition.Partition | None = None,
    model: Any = None,
) -> Training:
    """Compile an experiment, or find it compiled, and set it up.

    A model that is given stands for the one that the configuration names.
    """
    check(config, dataset, model)
    check_model(config, dataset, model)
    split = split_examples(config, dataset) if split is None else split
    leaves, structure = jax.tree.flatten(_inputs(config, dataset, split))
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    program = functools.partial(
        compile_program, program_key(config), structure, shapes, model=model
    )
    lengths = {min(config.eval_every, config.rounds), config.rounds % config.eval_every}
    begun = time.perf_counter()
    start = program(None)
    chunks = {length: program(length) for length in lengths - {0}}
    compile_seconds = time.perf_counter() - begun

    seeds = np.arange(config.seed, config.seed + config.seeds, dtype=np.uint32)
    masks = np.stack([byzantine_mask(config, int(seed)) for seed in seeds])
    params = jax.tree.leaves(start.out_info.params)

    def advance(state, rounds):
        length = min(config.eval_every, config.rounds - rounds)
        state, sums = chunks[length](state, seeds, tuple(leaves))
        return state, rounds + length, means(jax.device_get(sums))

    return Training(
        start=lambda: start(seeds, masks, tuple(leaves)),
        advance=advance,
        rounds=config.rounds,
        num_coordinates=sum(leaf.size for leaf in params) // config.seeds,
        compile_seconds=compile_seconds,
        shapes=tuple(leaf.shape[1:] for leaf in params),
    )


def check_model(config: Experiment, dataset: data.Dataset, model: Any) -> None:
    """Refuse a model that cannot be trained on the data set, and say why."""
    shape = dataset.test_inputs.shape
    if config.augment and len(shape) != 4:
        raise ValueError(
            "augment=True crops images [n, height, width, channels], but the inputs "
            f"are {list(shape)}"
        )
    ours = config.model.partition(":")[0] in MODELS
    if model is None and ours and config.dataset in data.DATASETS and len(shape) == 4:
        return  # images are not traced once more for each cell of a grid
    image = data.standardise(np.asarray(dataset.test_inputs[:1]), dataset)
    model = model_of(config, dataset.num_classes, model)
    name = type(model).__name__
    for method in ("init", "apply"):
        if not callable(getattr(model, method, None)):
            raise ValueError(
                f"{config.model} gives a {name}, which has no method {method}: it must "
                "be a module of flax.linen, or like one"
            )
    spoken = functools.partial(_cannot_read, name, image)
    variables = spoken(lambda: jax.eval_shape(model.init, jax.random.key(0), image))
    if isinstance(variables, dict) and (extra := sorted({*variables} - {"params"})):
        raise ValueError(
            f"{name} keeps {', '.join(extra)} beside its parameters, but workers vote "
            "on parameters alone: take models.BatchNorm or a norm without state"
        )
    logits = spoken(lambda: jax.eval_shape(model.apply, variables, image))
    wanted = (1, *dataset.train_labels.shape[1:], dataset.num_classes)
    shape = getattr(logits, "shape", ())
    if shape != wanted:
        raise ValueError(
            f"{name} gives logits of shape {list(shape)} for one input, but "
            f"{list(wanted)} is wanted: {dataset.name} has "
            f"{dataset.num_classes} classes"
        )


def _cannot_read(name, image, act):
    """What `act` gives, or one line that says what a stranger's model raises."""
    try:
        return act()
    except Exception as error:
        raise ValueError(
            f"{name} cannot read an input of shape {list(image.shape)} "
            f"({type(error).__name__}: {console.reason(error)})"
        ) from error


def _inputs(config, dataset, split):
    return Inputs(
        dataset=jax.tree.map(jnp.asarray, dataset),
        partition=jax.tree.map(jnp.asarray, split),
        learning_rate=jnp.asarray(config.learning_rate, jnp.float32),
        flip_probability=jnp.asarray(config.flip_probability, jnp.float32),
        strengths={
            name: jnp.asarray(
                value, jnp.int32 if isinstance(value, int) else jnp.float32
            )
            for name, value in resolve(config).attack.traced_options.items()
        },
        known=known.known_of(config, split),
    )

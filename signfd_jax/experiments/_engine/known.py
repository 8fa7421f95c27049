"""What an experiment knows of its workers beforehand, and when it halts.

The trusted workers are the last T of the M. Shapes: `M` workers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from signfd_jax.data import partition
from signfd_jax.decoders import Decoder
from signfd_jax.decoders._known import KNOWN, check_usable
from signfd_jax.experiments._stop_rule import stop_rule
from signfd_jax.experiments.config import Experiment
from signfd_jax.experiments.registry import resolve
from signfd_jax.transforms import stop_below

_ROOT_BATCH = 128  # examples of its own that a trusted worker reads in a round, at most


class _Server(NamedTuple):
    """Who decodes: the name, the decoder if it is one, what it can use and must."""

    who: str
    decoder: Decoder | None = None
    uses: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


def _server(config):
    names = resolve(config)
    if names.worker.server is not None:
        return _Server(f"the server of {names.worker.name}")
    factory = names.decoder.factory
    if hasattr(factory, "uses"):  # no decoder, and it says itself
        return _Server(config.decoder, None, factory.uses, factory.needs)
    facts = {"num_workers": config.num_workers, "key": jax.random.key(0), "seed": 0}
    made = names.decoder.make(facts | {"actual_byzantine": config.num_byzantine})
    if isinstance(made, Decoder):
        return _Server(config.decoder, made, made.uses)
    return _Server(config.decoder)


def _told(config):
    """What the server is told of the workers."""
    given = [name for name in KNOWN if getattr(config, name)]
    return [name for name in given if name not in config.withheld]


def check_known(config: Experiment) -> None:
    """Refuse what an experiment's server cannot use, and what it lacks."""
    who, decoder, uses, needs = _server(config)
    check_usable(who, _told(config), uses, needs, written="--{}")
    if config.stop_below and not _says_how_sure(decoder, config.num_workers):
        raise ValueError(
            f"{who} does not say how sure it is; leave out --stop-below, or take a "
            "decoder that does, such as correlation_defense"
        )


def withholding(config: Experiment) -> Experiment:
    """The same experiment, but its server is not told what it cannot use."""
    told = _told(config)
    if not told:
        return config
    uses = _server(config).uses
    unused = [name for name in told if name not in uses]
    return dataclasses.replace(config, withheld=(*config.withheld, *unused))


def _says_how_sure(decoder, num_workers):
    """Whether the decoder has a confidence."""
    if decoder is None:
        return False

    def info():
        votes = jnp.ones((num_workers, 8), jnp.int8)
        _, _, info = decoder.decode(decoder.init(num_workers, jnp.zeros(8)), votes)
        return info

    return jax.eval_shape(info).confidence is not None


def trusted_mask(config: Experiment) -> np.ndarray:
    """Who is trusted, bool `[M]`: the last ones."""
    return np.arange(config.num_workers) >= config.num_workers - config.trusted


def known_of(config: Experiment, split: partition.Partition) -> dict[str, jax.Array]:
    """What the server is told of the workers, as `scale_by_sign_decoder` takes it."""

    def value(name):
        if name == "trusted":
            return trusted_mask(config)
        values = getattr(config, name)
        return np.asarray(split.sizes if values == "examples" else values, np.float32)

    return {name: jnp.asarray(value(name)) for name in _told(config)}


def with_roots(
    config: Experiment, split: partition.Partition, num_examples: int
) -> partition.Partition:
    """The split of the others, and what the trusted workers have of their own."""
    own = config.root_examples
    if own > num_examples:
        raise ValueError(
            f"root_examples is {own}, but there are {num_examples} training examples"
        )
    # Not the numbers that the split is drawn from.
    draw = np.random.default_rng((config.partition_seed, 1))
    indices, sizes = np.asarray(split.indices), np.asarray(split.sizes)
    width = max(indices.shape[1], own)
    rows = [
        np.pad(row, (0, width - len(row)), constant_values=row[0]) for row in indices
    ]
    for _ in range(config.trusted):
        row = draw.choice(num_examples, own, replace=False)
        rows.append(np.pad(row, (0, width - own), constant_values=row[0]))
    sizes = np.append(sizes, [own] * config.trusted)
    draws = split.draws
    if draws is not None:
        own = np.arange(len(indices), len(rows), dtype=np.int32)
        draws = np.append(np.asarray(draws), own)
    rows = np.stack(rows).astype(np.int32)
    return partition.Partition(rows, sizes.astype(np.int32), draws)


def root_batch(
    config: Experiment,
    split: partition.Partition,
    lookup: Callable[[Any], tuple[jax.Array, ...]],
) -> tuple[jax.Array, ...]:
    """All examples of the trusted workers, as `models.loss_fn` takes them."""
    width = config.root_examples or split.indices.shape[1]
    rows, sizes = (part[-config.trusted :] for part in (split.indices, split.sizes))
    rows = rows[:, :width]
    counted = jnp.arange(width, dtype=sizes.dtype)[None] < sizes[:, None]
    return lookup((rows.reshape(-1), counted.reshape(-1).astype(jnp.float32)))


def batch_sizes(config: Experiment, num_batches: int) -> int | list[int]:
    """Examples that the workers draw in a round: one number, or one a worker.

    With `root_examples` a trusted worker draws as many as it has, up to a limit; of a
    worker that takes several batches, it draws as many as the others.
    """
    size = config.batch_size * num_batches
    if not config.root_examples or num_batches > 1:
        return size
    own = min(config.root_examples, max(size, _ROOT_BATCH))
    return [size] * (config.num_workers - config.trusted) + [own] * config.trusted


def spared(membership: Callable[..., Any] | None, trusted: int) -> Any:
    """A membership of the others: the trusted never lie and are always here."""
    if membership is None or not trusted:
        return membership

    def of_others(key, byzantine, round):
        lying, present = membership(key, byzantine[:-trusted], round)
        if present is not None:
            present = jnp.append(present, jnp.ones((trusted,), bool))
        return jnp.append(lying, jnp.zeros((trusted,), bool)), present

    return of_others


def failing_closed(
    config: Experiment, tx: optax.GradientTransformation
) -> optax.GradientTransformation:
    """The whole optimiser, halted as `stop_below` says."""
    if not config.stop_below:
        return tx
    confidence, rounds = stop_rule(config.stop_below)
    return stop_below(tx, confidence, rounds)

"""The compiled half of an experiment: parameters, chunks of rounds, tests.

Shapes: `S` seeds (an outer axis), `M` workers, `T` rounds from one test to the next.
What differs between the cells of a grid (who is Byzantine, the split's indices, keys,
the learning rate, an attack's strength) is a traced input, so one program serves them
all. With the same seed the initial parameters and every round's batches are the same,
whatever the decoder, the attack and the number of attackers.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from signfd_jax import data, models
from signfd_jax._round import SimulationInfo
from signfd_jax.data import batches, partition
from signfd_jax.decoders import Decoder, majority_vote
from signfd_jax.experiments._engine import known
from signfd_jax.experiments.config import Experiment
from signfd_jax.experiments.registry import resolve
from signfd_jax.simulate import run, simulation
from signfd_jax.transforms import scale_by_sign_decoder
from signfd_jax.workers import Worker

# Fields of a configuration that no program depends on.
_INPUTS = (
    "name",
    "split",
    "flip_probability",
    "num_byzantine",
    "byzantine_ids",
    "stakes",
    "shares",
    "withheld",
    "learning_rate",
    "rounds",
    "eval_every",
    "seed",
    "partition_seed",
)


class Inputs(NamedTuple):
    """What a program reads and never changes; the same for all seeds.

    Attributes:
        dataset: the examples, on the device.
        partition: which worker holds which of them.
        learning_rate: float32 scalar.
        flip_probability: float32 scalar.
        strengths: the attack's traced options by name, each a float32 or int32 scalar.
        known: what is known of the workers, as `scale_by_sign_decoder` takes it.
    """

    dataset: data.Dataset
    partition: partition.Partition
    learning_rate: jax.Array
    flip_probability: jax.Array
    strengths: dict[str, jax.Array]
    known: dict[str, jax.Array]


class Metrics(NamedTuple):
    """What one test shows, of each seed.

    Attributes:
        test_accuracy: float32 `[S]`, share of the test examples classified correctly.
        attack_success_rate: float32 `[S]`, see `attacks.Backdoor`; None where the
            attack has no target, NaN where no test example counts.
        test_loss: float32 `[S]`, mean cross-entropy over them (nats).
        train_loss: float32 `[S]`, mean loss of the honest workers since the last test,
            over the rounds in which one took part. NaN where nothing was measured, here
            and below.
        sign_error: float32 `[S]`, see `SimulationInfo`; the mean since the last test,
            over the rounds in which it was measured.
        margin: float32 `[S]`, likewise.
        weights: float32 `[S, M]`, weight of each worker's vote in the last round.
        crossover: float32 `[S, M]`, estimates after the last round.
        loss_rounds: int32 `[S]`, the rounds behind `train_loss`.
        sign_error_rounds: int32 `[S]`, those behind `sign_error`.
        margin_rounds: int32 `[S]`, those behind `margin`.
    """

    test_accuracy: jax.Array
    attack_success_rate: Any
    test_loss: jax.Array
    train_loss: jax.Array
    sign_error: jax.Array
    margin: jax.Array
    weights: jax.Array
    crossover: jax.Array
    loss_rounds: jax.Array
    sign_error_rounds: jax.Array
    margin_rounds: jax.Array


def totals(
    test: models.Evaluation,
    infos: SimulationInfo,
    num_workers: int,
    success: Any = None,
) -> Metrics:
    """Metrics with sums in the place of means, and 0 for what was not measured.

    `success` is what `success_of` gives. No compiled program gives a NaN that stands
    for "not measured", so that JAX can look for those that are mistakes
    (`jax_debug_nans`).
    """

    def total(values, measured=None):
        if values is None:
            return jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
        measured = ~jnp.isnan(values) if measured is None else measured
        number = jnp.sum(measured, dtype=jnp.int32)
        return jnp.sum(jnp.where(measured, values, 0)), number

    def last(values):
        return jnp.zeros((num_workers,), jnp.float32) if values is None else values[-1]

    loss, loss_rounds = total(infos.loss, infos.num_honest > 0)
    error, error_rounds = total(infos.sign_error)
    margin, margin_rounds = total(infos.margin)
    return Metrics(
        *(test.accuracy, success, test.loss, loss, error, margin),
        *(last(infos.weights), last(infos.crossover)),
        *(loss_rounds, error_rounds, margin_rounds),
    )


def means(totals: Metrics) -> Metrics:
    """Metrics as they are recorded, on the host."""

    def mean(total, rounds):
        divisor = np.maximum(rounds, 1).astype(np.float32)
        return np.where(rounds > 0, total / divisor, np.float32(np.nan))

    decodes = totals.margin_rounds[:, None] > 0
    success = totals.attack_success_rate
    if success is not None:
        success = np.where(success < 0, np.float32(np.nan), success)
    return totals._replace(
        attack_success_rate=success,
        train_loss=mean(totals.train_loss, totals.loss_rounds),
        sign_error=mean(totals.sign_error, totals.sign_error_rounds),
        margin=mean(totals.margin, totals.margin_rounds),
        weights=np.where(decodes, totals.weights, np.float32(np.nan)),
        crossover=np.where(decodes, totals.crossover, np.float32(np.nan)),
    )


def success_of(network: Any, params: Any, dataset: data.Dataset, attack: Any) -> Any:
    """The attack success rate; -1 where no example counts, None without a target."""
    if attack.backdoor is None:
        return None
    stamp, wanted = attack.backdoor

    def stamped(inputs, dataset):
        return stamp(data.standardise(inputs, dataset))

    labels = wanted(dataset.test_labels)
    counted = jnp.sum(labels >= 0, dtype=jnp.float32)
    # No class is -1, so that what does not count is never hit.
    share = models.evaluate(
        network,
        params,
        dataset.test_inputs,
        labels,
        preprocess=functools.partial(stamped, dataset=dataset),
    ).accuracy
    hits = jnp.round(share * len(labels))
    return jnp.where(counted > 0, hits / jnp.maximum(counted, 1), -1)


def program_key(config: Experiment) -> Experiment:
    """What of a configuration is compiled in; the rest are inputs of the program."""
    names = resolve(config)
    traced = names.attack.traced_options
    options = ",".join(
        f"{k}={0 if k in traced else v}" for k, v in names.attack.options
    )
    default = {f.name: f.default for f in dataclasses.fields(Experiment)}
    key = dataclasses.replace(
        config,
        attack=f"{names.attack.name}:{options}".rstrip(":"),
        **{name: default[name] for name in _INPUTS},
    )
    if names.decoder.asks_for("actual_byzantine"):
        key = dataclasses.replace(key, num_byzantine=config.num_byzantine)
    if names.schedule.asks_for("rounds"):
        key = dataclasses.replace(key, rounds=config.rounds)
    return key


def parts(
    config: Experiment,
    *,
    num_classes: int,
    learning_rate: float | jax.Array,
    flip_probability: float | jax.Array,
    strengths: Mapping[str, Any],
    seed: int | jax.Array = 0,
    loss_fn: Any = lambda params, batch: 0.0,
    root_batch: Any = None,
) -> tuple[optax.GradientTransformation, Any, Any]:
    """Make the server, the attack and the membership that a configuration names."""
    names = resolve(config)
    facts: dict[str, Any] = {
        "num_workers": config.num_workers,
        "num_classes": num_classes,
        "flip_probability": flip_probability,
        "actual_byzantine": config.num_byzantine,
    }
    own = {"learning_rate": learning_rate, "loss_fn": loss_fn, "root_batch": root_batch}
    decoder = server = names.decoder.make(facts | own | _randomness(seed, 1))
    if names.worker.server is not None:
        server = names.worker.server(config, decoder, **dict(names.worker.options))
    elif isinstance(decoder, Decoder):
        server = scale_by_sign_decoder(config.num_workers, decoder)
    if not isinstance(
        decoder, Decoder
    ):  # Attackers who ask take such a server for a majority vote.
        decoder = majority_vote()
    facts["decoder"] = decoder
    attack = names.attack.make(facts | _randomness(seed, 2), **strengths)
    membership = names.membership.make(facts | _randomness(seed, 3))
    membership = known.spared(membership, config.trusted)
    tx = optax.chain(server, step_of(config, learning_rate))
    return known.failing_closed(config, tx), attack, membership


def step_of(
    config: Experiment, learning_rate: float | jax.Array
) -> optax.GradientTransformation:
    """Make the optimiser that a configuration names, with its schedule."""
    names = resolve(config)
    facts: dict[str, Any] = {"learning_rate": learning_rate, "rounds": config.rounds}
    facts["learning_rate"] = names.schedule.make(facts)
    return names.optimizer.make(facts)


def model_of(config: Experiment, num_classes: int, model: Any = None) -> Any:
    """The model that is given, or else made as the configuration names it."""
    if model is not None:
        return model
    return resolve(config).model.make({"num_classes": num_classes})


def worker_of(config: Experiment, loss_fn: Any) -> Worker:
    """Make what a configuration's workers do, with the loss of a model."""
    return resolve(config).worker.make({"loss_fn": loss_fn})


def _randomness(seed, user):
    """What a server, an attack or a membership of this seed draws from, as facts."""
    # Of the numbers that `split` and `byzantine_mask` fold in these are none.
    key = jax.random.fold_in(jax.random.key(seed), np.uint32(2**32 - user))
    return {"key": key, "seed": jax.random.bits(key, dtype=jnp.uint32)}


def nothing_like(dataset: data.Dataset) -> jax.Array:
    """One input of zeros, by whose shape a model makes its parameters."""
    tokens = dataset.test_inputs.dtype == jnp.int32
    dtype = jnp.int32 if tokens else jnp.float32
    return jnp.zeros((1, *dataset.test_inputs.shape[1:]), dtype)


class _ByOperation(NamedTuple):
    """What stands for a compiled program where `jax_disable_jit` forbids one."""

    function: Any
    out_info: Any

    def __call__(self, *arguments):
        return self.function(*arguments)


def compiled(function: Any, *arguments, options: Any = None) -> Any:
    """Compile a program, unless `jax_disable_jit` is set."""
    config: Any = jax.config
    if config.jax_disable_jit:
        return _ByOperation(function, jax.eval_shape(function, *arguments))
    return function.lower(*arguments).compile(options)


@functools.lru_cache(maxsize=16)
def compile_program(
    key: Experiment,
    structure: Any,
    leaves: tuple[Any, ...],
    num_rounds: int | None,
    model: Any = None,
) -> Any:
    """Compile the start of an experiment, or a chunk of its rounds with a test."""

    def build(leaves, seed):
        inputs: Inputs = jax.tree.unflatten(structure, leaves)
        num_classes = inputs.dataset.num_classes
        network = model_of(key, num_classes, model)
        loss_fn = models.loss_fn(network)
        lookup, root_batch = batches.examples(inputs.dataset), None
        if resolve(key).decoder.asks_for("root_batch"):
            root_batch = known.root_batch(key, inputs.partition, lookup)
        server, attack, membership = parts(
            key,
            num_classes=num_classes,
            learning_rate=inputs.learning_rate,
            flip_probability=inputs.flip_probability,
            strengths=inputs.strengths,
            seed=seed,
            loss_fn=loss_fn,
            root_batch=root_batch,
        )
        simulated = simulation(
            worker_of(key, loss_fn),
            server,
            num_workers=key.num_workers,
            attack=attack,
            wire=key.wire,
            membership=membership,
            lookup=lookup if key.worker_chunk else None,
            worker_chunk=key.worker_chunk or None,
        )
        return inputs, network, simulated, attack

    def start(seed, byzantine, leaves):
        inputs, network, simulated, _ = build(leaves, seed)
        model_key, run_key = jax.random.split(jax.random.key(seed))
        image = nothing_like(inputs.dataset)
        return simulated.init(run_key, network.init(model_key, image), byzantine)

    def chunk(state, seed, leaves):
        assert num_rounds is not None
        inputs, network, simulated, attack = build(leaves, seed)
        dataset = inputs.dataset
        worker = worker_of(key, models.loss_fn(network))
        size = known.batch_sizes(key, worker.num_batches)
        if key.worker_chunk:
            sample_batch = batches.worker_indices(inputs.partition, size)
        else:
            sample_batch = batches.worker_batches(
                dataset, inputs.partition, size, augment=key.augment
            )
        state, infos = run(simulated, state, sample_batch, num_rounds, **inputs.known)
        test = models.evaluate(
            network,
            state.params,
            dataset.test_inputs,
            dataset.test_labels,
            preprocess=functools.partial(data.standardise, dataset=dataset),
        )
        success = success_of(network, state.params, dataset, attack)
        return state, totals(test, infos, key.num_workers, success)

    def of_seeds(states, seeds, leaves):
        # A CPU is faster at one seed after the other: each stays in its cache.
        if jax.default_backend() == "cpu":
            of_seed = lambda each: chunk(each[0], each[1], leaves)  # noqa: E731
            return lax.map(of_seed, (states, seeds))
        return jax.vmap(chunk, in_axes=(0, 0, None))(states, seeds, leaves)

    seeds = jax.ShapeDtypeStruct((key.seeds,), jnp.uint32)
    byzantine = jax.ShapeDtypeStruct((key.seeds, key.num_workers), bool)
    start = jax.vmap(start, in_axes=(0, 0, None))
    if num_rounds is None:
        # It runs once: that is not worth the time of the optimising passes.
        quickly: Any = {"xla_backend_optimization_level": 1}
        return compiled(jax.jit(start), seeds, byzantine, leaves, options=quickly)
    state = jax.eval_shape(start, seeds, byzantine, leaves)
    return compiled(jax.jit(of_seeds, donate_argnums=0), state, seeds, leaves)

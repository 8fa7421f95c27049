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

from signfd_jax import batches, data, models, partition
from signfd_jax.decoding import Decoder, majority_vote
from signfd_jax.experiments import registry
from signfd_jax.experiments.config import Experiment
from signfd_jax.simulate import run, simulation
from signfd_jax.transform import scale_by_sign_decoder

__all__ = [
    "Inputs",
    "Metrics",
    "compile_program",
    "compiled",
    "parts",
    "program_key",
]

# Fields of a configuration that no program depends on.
_INPUTS = (
    "name",
    "split",
    "flip_probability",
    "num_byzantine",
    "byzantine_ids",
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
    """

    dataset: data.Dataset
    partition: partition.Partition
    learning_rate: jax.Array
    flip_probability: jax.Array
    strengths: dict[str, jax.Array]


class Metrics(NamedTuple):
    """What one test shows, of each seed.

    Attributes:
        test_accuracy: float32 `[S]`, share of the test examples classified correctly.
        test_loss: float32 `[S]`, mean cross-entropy over them (nats).
        train_loss: float32 `[S]`, mean loss of the honest workers since the last test.
        sign_error: float32 `[S]`, see `SimulationInfo`; the mean since the last test.
        margin: float32 `[S]`, likewise.
        weights: float32 `[S, M]`, weight of each worker's vote in the last round.
        crossover: float32 `[S, M]`, estimates after the last round.

    Inside a program, where `jax_debug_nans` watches, None stands for what is not
    measured; `on_host` gives NaN instead.
    """

    test_accuracy: jax.Array
    test_loss: jax.Array
    train_loss: jax.Array
    sign_error: Any
    margin: Any
    weights: Any
    crossover: Any

    def on_host(self, num_workers: int) -> "Metrics":
        """The same as NumPy arrays, with NaN for what is not measured."""
        seeds = self.test_accuracy.shape
        shapes = dict.fromkeys(("sign_error", "margin"), seeds)
        shapes |= dict.fromkeys(("weights", "crossover"), (*seeds, num_workers))
        gaps = {
            name: np.full(shape, np.nan, np.float32)
            for name, shape in shapes.items()
            if getattr(self, name) is None
        }
        return jax.device_get(self)._replace(**gaps)


def program_key(config: Experiment) -> Experiment:
    """What of a configuration is compiled in; the rest are inputs of the program.

    Args:
        config: the experiment.

    Returns:
        The configuration with everything else set to its default. Experiments of equal
        keys share their programs, if their data have equal shapes.

    Examples:
        >>> program_key(Experiment(seed=1)) == program_key(Experiment(num_byzantine=7))
        True
    """
    choice = registry.choose(registry.ATTACKS, "attack", config.attack)
    traced = registry.traced_options(registry.ATTACKS, choice)
    options = ",".join(f"{k}={0 if k in traced else v}" for k, v in choice.options)
    default = {f.name: f.default for f in dataclasses.fields(Experiment)}
    key = dataclasses.replace(
        config,
        attack=f"{choice.name}:{options}".rstrip(":"),
        **{name: default[name] for name in _INPUTS},
    )
    server = registry.choose(registry.SERVERS, "decoder", config.decoder)
    if registry.asks_for(registry.SERVERS, server, "actual_byzantine"):
        return dataclasses.replace(key, num_byzantine=config.num_byzantine)
    return key


def parts(
    config: Experiment,
    *,
    num_classes: int,
    learning_rate: float | jax.Array,
    flip_probability: float | jax.Array,
    strengths: Mapping[str, Any],
) -> tuple[optax.GradientTransformation, Any, Any]:
    """Make the server, the attack and the membership that a configuration names.

    Args:
        config: the experiment.
        num_classes: number of classes.
        learning_rate: the step, a scalar that may be traced, as may the next two.
        flip_probability: r of stochastic_sign_flip (scalar).
        strengths: options of the attack (scalars), instead of those in the name.

    Returns:
        The server's transformation, the `Attack`, and the membership function or None.

    Raises:
        ValueError: a name or an option is unknown, or a Python number out of range.

    Examples:
        >>> _, attack, membership = parts(
        ...     Experiment(attack="label_flip"),
        ...     num_classes=10,
        ...     learning_rate=1e-3,
        ...     flip_probability=0.5,
        ...     strengths={},
        ... )
        >>> attack.entry, membership
        ('data', None)
    """
    choose, make = registry.choose, registry.make
    facts: dict[str, Any] = {
        "num_workers": config.num_workers,
        "num_classes": num_classes,
        "flip_probability": flip_probability,
        "actual_byzantine": config.num_byzantine,
    }
    choice = choose(registry.SERVERS, "decoder", config.decoder)
    decoder = server = make(registry.SERVERS, choice, facts)
    if isinstance(decoder, Decoder):
        server = scale_by_sign_decoder(config.num_workers, decoder)
    else:  # Attackers who ask take such a server for a majority vote.
        decoder = majority_vote()
    facts["decoder"] = decoder
    choice = choose(registry.ATTACKS, "attack", config.attack)
    options = tuple((dict(choice.options) | dict(strengths)).items())
    attack = make(registry.ATTACKS, choice._replace(options=options), facts)
    choice = choose(registry.MEMBERSHIPS, "membership", config.membership)
    membership = make(registry.MEMBERSHIPS, choice, facts)
    server = optax.chain(server, optax.scale_by_learning_rate(learning_rate))
    return server, attack, membership


class _ByOperation(NamedTuple):
    """What stands for a compiled program where `jax_disable_jit` forbids one."""

    function: Any
    out_info: Any

    def __call__(self, *arguments):
        return self.function(*arguments)


def compiled(function: Any, *arguments, options: Any = None) -> Any:
    """Compile a program, unless `jax_disable_jit` is set.

    Args:
        function: what `jax.jit` gave.
        *arguments: each a tree of arrays, or of their shapes and dtypes.
        options: a tree of names and values, for the compiler.

    Returns:
        A function of such arguments, with an `out_info` of what it gives.

    Examples:
        >>> compiled(jax.jit(jnp.negative), jnp.float32(1)).out_info.shape
        ()
    """
    config: Any = jax.config
    if config.jax_disable_jit:
        return _ByOperation(function, jax.eval_shape(function, *arguments))
    return function.lower(*arguments).compile(options)


@functools.lru_cache(maxsize=16)
def compile_program(
    key: Experiment, structure: Any, leaves: tuple[Any, ...], num_rounds: int | None
) -> Any:
    """Compile the start of an experiment, or a chunk of its rounds with a test.

    Args:
        key: what `program_key` returned.
        structure: tree structure of the `Inputs`.
        leaves: shapes and dtypes of their leaves.
        num_rounds: rounds T of the chunk; None: compile the start.

    Returns:
        The start: `(seeds uint32 [S], byzantine bool [S, M], leaves) -> state`; or the
        chunk: `(state, leaves) -> (state, Metrics)`, which consumes the state.

    Examples:
        >>> digits = data.load("digits")
        >>> split = partition.iid(digits.train_labels, 15)
        >>> scalar = jnp.float32(0.5)
        >>> inputs = Inputs(digits, split, scalar, scalar, {})
        >>> leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, inputs))
        >>> shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)
        >>> start = compile_program(program_key(Experiment()), structure, shapes, None)
        >>> seeds, nobody = jnp.zeros(1, jnp.uint32), jnp.zeros((1, 15), bool)
        >>> state = start(seeds, nobody, tuple(leaves))
        >>> state.byzantine.shape
        (1, 15)
    """

    def build(leaves):
        inputs: Inputs = jax.tree.unflatten(structure, leaves)
        num_classes = inputs.dataset.num_classes
        choice = registry.choose(registry.MODELS, "model", key.model)
        model = registry.make(registry.MODELS, choice, {"num_classes": num_classes})
        server, attack, membership = parts(
            key,
            num_classes=num_classes,
            learning_rate=inputs.learning_rate,
            flip_probability=inputs.flip_probability,
            strengths=inputs.strengths,
        )
        simulated = simulation(
            models.loss_fn(model),
            server,
            num_workers=key.num_workers,
            attack=attack,
            wire=key.wire,
            membership=membership,
            lookup=batches.examples(inputs.dataset) if key.worker_chunk else None,
            worker_chunk=key.worker_chunk or None,
        )
        return inputs, model, simulated

    def start(seed, byzantine, leaves):
        inputs, model, simulated = build(leaves)
        model_key, run_key = jax.random.split(jax.random.key(seed))
        image = jnp.zeros((1, *inputs.dataset.test_inputs.shape[1:]))
        return simulated.init(run_key, model.init(model_key, image), byzantine)

    def chunk(state, leaves):
        assert num_rounds is not None
        inputs, model, simulated = build(leaves)
        dataset = inputs.dataset
        if key.worker_chunk:
            sample_batch = batches.worker_indices(inputs.partition, key.batch_size)
        else:
            sample_batch = batches.worker_batches(
                dataset, inputs.partition, key.batch_size, augment=key.augment
            )
        state, infos = run(simulated, state, sample_batch, num_rounds)
        test = models.evaluate(
            model,
            state.params,
            dataset.test_inputs,
            dataset.test_labels,
            preprocess=functools.partial(data.standardise, dataset=dataset),
        )
        return state, Metrics(
            test_accuracy=test.accuracy,
            test_loss=test.loss,
            train_loss=jnp.mean(infos.loss),
            sign_error=jax.tree.map(jnp.mean, infos.sign_error),
            margin=jax.tree.map(jnp.mean, infos.margin),
            weights=jax.tree.map(lambda w: w[-1], infos.weights),
            crossover=jax.tree.map(lambda p: p[-1], infos.crossover),
        )

    def of_seeds(states, leaves):
        # A CPU is faster at one seed after the other: each stays in its cache.
        if jax.default_backend() == "cpu":
            return lax.map(lambda state: chunk(state, leaves), states)
        return jax.vmap(chunk, in_axes=(0, None))(states, leaves)

    seeds = jax.ShapeDtypeStruct((key.seeds,), jnp.uint32)
    byzantine = jax.ShapeDtypeStruct((key.seeds, key.num_workers), bool)
    start = jax.vmap(start, in_axes=(0, 0, None))
    if num_rounds is None:
        # It runs once: that is not worth the time of the optimising passes.
        quickly: Any = {"xla_backend_optimization_level": 1}
        return compiled(jax.jit(start), seeds, byzantine, leaves, options=quickly)
    state = jax.eval_shape(start, seeds, byzantine, leaves)
    return compiled(jax.jit(of_seeds, donate_argnums=0), state, leaves)

"""Do inverted signs change what is decoded? Several decoders look at the same rounds.

MNIST, MLP 784-128-10, 15 workers with i.i.d. data in batches of 64, learning rate 1e-3.
The model follows the decoder that meets no liars; the others see the same gradients, of
which 3, 6 or 7 workers send the opposite, and each learns from what it saw. Printed are
the shares of the coordinates that they decode otherwise.

    python -m benchmarks.lockstep --json benchmarks/results/lockstep.json
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from signfd_jax import data, models, signs
from signfd_jax.data import batches, partition
from signfd_jax.experiments._processes import console
from signfd_jax.experiments._storage import run_folder as records
from signfd_jax.experiments.presets import PRESETS
from signfd_jax.experiments.registry import resolve


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run, and what to write."""

    decoder: str = "correlation_defense"
    """Name of the decoder."""
    dataset: str = "mnist"
    """Name of the data set."""
    rounds: int = 300
    """Number of rounds."""
    num_byzantine: tuple[int, ...] = (3, 6, 7)
    """Numbers of liars."""
    seed: int = 0
    """Seed of the parameters and the batches."""
    data_dir: Path | None = None
    """Folder of the data sets; default: the variable SIGNFD_DATA."""
    json: Path | None = None
    """Write the figures here."""


def lockstep(options: Options) -> jax.Array:
    """Share of the coordinates decoded otherwise than without liars.

    Args:
        options: what to run.

    Returns:
        float32 `[T, len(num_byzantine)]`.
    """
    config = PRESETS["mnist-mlp"].experiment
    dataset = data.load(options.dataset, data_dir=options.data_dir)
    dataset = jax.tree.map(jnp.asarray, dataset)
    split = partition.iid(np.asarray(dataset.train_labels), config.num_workers)
    draw = batches.worker_batches(
        dataset, jax.tree.map(jnp.asarray, split), config.batch_size
    )
    config = dataclasses.replace(config, decoder=options.decoder)
    names = resolve(config)
    model = names.model.make({"num_classes": dataset.num_classes})
    decoder = names.decoder.make({})
    gradients = jax.vmap(jax.grad(models.loss_fn(model)), in_axes=(None, 0))
    liars = jnp.asarray((0, *options.num_byzantine))[:, None]
    lies = jnp.where(jnp.arange(config.num_workers)[None] < liars, -1, 1)
    lies = lies.astype(jnp.int8)

    def one_round(carry, key):
        params, states = carry
        honest = signs.votes(gradients(params, draw(key)))

        def decode(state, lies):
            sent = jax.tree.map(
                lambda v: v * lies.reshape((-1,) + (1,) * (v.ndim - 1)), honest
            )
            decoded, state, _ = decoder.decode(state, sent)
            return decoded, state

        decoded, states = jax.lax.map(lambda given: decode(*given), (states, lies))
        step = jax.tree.map(
            lambda p, sign: -config.learning_rate * sign[0].astype(p.dtype),
            params,
            decoded,
        )
        differ = jax.tree.map(
            lambda sign: jnp.sum(
                sign[1:] != sign[:1], axis=range(1, sign.ndim), dtype=jnp.int32
            ),
            decoded,
        )
        return (optax.apply_updates(params, step), states), sum(jax.tree.leaves(differ))

    init_key, key = jax.random.split(jax.random.key(options.seed))
    image = jnp.zeros((1, *dataset.test_inputs.shape[1:]))
    params = model.init(init_key, image)
    state = decoder.init(config.num_workers, params)
    states = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(lies)), state)
    keys = jax.random.split(key, options.rounds)
    _, differ = jax.jit(lambda c, k: jax.lax.scan(one_round, c, k))(
        (params, states), keys
    )
    return differ / sum(leaf.size for leaf in jax.tree.leaves(params))


def main() -> None:
    """Print the shares, and write them."""
    options = tyro.cli(Options, description=__doc__)
    shares = np.asarray(lockstep(options))
    results = {}
    for num, column in zip(options.num_byzantine, shares.T, strict=True):
        worst = int(column.argmax())
        results[num] = {
            "mean": float(column.mean()),
            "largest": float(column.max()),
            "in_round": worst,
            "rounds_above_1e-4": int((column > 1e-4).sum()),
        }
        print(
            f"{num} of 15 invert: {column.mean():.1e} of the coordinates differ, at "
            f"most {column.max():.1e} (round {worst}); above 1e-4 in "
            f"{(column > 1e-4).sum()} of {options.rounds} rounds"
        )
    if options.json is not None:
        about = {"decoder": options.decoder, "dataset": options.dataset}
        about |= {"rounds": options.rounds}
        record = about | {"liars": results, "environment": records.environment()}
        records.write_atomically(options.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    with console.steady():  # results are kept, wherever they are printed
        main()

"""One training run under attack, as `generalise` and `ablate` run many of them.

The decoder's thresholds are an input of the compiled program, so that the same program
serves every ablation. With the same seed, the model, the batches and the attackers are
the same whatever the decoder.
"""

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax import lax

import signfd_jax as sfd
from benchmarks.robustness import paired
from signfd_jax import attacks, data, models
from signfd_jax.data import batches
from signfd_jax.experiments import registry
from signfd_jax.experiments._choices import choose
from signfd_jax.experiments._engine.prepare import byzantine_mask, split_examples
from signfd_jax.experiments._storage import run_folder as records
from signfd_jax.experiments.config import Experiment

__all__ = ["Trial", "accuracies", "main", "paired", "read", "watched", "write"]


@dataclasses.dataclass(frozen=True)
class Trial:
    """What is trained, and how the liars lie."""

    dataset: str = "digits"
    model: str = "mlp:hidden=64"
    split: str = "iid"
    batch_size: int = 16
    num_workers: int = 15
    num_byzantine: int = 7
    attack: str = "sign_inversion"
    """`name` or `name@membership` of the registries; or `flip:0.8` (each sign with that
    probability), `flip:own` (each liar its own, from .6 to .9), `flip:rising` (from 0
    to 1), `copies:0.02` (each sends an honest worker's gradient, with each sign flipped
    by that probability), `negated_copies` (each the negative of an honest worker's),
    `copiers:2` (two send an honest worker's, the others invert their own), `two_groups`
    (two groups of exact colluders)."""
    shared_by: int = 1
    """Workers that share each batch."""
    local_steps: int = 0
    """Steps of plain SGD after which a worker sends how far it went; 0: a gradient."""
    rounds: int = 300
    learning_rate: float = 2e-3
    wire: str = "ternary"

    def __str__(self):
        """What differs from the default, in a few words."""
        shown = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        default = {f.name: f.default for f in dataclasses.fields(self)}
        return " ".join(
            f"{name}={value}"
            for name, value in shown.items()
            if value != default[name] or name in ("split", "attack", "num_byzantine")
        )


def accuracies(
    trial: Trial,
    make_decoder: Callable[[Any], sfd.Decoder],
    thresholds: Any,
    seeds: int,
    data_dir: Path | None = None,
) -> list[float]:
    """Test accuracy at the end of training, of each seed."""
    found, _, _ = watched(trial, make_decoder, thresholds, seeds, data_dir)
    return np.asarray(found).tolist()


def watched(
    trial: Trial,
    make_decoder: Callable[[Any], sfd.Decoder],
    thresholds: Any,
    seeds: int,
    data_dir: Path | None = None,
    watch: Callable[[Any], Any] | None = None,
) -> tuple[jax.Array, np.ndarray, Any]:
    """Accuracies `[S]`, who lied, bool `[S, M]`, and what is watched, `[S, T, ...]`.

    `watch` reads the simulation's state after each round.
    """
    config = _experiment(trial)
    dataset = _dataset(trial.dataset, data_dir)
    split = split_examples(config, dataset)
    masks = np.stack([byzantine_mask(config, seed) for seed in range(seeds)])
    program = _program(_program_key(trial), make_decoder, watch)
    width = -(-split.indices.shape[1] // 4096) * 4096
    indices = np.pad(
        split.indices, ((0, 0), (0, max(0, width - split.indices.shape[1])))
    )
    found, seen = program(
        dataset,
        jax.tree.map(jnp.asarray, split._replace(indices=indices)),
        _rates(trial),
        jnp.float32(trial.learning_rate),
        thresholds,
        jnp.arange(seeds, dtype=jnp.uint32),
        jnp.asarray(masks),
    )
    return found, masks, seen


def _experiment(trial):
    return Experiment(
        dataset=trial.dataset,
        model=trial.model,
        split=trial.split,
        num_workers=trial.num_workers,
        num_byzantine=trial.num_byzantine,
        batch_size=trial.batch_size,
    )


@functools.lru_cache
def _dataset(name, data_dir):
    return jax.tree.map(jnp.asarray, data.load(name, data_dir=data_dir))


def _program_key(trial):
    """What is compiled in; flips differ by their rates only."""
    kind = trial.attack.partition(":")[0]
    attack = kind if kind in ("flip", "copies") else trial.attack
    return dataclasses.replace(
        trial, attack=attack, split="iid", num_byzantine=1, learning_rate=1.0
    )


def _rates(trial):
    """Each worker's probability to flip a sign: at first, and in the end."""
    kind = trial.attack.partition(":")[2]
    rng = np.random.default_rng(0)
    start = end = np.zeros(trial.num_workers)
    if trial.attack == "flip:own":
        start = end = rng.permutation(np.linspace(0.6, 0.9, trial.num_workers))
    elif trial.attack == "flip:rising":
        end = np.ones(trial.num_workers)
    elif trial.attack.startswith(("flip:", "copies:")):
        start = end = np.full(trial.num_workers, float(kind))
    return jnp.asarray(np.stack([start, end]), jnp.float32)


@functools.lru_cache(maxsize=256)
def _program(trial: Trial, make_decoder, watch):
    def one(dataset, split, rates, rate, thresholds, seed, byzantine):
        model = _choose(registry.MODELS, trial.model, {"num_classes": 10})
        decoder = make_decoder(thresholds)
        attack, membership = _adversary(trial, decoder, rates)
        server = optax.chain(
            sfd.scale_by_sign_decoder(trial.num_workers, decoder),
            optax.scale_by_learning_rate(rate),
        )
        loss_fn = models.loss_fn(model)
        if trial.local_steps:
            loss_fn = _local(loss_fn, trial.local_steps)
        simulated = sfd.simulation(
            loss_fn,
            server,
            num_workers=trial.num_workers,
            attack=attack,
            membership=membership,
            wire=trial.wire,
            sign_error=False,
        )
        model_key, run_key = jax.random.split(jax.random.key(seed))
        params = model.init(
            model_key, jnp.zeros((1, *dataset.test_inputs.shape[1:]), jnp.float32)
        )
        draw = _shared(
            batches.worker_batches(dataset, split, trial.batch_size), trial.shared_by
        )
        state = simulated.init(run_key, params, byzantine)

        def one_round(state, _):  # as `sfd.run` does it
            key, batch_key = jax.random.split(state.key)
            state, _ = simulated.step(state._replace(key=key), draw(batch_key))
            return state, None if watch is None else watch(state)

        state, seen = lax.scan(one_round, state, length=trial.rounds)
        end = models.evaluate(
            model,
            state.params,
            dataset.test_inputs,
            dataset.test_labels,
            preprocess=functools.partial(data.standardise, dataset=dataset),
        )
        return end.accuracy, seen

    def all_seeds(dataset, split, rates, rate, thresholds, seeds, masks):
        return lax.map(
            lambda seed: one(dataset, split, rates, rate, thresholds, *seed),
            (seeds, masks),
        )

    return jax.jit(all_seeds)


def _choose(names, text, facts):
    return choose(names, "name", text).make(facts)


def _adversary(trial, decoder, rates):
    name, _, membership = trial.attack.partition("@")
    facts = {
        "num_workers": trial.num_workers,
        "num_classes": 10,
        "flip_probability": 0.5,
        "decoder": decoder,
    }
    kind, _, value = name.partition(":")
    own = {
        "flip": lambda: _flip(rates),
        "copies": lambda: _copies(rates),
        "negated_copies": _negated_copies,
        "copiers": lambda: _copiers(int(value)),
        "two_groups": _two_groups,
    }
    attack = own[kind]() if kind in own else _choose(registry.ATTACKS, name, facts)
    return attack, _choose(registry.MEMBERSHIPS, membership or "fixed", facts)


def _attack(rows_of):
    """An attack on gradients: `(key, round, leaf [M, N], byzantine) -> leaf`."""

    def apply(key, gradients, byzantine, context, state):
        leaves, treedef = jax.tree.flatten(gradients)
        keys = jax.random.split(key, len(leaves))
        sent = []
        for own_key, leaf in zip(keys, leaves, strict=True):
            rows = leaf.reshape(leaf.shape[0], -1)
            lies = rows_of(own_key, context.round, rows, byzantine)
            kept = jnp.where(byzantine[:, None], lies, rows)
            sent.append(kept.reshape(leaf.shape))
        return jax.tree.unflatten(treedef, sent), state

    return attacks.Attack(lambda num_workers, params: (), apply, row_wise=False)


def _flip(rates):
    def lies(key, round, rows, byzantine):
        rate = rates[0] + (rates[1] - rates[0]) * jnp.minimum(round / 200, 1.0)
        flipped = jax.random.uniform(key, rows.shape) < rate[:, None]
        return jnp.where(flipped, -rows, rows)

    return _attack(lies)


def _copied(rows, byzantine):
    """For the n-th liar the gradient of the n-th honest worker."""
    honest = jnp.argsort(byzantine, stable=True)
    number = jnp.cumsum(byzantine) - 1
    return rows[honest[jnp.maximum(number, 0)]]


def _copies(rates):
    def lies(key, round, rows, byzantine):
        copied = _copied(rows, byzantine)
        flipped = jax.random.uniform(key, rows.shape) < rates[0][:, None]
        return jnp.where(flipped, -copied, copied)

    return _attack(lies)


def _negated_copies():
    return _attack(lambda key, round, rows, byzantine: -_copied(rows, byzantine))


def _copiers(number):
    def lies(key, round, rows, byzantine):
        copies = jnp.cumsum(byzantine) <= number
        return jnp.where(copies[:, None], _copied(rows, byzantine), -rows)

    return _attack(lies)


def _two_groups():
    def lies(key, round, rows, byzantine):
        # Both oppose the honest majority, each on its own random half.
        votes = jnp.sign(rows) * ~byzantine[:, None]
        opposed = -jnp.sign(jnp.sum(votes, axis=0))
        kept = jax.random.bernoulli(key, 0.5, (2, rows.shape[1]))
        noise = jax.random.rademacher(
            jax.random.fold_in(key, 1), kept.shape, rows.dtype
        )
        return jnp.where(kept, opposed[None], noise)[jnp.arange(len(rows)) % 2]

    return _attack(lies)


def _local(loss_fn, steps: int):
    """A loss whose gradient is where a worker's own steps of SGD lead away from."""

    def walked(params, batch):
        parts = jax.tree.map(lambda x: x.reshape(steps, -1, *x.shape[1:]), batch)

        def step(here, part):
            loss, gradient = jax.value_and_grad(loss_fn)(here, part)
            return jax.tree.map(lambda p, g: p - 0.05 * g, here, gradient), loss

        end, losses = lax.scan(step, lax.stop_gradient(params), parts)
        way = jax.tree.map(lambda a, b: lax.stop_gradient(a - b), params, end)
        products = jax.tree.map(lambda w, p: jnp.sum(w * p), way, params)
        total = sum(jax.tree.leaves(products))
        return total - lax.stop_gradient(total) + lax.stop_gradient(losses[0])

    return walked


def _shared(draw, group: int):
    """Batches of which `group` neighbours have the same."""

    def shared(key):
        batch = draw(key)
        return jax.tree.map(lambda x: x[jnp.arange(len(x)) // group * group], batch)

    return shared


def read(path: Path) -> dict[str, Any]:
    """What a file of results holds; nothing where there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(path: Path, cells: dict[str, Any]) -> None:
    """Write the accuracies of all cells, with what they depend on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"cells": cells, "environment": records.environment()}
    records.write_atomically(path, json.dumps(whole, indent=1) + "\n")


def main(
    options: type, run: Callable[[Any], None], report: Callable[[Any], str]
) -> None:
    """Read the options of a benchmark; run it unless they say `report`, and report."""
    given = tyro.cli(options, description=inspect.getdoc(inspect.getmodule(run)))
    if not given.report:
        run(given)
    print(report(given))

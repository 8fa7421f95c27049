"""A federation of unequal sites, and what its smallest can do.

Eight sites share the digits: one holds 51.7 % of the examples, one .6 % (nine of them).
Each votes with the gradient of 16 of its own. "i.i.d.": every site has a random sample.
"unlike": the examples are dealt in the order of their labels plus normal noise of
standard deviation 3, so that neighbouring labels meet at a site.

Columns. "default, shares": the default with `shares=` the numbers of examples, which
the library caps, so that no vote weighs more than half of all others together.
"default, stakes": with `stakes=` these numbers, so that it is of the examples that more
than half must be honest. "default": without. "majority vote": with the same stakes.
"weighted mean": that of the gradients weighted by the numbers of examples, uncapped.
Each steps by the learning rate times the scale that did best, of its `SCALES`, where
nobody lies and the sites are i.i.d.

The smallest site lies by each attack in turn. "changed" is the share of decoded signs
(of the weighted mean: of its signs) that are other than they would be in that round if
the smallest site were absent: the mean over rounds and seeds.

    python -m benchmarks.unequal --json benchmarks/results/unequal.json
    python -m benchmarks.unequal --report --json benchmarks/results/unequal.json
"""

import dataclasses
import functools
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import signfd_jax as sfd
from benchmarks.trials import main, read, write
from benchmarks.trusted import switched
from signfd_jax import attacks, data, models
from signfd_jax.data import batches, partition

SITES = (0.517, 0.006, 0.03, 0.05, 0.07, 0.09, 0.11, 0.127)
"""The share of the examples that each holds; what is lacking goes to the last."""
LARGEST, SMALLEST = 0, 1
BATCH, RATE = 16, 2e-3
SPLITS = ("i.i.d.", "unlike")
SCALES = {
    "default, shares": (0.5, 1.0, 2.0, 4.0),
    "default, stakes": (0.5, 1.0, 2.0, 4.0),
    "default": (0.5, 1.0, 2.0, 4.0),
    "majority vote": (0.5, 1.0, 2.0, 4.0),
    "weighted mean": (30.0, 100.0, 300.0, 1000.0),
}
COLUMNS = tuple(SCALES)
KNOWN = {
    "default, shares": ("shares",),
    "default, stakes": ("stakes",),
    "majority vote": ("stakes",),
}
ATTACKS = {
    "none": attacks.no_attack,
    "sign inversion": attacks.sign_inversion,
    "flips .5": lambda: attacks.stochastic_sign_flip(0.5),
    "flips .8": lambda: attacks.stochastic_sign_flip(0.8),
    "random votes": attacks.random_vote,
    "scaling by -10": attacks.scaling,
    "scaling by -1000": lambda: attacks.scaling(-1000.0),
    "ALIE": attacks.alie,
    "IPM": attacks.ipm,
    "min-max": attacks.min_max,
    "majority opposition": attacks.majority_opposition,
    "sign ALIE": attacks.sign_alie,
    "sleeper": attacks.sleeper,
    "on and off": attacks.on_off,
    "swing": lambda: attacks.swing(sfd.correlation_defense()),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run, and where the results are."""

    json: Path = Path("runs/unequal.json")
    """Results; what is there is not run again."""
    seeds: int = 3
    """Training seeds."""
    rounds: int = 300
    """Rounds of each run."""
    attacks: tuple[str, ...] = tuple(ATTACKS)
    """Attacks, of those in `ATTACKS`."""
    splits: tuple[str, ...] = SPLITS
    """How the examples are dealt."""
    report: bool = False
    """Run nothing; print the table of what is there."""
    data_dir: Path | None = None
    """Folder of the data sets; default: the variable SIGNFD_DATA."""


class InfluenceState(NamedTuple):
    """The server's state, and the share of signs that one site changed, summed."""

    server_state: Any
    changed: jax.Array


def sites(labels: np.ndarray, split: str) -> partition.Partition:
    """Deal the examples."""
    rng = np.random.default_rng(0)
    spread = {"i.i.d.": 1e9, "unlike": 3.0}[split]
    order = np.argsort(labels + spread * rng.normal(size=len(labels)))
    sizes = np.round(np.array(SITES) * len(labels)).astype(np.int32)
    sizes[-1] += len(labels) - sizes.sum()
    # The smallest site has its examples from the middle of the order.
    dealt = [2, 3, 4, SMALLEST, 5, 6, 7, LARGEST]
    indices = np.zeros((len(sizes), sizes.max()), np.int32)
    start = 0
    for site in dealt:
        indices[site, : sizes[site]] = order[start : start + sizes[site]]
        start += sizes[site]
    return partition.Partition(indices, sizes)


def run(options: Options) -> None:
    """Run what is missing, and write after each cell."""
    results = read(options.json).get("cells", {})

    def measure(key, *cell):
        if len(results.get(key, {}).get("accuracy", [])) < options.seeds:
            results[key] = _measure(options, *cell)
            write(options.json, results)

    for column in COLUMNS:
        for scale in SCALES[column]:
            measure(f"{column} by {scale:g}", column, "none", "i.i.d.", scale)
        scale = best_scale(results, column)
        for split in options.splits:
            for attack in options.attacks:
                measure(f"{split} {attack} {column}", column, attack, split, scale)


def best_scale(results: dict[str, Any], column: str) -> float:
    """The step that a column takes, in learning rates."""
    cells = {by: results[f"{column} by {by:g}"]["accuracy"] for by in SCALES[column]}
    return max(cells, key=lambda by: statistics.fmean(cells[by]))


def _measure(options, column, attack, split, scale):
    dataset, parts = _setting(split, options.data_dir)
    found, changed = _program(column, options.rounds)(
        jnp.arange(options.seeds, dtype=jnp.uint32),
        *(dataset, parts, jnp.int32(list(ATTACKS).index(attack))),
        jnp.float32(scale * RATE),
    )
    found, changed = np.asarray(found), np.asarray(changed)
    return {"accuracy": found.tolist(), "changed": changed.tolist()}


@functools.lru_cache
def _setting(split, data_dir):
    dataset = jax.tree.map(jnp.asarray, data.load("digits", data_dir=data_dir))
    parts = sites(np.asarray(dataset.train_labels), split)
    return dataset, jax.tree.map(jnp.asarray, parts)


@functools.lru_cache
def _program(column, rounds):
    """Accuracies and shares of changed signs of all seeds, for any attack and split."""
    model = models.MLP(hidden=(64,), num_classes=10)

    def one(seed, dataset, parts, attack, rate):
        shares = parts.sizes.astype(jnp.float32)
        server = _weighted_mean(shares)
        decoder = sfd.correlation_defense()
        if column == "majority vote":
            decoder = sfd.majority_vote()
        if column != "weighted mean":
            server = sfd.scale_by_sign_decoder(len(SITES), decoder)
        made = ATTACKS | {"swing": lambda: attacks.swing(decoder)}
        simulated = sfd.simulation(
            models.loss_fn(model),
            optax.chain(influence(server), optax.scale_by_learning_rate(rate)),
            num_workers=len(SITES),
            attack=switched(attack, tuple(made.values())),
            sign_error=False,
        )
        model_key, run_key = jax.random.split(jax.random.key(seed))
        params = model.init(model_key, jnp.zeros((1, *dataset.test_inputs.shape[1:])))
        state = simulated.init(run_key, params, jnp.arange(len(SITES)) == SMALLEST)
        draw = batches.worker_batches(dataset, parts, BATCH)
        known = {name: shares for name in KNOWN.get(column, ())}
        state, _ = sfd.run(simulated, state, draw, rounds, **known)
        end = models.evaluate(
            model,
            state.params,
            dataset.test_inputs,
            dataset.test_labels,
            preprocess=functools.partial(data.standardise, dataset=dataset),
        )
        changed: Any = optax.tree.get(state.opt_state, "changed")
        return end.accuracy, changed / rounds

    def all_seeds(seeds, *facts):
        return lax.map(lambda seed: one(seed, *facts), seeds)

    return jax.jit(all_seeds)


def influence(
    server: optax.GradientTransformationExtraArgs, site: int = SMALLEST
) -> optax.GradientTransformationExtraArgs:
    """Count on the way which signs would be others if one site were absent."""

    def init(params):
        return InfluenceState(server.init(params), jnp.zeros(()))

    def update(updates, state, params=None, *, present=None, **known):
        del present  # everybody is
        found, new = server.update(updates, state.server_state, params, **known)
        others = jnp.arange(len(jax.tree.leaves(updates)[0])) != site
        without, _ = server.update(
            updates, state.server_state, params, present=others, **known
        )
        differs = jax.tree.map(lambda a, b: jnp.sign(a) != jnp.sign(b), found, without)
        number = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(differs))
        share = number / sum(leaf.size for leaf in jax.tree.leaves(differs))
        return found, InfluenceState(new, state.changed + share)

    return optax.GradientTransformationExtraArgs(init, update)


def _weighted_mean(shares):
    def update(updates, state, params=None, *, present=None, **known):
        del params, known
        here = shares if present is None else jnp.where(present, shares, 0)
        weights = here / jnp.sum(here)
        return jax.tree.map(
            lambda leaf: jnp.tensordot(weights, leaf, 1), updates
        ), state

    return optax.GradientTransformationExtraArgs(lambda params: (), update)


def report(options: Options) -> str:
    """The table: accuracy, and after it the share of signs that the site changed."""
    results = read(options.json).get("cells", {})
    lines = []
    for column in COLUMNS:
        tried = [
            f"{by:g}: {statistics.fmean(results[key]['accuracy']):.3f}"
            for by in SCALES[column]
            if (key := f"{column} by {by:g}") in results
        ]
        lines.append(f"{column}, nobody lies, i.i.d., by scale: {', '.join(tried)}")
    lines += [
        "\n| sites | the smallest | "
        + " | ".join(f"{column} | changed" for column in COLUMNS)
        + " |",
        "|---" * (2 + 2 * len(COLUMNS)) + "|",
    ]
    for split in SPLITS:
        for attack in ATTACKS:
            cells = [results.get(f"{split} {attack} {column}") for column in COLUMNS]
            if any(cells):
                shown = " | ".join(_cell(cell) for cell in cells)
                lines.append(f"| {split} | {attack} | {shown} |")
    return "\n".join(lines)


def _cell(cell):
    if not cell:
        return " | "
    accuracy, changed = map(statistics.fmean, (cell["accuracy"], cell["changed"]))
    return f"{accuracy:.3f} | {100 * changed:.2f} %"


if __name__ == "__main__":
    main(Options, run, report)

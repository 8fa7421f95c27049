"""One trusted worker among liars that are in the majority: ours, FLTrust, Zeno.

Digits, 15 workers. The last is the server itself: it holds 10, 100 or 500 examples,
drawn at random from the training set, and votes with the gradient of all of them. L of
the other 14 lie. The attackers see what the server would send from 16 of its examples,
not what it sends.

Columns. "default, trusted": the default with `trusted=`. "default": without.
"fltrust": real-valued. "fltrust_sign": on votes. "zeno": which is told L. "ceiling": a
majority vote among the honest alone, which nobody beats that reads no liar backwards.
"root alone": the sign of the server's own gradient. Those on real numbers step along
their aggregate times the learning rate and a scale: of `SCALES` the smallest that,
without an attack and with 100 examples, was within .01 of the best. The best itself is
so near to where training diverges that little is needed to push it over.

    python -m benchmarks.trusted --json benchmarks/results/trusted.json
    python -m benchmarks.trusted --report --json benchmarks/results/trusted.json
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import signfd_jax as sfd
from benchmarks.trials import main, read, write
from signfd_jax import aggregators, attacks, data, models, transforms
from signfd_jax.attacks._by_row import apply_by_row
from signfd_jax.data import batches, partition

WORKERS, BATCH, RATE, LARGEST_ROOT = 15, 16, 2e-3, 500
ROOTS = (100, 10, 500)
LIARS = (8, 10, 12, 14)
ATTACKS = {
    "none": attacks.no_attack,
    "sign inversion": attacks.sign_inversion,
    "flips .5": lambda: attacks.stochastic_sign_flip(0.5),
    "flips .8": lambda: attacks.stochastic_sign_flip(0.8),
    "random collusion": attacks.random_collusion,
    "ALIE": attacks.alie,
    "label flip": attacks.no_attack,  # the liars' labels are changed as they are drawn
}
COLUMNS = (
    "default, trusted",
    "default",
    "fltrust",
    "fltrust_sign",
    "zeno",
    "ceiling",
    "root alone",
)
SCALES = (30.0, 100.0, 300.0, 1000.0, 3000.0)
"""Steps along a gradient, in learning rates, of which one is taken."""
REAL_VALUED = ("fltrust", "zeno")


@dataclasses.dataclass(frozen=True)
class Options:
    """What to run, and where the results are."""

    json: Path = Path("runs/trusted.json")
    """Results; what is there is not run again."""
    seeds: int = 3
    """Training seeds."""
    rounds: int = 300
    """Rounds of each run."""
    roots: tuple[int, ...] = ROOTS
    """Numbers of examples of the trusted worker."""
    attacks: tuple[str, ...] = tuple(ATTACKS)
    """Attacks, of those in `ATTACKS`."""
    liars: tuple[int, ...] = LIARS
    """Numbers of workers that lie."""
    report: bool = False
    """Run nothing; print the tables of what is there."""
    data_dir: Path | None = None
    """Folder of the data sets; default: the variable SIGNFD_DATA."""


class Setting:
    """The data of one number of root examples."""

    def __init__(self, root: int, data_dir: Path | None):
        """Deal the examples."""
        self.dataset: Any = jax.tree.map(
            jnp.asarray, data.load("digits", data_dir=data_dir)
        )
        labels = self.dataset.train_labels
        own = np.random.default_rng(0).permutation(len(labels))[:root]
        clients = partition.iid(labels, WORKERS)
        indices = np.zeros((WORKERS, LARGEST_ROOT), np.int32)
        indices[:-1, : clients.indices.shape[1]] = clients.indices[:-1]
        indices[-1, :root] = own
        sizes = np.append(clients.sizes[:-1], root).astype(np.int32)
        split = partition.Partition(indices, sizes)
        self.split = jax.tree.map(jnp.asarray, split)
        inputs, labels = batches.examples(self.dataset)(self.split.indices[-1])
        self.root = inputs, labels, jnp.float32(np.arange(LARGEST_ROOT) < root)


def run(options: Options) -> None:
    """Run what is missing, and write after each cell."""
    results = read(options.json).get("cells", {})

    def accuracies(key, *cell):
        if len(results.get(key, [])) < options.seeds:
            results[key] = _accuracies(options, *cell)
            write(options.json, results)

    for column in REAL_VALUED:
        for scale in SCALES:
            cell = (column, "none", 100, 0, scale)
            accuracies(f"{column} by {scale:.0f}", *cell)
    for root in options.roots:
        for column in COLUMNS:
            if column == "default" and root != 100:
                continue
            scale = scale_of(results, column)
            # No liar has a part in what the root does alone.
            for attack in ("none",) if column == "root alone" else options.attacks:
                for liars in (0,) if attack == "none" else options.liars:
                    key = f"{attack} {liars} {root} {column}"
                    accuracies(key, column, attack, root, liars, scale)


def scale_of(results: dict[str, list[float]], column: str) -> float:
    """The step that a rule on real numbers takes; of votes, 1."""
    if column not in REAL_VALUED:
        return 1.0
    tried = [statistics.fmean(results[f"{column} by {scale:.0f}"]) for scale in SCALES]
    near = [value > max(tried) - 0.01 for value in tried]
    return SCALES[near.index(True)]


def _accuracies(options, column, attack, root, liars, scale):
    setting = _setting(root, options.data_dir)
    program = _program(column, options.rounds)
    found = program(
        jnp.arange(options.seeds, dtype=jnp.uint32),
        *(setting.dataset, setting.split, setting.root),
        *(jnp.int32(list(ATTACKS).index(attack)), jnp.int32(liars)),
        jnp.float32(scale * RATE),
    )
    return np.asarray(found).tolist()


_setting = functools.lru_cache(Setting)


@functools.lru_cache(maxsize=8)
def _program(column, rounds):
    """Accuracies of all seeds; compiled once for each column."""
    model = models.MLP(hidden=(64,), num_classes=10)
    loss_fn = models.loss_fn(model)

    def one(seed, dataset, split, root, attack, liars, rate):
        server, known, membership = _server(column, loss_fn, liars, rate, root)
        tx = optax.chain(
            with_root(server, loss_fn, root), optax.scale_by_learning_rate(rate)
        )
        simulated = sfd.simulation(
            loss_fn,
            tx,
            num_workers=WORKERS,
            attack=switched(attack, tuple(ATTACKS.values())),
            membership=membership,
            sign_error=False,
        )
        model_key, run_key = jax.random.split(jax.random.key(seed))
        params = model.init(model_key, jnp.zeros((1, *dataset.test_inputs.shape[1:])))
        lies = jnp.arange(WORKERS) < liars
        state = simulated.init(run_key, params, lies)
        flipped = lies & (attack == list(ATTACKS).index("label flip"))
        honest_draw = batches.worker_batches(dataset, split, BATCH)

        def draw(key):
            inputs, labels = honest_draw(key)
            return inputs, jnp.where(flipped[:, None], 9 - labels, labels)

        state, _ = sfd.run(simulated, state, draw, rounds, **known)
        return models.evaluate(
            model,
            state.params,
            dataset.test_inputs,
            dataset.test_labels,
            preprocess=functools.partial(data.standardise, dataset=dataset),
        ).accuracy

    def all_seeds(seeds, *facts):
        return lax.map(lambda seed: one(seed, *facts), seeds)

    return jax.jit(all_seeds)


def switched(index: jax.Array, makers: Sequence[Callable[[], attacks.Attack]]):
    """The attack of that number, which may be traced; none may remember anything."""
    all_attacks = [make() for make in makers]

    def apply(key, gradients, byzantine, context, state):
        branches = [functools.partial(_lies, each, context) for each in all_attacks]
        return lax.switch(index, branches, key, gradients, byzantine), state

    return attacks.Attack(lambda num_workers, params: (), apply, row_wise=False)


def _lies(attack, context, key, gradients, byzantine):
    if attack.row_wise:
        rows = jnp.arange(len(byzantine)), gradients, byzantine, context
        return apply_by_row(attack, key, *rows)
    return attack.apply(key, gradients, byzantine, context, ())[0]


def _server(column, loss_fn, liars, rate, root):
    """The transformation of a column, what it is told, and who takes part."""
    trusted = {"trusted": jnp.arange(WORKERS) == WORKERS - 1}
    if column.startswith("default"):
        tx = sfd.scale_by_sign_decoder(WORKERS, sfd.correlation_defense())
        return tx, trusted if column == "default, trusted" else {}, None
    if column in ("ceiling", "root alone"):
        tx = sfd.scale_by_sign_decoder(WORKERS, sfd.majority_vote())
        if column == "ceiling":
            return tx, {}, lambda key, byzantine, round: (byzantine, ~byzantine)
        return tx, {}, lambda key, byzantine, round: (byzantine, trusted["trusted"])
    if column == "zeno":
        tx = transforms.scale_by_zeno(
            *(WORKERS, loss_fn),
            num_byzantine=liars,
            learning_rate=rate,
            penalty=rate / 200,
        )
        update = functools.partial(tx.update, root_batch=root)
        return optax.GradientTransformationExtraArgs(tx.init, update), {}, None
    make_rule = aggregators.TRUSTED_RULES[column]
    rule = make_rule(0, jax.random.key(0))
    return transforms.scale_by_aggregator(rule, WORKERS), trusted, None


def with_root(
    server: optax.GradientTransformationExtraArgs, loss_fn: Any, root_batch: Any
) -> optax.GradientTransformationExtraArgs:
    """Put the server's own gradient, of all its examples, in the last row."""

    def update(updates, state, params=None, *, present=None, **known):
        own = jax.grad(loss_fn)(params, root_batch)
        updates = jax.tree.map(lambda all, row: all.at[-1].set(row), updates, own)
        if present is not None:
            known["present"] = present
        return server.update(updates, state, params, **known)

    return optax.GradientTransformationExtraArgs(server.init, update)


def report(options: Options) -> str:
    """A table for each number of root examples."""
    results = read(options.json).get("cells", {})
    lines = []
    for column in REAL_VALUED:
        tried = [
            f"{scale:.0f}: {statistics.fmean(results[key]):.3f}"
            for scale in SCALES
            if (key := f"{column} by {scale:.0f}") in results
        ]
        lines.append(f"{column}, no attack, by scale: {', '.join(tried)}")
    for root in sorted(options.roots):
        lines += [
            f"\n{root} root examples\n",
            "| attack | L | " + " | ".join(COLUMNS) + " |",
            "|---" * (2 + len(COLUMNS)) + "|",
        ]
        for attack in ATTACKS:
            for liars in (0,) if attack == "none" else LIARS:
                cells = [_cell(results, attack, liars, root, c) for c in COLUMNS]
                if any(cells[:-1]):
                    lines.append(f"| {attack} | {liars} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(results, attack, liars, root, column):
    if column == "root alone":
        attack, liars = "none", 0
    found = results.get(f"{attack} {liars} {root} {column}")
    return f"{statistics.fmean(found):.3f}" if found else ""


if __name__ == "__main__":
    main(Options, run, report)

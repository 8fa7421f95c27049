"""Blades' attacks and the rules of fedlib, on which it builds, beside ours.

Blades (https://github.com/lishenghui/blades) attacks a trainer of fedlib
(https://github.com/fedlib/fedlib); a trainer that has nothing but rows stands in.
"""

import importlib
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.parity import _imports
from benchmarks.parity._compare import (
    F,
    M,
    Pair,
    Peer,
    alie_mirrored,
    corrupt,
    honest,
    later,
    rows_of_two_signs,
    rows_scattered,
    tensors,
    two_rounds,
)
from signfd_jax import aggregators, attacks

__all__ = ["BLADES"]

_H = M - F  # honest workers
# Blades' deviation has the divisor H - 1, ours H.
_WIDER = (_H / (_H - 1)) ** 0.5


def _rule(name, *arguments, **named):
    """What a rule of this name makes of the rows."""
    return lambda b, x: getattr(b.rules, name)(*arguments, **named)(tensors(x))


def _two_rounds(name, **named):
    """What a rule that remembers makes of two rounds."""

    def theirs(blades, rows):
        rule = getattr(blades.rules, name)(**named)
        return np.stack([rule(tensors(rows)), rule(tensors(later(rows)))])

    return theirs


def _multi_krum_of_roots(blades, rows):
    """Multi-Krum, given the roots of the distances, which it squares twice."""
    with _imports.replaced(
        blades.multikrum,
        _compute_euclidean_distance=lambda one, other: (one - other).norm().sqrt(),
    ):
        return _rule("Multikrum", F, k=M // 2)(blades, rows)


def _attack(name, **named):
    """What an adversary of this name puts in the place of the Byzantine updates."""

    def theirs(blades, rows):
        torch = importlib.import_module("torch")
        clients = [
            types.SimpleNamespace(is_malicious=i >= _H, to_malicious=lambda **_: None)
            for i in range(M)
        ]
        trainer = types.SimpleNamespace(
            config=types.SimpleNamespace(num_clients=torch.tensor(M)),
            client_manager=types.SimpleNamespace(get_client_by_id=clients.__getitem__),
            local_results=[
                {"client_id": i, "client_update": row}
                for i, row in enumerate(tensors(rows))
            ],
            server=types.SimpleNamespace(aggregator=None),
        )
        adversary = getattr(blades.adversaries, name)(**named)
        adversary.clients = clients[_H:]
        adversary.on_trainer_init(trainer)
        adversary.on_local_round_end(trainer)
        return trainer.local_results[-1]["client_update"]

    return theirs


def _adaptive_at_the_extremes(blades, rows):
    """The adaptive attack where each random number leaves the extreme as it is."""
    torch = importlib.import_module("torch")
    drawn = iter([torch.zeros, torch.zeros, torch.ones, torch.ones])
    fixed = types.SimpleNamespace(**vars(torch))
    fixed.rand = lambda size, device: next(drawn)(size, dtype=torch.float64)
    module = importlib.import_module("blades.adversaries.adaptive_adversary")
    with _imports.replaced(module, torch=fixed):
        return _attack("AdaptiveAdversary")(blades, rows)


def _min_max_bisected(rows):
    """Our min-max with the factor that a bisection of [0, 5] to 0.01 would find."""
    centre, spread = honest(rows).mean(0), _WIDER * honest(rows).std(0)
    factor = jnp.median((centre - corrupt(attacks.min_max(), rows)) / spread)
    low = high = middle = jnp.float32(0)
    high += 5
    for _ in range(9):  # until they are less than 0.01 apart
        middle = (low + high) / 2
        low, high = (
            jnp.where(middle < factor, middle, low),
            jnp.where(middle < factor, high, middle),
        )
    return centre - middle * spread


_PAIRS: dict[str, Pair] = {
    "Mean": Pair(_rule("Mean"), aggregators.mean),
    "Median": Pair(_rule("Median"), aggregators.coordinate_median),
    "Trimmedmean": Pair(
        _rule("Trimmedmean", F), lambda x: aggregators.trimmed_mean(x, F)
    ),
    "GeoMed": Pair(
        _rule("GeoMed", ftol=0.0),
        lambda x: aggregators.geometric_median(
            x, max_iterations=100, tolerance=0.0, start=jnp.mean(x, axis=0)
        ),
        "fedlib starts from the mean and stops where the sum of distances hardly "
        "falls, ours starts from the coordinate median and stops after a short step: "
        "ftol=0; max_iterations=100, tolerance=0, start=mean",
    ),
    "DnC": Pair(
        _rule("DnC", F, num_iters=2),
        lambda x: aggregators.dnc(jax.random.key(0), x, F, num_iterations=2),
        "fedlib samples coordinates at random, ours one from each block; compared "
        "where all are taken. fedlib has 5 iterations, ours one: 2 of both",
        rows=rows_scattered,
    ),
    "Multikrum": Pair(
        _multi_krum_of_roots,
        lambda x: aggregators.multi_krum(x, F, num_selected=M // 2),
        "fedlib squares the distances twice and sums their fourth powers, the paper "
        "and ours the squares: fedlib is given the roots of the distances. It takes "
        "one row by default, ours averages M - f: M // 2 of both",
        rows_scattered,
    ),
    "Centeredclipping": Pair(
        _two_rounds("Centeredclipping", tau=10.0, n_iter=3),
        lambda x: two_rounds(
            aggregators.recurrent(
                aggregators.centered_clipping, clip_norm=10.0, num_iterations=3
            ),
            x,
        ),
        "other defaults: fedlib clips at 5 and moves 5 times, ours at 10 and once",
    ),
    "Clippedclustering": Pair(
        _two_rounds("Clippedclustering"),
        lambda x: two_rounds(aggregators.clipped_clustering(), x),
        "of two clusters of one size fedlib takes the first, ours the one with the "
        "smaller mean distance inside; here the sizes differ",
        rows=rows_scattered,
    ),
    "Signguard": Pair(
        _rule("Signguard"),
        lambda x: aggregators.signguard(jax.random.key(0), x, sample_fraction=1.0),
        "fedlib counts the signs of all coordinates and always divides the workers in "
        "two by k-means; ours, as the authors, samples coordinates and takes mean "
        "shift: sample_fraction=1, on rows of two clearly different shares of signs. "
        "fedlib clips before it looks for norms that are too large",
        rows_of_two_signs,
    ),
    "ALIEAdversary": Pair(
        _attack("ALIEAdversary"),
        lambda x: alie_mirrored(x, _WIDER),
        "Blades adds deviations (divisor H - 1) to the mean, ours subtracts them "
        "(divisor H): alie(None), mirrored, times sqrt(H / (H - 1))",
    ),
    "IPMAdversary": Pair(
        _attack("IPMAdversary", scale=2.0), lambda x: corrupt(attacks.ipm(2.0), x)
    ),
    "MinMaxAdversary": Pair(
        _attack("MinMaxAdversary"),
        _min_max_bisected,
        "Blades bisects the factor in [0, 5] to 0.01, ours solves for it: our factor, "
        "rounded as the bisection would",
    ),
    "AdaptiveAdversary": Pair(
        _adaptive_at_the_extremes,
        lambda x: corrupt(attacks.fang(1.0), x),
        "both draw between the honest extreme and b times it or 1/b of it, where b is "
        "2 in Blades; compared at the extreme, which is spread=1",
    ),
}

_NOT_COMPARED = {
    "NoiseAdversary": "random: a normal distribution, by definition",
    "LabelFlipAdversary": "flips labels in the client's training loop; ours, "
    "label_flip, flips the labels y to C - 1 - y of the batch",
    "SignFlipAdversary": "turns the gradients in the client's training loop; ours, "
    "inside:sign_inversion, those of a worker's own steps",
}


def _load(clones: Path):
    """The rules, the attacks, and the module of Multi-Krum."""
    _imports.needed("torch", "sklearn")
    torch = importlib.import_module("torch")
    _imports.package("fedlib", clones / "fedlib/fedlib")
    _imports.package("fedlib.utils", clones / "fedlib/fedlib/utils")
    _imports.package("blades", clones / "blades/blades")
    utils = ("annotations", "from_config", "typing")
    for name in (
        *("ray", "ray.rllib", "ray.rllib.utils"),
        *(f"ray.rllib.utils.{name}" for name in utils),
        *("fedlib.clients", "fedlib.trainers"),
    ):
        _imports.stand_in(name)
    _imports.stand_in(
        "ray.rllib.utils.framework", try_import_torch=lambda: (torch, torch.nn)
    )
    keys = ("client_id", "client_update", "train_loss")
    _imports.stand_in("fedlib.constants", **{key.upper(): key for key in keys})
    library = types.SimpleNamespace(
        rules=importlib.import_module("fedlib.aggregators"),
        multikrum=importlib.import_module("fedlib.aggregators.multikrum"),
        adversaries=importlib.import_module("blades.adversaries"),
    )
    folders = ("blades", "fedlib")
    return library, {name: _imports.commit_of(clones / name) for name in folders}


BLADES = Peer(
    "Blades",
    _load,
    _PAIRS,
    _NOT_COMPARED,
    (
        ("blades", "blades/adversaries/__init__.py"),
        ("fedlib", "fedlib/aggregators/__init__.py"),
    ),
)

"""ByzPy's rules, pre-aggregations and attacks beside ours.

ByzPy (https://github.com/Byzpy/byzpy) takes a list of PyTorch tensors.
"""

import types
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from benchmarks.parity._compare import (
    F,
    M,
    Pair,
    Peer,
    buckets,
    copied_by_mimic,
    corrupt,
    honest,
    rows_far_apart,
    rows_scattered,
    shuffled,
    tensors,
)
from benchmarks.parity._imports import installed
from signfd_jax import aggregators, attacks

__all__ = ["BYZPY"]

_MODULES = {
    "aggregators.coordinate_wise": ("mean_of_medians", "median", "trimmed_mean"),
    "aggregators.geometric_wise": (
        "geometric_median",
        "krum",
        "minimum_diameter_average",
        "monna",
        "smea",
    ),
    "aggregators.norm_wise": (
        "caf",
        "center_clipping",
        "comparative_gradient_elimination",
    ),
    "pre_aggregators": ("arc", "bucketing", "clipping", "nnm"),
    "attacks": ("empire", "inf", "little", "mimic", "sign_flip"),
}


def _rule(name, *arguments, **named):
    """What a rule of this name makes of the rows."""
    return lambda b, x: getattr(b, name)(*arguments, **named).aggregate(tensors(x))


def _before(name, *arguments, **named):
    """What a pre-aggregation of this name makes of the rows."""

    def theirs(byzpy, rows):
        made = getattr(byzpy, name)(*arguments, **named).pre_aggregate(tensors(rows))
        return np.stack([np.asarray(row) for row in made])

    return theirs


def _attack(name, *arguments):
    """What an attack of this name sends, seeing the honest rows."""
    return lambda b, x: getattr(b, name)(*arguments).apply(
        honest_grads=tensors(honest(x))
    )


# ByzPy's share of supporters is one of all workers, the paper's one of the honest.
_LITTLE_Z = float(norm.ppf((M - (M // 2 + 1 - F)) / M))

_PAIRS: dict[str, Pair] = {
    "CoordinateWiseMedian": Pair(
        _rule("CoordinateWiseMedian"),
        aggregators.coordinate_median,
        "of an even number of workers ByzPy takes the lower of the two middle values, "
        "ours their mean; here the number is odd",
    ),
    "CoordinateWiseTrimmedMean": Pair(
        _rule("CoordinateWiseTrimmedMean", F), lambda x: aggregators.trimmed_mean(x, F)
    ),
    "MeanOfMedians": Pair(
        _rule("MeanOfMedians", F),
        lambda x: aggregators.mean_around_median(x, F),
        "for an even number of workers as the median",
    ),
    "GeometricMedian": Pair(
        _rule("GeometricMedian", tol=1e-9),
        lambda x: aggregators.geometric_median(
            x, smoothing=1e-12, max_iterations=256, tolerance=0.0
        ),
        "ByzPy stops at an absolute step of 1e-6, ours at a relative one of 1e-5: "
        "tol=1e-9, and 256 steps of ours",
    ),
    "Krum": Pair(
        _rule("Krum", F),
        lambda x: aggregators.krum(x, F, num_neighbours=M - F - 1),
        "ByzPy scores by M - f - 1 neighbours, the paper and ours by M - f - 2: "
        "num_neighbours=M - f - 1",
        rows=rows_scattered,
    ),
    "MultiKrum": Pair(
        _rule("MultiKrum", F, M - F),
        lambda x: aggregators.multi_krum(x, F, num_neighbours=M - F - 1),
        "as Krum; ByzPy has no default for how many are averaged: q=M - f",
        rows=rows_scattered,
    ),
    "MinimumDiameterAveraging": Pair(
        _rule("MinimumDiameterAveraging", F),
        lambda x: aggregators.mda(x, F),
        "of several subsets with the smallest diameter ByzPy takes the first, ours the "
        "one with the smallest sum of squared distances; here there is but one",
    ),
    "MoNNA": Pair(
        _rule("MoNNA", F, reference_index=2),
        lambda x: aggregators.monna(x, jnp.arange(M) == 2, F),
        "in ByzPy the pivot is the row of one worker, in ours the mean of the trusted "
        "rows: one is trusted",
        rows=rows_scattered,
    ),
    "SMEA": Pair(
        _rule("SMEA", F), lambda x: aggregators.smea(x, F), rows=rows_scattered
    ),
    "CAF": Pair(
        _rule("CAF", F, power_iters=10_000),
        lambda x: aggregators.caf(x, F),
        "ByzPy estimates eigenvectors by 3 steps of the power method, ours are exact: "
        "power_iters=10000. ByzPy divides by the largest tau of all rows, ours by that "
        "of the rows with weight left: compared on rows where that is one row, because "
        "each liar is far away in a direction of its own",
        rows_far_apart,
    ),
    "CenteredClipping": Pair(
        _rule("CenteredClipping", c_tau=10.0, M=3, init="zero"),
        lambda x: aggregators.centered_clipping(
            x, jnp.zeros(x.shape[1]), clip_norm=10.0, num_iterations=3
        ),
        "ByzPy starts from the mean of the rows and moves 10 times, ours starts from "
        'the last aggregate and moves once: init="zero", M=3',
    ),
    "ComparativeGradientElimination": Pair(
        _rule("ComparativeGradientElimination", F),
        lambda x: aggregators.cge(x, F),
        rows=rows_scattered,
    ),
    "NearestNeighborMixing": Pair(
        _before("NearestNeighborMixing", F),
        lambda x: aggregators.nearest_neighbour_mixing(x, F),
        rows=rows_scattered,
    ),
    "Bucketing": Pair(
        lambda b, x: _before("Bucketing", 2, perm=range(M))(b, shuffled(x)),
        buckets,
        "both shuffle at random; compared with the same shuffle",
    ),
    "Clipping": Pair(_before("Clipping", 2.0), lambda x: aggregators.clipping(x, 2.0)),
    "ARC": Pair(
        _before("ARC", F), lambda x: aggregators.adaptive_robust_clipping(x, F)
    ),
    "EmpireAttack": Pair(
        _attack("EmpireAttack"), lambda x: corrupt(attacks.ipm(1.0), x)
    ),
    "LittleAttack": Pair(
        _attack("LittleAttack", F, M),
        lambda x: corrupt(attacks.alie(-_LITTLE_Z), x),
        "ByzPy adds z deviations to the mean, ours subtracts them. Its z is that of "
        "the share (M - s) / M, the paper's that of (M - f - s) / (M - f): "
        "z = -Phi^-1((M - s) / M)",
    ),
    "InfAttack": Pair(
        _attack("InfAttack"), lambda x: corrupt(attacks.non_finite(float("inf")), x)
    ),
    "MimicAttack": Pair(
        lambda b, x: _attack("MimicAttack", copied_by_mimic(x))(b, x),
        lambda x: corrupt(attacks.mimic(), x),
        "ByzPy copies the worker it is told, ours learns whom to copy: compared with "
        "the worker that ours chose",
    ),
    "SignFlipAttack": Pair(
        lambda b, x: b.SignFlipAttack().apply(base_grad=tensors(x)[-1]),
        lambda x: corrupt(attacks.sign_inversion(), x),
    ),
}

_NOT_COMPARED = {
    "GaussianAttack": "random: a normal distribution, by definition",
    "LabelFlipAttack": "the gradient of a model at flipped labels; ours, label_flip, "
    "flips the labels y to C - 1 - y of the batch",
}


def _load(_):
    """All of ByzPy's names, in one namespace."""
    how = "pip install --no-deps byzpy, and pip install torch cloudpickle"
    _, version = installed("byzpy", "byzpy", how)
    names: dict[str, Any] = {}
    for folder, files in _MODULES.items():
        for file in files:
            names |= vars(installed("byzpy", f"byzpy.{folder}.{file}", how)[0])
    return types.SimpleNamespace(**names), version


BYZPY = Peer("ByzPy", _load, _PAIRS, _NOT_COMPARED)

"""ByzFL's rules, pre-aggregations and attacks beside ours.

ByzFL (https://github.com/LPD-EPFL/byzfl) is for PyTorch; its functions take NumPy
arrays too.
"""

import importlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.parity._compare import (
    D,
    F,
    M,
    Pair,
    Peer,
    buckets,
    copied_by_mimic,
    corrupt,
    honest,
    rows_scattered,
    shuffled,
)
from benchmarks.parity._imports import installed, replaced
from signfd_jax import aggregators, attacks

__all__ = ["BYZFL"]


def _columns(rows, number=10):
    """The first few coordinates, each as rows of its own."""
    return rows.T[:number, :, None]


def _their_buckets(byzfl, rows):
    """ByzFL's buckets, of rows in the order in which ours shuffles them."""
    module = importlib.import_module("byzfl.aggregators.preaggregators")
    fixed = types.SimpleNamespace(permutation=lambda _: shuffled(rows))
    with replaced(module, random_tool=lambda _: fixed):
        return byzfl.Bucketing(2)(rows)


# ByzFL divides by the number of honest workers less one, ours by their number.
_ALIE_Z = -1.5 * ((M - F) / (M - F - 1)) ** 0.5

_TRIMMED_MEAN = aggregators.stateless(aggregators.trimmed_mean, num_byzantine=F)

_PAIRS: dict[str, Pair] = {
    "Average": Pair(lambda b, x: b.Average()(x), aggregators.mean),
    "Median": Pair(
        lambda b, x: b.Median()(x),
        aggregators.coordinate_median,
        "the same for NumPy input; for torch tensors ByzFL takes the lower of the two "
        "middle values of an even number, ours their mean",
    ),
    "TrMean": Pair(
        lambda b, x: b.TrMean(F)(x), lambda x: aggregators.trimmed_mean(x, F)
    ),
    "GeometricMedian": Pair(
        lambda b, x: b.GeometricMedian(nu=0.1, T=3)(x),
        lambda x: aggregators.geometric_median(
            x, smoothing=0.1, max_iterations=3, tolerance=0.0, start=jnp.zeros(D)
        ),
        "ByzFL takes 3 steps from zero, ours iterates from the coordinate median to a "
        "tolerance: smoothing=0.1, max_iterations=3, tolerance=0, start=0",
    ),
    "Krum": Pair(
        lambda b, x: b.Krum(F)(x),
        lambda x: aggregators.krum(x, F, num_neighbours=M - F - 1),
        "ByzFL scores by M - f - 1 neighbours, the paper and ours by M - f - 2: "
        "num_neighbours=M - f - 1",
        rows=rows_scattered,
    ),
    "MultiKrum": Pair(
        lambda b, x: b.MultiKrum(F)(x),
        lambda x: aggregators.multi_krum(x, F, num_neighbours=M - F - 1),
        "as Krum",
        rows=rows_scattered,
    ),
    "CenteredClipping": Pair(
        lambda b, x: b.CenteredClipping(L=3, tau=10.0)(x),
        lambda x: aggregators.centered_clipping(
            x, jnp.zeros(D), clip_norm=10.0, num_iterations=3
        ),
        "other defaults: ByzFL clips at 100, ours at 10",
    ),
    "Meamed": Pair(
        lambda b, x: b.Meamed(F)(x), lambda x: aggregators.mean_around_median(x, F)
    ),
    "MDA": Pair(
        lambda b, x: b.MDA(F)(x),
        lambda x: aggregators.mda(x, F),
        "of several subsets with the smallest diameter ByzFL takes the first, ours the "
        "one with the smallest sum of squared distances; here there is but one",
    ),
    "SMEA": Pair(
        lambda b, x: np.stack([b.SMEA(F)(column) for column in _columns(x)]),
        lambda x: jax.vmap(lambda column: aggregators.smea(column, F))(_columns(x)),
        "ByzFL estimates eigenvalues by one step of the power method from a random "
        "start, ours are exact: compared on single coordinates, where a step is exact",
        rows=rows_scattered,
    ),
    "MoNNA": Pair(
        lambda b, x: b.MoNNA(F, idx=2)(x),
        lambda x: aggregators.monna(x, jnp.arange(M) == 2, F),
        "in ByzFL the pivot is the row of one worker, in ours the mean of the trusted "
        "rows: one is trusted",
        rows=rows_scattered,
    ),
    "NNM": Pair(
        lambda b, x: b.NNM(F)(x),
        lambda x: aggregators.nearest_neighbour_mixing(x, F),
        rows=rows_scattered,
    ),
    "Bucketing": Pair(
        _their_buckets,
        buckets,
        "both shuffle at random; compared with the same shuffle",
    ),
    "Clipping": Pair(
        lambda b, x: b.Clipping(2.0)(x.copy()),
        lambda x: aggregators.clipping(x, 2.0),
        "ByzFL changes its input in place, ours does not",
    ),
    "ARC": Pair(
        lambda b, x: b.ARC(F)(x.copy()),
        lambda x: aggregators.adaptive_robust_clipping(x, F),
        "ByzFL changes its input in place, ours does not",
    ),
    "SignFlipping": Pair(
        lambda b, x: b.SignFlipping()(honest(x)),
        lambda x: corrupt(attacks.ipm(1.0), x),
        "ByzFL sends minus the honest mean, which is inner-product manipulation with "
        "factor 1: ipm(1.0). Our sign_inversion sends minus each worker's own gradient",
    ),
    "InnerProductManipulation": Pair(
        lambda b, x: b.InnerProductManipulation(2.0)(honest(x)),
        lambda x: corrupt(attacks.ipm(2.0), x),
    ),
    "ALittleIsEnough": Pair(
        lambda b, x: b.ALittleIsEnough(1.5)(honest(x)),
        lambda x: corrupt(attacks.alie(_ALIE_Z), x),
        "ByzFL adds 1.5 sample deviations (divisor H - 1) to the mean, ours subtracts "
        "z deviations (divisor H): z = -1.5 sqrt(H / (H - 1))",
    ),
    "Optimal_InnerProductManipulation": Pair(
        lambda b, x: b.Optimal_InnerProductManipulation(b.TrMean(F), [], F)(honest(x)),
        lambda x: corrupt(attacks.line_search(_TRIMMED_MEAN, attacks.ipm), x),
        "against a trimmed mean, without clipping",
    ),
    "Optimal_ALittleIsEnough": Pair(
        lambda b, x: b.Optimal_ALittleIsEnough(b.TrMean(F), [], F)(honest(x)),
        lambda x: corrupt(
            attacks.line_search(_TRIMMED_MEAN, attacks.alie, step=_ALIE_Z * 10 / 1.5), x
        ),
        "as ALittleIsEnough: the first step is -10 sqrt(H / (H - 1)); against a "
        "trimmed mean, without clipping",
    ),
    "Mimic": Pair(
        lambda b, x: b.Mimic(copied_by_mimic(x))(honest(x)),
        lambda x: corrupt(attacks.mimic(), x),
        "ByzFL copies the worker it is told, ours learns whom to copy: compared with "
        "the worker that ours chose",
    ),
    "Inf": Pair(
        lambda b, x: b.Inf()(honest(x)),
        lambda x: corrupt(attacks.non_finite(float("inf")), x),
    ),
}

# Of ByzFL's public names, those that are not compared, and why.
_NOT_COMPARED = {
    "CAF": "ByzFL takes one step of the power method from a random start, and its "
    "largest tau may be that of a row without weight; ours takes exact eigenvectors, "
    "and the largest tau of the rows with weight. ByzPy's, whose number of steps can "
    "be given, is compared",
    "Gaussian": "random: the same distribution N(0, s²), by definition",
    "LabelFlipping": "in ByzFL the mean of the gradients that flipped labels gave; "
    "ours, label_flip, flips the labels y to C - 1 - y of the batch",
}


def _load(_):
    """Import ByzFL, whose torchvision may not fit the torch that is installed."""
    how = "pip install byzfl, in an environment of its own"
    try:
        return installed("byzfl", "byzfl", how)
    except RuntimeError:
        # Torchvision registers meta kernels for operators that a CPU build lacks.
        for name in [n for n in sys.modules if n.startswith(("torchvision", "byzfl"))]:
            del sys.modules[name]
        empty = types.ModuleType("torchvision._meta_registrations")
        sys.modules["torchvision._meta_registrations"] = empty
        return installed("byzfl", "byzfl", how)


BYZFL = Peer("ByzFL", _load, _PAIRS, _NOT_COMPARED)

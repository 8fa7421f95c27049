"""Do the rules and attacks here say what ByzFL's own functions say?

ByzFL (https://github.com/LPD-EPFL/byzfl) is the PyTorch library of robust aggregation;
its functions take NumPy arrays too, and are run here in float64 against ours in
float32. For each of its rules, pre-aggregations and attacks the largest difference over
several draws of rows is printed; where the two define a thing differently, the
difference is named, and the arguments that bridge it are used. What ByzFL has and this
library has not is named as well.

    pip install byzfl    # with torch and torchvision, in an environment of its own
    python -m benchmarks.parity --json benchmarks/results/parity.json

The exit code is 1 if a difference exceeds the tolerance.
"""

import dataclasses
import importlib
import importlib.metadata
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from signfd_jax import aggregators, attacks
from signfd_jax.attacks import AttackContext
from signfd_jax.experiments._processes import console
from signfd_jax.experiments._storage.run_folder import environment, write_atomically

M, D, F = 15, 1000, 3


@dataclasses.dataclass(frozen=True)
class Options:
    """What to compare, and what to write."""

    draws: int = 5
    """Draws of the rows."""
    tolerance: float = 1e-5
    """Largest difference allowed, relative to the largest number compared."""
    json: Path | None = None
    """Write the result here."""


class Pair(NamedTuple):
    """A function of ByzFL's beside ours.

    Attributes:
        theirs: `(byzfl, rows float64 [M, D]) -> array`.
        ours: `(rows float32 [M, D]) -> array` of the same shape.
        definition: how the two definitions differ, and what bridges it.
    """

    theirs: Callable[[Any, np.ndarray], Any]
    ours: Callable[[jax.Array], jax.Array]
    definition: str = ""


def rows_of(draw: int) -> np.ndarray:
    """Noisy copies of one vector, F of them shifted far away, in random order."""
    rng = np.random.default_rng(draw)
    rows = rng.normal(size=D) + 0.5 * rng.normal(size=(M, D))
    rows[:F] += 3 * rng.normal(size=D)
    return rng.permutation(rows).astype(np.float32)


def _corrupt(attack, rows):
    """What the Byzantine workers of ours send, the last F, seeing the honest others."""
    byzantine = jnp.arange(M) >= M - F
    context = AttackContext(jnp.int32(0), None)
    state = attack.init(M, rows[0])
    sent, _ = attack.apply(jax.random.key(1), rows, byzantine, context, state)
    return sent[-1]


def _honest(rows):
    return rows[: M - F]


def _columns(rows, number=10):
    """The first few coordinates, each as rows of its own."""
    return rows.T[:number, :, None]


def _their_buckets(byzfl, rows):
    """ByzFL's buckets, of rows in the order in which ours shuffles them."""
    shuffled = aggregators.bucketing(
        jax.random.key(2), jnp.asarray(rows, jnp.float32), bucket_size=1
    )
    module: Any = importlib.import_module("byzfl.aggregators.preaggregators")
    original = module.random_tool
    fixed = types.SimpleNamespace(permutation=lambda _: np.asarray(shuffled, float))
    module.random_tool = lambda _: fixed
    try:
        return byzfl.Bucketing(2)(rows)
    finally:
        module.random_tool = original


def _their_mimic(byzfl, rows):
    """ByzFL copies the worker it is told: the one that ours chose."""
    sent = np.asarray(_corrupt(attacks.mimic(), jnp.asarray(rows, jnp.float32)))
    target = int(np.argmin(np.abs(_honest(rows) - sent).sum(1)))
    return byzfl.Mimic(target)(_honest(rows))


# ByzFL divides by the number of honest workers less one, ours by their number.
_ALIE_Z = -1.5 * ((M - F) / (M - F - 1)) ** 0.5

PAIRS: dict[str, Pair] = {
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
    ),
    "MultiKrum": Pair(
        lambda b, x: b.MultiKrum(F)(x),
        lambda x: aggregators.multi_krum(x, F, num_neighbours=M - F - 1),
        "as Krum",
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
    ),
    "MoNNA": Pair(
        lambda b, x: b.MoNNA(F, idx=2)(x),
        lambda x: aggregators.monna(x, jnp.arange(M) == 2, F),
        "in ByzFL the pivot is the row of one worker, in ours the mean of the trusted "
        "rows: one is trusted",
    ),
    "NNM": Pair(
        lambda b, x: b.NNM(F)(x), lambda x: aggregators.nearest_neighbour_mixing(x, F)
    ),
    "Bucketing": Pair(
        _their_buckets,
        lambda x: aggregators.bucketing(jax.random.key(2), x, bucket_size=2),
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
        lambda b, x: b.SignFlipping()(_honest(x)),
        lambda x: _corrupt(attacks.ipm(1.0), x),
        "ByzFL sends minus the honest mean, which is inner-product manipulation with "
        "factor 1: ipm(1.0). Our sign_inversion sends minus each worker's own gradient",
    ),
    "InnerProductManipulation": Pair(
        lambda b, x: b.InnerProductManipulation(2.0)(_honest(x)),
        lambda x: _corrupt(attacks.ipm(2.0), x),
    ),
    "ALittleIsEnough": Pair(
        lambda b, x: b.ALittleIsEnough(1.5)(_honest(x)),
        lambda x: _corrupt(attacks.alie(_ALIE_Z), x),
        "ByzFL adds 1.5 sample deviations (divisor H - 1) to the mean, ours subtracts "
        "z deviations (divisor H): z = -1.5 sqrt(H / (H - 1))",
    ),
    "Mimic": Pair(
        _their_mimic,
        lambda x: _corrupt(attacks.mimic(), x),
        "ByzFL copies the worker it is told, ours learns whom to copy: compared with "
        "the worker that ours chose",
    ),
    "Inf": Pair(
        lambda b, x: b.Inf()(_honest(x)),
        lambda x: _corrupt(attacks.non_finite(float("inf")), x),
    ),
}

# Of ByzFL's public names, those that are not compared, and why.
NOT_COMPARED = {
    "CAF": "ByzFL takes one step of the power method from a random start, and its "
    "largest tau may be that of a row without weight; ours takes exact eigenvectors, "
    "and the largest tau of the rows with weight",
    "Gaussian": "random: the same distribution N(0, s²), by definition",
    "Optimal_InnerProductManipulation": "left out here: under the sign every factor of "
    "ipm is the same",
    "Optimal_ALittleIsEnough": "left out here; attacks.adaptive searches against a "
    "sign decoder instead",
    "LabelFlipping": "in ByzFL the mean of the gradients that flipped labels gave; "
    "ours, label_flip, flips the labels y to C - 1 - y of the batch",
}


def import_byzfl() -> Any:
    """Import ByzFL, whose torchvision may not fit the torch that is installed."""
    try:
        return importlib.import_module("byzfl")
    except RuntimeError:
        # Torchvision registers meta kernels for operators that a CPU build lacks.
        for name in [n for n in sys.modules if n.startswith(("torchvision", "byzfl"))]:
            del sys.modules[name]
        empty = types.ModuleType("torchvision._meta_registrations")
        sys.modules["torchvision._meta_registrations"] = empty
        return importlib.import_module("byzfl")


def difference(byzfl: Any, pair: Pair, draws: int) -> float:
    """Largest difference, relative to the largest finite number that theirs gives.

    Args:
        byzfl: the package.
        pair: what is compared.
        draws: draws of the rows.

    Returns:
        The difference; infinite where one is finite and the other is not.
    """
    largest = 0.0
    for draw in range(draws):
        rows = rows_of(draw)
        theirs = np.asarray(pair.theirs(byzfl, rows.astype(np.float64)), np.float64)
        ours = np.asarray(jax.jit(pair.ours)(jnp.asarray(rows)), np.float64)
        if theirs.shape != ours.shape:
            raise ValueError(f"theirs has shape {theirs.shape}, ours {ours.shape}")
        equal = theirs == ours  # infinities too
        finite = np.isfinite(theirs) & np.isfinite(ours)
        if not (equal | finite).all():
            return float("inf")
        theirs, ours = (np.where(finite, values, 0) for values in (theirs, ours))
        scale = np.abs(theirs).max() or 1.0
        off = np.abs(theirs - ours).max()
        largest = max(largest, float(off / scale))
    return largest


def main() -> None:
    """Compare everything, print, and write what was asked for."""
    options = tyro.cli(Options, description=__doc__)
    byzfl = import_byzfl()
    found = []
    print(f"{'ByzFL':34}largest difference   definition")
    for name, pair in PAIRS.items():
        largest = difference(byzfl, pair, options.draws)
        agrees = largest <= options.tolerance
        found.append(
            {
                "byzfl": name,
                "largest_difference": largest,
                "agrees": agrees,
                "definition": pair.definition,
            }
        )
        mark = "" if agrees else "  TOO LARGE"
        print(f"{name:34}{largest:.1e}{mark:12}  {pair.definition or 'the same'}")
    for name, reason in NOT_COMPARED.items():
        print(f"{name:34}not compared           {reason}")
    if options.json is not None:
        result = {
            "about": (__doc__ or "").split("\n\n")[1],
            "workers": M,
            "coordinates": D,
            "byzantine": F,
            "draws": options.draws,
            "tolerance": options.tolerance,
            "compared": found,
            "not_compared": NOT_COMPARED,
            "byzfl": importlib.metadata.version("byzfl"),
            "environment": environment(),
        }
        write_atomically(options.json, json.dumps(result, indent=1) + "\n")
    if not all(entry["agrees"] for entry in found):
        sys.exit(1)


if __name__ == "__main__":
    with console.steady():  # results are kept, wherever they are printed
        main()

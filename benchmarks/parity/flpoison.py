"""FLPoison's rules and attacks beside ours.

FLPoison (https://github.com/vio1etus/FLPoison) has rules on NumPy arrays, some of which
want the last global model: here one of a single layer, whose parameters are zero.
"""

import functools
import importlib
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.parity import _imports
from benchmarks.parity._compare import (
    D,
    F,
    M,
    Pair,
    Peer,
    alie_mirrored,
    buckets,
    copied_by_mimic,
    corrupt,
    later,
    rows_of_descent,
    rows_of_two_signs,
    rows_scattered,
    rows_unlike,
    shuffled,
    two_rounds,
)
from signfd_jax import aggregators, attacks
from signfd_jax.aggregators.prediction import _change

__all__ = ["FLPOISON"]

_RULES = (
    *("bucketing", "bulyan", "centeredclipping", "dnc", "flame", "fldetector"),
    *("fltrust", "foolsgold", "krum", "mean", "median", "multikrum", "normclipping"),
    *("rfa", "signguard", "trimmedmean"),
)
_ATTACKS = ("alie", "ipm", "mimic", "min", "modelreplacement", "signflipping")
_INPUTS, _CLASSES = 24, 40  # of the layer: D parameters with the bias


def _instance(kind, **attributes):
    """An object without what its constructor wants: models, data sets, optimisers."""
    made = object.__new__(kind)
    vars(made).update(attributes)
    return made


def _arguments(**parameters):
    return types.SimpleNamespace(
        num_clients=M, num_adv=F, algorithm="FedSGD", defense_params=parameters
    )


@functools.cache
def _model():
    """A layer of D parameters that are zero."""
    torch = importlib.import_module("torch")
    model = torch.nn.Linear(_INPUTS, _CLASSES, dtype=torch.float64)
    assert sum(values.numel() for values in model.parameters()) == D
    with torch.no_grad():
        for values in model.parameters():
            values.zero_()
    return model


def _rule(name, **parameters):
    """What a rule of this name makes of the rows."""

    def theirs(flpoison, rows):
        rule = flpoison.rules[name](_arguments(**parameters))
        return rule.aggregate(rows.copy(), last_global_model=_model())

    return theirs


def _squared(name, **parameters):
    """Krum or Multi-Krum, given the squares of the distances, which it sums."""

    def theirs(flpoison, rows):
        with _squared_distances(f"aggregators.{name.lower()}"):
            return _rule(name, **parameters)(flpoison, rows)

    return theirs


def _squared_distances(name):
    """The module of this name gets squares of distances."""
    module = sys.modules[name]
    distances = module.L2_distances

    def squares(updates):
        return {
            i: {j: value**2 for j, value in others.items()}
            for i, others in distances(updates).items()
        }

    return _imports.replaced(module, L2_distances=squares)


def _bulyan(flpoison, rows):
    """Bulyan, told which row its Krum picked, and of how many values to take the mean.

    Its Krum counts r - f' - 1 neighbours among r rows, ours max(r - f - 2, f + 1).
    """
    module = sys.modules["aggregators.bulyan"]
    krum = module.krum

    def pick(left, _, return_index):
        neighbours = max(len(left) - F - 2, F + 1)
        index = krum(left, len(left) - 1 - neighbours, return_index=return_index)
        return int(np.flatnonzero((rows == left[index]).all(axis=1))[0])

    rule = flpoison.rules["Bulyan"](_arguments())
    rule.beta = M - 4 * F
    with _squared_distances("aggregators.krum"), _imports.replaced(module, krum=pick):
        return rule.aggregate(rows)


def _bucketing(flpoison, rows):
    """Bucketing and a median, of a list of rows in the order of our shuffle."""

    def shuffle(updates):
        updates[:] = list(shuffled(np.stack(updates)))

    module = sys.modules["aggregators.bucketing"]
    rule = flpoison.rules["Bucketing"](_arguments(selected_aggregator="Median"))
    with _imports.replaced(module, random=types.SimpleNamespace(shuffle=shuffle)):
        return rule.aggregate(list(rows))


def _fltrust(flpoison, rows):
    """FLTrust, where the first row is that of the server."""
    server = types.SimpleNamespace(
        update=rows[0],
        load_global_model=lambda _: None,
        local_training=lambda: None,
        fetch_updates=lambda benign_flag: None,
    )
    rule = _instance(flpoison.rules["FLTrust"], args=_arguments(), server_client=server)
    return rule.aggregate(
        rows[1:], last_global_model=_model(), global_weights_vec=np.zeros(D)
    )


def _foolsgold(flpoison, rows):
    """The directions of two rounds of FoolsGold, of which every coordinate counts."""
    rule = flpoison.rules["FoolsGold"](
        _arguments(epsilon=1e-12, topk_ratio=(_INPUTS + 1) / _CLASSES)
    )
    sent = [
        rule.aggregate(x.copy(), last_global_model=_model())
        for x in (rows, later(rows))
    ]
    return _directions(np.stack(sent))


def _fldetector(flpoison, rows):
    """What its L-BFGS makes of the steps and changes of these aggregates."""
    rule = flpoison.rules["FLDetector"](_arguments())
    return rule.LBFGS(list(-rows[:-1]), list(np.diff(rows, axis=0)), -rows[-1])


def _directions(rows):
    return rows / (rows**2).sum(1, keepdims=True) ** 0.5


def _attack(name, **parameters):
    """What the attackers of this name send, seeing the honest rows."""

    def theirs(flpoison, rows):
        clients = [
            types.SimpleNamespace(
                update=row, category="benign" if i < M - F else "attacker"
            )
            for i, row in enumerate(rows)
        ]
        kind = flpoison.attacks[name]
        attacker = _instance(
            kind,
            args=_arguments(),
            attack_start_epoch=None,
            update=rows[-1],
            **parameters,
        )
        if "omniscient" in kind._attributes:
            return attacker.omniscient(clients)[-1]
        return attacker.non_omniscient()

    return theirs


_SQUARES = (
    "FLPoison sums distances of M - f - 1 neighbours, the paper and ours squared ones "
    "of M - f - 2: FLPoison is given squared distances, and num_neighbours=M - f - 1"
)
_FACTOR = (
    "FLPoison searches for a factor up to 20, to 1e-5, ours solves for it: "
    "gamma_init=1000, stop_threshold=1e-9"
)

_PAIRS: dict[str, Pair] = {
    "Mean": Pair(_rule("Mean"), aggregators.mean),
    "Median": Pair(_rule("Median"), aggregators.coordinate_median),
    "TrimmedMean": Pair(
        _rule("TrimmedMean", beta=F / M),
        lambda x: aggregators.trimmed_mean(x, F),
        "FLPoison cuts off a share at either end, ours a number: beta=f / M",
    ),
    "RFA": Pair(
        _rule("RFA", num_iters=3, epsilon=1e-6),
        lambda x: aggregators.geometric_median(
            x, max_iterations=3, tolerance=0.0, start=jnp.zeros(D)
        ),
        "FLPoison takes 3 steps from zero, ours iterates from the coordinate median "
        "to a tolerance: max_iterations=3, tolerance=0, start=0",
    ),
    "Krum": Pair(
        _squared("Krum"),
        lambda x: aggregators.krum(x, F, num_neighbours=M - F - 1),
        _SQUARES,
        rows=rows_scattered,
    ),
    "MultiKrum": Pair(
        _squared("MultiKrum", avg_percentage=(M - F) / M),
        lambda x: aggregators.multi_krum(x, F, num_neighbours=M - F - 1),
        "as Krum; FLPoison averages a fifth of the rows, ours M - f: "
        "avg_percentage=(M - f) / M",
        rows=rows_scattered,
    ),
    "Bulyan": Pair(
        _bulyan,
        lambda x: aggregators.bulyan(x, F),
        "FLPoison's picks are positions among the rows that are left, which it takes "
        "for positions among all, and it averages what it picked; the paper and ours "
        "go on to the values nearest to the median. FLPoison is told the positions, "
        "beta=M - 4f, squared distances and how many neighbours",
        rows=rows_scattered,
    ),
    "CenteredClipping": Pair(
        _rule("CenteredClipping", norm_threshold=10.0, num_iters=3),
        lambda x: aggregators.centered_clipping(
            x, jnp.zeros(D), clip_norm=10.0, num_iterations=3
        ),
        "other defaults: FLPoison clips at 100, ours at 10",
    ),
    "DnC": Pair(
        _rule("DnC", subsample_frac=1.0, num_iters=2),
        lambda x: aggregators.dnc(jax.random.key(0), x, F, num_iterations=2),
        "FLPoison samples coordinates at random, ours one from each block; compared "
        "where all are taken. FLPoison has 5 iterations, ours one: 2 of both",
        rows=rows_scattered,
    ),
    "SignGuard": Pair(
        _rule("SignGuard", selection_fraction=1.0, clustering="MeanShift"),
        lambda x: aggregators.signguard(jax.random.key(0), x, sample_fraction=1.0),
        "FLPoison clusters by DBSCAN, ours, as the authors, by mean shift: "
        'clustering="MeanShift", which starts from grid cells, on rows of two clearly '
        "different shares of signs. Both count the signs of a block at random; "
        "compared where it is all",
        rows_of_two_signs,
    ),
    "FLAME": Pair(
        _rule("FLAME", gamma=0.0),
        lambda x: aggregators.flame(jax.random.key(0), x),
        "FLPoison compares local models, ours updates; compared at a model of zeros. "
        "Its noise goes by the deviation of each layer; compared without noise",
        rows=rows_scattered,
    ),
    "FLTrust": Pair(
        _fltrust,
        lambda x: aggregators.fltrust(x, jnp.arange(M) == 0),
        "FLPoison's server trains for its row, ours is the mean of the trusted rows: "
        "one is trusted. Where no cosine is positive FLPoison averages, as the paper "
        "does not",
    ),
    "FoolsGold": Pair(
        _foolsgold,
        lambda x: _directions(two_rounds(aggregators.foolsgold(), x)),
        "FLPoison shortens rows to norm 1, and adds 1e-6 to cosines and odds; ours "
        "does not, and divides by the sum of the weights: compared are directions, of "
        "rows of norm 1, with epsilon=1e-12. FLPoison looks at some coordinates of "
        "the last layer, ours at all: topk_ratio for all",
        rows_unlike,
    ),
    "FLDetector": Pair(
        _fldetector,
        _change,
        "the product of Hessian and step alone, where the rows are the aggregates of "
        "rounds and both get the same pairs. FLPoison pairs a step with the change of "
        "the gradient before it, ours with the change over it; its gap statistic takes "
        "one cluster for two, so that it always drops workers",
        rows_of_descent,
    ),
    "Bucketing": Pair(
        _bucketing,
        lambda x: aggregators.coordinate_median(buckets(x)),
        "FLPoison's random.shuffle of an array repeats some rows and loses others: "
        "compared with our shuffle of a list of rows, before a median",
    ),
    "NormClipping": Pair(
        _rule("NormClipping", norm_threshold=2.0),
        lambda x: aggregators.mean(aggregators.clipping(x, 2.0)),
        "FLPoison adds 1e-6 to each norm",
    ),
    "ALIE": Pair(
        _attack("ALIE", z_max=None),
        alie_mirrored,
        "FLPoison adds deviations to the mean, ours subtracts them: alie(None), "
        "mirrored",
    ),
    "IPM": Pair(
        _attack("IPM", scaling_factor=0.1), lambda x: corrupt(attacks.ipm(0.1), x)
    ),
    "MinMax": Pair(
        _attack("MinMax", gamma_init=1000.0, stop_threshold=1e-9),
        lambda x: corrupt(attacks.min_max("unit"), x),
        _FACTOR,
    ),
    "MinSum": Pair(
        _attack("MinSum", gamma_init=1000.0, stop_threshold=1e-9),
        lambda x: corrupt(attacks.min_sum("unit"), x),
        _FACTOR,
    ),
    "Mimic": Pair(
        lambda b, x: _attack("Mimic", choice=copied_by_mimic(x))(b, x),
        lambda x: corrupt(attacks.mimic(), x),
        "FLPoison copies the worker it is told, ours learns whom to copy: compared "
        "with the worker that ours chose",
    ),
    "SignFlipping": Pair(
        _attack("SignFlipping"), lambda x: corrupt(attacks.sign_inversion(), x)
    ),
    "ModelReplacement": Pair(
        _attack("ModelReplacement", scaling_factor=50.0),
        lambda x: corrupt(attacks.model_replacement(attacks.badnets(10), 50.0).then, x),
        "the scaling alone: the backdoor before it trains a model",
    ),
}

_NOT_COMPARED = {
    "FangAttack": "the attack on Krum; ours, fang, is that on the trimmed mean",
    "Gaussian": "random: a normal distribution, by definition",
    "LabelFlipping": "changes labels in the data loader; ours, label_flip_pair, those "
    "of the batch",
    "BadNets": "changes images in the data loader",
    "BadNets_image": "changes images in the data loader",
    "DBA": "changes images in the data loader",
    "EdgeCase": "changes images in the data loader",
    "Neurotoxin": "trains a model, and keeps the coordinates whose signed gradient is "
    "least; the paper and ours those of least size",
    "NoAttack": "nothing to compare",
}


def _load(clones: Path):
    """The registries of rules and attacks, with those that are compared."""
    _imports.needed("torch", "sklearn", "scipy", "hdbscan")
    folder = clones / "FLPoison"
    utilities = _imports.single("global_utils", folder / "global_utils.py")
    for name in (
        *("datapreprocessor", "datapreprocessor.data_utils", "fl.client"),
        *("attackers.pbases.dpbase", "attackers.synthesizers"),
        "attackers.synthesizers.pixel_synthesizer",
    ):
        _imports.stand_in(name)
    _imports.package("fl", folder / "fl")
    _imports.package("fl.models", folder / "fl/models")
    rules, attackers = utilities.Register(), utilities.Register()
    _imports.package("aggregators", folder / "aggregators", aggregator_registry=rules)
    _imports.package("attackers", folder / "attackers", attacker_registry=attackers)
    for name in _RULES:
        importlib.import_module(f"aggregators.{name}")
    # NumPy 2.4 refuses int() of an array of one number, which SignGuard's file uses.
    vars(sys.modules["aggregators.signguard"])["int"] = lambda value: np.asarray(
        value, int
    ).item()
    for name in _ATTACKS:
        importlib.import_module(f"attackers.{name}")
    library = types.SimpleNamespace(rules=rules, attacks=attackers)
    return library, {"FLPoison": _imports.commit_of(folder)}


FLPOISON = Peer(
    "FLPoison",
    _load,
    _PAIRS,
    _NOT_COMPARED,
    (("FLPoison", "aggregators/__init__.py"),),
)

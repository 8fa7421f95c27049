"""Aliases: what other libraries call the attacks, rules, splits, data and models here.

`Experiment` and `Grid` take them in the place of our names, and keep ours. The options
are ours, too. `docs/peers.md` has the versions that were read, and what there is not.
"""

_BY_PEER: dict[str, dict[str, dict[str, str]]] = {
    "ByzFL": {
        "attack": {
            "ALittleIsEnough": "alie",
            "Gaussian": "gaussian",
            "Inf": "non_finite:inf",
            "InnerProductManipulation": "ipm",
            "LabelFlipping": "label_flip",
            "Mimic": "mimic",
        },
        "decoder": {
            "Average": "mean",
            "CAF": "caf",
            "CenteredClipping": "centered_clipping",
            "GeometricMedian": "geometric_median",
            "Krum": "krum",
            "MDA": "mda",
            "Meamed": "mean_around_median",
            "Median": "coordinate_median",
            "MoNNA": "monna",
            "MultiKrum": "multi_krum",
            "SMEA": "smea",
            "TrMean": "trimmed_mean",
        },
        "split": {
            "dirichlet_niid": "dirichlet",
            "extreme_niid": "similarity:0",
            "gamma_similarity_niid": "similarity",
        },
        "dataset": {"fashionmnist": "fashion_mnist"},
        "model": {
            "ResNet18": "resnet18",
            "fc_mnist": "mlp:hidden=100",
            "logreg_mnist": "softmax_regression",
        },
    },
    "ByzPy": {
        "attack": {
            "EmpireAttack": "ipm:epsilon=1",
            "GaussianAttack": "gaussian",
            "InfAttack": "non_finite:inf",
            "LabelFlipAttack": "label_flip",
            "LittleAttack": "alie",
            "MimicAttack": "mimic",
            "SignFlipAttack": "sign_inversion",
        },
        "decoder": {
            "CAF": "caf",
            "CenteredClipping": "centered_clipping",
            "ComparativeGradientElimination": "cge",
            "CoordinateWiseMedian": "coordinate_median",
            "CoordinateWiseTrimmedMean": "trimmed_mean",
            "GeometricMedian": "geometric_median",
            "Krum": "krum",
            "MeanOfMedians": "mean_around_median",
            "MinimumDiameterAveraging": "mda",
            "MoNNA": "monna",
            "MultiKrum": "multi_krum",
            "SMEA": "smea",
        },
    },
    "Blades": {
        "attack": {
            "ALIEAdversary": "alie",
            "AdaptiveAdversary": "fang",
            "IPMAdversary": "ipm:epsilon=1",
            "LabelFlipAdversary": "label_flip",
            "MinMaxAdversary": "min_max",
            "NoiseAdversary": "gaussian:0.1",
            "SignFlipAdversary": "inside:sign_inversion",
        },
        "decoder": {
            "Centeredclipping": "centered_clipping",
            "Clippedclustering": "clipped_clustering",
            "DnC": "dnc",
            "GeoMed": "geometric_median",
            "Mean": "mean",
            "Median": "coordinate_median",
            "Multikrum": "multi_krum",
            "Signguard": "signguard",
            "Trimmedmean": "trimmed_mean",
        },
        "split": {
            "DirichletPartitioner": "dirichlet",
            "IIDPartitioner": "iid",
            "ShardPartitioner": "shards",
        },
        "dataset": {
            "CIFAR10": "cifar10",
            "FashionMNIST": "fashion_mnist",
            "MNIST": "mnist",
        },
    },
    "FLPoison": {
        "attack": {
            "ALIE": "alie",
            "BadNets": "badnets",
            "DBA": "distributed_trigger",
            "EdgeCase": "edge_case",
            "FangAttack": "fang",
            "Gaussian": "gaussian",
            "IPM": "ipm:epsilon=0.1",
            "MinMax": "min_max:deviation=unit",
            "MinSum": "min_sum:deviation=unit",
            "Mimic": "mimic",
            "ModelReplacement": "model_replacement",
            "Neurotoxin": "neurotoxin",
            "NoAttack": "none",
            "SignFlipping": "sign_inversion",
        },
        "decoder": {
            "Bulyan": "bulyan",
            "CenteredClipping": "centered_clipping",
            "DnC": "dnc",
            "FLAME": "flame",
            "FLDetector": "fldetector",
            "FLTrust": "fltrust",
            "FoolsGold": "foolsgold",
            "Krum": "krum",
            "Mean": "mean",
            "Median": "coordinate_median",
            "MultiKrum": "multi_krum",
            "RFA": "geometric_median",
            "SignGuard": "signguard",
            "TrimmedMean": "trimmed_mean",
        },
        "dataset": {
            "CIFAR10": "cifar10",
            "CIFAR100": "cifar100",
            "FashionMNIST": "fashion_mnist",
            "MNIST": "mnist",
        },
        "model": {"lr": "softmax_regression"},
    },
    "BackFed": {
        "attack": {"distributed": "distributed_trigger"},
        "decoder": {"unweighted_fedavg": "mean"},
        "split": {"uniform": "iid"},
        "dataset": {"CIFAR10": "cifar10", "CIFAR100": "cifar100", "MNIST": "mnist"},
        "model": {"ResNet18": "resnet18"},
    },
}

ALIASES: dict[str, dict[str, str]] = {}
"""By field of an `Experiment`, theirs and ours."""
for _fields in _BY_PEER.values():
    for _field, _names in _fields.items():
        ALIASES[_field] = ALIASES.get(_field, {}) | _names


def ours(field: str, text: str) -> str:
    """Our name, where that is an alias; options that are given replace the alias's."""
    name, colon, rest = text.partition(":")
    target = ALIASES.get(field, {}).get(name)
    if target is None or not _stands(field, name, target):
        return text
    return target.partition(":")[0] + colon + rest if rest else target


def listed() -> list[tuple[str, str]]:
    """The aliases, each with a line on what it stands for."""
    return [
        (name, f"The {field} {target}, as {_peers(field, name)} it.")
        for field, names in ALIASES.items()
        for name, target in sorted(names.items())
        if _stands(field, name, target)
    ]


def _stands(field, name, target):
    """Whether nothing has that name itself, and what it stands for is here."""
    from signfd_jax import data
    from signfd_jax.experiments import registry  # which imports `Experiment`

    known = registry.REGISTRIES.get(field, {*data.DATASETS, *registry.DATASETS})
    return name not in known and target.partition(":")[0] in known


def _peers(field, name):
    """Who calls it so."""
    peers = [p for p, fields in _BY_PEER.items() if name in fields.get(field, {})]
    *others, last = peers
    return f"{', '.join(others)} and {last} call" if others else f"{last} calls"

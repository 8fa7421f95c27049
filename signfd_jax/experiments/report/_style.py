"""How things are called and drawn in figures: the same in all of them."""

import zlib
from collections.abc import Iterable
from typing import Any

# What is not just its name with spaces for underscores.
_CALLED = {
    "alie": "ALIE",
    "badnets": "BadNets",
    "caf": "CAF",
    "cge": "CGE",
    "dawid_skene": "Dawid-Skene",
    "detox": "DETOX",
    "dnc": "DnC",
    "draco": "DRACO",
    "ef_sign_sgd": "EF-signSGD",
    "flame": "FLAME",
    "fldetector": "FLDetector",
    "fltrust": "FLTrust",
    "fltrust_sign": "FLTrust by sign",
    "foolsgold": "FoolsGold",
    "iid": "i.i.d.",
    "ipm": "IPM",
    "kos": "KOS",
    "krum": "Krum",
    "m_msr": "M-MSR",
    "distributed_lion": "distributed Lion",
    "distributed_trigger": "DBA",
    "mda": "MDA",
    "monna": "MoNNA",
    "multi_krum": "Multi-Krum",
    "neurotoxin": "Neurotoxin",
    "rflbat": "RFLBAT",
    "s3gd_mv": "S3GD-MV",
    "sign_alie": "sign ALIE",
    "signguard": "SignGuard",
    "signum": "Signum",
    "smea": "SMEA",
    "top_k_multi_krum": "top-k Multi-Krum",
    "zeno": "Zeno",
}

# Colours that colour-blind readers tell apart (Okabe and Ito 2008), with lines that are
# told apart in grey.
_OWN = {
    "correlation defense": ("#0072B2", "-"),
    "federated defense": ("#D55E00", "--"),
    "majority vote": ("#000000", ":"),
}
_DASHES = [(5, 1), (1, 1), (3, 1, 1, 1), (9, 2, 1, 2), (2, 3), (7, 1, 1, 1, 1, 1)]
_DASHES += [(9, 3), (4, 1, 4, 1, 1, 1)]
_OTHERS = [
    (colour, line)
    for line in ("-.", *((0, dashes) for dashes in _DASHES))
    for colour in ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
]

VERDICTS = {
    "honest": "#0072B2",
    "undecided": "#999999",
    "inverted": "#D55E00",
    "uninformative": "#E69F00",
    "duplicate": "#CC79A7",
    "absent": "#56B4E9",
}
"""Colours of the verdicts on workers, from the same palette."""

SETTINGS: dict[Any, Any] = {"pdf.fonttype": 42, "svg.fonttype": "none"}
"""Settings of matplotlib: text in vector files stays text."""


def spoken(choice: str) -> str:
    """A choice as people say it: `krum:scale=0.1` is "Krum, scale 0.1"."""
    name, _, options = choice.partition(":")
    said = [_CALLED.get(name, name.replace("_", " "))]
    if options:
        said += options.replace("_", " ").replace("=", " ").split(",")
    return ", ".join(said)


def attackers(label: str) -> str:
    """A row's label in words: `7 sign_inversion` is "7 lie: sign inversion"."""
    number, _, rest = label.partition(" ")
    if not rest:
        return "nobody lies"
    return f"{number} lie: {', '.join(map(spoken, rest.split(', ')))}"


def styles(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and line of each label, by its name, whoever else is drawn."""
    found, free = {}, [*_OWN.values(), *_OTHERS]
    for label in labels:
        place = zlib.crc32(spoken(label).encode()) % len(_OTHERS)
        wished = [*_OTHERS[place:], *_OTHERS[:place]]
        if spoken(label) in _OWN:
            wished.insert(0, _OWN[spoken(label)])
        # With more labels than lines, some share one.
        own = next((line for line in wished if line in free), wished[0])
        if own in free:
            free.remove(own)
        found[label] = {"color": own[0], "linestyle": own[1]}
    return found

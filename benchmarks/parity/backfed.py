"""BackFed's rules beside ours.

BackFed (https://github.com/thinh-dao/BackFed) has its rules in servers that update a
global model. Here a base that knows a configuration and a model of a single layer, of
zeros, stands in for its base server; the model's change is compared.
"""

import importlib
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
    later,
    rows_of_three_groups,
    rows_scattered,
    rows_unlike,
    two_rounds,
)
from signfd_jax import aggregators

__all__ = ["BACKFED"]

_FILES = (
    *("fedavg_server", "flame_server", "fltrust_server", "foolsgold_server"),
    *("median_server", "multi_krum_server", "rflbat_server", "trimmed_mean_server"),
    "weakdp_server",
)
_BIAS = 40  # parameters of the layer that are its bias


def _base_server(torch):
    """What stands in for `BaseServer`."""

    class Server:
        def __init__(self, server_config, server_type="base", **_):
            self.config, self.server_type = server_config, server_type
            self.device, self.start_round, self.current_round = "cpu", 1, 1
            self.global_model_params = _state(torch.zeros(D, dtype=torch.float64))
            self.client_manager = types.SimpleNamespace(
                malicious_clients_per_round={1: range(F)}
            )

        def get_clients_info(self, _):
            return {"malicious_clients": [], "benign_clients": list(range(M))}

    return Server


def _state(row):
    """A row as the parameters of a layer."""
    return {"fc.weight": row[:-_BIAS].reshape(_BIAS, -1), "fc.bias": row[-_BIAS:]}


def _server(backfed, name, **named):
    """A server of this name, which moves the model by the whole aggregate."""
    config = types.SimpleNamespace(
        num_clients_per_round=M, num_rounds=9, save_logging=None, seed=0
    )
    server = getattr(backfed, name)(config, **named)
    server.eta = 1.0
    return server


def _change(backfed, server, rows):
    """What a round of these updates does to the model."""
    before = {
        name: values.clone() for name, values in server.global_model_params.items()
    }
    updates = []
    for worker, row in enumerate(backfed.torch.from_numpy(rows.copy())):
        sent = {name: before[name] + part for name, part in _state(row).items()}
        updates.append((worker, 1, sent))
    server.aggregate_client_updates(updates)
    moved = [
        (values - before[name]).reshape(-1)
        for name, values in server.global_model_params.items()
    ]
    return np.concatenate(moved)


def _rule(name, **named):
    """What a server of this name does to the model in one round."""
    return lambda b, x: _change(b, _server(b, name, **named), x)


def _foolsgold(backfed, rows):
    """What FoolsGold does in each of two rounds."""
    server = _server(backfed, "FoolsGoldServer")
    return np.stack([_change(backfed, server, x) for x in (rows, later(rows))])


def _krum(backfed, rows):
    """Krum of a server that is told the number of Byzantine workers."""
    server = _server(backfed, "KrumServer")
    server.num_malicious_clients = F
    return _change(backfed, server, rows)


def _fltrust(backfed, rows):
    """FLTrust, where the first row is that of the server."""
    server = _server(backfed, "FLTrustServer")
    server.set_central_update(_state(backfed.torch.from_numpy(rows[0])))
    return _change(backfed, server, rows[1:])


def _rflbat(backfed, rows):
    """RFLBAT, from a fixed seed."""
    np.random.seed(0)  # noqa: NPY002, the generator that its k-means uses
    backfed.torch.manual_seed(0)
    return _rule("RFLBATServer")(backfed, rows)


_KEPT = {"num_malicious_clients": F, "num_clients_to_keep": M - F, "oracle": False}

_PAIRS: dict[str, Pair] = {
    "unweighted_fedavg": Pair(
        _rule("UnweightedFedAvgServer"),
        aggregators.mean,
        "BackFed moves the model by a tenth of the mean: eta=1, here and below",
    ),
    "coordinate_median": Pair(
        _rule("CoordinateMedianServer"),
        aggregators.coordinate_median,
        "of an even number of workers BackFed takes the lower of the two middle "
        "values, ours their mean; here the number is odd",
    ),
    "geometric_median": Pair(
        _rule("GeometricMedianServer", eps=1e-6, maxiter=4, ftol=-1.0),
        lambda x: aggregators.geometric_median(
            x, max_iterations=4, tolerance=0.0, start=jnp.mean(x, axis=0)
        ),
        "BackFed takes at most 4 steps from the mean, ours iterates from the "
        "coordinate median to a tolerance: ftol=-1; max_iterations=4, tolerance=0, "
        "start=mean",
    ),
    "trimmed_mean": Pair(
        _rule("TrimmedMeanServer", trim_ratio=F / M),
        lambda x: aggregators.trimmed_mean(x, F),
        "BackFed cuts off a share at either end, ours a number: trim_ratio=f / M",
    ),
    "krum": Pair(
        _krum,
        lambda x: aggregators.krum(x, F),
        "BackFed's Krum assumes that nobody lies: it is told f",
        rows=rows_scattered,
    ),
    "multi_krum": Pair(
        _rule("MultiKrumServer", **_KEPT),
        lambda x: aggregators.multi_krum(x, F),
        rows=rows_scattered,
    ),
    "ad_multi_krum": Pair(
        _rule("ADMultiKrumServer"),
        lambda x: aggregators.multi_krum(x, F),
        rows=rows_scattered,
    ),
    "foolsgold": Pair(
        _foolsgold,
        lambda x: two_rounds(aggregators.foolsgold(), x),
        "BackFed shortens the rows of its histories to norm 1, ours does not: "
        "compared on rows of norm 1. It adds 1e-5 to cosines and odds",
        rows_unlike,
    ),
    "fltrust": Pair(
        _fltrust,
        lambda x: aggregators.fltrust(x, jnp.arange(M) == 0),
        "BackFed takes models for updates: compared at a model of zeros. Its server's "
        "row is set here, as nothing in BackFed does, and without one it averages; "
        "ours is the mean of the trusted rows: one is trusted",
    ),
    "flame": Pair(
        _rule("FlameServer", lamda=0.0),
        lambda x: aggregators.flame(jax.random.key(0), x),
        "BackFed compares the last layer of local models, ours updates; compared at a "
        "model of zeros, of one layer. Its noise goes by the deviation of each layer; "
        "compared without noise",
        rows=rows_scattered,
    ),
    "norm_clipping": Pair(
        _rule("NormClippingServer", clipping_norm=2.0),
        lambda x: aggregators.mean(aggregators.clipping(x, 2.0)),
    ),
    "rflbat": Pair(
        _rflbat,
        lambda x: aggregators.rflbat(x, max_clusters=9),
        "BackFed's k-means and gap statistic draw at random, ours are fixed, with 20 "
        "uniform sets for its 5: max_clusters=9, on rows of three clearly "
        "different groups",
        rows_of_three_groups,
    ),
}

_DATA = "changes images in the data loader; ours those of the batch"

_NOT_COMPARED = {
    "fldetector": "a part of its server, which has clients and models; its L-BFGS is "
    "that of FLPoison's FLDetector, which is compared",
    "pattern": _DATA,
    "pixel": _DATA,
    "badnets": _DATA,
    "distributed": _DATA,
    "edge_case": _DATA,
    "base": "trains a model on a backdoor; the scaling of its update is compared with "
    "FLPoison's ModelReplacement",
    "neurotoxin": "trains a model on a GPU; its mask is of the sizes of a gradient of "
    "the liar's own data, ours of the honest gradients of the round before",
}


def _load(clones: Path):
    """All servers that are compared, and torch."""
    _imports.needed("torch", "sklearn", "scipy", "hdbscan", "matplotlib")
    torch = importlib.import_module("torch")
    folder = clones / "BackFed"
    _imports.package("backfed", folder / "backfed")
    _imports.package("backfed.servers", folder / "backfed/servers")
    silent = {"log": lambda *_: None}
    _imports.stand_in("wandb")
    _imports.stand_in("backfed.utils", **silent)
    _imports.stand_in("backfed.utils.logging_utils", **silent)
    _imports.stand_in("backfed.servers.base_server", BaseServer=_base_server(torch))
    names: dict[str, object] = {}
    for file in _FILES:
        names |= vars(importlib.import_module(f"backfed.servers.{file}"))
    names["torch"] = torch
    return types.SimpleNamespace(**names), {"BackFed": _imports.commit_of(folder)}


BACKFED = Peer(
    "BackFed",
    _load,
    _PAIRS,
    _NOT_COMPARED,
    (("BackFed", "backfed/servers/__init__.py"),),
)

"""The ledger: how many bits a worker sends and receives in one round.

Shapes: `N` coordinates, `M` workers.
"""

import math
from typing import NamedTuple

from signfd_jax.experiments import registry
from signfd_jax.experiments.config import Experiment

__all__ = ["Ledger", "bits_per_round", "ledger"]

_FLOAT = 32


class Ledger(NamedTuple):
    """Bits of one worker in one round, by what they are for.

    Attributes:
        up_values: signs or floats that it sends.
        up_indices: where they belong, if it does not send all coordinates.
        down_values: signs or floats that it receives.
        down_indices: where they belong, likewise.
    """

    up_values: int
    up_indices: int
    down_values: int
    down_indices: int

    @property
    def up(self) -> int:
        """All bits that it sends."""
        return self.up_values + self.up_indices

    @property
    def down(self) -> int:
        """All bits that it receives."""
        return self.down_values + self.down_indices


def bits_per_round(config: Experiment, num_coordinates: int) -> tuple[int, int]:
    """What one worker sends and receives in one round.

    Args:
        config: the experiment.
        num_coordinates: number N of the model's parameters.

    Returns:
        Bits up and bits down: the sums of `ledger`.

    Examples:
        >>> bits_per_round(Experiment(wire="ternary"), 100)
        (200, 200)
        >>> bits_per_round(Experiment(wire="one_bit"), 100)
        (101, 100)
    """
    entry = ledger(config, num_coordinates)
    return entry.up, entry.down


def ledger(config: Experiment, num_coordinates: int) -> Ledger:
    r"""What one worker sends and receives in one round, item by item.

    - Signs. Ternary votes and decoded signs take two bits a coordinate (two bit
      planes). On the one-bit wire they take one, and each worker adds its bit of the
      presence mask.
    - Floats, for the aggregation rules: 32 bits a coordinate, up and down.
    - Sparse, for k of N coordinates: k values of 32 bits (one bit where only the signs
      are sent) and k indices of $\lceil\log_2 N\rceil$ bits. Down goes the mean of the
      M - f selected rows, with at most (M - f) k coordinates that are not 0; or all N,
      without indices, where that is less. The sparse sign receives ternary signs.
    - EF-signSGD sends N signs and one float, and receives N floats.

    Args:
        config: the experiment.
        num_coordinates: number N of the model's parameters.

    Returns:
        A `Ledger`.

    Examples:
        >>> ledger(Experiment(decoder="multi_krum"), 100)
        Ledger(up_values=3200, up_indices=0, down_values=3200, down_indices=0)
        >>> ledger(Experiment(decoder="top_k_multi_krum:fraction=0.01"), 1000)
        Ledger(up_values=320, up_indices=100, down_values=4800, down_indices=1500)
    """
    n = num_coordinates
    choice = registry.choose(registry.SERVERS, "decoder", config.decoder)
    options = dict(choice.options)
    index = math.ceil(math.log2(max(n, 2)))
    kept = max(1, round(options.get("fraction", 0.1) * n))
    match choice.name:
        case "top_k_multi_krum":
            assumed = options.get("num_byzantine")
            assumed = config.num_byzantine if assumed is None else assumed
            selected = options.get("num_selected") or config.num_workers - assumed
            mixed = min(n, selected * kept)
            down = _FLOAT * mixed, index * mixed
            if sum(down) >= _FLOAT * n:
                down = _FLOAT * n, 0
            return Ledger(_FLOAT * kept, index * kept, *down)
        case "s3gd_mv":
            return Ledger(kept, index * kept, 2 * n, 0)
        case "ef_sign_sgd":
            return Ledger(n + _FLOAT, 0, _FLOAT * n, 0)
        case name if name in registry.RULES:
            return Ledger(_FLOAT * n, 0, _FLOAT * n, 0)
    if config.wire == "one_bit":
        return Ledger(n + 1, 0, n, 0)
    return Ledger(2 * n, 0, 2 * n, 0)

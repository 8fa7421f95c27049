"""The ledger: how many bits a worker sends and receives in one round.

Shapes: `N` coordinates, `M` workers.
"""

import math
from collections.abc import Sequence

from signfd_jax.experiments import _traffic as traffic
from signfd_jax.experiments._traffic import Ledger
from signfd_jax.experiments.config import Experiment
from signfd_jax.experiments.registry import resolve

__all__ = ["Ledger", "bits_per_round", "ledger"]


def bits_per_round(
    config: Experiment,
    num_coordinates: int,
    shapes: Sequence[tuple[int, ...]] = (),
) -> tuple[int, int]:
    """What one worker sends and receives in one round.

    Args:
        config: the experiment.
        num_coordinates: number N of the model's parameters.
        shapes: those of the model's arrays; a worker that sends coefficients asks for
            them.

    Returns:
        Bits up and bits down: the sums of `ledger`.

    Examples:
        >>> bits_per_round(Experiment(wire="ternary"), 100)
        (200, 200)
        >>> bits_per_round(Experiment(wire="one_bit"), 100)
        (101, 100)
    """
    entry = ledger(config, num_coordinates, shapes)
    return entry.up, entry.down


def ledger(
    config: Experiment,
    num_coordinates: int,
    shapes: Sequence[tuple[int, ...]] = (),
) -> Ledger:
    r"""What one worker sends and receives in one round, item by item.

    The server says it itself: its factory's attribute `bits`, a function like those of
    `experiments.traffic`. One that says nothing decodes votes; an aggregation rule
    that says nothing, of another package too, takes and gives floats.

    Args:
        config: the experiment.
        num_coordinates: number N of the model's parameters.
        shapes: those of the model's arrays; a worker that sends coefficients asks for
            them.

    Returns:
        A `Ledger`.

    Raises:
        ValueError: the shapes are not those of N coordinates, or what the server says
            is neither a `Ledger` nor bits up and down.

    Examples:
        >>> ledger(Experiment(decoder="multi_krum"), 100)
        Ledger(up_values=3200, up_indices=0, down_values=3200, down_indices=0)
        >>> ledger(Experiment(decoder="top_k_multi_krum:fraction=0.01"), 1000)
        Ledger(up_values=320, up_indices=100, down_values=4800, down_indices=1500)
        >>> ledger(Experiment(worker="dct_top_k:k=2"), 128, [(2, 64)])
        Ledger(up_values=2, up_indices=14, down_values=256, down_indices=0)
    """
    worker = resolve(config).worker
    of_worker = getattr(worker.factory, "bits", None)
    if of_worker is not None:
        if sum(map(math.prod, shapes)) != num_coordinates:
            raise ValueError(
                f"the worker {worker.name} sends coefficients of arrays: give their "
                f"shapes, of {num_coordinates} coordinates in all, but they are "
                f"{list(shapes)}"
            )
        return of_worker(shapes, wire=config.wire, **dict(worker.options))
    choice = resolve(config).decoder
    bits = getattr(choice.factory, "bits", traffic.votes)
    facts = {
        "wire": config.wire,
        "num_workers": config.num_workers,
        "num_byzantine": config.num_byzantine,
    }
    given = {name: value for name, value in choice.options if value is not None}
    found = bits(num_coordinates, **(facts | given))
    if isinstance(found, Ledger):
        return found
    try:
        up, down = map(int, found)
    except (TypeError, ValueError):
        raise ValueError(
            f"the bits of {choice.name} must be a Ledger, or two whole numbers, up and "
            f"down, but are {found!r}; mend the package that adds it"
        ) from None
    return Ledger(up, 0, down, 0)

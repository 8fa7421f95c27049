"""What the servers send and receive: each says so itself, in the registry.

A function of this module is the `bits` of a server's factory, or of a worker's that
does not vote on every coordinate. It takes the number of coordinates, or the shapes of
the arrays, the `Experiment`'s wire and numbers of workers, and the options that were
given; it returns a `Ledger`.

Shapes: `N` coordinates, `M` workers.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from signfd_jax.transforms.cosine import block_sides

_FLOAT = 32
_F = TypeVar("_F", bound=Callable[..., Any])


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


def sends(bits: Callable[..., Any]) -> Callable[[_F], _F]:
    """Say what a server's factory sends."""

    def mark(factory):
        factory.bits = bits
        return factory

    return mark


def votes(num_coordinates: int, *, wire: str, **options: object) -> Ledger:
    """Votes up and decoded signs down, as all decoders send them.

    Two bits a coordinate (two bit planes) on the ternary wire. One on the one-bit wire,
    and each worker adds its bit of the presence mask.
    """
    n = num_coordinates
    return Ledger(n + 1, 0, n, 0) if wire == "one_bit" else Ledger(2 * n, 0, 2 * n, 0)


def ternary_votes(num_coordinates: int, **options: object) -> Ledger:
    """Votes that may abstain, up and down, on either wire."""
    return votes(num_coordinates, wire="ternary")


def dense(num_coordinates: int, **options: object) -> Ledger:
    """A float of 32 bits for each coordinate, up and down."""
    return Ledger(_FLOAT * num_coordinates, 0, _FLOAT * num_coordinates, 0)


def scaled_signs(num_coordinates: int, **options: object) -> Ledger:
    """EF-signSGD: N signs and one float up, N floats down."""
    return Ledger(num_coordinates + _FLOAT, 0, _FLOAT * num_coordinates, 0)


def sparse_signs(
    num_coordinates: int, *, fraction: float = 0.1, **options: object
) -> Ledger:
    r"""S3GD-MV: k signs with their indices up, ternary signs of all coordinates down.

    An index takes $\lceil\log_2 N\rceil$ bits.
    """
    kept, index = _sparse(num_coordinates, fraction)
    return Ledger(kept, index * kept, 2 * num_coordinates, 0)


def top_k(
    num_coordinates: int,
    *,
    num_workers: int,
    num_byzantine: int,
    fraction: float = 0.1,
    num_selected: int | None = None,
    **options: object,
) -> Ledger:
    """The k largest coordinates up; down the mean of the selected rows.

    These have at most (M - f) k coordinates that are not 0; or all N go down, without
    indices, where that is less.
    """
    kept, index = _sparse(num_coordinates, fraction)
    selected = num_selected or num_workers - num_byzantine
    mixed = min(num_coordinates, selected * kept)
    down = _FLOAT * mixed, index * mixed
    if sum(down) >= _FLOAT * num_coordinates:
        down = _FLOAT * num_coordinates, 0
    return Ledger(_FLOAT * kept, index * kept, *down)


def coefficients(
    shapes: Iterable[tuple[int, ...]],
    *,
    wire: str,
    k: int = 8,
    chunk: int = 64,
    **options: object,
) -> Ledger:
    r"""DCT top k: of each block k signs with their places up, all decoded signs down.

    A place in a block of b coefficients takes $\lceil\log_2 b\rceil$ bits.
    """
    signs = places = coordinates = 0
    for shape in shapes:
        block = math.prod(block_sides(shape, chunk))
        size = math.prod(shape)
        kept = min(k, block) * (size // block) if size else 0
        signs, coordinates = signs + kept, coordinates + size
        places += kept * math.ceil(math.log2(max(block, 1)))
    return Ledger(signs, places, votes(coordinates, wire=wire).down_values, 0)


def _sparse(num_coordinates, fraction):
    """How many coordinates are sent, and the bits of the index of one."""
    index = math.ceil(math.log2(max(num_coordinates, 2)))
    return max(1, round(fraction * num_coordinates)), index

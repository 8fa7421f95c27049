"""Packed votes: one bit or two for each, and what is read off them as they are.

Shapes: `M` workers, `*leaf` the coordinates of one parameter leaf, `N` of them, in
`ceil(N / 8)` bytes. The tallies of `tally` take packed votes in the place of votes and
give the same, bit for bit; no more than one worker's row is ever unpacked.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int8, UInt8

__all__ = [
    "PackedVotes",
    "is_packed",
    "pack",
    "pack_one_bit",
    "pack_ternary",
    "unpack",
    "unpack_votes",
]

_FULL = 0xFF
# Of the eight bits of a byte, from the highest: `[8, 1]`, to broadcast over the bytes.
_SHIFTS = np.arange(7, -1, -1, dtype=np.uint8)[:, None]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["signs", "voted"],
    meta_fields=["leaf_shape"],
)
@dataclasses.dataclass(frozen=True)
class PackedVotes:
    """The votes of all workers on one leaf, eight to a byte.

    It stands where an int8 array `[M, ...]` could, as one leaf of a tree of votes. The
    bits are in the order of `pack`.

    Attributes:
        signs: uint8 `[M, ceil(N / 8)]`, a bit is 1 where the vote is +1.
        voted: uint8 `[M, ceil(N / 8)]`, a bit is 1 where the vote is not 0; or
            `[M, 1]`, all bits alike, where workers abstain as a whole or not at all.
        leaf_shape: the shape of the leaf, whose N coordinates are those packed.
    """

    # Not jax.Array: JAX also puts shapes, dtypes and specs in the place of arrays.
    signs: Any
    voted: Any
    leaf_shape: tuple[int, ...]

    @property
    def shape(self):
        """That of the votes: `(M, *leaf_shape)`."""
        return (self.signs.shape[0], *self.leaf_shape)


def is_packed(node) -> bool:
    """Whether a node of a tree is one leaf of packed votes: for `is_leaf`.

    Args:
        node: a node of any tree.

    Returns:
        True or False.

    Examples:
        >>> packed = pack_ternary({"w": jnp.ones((3, 2), jnp.int8)})
        >>> jax.tree.map(is_packed, packed, is_leaf=is_packed)
        {'w': True}
    """
    return isinstance(node, PackedVotes)


def pack(votes: Int8[Array, "*batch N"]) -> UInt8[Array, "*batch bytes"]:
    """Pack one-bit votes, eight to a byte: one bit plane.

    The k-th bit of byte b, from the highest, is of coordinate `k * ceil(N / 8) + b`:
    neighbours lie in neighbouring bytes, so that 32 and more are packed and unpacked by
    one instruction.

    Args:
        votes: int8 `[..., N]` in {-1, +1}; a 0 packs as -1 (see `to_wire`).

    Returns:
        uint8 `[..., ceil(N / 8)]`; the bits of no coordinate are 0.

    Examples:
        >>> print(pack(jnp.array([1, -1, 1, 1, -1, -1, -1, 1, 1], jnp.int8)))
        [200  80]
    """
    return _pack(votes > 0)


def unpack(packed: UInt8[Array, "*batch bytes"], size: int) -> Int8[Array, "*batch N"]:
    """Unpack what `pack` packed.

    Args:
        packed: uint8 `[..., ceil(size / 8)]`.
        size: the number N of coordinates.

    Returns:
        int8 `[..., size]` in {-1, +1}.

    Raises:
        ValueError: `packed` does not have `ceil(size / 8)` bytes in its last axis.

    Examples:
        >>> print(unpack(jnp.array([200, 80], jnp.uint8), 9))
        [ 1 -1  1  1 -1 -1 -1  1  1]
    """
    width = packed.shape[-1]
    if width != -(-size // 8):
        raise ValueError(
            f"{size} coordinates need {-(-size // 8)} bytes, but packed has "
            f"{width} in its last axis"
        )
    bits = (packed[..., None, :] >> _along(packed.ndim + 1)) & jnp.uint8(1)
    return jnp.int8(2) * _flat(bits.astype(jnp.int8), size) - jnp.int8(1)


def _flat(planes, size):
    """The coordinates `[..., size]` of planes `[..., 8, bytes]`."""
    width = planes.shape[-1]
    # Not one slice of all: XLA's CPU backend would divide to find every vote.
    parts = [planes[..., k, : max(size - k * width, 0)] for k in range(8)]
    return jnp.concatenate(parts, axis=-1)


def pack_ternary(votes):
    """Pack votes into two bit planes: their signs, and where there are votes at all.

    Args:
        votes: tree of int8 `[M, ...]` in {-1, 0, +1}.

    Returns:
        Tree of `PackedVotes`, two bits a vote.

    Examples:
        >>> packed = pack_ternary(jnp.array([[1, -1, 0, 1]], jnp.int8))
        >>> print(packed.signs, packed.voted)
        [[144]] [[208]]
    """

    def packed(leaf):
        rows = leaf.reshape(leaf.shape[0], -1)
        return PackedVotes(_pack(rows > 0), _pack(rows != 0), tuple(leaf.shape[1:]))

    return jax.tree.map(packed, votes)


def pack_one_bit(votes):
    """Pack the votes of a one-bit wire, on which only whole workers abstain.

    Args:
        votes: tree of int8 `[M, ...]` in {-1, +1}, as `signs.to_wire` fills them; an
            absent worker's row is 0.

    Returns:
        Tree of `PackedVotes`, one bit a vote and one byte a worker.

    Examples:
        >>> votes = jnp.array([[1, -1, 1, 1], [0, 0, 0, 0]], jnp.int8)
        >>> packed = pack_one_bit(votes)
        >>> print(packed.signs[:, 0], packed.voted[:, 0])
        [176   0] [255   0]
    """

    def packed(leaf):
        rows = leaf.reshape(leaf.shape[0], -1)
        voted = jnp.where(rows[:, :1] != 0, jnp.uint8(_FULL), jnp.uint8(0))
        return PackedVotes(_pack(rows > 0), voted, tuple(leaf.shape[1:]))

    return jax.tree.map(packed, votes)


def _along(num_axes):
    """Shifts for an array whose last but one axis has the bits of a byte."""
    return _SHIFTS.reshape((1,) * (num_axes - 2) + _SHIFTS.shape)


def _pack(bits: Bool[Array, "*batch N"]) -> UInt8[Array, "*batch bytes"]:
    *batch, size = bits.shape
    bits = jnp.pad(bits, [(0, 0)] * len(batch) + [(0, -size % 8)]).astype(jnp.uint8)
    bits = bits.reshape(*batch, 8, -(-size // 8)) << _along(bits.ndim + 1)
    return jnp.sum(bits, axis=-2, dtype=jnp.uint8)


def unpack_votes(votes):
    """Unpack votes, all at once.

    Args:
        votes: tree of `PackedVotes`, or of int8 `[M, ...]`, which stay as they are.

    Returns:
        Tree of int8 `[M, ...]` in {-1, 0, +1}.

    Examples:
        >>> print(unpack_votes(pack_ternary(jnp.array([[1, -1, 0, 1]], jnp.int8))))
        [[ 1 -1  0  1]]
    """

    def unpacked(leaf):
        if not is_packed(leaf):
            return leaf
        rows = jax.vmap(_row_votes)(leaf)
        return _flat(rows, math.prod(leaf.leaf_shape)).reshape(leaf.shape)

    return jax.tree.map(unpacked, votes, is_leaf=is_packed)


def _row_votes(row):
    """One worker's votes on a leaf, as `visits.over_workers` visits them."""
    if not is_packed(row):
        return row
    bits = lambda plane: ((plane[None] >> _SHIFTS) & jnp.uint8(1)).astype(jnp.int8)  # noqa: E731
    return jnp.int8(2) * bits(row.signs) - bits(row.voted)

"""What is read off packed votes: a row, a few coordinates, agreements.

Shapes: `M` workers, `*leaf` the coordinates of one parameter leaf, `N` of them.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int32, Shaped

from signfd_jax.signs.packed import PackedVotes, is_packed, unpack_votes


def join_chunks(chunks):
    """Put the packed votes of chunks of workers one behind the other."""
    return jax.tree.map(lambda rows: rows.reshape(-1, rows.shape[-1]), chunks)


def take_coordinates(leaf, chosen: Int32[Array, " S"] | None) -> Shaped[Array, "M S"]:
    """What a leaf has on a few coordinates; packed votes are unpacked."""
    if not is_packed(leaf):
        rows = leaf.reshape(leaf.shape[0], -1)
        return rows if chosen is None else _once(rows[:, chosen])
    if chosen is None:
        return _once(unpack_votes(leaf).reshape(leaf.shape[0], -1))
    num_bytes = leaf.signs.shape[1]
    shift = jnp.uint8(7) - (chosen // num_bytes).astype(jnp.uint8)

    def bits(plane):
        # A plane of one byte a worker serves all coordinates.
        taken = plane if plane.shape[1] == 1 else plane[:, chosen % num_bytes]
        return ((taken >> shift[None]) & jnp.uint8(1)).astype(jnp.int8)

    return _once(jnp.int8(2) * bits(leaf.signs) - bits(leaf.voted))


def _once(rows):
    # Else XLA's CPU backend makes them again in a product's loops: thrice the time.
    return lax.optimization_barrier(rows)


def in_leaf_shape(values, votes):
    """Give what was made from `row_votes` the shape of the leaf."""
    if not is_packed(votes):
        return values
    size = math.prod(votes.leaf_shape)
    return values.reshape(-1)[:size].reshape(votes.leaf_shape)


def row_agreements(
    row: PackedVotes, decoded: PackedVotes
) -> tuple[Int32[Array, ""], Int32[Array, ""]]:
    """Count one worker's agreements with decoded signs, by xor and popcount."""
    both = row.voted & decoded.voted
    return _popcount(both & ~(row.signs ^ decoded.signs)), _popcount(both)


def _popcount(bits):
    return jnp.sum(jax.lax.population_count(bits).astype(jnp.int32), dtype=jnp.int32)


def votes_structure(votes):
    """The structure of the tree that votes are, packed or not."""
    return jax.tree.structure(votes, is_leaf=is_packed)

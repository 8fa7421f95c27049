"""Votes: what a gradient's sign is, as int8 or packed into bits, and how votes add up.

`cast` makes votes of gradients, `packed` keeps them as bits. The private modules add
them up, exactly and in any order. Start with `votes`.
"""

from signfd_jax.signs import packed
from signfd_jax.signs.cast import (
    WIRES,
    cast_votes,
    check_wire,
    fill_ties,
    pack,
    present_workers,
    sign_error,
    to_wire,
    unpack,
    votes,
)

__all__ = [
    "WIRES",
    "cast_votes",
    "check_wire",
    "fill_ties",
    "pack",
    "packed",
    "present_workers",
    "sign_error",
    "to_wire",
    "unpack",
    "votes",
]

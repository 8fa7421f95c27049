"""Votes: what a gradient's sign is, as int8 or packed into bits, and how votes add up.

`votes` makes votes of gradients, in one of the alphabets `WIRES`. `packed` keeps them
as bits, and `vote_tree` adds them up, exactly and in any order.
"""

from signfd_jax.signs import packed
from signfd_jax.signs._tally import Vote, count_agreements, vote_tree, weighted_vote
from signfd_jax.signs.cast import (
    WIRES,
    cast_votes,
    check_wire,
    fill_ties,
    present_workers,
    sign_error,
    to_wire,
    votes,
)
from signfd_jax.signs.packed import pack, unpack

__all__ = [
    "WIRES",
    "Vote",
    "cast_votes",
    "check_wire",
    "count_agreements",
    "fill_ties",
    "pack",
    "packed",
    "present_workers",
    "sign_error",
    "to_wire",
    "unpack",
    "vote_tree",
    "votes",
    "weighted_vote",
]

"""Trees as Flower's records, and what a stranger's reply holds.

What comes over the network is checked before it is used: a worker may send anything.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flwr.app import (  # pyright: ignore[reportMissingImports]
    Array,
    ArrayRecord,
    Message,
)

from signfd_jax.signs import pack, packed

STYPE = "signfd.packed"
"""How the bytes of votes are serialised: as they are, without a header."""


class Refused(Exception):
    """Why a reply is not counted."""


class Ballot(NamedTuple):
    """One worker's votes, uint8 `[bytes]` each, and its loss; no votes: it abstains."""

    row: int
    signs: Any
    voted: Any
    loss: float


def to_arrays(params: Any) -> ArrayRecord:
    """Put a tree into Flower's record of arrays, by the names of its leaves.

    Args:
        params: tree of `[...]`.

    Returns:
        An `ArrayRecord`.

    Examples:
        >>> list(to_arrays({"w": jnp.zeros(3), "b": jnp.zeros(())}))
        ["['b']", "['w']"]
    """
    return ArrayRecord(
        {name: Array(np.asarray(leaf)) for name, leaf in _named(params).items()}
    )


def from_arrays(arrays: ArrayRecord, like: Any) -> Any:
    """Take a tree out of Flower's record of arrays.

    Args:
        arrays: what `to_arrays` made of a tree of `[...]`.
        like: tree of `[...]` of the same structure, shapes and dtypes.

    Returns:
        The tree, bit for bit.

    Raises:
        ValueError: the record has other leaves than `like`, or of another shape.

    Examples:
        >>> print(from_arrays(to_arrays({"w": jnp.ones(3)}), {"w": jnp.zeros(3)}))
        {'w': Array([1., 1., 1.], dtype=float32)}
    """
    wanted = _named(like)
    if set(wanted) != set(arrays):
        raise ValueError(
            f"arrays has the leaves {', '.join(arrays) or 'none'}, but like has "
            f"{', '.join(wanted) or 'none'}; give a tree as on the other side"
        )
    leaves = []
    for name, leaf in wanted.items():
        value = arrays[name].numpy()
        if value.shape != leaf.shape or value.dtype.itemsize != leaf.dtype.itemsize:
            raise ValueError(
                f"arrays has the leaf {name} with {value.dtype} {list(value.shape)}, "
                f"but like has {leaf.dtype} {list(leaf.shape)}; they must be alike"
            )
        leaves.append(jnp.asarray(value.view(leaf.dtype)))  # NumPy knows no bfloat16
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _named(tree):
    """The leaves by name."""
    return {
        jax.tree_util.keystr(path) or "(root)": jnp.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


class Codec:
    """What a worker's bytes mean, for parameters of given shapes."""

    def __init__(self, params: Any, num_workers: int, wire: str) -> None:
        """Lay the leaves one behind the other."""
        leaves, self.structure = jax.tree.flatten(params)
        self.num_workers, self.wire = num_workers, wire
        self.shapes = [jnp.shape(leaf) for leaf in leaves]
        ones = [pack(jnp.ones(jnp.size(leaf), jnp.int8)) for leaf in leaves]
        # Where there are coordinates: the last bytes of a leaf may have more bits.
        self.all_vote = np.concatenate([np.zeros(0, np.uint8), *map(np.asarray, ones)])
        self.ends = np.cumsum([0, *map(len, ones)])

    def read(self, message: Message, round: int) -> Ballot:
        """Read a reply; `Refused` says what is wrong with it."""
        if message.has_error():
            raise Refused(f"it is an error: {message.error.reason}")
        content = message.content
        said = content.metric_records.get("vote", {})
        row, loss = said.get("worker"), said.get("loss")
        if type(row) is not int or not 0 <= row < self.num_workers:
            raise Refused(
                f"its worker is {row!r}, not one of 0 to {self.num_workers - 1}"
            )
        if said.get("round") != round:
            raise Refused(f"it is of round {said.get('round')!r}")
        if type(loss) is not float:
            raise Refused(f"its loss is {loss!r}, not a number")
        arrays = content.array_records.get("votes")
        if arrays is None:
            raise Refused("it has no votes")
        if self.wire == "one_bit" and not arrays:
            return Ballot(row, None, None, loss)
        planes = ("signs",) if self.wire == "one_bit" else ("signs", "voted")
        if set(arrays) != set(planes):
            raise Refused(f"its votes are {sorted(arrays)}, not {' and '.join(planes)}")
        read = [self._plane(name, arrays[name]) for name in planes]
        voted = self.all_vote & (read[1] if len(read) > 1 else np.uint8(0xFF))
        # A bit of a sign where there is no vote would count as two votes.
        return Ballot(row, read[0] & voted, voted, loss)

    def _plane(self, name, array):
        wanted = len(self.all_vote)
        if array.stype != STYPE or len(array.data) != wanted:
            raise Refused(
                f"its {name} are {len(array.data)} bytes of {array.stype}, not "
                f"{wanted} of {STYPE}"
            )
        return np.frombuffer(array.data, np.uint8)

    def votes(self, ballots: list[Ballot]) -> Any:
        """The packed votes of all workers; those without a ballot are absent."""
        planes = np.zeros((2, self.num_workers, len(self.all_vote)), np.uint8)
        for ballot in ballots:
            planes[:, ballot.row] = ballot.signs, ballot.voted
        signs, voted = (
            np.split(plane, self.ends[1:-1], axis=1) if self.shapes else []
            for plane in planes
        )
        return self.structure.unflatten(
            packed.PackedVotes(jnp.asarray(s), jnp.asarray(v), shape)
            for s, v, shape in zip(signs, voted, self.shapes, strict=True)
        )

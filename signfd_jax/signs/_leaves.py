"""Leaves: small ones that follow each other are worked on as one.

Shapes: `M` workers, `*leaf` the coordinates of one parameter leaf. What is traced and
compiled for a leaf takes as long for 64 coordinates as for 64 million. So runs of small
leaves are joined, in their order: the coordinates keep their numbers along the ravelled
leaves. Large leaves are never copied.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from signfd_jax.signs import packed

_SMALL = 2**15  # coordinates of a leaf up to which it is joined with its neighbours


class Groups(NamedTuple):
    """Which leaves of a tree are joined; made by `group_leaves`.

    Attributes:
        treedef: the tree's structure, in which packed votes are leaves.
        shapes: of each leaf, the shape `[...]` of its coordinates.
        runs: of each group, the positions of its first leaf and of the next group's.
    """

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    runs: tuple[tuple[int, int], ...]

    def join(self, tree) -> list[Any]:
        """Group the leaves of a tree of this structure."""
        leaves = self.treedef.flatten_up_to(tree)
        return [
            leaves[start]
            if stop == start + 1
            else _joined(leaves[start:stop], self.shapes[start:stop])
            for start, stop in self.runs
        ]

    def split(self, groups):
        """Undo `join`."""
        leaves = []
        for (start, stop), group in zip(self.runs, groups, strict=True):
            if stop == start + 1:
                leaves.append(group)
            else:
                leaves += split_coordinates(group, self.shapes[start:stop])
        return jax.tree.unflatten(self.treedef, leaves)


def group_leaves(tree, *others, num_axes: int = 1) -> Groups:
    """Choose which leaves to join: small neighbours that are alike."""
    leaves, treedef = jax.tree.flatten(tree, is_leaf=packed.is_packed)
    rows = zip(leaves, *map(jax.tree.leaves, others), strict=True)
    keys = [_key(row, number, num_axes) for number, row in enumerate(rows)]
    lengths = [len(list(run)) for _, run in itertools.groupby(keys)]
    stops = list(itertools.accumulate(lengths))
    return Groups(
        treedef=treedef,
        shapes=tuple(tuple(jnp.shape(leaf)[num_axes:]) for leaf in leaves),
        runs=tuple(itertools.pairwise([0, *stops])),
    )


def _key(arrays, number, num_axes):
    """Equal for leaves that can be joined; a leaf that cannot has a key of its own."""
    size = math.prod(arrays[0].shape[num_axes:])
    if size > _SMALL or any(map(packed.is_packed, arrays)):
        return number
    kinds = [jax.typeof(array) for array in arrays]
    specs = [tuple(kind.sharding.spec) for kind in kinds]
    if any(any(spec[num_axes:]) for spec in specs):
        return number  # Its coordinates are split over a mesh.
    return [
        (
            kind.dtype,
            kind.shape[:num_axes],
            spec[:num_axes],
            getattr(kind, "manual_axis_type", getattr(kind, "vma", None)),
        )
        for kind, spec in zip(kinds, specs, strict=True)
    ]


def _joined(leaves, shapes):
    rows = [
        lax.reshape(leaf, (*leaf.shape[: leaf.ndim - len(shape)], math.prod(shape)))
        for leaf, shape in zip(leaves, shapes, strict=True)
    ]
    return lax.concatenate(rows, rows[0].ndim - 1)


@functools.partial(jax.jit, static_argnames="shapes")
def split_coordinates(
    group: jax.Array, shapes: tuple[tuple[int, ...], ...]
) -> list[jax.Array]:
    """Take leaves, one after the other, out of what holds all their coordinates."""
    sizes = [math.prod(shape) for shape in shapes]
    starts = list(itertools.accumulate(sizes[:-1], initial=0))
    lead, axis = group.shape[:-1], group.ndim - 1

    def at_known_places(group):
        return lax.split(group, sizes, axis=axis)

    def at_places_read(group):
        # XLA's CPU backend compiles a slice anew for every place that it begins at, ten
        # milliseconds each; of slices alike that begin where a number says, only one.
        # No branch but the first is ever taken, but the compiler does not know.
        first = lax.slice(group, (0,) * group.ndim, (1,) * group.ndim)
        number = lax.reshape(first, ()).astype(jnp.int32)
        places = lax.cond(
            (number & 1) >= 0,
            lambda: list(map(jnp.int32, starts)),
            lambda: [jnp.int32(0) for _ in starts],
        )
        zeros = [jnp.int32(0)] * axis
        return [
            lax.dynamic_slice(
                group, (*zeros, place), (*lead, size), allow_negative_indices=False
            )
            for place, size in zip(places, sizes, strict=True)
        ]

    if group.size == 0 or any(jax.typeof(group).sharding.spec):
        parts = at_known_places(group)
    else:
        parts = lax.platform_dependent(
            group, cpu=at_places_read, default=at_known_places
        )
    return [
        lax.reshape(part, (*lead, *shape))
        for part, shape in zip(parts, shapes, strict=True)
    ]

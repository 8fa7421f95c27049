"""Where coordinates lie: from a tree of leaves to the slice that one device decodes.

Shapes: `M` workers, `D` devices on the workers' axis of the mesh, `K = M / D` workers
on each. A device's block is the flat vector of the coordinates it holds, in the order
of the leaves, padded to `T`, a multiple of `8 M`; device d decodes slice d of it,
`T / D` coordinates. So the size of what is kept per coordinate, and the numbering that
`signs.to_wire` hashes, are the same for every number of devices.

Parameters may be sharded over other axes of the mesh: every shard has a block of its
own, and coordinates are numbered block after block. Leaves that are not sharded over
one of those axes are dealt out over it, so that each coordinate is decoded once.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Int8

from signfd_jax import signs
from signfd_jax.distributed._shard_map import gather
from signfd_jax.signs._leaves import split_coordinates
from signfd_jax.signs._totals import MOST_COORDINATES, MOST_IN_LEAF


class Group(NamedTuple):
    """Leaves of a device that are whole over the same axes, one after the other.

    Attributes:
        leaves: their positions in the tree, ascending.
        size: number of their coordinates on this device.
        axes: the axes over which all hold the same, so that each takes a part.
        parts: number of devices on those axes.
    """

    leaves: tuple[int, ...]
    size: int
    axes: tuple[str, ...]
    parts: int

    @property
    def part(self) -> int:
        """Number of coordinates that one device takes, the last with padding."""
        return -(-self.size // self.parts)


class Layout(NamedTuple):
    """The numbers that say which coordinate lies where; all are known when tracing.

    Attributes:
        groups: the leaves, as `Group`s.
        axis_name: the workers' axis of the mesh.
        num_devices: D, the devices on it.
        shard_axes: the axes that parameters are sharded over.
        block: T, the padded number of coordinates of a block.
        num_blocks: how many blocks there are, one for each shard.
    """

    groups: tuple[Group, ...]
    axis_name: str
    num_devices: int
    shard_axes: tuple[str, ...]
    block: int
    num_blocks: int = 1

    @property
    def slice_size(self) -> int:
        """Number of coordinates that one device decodes."""
        return self.block // self.num_devices

    def slice_start(self) -> Any:
        """Where this device's slice begins in the block, an int32 scalar."""
        return lax.axis_index(self.axis_name) * self.slice_size

    def first_of_block(self) -> Any:
        """The number of the block's first coordinate, as `signs.to_wire` takes it."""
        if not self.shard_axes:
            return 0
        return _start(self.shard_axes, self.num_blocks, self.block)

    def first_of_slice(self) -> Any:
        """The number of this device's first coordinate, likewise."""
        number = self.num_blocks * self.num_devices
        return _start(self.axes, number, self.slice_size)

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes over which the coordinates are split, those of the blocks first."""
        return (*self.shard_axes, self.axis_name)

    @property
    def padding(self) -> int:
        """Coordinates of a block that are none of the parameters, at least so many."""
        return self.block - sum(group.size // group.parts for group in self.groups)


def make_layout(
    shapes,
    param_specs,
    *,
    num_workers: int,
    axis_name: str = "workers",
    num_devices: int = 1,
    axis_size: Callable[[str], int] = lax.axis_size,
) -> Layout:
    """Lay out the leaves that one device holds."""
    leaves = jax.tree.leaves(shapes)
    shard_axes = axes_of(param_specs, axis_name)
    members: dict[tuple[str, ...], list[int]] = {}
    for position, spec in enumerate(specs_of_leaves(param_specs, shapes)):
        own = axes_of(spec, axis_name)
        whole = tuple(axis for axis in shard_axes if axis not in own)
        members.setdefault(whole, []).append(position)
    groups = tuple(
        Group(
            leaves=tuple(positions),
            size=sum(math.prod(jnp.shape(leaves[n])) for n in positions),
            axes=whole,
            parts=math.prod(map(axis_size, whole)),
        )
        for whole, positions in sorted(members.items())
    )
    multiple = 8 * num_workers
    block = multiple * -(-sum(group.part for group in groups) // multiple)
    num_blocks = math.prod(map(axis_size, shard_axes))
    _check_size(max([block, *(group.size for group in groups)]), num_blocks * block)
    return Layout(groups, axis_name, num_devices, shard_axes, block, num_blocks)


def _check_size(here, everywhere):
    if here > MOST_IN_LEAF:
        raise ValueError(
            f"a device would hold {here} coordinates, but may hold at most 2**31 - 1, "
            "or its indices would overflow; shard the parameters (param_specs) over "
            "more devices, or decode them in several parts"
        )
    if everywhere > MOST_COORDINATES:
        raise ValueError(
            f"there are {everywhere} coordinates with padding, but more than 2**40 "
            "cannot be counted exactly; decode them in several parts"
        )


def _start(axes, number, step):
    """Where a device begins: its place on the axes, of `number` in all, times `step`.

    An int32 scalar, or two uint32 where that would overflow.
    """
    place = lax.axis_index(axes)
    if number * step <= MOST_IN_LEAF:
        return place * step
    starts = np.array([divmod(n * step, 2**32) for n in range(number)], np.uint32)
    high, low = jnp.asarray(starts)[place]
    return high, low


def specs_of_leaves(param_specs, tree) -> list[PartitionSpec]:
    """How each leaf is sharded."""
    if param_specs is None:
        return [PartitionSpec()] * len(jax.tree.leaves(tree))
    spread = jax.tree.map(
        lambda spec, subtree: [spec] * len(jax.tree.leaves(subtree)),
        param_specs,
        tree,
        is_leaf=_is_spec,
    )
    return jax.tree.leaves(spread, is_leaf=_is_spec)


def axes_of(param_specs, axis_name: str) -> tuple[str, ...]:
    """The axes of the mesh that parameters are sharded over."""
    specs = jax.tree.leaves(param_specs, is_leaf=_is_spec)
    entries = [entry for spec in specs for entry in spec if entry is not None]
    axes = [
        axis
        for entry in entries
        for axis in (entry if isinstance(entry, tuple) else (entry,))
    ]
    if axis_name in axes:
        raise ValueError(
            f"param_specs shard a parameter over {axis_name!r}, the workers' axis, but "
            "every worker has a gradient of all parameters; shard them over another "
            "axis of the mesh"
        )
    return tuple(dict.fromkeys(axes))


def _is_spec(node):
    return isinstance(node, PartitionSpec)


def flatten(layout: Layout, votes) -> Int8[Array, "K T"]:
    """Lay a device's votes out as its block; the padding abstains."""
    leaves = jax.tree.leaves(votes)
    rows = leaves[0].shape[0] if leaves else 1
    parts = []
    for group in layout.groups:
        part = jnp.concatenate(
            [leaves[position].reshape(rows, -1) for position in group.leaves], axis=1
        )
        if group.parts > 1:
            part = _pad(part, group.parts * group.part)
            start = lax.axis_index(group.axes) * group.part
            part = lax.dynamic_slice_in_dim(part, start, group.part, axis=1)
        parts.append(part)
    flat = jnp.concatenate(parts, axis=1) if parts else jnp.zeros((rows, 0), jnp.int8)
    return _pad(flat, layout.block)


def _pad(rows, size):
    return jnp.pad(rows, ((0, 0), (0, size - rows.shape[1])))


def is_real(layout: Layout) -> Bool[Array, " slice"]:
    """Which coordinates of this device's slice are some parameter's, not padding."""
    coordinate = layout.slice_start() + jnp.arange(layout.slice_size)
    real, start = jnp.zeros((layout.slice_size,), bool), 0
    for group in layout.groups:
        index = lax.axis_index(group.axes) if group.axes else 0
        end = start + jnp.minimum(group.part, group.size - index * group.part)
        real |= (coordinate >= start) & (coordinate < end)
        start += group.part
    return real


def unflatten(layout: Layout, decoded: Int8[Array, " T"], like) -> Any:
    """Take the leaves out of a decoded block.

    Parts of leaves that are whole over some axis are gathered over it, as bits.
    """
    leaves, treedef = jax.tree.flatten(like)
    results: dict[int, jax.Array] = {}
    start = 0
    for group in layout.groups:
        flat = decoded[start : start + group.part]
        start += group.part
        if group.parts > 1:
            bits = gather(signs.pack(flat), group.axes).reshape(group.parts, -1)
            flat = signs.unpack(bits, group.part).reshape(-1)
        results |= _take(flat, leaves, group.leaves)
    return jax.tree.unflatten(treedef, [results[n] for n in range(len(leaves))])


def _take(flat, leaves, positions):
    """The leaves at these positions, one after the other in a flat array."""
    shapes = tuple(tuple(leaves[position].shape) for position in positions)
    flat = flat[: sum(map(math.prod, shapes))]
    return dict(zip(positions, split_coordinates(flat, shapes), strict=True))

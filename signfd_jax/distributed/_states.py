"""A decoder's state on a mesh: what is kept per coordinate is split like the votes.

Shapes: `M` workers, `D` devices on the workers' axis of the mesh, `K = M / D` workers
on each, `T` coordinates with padding (`layout`).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from signfd_jax._checks import check_decoder, check_size
from signfd_jax.decoders import Decoder
from signfd_jax.distributed._layout import Layout, make_layout
from signfd_jax.distributed._shard_map import devices_on, vary


def slice_state(
    decoder: Decoder,
    params,
    axis_name: str = "workers",
    *,
    workers_per_device: int = 1,
    param_specs: Any = None,
):
    """A decoder's state before the first round, for this device's slice.

    Args:
        decoder: the `Decoder`.
        params: tree of `[...]`, the parameters (or their shards) on this device; only
            their shapes are read.
        axis_name: the workers' axis of the mesh.
        workers_per_device: the number K of workers on each device (Python int).
        param_specs: tree of `PartitionSpec` of the parameters, or a prefix of it, where
            they are sharded over other axes of the mesh; None: they are not.

    Returns:
        The decoder's own state, of M workers and one leaf of `T / D` coordinates, split
        over the mesh as `specs_of_state` says. To be called inside `shard_map`.

    Raises:
        ValueError: as `layout_here`.

    Examples:
        >>> from signfd_jax.decoders import federated_defense
        >>> decoder = federated_defense()
        >>> mesh = jax.make_mesh((1,), ("workers",), devices=jax.devices()[:1])
        >>> init = jax.shard_map(
        ...     lambda: slice_state(decoder, jnp.zeros(20), workers_per_device=2),
        ...     mesh=mesh,
        ...     in_specs=(),
        ...     out_specs=specs_of_state(decoder, 2, ("workers",)),
        ... )
        >>> print(init().fd_counters.shape)
        (2, 32)
    """
    check_decoder(decoder)
    check_size("workers_per_device", workers_per_device)
    layout = layout_here(
        params,
        axis_name,
        workers_per_device=workers_per_device,
        param_specs=param_specs,
    )
    # A zero is alike on all devices, but what is counted per coordinate will not be.
    return jax.tree.map(
        lambda leaf, spec: vary(leaf, layout.axes) if spec else leaf,
        state_of_slice(decoder, layout, workers_per_device),
        specs_of_state(decoder, layout.num_devices * workers_per_device, layout.axes),
    )


def whole_state(decoder: Decoder, params, num_workers: int):
    """The states of all slices as one, where no mesh is known yet."""
    layout = make_layout(params, None, num_workers=num_workers)
    return state_of_slice(decoder, layout, num_workers)


def state_of_slice(decoder: Decoder, layout: Layout, workers_per_device: int):
    """A decoder's state before the first round, of a slice of that size."""
    num_workers = layout.num_devices * workers_per_device
    flat = jax.ShapeDtypeStruct((layout.slice_size,), jnp.float32)
    return decoder.init(num_workers, flat)


def specs_of_state(decoder: Decoder, num_workers: int, axes: tuple[str, ...]) -> Any:
    """How a decoder's state is split over a mesh.

    What is kept per coordinate is split by coordinate; all else is everywhere alike.
    """
    # Dimensions that grow with the number of coordinates are coordinates.
    small, large = (
        jax.eval_shape(lambda size=size: decoder.init(num_workers, jnp.zeros(size)))
        for size in (8, 16)
    )

    *_, workers_axis = axes
    split_over = axes if len(axes) > 1 else workers_axis

    def spec(one, other):
        sizes = zip(one.shape, other.shape, strict=True)
        split = [split_over if size != grown else None for size, grown in sizes]
        return PartitionSpec(*split) if any(split) else PartitionSpec()

    return jax.tree.map(spec, small, large)


def layout_here(
    shapes, axis_name: str, *, workers_per_device: int, param_specs: Any = None
) -> Layout:
    """The `Layout` of what this device holds, inside `shard_map`."""
    num_devices = devices_on(axis_name)
    mesh = jax.sharding.get_abstract_mesh()
    others = [name for name in mesh.axis_names if name not in mesh.manual_axes]
    if others:
        raise ValueError(
            f"this shard_map leaves the mesh axes {', '.join(others)} to XLA, which "
            "then gathers the float gradients; make it manual over all axes (leave out "
            "axis_names) and say in param_specs how the parameters are sharded"
        )
    return make_layout(
        shapes,
        param_specs,
        num_workers=num_devices * workers_per_device,
        axis_name=axis_name,
        num_devices=num_devices,
        axis_size=lax.axis_size,
    )

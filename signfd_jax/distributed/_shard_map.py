"""What JAX's `shard_map` calls differently from version to version.

Inside `shard_map` a type says over which axes of the mesh a value may vary from device
to device; elsewhere, and with `check_vma=False`, it says nothing.
"""

import jax
from jax import lax
from jaxtyping import Array, UInt8

__all__ = ["devices_on", "gather", "varies", "vary"]


def devices_on(axis_name: str) -> int:
    """Number of devices on a mesh axis, inside `shard_map`.

    Args:
        axis_name: the axis.

    Returns:
        A Python int.

    Raises:
        ValueError: there is no such axis here.

    Examples:
        >>> devices_on("workers")
        Traceback (most recent call last):
            ...
        ValueError: there is no mesh axis 'workers' here: call this inside ...
    """
    try:
        return lax.axis_size(axis_name)
    except NameError:
        raise ValueError(
            f"there is no mesh axis {axis_name!r} here: call this inside jax.shard_map "
            "over a mesh that has it, or say with axis_name what the workers' axis is "
            "called"
        ) from None


def varies(array: jax.Array, axis_name: str) -> bool:
    """Whether the type of an array says that it varies over an axis.

    Args:
        array: any traced array, of any shape.
        axis_name: an axis of the mesh.

    Returns:
        A Python bool.

    Examples:
        >>> varies(jax.numpy.ones(3), "workers")
        False
    """
    kind = jax.typeof(array)
    kind = getattr(kind, "manual_axis_type", kind)
    return axis_name in (kind.varying if hasattr(kind, "varying") else kind.vma)


def vary(array: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The same array, in a type that varies over these axes.

    Args:
        array: of any shape, alike on the devices of these axes.
        axes: names of axes of the mesh.

    Returns:
        The array, of that shape.

    Examples:
        >>> mesh = jax.make_mesh((1,), ("d",), devices=jax.devices()[:1])
        >>> here = lambda x: varies(vary(x, ("d",)), "d") and x
        >>> P = jax.sharding.PartitionSpec
        >>> jax.shard_map(here, mesh=mesh, in_specs=P(), out_specs=P())(
        ...     jax.numpy.ones(2)
        ... )
        Array([1., 1.], dtype=float32)
    """
    return lax.pcast(array, axes, to="varying")


def gather(
    rows: UInt8[Array, " bytes"], axes: str | tuple[str, ...]
) -> UInt8[Array, " all_bytes"]:
    """Give every device on these axes the bytes of all, one after the other.

    Args:
        rows: uint8 `[bytes]`.
        axes: name of an axis, or a tuple of names.

    Returns:
        uint8 `[devices * bytes]`, of a type that does not vary over the axes.

    Examples:
        >>> mesh = jax.make_mesh((1,), ("d",), devices=jax.devices()[:1])
        >>> P = jax.sharding.PartitionSpec
        >>> everywhere = jax.shard_map(
        ...     lambda byte: gather(vary(byte, ("d",)), "d"),
        ...     mesh=mesh,
        ...     in_specs=P(),
        ...     out_specs=P(),
        ... )
        >>> print(everywhere(jax.numpy.array([7], "uint8")))
        [7]
    """
    return lax.all_gather(rows, axes, tiled=True, to="invarying")

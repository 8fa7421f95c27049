"""What JAX's `shard_map` calls differently from version to version.

Inside `shard_map` a type says over which axes of the mesh a value may vary from device
to device; elsewhere, and with `check_vma=False`, it says nothing.
"""

import jax
from jax import lax
from jaxtyping import Array, UInt8


def devices_on(axis_name: str) -> int:
    """Number of devices on a mesh axis, inside `shard_map`."""
    try:
        return lax.axis_size(axis_name)
    except NameError:
        raise ValueError(
            f"there is no mesh axis {axis_name!r} here: call this inside jax.shard_map "
            "over a mesh that has it, or say with axis_name what the workers' axis is "
            "called"
        ) from None


def varies(array: jax.Array, axis_name: str) -> bool:
    """Whether the type of an array says that it varies over an axis."""
    kind = jax.typeof(array)
    kind = getattr(kind, "manual_axis_type", kind)
    return axis_name in (kind.varying if hasattr(kind, "varying") else kind.vma)


def vary(array: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The same array, in a type that varies over these axes."""
    missing = tuple(axis for axis in axes if not varies(array, axis))
    return lax.pcast(array, missing, to="varying") if missing else array


def gather(
    rows: UInt8[Array, " bytes"], axes: str | tuple[str, ...]
) -> UInt8[Array, " all_bytes"]:
    """Give every device on these axes the bytes of all, one after the other."""
    return lax.all_gather(rows, axes, tiled=True, to="invarying")

"""Exact totals of counts, over more coordinates than an int32 can count.

Shapes: any; the counts of a few leaves or slices, alike in shape. JAX has no int64
unless `jax_enable_x64` is set, so a total is kept as two int32, of units of 2**16 and
of 1. `MOST_COORDINATES` is how many coordinates can be counted so, `MOST_IN_LEAF` how
many of one leaf.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

MOST_COORDINATES = 2**40
"""Coordinates of all leaves and devices that are counted exactly."""
MOST_IN_LEAF = 2**31 - 1
"""Coordinates of one leaf: its counts are int32, and so are JAX's indices into it."""

_UNIT = 2**16
_TOGETHER = 2**14  # counts whose low parts an int32 can hold the sum of


def exact_total(
    counts: Sequence[jax.Array],
    axis_name: str | tuple[str, ...] | None = None,
    *,
    most: int | None = None,
) -> jax.Array:
    """Add up counts, exactly, and round the total once."""
    counts = [count.astype(jnp.int32) for count in counts]
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    if counts and most is not None and most * devices < 2**31:
        total = functools.reduce(jnp.add, counts)
        total = total if axis_name is None else lax.psum(total, axis_name)
        return total.astype(jnp.float32)
    high = low = jnp.zeros((), jnp.int32)
    for start in range(0, len(counts), _TOGETHER):
        some = jnp.stack(counts[start : start + _TOGETHER])
        part = jnp.sum(some & (_UNIT - 1), axis=0, dtype=jnp.int32)
        low, carried = _carry(part + low if start else part)
        part = jnp.sum(some >> 16, axis=0, dtype=jnp.int32) + carried
        high = part + high if start else part
    if axis_name is not None:
        high, low = lax.psum((high, low), axis_name)
        low, carried = _carry(low)
        high = high + carried
    # The first product is exact, so that nothing is rounded but the sum.
    return high.astype(jnp.float32) * _UNIT + low.astype(jnp.float32)


def _carry(low):
    return low & (_UNIT - 1), low >> 16


def check_coordinates(params: Any) -> None:
    """Refuse more coordinates than can be counted exactly."""
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        size = math.prod(jnp.shape(leaf))
        if size > MOST_IN_LEAF:
            raise ValueError(
                f"leaf {jax.tree_util.keystr(path) or '(root)'} has {size} coordinates "
                "for one worker, but a leaf may have at most 2**31 - 1, or its counts "
                "would overflow; split it into several leaves"
            )
        total += size
    if total > MOST_COORDINATES:
        raise ValueError(
            f"there are {total} coordinates, but more than 2**40 cannot be counted "
            "exactly; decode them in several parts, each with a decoder of its own"
        )

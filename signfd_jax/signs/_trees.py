"""Leaves of trees as optax takes them: arrays, Python numbers, NumPy's, and none."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import dtypes


def dtype_of(leaf: Any) -> Any:
    """The dtype that JAX gives a leaf: NumPy's float64 is float32 unless x64 is on."""
    dtype = getattr(leaf, "dtype", None)
    return jnp.result_type(leaf) if dtype is None else dtypes.canonicalize_dtype(dtype)


def shapes_of(tree: Any) -> Any:
    """The shapes and dtypes of a tree's leaves."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), dtype_of(leaf)), tree
    )


def size_of(tree: Any) -> int:
    """Number of coordinates of a tree, 0 where it has no leaves or only empty ones."""
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))


def cast_like(values: Any, like: Any) -> Any:
    """The values in the dtypes of another tree."""
    return jax.tree.map(lambda v, target: v.astype(dtype_of(target)), values, like)


def rows_of(gradients: Any, dtype: Any) -> jax.Array:
    """Leaves `[M, ...]` as one row for each worker, `[M, D]` of this dtype."""
    rows = [
        leaf.reshape(len(leaf), -1).astype(dtype) for leaf in jax.tree.leaves(gradients)
    ]
    return jnp.concatenate(rows, axis=1)

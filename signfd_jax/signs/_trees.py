"""Leaves of trees as optax takes them: arrays, Python numbers, NumPy's, and none."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import dtypes

__all__ = ["cast_like", "dtype_of", "shapes_of", "size_of"]


def dtype_of(leaf: Any) -> Any:
    """The dtype that JAX gives a leaf: a NumPy float64 is a float32, unless x64 is on.

    Args:
        leaf: an array of any shape, a `jax.ShapeDtypeStruct`, or a Python number.

    Returns:
        A dtype.

    Examples:
        >>> print(dtype_of(2.0), dtype_of(jnp.zeros(3, jnp.bfloat16)))
        float32 bfloat16
    """
    dtype = getattr(leaf, "dtype", None)
    return jnp.result_type(leaf) if dtype is None else dtypes.canonicalize_dtype(dtype)


def shapes_of(tree: Any) -> Any:
    """The shapes and dtypes of a tree's leaves.

    Args:
        tree: as optax takes parameters, of leaves `[...]`.

    Returns:
        Tree of `jax.ShapeDtypeStruct`.

    Examples:
        >>> shapes_of({"b": 0.0})
        {'b': ShapeDtypeStruct(shape=(), dtype=float32)}
    """
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), dtype_of(leaf)), tree
    )


def size_of(tree: Any) -> int:
    """Number of coordinates of a tree, 0 where it has no leaves or only empty ones.

    Args:
        tree: as optax takes parameters, of leaves `[...]`.

    Returns:
        The number of numbers in it.

    Examples:
        >>> size_of({}), size_of({"w": jnp.zeros((2, 3)), "b": 1.0})
        (0, 7)
    """
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))


def cast_like(values: Any, like: Any) -> Any:
    """The values in the dtypes of another tree.

    Args:
        values: tree of arrays `[...]`.
        like: a tree of the same structure, as optax takes parameters.

    Returns:
        Tree of arrays of the shapes of `values`.

    Examples:
        >>> print(cast_like({"b": jnp.int8(1)}, {"b": 0.0}))
        {'b': Array(1., dtype=float32)}
    """
    return jax.tree.map(lambda v, target: v.astype(dtype_of(target)), values, like)

"""Visiting the workers one after the other, or all at once, whichever is faster.

Shapes: `M` workers, `*leaf` the coordinates of one parameter leaf. Where a result must
not depend on the order of the visits, what is summed over the workers is int32.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_FEW = 16  # workers that XLA's CPU backend adds up in registers


def over_workers(
    visit: Callable[[Any], tuple[Any, Any]], rows, *, simple: bool = False
) -> tuple[Any, Any]:
    """Visit every worker's row: sum some of the results, keep the others.

    On a CPU the workers come one after the other, so that everything a visit needs
    stays in the cache, and the inner loops run along the coordinates. Elsewhere all
    come at once.
    """

    def one_by_one(rows):
        def add(total, row):
            terms, kept = visit(row)
            return jax.tree.map(jnp.add, total, terms), kept

        # Not jnp.zeros: inside shard_map a carry must vary over the axes of the rows.
        first, _ = visit(jax.tree.map(lambda leaf: leaf[0], rows))
        start = jax.tree.map(lambda term: term * jnp.zeros((), term.dtype), first)
        return lax.scan(add, start, rows)

    def all_at_once(rows):
        terms, kept = jax.vmap(visit)(rows)
        total = jax.tree.map(
            lambda term: jnp.sum(term, axis=0, dtype=term.dtype), terms
        )
        return total, kept

    def few_at_once(rows):
        return all_at_once(jax.tree.map(_kept_apart, rows))

    axes = [_workers_axis(leaf) for leaf in jax.tree.leaves(rows)]
    if any(axes):
        return all_at_once(_split_alike(rows, next(filter(None, axes))))
    on_cpu = functools.partial(_in_groups, few_at_once) if simple else one_by_one
    return lax.platform_dependent(rows, cpu=on_cpu, default=all_at_once)


def _in_groups(few_at_once, rows):
    """Visit a few rows at once; then add a few of these sums at once, and so on."""
    number = jax.tree.leaves(rows)[0].shape[0]
    if number <= _FEW:
        return few_at_once(rows)
    whole = number - number % _FEW
    groups = jax.tree.map(
        lambda leaf: leaf[:whole].reshape(-1, _FEW, *leaf.shape[1:]), rows
    )
    sums, kept = jax.vmap(few_at_once)(groups)
    # Else XLA would take all rows in one slow loop.
    sums = jax.tree.map(lax.optimization_barrier, sums)
    total, _ = _in_groups(_added, sums)
    kept = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), kept)
    if whole == number:
        return total, kept
    rest, last = few_at_once(jax.tree.map(lambda leaf: leaf[whole:], rows))
    total = jax.tree.map(jnp.add, total, rest)
    return total, jax.tree.map(lambda *parts: jnp.concatenate(parts), kept, last)


def _added(rows):
    return jax.tree.map(lambda row: jnp.sum(row, axis=0, dtype=row.dtype), rows), ()


def _kept_apart(leaf):
    """Keep XLA from computing one integer a worker anew at every coordinate."""
    if leaf.ndim > 1 or not jnp.issubdtype(leaf.dtype, jnp.integer):
        return leaf
    # What goes into a loop is computed in the loop, except for products of matrices.
    return leaf @ jnp.eye(leaf.shape[0], dtype=leaf.dtype)


def _workers_axis(leaf):
    """The explicit mesh axis over which the workers are sharded, or None."""
    spec = jax.typeof(leaf).sharding.spec
    return spec[0] if len(spec) > 0 else None


def _split_alike(rows, axis):
    """Shard the workers of every leaf over that mesh axis, as `jax.vmap` demands."""
    return jax.tree.map(
        lambda leaf: jax.sharding.reshard(
            leaf, jax.P(axis, *jax.typeof(leaf).sharding.spec[1:])
        ),
        rows,
    )


def sum_coordinates(row: Float[Array, "*leaf"]) -> Float[Array, ""]:
    """Sum of one worker's values, fast inside `over_workers`."""
    # XLA's CPU backend adds one number at a time, but its products do not.
    row = row.reshape(-1)
    return jnp.dot(row, jnp.ones_like(row), precision=lax.Precision.HIGHEST)

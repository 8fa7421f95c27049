"""Tallies: the weighted vote, and what is counted of it.

Shapes: `M` workers, `*leaf` the coordinates of one parameter leaf, `N` a flat slice
of coordinates. Votes and decoded signs are int8 in {-1, 0, +1}. Tallies are int32 sums
of fixed-point weights, so that no result depends on the order of a sum: whole, chunked
and distributed decoding agree bit for bit.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int8, Int32

from signfd_jax.signs import packed
from signfd_jax.signs._leaves import group_leaves
from signfd_jax.signs._packed_rows import in_leaf_shape, row_agreements
from signfd_jax.signs._products import row_products
from signfd_jax.signs._totals import exact_total
from signfd_jax.signs._visits import over_workers, sum_coordinates

_FOLDS = 16  # slices that are added in int8 before anything is summed in int32


class Vote(NamedTuple):
    """Outcome of a weighted vote over a tree of coordinates.

    Attributes:
        decoded: tree of int8 `[...]` in {-1, 0, +1}; a tie decodes to 0.
        weights: float32 `[M]`, weight of each worker (nats), the mean over coordinates.
        margin: float32 scalar in [0, 1], |tally| over the sum of the |weights|, the
            mean over the coordinates that did not tie.
    """

    decoded: Any
    weights: jax.Array
    margin: jax.Array


def vote_tree(
    votes,
    weights,
    *,
    largest: float | Float[Array, ""],
    axis_name: str | tuple[str, ...] | None = None,
) -> Vote:
    """Weighted vote over every leaf of a tree.

    Args:
        votes: tree of int8 `[M, ...]` in {-1, 0, +1}, or of `packed.PackedVotes` where
            the weights are `[M]`.
        weights: float `[M]`, or a tree like `votes` of `[M, ...]` (nats).
        largest: a bound on |weights|, float scalar (see `weighted_vote`).
        axis_name: mesh axis, or axes, that the coordinates are split over, or None.

    Returns:
        A `Vote`.

    Examples:
        >>> votes = {"w": jnp.array([[1, -1], [1, 1], [-1, -1]], jnp.int8)}
        >>> vote_tree(votes, jnp.ones(3), largest=1.0).decoded["w"]
        Array([ 1, -1], dtype=int8)
    """
    shared = isinstance(weights, jax.Array) and weights.ndim == 1
    groups = group_leaves(votes) if shared else group_leaves(votes, weights)
    used = weights if shared else groups.join(weights)
    decoded, sums = [], []
    for leaf, weight in leaves_with_weights(groups.join(votes), used):
        signs, margins, row_sums = _vote(leaf, weight, largest)
        decided = jnp.sum(signs != 0, dtype=jnp.int32)
        size = jnp.float32(signs.size)
        sums.append((row_sums, size, jnp.sum(margins), decided))
        decoded.append(signs)
    row_sums, size, margin, decided = sum_over_leaves(
        sums, axis_name, most=sum(signs.size for signs in decoded)
    )
    return Vote(
        decoded=groups.split(decoded),
        weights=weights if shared else row_sums / size,
        margin=margin / jnp.maximum(decided, 1.0),
    )


def weighted_vote(
    votes: Int8[Array, "M *leaf"] | packed.PackedVotes,
    weights: Float[Array, "M *leaf_or_shared"],
    *,
    largest: float | Float[Array, ""],
) -> tuple[Int8[Array, "*leaf"], Float[Array, "*leaf"]]:
    r"""Sign of the weighted tally of the votes, coordinate by coordinate.

    $\hat U_n = \operatorname{sign} \sum_m w_{m,n} Y_{m,n}$. The sum is taken in int32,
    with weights in fixed point (`fixed_point`).

    Args:
        votes: int8 `[M, ...]` in {-1, 0, +1}.
        weights: float `[M]`, shared by all coordinates, or `[M, ...]` (nats).
        largest: a bound on |weights|, float scalar. It sets the fixed-point scale,
            so it must be the same wherever the same coordinates are decoded.

    Returns:
        The decoded signs, int8 `[...]` in {-1, 0, +1} (a tie gives 0), and the
        margins |tally| / sum of |weights|, float32 `[...]` in [0, 1].

    Examples:
        >>> votes = jnp.array([[1, 1], [-1, 1], [-1, -1]], jnp.int8)
        >>> weights = jnp.array([3.0, 1.0, 1.0])
        >>> decoded, margin = weighted_vote(votes, weights, largest=3.0)
        >>> print(decoded, margin.round(1))
        [1 1] [0.2 0.6]
    """
    decoded, margins, _ = _vote(votes, weights, largest)
    return decoded, margins


def _vote(votes, weights, largest):
    """Decoded signs, margins, and the sum of each worker's weights over the leaf."""
    fixed = functools.partial(fixed_point, largest=largest, num_workers=votes.shape[0])

    def terms(vote, units):
        return units * packed._row_votes(vote).astype(jnp.int32), jnp.abs(units)

    def visit(row):
        vote, weight = row
        return terms(vote, fixed(weight)[0]), sum_coordinates(weight)

    if weights.ndim == 1:
        rows, simple = (votes, fixed(weights)[0]), not packed.is_packed(votes)
        (tally, total), _ = over_workers(
            lambda row: (terms(*row), ()), rows, simple=simple
        )
        row_sums = weights
    else:
        (tally, total), row_sums = over_workers(visit, (votes, weights))
    tally = in_leaf_shape(tally, votes)
    margins = jnp.abs(tally).astype(jnp.float32) / jnp.maximum(
        total.astype(jnp.float32), 1.0
    )
    return jnp.sign(tally).astype(jnp.int8), margins, row_sums


def fixed_point(
    weights: Float[Array, "*shape"],
    *,
    largest: float | Float[Array, ""],
    num_workers: int,
) -> tuple[Int32[Array, "*shape"], Float[Array, ""]]:
    r"""Weights as integers, whose sums over the workers are exact in any order.

    The unit is `largest` $M / 2^{30}$, so that no sum over M workers can overflow; a
    weight is rounded away from zero, so that none is too small to count.
    """
    bound = jnp.maximum(jnp.asarray(largest, jnp.float32), jnp.finfo(jnp.float32).tiny)
    scale = jnp.float32(2**30 / max(num_workers, 1)) / bound
    weights = weights.astype(jnp.float32)
    units = jnp.sign(weights) * jnp.ceil(jnp.abs(weights) * scale)
    return units.astype(jnp.int32), scale


def count_agreements(votes, decoded, axis_name: str | tuple[str, ...] | None = None):
    """Count each worker's agreements over every leaf of a tree.

    Args:
        votes: tree of int8 `[M, ...]` in {-1, 0, +1}, or of `packed.PackedVotes`.
        decoded: tree of int8 `[...]` in {-1, 0, +1}.
        axis_name: mesh axis, or axes, that the coordinates are split over, or None.

    Returns:
        float32 `[M]` and float32 `[M]`, what `agreements` counts, over all leaves and
        devices: exact below 2**40, then rounded once.

    Examples:
        >>> votes = {"w": jnp.array([[1, -1], [1, 1]], jnp.int8)}
        >>> decoded = {"w": jnp.array([1, -1], jnp.int8)}
        >>> agreed, counted = count_agreements(votes, decoded)
        >>> print(agreed, counted)
        [2. 1.] [2. 2.]
    """
    groups = group_leaves(votes, decoded)
    decoded = jax.tree.unflatten(groups.treedef, jax.tree.leaves(decoded))
    pairs = list(zip(groups.join(votes), groups.join(decoded), strict=True))
    counts = [agreements(leaf, signs) for leaf, signs in pairs]
    most = sum(signs.size for _, signs in pairs)
    agreed, counted = sum_over_leaves(counts, axis_name, most=most)
    return agreed, counted


def agreements(
    votes: Int8[Array, "M *leaf"] | packed.PackedVotes, decoded: Int8[Array, "*leaf"]
) -> tuple[Int32[Array, " M"], Int32[Array, " M"]]:
    """Count the votes of each worker that agree with the decoded signs.

    Abstentions and decoded ties are counted neither way.
    """
    if isinstance(votes, packed.PackedVotes):
        bits = jax.tree.map(lambda row: row[0], packed.pack_ternary(decoded[None]))
        return over_workers(lambda row: ((), row_agreements(row, bits)), votes)[1]
    votes = votes.reshape(votes.shape[0], -1)
    decoded = decoded.reshape(-1)
    balance = _row_sums(lambda v, sign: v * sign[None], votes, decoded)
    counted = _row_sums(lambda v, sign: jnp.abs(v * sign[None]), votes, decoded)
    # (counted + balance) // 2, which are both odd or both even, without the overflow.
    return (counted >> 1) + (balance >> 1) + (counted & 1), counted


def _row_sums(
    compare: Callable[..., Int8[Array, "M any"]],
    rows: Int8[Array, "M N"],
    column: Int8[Array, " N"],
) -> Int32[Array, " M"]:
    """Exact sums over the coordinates of what compares every row with one column.

    The comparison is coordinate by coordinate, and gives int8 in {-1, 0, +1}.
    """
    # XLA's CPU backend is slow at row sums, but not at adding a few long slices, nor
    # at an int8 product of two matrices (eight equal columns: vectors are slow too).
    width = rows.shape[1] // _FOLDS if rows.shape[1] >= 128 * _FOLDS else 0
    starts = range(0, width * _FOLDS, width or 1)
    parts = [slice(start, start + width) for start in starts]
    rest = slice(width * _FOLDS, None)
    terms = [compare(rows[:, part], column[part]) for part in (*parts, rest)]
    folded = [functools.reduce(jnp.add, terms[:-1])] if parts else []
    return functools.reduce(jnp.add, map(_sum_rows, (*folded, terms[-1])))


def sum_rows(rows: Int8[Array, "M *leaf"]) -> Int32[Array, " M"]:
    """Exact sums over the coordinates."""
    rows = rows.reshape(rows.shape[0], -1)
    return _row_sums(lambda part, _: part, rows, rows[0])


def _sum_rows(rows: Int8[Array, "M N"]) -> Int32[Array, " M"]:
    return row_products(rows, jnp.ones((8, rows.shape[1]), jnp.int8))[:, 0]


def leaves_with_weights(votes, weights) -> list[tuple[Any, Any]]:
    """Pair every leaf of the votes with its weights."""
    leaves, treedef = jax.tree.flatten(votes, is_leaf=packed.is_packed)
    if isinstance(weights, jax.Array):
        return [(leaf, weights) for leaf in leaves]
    return list(zip(leaves, treedef.flatten_up_to(weights), strict=True))


def sum_over_leaves(
    counts: Sequence[Sequence[jax.Array]],
    axis_name: str | tuple[str, ...] | None,
    *,
    most: int | None = None,
):
    """Add up what was counted leaf by leaf, and over a mesh axis."""

    def total(parts):
        if jnp.issubdtype(parts[0].dtype, jnp.integer):
            return exact_total(parts, axis_name, most=most)
        return sum_over_axis(functools.reduce(jnp.add, parts), axis_name)

    return [total(parts) for parts in zip(*counts, strict=True)]


def sum_over_axis(values, axis_name: str | tuple[str, ...] | None):
    """Sum over a mesh axis, or nothing to do where there is none."""
    return values if axis_name is None else lax.psum(values, axis_name)


def mean_over_coordinates(values, axis_name: str | tuple[str, ...] | None = None):
    """Mean of each worker's values over all coordinates."""
    groups = group_leaves(values).join(values)
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in groups]
    total = sum(jnp.sum(leaf, axis=1) for leaf in leaves)
    size = jnp.float32(sum(leaf.shape[1] for leaf in leaves))
    total, size = sum_over_axis((total, size), axis_name)
    return total / size

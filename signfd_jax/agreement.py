"""How often workers vote alike: any two of them, and each with a camp's majority.

Shapes: `M` workers, `K` some of them, `S` coordinates of a leaf: all, or a sample.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int8

from signfd_jax import packed
from signfd_jax.products import row_products
from signfd_jax.tally import sum_over_leaves
from signfd_jax.visits import over_workers

__all__ = ["camp_agreement", "pair_counts", "sampled_rows"]


def sampled_rows(key, votes, max_coordinates: int | None) -> list[Int8[Array, "M S"]]:
    """The votes of each leaf, unpacked, on all coordinates or on a sample of them.

    Args:
        key: a JAX key for the sample; it is consumed.
        votes: tree of int8 `[M, ...]` in {-1, 0, +1}, or of `packed.PackedVotes`.
        max_coordinates: size of the sample, over all leaves (int); None: all.

    Returns:
        One int8 `[M, S]` for each leaf.

    Examples:
        >>> votes = {
        ...     "b": jnp.ones((2, 3), jnp.int8),
        ...     "w": jnp.ones((2, 4, 5), jnp.int8),
        ... }
        >>> print([rows.shape for rows in sampled_rows(jax.random.key(0), votes, None)])
        [(2, 3), (2, 20)]
    """
    leaves = jax.tree.leaves(votes, is_leaf=packed.is_packed)
    chosen = packed.draw_coordinates(key, leaves, max_coordinates)
    return list(map(packed.take_coordinates, leaves, chosen))


def pair_counts(
    rows: list[Int8[Array, "K S"]],
    others: list[Int8[Array, "M S"]],
    axis_name: str | tuple[str, ...] | None = None,
):
    r"""Agreements of workers with others, minus disagreements, and common votes.

    $S_{jk} = \sum_n Y_{j,n} Y_{k,n}$ and $n_{jk} = \sum_n |Y_{j,n}| |Y_{k,n}|$.

    Args:
        rows: int8 `[K, S]` in {-1, 0, +1} of each leaf, as `sampled_rows` returns them.
        others: int8 `[M, S]` likewise, on the same coordinates; may be `rows`.
        axis_name: mesh axis, or axes, that the coordinates are split over, or None.

    Returns:
        float32 `[K, M]` and float32 `[K, M]`, exact integers before the conversion
        (for fewer than 2**31 coordinates) and so independent of any order.

    Examples:
        >>> votes = jnp.array([[1, -1, 0, 1], [1, 1, 1, 1]], jnp.int8)
        >>> balance, pairs = pair_counts([votes], [votes])
        >>> print(balance[0], pairs[0])
        [3. 1.] [3. 3.]
    """

    def count(one, other):
        return row_products(one, other), row_products(jnp.abs(one), jnp.abs(other))

    balance, pairs = sum_over_leaves(list(map(count, rows, others)), axis_name)
    return balance.astype(jnp.float32), pairs.astype(jnp.float32)


def camp_agreement(
    rows: list[Int8[Array, "M S"]],
    camp: Bool[Array, " M"],
    margin: float | Float[Array, ""],
    axis_name: str | tuple[str, ...] | None = None,
):
    r"""How far each worker agrees with the majority of a camp, and where that is sure.

    With $T_n$ the sum of the camp's votes: the mean over n of $Y_{j,n}
    \operatorname{sign} T_n$, where neither is zero; and the same where $|T_n|$ is at
    least `margin`.

    Args:
        rows: int8 `[M, S]` in {-1, 0, +1} of each leaf, as `sampled_rows` returns them.
        camp: bool `[M]`, whose votes are summed.
        margin: float scalar, in votes.
        axis_name: mesh axis, or axes, that the coordinates are split over, or None.

    Returns:
        Three float32 `[M]`: the agreement on all coordinates and on the sure ones, in
        [-1, 1], 0 where there are none; and on how many sure ones each worker voted.

    Examples:
        >>> votes = jnp.array([[1, 1, 1], [1, 1, 0], [1, -1, -1]], jnp.int8)
        >>> camp = jnp.array([True, True, False])
        >>> print(camp_agreement([votes], camp, 2.0)[1])
        [1. 1. 0.]
    """
    narrow = jnp.int8 if camp.size <= jnp.iinfo(jnp.int8).max else jnp.int32

    def member(row):
        vote, counts = row
        return vote.astype(narrow) * counts, ()

    def count(leaf):
        tally, _ = over_workers(member, (leaf, camp.astype(narrow)), simple=True)
        side = jnp.sign(tally).astype(jnp.int8)
        sure = jnp.abs(tally).astype(jnp.float32) >= margin
        sides = jnp.stack([side, jnp.where(sure, side, jnp.int8(0))])
        return row_products(leaf, sides), row_products(jnp.abs(leaf), jnp.abs(sides))

    balance, voted = sum_over_leaves(list(map(count, rows)), axis_name)
    balance, voted = balance.astype(jnp.float32), voted.astype(jnp.float32)
    anywhere, where_sure = (balance / jnp.maximum(voted, 1.0)).T
    return anywhere, where_sure, voted[:, 1]

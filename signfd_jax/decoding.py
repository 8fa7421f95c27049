"""Decoding: from the votes of M workers to one sign per coordinate.

Shapes: `M` workers, `*leaf` the coordinates of one parameter leaf, `N` a flat
slice of coordinates. Votes and decoded signs are int8 in {-1, 0, +1}; weights are
log-likelihood ratios in nats. Tallies are exact int32 sums of fixed-point weights,
so that no result depends on the order of a sum: whole, chunked and distributed
decoding agree bit for bit.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int8, Int32

__all__ = [
    "DecodeInfo",
    "Decoder",
    "MajorityVoteState",
    "agreements",
    "check_number",
    "fixed_point",
    "llr_weights",
    "majority_vote",
    "mean_over_coordinates",
    "sum_over_axis",
    "vote_tree",
    "weighted_vote",
]


class DecodeInfo(NamedTuple):
    """What one decoding round tells about the workers: for eyes and plots.

    Attributes:
        weights: float32 `[M]`, weight of each worker's vote in this round (nats),
            the mean over coordinates where weights differ between them.
        crossover: float32 `[M]`, estimated probability that a vote is wrong, the
            mean over coordinates likewise. It includes the votes of this round.
        margin: float32 scalar in [0, 1]: |tally| over the sum of the |weights|,
            the mean over the coordinates that did not tie.
    """

    weights: jax.Array
    crossover: jax.Array
    margin: jax.Array


class Decoder(NamedTuple):
    """A rule that turns votes into decoded signs and learns from them.

    Attributes:
        init: `init(num_workers, params) -> state`. Reads only shapes of `params`.
        decode: `decode(state, votes, axis_name=None) -> (decoded, state, info)`.
            `votes` is a tree of int8 `[M, ...]` in {-1, 0, +1}, `decoded` the tree
            of int8 `[...]`, `info` a `DecodeInfo`. With `axis_name`, the votes hold
            this device's slice of the coordinates, and statistics pooled over
            coordinates are summed over that mesh axis.
        weights: `weights(state)`: the weights that the next `decode` would use, for
            inspection: float32 `[M]` where all coordinates share them, else a tree
            of `[M, ...]`.

    Examples:
        >>> decoder = majority_vote()
        >>> state = decoder.init(3, jnp.zeros(2))
        >>> votes = jnp.array([[1, -1], [1, 1], [-1, -1]], jnp.int8)
        >>> decoded, state, info = decoder.decode(state, votes)
        >>> print(decoded, info.weights)
        [ 1 -1] [1. 1. 1.]
    """

    init: Callable[..., Any]
    decode: Callable[..., Any]
    weights: Callable[..., Any]


@jax.jit
def llr_weights(
    crossover: Float[Array, "*shape"], *, max_llr: float | Float[Array, ""] = 10.0
) -> Float[Array, "*shape"]:
    r"""Log-likelihood-ratio weight of a vote that is wrong with a given probability.

    A worker whose vote differs from the true gradient sign with probability $p_m$
    is a binary symmetric channel. If the channels are independent, the maximum-
    likelihood decoder weights its vote by $w_m = \ln\frac{1 - p_m}{p_m}$. The weight
    is zero at $p_m = 1/2$ (the vote says nothing) and negative above it: a worker
    that is usually wrong is read backwards, not thrown away.

    Args:
        crossover: probabilities $p$, float of any shape, in [0, 1].
        max_llr: weights are clipped to [-max_llr, max_llr] (nats, positive scalar),
            so that a worker never seen to err cannot silence all the others.

    Returns:
        Weights in nats, of the shape and dtype of `crossover`; finite for every
        input in [0, 1], and of the sign of $1/2 - p_m$, however near. A NaN gives NaN.

    Examples:
        >>> print(llr_weights(jnp.array([0.0, 0.1, 0.5, 0.9, 1.0])).round(2))
        [ 10.    2.2   0.   -2.2 -10. ]

    References:
        Nitzan and Paroush, Optimal decision rules in uncertain dichotomous choice
        situations, 1982; Park and Lee, [SignSGD with Federated Defense](
        https://arxiv.org/abs/2402.01340), ICML 2024.
    """
    is_short = jnp.finfo(crossover.dtype).bits < 32
    p = crossover.astype(jnp.float32) if is_short else crossover
    rarer = jnp.minimum(p, 1 - p)
    # ln((1 - p) / p), without the difference of two logarithms: all bits near p = 1/2.
    size = jnp.log1p((1 - 2 * rarer) / rarer)
    size = jnp.minimum(size, jnp.asarray(max_llr, p.dtype))
    return (jnp.sign(0.5 - p) * size).astype(crossover.dtype)


def weighted_vote(
    votes: Int8[Array, "M *leaf"],
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
    units, _ = fixed_point(weights, largest=largest)
    units = units.reshape(units.shape + (1,) * (votes.ndim - units.ndim))
    tally = jnp.sum(units * votes.astype(jnp.int32), axis=0, dtype=jnp.int32)
    total = jnp.sum(jnp.abs(units), axis=0, dtype=jnp.int32)
    margin = jnp.abs(tally).astype(jnp.float32) / jnp.maximum(
        total.astype(jnp.float32), 1.0
    )
    return jnp.sign(tally).astype(jnp.int8), margin


def fixed_point(
    weights: Float[Array, "M *leaf"], *, largest: float | Float[Array, ""]
) -> tuple[Int32[Array, "M *leaf"], Float[Array, ""]]:
    r"""Weights as integers, whose sums over the workers are exact in any order.

    The unit is `largest` $M / 2^{30}$, so that no sum over M workers can overflow; a
    weight is rounded away from zero, so that none is too small to count.

    Args:
        weights: float `[M, ...]` (nats).
        largest: a bound on |weights|, float scalar.

    Returns:
        int32 `[M, ...]`, and the number of units in one nat, float32 scalar.

    Examples:
        >>> units, scale = fixed_point(jnp.array([1.0, -0.5]), largest=1.0)
        >>> print(units)
        [ 536870912 -268435456]
    """
    bound = jnp.maximum(jnp.asarray(largest, jnp.float32), jnp.finfo(jnp.float32).tiny)
    scale = jnp.float32(2**30 / max(weights.shape[0], 1)) / bound
    weights = weights.astype(jnp.float32)
    units = jnp.sign(weights) * jnp.ceil(jnp.abs(weights) * scale)
    return units.astype(jnp.int32), scale


def agreements(
    votes: Int8[Array, "M *leaf"], decoded: Int8[Array, "*leaf"]
) -> tuple[Int32[Array, " M"], Int32[Array, " M"]]:
    """Count the votes of each worker that agree with the decoded signs.

    Abstentions and decoded ties are counted neither way.

    Args:
        votes: int8 `[M, ...]` in {-1, 0, +1}.
        decoded: int8 `[...]` in {-1, 0, +1}.

    Returns:
        int32 `[M]`, the agreeing votes, and int32 `[M]`, the votes that were
        counted. Both are exact for fewer than 2**31 coordinates.

    Examples:
        >>> votes = jnp.array([[1, 1, -1, 0], [1, -1, 1, 1]], jnp.int8)
        >>> agreed, counted = agreements(votes, jnp.array([1, 1, 0, 1], jnp.int8))
        >>> print(agreed, counted)
        [2 2] [2 3]
    """
    votes = votes.reshape(votes.shape[0], -1)
    decoded = decoded.reshape(-1)
    balance = _row_sums(votes, decoded)
    counted = _row_sums(jnp.abs(votes), jnp.abs(decoded))
    # (counted + balance) // 2, which are both odd or both even, without the overflow.
    return (counted >> 1) + (balance >> 1) + (counted & 1), counted


def _row_sums(
    rows: Int8[Array, "M N"], column: Int8[Array, " N"]
) -> Int32[Array, " M"]:
    """Exact products of every row with one column."""
    # Eight equal columns: XLA's CPU backend has a fast int8 matrix product, but
    # its matrix-vector product and its row sums are ten times slower.
    columns = jnp.broadcast_to(column, (8, column.shape[0]))
    contract_last = (((1,), (1,)), ((), ()))
    return lax.dot_general(
        rows, columns, contract_last, preferred_element_type=jnp.int32
    )[:, 0]


def sum_over_axis(values, axis_name: str | None):
    """Sum over a mesh axis, or nothing to do where there is none.

    Args:
        values: tree of arrays of any shape.
        axis_name: name of the axis that the coordinates are split over, or None.

    Returns:
        Tree of the same shapes.

    Examples:
        >>> print(sum_over_axis(jnp.arange(3), None))
        [0 1 2]
    """
    return values if axis_name is None else lax.psum(values, axis_name)


def mean_over_coordinates(values, axis_name: str | None = None):
    """Mean of each worker's values over all coordinates.

    Args:
        values: float `[M]`, or a tree of `[M, ...]`.
        axis_name: mesh axis that the coordinates are split over, or None.

    Returns:
        float32 `[M]`; of an array `[M]`, itself.

    Examples:
        >>> print(mean_over_coordinates({"w": jnp.array([[1.0, 3.0], [5.0, 5.0]])}))
        [2. 5.]
    """
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(values)]
    total = sum(jnp.sum(leaf, axis=1) for leaf in leaves)
    size = jnp.float32(sum(leaf.shape[1] for leaf in leaves))
    total, size = sum_over_axis((total, size), axis_name)
    return total / size


def vote_tree(votes, weights, *, largest, axis_name: str | None = None):
    """Weighted vote over every leaf of a tree, with each worker's agreement.

    Args:
        votes: tree of int8 `[M, ...]` in {-1, 0, +1}.
        weights: float `[M]`, or a tree like `votes` of `[M, ...]` (nats).
        largest: a bound on |weights|, float scalar (see `weighted_vote`).
        axis_name: mesh axis that the coordinates are split over, or None.

    Returns:
        `(decoded, agreed, counted, margin)`: tree of int8 `[...]`; int32 `[M]` and
        int32 `[M]` as `agreements` counts them, over all leaves and devices;
        float32 scalar, the mean margin of the coordinates that did not tie.

    Examples:
        >>> votes = {"w": jnp.array([[1, -1], [1, 1], [-1, -1]], jnp.int8)}
        >>> decoded, agreed, counted, _ = vote_tree(votes, jnp.ones(3), largest=1.0)
        >>> print(decoded["w"], agreed, counted)
        [ 1 -1] [2 1 1] [2 2 2]
    """
    leaves, treedef = jax.tree.flatten(votes)
    if isinstance(weights, jax.Array):
        weight_leaves = [weights] * len(leaves)
    else:
        weight_leaves = treedef.flatten_up_to(weights)
    decoded, sums = [], []
    for leaf, weight in zip(leaves, weight_leaves, strict=True):
        signs, margins = weighted_vote(leaf, weight, largest=largest)
        decided = jnp.sum(signs != 0, dtype=jnp.int32).astype(jnp.float32)
        sums.append((*agreements(leaf, signs), jnp.sum(margins), decided))
        decoded.append(signs)
    totals = [functools.reduce(jnp.add, parts) for parts in zip(*sums, strict=True)]
    agreed, counted, margin, decided = sum_over_axis(totals, axis_name)
    return (
        jax.tree.unflatten(treedef, decoded),
        agreed,
        counted,
        margin / jnp.maximum(decided, 1.0),
    )


class MajorityVoteState(NamedTuple):
    """State of `majority_vote`.

    Attributes:
        mv_weights: float32 `[M]`, all one.
    """

    mv_weights: jax.Array


def majority_vote() -> Decoder:
    r"""Every vote weighs the same.

    $\hat U_n = \operatorname{sign} \sum_m Y_{m,n}$; nothing is learned.
    `info.crossover` is the share of this round's votes that lost
    (`(errors + 1) / (votes + 2)`), for inspection only.

    Returns:
        A `Decoder`.

    Examples:
        >>> decoder = majority_vote()
        >>> votes = jnp.array([[1, 1], [1, -1], [1, 0]], jnp.int8)
        >>> decoded, _, _ = decoder.decode(decoder.init(3, jnp.zeros(2)), votes)
        >>> print(decoded)
        [1 0]

    References:
        Bernstein et al., [signSGD with majority vote is communication efficient and
        fault tolerant](https://arxiv.org/abs/1810.05291), ICLR 2019.
    """

    def init(num_workers, params):
        del params
        return MajorityVoteState(jnp.ones((num_workers,), jnp.float32))

    def decode(state, votes, axis_name=None):
        weights = jnp.ones_like(state.mv_weights)
        decoded, agreed, counted, margin = vote_tree(
            votes, weights, largest=1.0, axis_name=axis_name
        )
        losses = (counted - agreed).astype(jnp.float32)
        crossover = (losses + 1) / (counted.astype(jnp.float32) + 2)
        return decoded, state, DecodeInfo(weights, crossover, margin)

    return Decoder(init, decode, lambda state: state.mv_weights)


def check_number(name: str, value, low: int | float, high: int | float) -> None:
    """Refuse a Python number out of range; an array may be traced and passes.

    Args:
        name: the argument's name, for the message.
        value: a number, or a scalar array.
        low: smallest value allowed.
        high: largest value allowed.

    Raises:
        ValueError: `value` is a Python number out of range, or no number at all.

    Examples:
        >>> check_number("forgetting", 0.9, 0, 1)
    """
    if isinstance(value, bool | str) or value is None:
        raise ValueError(f"{name} must be a number, but is {value!r}")
    if isinstance(value, int | float) and not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low}, {high}], but is {value}")

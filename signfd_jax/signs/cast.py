"""Votes: the sign that a worker sends for each coordinate, and its one-bit wire.

Shapes: `M` workers, `*leaf` the coordinates of one parameter leaf, `N`
coordinates in all. A vote is an int8 in {-1, 0, +1}; 0 is an abstention. `WIRES` are
the alphabets: "ternary" with abstentions, "one_bit" without.
"""

import itertools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int8, Num, UInt32

from signfd_jax._checks import check_choice, check_mask
from signfd_jax.signs._leaves import group_leaves
from signfd_jax.signs._totals import check_coordinates, exact_total

__all__ = [
    "WIRES",
    "cast_votes",
    "check_wire",
    "fill_ties",
    "present_workers",
    "sign_error",
    "to_wire",
    "votes",
]

WIRES = ("ternary", "one_bit")
"""The alphabets of the votes: with abstentions, or without."""

_SERVER = 0xFFFFFFFF  # The index under which the server fills its own ties.


def votes(gradients):
    r"""Sign of every gradient coordinate, with abstentions.

    $Y_{m,n} = \operatorname{sign}(g_{m,n})$, where zero (of either sign) and NaN
    abstain: their vote is 0. $\pm\infty$ votes with its sign. A denormal float32 or
    bfloat16 (below 1.2e-38) abstains where XLA takes it for zero, as it does on a CPU,
    and as `jnp.sign` does; a denormal float16 votes.

    Args:
        gradients: tree of real arrays of any shape; no unit matters but the sign.

    Returns:
        Tree of int8 of the same shapes, in {-1, 0, +1}.

    Raises:
        ValueError: a leaf is complex, which has no sign.

    Examples:
        >>> g = jnp.array([2.5, -0.0, -1e-30, jnp.nan, -jnp.inf])
        >>> print(votes(g))
        [ 1  0 -1  0 -1]

    References:
        Bernstein et al., [signSGD](https://arxiv.org/abs/1802.04434), ICML 2018.
    """
    # As JAX's own array, a NumPy float64 is compared without a warning.
    return jax.tree.map(lambda gradient: _votes(jnp.asarray(gradient)), gradients)


def _votes(gradient: Num[Array, "*shape"]) -> Int8[Array, "*shape"]:
    if jnp.issubdtype(gradient.dtype, jnp.complexfloating):
        raise ValueError(
            f"a gradient leaf has dtype {gradient.dtype}, and a complex number has no "
            "sign; split it into real and imaginary parts (optax.contrib."
            "split_real_and_imaginary) before the votes are taken"
        )
    zero = jnp.zeros((), gradient.dtype)
    return (gradient > zero).astype(jnp.int8) - (gradient < zero).astype(jnp.int8)


def present_workers(gradients) -> Bool[Array, " M"]:
    """Which workers sent at least one finite number.

    On a one-bit wire nobody can abstain coordinate by coordinate; a worker whose
    gradient is wholly non-finite is marked absent instead, in a mask of M bits.

    Args:
        gradients: tree of real `[M, ...]` arrays.

    Returns:
        bool `[M]`: True where any coordinate of any leaf is finite.

    Examples:
        >>> print(present_workers({"w": jnp.array([[1.0, jnp.nan], [jnp.nan] * 2])}))
        [ True False]
    """
    finite = [
        jnp.any(jnp.isfinite(leaf).reshape(leaf.shape[0], -1), axis=1)
        for leaf in group_leaves(gradients).join(gradients)
    ]
    return jnp.any(jnp.stack(finite), axis=0)


def check_wire(wire: str) -> None:
    """Refuse a wire that there is not.

    Args:
        wire: one of `WIRES`.

    Raises:
        ValueError: it is another.

    Examples:
        >>> check_wire("ternary")
    """
    check_choice("wire", wire, WIRES)


def cast_votes(gradients, round, *, wire="ternary", present=None, first_worker=0):
    """What the workers put on the wire: the signs of their gradients.

    Args:
        gradients: tree of real `[M, ...]`.
        round: int32 scalar, the round; may be traced.
        wire: "ternary"; or "one_bit": abstentions are filled as in `to_wire`, and a
            wholly non-finite worker counts as absent.
        present: bool `[M]`; the others abstain. None: all are.
        first_worker: index of the first row, int scalar, when these are a chunk.

    Returns:
        Tree of int8 `[M, ...]` in {-1, 0, +1}.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> gradients = jnp.array([[0.3, -2.0], [1.0, jnp.nan]])
        >>> print(cast_votes(gradients, 0))
        [[ 1 -1]
         [ 1  0]]
    """
    check_wire(wire)
    cast = votes(gradients)
    if not jax.tree.leaves(cast):
        return cast
    if present is not None:
        present = _mask_of(cast, present)
    if wire == "one_bit":
        finite = present_workers(gradients)
        present = finite if present is None else finite & present
        return to_wire(cast, round, present=present, first_worker=first_worker)
    if present is None:
        return cast
    return jax.tree.map(
        lambda v: v * present.astype(jnp.int8).reshape((-1,) + (1,) * (v.ndim - 1)),
        cast,
    )


def _mask_of(votes, present) -> Bool[Array, " M"]:
    """The mask as an array, if it is one of the workers of these votes."""
    for leaf in jax.tree.leaves(votes):
        check_mask("present", present, leaf.shape[0])
    return jnp.asarray(present)


def to_wire(votes, round, *, present=None, first_worker=0, first_coordinate=0):
    r"""Replace every abstention by a fixed pseudo-random bit.

    A one-bit wire carries no 0. An abstention of worker m at coordinate n in
    round t becomes $\pm 1$ by the top bit of an integer hash (the finaliser of
    MurmurHash3) of (m, n, t). No key is needed, both ends can compute it, and the
    fillings of two workers are uncorrelated.

    Args:
        votes: tree of int8 `[M, ...]` in {-1, 0, +1}.
        round: int32 scalar, the round t; may be traced.
        present: bool `[M]`; the rows of absent workers become 0 (they are marked
            in the mask that travels beside the bits). None: all are present.
        first_worker: index of the first row, int scalar, when `votes` is a chunk.
        first_coordinate: index of the first coordinate when `votes` is a slice: a
            Python int, an int32 scalar, or two uint32 scalars, that of 2**32 and the
            rest. Coordinates are numbered along the ravelled leaves in order.

    Returns:
        Tree of int8 `[M, ...]`: -1 or +1 in the rows of the present workers.

    Raises:
        ValueError: `present` is no mask of the workers, or there are more coordinates
            than 2**40, or 2**31 in one leaf.

    Examples:
        >>> sent = to_wire(jnp.array([[1, 0, 0, -1, 0]], jnp.int8), 0)
        >>> print(sent[0, 0], sent[0, 3], jnp.abs(sent))
        1 -1 [[1 1 1 1 1]]

    References:
        Appleby, [MurmurHash3](https://github.com/aappleby/smhasher) (fmix32).
    """
    if present is not None:
        present = _mask_of(votes, present)

    def fill(leaf, coordinates):
        row = jnp.arange(leaf.shape[0], dtype=jnp.uint32)
        workers = jnp.asarray(first_worker, jnp.uint32) + row
        bits = _filling(workers, round, coordinates)
        sent = jnp.where(leaf == 0, bits.reshape(leaf.shape), leaf)
        if present is None:
            return sent
        rows = present.reshape((-1,) + (1,) * (leaf.ndim - 1))
        return jnp.where(rows, sent, jnp.int8(0))

    return _map_with_offset(fill, votes, first_coordinate, has_workers=True)


def fill_ties(decoded, round, *, first_coordinate=0):
    """Replace every decoded tie by a fixed pseudo-random bit, on the way down.

    The same hash as `to_wire`, under the server's own index.

    Args:
        decoded: tree of int8 `[...]` in {-1, 0, +1}.
        round: int32 scalar, the round; may be traced.
        first_coordinate: index of the first coordinate when `decoded` is a slice.

    Returns:
        Tree of int8 `[...]` in {-1, +1}.

    Examples:
        >>> print(jnp.abs(fill_ties(jnp.array([1, 0, 0, -1], jnp.int8), 3)))
        [1 1 1 1]
    """

    def fill(leaf, coordinates):
        bits = _filling(jnp.array([_SERVER], jnp.uint32), round, coordinates)
        return jnp.where(leaf == 0, bits.reshape(leaf.shape), leaf)

    return _map_with_offset(fill, decoded, first_coordinate, has_workers=False)


def _map_with_offset(fill, tree, first_coordinate, *, has_workers):
    """Apply `fill(leaf, what to hash of its coordinates)` to every leaf."""
    axes = int(has_workers)
    check_coordinates(
        jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[axes:], leaf.dtype), tree
        )
    )
    groups = group_leaves(tree, num_axes=axes)
    leaves = groups.join(tree)
    sizes = [math.prod(leaf.shape[axes:]) for leaf in leaves]
    offsets = itertools.accumulate(sizes[:-1], initial=0)
    filled = [
        fill(leaf, _coordinates(first_coordinate, offset, size))
        for leaf, offset, size in zip(leaves, offsets, sizes, strict=False)
    ]
    return groups.split(filled)


def _coordinates(first, offset: int, size: int) -> UInt32[Array, " size"]:
    """What to hash of the numbers of `size` coordinates, `offset` after `first`."""
    golden = jnp.uint32(0x9E3779B9)
    places = jnp.arange(size, dtype=jnp.uint32)
    if not isinstance(first, jax.Array | tuple):
        first, offset = 0, int(first) + offset
    known_below = 2**31 if isinstance(first, jax.Array) else 1
    if not isinstance(first, tuple) and known_below + offset + size <= 2**32:
        return (jnp.asarray(first, jnp.uint32) + jnp.uint32(offset) + places) * golden
    high, low = first if isinstance(first, tuple) else (0, first)
    step = jnp.uint32(offset % 2**32)
    low = jnp.asarray(low, jnp.uint32) + step
    high = jnp.asarray(high, jnp.uint32) + jnp.uint32(offset // 2**32)
    high += (low < step).astype(jnp.uint32)
    places += low
    # A leaf lies in two stretches of 2**32 coordinates at most. The first of all
    # stretches adds nothing, since 0 is what 0 is mixed to.
    stretch = jnp.where(places < low, _mix(high + jnp.uint32(1)), _mix(high))
    return places * golden ^ stretch


def _filling(
    workers: UInt32[Array, " M"], round, coordinates: UInt32[Array, " N"]
) -> Int8[Array, "M N"]:
    """The bit in {-1, +1} that stands for each abstention."""
    golden = jnp.uint32(0x9E3779B9)
    row = _mix(workers * golden + _mix(jnp.asarray(round, jnp.uint32)))
    mixed = _mix(coordinates[None, :] ^ row[:, None])
    return jnp.int8(1) - jnp.int8(2) * (mixed >> jnp.uint32(31)).astype(jnp.int8)


def _mix(word: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """The 32-bit finaliser of MurmurHash3: every input bit flips half the outputs."""
    word = (word ^ (word >> jnp.uint32(16))) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> jnp.uint32(13))) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> jnp.uint32(16))


def sign_error(decoded, truth, unmeasured: float = math.nan) -> Float[Array, ""]:
    """Share of the coordinates that were decoded to another sign than the true one.

    Args:
        decoded: tree of int8 `[...]` in {-1, 0, +1}.
        truth: tree of int8 `[...]`; where it is 0 nothing is counted.
        unmeasured: what to give where `truth` is 0 everywhere (float).

    Returns:
        float32 scalar in [0, 1]; a decoded tie counts as an error.

    Examples:
        >>> print(sign_error(jnp.array([1, -1, 1]), jnp.array([1, 1, 0])))
        0.5
    """
    groups = group_leaves(decoded, truth, num_axes=0)
    truth = groups.join(jax.tree.unflatten(groups.treedef, jax.tree.leaves(truth)))
    pairs = list(zip(groups.join(decoded), truth, strict=True))
    wrong = exact_total([jnp.sum((t != 0) & (d != t)) for d, t in pairs])
    counted = exact_total([jnp.sum(t != 0) for _, t in pairs])
    return jnp.where(counted > 0, wrong / jnp.maximum(counted, 1.0), unmeasured)

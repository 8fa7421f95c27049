"""How often two workers vote alike, counted on a sample of the coordinates.

Shapes: `M` workers, `K` of them a committee, `N` coordinates in all, `S` sampled ones.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int8, Shaped

from signfd_jax.signs._leaves import group_leaves
from signfd_jax.signs._packed_rows import take_coordinates
from signfd_jax.signs._products import row_products, sum_of_rows
from signfd_jax.signs._tally import fixed_point, sum_over_axis
from signfd_jax.signs._visits import over_workers


def sample_size(few: bool, said: int | None = None) -> int:
    """Coordinates that are sampled: as many as is said, or by whether few vote."""
    return (8192 if few else 512) if said is None else said


def sampled_votes(
    key,
    votes,
    size: int,
    axis_name: str | tuple[str, ...] | None = None,
) -> Int8[Array, "M S"]:
    """The votes on one coordinate of each of about `size` blocks of equal length.

    See `sampled`.
    """
    return sampled(key, votes, size, axis_name)[0]


def sampled(
    key, tree, size: int, axis_name: str | tuple[str, ...] | None = None
) -> tuple[Shaped[Array, "M S"], Bool[Array, " S"]]:
    """What leaves `[M, ...]` have on the sampled coordinates, and which are there.

    Coordinates are numbered leaf after leaf, and padded to a multiple of `8 M` as on a
    mesh. So the sample is the same for votes that are whole, packed, or split over the
    devices; a device sees 0 where a sampled coordinate is not its own.
    """
    leaves = group_leaves(tree).join(tree)
    num_workers = leaves[0].shape[0] if leaves else 1
    lengths = [math.prod(leaf.shape[1:]) for leaf in leaves]
    total, starts = _padded(sum(lengths), num_workers, axis_name)
    block = max(1, -(-total // size))
    num_blocks = -(-total // block)
    chosen = jnp.zeros((num_blocks,), jnp.int32)
    if block > 1:
        # Uniform but for block / 2**32, and half of `randint`'s compile time.
        chosen = jax.random.bits(key, (num_blocks,), jnp.uint32) % jnp.uint32(block)
        chosen = chosen.astype(jnp.int32)
    parts, begin = [], 0
    for leaf, length in zip(leaves, lengths, strict=True):
        if length:
            places, inside = _places(
                chosen, block, [s + begin for s in starts], length, axis_name
            )
            taken = take_coordinates(leaf, places)
            parts.append((taken * inside.astype(taken.dtype)[None], inside))
        begin += length
    if not parts:
        return jnp.zeros((num_workers, 0), jnp.int8), jnp.zeros((0,), bool)
    if len(parts) == 1:
        return parts[0]
    rows, inside = zip(*parts, strict=True)
    return jnp.concatenate(rows, axis=1), jnp.concatenate(inside)


def inspected(tree, num_workers: int, axis_name: str | tuple[str, ...] | None):
    """`sampled` on always the same coordinates, for what is only looked at."""
    return sampled(jax.random.key(0), tree, sample_size(num_workers <= 64), axis_name)


def sampled_mean(
    values: Float[Array, "M S"],
    inside: Bool[Array, " S"],
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, " M"]:
    """Mean of each row over the sampled coordinates that are there, on all devices."""
    mask = inside.astype(jnp.float32)
    total, size = sum_over_axis((values @ mask, jnp.sum(mask)), axis_name)
    return total / jnp.maximum(size, 1.0)


def sampled_vote(
    rows: Int8[Array, "M S"],
    weights: Float[Array, " M"],
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[Int8[Array, " S"], Float[Array, ""]]:
    """What a sample decodes to by weights up to 1, and the mean margin of it."""
    units, _ = fixed_point(weights, largest=1.0, num_workers=rows.shape[0])
    tally, _ = over_workers(
        lambda row: (row[0] * row[1].astype(jnp.int32), ()), (units, rows), simple=True
    )
    # Byte by byte: integers that do not overflow, whose sums do not depend on an order.
    shifts = jnp.array([0, 8, 16, 24], jnp.int32)[:, None]
    parts = (jnp.abs(tally)[None] >> shifts) & 255
    parts = jnp.concatenate([parts, (tally != 0).astype(jnp.int32)[None]])
    sums = jnp.sum(parts, axis=1, dtype=jnp.int32)
    sums = sums if axis_name is None else lax.psum(sums, axis_name)
    *sums, decided = sums.astype(jnp.float32)
    total = sum(part * 256.0**n for n, part in enumerate(sums))
    most = jnp.sum(jnp.abs(units), dtype=jnp.int32).astype(jnp.float32)
    mean = total / jnp.maximum(decided, 1.0)
    return jnp.sign(tally).astype(jnp.int8), mean / jnp.maximum(most, 1.0)


def _padded(length, num_workers, axis_name) -> tuple[int, list[int]]:
    """Number of coordinates with padding, and where each device's slice begins."""
    if axis_name is None:
        multiple = 8 * num_workers
        return multiple * -(-length // multiple), [0]
    num_devices = lax.axis_size(axis_name)
    return length * num_devices, [d * length for d in range(num_devices)]


def _places(chosen, block: int, starts: list[int], length: int, axis_name) -> Any:
    """Sampled places along a stretch of the coordinates, and which of them lie in it.

    `starts` has the number of its first coordinate on each device.
    """
    count = min((length - 2) // block + 2, len(chosen))
    first = [min(start // block, len(chosen) - count) for start in starts]
    offset = [index * block - start for index, start in zip(first, starts, strict=True)]
    index, shift = first[0], offset[0]
    if axis_name is not None:
        # Python integers: the number of a coordinate may not fit into int32.
        device = lax.axis_index(axis_name)
        index, shift = (jnp.array(of, jnp.int32)[device] for of in (first, offset))
    drawn = lax.dynamic_slice_in_dim(chosen, index, count)
    places = shift + jnp.arange(count, dtype=jnp.int32) * block + drawn
    inside = (places >= 0) & (places < length)
    return jnp.clip(places, 0, length - 1), inside


def pair_counts(
    members: Int8[Array, "K S"],
    votes: Int8[Array, "M S"],
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[Float[Array, "K M"], Float[Array, "K M"]]:
    r"""Agreements minus disagreements of each pair, and their common votes.

    $\sum_s Y_{k,s} Y_{m,s}$ and $\sum_s |Y_{k,s}| |Y_{m,s}|$: exact integers, so that
    they do not depend on any order.
    """
    counts = (
        row_products(members, votes),
        row_products(jnp.abs(members), jnp.abs(votes)),
    )
    if axis_name is not None:
        counts = lax.psum(counts, axis_name)
    balance, pairs = counts
    return balance.astype(jnp.float32), pairs.astype(jnp.float32)


def noise_of_a_round(state, voted, known, strength, pairs):
    """Variance of one round's |correlations|, which no change of sides disturbs."""
    scatter = jnp.where(known, (strength - state.cd_strength) ** 2, 0.0)
    scatter = jnp.sum(scatter) / jnp.maximum(count(known), 1.0)
    # What has nothing to be compared with has the noise of nearly independent signs.
    common = jnp.sum(jnp.where(voted, pairs, 0.0))
    first = 4 * count(voted) / jnp.maximum(common, 1.0)
    first = jnp.where(common > 0, first, state.cd_noise)
    second = jnp.max(state.cd_rounds) <= 1
    mean = jnp.where(second, scatter / 2, 0.9 * state.cd_noise + 0.1 * scatter)
    # Few pairs have a small scatter by chance: never below that of independent signs.
    noise = jnp.where(count(known) > 0, jnp.maximum(mean, first / 4), first)
    return jnp.maximum(noise, 1e-9)


def batches_shared(exact, members, now, voted, here):
    """Whether exact duplicates show that workers share batches, in [0, 1]."""
    same = jnp.where(voted, near_one(now, exact), 0.0)
    with_one = jnp.sum(jnp.max(same, axis=0)) - count(here) / 2
    # Another group: a pair of which nobody belongs to the largest one.
    largest = jnp.argmax(jnp.sum(same, axis=1))
    inside = same[largest].at[members[largest]].set(1.0)
    apart = same * (1 - inside[members])[:, None] * (1 - inside)[None]
    return jnp.maximum(jnp.clip(2 * with_one, 0.0, 1.0), jnp.max(apart))


def count(mask):
    """How many, as float32."""
    return jnp.sum(mask.astype(jnp.float32))


def over_members(values: Shaped[Array, "K M"]) -> Float[Array, " M"]:
    """Sum of each column, float32."""
    return sum_of_rows(values.astype(jnp.float32))


def ramp(value, start):
    """0 up to `start`, 1 from twice it on, and a line between."""
    return jnp.clip(value / start - 1, 0.0, 1.0)


def near_one(correlation, distance):
    """1 where |correlation| is up to `distance` from 1, 0 from twice it on."""
    return 1 - ramp(1 - jnp.abs(correlation), distance)


def median(values, seen):
    """Median over the workers that were seen."""
    ascending = jnp.sort(jnp.where(seen, values, jnp.inf))
    number = jnp.maximum(jnp.sum(seen, dtype=jnp.int32), 1)
    return (ascending[(number - 1) // 2] + ascending[number // 2]) / 2

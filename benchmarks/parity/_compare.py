"""What is compared, on which rows, and how far apart the two are."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from signfd_jax import aggregators, attacks
from signfd_jax.aggregators import Rule
from signfd_jax.attacks import Attack, AttackContext

M, D, F = 15, 1000, 3


def rows_of(draw: int) -> np.ndarray:
    """Noisy copies of one vector, F of them shifted far away, in random order."""
    rng = np.random.default_rng(draw)
    rows = rng.normal(size=D) + 0.5 * rng.normal(size=(M, D))
    rows[:F] += 3 * rng.normal(size=D)
    return rng.permutation(rows).astype(np.float32)


def rows_scattered(draw: int) -> np.ndarray:
    """Points of a plane, so scattered that rules that choose rows choose differently.

    In some draw Krum and Multi-Krum choose others with one neighbour more, and with
    distances of another power.
    """
    rng = np.random.default_rng(draw)
    points = rng.standard_t(2.6, size=(M, 2)) @ rng.normal(size=(2, D))
    rows = rng.normal(size=D) + points + 0.1 * rng.normal(size=(M, D))
    return rows.astype(np.float32)


def rows_of_two_signs(draw: int) -> np.ndarray:
    """As `rows_of`, but F rows have mostly negative signs, the others positive."""
    rng = np.random.default_rng(draw)
    rows = np.abs(rng.normal(size=D)) + 0.5 * rng.normal(size=(M, D))
    rows[:F] *= -1
    return rng.permutation(rows).astype(np.float32)


def rows_of_three_groups(draw: int) -> np.ndarray:
    """Noisy copies of three vectors: of two honest ones, and F nearly alike of one."""
    rng = np.random.default_rng(draw)
    group = np.minimum(np.arange(M) // F, 2)
    noise = np.array([0.1, 0.3, 0.5])[group, None]
    rows = rng.normal(size=(3, D))[group] + noise * rng.normal(size=(M, D))
    return rng.permutation(rows).astype(np.float32)


def rows_unlike(draw: int) -> np.ndarray:
    """Rows of norm 1 that have something in common, the one more than the other."""
    rng = np.random.default_rng(draw)
    common = np.linspace(0, 2, M)[:, None] * rng.normal(size=D)
    rows = common + rng.normal(size=(M, D))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rng.permutation(rows).astype(np.float32)


def rows_far_apart(draw: int) -> np.ndarray:
    """As `rows_of`, but each of the F rows is far away in a direction of its own."""
    rng = np.random.default_rng(draw)
    rows = rng.normal(size=D) + 0.5 * rng.normal(size=(M, D))
    rows[np.arange(F), rng.permutation(D)[:F]] += 30 * (1 + np.arange(F))
    return rng.permutation(rows).astype(np.float32)


def rows_of_descent(draw: int) -> np.ndarray:
    """Six gradients on the way down a noisy parabola."""
    rng = np.random.default_rng(draw)
    slope, point, rows = rng.uniform(0.1, 2, size=D), rng.normal(size=D), []
    for _ in range(6):
        rows.append(slope * point + 0.1 * rng.normal(size=D))
        point = point - 0.1 * rows[-1]
    return np.array(rows, np.float32)


class Pair(NamedTuple):
    """A function of another library's beside ours.

    Attributes:
        theirs: `(the library, rows float64 [M, D]) -> array`.
        ours: `(rows float32 [M, D]) -> array` of the same shape.
        definition: how the two definitions differ, and what bridges it.
        rows: `(draw) -> rows float32 [M, D]`.
    """

    theirs: Callable[[Any, np.ndarray], Any]
    ours: Callable[[jax.Array], jax.Array]
    definition: str = ""
    rows: Callable[[int], np.ndarray] = rows_of


class Peer(NamedTuple):
    """A library.

    Attributes:
        name: as `docs/peers.md` has it.
        load: `(folder of the clones) -> (what `theirs` takes, {part: version})`.
        pairs: what is compared.
        not_compared: of its names that `docs/peers.md` finds here, those that are not
            compared, and why.
        clones: its folders among the clones and a file that must be in each; none if
            it comes from pip.
    """

    name: str
    load: Callable[[Path], tuple[Any, dict[str, str]]]
    pairs: dict[str, Pair]
    not_compared: dict[str, str]
    clones: tuple[tuple[str, str], ...] = ()


def corrupt(attack: Attack, rows: jax.Array) -> jax.Array:
    """What the Byzantine workers of ours send, the last F, seeing the honest others."""
    byzantine = jnp.arange(M) >= M - F
    context = AttackContext(jnp.int32(0), None)
    state = attack.init(M, rows[0])
    sent, _ = attack.apply(jax.random.key(1), rows, byzantine, context, state)
    return sent[-1]


def honest(rows: Any) -> Any:
    """The rows of the honest workers, the first M - F."""
    return rows[: M - F]


def two_rounds(rule: Rule, rows: jax.Array) -> jax.Array:
    """The aggregates of two rounds: of the rows, and of them in another order."""
    first, state = rule.aggregate(rule.init(*rows.shape), rows)
    return jnp.stack([first, rule.aggregate(state, later(rows))[0]])


def later(rows: Any) -> Any:
    """The rows of the second round: every worker sends half of what the next sent."""
    return rows[np.roll(np.arange(M), -1)] / 2


def shuffled(rows: np.ndarray) -> np.ndarray:
    """The rows in the order in which our bucketing shuffles them by key 2."""
    order = aggregators.bucketing(
        jax.random.key(2), jnp.arange(M, dtype=jnp.float32)[:, None], bucket_size=1
    )
    return rows[np.asarray(order[:, 0], int)]


def buckets(rows: jax.Array) -> jax.Array:
    """Our buckets of two by key 2."""
    return aggregators.bucketing(jax.random.key(2), rows, bucket_size=2)


def alie_mirrored(rows: jax.Array, wider: float = 1.0) -> jax.Array:
    """Our ALIE to the other side of the mean, by so many times the deviation."""
    centre = honest(rows).mean(0)
    return centre - wider * (corrupt(attacks.alie(None), rows) - centre)


def copied_by_mimic(rows: np.ndarray) -> int:
    """The worker that our mimic copies."""
    sent = np.asarray(corrupt(attacks.mimic(), jnp.asarray(rows, jnp.float32)))
    return int(np.argmin(np.abs(honest(rows) - sent).sum(1)))


def tensors(rows: np.ndarray) -> list[Any]:
    """A copy of the rows as PyTorch's tensors."""
    return list(importlib.import_module("torch").from_numpy(rows.copy()))


def difference(library: Any, pair: Pair, draws: int) -> float:
    """Largest difference, relative to the largest finite number that theirs gives.

    Args:
        library: what the peer's `load` gave.
        pair: what is compared.
        draws: draws of the rows.

    Returns:
        The difference; infinite where one is finite and the other is not.
    """
    largest = 0.0
    for draw in range(draws):
        rows = pair.rows(draw)
        theirs = np.asarray(pair.theirs(library, rows.astype(np.float64)), np.float64)
        ours = np.asarray(jax.jit(pair.ours)(jnp.asarray(rows)), np.float64)
        if theirs.shape != ours.shape:
            raise ValueError(f"theirs has shape {theirs.shape}, ours {ours.shape}")
        equal = theirs == ours  # infinities too
        finite = np.isfinite(theirs) & np.isfinite(ours)
        if not (equal | finite).all():
            return float("inf")
        theirs, ours = (np.where(finite, values, 0) for values in (theirs, ours))
        scale = np.abs(theirs).max() or 1.0
        off = np.abs(theirs - ours).max()
        largest = max(largest, float(off / scale))
    return largest

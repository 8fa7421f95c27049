"""How many heads workers count as: those that send the same votes share one.

Two honest workers are as alike as their reliabilities explain. Who is more alike than
that may be one attacker under several names, so heads are counted, not names.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from signfd_jax.evidence import ramp
from signfd_jax.medians import masked_median

__all__ = [
    "balance_of_heads",
    "count_copies",
    "count_pairs",
    "excuse_pairs",
    "worker_pairs",
]

_COPY = (0.10, 0.25)  # correlation beyond the rank-one prediction: a likely copy
_BLATANT_COPY = (0.50, 0.80)  # the same, trusted even where the model is not
_IDENTICAL = (0.90, 0.98)  # correlation that makes a copy whatever was predicted
_SLACK = 1.3  # by how much honest pairs may exceed the rank-one prediction


def worker_pairs(seen: Bool[Array, " M"]) -> Bool[Array, "M M"]:
    """Pairs of different workers that both have voted.

    Args:
        seen: bool `[M]`, workers that have voted.

    Returns:
        bool `[M, M]`.

    Examples:
        >>> print(worker_pairs(jnp.array([True, True, False])).astype(int))
        [[0 1 0]
         [1 0 0]
         [0 0 0]]
    """
    return (seen[:, None] & seen[None, :]) & ~jnp.eye(seen.shape[0], dtype=bool)


def count_copies(
    strength: Float[Array, "M M"], seen: Bool[Array, " M"]
) -> tuple[Float[Array, " M"], Float[Array, " M"]]:
    r"""Each worker and its likely copies; the same, of undoubted copies only.

    With $t_j$ the |correlation| that worker j exceeds with half of the others, $t_j t_k
    / \operatorname{median}(t)$ predicts honest pairs; a pair well above it is a copy,
    and so is one of nearly the same votes, whatever was predicted.

    Args:
        strength: float `[M, M]`, |correlation| of each pair; its diagonal is ignored.
        seen: bool `[M]`, workers that have voted; the others are nobody's copies.

    Returns:
        Two float32 `[M]`, at least 1.

    Examples:
        >>> strength = jnp.full((5, 5), 0.1).at[3, 4].set(1.0).at[4, 3].set(1.0)
        >>> likely, undoubted = count_copies(strength, jnp.ones(5, bool))
        >>> print(likely, undoubted)
        [1. 1. 1. 2. 2.] [1. 1. 1. 2. 2.]
    """
    pairs = worker_pairs(seen)
    strength = jnp.where(pairs, strength, 0.0)
    beyond = strength - _SLACK * _predicted(strength, pairs, seen)
    identical = ramp(strength, _IDENTICAL)

    def count(bounds):
        copied = jnp.maximum(ramp(beyond, bounds), identical)
        return 1.0 + jnp.sum(jnp.where(pairs, copied, 0.0), axis=1)

    return count(_COPY), count(_BLATANT_COPY)


def excuse_pairs(copies: Float[Array, " M"]) -> Float[Array, " M"]:
    """Copies but for one: two workers with like data are no conspiracy.

    Args:
        copies: float `[M]`, at least 1: of a `Structure`.

    Returns:
        float `[M]`, at least 1.

    Examples:
        >>> print(excuse_pairs(jnp.array([1.0, 2.0, 7.0])))
        [1. 1. 6.]
    """
    return jnp.maximum(copies - 1.0, 1.0)


def count_pairs(
    copies: Float[Array, " M"], present: Float[Array, " M"]
) -> Float[Array, ""]:
    """Heads with pairs excused beyond those without: one for each pair.

    Args:
        copies: float `[M]`, at least 1: of a `Structure`.
        present: float `[M]`, 1 for each worker that counts, else 0.

    Returns:
        float32 scalar.

    Examples:
        >>> print(count_pairs(jnp.array([1.0, 2.0, 2.0]), jnp.ones(3)))
        1.0
    """
    return jnp.sum(present / excuse_pairs(copies) - present / copies)


def balance_of_heads(
    voices: Float[Array, " M"], present: Float[Array, " M"], copies: Float[Array, " M"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Heads for less heads against: with copies merged, and with pairs excused.

    Args:
        voices: float `[M]` in [-1, 1], for which camp each worker counts, how surely.
        present: float `[M]`, 1 for each worker that counts, else 0.
        copies: float `[M]`, at least 1: of a `Structure`.

    Returns:
        Two float32 scalars.

    Examples:
        >>> voices, copies = jnp.array([1.0, -1.0, -1.0]), jnp.array([1.0, 2.0, 2.0])
        >>> merged, excused = balance_of_heads(voices, jnp.ones(3), copies)
        >>> print(merged, excused)
        0.0 -1.0
    """
    merged = jnp.sum(voices * (present / copies))
    return merged, jnp.sum(voices * present / excuse_pairs(copies))


def _predicted(strength, pairs, seen):
    """Rank-one prediction of each pair that a minority of liars cannot raise."""
    # Identical workers would predict each other.
    strength = jnp.where(strength > _IDENTICAL[0], 0.0, strength)
    # The entry that a row exceeds with half of the others: in an honest row that is
    # an honest pair, in a colluder's row a pair across the camps.
    rank = (jnp.sum(seen) - 1) // 2 - 1
    most = max((strength.shape[0] - 1) // 2, 1)
    descending, _ = lax.top_k(jnp.where(pairs, strength, -1.0), most)
    typical = jnp.take(descending, jnp.maximum(rank, 0), axis=1)
    typical = jnp.where(seen, jnp.maximum(typical, 1e-6), 1e-6)
    return typical[:, None] * typical[None, :] / masked_median(typical, seen)

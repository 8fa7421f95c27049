"""What the pairwise correlations of votes say about the workers.

Shapes: `M` workers. If votes err independently given the true signs, the correlation
of workers j and k is $C_{jk} = v_j v_k$ with $v = 1 - 2p$: off its diagonal, `C` has
rank one, and v is known up to one global sign without decoding anything. What breaks
that model is found here: copies (pairs more alike than v explains), camps without a
common sign, and estimates that the noise could explain.

Everything here keeps one symmetry: negating a worker's votes in all rounds negates
its reliability and changes nothing else, but for the head count of the global sign.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

__all__ = ["Structure", "capped_at_median", "masked_median", "structure"]

# Thresholds, found by replaying recorded gradients under the catalogue's attacks
# (benchmarks/robustness.py measures what came of them). Each pair is where a factor
# starts to move from 0 and where it reaches 1.
_LINK = (1.0, 3.0)  # |correlation| in standard errors: is this pair linked?
_LABEL = (1.0, 3.0)  # |reliability| in standard errors: is this worker labelled?
_COPY = (0.10, 0.25)  # correlation beyond the rank-one prediction: a likely copy
_BLATANT_COPY = (0.50, 0.80)  # the same, trusted even where the model is not
_IDENTICAL = (0.90, 0.98)  # correlation that makes a copy whatever was predicted
_DUE = 0.5  # share of its predicted correlation that a pair must show to be linked
_SLACK = 1.3  # by how much honest pairs may exceed the rank-one prediction
_BALANCE = (0.70, 0.85)  # share of links that the labels explain
_MAJORITY = (0.47, 0.53)  # share of the workers that are labelled
_MISLABELLED = (0.05, 0.02)  # expected share of the weight with a wrong sign
_LEAD = (0.2, 0.6)  # head-count lead of the larger camp, in workers
_LEAD_PER_IMBALANCE = 4.0  # more lead is asked for where links contradict the labels
_INERTIA = 0.5  # workers' worth of head count that last round's labels keep


class Structure(NamedTuple):
    """What `structure` finds.

    Attributes:
        reliability: float32 `[M]`, estimates of $v = 1 - 2p$ in [-1, 1]: 1 always
            right, 0 says nothing, -1 always wrong.
        copies: float32 `[M]`, at least 1: how many workers each one seems to be one of
            that send the same votes.
        blatant_copies: float32 `[M]`, the same, of undoubted copies only.
        trust: float32 scalar in [0, 1], how far the rank-one model can be trusted.
    """

    reliability: jax.Array
    copies: jax.Array
    blatant_copies: jax.Array
    trust: jax.Array


def structure(
    correlation: Float[Array, "M M"],
    standard_error: float | Float[Array, ""],
    seen: Bool[Array, " M"],
    previous: Float[Array, " M"],
) -> Structure:
    r"""Estimate how reliable each worker is, and how far to trust that.

    1. Copies. With $t_j$ the correlation that worker j exceeds with half of the
       others, $t_j t_k / \operatorname{median}(t)$ predicts honest pairs; a pair well
       above it is a copy, and n copies share one vote.
    2. Camps. The leading eigenvector of the links (correlations in standard errors,
       clipped, so that a large one buys no influence) labels the workers.
    3. Reliability. $c_j$, the mean signed correlation with the others of the camps,
       is $v_j \bar v$ in the rank-one model, hence $v_j = c_j / \sqrt{\bar{|c|}}$.
    4. Global sign. The larger camp is right, counted in heads (copies share one),
       with some inertia towards the labels of last round.
    5. Trust: the labels explain the links (within either camp, and over all), and the
       links that the reliabilities predict are there; the labelled workers are a
       majority, copies counted or not; the larger camp leads clearly; little weight is
       likely to carry a wrong sign.

    Args:
        correlation: float `[M, M]`, symmetric, in [-1, 1]; its diagonal is ignored.
        standard_error: float scalar, of one entry of `correlation`.
        seen: bool `[M]`, workers that have voted at all; the others count nowhere.
        previous: float `[M]`, last round's weights, for the inertia; zeros at first.

    Returns:
        A `Structure`; everything in it is finite. Unseen workers have reliability 0
        and one copy.

    Examples:
        >>> v = jnp.array([0.5, 0.5, 0.5, -0.5, -0.5])
        >>> found = structure(jnp.outer(v, v), 0.01, v != 0, jnp.zeros(5))
        >>> print(found.reliability.round(2), found.trust)
        [ 0.5  0.5  0.5 -0.5 -0.5] 1.0

    References:
        Parisi, Strino, Nadler and Kluger, [Ranking and combining multiple predictors
        without labeled data](https://arxiv.org/abs/1303.3257), PNAS 2014.
    """
    num_workers = correlation.shape[0]
    pairs = (seen[:, None] & seen[None, :]) & ~jnp.eye(num_workers, dtype=bool)
    correlation = jnp.where(pairs, correlation, 0.0).astype(jnp.float32)
    error = jnp.maximum(jnp.asarray(standard_error, jnp.float32), 1e-6)
    strength = jnp.abs(correlation)

    beyond = strength - _SLACK * _predicted(strength, pairs, seen)
    identical = _ramp(strength, _IDENTICAL)
    copies = _count_copies(jnp.maximum(_ramp(beyond, _COPY), identical), pairs)
    blatant = _count_copies(jnp.maximum(_ramp(beyond, _BLATANT_COPY), identical), pairs)
    present = seen.astype(jnp.float32)
    heads = present / copies

    links = jnp.sign(correlation) * _ramp(strength / error, _LINK)
    aligned, aligned_error = _reliability_by_camp(correlation, links, heads, error)
    deviations = jnp.abs(aligned) / aligned_error
    labelled = _ramp(deviations, _LABEL)

    lead = jnp.sum(jnp.sign(aligned) * labelled * heads)
    memory = jnp.sign(aligned) * labelled * heads * previous
    kept = jnp.sum(memory) / jnp.maximum(jnp.sum(jnp.abs(memory)), 1e-9)
    sign = jnp.where(lead + _INERTIA * kept >= 0, 1.0, -1.0)
    aligned, lead = sign * aligned, sign * lead

    scale = jnp.sqrt(
        _positive(jnp.sum(jnp.abs(aligned) * heads) / _positive(jnp.sum(heads)))
    )
    expected = jnp.abs(aligned[:, None] * aligned[None, :]) / scale**2 / error
    links_due = jnp.where(pairs, _ramp(_DUE * expected, _LINK), 0.0)
    balance = _balance(links, links_due, jnp.sign(aligned), labelled * heads)
    majority = jnp.minimum(
        jnp.sum(labelled * heads) / jnp.maximum(jnp.sum(heads), 1e-9),
        jnp.sum(labelled * present) / jnp.maximum(jnp.sum(present), 1.0),
    )
    influence = jnp.clip(
        jnp.abs(aligned) / _positive(masked_median(jnp.abs(aligned), seen)), 0, 1
    )
    influence = influence * heads
    wrong = jnp.sum(influence * jax.scipy.stats.norm.cdf(-deviations))
    trust = (
        _ramp(balance, _BALANCE)
        * _ramp(majority, _MAJORITY)
        * _ramp(lead - _LEAD_PER_IMBALANCE * (1 - balance), _LEAD)
        * _ramp(wrong / _positive(jnp.sum(influence)), _MISLABELLED)
    )
    return Structure(
        reliability=jnp.clip(aligned / scale, -1.0, 1.0),
        copies=copies,
        blatant_copies=blatant,
        # Two workers that disagree cannot be told apart.
        trust=jnp.where(jnp.sum(seen) < 3, 0.0, trust),
    )


def _count_copies(copied, pairs):
    """Each worker and its likely copies."""
    return 1.0 + jnp.sum(jnp.where(pairs, copied, 0.0), axis=1)


def _predicted(strength, pairs, seen):
    """Rank-one prediction of each pair that a minority of liars cannot raise."""
    # Identical workers would predict each other.
    strength = jnp.where(strength > _IDENTICAL[0], 0.0, strength)
    # The entry that a row exceeds with half of the others: in an honest row that is
    # an honest pair, in a colluder's row a pair across the camps.
    rank = (jnp.sum(seen) - 1) // 2 - 1
    descending = -jnp.sort(jnp.where(pairs, -strength, 1.0), axis=1)
    typical = jnp.take(descending, jnp.maximum(rank, 0), axis=1)
    typical = jnp.where(seen, jnp.maximum(typical, 1e-6), 1e-6)
    return typical[:, None] * typical[None, :] / masked_median(typical, seen)


def _reliability_by_camp(correlation, links, heads, error):
    """Mean signed correlation of each worker with the camps, and its error."""
    scale = jnp.sqrt(heads)
    leading = jnp.linalg.eigh(links * scale[:, None] * scale[None, :])[1][:, -1]
    leading = jnp.where(heads > 0, leading / _positive(scale), 0.0)
    member = jnp.clip(2 * jnp.abs(leading) / _positive(jnp.max(jnp.abs(leading))), 0, 1)
    camp = jnp.sign(leading) * member * heads
    others = _positive(jnp.sum(jnp.abs(camp)) - jnp.abs(camp))
    spread = jnp.sqrt(_positive(jnp.sum(camp**2) - camp**2))
    return (correlation @ camp) / others, error * spread / others


def _balance(links, links_due, labels, share):
    """Share of the links, found or due, that labels explain: the worst of three."""

    def of(workers):
        weight = jnp.where(workers, share, 0.0)
        weights = weight[:, None] * weight[None, :]
        explained = jnp.sum(weights * links * labels[:, None] * labels[None, :])
        found_or_due = jnp.sum(weights * jnp.maximum(jnp.abs(links), links_due))
        # A camp of one or two has hardly a link to judge it by: the 0.02 gives it 1.
        return (explained + 0.02) / (found_or_due + 0.02)

    everyone = jnp.ones_like(labels, dtype=bool)
    return jnp.minimum(of(everyone), jnp.minimum(of(labels > 0), of(labels < 0)))


def masked_median(values: Float[Array, " M"], seen: Bool[Array, " M"]):
    """Median over the workers that were seen.

    Args:
        values: float `[M]`.
        seen: bool `[M]`.

    Returns:
        Scalar of the dtype of `values`; 0 where no worker was seen.

    Examples:
        >>> print(masked_median(jnp.array([3.0, 1.0, 9.0]), jnp.array([1, 1, 0]) > 0))
        2.0
    """
    low, high = _middle_values(values, seen)
    return (low + high) / 2


def _middle_values(values, seen):
    """The two middle values of those seen; of an odd number, the middle one twice."""
    count = jnp.sum(seen)
    ascending = jnp.sort(jnp.where(seen, values, jnp.inf))
    low = ascending[jnp.maximum((count - 1) // 2, 0)]
    high = ascending[jnp.minimum(count // 2, values.shape[0] - 1)]
    nobody = count == 0
    return jnp.where(nobody, 0.0, low), jnp.where(nobody, 0.0, high)


def capped_at_median(
    weights: Float[Array, " M"], seen: Bool[Array, " M"]
) -> Float[Array, " M"]:
    r"""Clip weights to the median |weight|, so that no minority buys influence.

    Afterwards the |weights| of any k workers sum to at most k times the median
    |weight|. Unseen workers get the median: benefit of the doubt on arrival.

    Args:
        weights: float `[M]`.
        seen: bool `[M]`, workers that have voted at all.

    Returns:
        float `[M]`; all ones where the median is zero.

    Examples:
        >>> print(capped_at_median(jnp.array([5.0, 1.0, -2.0]), jnp.ones(3, bool)))
        [ 2.  1. -2.]
    """
    # Of an even number, the lower median: clipping then leaves the median there.
    cap, _ = _middle_values(jnp.abs(weights), seen)
    capped = jnp.where(seen, jnp.clip(weights, -cap, cap), cap)
    return jnp.where(cap > 0, capped, 1.0)


def _ramp(value, bounds):
    """0 at or before `bounds[0]`, 1 at or beyond `bounds[1]`, linear between."""
    start, end = bounds
    return jnp.clip((value - start) / (end - start), 0.0, 1.0)


def _positive(value):
    return jnp.maximum(value, 1e-9)

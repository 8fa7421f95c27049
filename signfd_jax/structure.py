"""What the pairwise correlations of votes say about the workers.

Shapes: `M` workers. If votes err independently given the true signs, the correlation
of workers j and k is $C_{jk} = v_j v_k$ with $v = 1 - 2p$: off its diagonal, `C` has
rank one, and v is known up to one global sign without decoding anything. What breaks
that model is found here: copies (pairs more alike than v explains), camps without a
common sign, and estimates that the noise could explain.

Everything here keeps one symmetry, as far as that model holds: negating a worker's
votes in all rounds negates its reliability and changes nothing else, but for the head
count of the global sign.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from signfd_jax.evidence import doubt_wrongness, positive, ramp
from signfd_jax.heads import balance_of_heads, count_copies, count_pairs, worker_pairs
from signfd_jax.medians import masked_median

__all__ = ["Structure", "structure"]

# Thresholds; each pair is for `ramp`.
_LINK = (1.0, 3.0)  # |correlation| in standard errors: is this pair linked?
_LABEL = (1.0, 3.0)  # |reliability| in standard errors: is this worker labelled?
_DUE = 0.5  # share of its predicted correlation that a pair must show to be linked
_BALANCE = (0.70, 0.85)  # share of links that the labels explain
_UNANIMOUS = (0.6, 0.8)  # lead over all heads: is hardly anybody of the other camp?
_BALANCE_EXCUSED = 0.15  # how much less of the links then needs to be explained
_MAJORITY = (0.47, 0.53)  # share of the workers that are labelled
_MISLABELLED = (0.05, 0.02)  # expected share of the weight with a wrong sign
_LEAD = (0.2, 0.6)  # head-count lead of the larger camp over all others, in workers
_LEAD_PER_IMBALANCE = 4.0  # more lead is asked for where links contradict the labels
_LEAD_PER_PAIR = 1.5  # more lead is asked for where many pairs have like data
_FEW_PAIRS = (2.0, 0.125)  # pairs that need no lead: so many, or this share of workers
_INERTIA = 0.5  # workers' worth of head count that last round's labels keep
_TIE = 1e-3  # what the other way to count heads weighs beside the first


class Structure(NamedTuple):
    """What `structure` finds.

    Attributes:
        reliability: float32 `[M]`, estimates of $v = 1 - 2p$ in [-1, 1]: 1 always
            right, 0 says nothing, -1 always wrong.
        copies: float32 `[M]`, at least 1: how many workers each one seems to be one of
            that send the same votes.
        blatant_copies: float32 `[M]`, the same, of undoubted copies only.
        trust: float32 scalar in [0, 1], how far the rank-one model can be trusted.
        error: float32 `[M]`, standard error of `reliability`.
        labelled: float32 `[M]` in [0, 1], whether a worker's reliability has a sign
            that the noise does not explain.
        label: float32 `[M]` in [-1, 1], which way to read a worker, and how surely:
            that sign times `labelled`; nearer to 0 if it is wrong on some coordinates
            only.
    """

    reliability: jax.Array
    copies: jax.Array
    blatant_copies: jax.Array
    trust: jax.Array
    error: jax.Array
    labelled: jax.Array
    label: jax.Array


def structure(
    correlation: Float[Array, "M M"],
    standard_error: float | Float[Array, ""],
    seen: Bool[Array, " M"],
    previous: Float[Array, " M"],
    experience: float | Float[Array, ""] = 1.0,
) -> Structure:
    r"""Estimate how reliable each worker is, and how far to trust that.

    1. Copies. With $t_j$ the correlation that worker j exceeds with half of the
       others, $t_j t_k / \operatorname{median}(t)$ predicts honest pairs; a pair well
       above it is a copy, and n copies count as one head.
    2. Camps. The leading eigenvector of the links (correlations in standard errors,
       clipped, so that a large one buys no influence) labels the workers.
    3. Reliability. $c_j$, the mean signed correlation with the others of the camps,
       is $v_j \bar v$ in the rank-one model, hence $v_j = c_j / \sqrt{\bar{|c|}}$.
    4. Global sign. The larger camp is right, counted in heads (copies share one, but
       pairs are excused with experience), with some inertia towards the labels of last
       round.
    5. Trust: the labels explain the links (within either camp, and over all), and the
       links that the reliabilities predict are there (fewer will do where nearly all
       heads are of one camp); the labelled workers are a majority, copies counted or
       not; the larger camp leads clearly, pairs excused and (with experience: or) not,
       those counted too that only lean to a camp, as surely as they do, and with
       experience over the unlabelled, and more clearly where many workers come in
       pairs; little weight is likely to carry a wrong sign.
    6. Consistency. A worker of the smaller camp that is always wrong disagrees with the
       larger camp as much as it agrees with its own. One that lies on some coordinates
       only disagrees less: read backwards, its honest votes would be turned into lies,
       so its reliability goes to 0, or to what its agreement with the larger camp says.

    Args:
        correlation: float `[M, M]`, symmetric, in [-1, 1]; its diagonal is ignored.
        standard_error: float scalar, of one entry of `correlation`.
        seen: bool `[M]`, workers that have voted at all; the others count nowhere.
        previous: float `[M]`, last round's weights, for the inertia; zeros at first.
        experience: float scalar in [0, 1], how well `standard_error` is known; at 0
            nobody is found inconsistent, unlabelled workers are left out and pairs
            share a head and need no lead.

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
    pairs = worker_pairs(seen)
    correlation = jnp.where(pairs, correlation, 0.0).astype(jnp.float32)
    error = jnp.clip(jnp.asarray(standard_error, jnp.float32), 1e-6, 1e6)
    strength = jnp.abs(correlation)

    copies, blatant = count_copies(strength, seen)
    present = seen.astype(jnp.float32)
    heads = present / copies

    links = jnp.sign(correlation) * ramp(strength / error, _LINK)
    aligned, aligned_error = _reliability_by_camp(correlation, links, heads, error)
    deviations = jnp.abs(aligned) / aligned_error
    labelled = ramp(deviations, _LABEL)

    voices = jnp.sign(aligned) * labelled
    sign, lead = _head_count(voices, present, copies, previous, experience)
    aligned = sign * aligned
    # Whom even many rounds have not labelled may be of the other camp; whom few have
    # not, of the one that it leans to.
    lead = lead - experience * jnp.sum((1 - labelled) * heads)
    leaning = jnp.sign(aligned) * jax.scipy.special.erf(deviations / jnp.sqrt(2.0))
    lead = jnp.minimum(lead, jnp.maximum(*balance_of_heads(leaning, present, copies)))

    scale = jnp.sqrt(
        positive(jnp.sum(jnp.abs(aligned) * heads) / positive(jnp.sum(heads)))
    )
    expected = jnp.abs(aligned[:, None] * aligned[None, :]) / scale**2 / error
    links_due = jnp.where(pairs, ramp(_DUE * expected, _LINK), 0.0)
    balance = _balance(links, links_due, jnp.sign(aligned), labelled * heads)
    majority = jnp.minimum(
        jnp.sum(labelled * heads) / positive(jnp.sum(heads)),
        jnp.sum(labelled * present) / jnp.maximum(jnp.sum(present), 1.0),
    )
    influence = jnp.clip(
        jnp.abs(aligned) / positive(masked_median(jnp.abs(aligned), seen)), 0, 1
    )
    influence = influence * heads
    wrong = jnp.sum(influence * jax.scipy.stats.norm.cdf(-deviations))
    unanimous = ramp(lead / positive(jnp.sum(heads)), _UNANIMOUS)
    trust = (
        ramp(balance + _BALANCE_EXCUSED * unanimous, _BALANCE)
        * ramp(majority, _MAJORITY)
        * ramp(lead - _LEAD_PER_IMBALANCE * (1 - balance), _LEAD)
        * ramp(wrong / positive(jnp.sum(influence)), _MISLABELLED)
    )
    consistent, towards = _consistency(
        correlation, aligned, labelled * heads, scale, error
    )
    inconsistent = experience * (1 - consistent)
    consistently = (1 - inconsistent) * aligned + inconsistent * towards
    return Structure(
        reliability=jnp.clip(consistently / scale, -1.0, 1.0),
        copies=copies,
        blatant_copies=blatant,
        # Two workers that disagree cannot be told apart.
        trust=jnp.where(jnp.sum(seen) < 3, 0.0, trust),
        error=aligned_error / scale,
        labelled=labelled,
        label=labelled * jnp.clip(consistently / positive(jnp.abs(aligned)), -1, 1),
    )


def _head_count(voices, present, copies, previous, experience):
    """The sign that makes the larger camp right, and its lead over the other, in heads.

    The lead is the lesser, with experience the greater, of two counts: copies merged
    into one head, and pairs of them excused. Were a pair one head only, seven liars
    could outnumber eight honest workers of whom some hold like data; but copies of a
    few rounds may be chance. Where more than a few workers come in pairs, data are so
    unlike that honest workers may be of either camp: the lead must be larger.
    """
    heads = present / copies
    merged, apart = balance_of_heads(voices, present, copies)
    memory = voices * heads * previous
    kept = jnp.sum(memory) / positive(jnp.sum(jnp.abs(memory)))
    lead = merged + experience * (apart - merged)
    # Where they tie with pairs excused, they are counted with pairs merged.
    sign = jnp.where(lead + _INERTIA * kept + _TIE * merged >= 0, 1.0, -1.0)
    lead = jnp.minimum(sign * merged, sign * apart)
    many = jnp.maximum(_FEW_PAIRS[0], _FEW_PAIRS[1] * jnp.sum(present))
    unlike = jnp.maximum(count_pairs(copies, present) - many, 0.0)
    lead = lead + experience * (jnp.abs(merged - apart) - _LEAD_PER_PAIR * unlike)
    return sign, lead


def _consistency(correlation, aligned, share, scale, error):
    """Whether each worker of the smaller camp is as wrong as it seems: 1, or less.

    And how far the votes of those that are not agree with the larger camp, if at all.
    """
    camp = jnp.where(aligned > 0, share, 0.0)
    size = positive(jnp.sum(camp))
    across = -_times(correlation, camp) / size
    across_error = error * jnp.sqrt(positive(jnp.sum(camp**2))) / size
    typical = jnp.sum(camp * jnp.abs(aligned)) / size
    due = jnp.abs(aligned) * typical / scale**2
    doubt = doubt_wrongness(across, due, across_error)
    doubt = jnp.where(aligned < 0, doubt, 0.0)
    return 1 - doubt, jnp.maximum(-across, 0.0) * scale**2 / positive(typical)


def _reliability_by_camp(correlation, links, heads, error):
    """Mean signed correlation of each worker with the camps, and its error."""
    scale = jnp.sqrt(heads)
    leading = jnp.linalg.eigh(links * scale[:, None] * scale[None, :])[1][:, -1]
    leading = jnp.where(heads > 0, leading / positive(scale), 0.0)
    member = jnp.clip(2 * jnp.abs(leading) / positive(jnp.max(jnp.abs(leading))), 0, 1)
    camp = jnp.sign(leading) * member * heads
    others = positive(jnp.sum(jnp.abs(camp)) - jnp.abs(camp))
    spread = jnp.sqrt(positive(jnp.sum(camp**2) - camp**2))
    return _times(correlation, camp) / others, error * spread / others


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


def _times(matrix, vector):
    # Else a GPU keeps three digits of these, and a TPU two.
    return jnp.matmul(matrix, vector, precision=lax.Precision.HIGHEST)

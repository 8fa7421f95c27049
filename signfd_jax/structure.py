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

from signfd_jax.medians import masked_median

__all__ = [
    "Structure",
    "attendance",
    "excuse_pairs",
    "news",
    "read_backwards",
    "steadiness",
    "structure",
]

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
_CONSISTENT = (0.6, 0.8)  # share of its due that a liar's wrongness must show
_SHORTFALL = (1.0, 3.0)  # what is missing of it, in standard errors: is it missing?
_SHORTFALL_NOW = (3.5, 5.5)  # the same, of one round: there are many to mistake
_NEWS = (3.0, 6.0)  # change of a reliability, in standard errors: is it another worker?
_NEWS_PER_TRUST = 12.0  # more change is asked for where the past is trusted
_LEAD_OF_NEWS = (0.2, 0.6)  # workers by which one round must agree with the past
_ATTENDED = (0.15, 0.3)  # heads of the larger camp for each of the smaller, that vote
_STEADY = (0.7, 0.9)  # share of its past in which the larger camp has been the larger
_ALIKE = (0.20, 0.05)  # share of heads that copies cost, for a round to be news


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
    pairs = _pairs(seen)
    correlation = jnp.where(pairs, correlation, 0.0).astype(jnp.float32)
    error = jnp.clip(jnp.asarray(standard_error, jnp.float32), 1e-6, 1e6)
    strength = jnp.abs(correlation)

    copies, blatant = _count_copies(strength, pairs, seen)
    present = seen.astype(jnp.float32)
    heads = present / copies

    links = jnp.sign(correlation) * _ramp(strength / error, _LINK)
    aligned, aligned_error = _reliability_by_camp(correlation, links, heads, error)
    deviations = jnp.abs(aligned) / aligned_error
    labelled = _ramp(deviations, _LABEL)

    voices = jnp.sign(aligned) * labelled
    sign, lead = _head_count(voices, present, copies, previous, experience)
    aligned = sign * aligned
    # Whom even many rounds have not labelled may be of the other camp; whom few have
    # not, of the one that it leans to.
    lead = lead - experience * jnp.sum((1 - labelled) * heads)
    leaning = jnp.sign(aligned) * jax.scipy.special.erf(deviations / jnp.sqrt(2.0))
    lead = jnp.minimum(lead, jnp.maximum(*_balance_of_heads(leaning, present, copies)))

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
    unanimous = _ramp(lead / _positive(jnp.sum(heads)), _UNANIMOUS)
    trust = (
        _ramp(balance + _BALANCE_EXCUSED * unanimous, _BALANCE)
        * _ramp(majority, _MAJORITY)
        * _ramp(lead - _LEAD_PER_IMBALANCE * (1 - balance), _LEAD)
        * _ramp(wrong / _positive(jnp.sum(influence)), _MISLABELLED)
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
        label=labelled * jnp.clip(consistently / _positive(jnp.abs(aligned)), -1, 1),
    )


def news(
    past: Structure,
    now: Structure,
    strength: Float[Array, "M M"],
    weights: Float[Array, " M"],
    seen: Bool[Array, " M"],
    experience: float | Float[Array, ""] = 1.0,
) -> Float[Array, ""]:
    r"""How far to decode a round by its own correlations instead of the past's.

    Liars who change places each round leave nothing in the mean over many rounds, but
    each round shows who lies in it. One round is noisy, so it is heeded only where it
    can be trusted, where some worker's reliability has changed by more than the noise
    explains (by much more, where the past is trusted), where its labels agree with the
    past's weights in more workers than they contradict them, or than they leave out,
    and where hardly any workers seem to be copies, in single rounds or (in pairs) in
    the past: with very unlike data reliabilities change by themselves.

    Args:
        past: what the mean over rounds says.
        now: what this round says.
        strength: float `[M, M]`, mean over rounds of one round's |correlation|.
        weights: float `[M]`, the weights that `past` leads to.
        seen: bool `[M]`, workers that voted in this round.
        experience: float scalar in [0, 1], as in `structure`; at 0 pairs in the past
            may be chance, and count for nothing.

    Returns:
        float32 scalar in [0, 1].

    Examples:
        >>> before = jnp.array([0.5, 0.5, 0.5, 0.5, 0.5])
        >>> after = jnp.array([0.5, 0.5, 0.5, -0.5, -0.5])
        >>> everyone, ones = before > 0, jnp.ones(5)
        >>> past = structure(jnp.outer(before, before), 0.01, everyone, ones)
        >>> now = structure(jnp.outer(after, after), 0.01, everyone, ones)
        >>> strength = jnp.full((5, 5), 0.25)
        >>> print(news(past, past, strength, ones, everyone))
        0.0
        >>> print(news(past, now, strength, ones, everyone))
        1.0
    """
    change = jnp.abs(now.reliability - past.reliability) / _positive(now.error)
    change = jnp.max(jnp.where(seen, change, 0.0), initial=0.0)
    present = seen.astype(jnp.float32)
    voices = jnp.sign(now.reliability) * now.labelled * weights
    unlabelled = jnp.sum((1 - now.labelled) * jnp.abs(weights) * present)
    against = jnp.maximum(jnp.sum(jnp.maximum(-voices, 0.0)), unlabelled)
    agreement = jnp.sum(jnp.maximum(voices, 0.0)) - against
    agreement = agreement / _positive(masked_median(jnp.abs(weights), seen))
    pairs = _pairs(seen)
    copies, _ = _count_copies(jnp.where(pairs, strength, 0.0), pairs, seen)
    shared = jnp.sum(present - present / copies)
    paired = experience * _count_pairs(past.copies, present)
    alike = jnp.maximum(shared, paired) / _positive(jnp.sum(present))
    return (
        now.trust
        * _ramp(alike, _ALIKE)
        * _ramp(agreement, _LEAD_OF_NEWS)
        * _ramp(change - _NEWS_PER_TRUST * past.trust, _NEWS)
    )


def attendance(found: Structure, here: Bool[Array, " M"]) -> Float[Array, ""]:
    """How far the larger camp takes part in a round, so that it can be decoded by it.

    The larger camp is that of all workers that have ever voted. Where hardly one of it
    votes now, nearly all that do would be read backwards; and had honest workers of
    very unlike data been taken for the smaller camp, they would be just while the liars
    are away.

    Args:
        found: what the mean over rounds says.
        here: bool `[M]`, workers that voted in this round.

    Returns:
        float32 scalar in [0, 1].

    Examples:
        >>> v = jnp.array([0.5, 0.5, 0.5, -0.5, -0.5])
        >>> found = structure(jnp.outer(v, v), 0.01, v != 0, jnp.zeros(5))
        >>> print(attendance(found, v > 0), attendance(found, v < 0))
        1.0 0.0
    """
    heads = jnp.where(here, found.labelled / excuse_pairs(found.copies), 0.0)
    larger = jnp.sum(jnp.where(found.reliability > 0, heads, 0.0))
    smaller = jnp.sum(jnp.where(found.reliability < 0, heads, 0.0))
    there = _ramp(larger / _positive(smaller), _ATTENDED)
    return jnp.where(smaller > 0, there, 1.0)


def steadiness(found: Structure, labels: Float[Array, "2 M"]) -> Float[Array, ""]:
    """How steadily those of the larger camp have been of the larger camp.

    Who is right does not change from round to round. Where data are so unlike that
    honest workers are of either camp, which camp is the larger does change; then none
    should be read backwards. Workers who turn into liars leave the larger camp, and
    those who stay in it have always been there.

    Args:
        found: what the mean over rounds says.
        labels: float `[2, M]`, sums over rounds, this one included, of each worker's
            label in [-1, 1] (how surely it is of the larger camp, or of the smaller),
            and of |label|.

    Returns:
        float32 scalar in [0, 1].

    Examples:
        >>> v = jnp.array([0.5, 0.5, 0.5, -0.5, -0.5])
        >>> found = structure(jnp.outer(v, v), 0.01, v != 0, jnp.zeros(5))
        >>> always, sometimes = jnp.sign(v) * 10, jnp.array([10.0, 2, 2, -10, -10])
        >>> print(steadiness(found, jnp.stack([always, jnp.full(5, 10.0)])))
        1.0
        >>> print(steadiness(found, jnp.stack([sometimes, jnp.full(5, 10.0)])))
        0.0
    """
    label_sums, sizes = labels
    camp = jnp.where(found.reliability > 0, found.labelled / found.copies, 0.0)
    share = jnp.sum(camp * label_sums / _positive(sizes)) / _positive(jnp.sum(camp))
    return _ramp(share, _STEADY)


def read_backwards(
    weights: Float[Array, " M"],
    of_round: tuple[Float[Array, " M"], Float[Array, " M"], Float[Array, " M"]],
    of_rounds: tuple[Float[Array, " M"], Float[Array, " M"], Float[Array, " M"]],
    experience: float | Float[Array, ""] = 1.0,
) -> Float[Array, " M"]:
    """Read backwards only those who contradict their opponents' surest signs, too.

    A worker that always lies, and honest otherwise, is wrong most often where the
    others are surest. One that lies only where the vote is close looks as wrong on the
    whole; read backwards, its honest votes would be turned into lies just where the
    sign matters. So its weight goes to 0 unless what it contradicts of the sure
    signs, allowing for noise, is near to what it contradicts on the whole: in this
    round, if it shows there, and in the mean over rounds.

    Args:
        weights: float `[M]`, a weight for each worker; only negative ones change.
        of_round: three float `[M]`: how far each worker agrees, in this round, with the
            majority of those of positive weight, in [-1, 1]; the same on the
            coordinates where that majority is large; and the standard error of either.
        of_rounds: the same three, of the means over rounds.
        experience: float scalar in [0, 1], as in `structure`; at 0 the means tell
            nothing.

    Returns:
        float32 `[M]`.

    Examples:
        >>> weights, anywhere = jnp.array([1.0, -1.0, -1.0]), jnp.full(3, -0.3)
        >>> where_sure, error = jnp.array([0.5, -0.5, 0.1]), jnp.full(3, 0.03)
        >>> sides = anywhere, where_sure, error
        >>> print(read_backwards(weights, sides, sides))
        [ 1. -1.  0.]
    """

    def doubt(sides, shortfall):
        anywhere, where_sure, error = sides
        return _doubt(-where_sure, jnp.maximum(-anywhere, 0.0), error, shortfall)

    doubts = jnp.maximum(
        doubt(of_round, _SHORTFALL_NOW), experience * doubt(of_rounds, _SHORTFALL)
    )
    return jnp.where(weights < 0, weights - doubts * weights, weights)


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


def _head_count(voices, present, copies, previous, experience):
    """The sign that makes the larger camp right, and its lead over the other, in heads.

    The lead is the lesser, with experience the greater, of two counts: copies merged
    into one head, and pairs of them excused. Were a pair one head only, seven liars
    could outnumber eight honest workers of whom some hold like data; but copies of a
    few rounds may be chance. Where more than a few workers come in pairs, data are so
    unlike that honest workers may be of either camp: the lead must be larger.
    """
    heads = present / copies
    merged, apart = _balance_of_heads(voices, present, copies)
    memory = voices * heads * previous
    kept = jnp.sum(memory) / jnp.maximum(jnp.sum(jnp.abs(memory)), 1e-9)
    lead = merged + experience * (apart - merged)
    # Where they tie with pairs excused, they are counted with pairs merged.
    sign = jnp.where(lead + _INERTIA * kept + _TIE * merged >= 0, 1.0, -1.0)
    lead = jnp.minimum(sign * merged, sign * apart)
    many = jnp.maximum(_FEW_PAIRS[0], _FEW_PAIRS[1] * jnp.sum(present))
    unlike = jnp.maximum(_count_pairs(copies, present) - many, 0.0)
    lead = lead + experience * (jnp.abs(merged - apart) - _LEAD_PER_PAIR * unlike)
    return sign, lead


def _balance_of_heads(voices, present, copies):
    """Heads for less heads against: with copies merged, and with pairs excused."""
    merged = jnp.sum(voices * (present / copies))
    return merged, jnp.sum(voices * present / excuse_pairs(copies))


def _count_pairs(copies, present):
    """Heads with pairs excused beyond those without: one for each pair."""
    return jnp.sum(present / excuse_pairs(copies) - present / copies)


def _consistency(correlation, aligned, share, scale, error):
    """Whether each worker of the smaller camp is as wrong as it seems: 1, or less.

    And how far the votes of those that are not agree with the larger camp, if at all.
    """
    camp = jnp.where(aligned > 0, share, 0.0)
    size = _positive(jnp.sum(camp))
    across = -_times(correlation, camp) / size
    across_error = error * jnp.sqrt(_positive(jnp.sum(camp**2))) / size
    typical = jnp.sum(camp * jnp.abs(aligned)) / size
    due = jnp.abs(aligned) * typical / scale**2
    doubt = _doubt(across, due, across_error, _SHORTFALL)
    doubt = jnp.where(aligned < 0, doubt, 0.0)
    return 1 - doubt, jnp.maximum(-across, 0.0) * scale**2 / _positive(typical)


def _doubt(wrong, due, error, shortfall):
    """How surely a worker is less wrong than is due, beyond the error: 0 to 1."""
    missing = 1 - _ramp(wrong / _positive(due), _CONSISTENT)
    return missing * _ramp((_CONSISTENT[1] * due - wrong) / error, shortfall)


def _count_copies(strength, pairs, seen):
    """Each worker and its likely copies; the same, of undoubted copies only."""
    beyond = strength - _SLACK * _predicted(strength, pairs, seen)
    identical = _ramp(strength, _IDENTICAL)

    def count(bounds):
        copied = jnp.maximum(_ramp(beyond, bounds), identical)
        return 1.0 + jnp.sum(jnp.where(pairs, copied, 0.0), axis=1)

    return count(_COPY), count(_BLATANT_COPY)


def _pairs(seen):
    """Pairs of different workers that both have voted."""
    return (seen[:, None] & seen[None, :]) & ~jnp.eye(seen.shape[0], dtype=bool)


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


def _reliability_by_camp(correlation, links, heads, error):
    """Mean signed correlation of each worker with the camps, and its error."""
    scale = jnp.sqrt(heads)
    leading = jnp.linalg.eigh(links * scale[:, None] * scale[None, :])[1][:, -1]
    leading = jnp.where(heads > 0, leading / _positive(scale), 0.0)
    member = jnp.clip(2 * jnp.abs(leading) / _positive(jnp.max(jnp.abs(leading))), 0, 1)
    camp = jnp.sign(leading) * member * heads
    others = _positive(jnp.sum(jnp.abs(camp)) - jnp.abs(camp))
    spread = jnp.sqrt(_positive(jnp.sum(camp**2) - camp**2))
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


def _ramp(value, bounds):
    """0 at or before `bounds[0]`, 1 at or beyond `bounds[1]`, linear between."""
    start, end = bounds
    return jnp.clip((value - start) / (end - start), 0.0, 1.0)


def _times(matrix, vector):
    # Else a GPU keeps three digits of these, and a TPU two.
    return jnp.matmul(matrix, vector, precision=lax.Precision.HIGHEST)


def _positive(value):
    return jnp.maximum(value, 1e-9)

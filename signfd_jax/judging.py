"""Whether to act on what the correlations say: now, in this round, on this worker.

`signfd_jax.structure.structure` finds who is right and who is wrong; here is what
speaks for a single round against the past, and against reading a worker backwards.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from signfd_jax.evidence import doubt_wrongness, positive, ramp
from signfd_jax.heads import count_copies, count_pairs, excuse_pairs
from signfd_jax.medians import masked_median
from signfd_jax.structure import Structure

__all__ = ["attendance", "news", "read_backwards", "steadiness"]

_NEWS = (3.0, 6.0)  # change of a reliability, in standard errors: is it another worker?
_NEWS_PER_TRUST = 12.0  # more change is asked for where the past is trusted
_LEAD_OF_NEWS = (0.2, 0.6)  # workers by which one round must agree with the past
_ALIKE = (0.20, 0.05)  # share of heads that copies cost, for a round to be news
_ATTENDED = (0.15, 0.3)  # heads of the larger camp for each of the smaller, that vote
_STEADY = (0.7, 0.9)  # share of its past in which the larger camp has been the larger


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
        >>> from signfd_jax.structure import structure
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
    change = jnp.abs(now.reliability - past.reliability) / positive(now.error)
    change = jnp.max(jnp.where(seen, change, 0.0), initial=0.0)
    present = seen.astype(jnp.float32)
    voices = jnp.sign(now.reliability) * now.labelled * weights
    unlabelled = jnp.sum((1 - now.labelled) * jnp.abs(weights) * present)
    against = jnp.maximum(jnp.sum(jnp.maximum(-voices, 0.0)), unlabelled)
    agreement = jnp.sum(jnp.maximum(voices, 0.0)) - against
    agreement = agreement / positive(masked_median(jnp.abs(weights), seen))
    copies, _ = count_copies(strength, seen)
    shared = jnp.sum(present - present / copies)
    paired = experience * count_pairs(past.copies, present)
    alike = jnp.maximum(shared, paired) / positive(jnp.sum(present))
    return (
        now.trust
        * ramp(alike, _ALIKE)
        * ramp(agreement, _LEAD_OF_NEWS)
        * ramp(change - _NEWS_PER_TRUST * past.trust, _NEWS)
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
        >>> from signfd_jax.structure import structure
        >>> v = jnp.array([0.5, 0.5, 0.5, -0.5, -0.5])
        >>> found = structure(jnp.outer(v, v), 0.01, v != 0, jnp.zeros(5))
        >>> print(attendance(found, v > 0), attendance(found, v < 0))
        1.0 0.0
    """
    heads = jnp.where(here, found.labelled / excuse_pairs(found.copies), 0.0)
    larger = jnp.sum(jnp.where(found.reliability > 0, heads, 0.0))
    smaller = jnp.sum(jnp.where(found.reliability < 0, heads, 0.0))
    there = ramp(larger / positive(smaller), _ATTENDED)
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
        >>> from signfd_jax.structure import structure
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
    share = jnp.sum(camp * label_sums / positive(sizes)) / positive(jnp.sum(camp))
    return ramp(share, _STEADY)


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

    def doubt(sides, one_round):
        anywhere, where_sure, error = sides
        due = jnp.maximum(-anywhere, 0.0)
        return doubt_wrongness(-where_sure, due, error, one_round=one_round)

    doubts = jnp.maximum(doubt(of_round, True), experience * doubt(of_rounds, False))
    return jnp.where(weights < 0, weights - doubts * weights, weights)

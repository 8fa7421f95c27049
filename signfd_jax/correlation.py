"""Correlation defense: reliabilities from how the votes agree with each other.

Shapes: `M` workers, `N` coordinates in all. Nothing is kept per coordinate: the state
is a few `[M, M]` matrices. No decoded sign enters the estimate, so that it cannot
lock itself in, and it is accurate from the first round on.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from signfd_jax.agreement import camp_agreement, pair_counts, sampled_rows
from signfd_jax.checks import check_choice, check_number, check_size
from signfd_jax.decoding import DecodeInfo, Decoder, llr_weights
from signfd_jax.evidence import positive
from signfd_jax.heads import excuse_pairs
from signfd_jax.judging import attendance, news, read_backwards, steadiness
from signfd_jax.medians import capped_at_median, in_medians
from signfd_jax.structure import Structure, structure
from signfd_jax.tally import vote_tree

__all__ = [
    "CorrelationDefenseState",
    "correlation_defense",
    "error_of_mean",
    "past_structure",
]


# Variance of what an inverter's agreements lack of their due in one round, in variances
# of one correlation: about 1.8 in batches of 4, 2.7 in batches of 64 (MNIST, an MLP).
_SIDES_NOISE = 2.0


class CorrelationDefenseState(NamedTuple):
    """State of `correlation_defense`.

    Attributes:
        cd_round: int32 scalar, rounds decoded so far.
        cd_balance: float32 `[M, M]`, coordinates on which two workers agreed minus
            those on which they disagreed, decayed.
        cd_pairs: float32 `[M, M]`, coordinates on which both voted, decayed.
        cd_noise: float32 scalar, variance of one round's correlations around their
            mean over rounds.
        cd_rounds: float32 `[2]`, sums of the decay factors of all rounds and of their
            squares: together the effective number of rounds behind the means.
        cd_weights: float32 `[M]`, weights of the last round; ones at first.
        cd_strength: float32 `[M, M]`, mean over rounds of one round's |correlation|,
            decayed.
        cd_scatter: float32 scalar, variance of one round's correlations apart from
            their signs, which liars who change places turn.
        cd_sides: float32 `[3, M]`, each worker's agreement with those that were read
            straight, anywhere and where they were sure, summed over the rounds in
            which it voted; and the number of these; decayed.
        cd_labels: float32 `[2, M]`, each worker's label, in [-1, 1]: how surely it was
            of the larger camp, or of the smaller; and |label|; both summed over rounds,
            decayed.
    """

    cd_round: jax.Array
    cd_balance: jax.Array
    cd_pairs: jax.Array
    cd_noise: jax.Array
    cd_rounds: jax.Array
    cd_weights: jax.Array
    cd_strength: jax.Array
    cd_scatter: jax.Array
    cd_sides: jax.Array
    cd_labels: jax.Array


def correlation_defense(
    max_llr: float | jax.Array = 10.0,
    forgetting: float | jax.Array = 0.98,
    *,
    weighting: str = "label",
    sample_above: int = 64,
    max_coordinates: int = 16384,
    seed: int = 0,
) -> Decoder:
    r"""Read votes straight or backwards, as the correlations between workers say.

    $C_{jk} = \sum_n Y_{j,n} Y_{k,n} / \sum_n |Y_{j,n}| |Y_{k,n}|$, averaged over rounds
    with forgetting, this round included. `signfd_jax.structure.structure` finds in it
    the reliabilities $v_m = 1 - 2 p_m$, how surely each has a sign ($\ell_m$ in
    [0, 1]), copies, and a trust $\alpha$; the weights are

    $w_m = \alpha \frac{\ell_m \operatorname{sign} v_m}
    {\max(\text{copies}_m - 1, 1)^2}
    + (1 - \alpha) \frac{1}{\max(\text{blatant copies}_m - 1, 1)}$,

    clipped to the median |weight|. Reliability earns no more than one vote: liars who
    are honest on most coordinates could not be outvoted on the rest by honest workers
    who are less reliable than they; and what a single round says of it is noisy.
    (Together, k copies weigh about 1/k of one worker, but a pair is excused: with like
    data honest workers are nobody's copies; with very unlike data those that hold the
    same classes look like it.) A round whose own
    correlations contradict the mean, beyond their noise and on firm ground, is decoded
    by its own (`signfd_jax.judging.news`): liars who change places each round show
    only there. And a worker of negative weight that contradicts the others' closest
    votes only, in this round beyond doubt or in the mean over rounds, is not read
    backwards (`signfd_jax.judging.read_backwards`); nor is anybody by the past's
    weights while hardly a worker of the larger camp votes
    (`signfd_jax.judging.attendance`).
    Where the workers' votes do not fit the model (very unlike data, or honest workers
    that no longer can be told from colluders), or where the past has kept changing its
    mind about who is right (`signfd_jax.judging.steadiness`), this falls back,
    gradually, to a majority vote in which three and more undoubted copies share about
    one vote, if they are copies in this round, too.

    Args:
        max_llr: largest |log-likelihood ratio| (nats, positive scalar), with "llr".
        forgetting: factor in (0, 1] by which the past is multiplied each round
            (scalar). It trades noise against how soon a turncoat is found out: at .98
            the correlations are a mean over about 100 rounds.
        weighting: "label" as above; or "llr", with $\mathrm{LLR}(v_m) /
            \operatorname{median} |\mathrm{LLR}|$ for $\ell_m \operatorname{sign} v_m$,
            which errs less where honest workers differ (in their batch sizes, say)
            and the liars are no more reliable than they are anywhere.
        sample_above: above so many workers (int), correlations come from a sample.
        max_coordinates: size of that sample (int, coordinates), drawn anew each round.
        seed: seed of the key that the sample is drawn by (int).

    Returns:
        A `Decoder`. Its weights come from this round's votes too; `weights(state)` are
        those of the last round, float32 `[M]`, in [-1, 1].

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> decoder = correlation_defense()
        >>> truth = jax.random.rademacher(jax.random.key(0), (1000,), jnp.int8)
        >>> wrong = jax.random.bernoulli(jax.random.key(1), 0.3, (5, 1000))
        >>> votes = jnp.where(wrong, -truth[None], truth[None])
        >>> votes = votes * jnp.array([1, 1, 1, -1, -1], jnp.int8)[:, None]
        >>> state = decoder.init(5, jnp.zeros(1000))
        >>> decoded, state, info = decoder.decode(state, votes)
        >>> print(jnp.sign(info.weights), (decoded == truth).mean().round(1))
        [ 1.  1.  1. -1. -1.] 0.8

    References:
        Parisi, Strino, Nadler and Kluger, [Ranking and combining multiple predictors
        without labeled data](https://arxiv.org/abs/1303.3257), PNAS 2014; Jaffe,
        Fetaya, Nadler, Jiang and Kluger, [Unsupervised ensemble learning with
        dependent classifiers](https://arxiv.org/abs/1510.05830), AISTATS 2016.
    """
    check_number("max_llr", max_llr, 1e-6, 1e6)
    check_choice("weighting", weighting, ("label", "llr"))
    check_number("forgetting", forgetting, 1e-6, 1.0)
    check_size("sample_above", sample_above)
    check_size("max_coordinates", max_coordinates)
    check_size("seed", seed, 0)

    def weigh(found, seen):
        return _weights(found, seen, max_llr if weighting == "llr" else None)

    def init(num_workers, params):
        del params
        square = (num_workers, num_workers)
        return CorrelationDefenseState(
            cd_round=jnp.zeros((), jnp.int32),
            # Arrays of their own, so that the state can be donated.
            cd_balance=jnp.zeros(square, jnp.float32),
            cd_pairs=jnp.zeros(square, jnp.float32),
            cd_noise=jnp.zeros((), jnp.float32),
            cd_rounds=jnp.zeros((2,), jnp.float32),
            cd_weights=jnp.ones((num_workers,), jnp.float32),
            cd_strength=jnp.zeros(square, jnp.float32),
            cd_scatter=jnp.zeros((), jnp.float32),
            cd_sides=jnp.zeros((3, num_workers), jnp.float32),
            cd_labels=jnp.zeros((2, num_workers), jnp.float32),
        )

    @functools.partial(jax.jit, static_argnames="axis_name")
    def decode(state, votes, axis_name=None):
        key = jax.random.fold_in(jax.random.key(seed), state.cd_round)
        num_workers = state.cd_weights.shape[0]
        size = max_coordinates if num_workers > sample_above else None
        rows = sampled_rows(key, votes, size)
        balance, pairs = pair_counts(rows, rows, axis_name)
        state = _learn(state, balance, pairs, forgetting)
        _, past = past_structure(state, state.cd_weights)
        state = state._replace(cd_labels=_learn_labels(state, past, forgetting))
        weights, reliability, heed = _judge(state, past, balance, pairs, weigh)
        camp = (weights > 0) & _voted(pairs)
        sure = _sure_margin(camp, balance, pairs)
        agreement = camp_agreement(rows, camp, sure, axis_name)
        sides = _learn_sides(state, agreement, pairs, forgetting)
        state = state._replace(cd_sides=sides)
        weights = _look_at_sides(state, weights, agreement, heed)
        weights = capped_at_median(weights, _voted(state.cd_pairs))
        decoded, _, margin = vote_tree(votes, weights, largest=1.0, axis_name=axis_name)
        info = DecodeInfo(weights, (1 - reliability) / 2, margin)
        return decoded, state._replace(cd_weights=weights), info

    return Decoder(init, decode, lambda state: state.cd_weights, needs_unpacked="")


def past_structure(
    state: CorrelationDefenseState, previous: Float[Array, " M"]
) -> tuple[Float[Array, "M M"], Structure]:
    """What the votes of all rounds so far say about the workers.

    Args:
        state: the decoder's state, these rounds counted.
        previous: float `[M]`, weights of the round before the last.

    Returns:
        float32 `[M, M]`, the mean correlations, and the `Structure` found in them.

    Examples:
        >>> decoder = correlation_defense()
        >>> votes = jnp.array([[1, 1, -1], [1, 1, 1], [1, -1, -1]], jnp.int8)
        >>> state = decoder.init(3, jnp.zeros(3))
        >>> _, after, _ = decoder.decode(state, votes)
        >>> print(past_structure(after, state.cd_weights)[0][0] * 3)
        [3. 1. 1.]
    """
    correlation = _ratio(state.cd_balance, state.cd_pairs)
    return correlation, structure(
        correlation,
        error_of_mean(state.cd_noise, state.cd_rounds),
        _voted(state.cd_pairs),
        jnp.where(state.cd_round == 1, 0.0, previous),
        _experience(state),
    )


def error_of_mean(
    variance: Float[Array, "..."], rounds: Float[Array, "2"]
) -> Float[Array, "..."]:
    r"""Standard error of a mean over rounds of which the past ones are decayed.

    $\sqrt{\sigma^2 \sum_t a_t^2} / \sum_t a_t$ with factors of decay $a_t$.

    Args:
        variance: float, any shape: $\sigma^2$, of what is averaged in one round.
        rounds: float `[2]`, $\sum_t a_t$ and $\sum_t a_t^2$, as in the state.

    Returns:
        float, shape of `variance`; NaN before the first round.

    Examples:
        >>> print(error_of_mean(jnp.array(4.0), jnp.array([100.0, 100.0])).round(6))
        0.2
    """
    factors, squares = rounds
    return jnp.sqrt(variance * squares) / factors


def _learn_labels(state, past, forgetting):
    """Fold in which camp each worker is of, by what all rounds say."""
    label = jnp.sign(past.reliability) * past.labelled
    labels = jnp.asarray(forgetting, jnp.float32) * state.cd_labels
    return labels + jnp.stack([label, jnp.abs(label)])


def _judge(state, past, balance, pairs, weigh):
    """Weights and reliabilities, and how far they are of this round, not the past."""
    seen, here = _voted(state.cd_pairs), _voted(pairs)
    # One round says nothing of consistency: no experience.
    error = jnp.sqrt(state.cd_scatter)
    nothing = jnp.zeros_like(past.reliability)
    now = structure(_ratio(balance, pairs), error, here, nothing, 0.0)
    # In a round in which they are not alike, workers are nobody's copies.
    copies = jnp.minimum(past.blatant_copies, now.blatant_copies)
    past = past._replace(
        trust=past.trust * attendance(past, here),
        blatant_copies=jnp.where(here, copies, past.blatant_copies),
    )
    experience = _experience(state)
    doubt = experience * (1 - steadiness(past, state.cd_labels))
    doubted = past._replace(trust=past.trust * (1 - doubt))
    weights = weigh(doubted, seen)
    # Doubt in the past does not make a round news.
    heed = news(past, now, state.cd_strength, weights, here, experience)

    def mix(old, new):
        return (1 - heed) * old + heed * new

    weights = mix(weights, weigh(now, here))
    return weights, mix(past.reliability, now.reliability), heed


def _experience(state):
    """How well the scatter of a round is known: after some rounds only."""
    return jnp.clip(state.cd_rounds[0] / 5 - 1, 0.0, 1.0)


def _sure_margin(camp, balance, pairs):
    """From which margin of the camp's votes on its majority is sure of a sign.

    Large as margins go, or three quarters of the camp where it mostly agrees.
    """
    squares = jnp.sum(jnp.where(camp[:, None] & camp[None, :], balance, 0.0))
    typical = jnp.sqrt(squares / jnp.maximum(jnp.max(pairs), 1.0))
    return jnp.minimum(1.5 * typical, 0.75 * _count(camp))


def _learn_sides(state, agreement, pairs, forgetting):
    """Fold in how far each worker sides with those that are read straight."""
    anywhere, where_sure, _ = agreement
    now = jnp.stack([anywhere, where_sure, _voted(pairs).astype(jnp.float32)])
    return jnp.asarray(forgetting, jnp.float32) * state.cd_sides + now


def _look_at_sides(state, weights, agreement, heed):
    """The weights, but for those who only lie where the others are not sure."""
    anywhere, where_sure, votes = agreement
    # The signs of coordinates depend on each other: more noise than that of votes.
    variance = 1 / jnp.maximum(votes, 1.0) + _SIDES_NOISE * state.cd_scatter
    of_round = anywhere, where_sure, jnp.sqrt(variance)
    anywhere, where_sure, _ = state.cd_sides / positive(state.cd_sides[2:])
    error = error_of_mean(variance, state.cd_rounds)
    of_rounds = anywhere, where_sure, error
    # Of a round that is news, the means know nothing.
    experience = _experience(state) * (1 - heed)
    return read_backwards(weights, of_round, of_rounds, experience)


def _weights(found: Structure, seen, max_llr):
    """By label, or by log-likelihood ratio where that has a bound."""
    if max_llr is None:
        informed = found.label
    else:
        llr = llr_weights((1 - found.reliability) / 2, max_llr=max_llr)
        informed = in_medians(llr, seen)
    informed = informed / excuse_pairs(found.copies) ** 2
    cautious = 1.0 / excuse_pairs(found.blatant_copies)
    return capped_at_median(found.trust * informed + (1 - found.trust) * cautious, seen)


def _learn(state, balance, pairs, forgetting):
    """Fold one round's counts into the means, and learn how noisy a round is."""
    rounds, squares = state.cd_rounds
    forgetting = jnp.asarray(forgetting, jnp.float32)
    off = ~jnp.eye(balance.shape[0], dtype=bool)
    correlation = _ratio(balance, pairs)
    # The first round has nothing to be compared with: assume that the signs of
    # coordinates are nearly independent (their variance is 1 / pairs).
    total = jnp.sum(jnp.where(off, pairs, 0.0))
    first = 4.0 * _count(off & (pairs > 0)) / jnp.maximum(total, 1.0)
    known = off & (pairs > 0) & (state.cd_pairs > 0)

    def mean_square(values):
        total = jnp.sum(jnp.where(known, values**2, 0.0))
        return total / jnp.maximum(_count(known), 1.0)

    def variance(at_first, now, mean):
        """One round's variance, given its deviation from a mean of rounds before."""
        now = now / (1 + squares / positive(rounds) ** 2)
        later = jnp.where(state.cd_round == 1, now, 0.9 * mean + 0.1 * now)
        return jnp.where(state.cd_round == 0, at_first, later)

    surprise = correlation - _ratio(state.cd_balance, state.cd_pairs)
    strength = jnp.abs(correlation)
    deviation = mean_square(strength - state.cd_strength)
    deviation = deviation * _unfolding(mean_square(state.cd_strength), deviation)
    new_rounds = forgetting * rounds + 1
    step = jnp.where(pairs > 0, strength - state.cd_strength, 0.0)
    return state._replace(
        cd_round=state.cd_round + 1,
        cd_balance=forgetting * state.cd_balance + balance,
        cd_pairs=forgetting * state.cd_pairs + pairs,
        cd_noise=variance(first, mean_square(surprise), state.cd_noise),
        cd_rounds=jnp.stack([new_rounds, forgetting**2 * squares + 1]),
        cd_strength=state.cd_strength
        + jnp.where(state.cd_pairs > 0, step / new_rounds, step),
        cd_scatter=variance(first, deviation, state.cd_scatter),
    )


def _unfolding(mean_square, deviation):
    r"""Variance of a normal variable over that of its absolute value.

    It depends on the ratio of mean and deviation only: the points are those of $|\mu| /
    \sigma$ = 0, 1, 2 and 3.
    """
    ratio = mean_square / jnp.maximum(deviation, 1e-12)
    points = jnp.array([1.75, 2.12, 4.37, 9.0], jnp.float32)
    factors = jnp.array([2.75, 1.56, 1.07, 1.0], jnp.float32)
    return jnp.interp(ratio, points, factors)


def _voted(pairs):
    # Decayed counts never vanish; less than one vote is none.
    return jnp.diagonal(pairs) >= 1


def _count(mask):
    return jnp.sum(mask, dtype=jnp.int32).astype(jnp.float32)


def _ratio(balance, pairs):
    return balance / positive(pairs)

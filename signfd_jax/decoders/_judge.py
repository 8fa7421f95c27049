"""What the correlations of a round say: weights, and how sure they are.

Shapes: `M` workers, `K` of them a committee.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from signfd_jax.decoders._pairs import count, median, near_one, over_members, ramp
from signfd_jax.decoders._sides import reached_by_half, side_tests, two_sides

# After so many rounds a duplicate is named: in the first ones all gradients may agree.
_ROUNDS = 2


class Judgement(NamedTuple):
    """What is made of the workers; float32 `[M]` where nothing else is said.

    Attributes:
        weights: of their votes, before stakes and shares.
        caught: who was wrong when that was last sure.
        reliability: how much more often right than wrong, about.
        polarity: -1 if its votes are surely the wrong way round, 1 if surely right.
        confidence: float32 scalar in [0, 1].
        correlation: its mean correlation with the right side.
        error: the standard error of that.
        test: how many standard errors it is, and both sides say so.
        copied: int32 `[M]`, the first worker that has long sent the same; -1: none.
    """

    weights: jax.Array
    caught: jax.Array
    reliability: jax.Array
    polarity: jax.Array
    confidence: jax.Array
    correlation: jax.Array
    error: jax.Array
    test: jax.Array
    copied: jax.Array


def judge(of, state, seen, stakes=None) -> Judgement:
    """Judge the workers that were ever seen, bool `[M]`, by a state's correlations.

    `of` are the `Thresholds`; `stakes`, float32 `[M]`, are how many workers each counts
    as, 0 where it was never seen; None: one.
    """
    members, rounds = state.cd_committee, state.cd_rounds
    pair = rounds > 0
    correlation = jnp.where(pair, state.cd_mean, 0.0)
    strength = jnp.abs(correlation)
    error = jnp.sqrt(state.cd_noise / jnp.maximum(rounds, 1e-6))
    voters = jnp.maximum(count(seen), 1.0)
    stake = seen.astype(jnp.float32) if stakes is None else stakes
    met = over_members(pair)

    held = jnp.where(pair, stake[members][:, None], 0.0)

    # Duplicates.
    ranked = jnp.where(pair, strength, -1.0)
    if stakes is None:
        rank = (voters - 1) // 2 * met // jnp.maximum(voters - 1, 1.0) - 1
        usual = jnp.maximum(_of_rank(ranked, rank), 1e-6)
        middle = median(usual, seen)
    else:
        usual = _usual_of_stake(ranked, held)
        middle = jnp.maximum(reached_by_half(usual, stakes), 1e-6)
    explained = usual[members][:, None] * usual[None] / middle
    beyond = strength - of.slack * jnp.minimum(explained, 1.0)
    others = (voters - 1) / jnp.maximum(met, 1.0)  # whom a member stands for

    def total(values):
        return others * over_members(jnp.where(pair, values, 0.0))

    copy = ramp(beyond, of.duplicate)
    lone = 1 / (1 + total(copy))
    effective = jnp.where(seen, stake * lone, 0.0)
    alike = near_one(correlation, of.alike)
    reach = (jnp.sum(stake) - stake) / jnp.maximum(over_members(held), 1e-9)
    like_me = stake + reach * over_members(alike * held)
    # Of more than half of the workers one is honest.
    few = 1 - jnp.clip(2 * like_me - jnp.sum(stake), 0.0, 1.0)
    few = few * (1 - state.cd_shared)
    pairs = jnp.minimum(few[members][:, None], few[None])
    exact = few * total(near_one(correlation, of.exact) * pairs)
    named = (rounds > _ROUNDS) & (strength > 1 - of.alike) & (beyond > 0)
    same = named & (pairs > 0)
    copied = jnp.min(jnp.where(same, members[:, None], len(seen)), axis=0)
    copied = jnp.where(copied < len(seen), copied, -1)

    vector, share = two_sides(correlation, error, effective, members, of.significant)
    # With who is absent, a worker was last compared long ago.
    recent = jnp.maximum(jnp.max(rounds, axis=0, keepdims=True), 1e-6)
    # Who copies a worker says nothing of it.
    witness = 1 - (1 - state.cd_shared) * copy
    share = share[:, None] * (rounds / recent) * witness
    aligned, deviation, weakest = side_tests(vector, share, correlation, error)
    size = jnp.abs(aligned)
    polarity = jnp.sign(aligned) * ramp(size / deviation, of.significant)
    lead = jnp.sum(polarity * effective) / jnp.maximum(jnp.sum(effective), 1e-9)
    lead_of_all = jnp.sum(polarity * stake) / jnp.maximum(jnp.sum(stake), 1e-9)
    right = jnp.where(lead + lead_of_all < 0, -1.0, 1.0)
    polarity, aligned = right * polarity, right * aligned

    # Confidence: what more than half of the workers, and the effective ones, reach.
    up = jnp.minimum(aligned / deviation, jnp.where(right > 0, *weakest))
    down = jnp.minimum(-aligned / deviation, jnp.where(right > 0, *weakest[::-1]))
    tests = jnp.where(seen, up, -jnp.inf)
    firm = jnp.minimum(*(reached_by_half(tests, each) for each in (stake, effective)))
    confidence = ramp(firm, of.majority)

    # Weights.
    wrong = jnp.maximum(-polarity, 0.0)
    sure = jnp.where(seen, ramp(confidence, 0.5), 0.0)
    # Doubt that is not for want of signal: they change sides, or have unlike data.
    signal = jnp.sum(rounds * state.cd_strength) / jnp.maximum(jnp.sum(rounds), 1e-6)
    heard = ramp(signal / jnp.sqrt(state.cd_noise), of.significant)
    caught = (1 - heard * (1 - confidence)) * state.cd_caught
    caught = caught + sure * (wrong - caught)
    in_doubt = 1 / jnp.maximum(exact, 1.0) ** 2
    in_doubt = in_doubt - caught * (in_doubt + lone**2)
    # In this form what is equal stays equal, to the bit.
    weights = in_doubt + confidence * ((1 - 2 * wrong) * lone**2 - in_doubt)
    typical = jnp.sum(effective * size) / jnp.maximum(jnp.sum(effective), 1e-9)
    reliability = jnp.clip(aligned / jnp.sqrt(jnp.maximum(typical, 1e-9)), -1.0, 1.0)
    return Judgement(
        weights=jnp.where(seen, weights, 1.0),
        caught=caught,
        reliability=reliability,
        polarity=polarity,
        confidence=confidence,
        correlation=aligned,
        error=deviation,
        test=jnp.where(up >= down, jnp.maximum(up, 0.0), -jnp.maximum(down, 0.0)),
        copied=copied,
    )


def _of_rank(values, rank):
    """The value of a rank in each column, 0 the largest; it is at least 0."""
    rank = jnp.maximum(rank, 0.0)
    if len(values) == values.shape[1]:
        ranked = jnp.sort(values, axis=0, descending=True)
        return _taken(ranked, rank)
    # Many columns: bit by bit, the highest first. That is far faster than sorting.
    bits = lax.bitcast_convert_type(values, jnp.int32)

    def with_bit(number, found):
        longer = found | (1 << (30 - number))
        return jnp.where(over_members(bits >= longer[None]) > rank, longer, found)

    found = lax.fori_loop(0, 31, with_bit, jnp.zeros(rank.shape, jnp.int32))
    return lax.bitcast_convert_type(found, jnp.float32)


def _usual_of_stake(strength, held):
    """What each worker's strengths exceed with half of the stake it has met."""
    order = jnp.argsort(strength, axis=0, descending=True)
    ranked = jnp.take_along_axis(strength, order, axis=0)
    summed = jnp.cumsum(jnp.take_along_axis(held, order, axis=0), axis=0)
    rank = jnp.maximum(over_members(summed <= summed[-1:] / 2) - 1, 0.0)
    return jnp.maximum(_taken(ranked, rank), 1e-6)


def _taken(ranked, rank):
    """One value of each column."""
    return jnp.take_along_axis(ranked, rank.astype(jnp.int32)[None], axis=0)[0]

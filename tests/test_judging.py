"""When to act on what correlations say: now, in this round, on this worker."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from camps import THRESHOLDS, find, liars, ramp

from signfd_jax.agreement import camp_agreement
from signfd_jax.judging import attendance, news, read_backwards, steadiness


@pytest.mark.parametrize(
    ("before", "after", "error", "expected"),
    [
        (liars(0, 1, 2), liars(0, 1, 2), 0.01, 0),  # nothing new
        (liars(), liars(3, 4, 5), 0.01, 1),  # some turned
        (liars(0, 1, 2), liars(3, 4, 5), 0.01, 1),  # others lie
        (liars(), liars(3, 4, 5), 0.1, 0),  # in the noise
        (liars(), np.zeros(15), 0.01, 0),  # nothing to see in this round
    ],
)
@pytest.mark.parametrize("twins", [0, 5])
def test_news_is_what_the_past_does_not_know(before, after, error, expected, twins):
    everyone = jnp.ones(15, bool)
    nothing = jnp.zeros(15)

    def look(v, error):
        return find(jnp.float32(np.outer(v, v)), jnp.float32(error), everyone, nothing)

    past, now = look(before, 0.001), look(after, error)
    strength = np.outer(np.abs(before), np.abs(before))
    for j in range(twins):  # With data so unlike, reliabilities change by themselves.
        strength[2 * j, 2 * j + 1] = strength[2 * j + 1, 2 * j] = 0.9
    weights = jnp.sign(past.reliability)
    heed = jax.jit(news)(past, now, jnp.float32(strength), weights, everyone)
    assert float(heed) == (0 if twins else expected)


@pytest.mark.parametrize(("experience", "expected"), [(0.0, 1), (1.0, 0)])
def test_pairs_in_the_past_forbid_news_once_there_is_experience(experience, expected):
    everyone, nothing = jnp.ones(15, bool), jnp.zeros(15)
    before = np.outer(liars(), liars())
    for j in range(5):
        before[2 * j, 2 * j + 1] = before[2 * j + 1, 2 * j] = 0.9
    now = liars(3, 4, 5)
    error = jnp.float32(0.001)
    past = find(jnp.float32(before), error, everyone, nothing)._replace(trust=0.0)
    now = find(jnp.float32(np.outer(now, now)), 10 * error, everyone, nothing)
    strength = jnp.full((15, 15), 0.09)
    arguments = past, now, strength, jnp.ones(15), everyone
    assert float(news(*arguments, jnp.float32(experience))) == expected


@pytest.mark.parametrize(("size", "expected"), [(0.0, 0), (0.3, 1)])
def test_news_that_leaves_out_more_workers_than_agree_is_not_heeded(size, expected):
    """Two turn away from thirteen, of whom seven agree visibly in one round or not."""
    everyone, nothing = jnp.ones(15, bool), jnp.zeros(15)
    before, after = np.full(15, 0.3), np.full(15, 0.3)
    after[:2], after[8:] = -0.3, size
    past = find(jnp.float32(np.outer(before, before)), 1e-4, everyone, nothing)
    correlation = jnp.float32(np.outer(after, after))
    now = find(correlation, 0.01, everyone, nothing, jnp.float32(0.0))
    assert float(now.trust) == 1
    past = past._replace(trust=jnp.float32(0.0))
    heed = news(past, now, jnp.abs(correlation), jnp.ones(15), everyone)
    assert float(heed) == expected


def test_news_that_contradicts_all_the_past_is_not_heeded():
    """The signs of all workers turned at once: it is the head count that has failed."""
    everyone, nothing = jnp.ones(15, bool), jnp.zeros(15)
    v = liars(*range(7))
    past = find(jnp.float32(np.outer(v, v)), jnp.float32(0.001), everyone, nothing)
    turned = past._replace(reliability=-past.reliability)
    strength = jnp.float32(np.outer(v, v))
    weights = jnp.sign(past.reliability)
    assert float(news(past, turned, strength, weights, everyone)) == 0


def naive_sides(votes, camp, margin):
    """Each worker against the camp's majority, coordinate by coordinate."""
    tally = votes[camp].sum(axis=0)
    sides = []
    for row in votes:
        compared = row * np.sign(tally)
        sure = compared[(compared != 0) & (np.abs(tally) >= margin)]
        anywhere = compared[compared != 0]
        sides.append((anywhere.mean(), sure.mean(), 1 / math.sqrt(len(sure))))
    return sides


def naive_doubt(anywhere, where_sure, error, shortfall):
    due = max(-anywhere, 0)
    missing = 1 - ramp(-where_sure / max(due, 1e-9), "_CONSISTENT")
    lacking = THRESHOLDS["_CONSISTENT"][1] * due + where_sure
    return missing * ramp(lacking / error, shortfall)


@pytest.mark.parametrize(
    ("share", "expected"), [(None, -0.8), (0.3, 0), (0.5, 0), (0.8, None), (1.0, -0.8)]
)
def test_who_lies_only_where_the_vote_is_close_is_not_read_backwards(share, expected):
    """Seven oppose the others on that share of the coordinates; None: they invert."""
    rng = np.random.default_rng(0)
    signal = rng.normal(size=20_000)
    votes = np.sign(signal + 2 * rng.normal(size=(15, 20_000))).astype(np.int8)
    honest = votes[7:].sum(axis=0)
    if share is None:
        votes[:7] *= -1
    else:
        close = np.argsort(np.abs(honest), kind="stable")[: int(share * 20_000)]
        votes[:7, close] = -np.sign(honest[close])
    camp = np.arange(15) >= 7
    weights = np.where(camp, 1.0, -0.8)
    margin = 1.5 * np.sqrt(np.mean(np.square(honest, dtype=np.float64)))
    agreement = camp_agreement([jnp.asarray(votes)], jnp.asarray(camp), margin)
    of_round = *agreement[:2], 1 / jnp.sqrt(agreement[2])
    of_rounds = *agreement[:2], jnp.full(15, 0.1)
    found = read_backwards(jnp.float32(weights), of_round, of_rounds)
    wanted = [
        weight * (1 - max(
            naive_doubt(*sides, "_SHORTFALL_NOW"),
            naive_doubt(*sides[:2], 0.1, "_SHORTFALL"),
        ))
        if weight < 0 else weight
        for weight, sides in zip(weights, naive_sides(votes, camp, margin), strict=True)
    ]  # fmt: skip
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    np.testing.assert_array_equal(found[7:], 1)
    if expected is not None:
        np.testing.assert_allclose(found[:7], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("experience", "error", "expected"),
    [(1.0, 0.02, 0), (0.0, 0.02, -1), (1.0, 0.3, -1)],
)
def test_what_one_round_does_not_show_the_mean_over_rounds_does(
    experience, error, expected
):
    one = jnp.ones(1)
    doubtful = -0.3 * one, 0.0 * one
    found = read_backwards(
        -one, (*doubtful, 0.1 * one), (*doubtful, error * one), jnp.float32(experience)
    )
    assert float(found[0]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("larger", "smaller", "expected"),
    [
        (8, 7, 1),
        (3, 7, 1),
        (2, 7, (2 / 7 - 0.15) / 0.15),
        (1, 7, 0),
        (0, 3, 0),
        (0, 0, 1),
    ],
)
def test_attendance_counts_the_camps_that_vote(larger, smaller, expected):
    v = liars(*range(7))
    found = find(jnp.float32(np.outer(v, v)), 0.001, jnp.ones(15, bool), jnp.zeros(15))
    sign = np.sign(found.reliability)
    assert (sign > 0).sum() == 8 and float(found.labelled.min()) == 1
    here = np.zeros(15, bool)
    here[np.flatnonzero(sign > 0)[:larger]] = True
    here[np.flatnonzero(sign < 0)[:smaller]] = True
    assert float(attendance(found, jnp.asarray(here))) == pytest.approx(expected, 1e-4)


@pytest.mark.parametrize(
    ("steady", "expected"), [(1.0, 1), (0.9, 1), (0.8, 0.5), (0.7, 0), (-1.0, 0)]
)
def test_steadiness_asks_those_of_the_larger_camp(steady, expected):
    """Half of the eight have always been of it; the seven have no say."""
    v = liars(*range(7))
    found = find(jnp.float32(np.outer(v, v)), 0.001, jnp.ones(15, bool), jnp.zeros(15))
    assert float(found.labelled.min()) == float(found.copies.max()) == 1
    sizes = np.linspace(1, 50, 15)
    for seven in (-1, 0, 1):
        shares = np.r_[np.full(7, seven), np.ones(4), np.full(4, 2 * steady - 1)]
        labels = jnp.float32([shares * sizes, sizes])
        assert float(steadiness(found, labels)) == pytest.approx(expected, abs=1e-4)

"""What correlations say about the workers, against loops and by its symmetries."""

import math

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from camps import THRESHOLDS, find, liars, ramp
from hypothesis import given, settings
from hypothesis import strategies as st


def naive_median(values):
    return float(np.median(values)) if len(values) else 0.0


def naive_copies(strength, predicted, name, workers):
    copies = {}
    for j in workers:
        copies[j] = 1.0
        for k in workers:
            if k != j:
                beyond = strength[j][k] - THRESHOLDS["_SLACK"] * predicted[j][k]
                identical = ramp(strength[j][k], "_IDENTICAL")
                copies[j] += max(ramp(beyond, name), identical)
    return copies


def naive_consistency(correlation, aligned, labelled, copies, scale, error):
    """Reliabilities, where a liar is less wrong than it seems nearer to 0 or beyond."""
    camp = {j: labelled[j] / copies[j] for j in aligned if aligned[j] > 0}
    size = max(sum(camp.values()), 1e-9)
    spread = math.sqrt(max(sum(x**2 for x in camp.values()), 1e-9)) / size
    typical = sum(camp[j] * abs(aligned[j]) for j in camp) / size
    consistent = dict(aligned)
    for j in aligned:
        if aligned[j] < 0:
            across = -sum(correlation[j][k] * camp[k] for k in camp) / size
            due = abs(aligned[j]) * typical / scale**2
            shortfall = THRESHOLDS["_CONSISTENT"][1] * due - across
            missing = 1 - ramp(across / max(due, 1e-9), "_CONSISTENT")
            missing *= ramp(shortfall / (error * spread), "_SHORTFALL")
            towards = max(-across, 0.0) * scale**2 / max(typical, 1e-9)
            consistent[j] += missing * (towards - consistent[j])
    return consistent


def naive_structure(correlation, error, seen, previous):
    """The docstring of `structure`, in loops over the workers that were seen.

    None where two answers are right: equal eigenvalues, or a tie of the head count.
    """
    workers = [j for j in range(len(seen)) if seen[j]]
    strength = np.abs(correlation)
    distinct = np.where(strength > THRESHOLDS["_IDENTICAL"][0], 0.0, strength)
    typical = {}
    for j in workers:
        row = sorted((distinct[j][k] for k in workers if k != j), reverse=True)
        rank = max((len(workers) - 1) // 2 - 1, 0)
        typical[j] = max(row[rank] if row else 0.0, 1e-6)
    middle = naive_median(list(typical.values()))
    predicted = np.zeros_like(strength)
    for j in workers:
        for k in workers:
            predicted[j][k] = typical[j] * typical[k] / middle
    copies = naive_copies(strength, predicted, "_COPY", workers)
    blatant = naive_copies(strength, predicted, "_BLATANT_COPY", workers)

    links = np.zeros_like(strength)
    for j in workers:
        for k in workers:
            if k != j:
                sign = np.sign(correlation[j][k])
                links[j][k] = sign * ramp(strength[j][k] / error, "_LINK")
    scaled = [[links[j][k] / math.sqrt(copies[j] * copies[k]) for k in workers]
              for j in workers]  # fmt: skip
    values, vectors = np.linalg.eigh(np.reshape(scaled, (len(workers),) * 2))
    if len(workers) > 1 and values[-1] - values[-2] < 1e-3:
        return None
    vector = vectors[:, -1] if workers else []
    leading = {
        j: x * math.sqrt(copies[j]) for j, x in zip(workers, vector, strict=True)
    }
    largest = max((abs(x) for x in leading.values()), default=0.0)
    camp = {}
    for j in workers:
        member = min(2 * abs(leading[j]) / max(largest, 1e-9), 1.0)
        camp[j] = np.sign(leading[j]) * member / copies[j]
    aligned, deviation, labelled = {}, {}, {}
    for j in workers:
        others = [k for k in workers if k != j]
        weight = max(sum(abs(camp[k]) for k in others), 1e-9)
        spread = math.sqrt(max(sum(camp[k] ** 2 for k in others), 1e-9))
        aligned[j] = sum(correlation[j][k] * camp[k] for k in others) / weight
        deviation[j] = abs(aligned[j]) / (error * spread / weight)
        labelled[j] = ramp(deviation[j], "_LABEL")

    merged = sum(np.sign(aligned[j]) * labelled[j] / copies[j] for j in workers)
    excused = sum(
        np.sign(aligned[j]) * labelled[j] / max(copies[j] - 1, 1) for j in workers
    )
    memory = [np.sign(aligned[j]) * labelled[j] / copies[j] * previous[j]
              for j in workers]  # fmt: skip
    kept = sum(memory) / max(sum(abs(x) for x in memory), 1e-9)
    lead = excused + THRESHOLDS["_INERTIA"] * kept + THRESHOLDS["_TIE"] * merged
    if any(aligned.values()) and abs(lead) < 1e-4:
        return None  # The sign of the eigenvector, which is arbitrary, decides.
    if lead < 0:
        aligned = {j: -x for j, x in aligned.items()}
        merged, excused = -merged, -excused
    pairs = sum(1 / max(copies[j] - 1, 1) - 1 / copies[j] for j in workers)
    few, share = THRESHOLDS["_FEW_PAIRS"]
    lead = max(merged, excused)
    lead -= THRESHOLDS["_LEAD_PER_PAIR"] * max(
        pairs - max(few, share * len(workers)), 0
    )

    heads = sum(1 / copies[j] for j in workers)
    mean = sum(abs(aligned[j]) / copies[j] for j in workers) / max(heads, 1e-9)

    def due(j, k):
        predicted = abs(aligned[j] * aligned[k]) / max(mean, 1e-9)
        if j == k:
            return 0.0
        return ramp(THRESHOLDS["_DUE"] * predicted / error, "_LINK")

    def balance(camp):
        explained = total = 0.02
        for j in camp:
            for k in camp:
                pair = labelled[j] * labelled[k] / copies[j] / copies[k]
                agree = np.sign(aligned[j]) * np.sign(aligned[k])
                explained += pair * links[j][k] * agree
                total += pair * max(abs(links[j][k]), due(j, k))
        return explained / total

    fit = min(
        balance(workers),
        balance([j for j in workers if aligned[j] > 0]),
        balance([j for j in workers if aligned[j] < 0]),
    )
    labelled_heads = sum(labelled[j] / copies[j] for j in workers)
    leaning = {j: np.sign(aligned[j]) * math.erf(deviation[j] / math.sqrt(2))
               for j in workers}  # fmt: skip
    majority = min(
        labelled_heads / max(heads, 1e-9),
        sum(labelled.values()) / max(len(workers), 1),
    )
    typical_size = naive_median([abs(x) for x in aligned.values()])
    influence = {
        j: min(abs(aligned[j]) / max(typical_size, 1e-9), 1.0) / copies[j]
        for j in workers
    }
    wrong = sum(influence[j] * math.erfc(deviation[j] / math.sqrt(2)) / 2
                for j in workers)  # fmt: skip
    wrong /= max(sum(influence.values()), 1e-9)
    lead -= heads - labelled_heads
    lead = min(
        lead,
        max(
            sum(leaning[j] / copies[j] for j in workers),
            sum(leaning[j] / max(copies[j] - 1, 1) for j in workers),
        ),
    )
    lead_wanted = THRESHOLDS["_LEAD_PER_IMBALANCE"] * (1 - fit)
    unanimous = ramp(lead / max(heads, 1e-9), "_UNANIMOUS")
    trust = (
        ramp(fit + THRESHOLDS["_BALANCE_EXCUSED"] * unanimous, "_BALANCE")
        * ramp(majority, "_MAJORITY")
        * ramp(lead - lead_wanted, "_LEAD")
        * ramp(wrong, "_MISLABELLED")
    )
    scale = math.sqrt(max(mean, 1e-9))
    consistent = naive_consistency(correlation, aligned, labelled, copies, scale, error)
    every = range(len(seen))
    label = {j: labelled[j] * min(consistent[j] / max(abs(aligned[j]), 1e-9), 1.0)
             for j in workers}  # fmt: skip
    return (
        [min(max(consistent.get(j, 0.0) / scale, -1.0), 1.0) for j in every],
        [copies.get(j, 1.0) for j in every],
        [blatant.get(j, 1.0) for j in every],
        trust if len(workers) >= 3 else 0.0,
        [label.get(j, 0.0) for j in every],
    )


def random_correlation(rng, num_workers):
    """Rank one, with noise, copies and liars, as an instance may have them."""
    v = rng.uniform(0.2, 0.9, num_workers) * rng.choice([-1, 1, 1], num_workers)
    correlation = np.outer(v, v)
    group = rng.random(num_workers) < rng.choice([0.0, 0.3])
    pull = rng.choice([0.3, 0.6, 1.0])
    correlation = np.where(np.outer(group, group), pull, correlation)
    noise = rng.normal(0, rng.choice([0.01, 0.1]), correlation.shape)
    correlation = np.clip(correlation + np.triu(noise) + np.triu(noise, 1).T, -1, 1)
    return np.float32(correlation)


@settings(max_examples=40)
@given(num_workers=st.sampled_from([1, 2, 3, 4, 7, 8]), seed=st.integers(0, 2**16))
def test_structure_is_what_loops_find(num_workers, seed):
    rng = np.random.default_rng(seed)
    correlation = random_correlation(rng, num_workers)
    seen = rng.random(num_workers) < rng.choice([0.8, 1.0])
    previous = np.float32(rng.uniform(-1, 1, num_workers) * rng.choice([0, 1]))
    error = np.float32(rng.choice([0.003, 0.03]))
    expected = naive_structure(correlation, error, seen, previous)
    hypothesis.assume(expected is not None)
    found = find(*map(jnp.asarray, (correlation, error, seen, previous)))
    np.testing.assert_allclose(found.copies, expected[1], atol=1e-3)
    np.testing.assert_allclose(found.blatant_copies, expected[2], atol=1e-3)
    np.testing.assert_allclose(found.reliability, expected[0], atol=5e-3)
    assert float(found.trust) == pytest.approx(expected[3], abs=2e-2)
    np.testing.assert_allclose(found.label, expected[4], atol=2e-2)


@pytest.mark.parametrize("num_workers", [3, 4, 15, 40])
def test_equally_reliable_workers_are_recovered_without_noise(num_workers):
    rng = np.random.default_rng(num_workers)
    for size in (0.1, 0.4, 0.8):
        v = np.full(num_workers, size)
        v[rng.permutation(num_workers)[: (num_workers - 1) // 2]] *= -1
        found = find(
            jnp.float32(np.outer(v, v)),
            jnp.float32(1e-3),
            jnp.ones(num_workers, bool),
            jnp.zeros(num_workers),
        )
        np.testing.assert_allclose(found.reliability, v, atol=1e-5)
        np.testing.assert_array_equal(found.copies, np.ones(num_workers))
        assert float(found.trust) == 1


def test_unequally_reliable_workers_keep_sign_order_and_nearly_size():
    v = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, -0.2, -0.4, -0.6])
    found = find(
        jnp.float32(np.outer(v, v)), jnp.float32(1e-3), v != 0, jnp.zeros(len(v))
    )
    reliability = np.asarray(found.reliability)
    np.testing.assert_array_equal(np.sign(reliability), np.sign(v))
    np.testing.assert_array_equal(np.argsort(reliability), np.argsort(v))
    np.testing.assert_allclose(reliability, v, rtol=0.1)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**16))
def test_negated_workers_are_read_backwards_and_nothing_else_changes(seed):
    rng = np.random.default_rng(seed)
    v = rng.uniform(0.2, 0.8, 11)
    noise = rng.normal(0, 0.005, (11, 11))
    correlation = np.outer(v, v) + np.triu(noise) + np.triu(noise, 1).T
    flips = np.where(np.arange(11) < rng.integers(1, 6), -1, 1)
    arguments = jnp.float32(0.005), jnp.ones(11, bool), jnp.zeros(11)
    found = find(jnp.float32(correlation), *arguments)
    turned = find(jnp.float32(correlation * np.outer(flips, flips)), *arguments)
    np.testing.assert_allclose(
        turned.reliability, flips * np.asarray(found.reliability), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(turned.copies, found.copies, rtol=1e-5)
    assert float(turned.trust) == pytest.approx(float(found.trust), abs=1e-3)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**16))
def test_unseen_workers_count_nowhere(seed):
    rng = np.random.default_rng(seed)
    correlation = random_correlation(rng, 9)
    previous = np.float32(rng.uniform(-1, 1, 9))
    error = jnp.float32(0.01)
    found = find(
        jnp.asarray(correlation), error, jnp.ones(9, bool), jnp.asarray(previous)
    )
    seen = np.arange(12) % 4 != 1
    larger = np.full((12, 12), np.float32(0.5))
    larger[np.ix_(seen, seen)] = correlation
    before = np.ones(12, np.float32)
    before[seen] = previous
    with_unseen = find(*map(jnp.asarray, (larger, error, seen, before)))
    for name in ("reliability", "copies", "blatant_copies"):
        one, other = getattr(found, name), np.asarray(getattr(with_unseen, name))
        np.testing.assert_allclose(other[seen], one, atol=2e-3)
        np.testing.assert_array_equal(other[~seen], 0 if name == "reliability" else 1)
    assert float(with_unseen.trust) == pytest.approx(float(found.trust), abs=1e-2)


def test_identical_workers_share_one_head():
    """Six identical colluders are one head against nine honest workers of v = .3."""
    v = np.full(15, 0.3)
    v[:6] = 0.0
    correlation = np.outer(v, v)
    correlation[:6, :6] = 1.0
    found = find(jnp.float32(correlation), jnp.float32(0.01), v >= 0, jnp.zeros(15))
    np.testing.assert_allclose(found.copies, [6.0] * 6 + [1.0] * 9)
    np.testing.assert_allclose(found.blatant_copies, [6.0] * 6 + [1.0] * 9)
    assert np.all(np.asarray(found.reliability)[6:] > 0.2)
    assert float(found.trust) == 1


def test_labels_of_the_last_round_settle_an_even_split():
    v = np.array([0.5, 0.5, 0.5, -0.5, -0.5, -0.5])
    for sign in (1, -1):
        found = find(
            jnp.float32(np.outer(v, v)),
            jnp.float32(1e-3),
            v != 0,
            jnp.float32(sign * v),
        )
        np.testing.assert_allclose(found.reliability, sign * v, atol=1e-5)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_too_few_workers_are_not_trusted(num_workers):
    seen = jnp.arange(4) < num_workers
    found = find(jnp.full((4, 4), 0.9), jnp.float32(0.01), seen, jnp.zeros(4))
    assert float(found.trust) == 0
    for leaf in found:
        assert np.all(np.isfinite(leaf))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**16), error=st.sampled_from([0.0, 1e-12, 1e-3, 1.0, 1e30]))
def test_everything_is_finite_and_bounded(seed, error):
    rng = np.random.default_rng(seed)
    half = rng.choice([-1, -0.5, 0, 1e-20, 0.3, 1], (8, 8))
    correlation = np.float32(np.triu(half) + np.triu(half, 1).T)
    seen = jnp.asarray(rng.random(8) < 0.8)
    previous = np.float32(rng.choice([-1, 0, 1], 8))
    found = find(
        jnp.asarray(correlation), jnp.float32(error), seen, jnp.asarray(previous)
    )
    for leaf in found:
        assert np.all(np.isfinite(leaf))
    assert np.all(np.abs(found.reliability) <= 1)
    assert np.all((found.copies >= 1) & (found.blatant_copies >= 1))
    assert 0 <= float(found.trust) <= 1


def test_liars_on_some_coordinates_are_not_read_backwards():
    """Seven who oppose the others on a tenth of the coordinates, and agree elsewhere.

    Among each other they correlate far more than their disagreement with the others
    explains, as the liars on every coordinate do not.
    """
    v = np.where(np.arange(15) < 7, -0.3, 0.3)
    always = np.outer(v, v)
    sometimes = always.copy()
    sometimes[:7, 7:] = sometimes[7:, :7] = -0.03
    arguments = jnp.float32(0.005), v != 0, jnp.zeros(15)
    found = find(jnp.float32(always), *arguments)
    np.testing.assert_allclose(found.reliability, v, atol=1e-3)
    found = find(jnp.float32(sometimes), *arguments)
    np.testing.assert_array_equal(np.asarray(found.reliability)[:7], 0)
    assert np.all(np.asarray(found.reliability)[7:] > 0.1)
    unknown = find(jnp.float32(sometimes), *arguments, jnp.float32(0.0))
    assert np.all(np.asarray(unknown.reliability)[:7] < -0.1)


def test_the_larger_camp_leads_over_those_whom_experience_has_not_labelled():
    """Seven alike, and eight whose agreement is lost in the noise: who is right?"""
    v = np.where(np.arange(15) < 7, 0.3, 0.0)
    arguments = jnp.float32(0.01), jnp.ones(15, bool), jnp.zeros(15)
    found = find(jnp.float32(np.outer(v, v)), *arguments)
    assert float(found.trust) == 0
    v[7:10] = 0.3
    found = find(jnp.float32(np.outer(v, v)), *arguments)
    assert float(found.trust) == 1


@pytest.mark.parametrize(("turned", "expected"), [(0, 0.0), (5, 1.0)])
def test_those_who_only_lean_to_a_camp_are_counted_with_it(turned, expected):
    """Six alike, and nine of whom each is half labelled: all against them, or not."""
    v = np.array([0.4] * 6 + [-0.06] * 9)
    v[6 : 6 + turned] *= -1
    arguments = jnp.float32(0.03), jnp.ones(15, bool), jnp.zeros(15), 0.0
    found = find(jnp.float32(np.outer(v, v)), *arguments)
    assert np.all(found.labelled[6:] < 0.6)
    assert float(found.trust) == expected


def test_a_pair_with_like_data_is_two_heads_once_there_is_experience():
    """Seven who lie alike, and eight of whom two and two hold the same classes."""
    v = np.where(np.arange(15) < 7, -0.5, 0.5)
    correlation = np.outer(v, v)
    for j, k in ((7, 8), (9, 10)):
        correlation[j, k] = correlation[k, j] = 0.95
    arguments = jnp.float32(0.01), jnp.ones(15, bool), jnp.zeros(15)
    found = find(jnp.float32(correlation), *arguments)
    assert np.all(np.asarray(found.copies)[7:11] > 1.5)
    assert float(found.trust) == 1
    np.testing.assert_array_equal(np.sign(found.reliability), np.sign(v))
    new = find(jnp.float32(correlation), *arguments, jnp.float32(0.0))
    np.testing.assert_array_equal(np.sign(new.reliability), -np.sign(v))


@pytest.mark.parametrize(("num_pairs", "expected"), [(0, 1), (2, 1), (4, 0), (5, 0)])
def test_where_many_workers_come_in_pairs_the_larger_camp_must_lead_by_more(
    num_pairs, expected
):
    """Six who lie alike, and nine of whom some hold data like one other's."""
    v = np.where(np.arange(15) < 6, -0.5, 0.5)
    correlation = np.outer(v, v)
    for first in [6, 8, 0, 10, 12][:num_pairs]:
        correlation[first, first + 1] = correlation[first + 1, first] = 0.95
    arguments = jnp.float32(0.01), jnp.ones(15, bool), jnp.zeros(15)
    found = find(jnp.float32(correlation), *arguments)
    assert float(found.trust) == pytest.approx(expected, abs=1e-3)


def test_where_heads_tie_those_who_are_no_copies_lead():
    """Two honest workers, and a pair of copies that opposes them."""
    v = np.array([0.5, 0.5, -0.5, -0.5])
    correlation = np.outer(v, v)
    correlation[2, 3] = correlation[3, 2] = 1.0
    arguments = jnp.float32(0.01), jnp.ones(4, bool), jnp.zeros(4)
    for _ in range(2):
        found = find(jnp.float32(correlation), *arguments)
        assert float(found.trust) > 0.9
        np.testing.assert_array_equal(np.sign(found.reliability), np.sign(v))
        v, correlation = v[::-1], correlation[::-1, ::-1]


def test_who_sides_with_the_larger_camp_on_the_whole_is_heard():
    """Seven alike, who agree with eight honest workers a little, not, or never."""
    for agreement, sign in ((0.05, 1), (0.0, 0), (-0.25, -1)):
        correlation = np.full((15, 15), agreement)
        correlation[:8, :8] = correlation[8:, 8:] = 0.25
        arguments = jnp.float32(0.001), jnp.ones(15, bool), jnp.zeros(15)
        found = np.asarray(find(jnp.float32(correlation), *arguments).reliability)
        assert np.all(found[:8] > 0.3)
        np.testing.assert_array_equal(np.sign(found[8:]), sign)
        assert np.all(np.abs(found[8:]) <= found[0] + 1e-6)


@pytest.mark.parametrize(("num_liars", "expected"), [(0, 1), (6, 0)])
def test_some_links_may_contradict_where_nearly_all_heads_are_of_one_camp(
    num_liars, expected
):
    """Every worker contradicts two of the fourteen others: one link in seven."""
    v = liars(*range(num_liars))
    correlation = np.outer(v, v)
    for j in range(15):
        correlation[j, j - 1] = correlation[j - 1, j] = -correlation[j, j - 1]
    arguments = jnp.ones(15, bool), jnp.zeros(15)
    found = find(jnp.float32(correlation), jnp.float32(0.01), *arguments)
    assert 5 / 7 < THRESHOLDS["_BALANCE"][0] + 0.02  # unexcused, hardly any trust
    assert float(found.trust) == pytest.approx(expected, abs=1e-3)

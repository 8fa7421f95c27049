"""Aggregation rules: naive definitions, conformance over the registries, NaN rows.

Every rule in `RULES` and `PREAGGREGATIONS` goes through the conformance tests by
being registered; its definition stands in `NAIVE` as a loop over workers.
"""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import HDBSCAN, AgglomerativeClustering, KMeans
from sklearn.decomposition import PCA

from signfd_jax import aggregators
from signfd_jax.aggregators import PREAGGREGATIONS, RULES, chain, keyed, stateless
from signfd_jax.aggregators._clusters import (
    first_majority,
    k_means,
    larger_of_two,
    largest_mean_shift,
    number_of_clusters,
)
from signfd_jax.aggregators._rows import (
    _odd_even_merge_network,
    mean_near_median,
    sorted_rows,
    squared_distances,
)
from signfd_jax.aggregators.filtering import _sample_columns

M, D, F = 11, 23, 2


def gradients(seed=0, num_workers=M, dimension=D, num_outliers=F):
    """Noisy copies of one vector, the last few shifted far away."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=dimension) + 0.5 * rng.normal(size=(num_workers, dimension))
    rows[num_workers - num_outliers :] += 5 * rng.normal(size=dimension)
    return rows.astype(np.float32)


@functools.cache
def jitted(function, **static):
    """Compiled once for each function and shape: loops are slow to trace eagerly."""
    return jax.jit(functools.partial(function, **static))


@functools.cache
def initial_state(rule, num_workers, dimension, dtype):
    """Once for each rule and shape too: `init` traces the rule."""
    return rule.init(num_workers, dimension, dtype)


def aggregate(rule, rows):
    """What a fresh rule makes of `rows`."""
    rows = jnp.asarray(rows)
    state = initial_state(rule, *rows.shape, rows.dtype)
    return jitted(rule.aggregate)(state, rows)[0]


# Definitions, one worker and one coordinate at a time --------------------------------


def naive_distances(rows):
    return np.array([[np.sum((a - b) ** 2) for b in rows] for a in rows])


def naive_krum_scores(rows, num_neighbours):
    return [
        sum(sorted(d for j, d in enumerate(row) if j != i)[:num_neighbours])
        for i, row in enumerate(naive_distances(rows))
    ]


def naive_multi_krum(rows, f, num_selected, num_neighbours):
    scores = naive_krum_scores(rows, num_neighbours)
    best = sorted(range(len(rows)), key=lambda i: scores[i])[:num_selected]
    return sum(rows[i] for i in best) / num_selected


def naive_near_median(rows, num_kept):
    result = []
    for column in rows.T:
        median = np.median(column)
        nearest = sorted(column, key=lambda x: (abs(x - median), x))[:num_kept]
        result.append(sum(nearest) / num_kept)
    return np.array(result)


def naive_bulyan(rows, f):
    remaining, selected = list(range(len(rows))), []
    while len(selected) < len(rows) - 2 * f:
        r = len(remaining)
        scores = naive_krum_scores(rows[remaining], max(r - f - 2, f + 1))
        selected.append(remaining.pop(int(np.argmin(scores))))
    return naive_near_median(rows[selected], len(selected) - 2 * f)


def naive_geometric_median(rows):
    """Plain Weiszfeld from the mean, to convergence."""
    point = rows.mean(0)
    for _ in range(5000):
        weights = [1 / np.linalg.norm(row - point) for row in rows]
        point = sum(w * row for w, row in zip(weights, rows, strict=True))
        point /= sum(weights)
    return point


def naive_centered_clipping(rows, center, clip_norm):
    offsets = [row - center for row in rows]
    clipped = [o * min(1, clip_norm / np.linalg.norm(o)) for o in offsets]
    return center + sum(clipped) / len(rows)


def naive_dnc(rows, f):
    centred = rows - rows.mean(0)
    direction = np.linalg.svd(centred)[2][0]
    scores = [np.dot(row, direction) ** 2 for row in centred]
    kept = sorted(range(len(rows)), key=lambda i: scores[i])[: len(rows) - f]
    return rows[kept].mean(0)


def naive_mean_shift(points):
    """Labels by the textbook procedure; the members of the largest cluster."""
    distances = [sorted(np.linalg.norm(p - q) for q in points) for p in points]
    bandwidth = np.mean([d[max(len(points) // 2, 1) - 1] for d in distances])
    bandwidth = bandwidth * (1 + 1e-5) + 1e-6  # shares tie: see largest_mean_shift
    near = lambda c: [p for p in points if np.linalg.norm(p - c) <= bandwidth]  # noqa: E731
    centres = []
    for centre in points:
        for _ in range(300):
            moved = np.mean(near(centre), axis=0)
            if np.linalg.norm(moved - centre) <= 1e-3 * bandwidth:
                break
            centre = moved
        centres.append(centre)
    centres.sort(key=lambda c: -len(near(c)))
    unique = []
    for centre in centres:
        if all(np.linalg.norm(centre - u) > bandwidth for u in unique):
            unique.append(centre)
    labels = []
    for point in points:
        to_centres = [np.linalg.norm(point - u) for u in unique]
        best = int(np.argmin(to_centres))
        labels.append(best if to_centres[best] <= bandwidth else -1)
    largest = max(range(len(unique)), key=labels.count)
    return np.array(labels) == largest


def naive_signguard(rows):
    """With all coordinates counted."""
    norms = [np.linalg.norm(row) for row in rows]
    median = np.median(norms)
    ordinary = np.array([0.1 * median <= n <= 3 * median for n in norms])
    shares = np.array([[(r > 0).mean(), (r == 0).mean(), (r < 0).mean()] for r in rows])
    kept = ordinary & naive_mean_shift(shares / np.maximum(shares.max(0), 1e-8))
    kept = kept if kept.any() else ordinary
    clipped = [r * min(1, median / n) for r, n in zip(rows, norms, strict=True)]
    return np.mean([c for c, k in zip(clipped, kept, strict=True) if k], axis=0)


def naive_top_k(rows, fraction):
    result = np.zeros_like(rows)
    for row, out in zip(rows, result, strict=True):
        for n in np.argsort(-np.abs(row))[: max(1, round(fraction * len(row)))]:
            out[n] = row[n]
    return result


def naive_clip(row, norm):
    return row * min(1, norm / np.linalg.norm(row))


def naive_arc(rows, f):
    norms = sorted(np.linalg.norm(row) for row in rows)
    num_clipped = 2 * f * (len(rows) - f) // len(rows)
    limit = norms[len(rows) - num_clipped - 1]
    return np.array([naive_clip(row, limit) for row in rows])


def naive_mixing(rows, f):
    distances = naive_distances(rows)
    nearest = [np.argsort(d, kind="stable")[: len(rows) - f] for d in distances]
    return np.array([rows[n].mean(0) for n in nearest])


def naive_cge(rows, f):
    kept = sorted(rows, key=np.linalg.norm)[: len(rows) - f]
    return sum(kept) / len(kept)


def top_of_covariance(rows, weights):
    """Weighted mean, and the top eigenvalue and eigenvector of the D x D covariance."""
    mean = weights @ rows / weights.sum()
    offsets = [(w, r - mean) for w, r in zip(weights, rows, strict=True)]
    covariance = sum(w * np.outer(o, o) for w, o in offsets) / weights.sum()
    values, vectors = np.linalg.eigh(covariance)
    return mean, values[-1], vectors[:, -1]


def naive_caf(rows, f):
    weights, seen = np.ones(len(rows)), []
    while weights.sum() > len(rows) - 2 * f:
        mean, value, vector = top_of_covariance(rows, weights)
        seen.append((value, tuple(mean)))
        along = ((rows - mean) @ vector) ** 2
        weights *= 1 - along / along[weights > 1e-9].max()
        weights = np.maximum(weights, 0)  # of those that have none left
    return np.array(min(seen)[1])


def naive_best_subset(rows, f, spread):
    subsets = itertools.combinations(range(len(rows)), len(rows) - f)
    return rows[list(min(subsets, key=lambda s: spread(rows[list(s)])))].mean(0)


def naive_mda(rows, f):
    def spread(chosen):
        distances = naive_distances(chosen)
        return distances.max().round(9), distances.sum()

    return naive_best_subset(rows, f, spread)


def naive_smea(rows, f):
    top = lambda chosen: top_of_covariance(chosen, np.ones(len(chosen)))[1]  # noqa: E731
    return naive_best_subset(rows, f, top)


def cosine_distances(rows):
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.maximum(1 - unit @ unit.T, 0)


def naive_larger_of_two(distances):
    """Scikit-learn's clustering, as in Blades."""
    linkage = AgglomerativeClustering(2, metric="precomputed", linkage="average")
    labels = linkage.fit_predict(distances)
    return labels == np.argmax(np.bincount(labels))


def naive_clipped_clustering(rows, norms=()):
    """`norms` are those of the rounds before."""
    limit = np.median([*norms, *np.linalg.norm(rows, axis=1)])
    kept = rows[naive_larger_of_two(cosine_distances(rows))]
    return np.mean([naive_clip(row, limit) for row in kept], axis=0)


def naive_first_majority(distances):
    """Scikit-learn's HDBSCAN, which counts a row among its own neighbours."""
    clustering = HDBSCAN(
        min_cluster_size=len(distances) // 2 + 1,
        min_samples=1,
        metric="precomputed",
        allow_single_cluster=True,
        copy=True,
    )
    return clustering.fit_predict(distances) == 0


def naive_flame(rows):
    limit = np.median(np.linalg.norm(rows, axis=1))
    kept = rows[naive_first_majority(cosine_distances(rows))]
    return np.mean([naive_clip(row, limit) for row in kept], axis=0)


def naive_foolsgold(rows, histories=0.0):
    """The paper's algorithm, with no similarity below zero; over the total weight."""
    histories, count = histories + rows, len(rows)
    alike = 1 - cosine_distances(histories)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    most = [max(0, *np.delete(alike[i], i)) for i in range(count)]
    for i, j in pairs:
        if most[j] > most[i]:
            alike[i, j] *= most[i] / most[j]
    rates = [1 - max(0, *np.delete(alike[i], i)) for i in range(count)]
    rates = np.array(rates) / max(rates)
    with np.errstate(divide="ignore"):
        weights = np.clip(np.log(rates / (1 - rates)) + 0.5, 0, 1)
    return weights @ rows / weights.sum()


def naive_k_means(points, count):
    """Scikit-learn's, the best of some random starts."""
    return KMeans(count, n_init=4, random_state=0).fit_predict(points)


def offsets(points, labels):
    """Of each point from the mean of its cluster."""
    return points - np.array([points[labels == label].mean(0) for label in labels])


def naive_number_of_clusters(points, uniform, most, clustering=naive_k_means):
    """The gap statistic, by the uniform points that are given."""

    def spread(points, count):
        lengths = [
            np.linalg.norm(o) for o in offsets(points, clustering(points, count))
        ]
        return np.log(sum(lengths) / len(points) + 1e-5)

    points = (points - points.min(0)) / np.ptp(points, axis=0)
    gaps, errors = [], []
    for count in range(1, most + 1):
        expected = [spread(drawn, count) for drawn in uniform]
        gaps.append(np.mean(expected) - spread(points, count))
        errors.append(np.std(expected) * np.sqrt(1 + 1 / len(uniform)))
    for count in range(1, most):
        if gaps[count - 1] >= gaps[count] - errors[count]:
            return count
    return most


RFLBAT = {"max_clusters": 4, "outlier_factor": 2.0, "cluster_outlier_factor": 1.3}


def naive_rflbat(rows):
    def central(chosen, factor):
        near = points[chosen]
        total = [sum(np.linalg.norm(p - q) for q in near) for p in near]
        return chosen[total <= factor * np.median(total)]

    points = PCA(2).fit_transform(rows)
    ordinary = central(np.arange(len(rows)), RFLBAT["outlier_factor"])
    uniform = np.random.default_rng(0).uniform(size=(20, *points.shape))
    uniform = uniform[:, : len(ordinary)]
    count = naive_number_of_clusters(points[ordinary], uniform, RFLBAT["max_clusters"])
    labels = naive_k_means(points[ordinary], count)
    clusters = [ordinary[labels == label] for label in range(count)]
    alike = lambda c: np.median(np.mean(1 - cosine_distances(rows[c]), axis=1))  # noqa: E731
    chosen = min((c for c in clusters if len(c) > 1), key=alike)
    return rows[central(chosen, RFLBAT["cluster_outlier_factor"])].mean(0)


# name -> (options for the registered rule, the naive function of the rows)
NAIVE = {
    "mean": ({}, lambda x: sum(x) / len(x)),
    "coordinate_median": ({}, lambda x: np.array([np.median(c) for c in x.T])),
    "trimmed_mean": (
        {},
        lambda x: np.array([np.mean(sorted(c)[F : len(c) - F]) for c in x.T]),
    ),
    "mean_around_median": ({}, lambda x: naive_near_median(x, len(x) - F)),
    "krum": ({}, lambda x: naive_multi_krum(x, F, 1, len(x) - F - 2)),
    "multi_krum": ({}, lambda x: naive_multi_krum(x, F, len(x) - F, len(x) - F - 2)),
    "top_k_multi_krum": (
        {"fraction": 0.3},
        lambda x: naive_multi_krum(naive_top_k(x, 0.3), F, len(x) - F, len(x) - F - 2),
    ),
    "bulyan": ({}, lambda x: naive_bulyan(x, F)),
    "geometric_median": ({"tolerance": 1e-6}, naive_geometric_median),
    "centered_clipping": (
        {"clip_norm": 3.0},
        lambda x: naive_centered_clipping(x, np.zeros(x.shape[1]), 3.0),
    ),
    "dnc": ({}, lambda x: naive_dnc(x, F)),
    "signguard": ({"sample_fraction": 1.0}, naive_signguard),
    "cge": ({}, lambda x: naive_cge(x, F)),
    "caf": ({}, lambda x: naive_caf(x, F)),
    "mda": ({}, lambda x: naive_mda(x, F)),
    "smea": ({}, lambda x: naive_smea(x, F)),
    "clipped_clustering": ({}, naive_clipped_clustering),
    "flame": ({}, naive_flame),
    "foolsgold": ({}, naive_foolsgold),
    "rflbat": (RFLBAT, naive_rflbat),
    # Its first round; the others are in `test_prediction.py`.
    "fldetector": ({}, lambda x: sum(x) / len(x)),
    "clipping": ({"max_norm": 2.0}, lambda x: np.array([naive_clip(r, 2) for r in x])),
    "adaptive_robust_clipping": ({}, lambda x: naive_arc(x, F)),
    "nearest_neighbour_mixing": ({}, lambda x: naive_mixing(x, F)),
    "top_k": ({"fraction": 0.3}, lambda x: naive_top_k(x, 0.3)),
}

ALL = RULES | PREAGGREGATIONS
# Bucketing is random by nature: its own test is below.
DETERMINISTIC = sorted(set(ALL) - {"bucketing"})


@functools.cache
def build(name, num_byzantine=F, **options):
    return ALL[name](num_byzantine, jax.random.key(7), **options)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_equals_the_naive_loop(name, seed):
    options, naive = NAIVE[name]
    rows = gradients(seed)
    result = aggregate(build(name, **options), rows)
    expected = naive(rows.astype(np.float64))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=2e-5)


# Conformance, by registry ------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ALL))
def test_compiles_once_and_keeps_the_state(name):
    rule = build(name)
    rows = jnp.asarray(gradients())
    traces = []

    @jax.jit
    def step(state, rows):
        traces.append(name)
        return rule.aggregate(state, rows)

    state = rule.init(M, D)
    _, new_state = step(state, rows)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, new_state)
    step(new_state, rows)
    assert traces == [name]


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.slow
def test_jit_equals_eager(name):
    rule = build(name)
    rows = jnp.asarray(gradients())
    state = rule.init(M, D)
    expected, expected_state = rule.aggregate(state, rows)
    result, new_state = jax.jit(rule.aggregate)(state, rows)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, expected_state)


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.slow
def test_vmap_equals_loop(name):
    rule = build(name)
    rows = jnp.stack([jnp.asarray(gradients(seed)) for seed in range(3)])
    state = rule.init(M, D)
    together, _ = jax.jit(jax.vmap(rule.aggregate, in_axes=(None, 0)))(state, rows)
    for one, result in zip(rows, together, strict=True):
        expected, _ = jitted(rule.aggregate)(state, one)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


CARRYING = ["krum", "centered_clipping", "dnc", "bucketing", "foolsgold"]
CARRYING += ["fldetector"]


@pytest.mark.parametrize("name", [*CARRYING, "clipped_clustering"])
def test_scan_carries_the_state(name):
    rule = build(name)
    rows = jnp.stack([jnp.asarray(gradients(seed)) for seed in range(3)])
    state = rule.init(M, D)
    last, results = jax.lax.scan(lambda s, x: rule.aggregate(s, x)[::-1], state, rows)
    for one, result in zip(rows, results, strict=True):
        expected, state = jitted(rule.aggregate)(state, one)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    assert jax.tree.structure(last) == jax.tree.structure(state)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.slow
def test_dtype_is_kept_and_narrow_ones_are_only_rounded(name, dtype):
    rule = build(name)
    rows = jnp.asarray(gradients()).astype(dtype)
    state = initial_state(rule, M, D, rows.dtype)
    result, new_state = jitted(rule.aggregate)(state, rows)
    assert result.dtype == rows.dtype
    chex.assert_trees_all_equal_shapes_and_dtypes(state, new_state)
    wide = aggregate(build(name), rows.astype(jnp.float32))
    tolerance = 2 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        result.astype(jnp.float32), wide, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.slow
def test_narrow_dtypes_do_not_overflow_inside(name):
    """Squared norms and sums of 300s are beyond float16, the results are not."""
    rows = jnp.full((M, D), 300, jnp.float16)
    assert jnp.all(jnp.isfinite(aggregate(build(name), rows)))


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.slow
def test_order_of_the_workers_does_not_matter(name):
    rows = gradients()
    order = np.random.default_rng(1).permutation(M)
    result = aggregate(build(name), rows)
    permuted = aggregate(build(name), rows[order])
    expected = result[order] if name in PREAGGREGATIONS else result
    np.testing.assert_allclose(permuted, expected, rtol=1e-5, atol=1e-5)


# What a rule does to identical rows, where it is not the identity.
SHORTENS = {"clipping": {"max_norm": 1e3}, "centered_clipping": {"clip_norm": 1e3}}
SPARSE = {"top_k": {"fraction": 1.0}, "top_k_multi_krum": {"fraction": 1.0}}


# FoolsGold is against workers that send the same.
@pytest.mark.parametrize("name", sorted(set(ALL) - {"foolsgold"}))
@pytest.mark.slow
def test_identical_rows_come_back(name):
    row = gradients()[0]
    rule = build(name, **(SHORTENS | SPARSE).get(name, {}))
    result = aggregate(rule, np.tile(row, (M, 1)))
    np.testing.assert_allclose(
        result, np.broadcast_to(row, result.shape), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.slow
def test_one_worker_and_nobody_byzantine(name):
    row = gradients()[:1]
    rule = build(name, num_byzantine=0, **(SHORTENS | SPARSE).get(name, {}))
    result = aggregate(rule, row)
    np.testing.assert_allclose(result.reshape(1, -1), row, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.slow
def test_two_workers_and_nobody_byzantine(name):
    rows = gradients(num_workers=2, num_outliers=0)
    result = aggregate(build(name, num_byzantine=0), rows)
    assert result.shape[-1:] == (D,)
    assert np.all(np.isfinite(result))


# Signs, norms, angles and clipping radii refer to zero: these rules do not move along.
ANCHORED = {"centered_clipping", "signguard", "top_k_multi_krum", "cge", "flame"}
ANCHORED |= {"clipped_clustering", "foolsgold", "rflbat"}


@pytest.mark.parametrize("name", sorted(set(RULES) - ANCHORED))
def test_translation_moves_the_aggregate_along(name):
    rows = gradients()
    shift = np.random.default_rng(2).normal(size=D).astype(np.float32)
    np.testing.assert_allclose(
        aggregate(build(name), rows + shift),
        aggregate(build(name), rows) + shift,
        rtol=1e-4,
        atol=1e-4,
    )


# Those that begin with a plain mean.
@pytest.mark.parametrize("name", sorted(set(RULES) - {"mean", "fldetector"}))
def test_f_outliers_do_not_drag_the_aggregate(name):
    """Within the honest spread of the honest mean, where the mean is dragged away."""
    rows = gradients(num_outliers=0)
    honest = rows[: M - F].mean(0)
    spread = np.linalg.norm(rows[: M - F] - honest, axis=1).max()
    rows[M - F :] = 1e4
    options = {"fraction": 1.0} if name == "top_k_multi_krum" else {}
    error = np.linalg.norm(aggregate(build(name, **options), rows) - honest)
    assert error < 2 * spread
    assert np.linalg.norm(aggregate(build("mean"), rows) - honest) > 100 * spread


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("name", sorted(set(RULES) - {"mean"}))
@pytest.mark.slow
def test_rows_that_are_not_finite_are_survived(name, bad):
    rows = gradients(num_outliers=0)
    rows[3] = bad
    rows[8, 5] = bad
    result = aggregate(build(name), rows)
    assert np.all(np.isfinite(result))
    assert np.linalg.norm(result) < 3 * np.linalg.norm(rows[0])


def test_mean_of_a_row_that_is_not_finite_is_not_finite():
    rows = gradients()
    rows[3, 5] = np.nan
    result = aggregate(build("mean"), rows)
    assert np.isnan(result[5]) and np.isfinite(np.delete(result, 5)).all()


FINDING = ["krum", "multi_krum", "bulyan", "geometric_median", "dnc", "signguard"]
FINDING += ["caf", "cge", "clipped_clustering", "flame", "foolsgold", "mda", "smea"]
FINDING += ["rflbat", "fldetector"]


@pytest.mark.parametrize("name", FINDING)
def test_no_finite_row_gives_zero_and_one_is_found(name):
    rows = np.full((M, D), np.nan, np.float32)
    np.testing.assert_array_equal(aggregate(build(name), rows), np.zeros(D))
    rows[4] = 0.5
    np.testing.assert_allclose(aggregate(build(name), rows), rows[4], rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["clipping", "adaptive_robust_clipping", "nearest_neighbour_mixing"]
)
def test_preaggregation_of_a_row_that_is_not_finite(name):
    rows = gradients(num_outliers=0)
    rows[3, 5] = np.nan
    result = aggregate(build(name), rows)
    assert np.all(np.isfinite(result))
    if name != "nearest_neighbour_mixing":
        np.testing.assert_array_equal(result[3], np.zeros(D))


def test_top_k_and_bucketing_hand_on_what_is_not_finite():
    rows = gradients()
    rows[3, 5] = np.nan
    sparse = aggregate(build("top_k"), rows)
    assert np.isnan(sparse).any(1).tolist() == [i == 3 for i in range(M)]
    buckets = aggregate(build("bucketing", bucket_size=2), rows)
    assert np.isnan(buckets).any(1).sum() == 1


# Preconditions -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("trimmed_mean", lambda f: 2 * f + 1),
        ("mean_around_median", lambda f: 2 * f + 1),
        ("krum", lambda f: 2 * f + 3),
        ("multi_krum", lambda f: 2 * f + 3),
        ("bulyan", lambda f: 4 * f + 3),
        ("dnc", lambda f: 2 * f + 1),
        ("caf", lambda f: 2 * f + 1),
        ("cge", lambda f: 2 * f + 1),
        ("mda", lambda f: 2 * f + 1),
        ("smea", lambda f: 2 * f + 1),
        ("adaptive_robust_clipping", lambda f: 2 * f + 1),
        ("nearest_neighbour_mixing", lambda f: 2 * f + 1),
    ],
)
@pytest.mark.parametrize("f", [1, 2, 3])
def test_precondition_is_checked_when_the_rule_is_initialised(name, least, f):
    rule = build(name, num_byzantine=f)
    rule.init(least(f), D)
    with pytest.raises(ValueError, match=f"num_byzantine = {f} at least {least(f)}"):
        rule.init(least(f) - 1, D)


# Each rule's own ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 6, 11, 65])
def test_sorted_rows_are_sorted(size):
    rows = np.random.default_rng(size).normal(size=(size, 40)).astype(np.float32)
    rows[:, :5] = np.round(rows[:, :5])  # ties
    np.testing.assert_array_equal(sorted_rows(jnp.asarray(rows)), np.sort(rows, axis=0))


@pytest.mark.parametrize("size", range(1, 13))
@pytest.mark.slow
def test_sorting_network_sorts_every_pattern_of_zeros_and_ones(size):
    """The zero-one principle: then it sorts everything."""
    rows = np.array(list(itertools.product([0, 1], repeat=size))).T
    for low, high in _odd_even_merge_network(size):
        rows[[low, high]] = np.sort(rows[[low, high]], axis=0)
    assert np.all(np.diff(rows, axis=0) >= 0)


@pytest.mark.parametrize("size", [33, 48, 64])
def test_larger_sorting_networks_sort_random_numbers(size):
    rows = np.random.default_rng(size).normal(size=(size, 1000))
    for low, high in _odd_even_merge_network(size):
        rows[[low, high]] = np.sort(rows[[low, high]], axis=0)
    assert np.all(np.diff(rows, axis=0) >= 0)


def test_squared_distances_stay_exact_beside_an_enormous_row():
    rows = gradients(num_outliers=0)
    rows[4] = 1e15
    expected = np.delete(np.delete(naive_distances(rows), 4, 0), 4, 1)
    result = np.delete(np.delete(squared_distances(jnp.asarray(rows)), 4, 0), 4, 1)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_neighbours", [3, M - F - 1])
@pytest.mark.parametrize("num_selected", [1, 4])
def test_multi_krum_counts_what_it_is_told(num_neighbours, num_selected):
    rows = gradients()
    result = aggregators.multi_krum(
        jnp.asarray(rows), F, num_selected=num_selected, num_neighbours=num_neighbours
    )
    expected = naive_multi_krum(rows, F, num_selected, num_neighbours)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("num_workers", "f"), [(7, 1), (11, 2), (13, 1), (15, 3)])
@pytest.mark.slow
def test_bulyan_with_other_sizes(num_workers, f, seed):
    rows = gradients(seed, num_workers, num_outliers=f)
    result = jitted(aggregators.bulyan, num_byzantine=f)(jnp.asarray(rows))
    np.testing.assert_allclose(result, naive_bulyan(rows, f), rtol=1e-4, atol=1e-5)


def test_mean_around_median_takes_the_smaller_of_two_that_tie():
    rows = jnp.array([[0.0], [4.0], [2.0], [3.0], [1.0]])
    result = jitted(aggregators.mean_around_median, num_byzantine=1)(rows)
    np.testing.assert_allclose(result, [1.5])


@pytest.mark.parametrize("num_kept", range(1, 8))
def test_mean_near_median_keeps_any_number(num_kept):
    rows = gradients(num_workers=7)
    result = jitted(mean_near_median, num_kept=num_kept)(jnp.asarray(rows))
    np.testing.assert_allclose(result, naive_near_median(rows, num_kept), rtol=1e-4)


def test_geometric_median_minimises_the_sum_of_distances():
    rows = jnp.asarray(gradients())
    point = aggregators.geometric_median(rows, tolerance=1e-6)
    total = lambda z: jnp.linalg.norm(rows - z[None], axis=1).sum()  # noqa: E731
    for seed in range(20):
        nudge = 0.05 * jax.random.normal(jax.random.key(seed), point.shape)
        assert total(point) < total(point + nudge)


def test_geometric_median_as_byzfl_computes_it():
    """Three steps from zero, smoothing 0.1: the values of ByzFL's documentation."""
    rows = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    result = aggregators.geometric_median(
        rows, smoothing=0.1, max_iterations=3, tolerance=0.0, start=jnp.zeros(3)
    )
    np.testing.assert_allclose(result, [3.78788764, 4.78788764, 5.78788764], rtol=1e-6)


def test_centered_clipping_remembers_its_centre():
    rule = build("centered_clipping", clip_norm=1.0, num_iterations=2)
    rows = gradients()
    state, center = rule.init(M, D), np.zeros(D)
    for _ in range(4):
        result, state = jitted(rule.aggregate)(state, jnp.asarray(rows))
        for _ in range(2):
            center = naive_centered_clipping(rows, center, 1.0)
        np.testing.assert_allclose(result, center, rtol=1e-4, atol=1e-5)


def test_centered_clipping_bounds_what_one_worker_moves():
    rows = gradients(num_outliers=0)
    moved = rows.copy()
    moved[0] = 1e8
    results = [
        aggregate(build("centered_clipping", clip_norm=1.0), r) for r in (rows, moved)
    ]
    assert np.linalg.norm(results[0] - results[1]) <= 2 * 1.0 / M + 1e-5


def test_dnc_samples_one_column_of_each_block_uniformly():
    """False-alarm probability below 1e-5: ten columns, 5 standard errors each."""
    columns = jnp.arange(10.0)[None, :]
    keys = jax.random.split(jax.random.key(0), 3000)
    drawn = jitted(jax.vmap(lambda k: _sample_columns(k, columns, 4)[0]))(keys)
    drawn = np.asarray(drawn, int)
    blocks = np.array([0, 0, 1, 1, 1, 2, 2, 3, 3, 3])  # 0-1, 2-4, 5-6, 7-9
    assert np.all(blocks[drawn] == np.arange(4))
    share = np.bincount(drawn.ravel(), minlength=10) / 3000
    expected = 1 / np.bincount(blocks)[blocks]
    assert np.all(np.abs(share - expected) < 5 * np.sqrt(0.25 / 3000))


def test_dnc_drops_the_outliers_from_a_sample():
    rows = gradients(dimension=4000)
    rule = build("dnc", num_sampled=200, num_iterations=3)
    np.testing.assert_allclose(
        aggregate(rule, rows), rows[: M - F].mean(0), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("seed", range(10))
def test_mean_shift_finds_the_textbook_clusters(seed):
    rng = np.random.default_rng(seed)
    centres = rng.uniform(size=(3, 3))[rng.integers(3, size=15)]
    points = (centres + 0.03 * rng.normal(size=(15, 3))).astype(np.float32)
    np.testing.assert_array_equal(
        jitted(largest_mean_shift)(jnp.asarray(points)), naive_mean_shift(points)
    )


CLUSTERINGS = {
    larger_of_two: naive_larger_of_two,
    first_majority: naive_first_majority,
}


@pytest.mark.parametrize("clustering", CLUSTERINGS)
def test_clusters_are_those_of_scikit_learn(clustering):
    """Of points without clear clusters too; those that are absent are not there."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        points = rng.normal(size=(15, 3)).astype(np.float32)
        distances = np.sqrt(naive_distances(points))
        present = np.arange(15) != seed
        expected = np.zeros(15, bool)
        inside = distances[np.ix_(present, present)].astype(np.float64)
        expected[present] = CLUSTERINGS[clustering](inside)
        if 2 * expected.sum() != present.sum():  # no two clusters of one size
            found = jitted(clustering)(jnp.asarray(distances), jnp.asarray(present))
            np.testing.assert_array_equal(found, expected)


def test_signguard_drops_inverted_rows():
    """Gradients of mostly one sign, so that an inverted row is seen in its signs."""
    rng = np.random.default_rng(0)
    rows = (1 + 0.5 * rng.normal(size=(M, 400))).astype(np.float32)
    rows[M - 3 :] *= -1
    result = aggregate(build("signguard"), rows)
    np.testing.assert_allclose(result, rows[: M - 3].mean(0), atol=0.1)


@pytest.mark.parametrize("name", ["mda", "smea"])
def test_too_many_subsets_are_refused(name):
    build(name, num_byzantine=5).init(20, 1)
    with pytest.raises(ValueError, match=r"30 workers and num_byzantine = 10 there ar"):
        build(name, num_byzantine=10).init(30, 1)


def test_mda_takes_the_tightest_of_subsets_with_one_diameter():
    """In any order: the rows at 0 and 8 are farthest apart in two subsets."""
    for order in itertools.permutations([0.0, 8.0, 4.0, 1.0]):
        rows = jnp.array([*order, -20.0])[:, None]
        result = jitted(aggregators.mda, num_byzantine=2)(rows)
        np.testing.assert_allclose(result, [5 / 3])  # 0, 1 and 4


def test_caf_lowers_weights_until_a_huge_pair_is_gone():
    rows = gradients(num_outliers=0)
    honest = rows[: M - F].mean(0)
    rows[M - F], rows[M - 1] = 1e8, -1e12
    error = np.abs(aggregate(build("caf"), rows) - honest).max()
    assert error < np.abs(rows[: M - F] - honest).max()


@pytest.mark.parametrize("name", ["clipped_clustering", "foolsgold"])
def test_cosine_rules_remember(name):
    rule = build(name)
    state, norms, histories = rule.init(M, D), [], 0.0
    for seed in range(3):
        rows = gradients(seed) * 3**seed
        result, state = jitted(rule.aggregate)(state, jnp.asarray(rows))
        if name == "foolsgold":
            expected = naive_foolsgold(rows, histories)
        else:
            expected = naive_clipped_clustering(rows, norms)
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)
        histories = histories + rows
        norms.extend(np.linalg.norm(rows, axis=1))


def test_clipped_clustering_forgets_what_is_older_than_the_window():
    rule = build("clipped_clustering", window=1)
    state = rule.init(M, D)
    for scale in (1e3, 1.0):
        rows = gradients() * np.float32(scale)
        result, state = jitted(rule.aggregate)(state, jnp.asarray(rows))
    np.testing.assert_allclose(result, naive_clipped_clustering(rows), rtol=1e-4)


def test_flame_adds_noise_in_units_of_the_median_norm():
    """The sample deviation of 4,000 draws is within a tenth."""
    rows = gradients(dimension=4000)
    noisy = aggregate(build("flame", noise_level=0.5), rows)
    noise = noisy - aggregate(build("flame"), rows)
    expected = 0.5 * np.median(np.linalg.norm(rows, axis=1))
    assert abs(noise.std() / expected - 1) < 0.1
    assert abs(noise.mean()) < 0.1 * expected


def test_foolsgold_gives_nothing_to_workers_that_send_the_same():
    row = gradients()[0]
    assert not aggregate(build("foolsgold"), np.tile(row, (M, 1))).any()
    rows = gradients(num_outliers=0)
    rows[M - 3 :] = -rows[M - 1]  # three copies
    expected = naive_foolsgold(rows[: M - 3])
    np.testing.assert_allclose(aggregate(build("foolsgold"), rows), expected, rtol=0.2)


@pytest.mark.parametrize("seed", [3, 4, 5, 8])
def test_rflbat_where_there_are_clusters(seed):
    rows = gradients(seed)
    result = aggregate(build("rflbat", **RFLBAT), rows)
    np.testing.assert_allclose(result, naive_rflbat(rows), rtol=1e-4, atol=2e-5)


def blobs(seed, number):
    """Tight clusters of ten points each, and which point is in which."""
    rng = np.random.default_rng(seed)
    corners = np.array([[0, 0], [9, 1], [1, 9], [10, 10]])[rng.permutation(4)]
    truth = rng.permutation(np.repeat(np.arange(4), 10))
    points = corners[truth] + rng.uniform(-1, 1, size=(40, 2))
    return jnp.asarray(points, jnp.float32), truth, truth < number


def test_number_of_clusters_is_that_of_the_naive_loop():
    """It is not that of the blobs: of four in a square the gap statistic sees one."""
    everywhere = jnp.ones(30, bool)

    def clustering(points, count):
        points = jnp.asarray(points, jnp.float32)
        return np.asarray(jitted(k_means, most=4)(points, everywhere, jnp.int32(count)))

    uniform, counts = np.random.default_rng(0).uniform(size=(20, 40, 2)), set()
    for seed in range(10):
        rng = np.random.default_rng(seed)
        points, _, present = blobs(seed, 3)
        points += jnp.asarray(rng.uniform(-seed, seed, (40, 2)), jnp.float32)
        found = jitted(number_of_clusters, most=4)(points, jnp.asarray(present))
        within = np.asarray(points)[present]
        assert found == naive_number_of_clusters(within, uniform[:, :30], 4, clustering)
        counts.add(int(found))
    assert len(counts) > 1


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_k_means_finds_blobs(number):
    for seed in range(5):
        points, truth, present = blobs(seed, number)
        count = jnp.int32(number)
        labels = jitted(k_means, most=6)(points, jnp.asarray(present), count)
        assert np.all((labels < 0) == ~present)
        pairs = {*zip(truth[present].tolist(), labels[present].tolist(), strict=True)}
        assert len(pairs) == number
        assert {label for _, label in pairs} == set(range(number))


def test_k_means_is_about_as_tight_as_scikit_learns():
    """Of points without clusters, where each start ends elsewhere."""
    ours = theirs = 0
    for seed in range(10):
        points = np.random.default_rng(seed).normal(size=(40, 2)).astype(np.float32)
        labels = jitted(k_means, most=6)(points, jnp.ones(40, bool), jnp.int32(5))
        ours += np.sum(offsets(points, np.asarray(labels)) ** 2)
        theirs += np.sum(offsets(points, naive_k_means(points, 5)) ** 2)
    assert ours < 1.1 * theirs


@pytest.mark.parametrize(("bucket_size", "sizes"), [(1, [1] * 11), (4, [4, 4, 3])])
def test_bucketing_averages_every_row_once(bucket_size, sizes):
    rows = np.eye(M, dtype=np.float32)
    buckets = aggregators.bucketing(jax.random.key(3), jnp.asarray(rows), bucket_size)
    membership = np.asarray(buckets) * np.array(sizes)[:, None]
    np.testing.assert_allclose(membership.sum(1), sizes, rtol=1e-6)
    np.testing.assert_allclose(membership.sum(0), np.ones(M), rtol=1e-6)


def test_bucketing_shuffles_anew_every_round():
    rule = build("bucketing")
    rows = jnp.asarray(gradients())
    first, state = rule.aggregate(rule.init(M, D), rows)
    second, _ = rule.aggregate(state, rows)
    assert not np.allclose(first, second)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_top_k_keeps_the_largest(dtype):
    rows = jnp.asarray(gradients(dimension=200)).astype(dtype)
    result = aggregators.top_k(rows, 0.15).astype(jnp.float32)
    magnitude = np.abs(np.asarray(rows.astype(jnp.float32)))
    threshold = np.sort(magnitude, axis=1)[:, -30]
    np.testing.assert_array_equal(
        result, np.where(magnitude >= threshold[:, None], rows.astype(jnp.float32), 0)
    )


def test_chain_feeds_each_rule_the_rows_of_the_last():
    key = jax.random.key(0)
    rule = chain(
        keyed(aggregators.bucketing, key, bucket_size=2),
        stateless(aggregators.nearest_neighbour_mixing, num_byzantine=1),
        stateless(aggregators.krum, num_byzantine=1),
    )
    rows = jnp.asarray(gradients())
    state = rule.init(M, D)
    result, (new_key, *_) = jax.jit(rule.aggregate)(state, rows)
    subkey = jax.random.split(key)[1]
    buckets = jitted(aggregators.bucketing, bucket_size=2)(subkey, rows)
    mixed = naive_mixing(np.asarray(buckets), 1)
    expected = naive_multi_krum(mixed, 1, 1, len(mixed) - 3)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    assert new_key == jax.random.split(key)[0]


def test_chain_checks_each_rule_on_the_rows_it_gets():
    krum = functools.partial(stateless, aggregators.krum)
    bucketing = keyed(aggregators.bucketing, jax.random.key(0), bucket_size=2)
    chain(bucketing, krum(num_byzantine=1)).init(9, D)
    with pytest.raises(ValueError, match="at least 7 workers, but there are 5"):
        chain(bucketing, krum(num_byzantine=2)).init(9, D)
    with pytest.raises(ValueError, match="only the last may aggregate"):
        chain(krum(num_byzantine=1), bucketing).init(9, D)

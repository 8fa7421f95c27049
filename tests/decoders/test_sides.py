"""The two sides and their t-tests, against SciPy's."""

import jax.numpy as jnp
import numpy as np
from scipy import stats

from signfd_jax.decoders._sides import side_tests, two_sides


def test_the_sides_are_those_of_a_matrix_with_two_blocks():
    sides = np.array([1, 1, -1, 1, -1, 1, -1.0])
    correlation = jnp.asarray(np.outer(sides, sides) * 0.1, jnp.float32)
    error = jnp.full((7, 7), 0.01, jnp.float32)
    everybody = jnp.arange(7, dtype=jnp.int32)
    ones = jnp.ones(7, jnp.float32)
    vector, share = two_sides(correlation, error, ones, everybody, 2.0)
    np.testing.assert_array_equal(np.abs(np.sign(vector) @ sides), 7)
    np.testing.assert_array_equal(share, 1)
    # Nothing is significant: nobody counts.
    vector, share = two_sides(correlation / 100, error, ones, everybody, 2.0)
    np.testing.assert_array_equal(share, 0)


def test_each_sides_test_is_a_t_test():
    rng = np.random.default_rng(0)
    correlation = rng.normal(0.1, 0.05, (9, 4)).astype(np.float32)
    sides = np.array([1, 1, -1, 1, -1, 1, -1, 1, 1.0], np.float32)
    share = np.ones((9, 4), np.float32)
    share[2, 1] = 0  # a worker that never met another
    aligned, deviation, weakest = side_tests(
        *(jnp.asarray(of) for of in (sides, share, correlation, 0 * share))
    )
    for j in range(4):
        met = share[:, j] > 0
        groups = [correlation[met & (sides == s), j] * s for s in (1, -1)]
        tests = [np.sqrt(2) * stats.ttest_1samp(of, 0).statistic for of in groups]
        number = sum(map(len, groups))
        squares = [(len(of) / number) ** 2 * stats.sem(of) ** 2 for of in groups]
        np.testing.assert_allclose(aligned[j], np.concatenate(groups).mean(), rtol=1e-4)
        np.testing.assert_allclose(deviation[j], np.sqrt(sum(squares)), rtol=1e-4)
        np.testing.assert_allclose(weakest[0][j], min(tests), rtol=1e-4)
        np.testing.assert_allclose(weakest[1][j], -max(tests), rtol=1e-4)


def test_one_worker_alone_has_no_say():
    sides = jnp.array([1.0, 1.0, 1.0, -1.0], jnp.float32)
    correlation = jnp.array([[0.1], [0.12], [0.11], [0.5]], jnp.float32)
    ones = jnp.ones((4, 1), jnp.float32)
    _, _, (first, second) = side_tests(sides, ones, correlation, ones * 0.01)
    assert first[0] > 0
    np.testing.assert_allclose(second, -first)

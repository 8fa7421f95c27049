"""Medians over the seen workers, and what capping weights at them promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signfd_jax.medians import capped_at_median, in_medians, masked_median


@settings(max_examples=40)
@given(
    values=st.lists(st.floats(0, 100, width=32), min_size=7, max_size=7),
    seen=st.lists(st.booleans(), min_size=7, max_size=7),
)
def test_masked_median(values, seen):
    values, seen = np.float32(values), np.array(seen)
    median = jax.jit(masked_median)(jnp.asarray(values), jnp.asarray(seen))
    assert float(median) == pytest.approx(
        (np.median(values[seen]) if seen.any() else 0), rel=1e-5
    )


def test_in_medians_knows_those_seen_only():
    values = jnp.array([4.0, -1.0, 2.0, 100.0, -0.5])
    seen = jnp.array([True, True, True, False, True])
    found = in_medians(values, seen)
    np.testing.assert_allclose(found, [1, -1 / 1.5, 1, 1, -0.5 / 1.5], rtol=1e-6)
    nobody = in_medians(jnp.array([3.0, 0.0, -2.0]), jnp.zeros(3, bool))
    np.testing.assert_array_equal(nobody, [1, 0, -1])


@settings(max_examples=40)
@given(
    weights=st.lists(st.floats(-100, 100, width=32), min_size=6, max_size=6),
    seen=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_no_minority_outweighs_as_many_median_workers(weights, seen):
    seen = np.array(seen)
    capped = np.asarray(
        jax.jit(capped_at_median)(jnp.float32(np.array(weights)), jnp.asarray(seen))
    )
    sizes = np.sort(np.abs(capped[seen]))[::-1]
    for k in range(1, len(sizes) + 1):
        assert sizes[:k].sum() <= k * np.median(sizes) * (1 + 1e-6)
    assert np.all(capped[~seen] == (np.median(sizes) if len(sizes) else 1))

"""Products of int8 matrices against NumPy's in int64, at every kind of length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from signfd_jax.signs._products import row_products


@pytest.mark.parametrize(
    "length", [0, 1, 3, 15, 16, 17, 127, 128, 255, 256, 257, 5001, 2**15 + 5]
)
def test_against_a_wider_integer(length):
    rng = np.random.default_rng(length)
    rows = rng.integers(-128, 128, (4, length), np.int8)
    others = rng.integers(-128, 128, (3, length), np.int8)
    found = jax.jit(row_products)(jnp.asarray(rows), jnp.asarray(others))
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, rows.astype(int) @ others.astype(int).T)

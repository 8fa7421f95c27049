"""Products of matrices: of int8 ones, exact on every platform, and sums of rows.

Shapes: `K` and `M` rows of `S` coordinates.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int8, Int32

# On NVIDIA GPUs XLA doubles products of fewer than 128 coordinates, unless they are a
# multiple of four (jax 0.11.2, H200). Zeros are appended up to twice as many, to be
# sure; to long rows they would cost a copy.
_FEW, _MULTIPLE = 256, 16
# XLA's CPU backend gives a product of few long rows to one core. Parts of them share
# the cores, and the cache: half the time on two cores, with 15 to 64 rows.
_LONG, _PARTS = 2**15, 16


def row_products(
    rows: Int8[Array, "K S"], others: Int8[Array, "M S"]
) -> Int32[Array, "K M"]:
    r"""Sum over the coordinates of every row times every other row.

    $p_{k,m} = \sum_s a_{k,s} b_{m,s}$, summed in int32.
    """
    size = rows.shape[1]
    if size < _FEW and size % _MULTIPLE:
        missing = ((0, 0), (0, -size % _MULTIPLE))
        rows, others = jnp.pad(rows, missing), jnp.pad(others, missing)
    if size < _LONG:
        return _product(rows, others)
    return lax.platform_dependent(rows, others, cpu=_in_parts, default=_product)


def _product(rows, others):
    contract_last = (((1,), (1,)), ((), ()))
    return lax.dot_general(
        rows, others, contract_last, preferred_element_type=jnp.int32
    )


def _in_parts(rows, others):
    width = -(-rows.shape[1] // _PARTS)
    parts = [slice(i * width, (i + 1) * width) for i in range(_PARTS)]
    return functools.reduce(
        jnp.add, (_product(rows[:, part], others[:, part]) for part in parts)
    )


def sum_of_rows(rows: Float[Array, "M *leaf"]) -> Float[Array, "*leaf"]:
    """Sum over the leading axis, as a product with ones.

    XLA's CPU backend adds columns up one number at a time, but its products do not, and
    they share the cores.
    """
    ones = jnp.ones(len(rows), rows.dtype)
    return jnp.tensordot(ones, rows, axes=1, precision=lax.Precision.HIGHEST)

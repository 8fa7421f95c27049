r"""The discrete cosine transform of blocks of a tensor, and its inverse.

A tensor of two axes or more is cut into blocks of its last two, one of one axis into
blocks of that; a side of a block is the largest divisor of the axis that is at most
`chunk`. The transform is the orthonormal DCT-II of each block:
$X_k = s_k \sum_n x_n \cos\frac{\pi (2n + 1) k}{2 n_c}$. Shapes stay.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from signfd_jax._checks import check_flag, check_size

__all__ = ["block_sides", "dct", "inverse_dct", "keep_largest", "undo_dct"]


def dct(array: jax.Array, chunk: int = 64) -> jax.Array:
    """The DCT-II of each block.

    Args:
        array: float `[...]`.
        chunk: largest side of a block (int).

    Returns:
        The coefficients, like `array`.

    Examples:
        >>> print(dct(jnp.ones(4), 4).round(3) + 0.0)
        [2. 0. 0. 0.]

    References:
        Ahmed, Natarajan and Rao, [Discrete Cosine Transform](
        https://doi.org/10.1109/T-C.1974.223784), 1974.
    """
    return _along_blocks(array, chunk, inverse=False)


def inverse_dct(array: jax.Array, chunk: int = 64) -> jax.Array:
    """The inverse of `dct`.

    Args:
        array: float `[...]`, coefficients.
        chunk: what `dct` was given (int).

    Returns:
        What they are the coefficients of, like `array`.

    Examples:
        >>> there = dct(jnp.array([3.0, 1.0]))
        >>> print(jnp.allclose(inverse_dct(there), jnp.array([3.0, 1.0])))
        True
    """
    return _along_blocks(array, chunk, inverse=True)


def keep_largest(array: jax.Array, k: int, chunk: int = 64) -> jax.Array:
    """Keep the k entries of largest magnitude in each block, and set the others to 0.

    Args:
        array: float `[...]`.
        k: how many stay (int); of equal ones the first.
        chunk: largest side of a block (int).

    Returns:
        An array like `array`.

    Examples:
        >>> print(keep_largest(jnp.array([1.0, -3.0, 2.0, 0.5]), 1, chunk=2))
        [ 0. -3.  2.  0.]
    """
    sides = block_sides(array.shape, chunk)
    if 0 in array.shape or not sides:
        return array
    lead = array.shape[: -len(sides)]
    pairs = zip(array.shape[-2:], sides, strict=True)
    cut = [n for size, side in pairs for n in (size // side, side)]
    blocks = array.reshape(*lead, *cut)
    if len(sides) == 2:
        blocks = jnp.swapaxes(blocks, -3, -2)
    flat = blocks.reshape(-1, int(np.prod(sides)))
    k = min(k, flat.shape[1])
    _, index = lax.top_k(jnp.abs(flat), k)
    rows = jnp.arange(flat.shape[0])[:, None]
    kept = jnp.zeros_like(flat).at[rows, index].set(flat[rows, index])
    kept = kept.reshape(blocks.shape)
    if len(sides) == 2:
        kept = jnp.swapaxes(kept, -3, -2)
    return kept.reshape(array.shape)


def undo_dct(chunk: int = 64, *, sign: bool = True) -> optax.GradientTransformation:
    r"""Turn decoded coefficients back into an update, or its sign.

    Behind a decoder whose workers vote on coefficients (`workers.dct_top_k`): the
    inverse transform of each block, then the sign of each coordinate.

    Args:
        chunk: largest side of a block (int), as the workers have it.
        sign: whether the sign is taken, as the published rule does.

    Returns:
        A stateless optax transformation of leaves `[...]`.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> tx = undo_dct(4)
        >>> updates, _ = tx.update(jnp.array([0.0, -1.0, 0.0, 0.0]), tx.init(None))
        >>> print(updates)
        [-1. -1.  1.  1.]

    References:
        Peng et al., [DeMo: Decoupled Momentum Optimization](
        https://arxiv.org/abs/2411.19870), 2024.
    """
    check_size("chunk", chunk)
    check_flag("sign", sign)

    def undo(leaf):
        back = inverse_dct(leaf, chunk)
        return jnp.sign(back) if sign else back

    def update(updates, params):
        del params
        return jax.tree.map(undo, updates)

    return optax.stateless(update)


def _along_blocks(array, chunk, inverse):
    for axis in range(-min(2, array.ndim), 0):
        size = array.shape[axis]
        if size == 0:
            continue
        side = _side(size, chunk)
        basis = jnp.asarray(_basis(side), array.dtype)
        shape = array.shape
        at = array.ndim + axis
        blocks = array.reshape(*shape[:at], size // side, side, *shape[at + 1 :])
        contract = (((at + 1,), (0 if inverse else 1,)), ((), ()))
        turned = lax.dot_general(
            blocks, basis, contract, precision=lax.Precision.HIGHEST
        )
        array = jnp.moveaxis(turned, -1, at + 1).reshape(shape)
    return array


def block_sides(shape: tuple[int, ...], chunk: int = 64) -> tuple[int, ...]:
    """The sides of a block of an array.

    Args:
        shape: the array's.
        chunk: largest side of a block (int).

    Returns:
        Of two axes or more the last two sides, else as many as there are axes.

    Examples:
        >>> block_sides((3, 256, 100), 64)
        (64, 50)
    """
    return tuple(_side(size, chunk) for size in shape[-2:])


def _side(size, chunk):
    """The largest divisor of a size that is at most `chunk`."""
    return next((n for n in range(min(chunk, size), 0, -1) if size % n == 0), 1)


@functools.cache
def _basis(side):
    """Rows are the cosines, float64 `[side, side]`."""
    n = np.arange(side)
    basis = np.cos(np.pi * (2 * n[None] + 1) * n[:, None] / (2 * side))
    scale = np.where(n == 0, np.sqrt(1 / side), np.sqrt(2 / side))
    return scale[:, None] * basis

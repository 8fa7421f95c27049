"""Convolution and max-pooling with gradients that are fast for many workers at once.

Shapes: `N` images of one worker's batch, `H x W` pixels, `C` channels in and `O` out,
kernels of `K x K`; channels come last.

Under `jax.vmap(jax.grad(loss), in_axes=(None, 0))` XLA's CPU backend is slow at the
gradients of both; these bring their own. They differentiate in reverse mode only, once.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

_PIXELS = 4096  # whose patches are made at once: they should fit the cache
_MANY_CHANNELS = 32  # in, from which YNNPACK's convolution is the slower one
_WIDER = 1.5  # times as many pixels as outputs: then these are spread


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
    images: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0
) -> jax.Array:
    r"""Convolution in two dimensions, fast under `vmap(grad(...))` on a CPU.

    $$y_{n,h,w,o} = \sum_{i,j,c} x_{n,\,sh+i-p,\,sw+j-p,\,c}\; k_{i,j,c,o}$$

    with stride s and padding p. Workers that share the kernel become one batch, except
    in the gradient of the kernel: that is a convolution grouped by worker, which XLA's
    CPU backend runs at 2 to 8 GFLOP/s. There, it is made worker by worker, a few images
    at a time, as patches and a matrix product. Other platforms get XLA's own.
    """
    plain = functools.partial(_convolution, stride=stride, padding=padding)
    sides = ((padding, padding), (padding, padding))
    on_cpu = functools.partial(_cpu_convolution, stride=stride, padding=sides)
    return lax.platform_dependent(images, kernel, cpu=on_cpu, default=plain)


def _convolution(images, kernel, stride, padding):
    """XLA's convolution; the padding is one number, or one pair for each axis."""
    if isinstance(padding, int):
        padding = ((padding, padding), (padding, padding))
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _cpu_convolution(images, kernel, stride, padding):
    """The same, but kernels that differ (between seeds) take turns.

    XLA would group the convolution by kernel, which is 3 to 7 times slower.
    """
    size, _, channels, _ = kernel.shape
    (above, below), beside = padding
    # A row of zeros below, and the row that it gives taken off again: what is padded
    # alike on all sides goes to YNNPACK, at half the speed (jax 0.10.2).
    extra = int(stride == 1 and size > 1 and channels >= _MANY_CHANNELS)

    @_in_one_batch
    def convolution(images, kernel):
        if stride > 1 and size > 1:
            return _by_patches(images, kernel, stride, padding)
        padded = (above, below + extra), beside
        outputs = _convolution(images, kernel, stride, padded)
        return outputs[:, : outputs.shape[1] - extra]

    return convolution(images, kernel)


def _in_one_batch(function):
    """Of images and a kernel: workers that share it are one batch, or take turns."""
    function = custom_vmap(function)

    @function.def_vmap
    def _(axis_size, is_batched, images, kernel):
        if is_batched[1]:
            return _in_turn(function, axis_size, is_batched, images, kernel), True
        outputs = function(images.reshape(-1, *images.shape[2:]), kernel)
        return outputs.reshape(axis_size, -1, *outputs.shape[1:]), True

    return function


def _by_patches(images, kernel, stride, padding):
    """A few images at a time, as patches and a matrix product: twice as fast."""
    size, _, _, features = kernel.shape
    matrix = kernel.reshape(-1, features)
    lengths = [
        (length + sum(sides) - size) // stride + 1
        for length, sides in zip(images.shape[1:3], padding, strict=True)
    ]

    def of_block(images):
        for axis in (2, 1):
            length, sides = lengths[axis - 1], padding[axis - 1]
            images = _shifted(images, axis, sides, length, stride, range(size))
        outputs = images.reshape(-1, images.shape[-1]) @ matrix
        return outputs.reshape(*images.shape[:3], features)

    blocks = _in_blocks(images, math.prod(images.shape[1:3]))
    return lax.map(of_block, blocks).reshape(-1, *lengths, features)


def _shifted(array, axis, sides, length, stride, starts):
    """Windows of the padded axis that start at each of `starts`, side by side."""
    padded = [(0, 0)] * 4
    padded[axis] = sides
    array, last = jnp.pad(array, padded), stride * (length - 1) + 1
    parts = [lax.slice_in_dim(array, i, i + last, stride, axis) for i in starts]
    return jnp.concatenate(parts, axis=-1)


def _in_turn(function, axis_size, is_batched, *arrays):
    """Map the function over the leading axis, one after the other."""
    arrays = tuple(
        x if batched else jnp.broadcast_to(x[None], (axis_size, *x.shape))
        for x, batched in zip(arrays, is_batched, strict=True)
    )
    return lax.map(lambda one: function(*one), arrays)


def _convolve_forward(images, kernel, stride, padding):
    return convolve(images, kernel, stride, padding), (images, kernel)


def _convolve_backward(stride, padding, residuals, cotangent):
    def on_cpu(images, kernel, cotangent):
        return (
            _images_gradient(images.shape, kernel, cotangent, stride, padding),
            _kernel_gradient(images, kernel.shape, cotangent, stride, padding),
        )

    def elsewhere(images, kernel, cotangent):
        function = functools.partial(_convolution, stride=stride, padding=padding)
        return jax.vjp(function, images, kernel)[1](cotangent)

    arrays = *residuals, cotangent
    return lax.platform_dependent(*arrays, cpu=on_cpu, default=elsewhere)


convolve.defvjp(_convolve_forward, _convolve_backward)


def _images_gradient(shape, kernel, cotangent, stride, padding):
    """The cotangent convolved with kernels for each pixel of a square of the stride.

    Pixel sa + r has the rows a + t of the cotangent, by rows r + p - st of the kernel,
    as far as it has such rows. JAX's own convolves the cotangent spread by the stride,
    mostly zeros, and the CPU backend then folds the flip into the convolution, which
    makes it 3 to 11 times slower inside of a loop, such as a scan over rounds.
    """
    size, _, channels, features = kernel.shape
    pixels, outputs = math.prod(shape[1:3]), math.prod(cotangent.shape[1:3])
    if stride == 1 and pixels > _WIDER * outputs:
        return _spread(shape[1:3], kernel, cotangent, padding)
    first, last = -((size - 1 - padding) // stride), (stride - 1 + padding) // stride
    rows = last - first + 1  # of t
    low = stride * last - padding
    beyond = (low, stride * rows - size - low)
    kernel = jnp.pad(kernel, (beyond, beyond, (0, 0), (0, 0)))
    kernel = kernel.reshape(rows, stride, rows, stride, channels, features)
    kernels = kernel[::-1, :, ::-1].transpose(0, 2, 5, 1, 3, 4)
    kernels = kernels.reshape(rows, rows, features, stride * stride * channels)
    squares = [-(-length // stride) for length in shape[1:3]]
    sides = [
        (-first, number + last - outer)
        for number, outer in zip(squares, cotangent.shape[1:3], strict=True)
    ]
    images = _cpu_convolution(cotangent, kernels, 1, sides)
    images = images.reshape(-1, *squares, stride, stride, channels)
    images = images.transpose(0, 1, 3, 2, 4, 5)
    images = images.reshape(-1, *(stride * number for number in squares), channels)
    return images[:, : shape[1], : shape[2]]


def _spread(lengths, kernel, cotangent, padding):
    """Each number of the cotangent times the kernel, added to the pixels it came from.

    A convolution of the cotangent multiplies at each pixel, this at each output. Where
    nothing is padded, these are fewer.
    """
    size, _, channels, features = kernel.shape

    def added(parts, axis):
        """Sum of parts `[..., K, C]`, each one place further along the axis."""
        length = lengths[axis - 1] + 2 * padding

        def placed(start):
            part = parts[..., start, :]
            sides = [(0, 0)] * part.ndim
            sides[axis] = start, length - start - part.shape[axis]
            return jnp.pad(part, sides)

        total = functools.reduce(jnp.add, map(placed, range(size)))
        return lax.slice_in_dim(total, padding, length - padding, axis=axis)

    @_in_one_batch
    def spread(cotangent, kernel):
        matrix = kernel.transpose(3, 0, 1, 2).reshape(features, -1)

        def of_block(cotangent):
            products = cotangent.reshape(-1, features) @ matrix
            products = products.reshape(*cotangent.shape[:3], size, size, channels)
            return added(added(products, 2), 1)

        blocks = _in_blocks(cotangent, size * math.prod(cotangent.shape[1:3]))
        return lax.map(of_block, blocks).reshape(-1, *lengths, channels)

    return spread(cotangent, kernel)


def _kernel_gradient(images, shape, cotangent, stride, padding):
    """Patches of a few images and a matrix product, again and again; no worker axis.

    Where the rows of images and cotangent are one to one, the patches are of K pixels
    in a row, beside K shifted cotangents: six copies instead of ten for K = 3.
    """
    size, _, channels, features = shape
    num_rows, num_columns = cotangent.shape[1:3]
    by_rows = stride == 1 and num_rows == images.shape[1]
    by_rows = by_rows and size * channels > features  # else there is more to copy
    pixels = math.prod(images.shape[1:3])

    def shifted(array, axis, length, starts):
        return _shifted(array, axis, (padding, padding), length, stride, starts)

    def add_block(total, pair):
        images, cotangent = pair
        patches = shifted(images, 2, num_columns, range(size))
        if by_rows:
            cotangent = shifted(cotangent, 1, num_rows, reversed(range(size)))
        else:
            patches = shifted(patches, 1, num_rows, range(size))
        # Of matrices: XLA's product over three axes at once takes twice as long.
        patches = patches.reshape(-1, patches.shape[-1])
        return total + patches.T @ cotangent.reshape(-1, cotangent.shape[-1]), None

    @custom_vmap
    def gradient(images, cotangent):
        across, up = (size, 1) if by_rows else (1, size)
        total = jnp.zeros((up * size * channels, across * features), cotangent.dtype)
        blocks = _in_blocks(images, pixels), _in_blocks(cotangent, pixels)
        total = lax.scan(add_block, total, blocks)[0]
        total = total.reshape(up, size, channels, across, features)
        return total.transpose(0, 3, 1, 2, 4).reshape(shape)

    @gradient.def_vmap
    def _(axis_size, is_batched, *pair):
        # One worker after the other: its patches stay in the cache.
        return _in_turn(gradient, axis_size, is_batched, *pair), True

    return gradient(images, cotangent)


def _in_blocks(images, pixels):
    """A few images at a time, of so many pixels each; none is left over."""
    num = len(images)
    most = max(1, min(num, _PIXELS // pixels))
    few = max(n for n in range(1, most + 1) if num % n == 0)
    return images.reshape(-1, few, *images.shape[1:])


@jax.custom_vjp
def max_pool(images: jax.Array) -> jax.Array:
    """Maximum over windows of 2 x 2; an odd last row or column is left out.

    The gradient goes to the first largest pixel of a window, as that of
    `flax.linen.max_pool`, whose form is slow on a CPU.
    """
    return _windows(images).max((2, 4))


def _windows(images):
    num, height, width, channels = images.shape
    images = images[:, : height // 2 * 2, : width // 2 * 2]
    return images.reshape(num, height // 2, 2, width // 2, 2, channels)


def _max_pool_forward(images):
    largest = max_pool(images)
    return largest, (images, largest)


def _max_pool_backward(residuals, cotangent):
    images, largest = residuals
    num, height, width, channels = images.shape
    windows = _windows(images)
    place = jnp.full(largest.shape, 3, jnp.int8)  # of the first largest pixel
    for i, j in ((1, 0), (0, 1), (0, 0)):
        is_largest = windows[:, :, i, :, j] == largest
        place = jnp.where(is_largest, jnp.int8(2 * i + j), place)
    places = jnp.arange(4, dtype=jnp.int8).reshape(1, 1, 2, 1, 2, 1)
    place, cotangent = (jnp.expand_dims(x, (2, 4)) for x in (place, cotangent))
    gradient = jnp.where(place == places, cotangent, jnp.zeros_like(cotangent))
    gradient = gradient.reshape(num, height // 2 * 2, width // 2 * 2, channels)
    odd = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
    return (jnp.pad(gradient, odd),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)

"""Convolution and pooling against their definitions and against XLA's own gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from signfd_jax.models._convolution import convolve, max_pool

# num, height, width, channels, features, size, stride, padding
SHAPES = [
    (6, 12, 13, 3, 4, 5, 1, 0),
    (5, 9, 8, 2, 3, 3, 2, 1),
    (16, 8, 8, 4, 4, 3, 1, 1),
    (4, 7, 9, 1, 3, 3, 3, 0),
    (3, 6, 6, 2, 2, 1, 1, 0),
    (7, 11, 10, 2, 3, 4, 2, 3),
    (2, 8, 8, 2, 3, 3, 2, 0),
    (2, 3, 3, 4, 2, 3, 2, 2),
    # Many channels in, out, and in both.
    (3, 6, 5, 32, 2, 3, 1, 1),
    (2, 5, 6, 2, 33, 3, 1, 1),
    (2, 7, 6, 32, 33, 2, 1, 2),
    # Many more pixels than outputs, though some are padded.
    (4, 9, 10, 2, 3, 6, 1, 1),
]


def plain(images, kernel, stride, padding):
    return lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        ((padding, padding),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def arrays(key, shape, lead=()):
    num, height, width, channels, features, size, stride, padding = shape
    keys = jax.random.split(key, 3)
    kernel = jax.random.normal(keys[1], (size, size, channels, features))
    images = jax.random.normal(keys[0], (*lead, num, height, width, channels))
    outer = [(n + 2 * padding - size) // stride + 1 for n in (height, width)]
    cotangent = jax.random.normal(keys[2], (*lead, num, *outer, features))
    return images, kernel, cotangent


def values_and_gradients(function, stride, padding):
    def both(images, kernel, cotangent):
        value, pull_back = jax.vjp(
            lambda x, k: function(x, k, stride, padding), images, kernel
        )
        return value, *pull_back(cotangent)

    return both


def assert_close(actual, wanted):
    for one, other in zip(actual, wanted, strict=True):
        scale = np.abs(other).max()
        np.testing.assert_allclose(one / scale, other / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_convolve_is_its_definition(key, shape):
    num, _, _, _, features, size, stride, padding = shape
    images, kernel, cotangent = arrays(key, shape)
    padded = np.pad(images, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)))
    wanted = np.zeros(cotangent.shape)
    for n, h, w, o in np.ndindex(num, *cotangent.shape[1:3], features):
        top, left = stride * h, stride * w
        window = padded[n, top : top + size, left : left + size]
        wanted[n, h, w, o] = np.sum(window * np.asarray(kernel)[..., o])
    convolved = jax.jit(convolve, static_argnums=(2, 3))
    assert_close([convolved(images, kernel, stride, padding)], [wanted])


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_each_worker_equal_the_plain_ones(key, shape):
    images, kernel, cotangent = arrays(key, shape, lead=(3,))
    functions = (values_and_gradients(f, *shape[-2:]) for f in (convolve, plain))
    actual, wanted = (
        jax.jit(jax.vmap(f, (0, None, 0)))(images, kernel, cotangent) for f in functions
    )
    assert_close(actual, wanted)


@pytest.mark.parametrize("axes", [(0, None, None), (None, None, 0), (0, 0, 0)])
def test_any_argument_may_have_the_mapped_axis(key, axes):
    shape = SHAPES[1]
    images, kernel, cotangent = arrays(key, shape, lead=(3,))
    kernel = jnp.stack([kernel, 2 * kernel, -kernel])
    args = [
        x if axis == 0 else x[0]
        for x, axis in zip((images, kernel, cotangent), axes, strict=True)
    ]
    functions = (values_and_gradients(f, *shape[-2:]) for f in (convolve, plain))
    assert_close(*(jax.jit(jax.vmap(f, axes))(*args) for f in functions))


def test_seeds_around_workers_inside_a_scan(key):
    shape = SHAPES[2]
    images, kernel, cotangent = arrays(key, shape, lead=(2, 3))
    kernels = jnp.stack([kernel, -2 * kernel])

    def three_rounds(function):
        both = values_and_gradients(function, *shape[-2:])

        def run(kernel, images, cotangent):
            def step(kernel, _):
                outputs = jax.vmap(both, (0, None, 0))(images, kernel, cotangent)
                return kernel + 0.01 * outputs[2].mean(0), outputs

            return lax.scan(step, kernel, None, length=3)

        return jax.tree.leaves(jax.jit(jax.vmap(run))(kernels, images, cotangent))

    assert_close(three_rounds(convolve), three_rounds(plain))


def test_gradients_keep_the_dtype(key):
    images, kernel, _ = (x.astype(jnp.bfloat16) for x in arrays(key, SHAPES[0]))
    gradients = jax.grad(lambda x, k: jnp.sum(jnp.asarray(convolve(x, k))), (0, 1))(
        images, kernel
    )
    assert {x.dtype for x in gradients} == {jnp.dtype(jnp.bfloat16)}


def test_no_images_have_no_gradient(key):
    images, kernel, _ = arrays(key, (0, *SHAPES[0][1:]))
    total = jax.grad(lambda k: jnp.sum(jnp.asarray(convolve(images, k))))(kernel)
    np.testing.assert_array_equal(total, np.zeros(kernel.shape))


@pytest.mark.parametrize("height", [4, 5])
@pytest.mark.parametrize("width", [2, 6, 7])
def test_max_pool_and_its_gradient_equal_flax_even_in_ties(key, height, width):
    # Few values, so that windows with two, three and four largest pixels abound.
    images = jax.random.randint(key, (9, height, width, 3), 0, 3).astype(jnp.float32)
    weights = jax.random.normal(key, (9, height // 2, width // 2, 3))

    def both(pool):
        loss = lambda x: (weights * pool(x)).sum()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(images)

    assert_close(both(max_pool), both(lambda x: nn.max_pool(x, (2, 2), strides=(2, 2))))
    wanted = [
        np.asarray(images)[:, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2].max((1, 2))
        for h in range(height // 2)
        for w in range(width // 2)
    ]
    wanted = np.stack(wanted, axis=1).reshape(weights.shape)
    np.testing.assert_array_equal(max_pool(images), wanted)

"""Small flax networks for images and tables.

Shapes: `N` images of one batch, `H x W` pixels, `C` channels, last. Inputs are float32,
standardised; logits float32 `[N, num_classes]`.

`params = model.init(key, inputs)` and `logits = model.apply(params, inputs)` are flax's
own. A round takes the gradients of M workers at the same parameters:

    jax.vmap(jax.grad(loss_fn(model)), in_axes=(None, 0))(params, batches)

The convolutional networks are written to be fast at that: see `_convolution`.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from signfd_jax.models._convolution import convolve, max_pool
from signfd_jax.models._normalization import normalize

__all__ = [
    "MLP",
    "VGG11",
    "BatchNorm",
    "Bias",
    "Conv",
    "MnistCNN",
    "ResNet",
    "ResNet18",
    "SoftmaxRegression",
]

# ------------------------------------------------------------------------- networks


class SoftmaxRegression(nn.Module):
    """One dense layer on the flattened image or row.

    Attributes:
        num_classes: number of logits.

    Examples:
        >>> model = SoftmaxRegression()
        >>> params = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
        >>> sum(x.size for x in jax.tree.leaves(params))
        7850
    """

    num_classes: int = 10

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Logits `[N, num_classes]` of images `[N, ...]`."""
        return nn.Dense(self.num_classes)(inputs.reshape(inputs.shape[0], -1))


class MLP(nn.Module):
    """Dense layers with ReLU on the flattened image or row.

    Attributes:
        hidden: width of each hidden layer.
        num_classes: number of logits.

    Examples:
        >>> model = MLP(hidden=(128,))
        >>> params = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
        >>> sum(x.size for x in jax.tree.leaves(params))
        101770
    """

    hidden: tuple[int, ...] = (128,)
    num_classes: int = 10

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Logits `[N, num_classes]` of images `[N, ...]`."""
        inputs = inputs.reshape(inputs.shape[0], -1)
        for width in self.hidden:
            inputs = nn.relu(nn.Dense(width)(inputs))
        return nn.Dense(self.num_classes)(inputs)


class MnistCNN(nn.Module):
    """The MNIST network of the federated-defense paper: 582,026 parameters.

    Two convolutions of 5 x 5 with 32 and 64 features, without padding, each followed by
    ReLU and 2 x 2 max-pooling; dense layers of 512 with ReLU and of `num_classes`.

    Attributes:
        num_classes: number of logits.

    Examples:
        >>> model = MnistCNN()
        >>> params = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
        >>> sum(x.size for x in jax.tree.leaves(params))
        582026

    References:
        Park and Lee, [SignSGD with Federated Defense](
        https://arxiv.org/abs/2402.01340), ICML 2024.
    """

    num_classes: int = 10

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Logits `[N, num_classes]` of images `[N, H, W, C]` of 16 x 16 or more."""
        if inputs.ndim != 4 or min(inputs.shape[1:3]) < 16:
            raise ValueError(
                "MnistCNN wants images [N, H, W, C] of at least 16 x 16 pixels, but "
                f"got {inputs.shape}; use MLP or SoftmaxRegression for smaller ones"
            )
        for features in (32, 64):
            # Bias and ReLU keep the order of pixels: after the pooling they are a
            # quarter of the work.
            inputs = nn.relu(Bias()(max_pool(Conv(features, 5)(inputs))))
        inputs = nn.relu(nn.Dense(512)(inputs.reshape(inputs.shape[0], -1)))
        return nn.Dense(self.num_classes)(inputs)


class ResNet(nn.Module):
    """The residual network for CIFAR, with shortcuts without parameters (option A).

    Three stages of `(depth - 2) / 6` blocks with 16, 32 and 64 features. A shortcut
    into the next stage takes every other pixel and pads the channels with zeros.
    Convolutions start He normal. For 10 classes, depth 20 has 269,722 parameters and
    depth 56 853,018 (858,868 for 100 classes).

    Attributes:
        depth: number of layers, 6 k + 2.
        num_classes: number of logits.

    Examples:
        >>> model = ResNet(depth=20)
        >>> params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> sum(x.size for x in jax.tree.leaves(params))
        269722

    References:
        He, Zhang, Ren and Sun, [Deep Residual Learning for Image Recognition](
        https://arxiv.org/abs/1512.03385), CVPR 2016, section 4.2.
    """

    depth: int = 20
    num_classes: int = 10

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Logits `[N, num_classes]` of images `[N, H, W, C]`, normalised over N."""
        blocks, rest = divmod(self.depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(
                f"depth must be 8, 14, 20, ... (6 k + 2), but is {self.depth}"
            )
        conv = functools.partial(
            Conv, size=3, padding=1, kernel_init=nn.initializers.he_normal()
        )
        x = nn.relu(BatchNorm()(conv(16)(inputs)))
        for features in (16, 32, 64):
            for block in range(blocks):
                stride = 2 if features > 16 and block == 0 else 1
                y = nn.relu(BatchNorm()(conv(features, stride=stride)(x)))
                y = BatchNorm()(conv(features)(y))
                x = x[:, ::stride, ::stride]
                missing = (features - x.shape[-1]) // 2
                x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing, missing)))
                x = nn.relu(x + y)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


class ResNet18(nn.Module):
    """The residual network of 18 layers, for CIFAR or for ImageNet.

    Four stages of two blocks with W, 2 W, 4 W and 8 W features. A shortcut into the
    next stage is a convolution of 1 x 1. Convolutions start He normal. With W = 64 and
    10 classes it has 11,173,962 parameters, as it is usually built for CIFAR: it begins
    with a convolution of 3 x 3. The paper's begins with one of 7 x 7, of every other
    pixel, and a max-pooling of 3 x 3: with 1000 classes it has 11,689,512.

    Attributes:
        width: W, features of the first stage.
        stem: size of the first convolution: 3, or 7 for large images.
        num_classes: number of logits.

    Examples:
        >>> params = jax.eval_shape(
        ...     ResNet18().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
        ... )
        >>> sum(x.size for x in jax.tree.leaves(params))
        11173962

    References:
        He, Zhang, Ren and Sun, [Deep Residual Learning for Image Recognition](
        https://arxiv.org/abs/1512.03385), CVPR 2016, table 1.
    """

    width: int = 64
    stem: int = 3
    num_classes: int = 10

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Logits `[N, num_classes]` of images `[N, H, W, C]`, normalised over N."""
        if self.stem not in (3, 7):
            raise ValueError(f"stem must be 3 or 7, but is {self.stem}")
        conv = functools.partial(Conv, kernel_init=nn.initializers.he_normal())
        step = 2 if self.stem == 7 else 1
        x = conv(self.width, self.stem, step, self.stem // 2)(inputs)
        x = nn.relu(BatchNorm()(x))
        if self.stem == 7:
            sides: Any = ((1, 1), (1, 1))
            x = nn.max_pool(x, (3, 3), (2, 2), sides)
        for stage in range(4):
            features = self.width * 2**stage
            for block in range(2):
                stride = 2 if stage and not block else 1
                y = nn.relu(BatchNorm()(conv(features, 3, stride, 1)(x)))
                y = BatchNorm()(conv(features, 3, 1, 1)(y))
                if stride == 2:
                    x = BatchNorm()(conv(features, 1, stride)(x))
                x = nn.relu(x + y)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))


class VGG11(nn.Module):
    """The network of 11 layers of the Visual Geometry Group, its configuration A.

    Eight convolutions of 3 x 3, in which five max-poolings of 2 x 2 halve the image;
    then dense layers. Convolutions start He normal. With W = 64 and 10 classes it has
    9,231,114 parameters on 32 x 32 pixels, as it is usually built for CIFAR: one dense
    layer, and batch normalisation. The biases before a normalisation, 2752 of these
    parameters, change nothing: their gradients, and so the votes, are rounding errors.
    The paper's has no normalisation, and two hidden dense layers: with `hidden=4096`,
    `batch_norm=False` and 1000 classes it has 132,863,336 on 224 x 224 pixels. Its
    dropout is left out.

    Attributes:
        width: W, features of the first convolution.
        hidden: width of the two hidden dense layers; 0: there are none.
        batch_norm: normalise after each convolution.
        num_classes: number of logits.

    Examples:
        >>> params = jax.eval_shape(
        ...     VGG11().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
        ... )
        >>> sum(x.size for x in jax.tree.leaves(params))
        9231114

    References:
        Simonyan and Zisserman, [Very Deep Convolutional Networks for Large-Scale Image
        Recognition](https://arxiv.org/abs/1409.1556), ICLR 2015, tables 1 and 2.
    """

    width: int = 64
    hidden: int = 0
    batch_norm: bool = True
    num_classes: int = 10

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Logits `[N, num_classes]` of images `[N, H, W, C]` of 32 x 32 or more."""
        if inputs.ndim != 4 or min(inputs.shape[1:3]) < 32:
            raise ValueError(
                "VGG11 wants images [N, H, W, C] of at least 32 x 32 pixels, but got "
                f"{inputs.shape}; use MLP or ResNet18 for smaller ones"
            )
        conv = functools.partial(
            Conv, size=3, padding=1, kernel_init=nn.initializers.he_normal()
        )
        x = inputs
        for stage, layers in ((1, 1), (2, 1), (4, 2), (8, 2), (8, 2)):
            for _ in range(layers):
                x = Bias()(conv(self.width * stage)(x))
                x = nn.relu(BatchNorm()(x) if self.batch_norm else x)
            x = max_pool(x)
        x = x.reshape(x.shape[0], -1)
        for _ in range(2 if self.hidden else 0):
            x = nn.relu(nn.Dense(self.hidden)(x))
        return nn.Dense(self.num_classes)(x)


# --------------------------------------------------------------------------- layers


class Conv(nn.Module):
    """A layer of `convolve`, without bias.

    Attributes:
        features: O, channels out.
        size: K, height and width of the kernel.
        stride: pixels from one output to the next.
        padding: zero pixels on each side.
        kernel_init: initialiser of the kernel, `[size, size, ...]`.
    """

    features: int
    size: int
    stride: int = 1
    padding: int = 0
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Features `[N, H', W', O]` of images `[N, H, W, C]`."""
        shape = (self.size, self.size, inputs.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        return convolve(inputs, kernel, self.stride, self.padding)


class Bias(nn.Module):
    """Add one number to each channel; it starts at zero."""

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Inputs `[N, H, W, C]`, shifted."""
        bias = self.param("bias", nn.initializers.zeros_init(), inputs.shape[-1:])
        return inputs + bias.reshape(1, 1, 1, -1)


class BatchNorm(nn.Module):
    """Batch normalisation with the statistics of the batch, in tests too.

    There is no running average: what is normalised is always the batch at hand, as in
    the paper's networks. So a logit depends on the other images of its batch.
    It differentiates in reverse mode only, once.

    Attributes:
        epsilon: added to the variance.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Inputs `[N, H, W, C]`, of mean 0 and variance 1 over N, H, W; then affine."""
        shape = inputs.shape[-1:]
        scale = self.param("scale", nn.initializers.ones_init(), shape)
        bias = self.param("bias", nn.initializers.zeros_init(), shape)
        return normalize(inputs, scale, bias, self.epsilon)

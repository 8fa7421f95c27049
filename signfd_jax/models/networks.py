"""Small flax networks, their loss and their test.

Shapes: `N` images of one batch, `H x W` pixels, `C` channels, last. Inputs are float32,
standardised; labels int32 `[N]`; logits float32 `[N, num_classes]`.

`params = model.init(key, inputs)` and `logits = model.apply(params, inputs)` are flax's
own. A round takes the gradients of M workers at the same parameters:

    jax.vmap(jax.grad(loss_fn(model)), in_axes=(None, 0))(params, batches)

The convolutional networks are written to be fast at that: see `_convolution`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from signfd_jax._checks import check_callable, check_kind, check_size
from signfd_jax.models._convolution import convolve, max_pool

__all__ = [
    "MLP",
    "BatchNorm",
    "Bias",
    "Conv",
    "Evaluation",
    "MnistCNN",
    "ResNet",
    "SoftmaxRegression",
    "evaluate",
    "loss_fn",
]

# ------------------------------------------------------------------------- networks


class SoftmaxRegression(nn.Module):
    """One dense layer on the flattened image.

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
    """Dense layers with ReLU on the flattened image.

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
        centred = inputs - inputs.mean((0, 1, 2), keepdims=True)
        variance = (centred * centred).mean((0, 1, 2))
        factor = scale * lax.rsqrt(variance + self.epsilon)
        factor, bias = (x.reshape(1, 1, 1, -1) for x in (factor, bias))
        return centred * factor + bias


# -------------------------------------------------------------- training and testing


def loss_fn(
    model: nn.Module,
) -> Callable[[Any, tuple[jax.Array, ...]], jax.Array]:
    """Build the loss of one worker: the mean cross-entropy of its batch, in nats.

    Args:
        model: a network of this module, or any whose `apply` gives logits.

    Returns:
        `loss(params, (inputs, labels)) -> float32 scalar`, with inputs `[N, ...]` and
        labels int32 `[N]`; `(inputs, labels, counted)`, with float32 `[N]`, is the mean
        weighted so.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> model = SoftmaxRegression()
        >>> batch = jnp.zeros((5, 28, 28, 1)), jnp.zeros(5, jnp.int32)
        >>> params = model.init(jax.random.key(0), batch[0])
        >>> print(loss_fn(model)(params, batch).round(3))
        2.303
    """
    check_kind("model", model, ("init", "apply"), "flax.linen")

    def loss(params, batch):
        inputs, labels, *counted = batch
        logits: Any = model.apply(params, inputs)
        losses = _cross_entropy(logits, labels)
        if not counted:
            return losses.mean()
        return jnp.sum(losses * counted[0]) / jnp.sum(counted[0])

    return loss


_cross_entropy = optax.softmax_cross_entropy_with_integer_labels


class Evaluation(NamedTuple):
    """How well a network does on a set of examples.

    Attributes:
        accuracy: float32 scalar, fraction of the examples whose largest logit is that
            of their label.
        loss: float32 scalar, mean cross-entropy in nats.
    """

    accuracy: jax.Array
    loss: jax.Array


def evaluate(
    model: nn.Module,
    params: Any,
    inputs: jax.Array | np.ndarray,
    labels: jax.Array | np.ndarray,
    *,
    batch_size: int = 500,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
) -> Evaluation:
    """Accuracy and mean loss over all examples, batch by batch in one compiled loop.

    The last batch is smaller if need be. `BatchNorm` normalises over whole batches in
    tests too: with it the result depends on `batch_size` and the order of the examples.

    Args:
        model: the network.
        params: tree of its parameters, `[...]`; vmap over them for several seeds.
        inputs: `[n, ...]`, standardised, unless `preprocess` does that.
        labels: int32 `[n]`.
        batch_size: examples at once.
        preprocess: applied to each batch of inputs `[batch_size, ...]`, such as
            `signfd_jax.data.standardise`. Pass the same function object again, or it is
            compiled again; of a `functools.partial`, arrays may be new ones.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: there are no examples, `batch_size` is below 1, or inputs and labels
            differ in number.

    Examples:
        >>> model = SoftmaxRegression()
        >>> inputs, labels = jnp.zeros((6, 28, 28, 1)), jnp.array([0, 0, 0, 1, 2, 3])
        >>> params = model.init(jax.random.key(0), inputs)
        >>> print(evaluate(model, params, inputs, labels, batch_size=4).accuracy)
        0.5
    """
    check_kind("model", model, ("init", "apply"), "flax.linen")
    check_size("batch_size", batch_size)
    if preprocess is not None:
        check_callable("preprocess", preprocess, "inputs -> inputs")
    if labels.shape != inputs.shape[:1] or not labels.size:
        raise ValueError(
            "inputs and labels must hold equally many examples, at least one, but are "
            f"{inputs.shape} and {labels.shape}"
        )
    _check_params(model, params, inputs, preprocess)
    if isinstance(preprocess, functools.partial):  # What it holds may be traced.
        held = preprocess
        preprocess = jax.tree_util.Partial(held.func, *held.args, **held.keywords)
    else:
        preprocess = jax.tree_util.Partial(preprocess or jnp.asarray)
    return _evaluate(model, batch_size, preprocess, params, inputs, labels)


def _check_params(model, params, inputs, preprocess):
    def init(batch):
        batch = batch if preprocess is None else preprocess(batch)
        return model.init(jax.random.key(0), batch)

    shapes = jax.eval_shape(
        init, jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)
    )
    wanted, given = (
        {
            jax.tree_util.keystr(path): jnp.shape(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (shapes, params)
    )
    if wanted != given:
        raise ValueError(
            f"params are not those of this {type(model).__name__} on inputs of shape "
            f"{list(inputs.shape)}; make them by model.init(key, inputs)"
        )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _evaluate(model, batch_size, preprocess, params, inputs, labels):
    def sums(batch):
        inputs, labels = batch
        logits = model.apply(params, preprocess(inputs))
        correct = jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels
        return Evaluation(
            correct.sum(dtype=jnp.float32), _cross_entropy(logits, labels).sum()
        )

    num = len(labels)
    whole = num - num % batch_size
    total = Evaluation(jnp.float32(0), jnp.float32(0))
    if whole:
        batches = jax.tree.map(
            lambda x: x[:whole].reshape(-1, batch_size, *x.shape[1:]), (inputs, labels)
        )
        total = jax.tree.map(jnp.sum, lax.map(sums, batches))
    if whole < num:
        rest = sums((inputs[whole:], labels[whole:]))
        total = jax.tree.map(jnp.add, total, rest)
    return jax.tree.map(lambda x: x / num, total)

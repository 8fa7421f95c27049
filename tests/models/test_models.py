"""The networks against the papers' sizes and against plain flax; loss and test."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from signfd_jax import models

MNIST, CIFAR, IMAGENET = (28, 28, 1), (32, 32, 3), (224, 224, 3)
NETWORKS = [
    (models.SoftmaxRegression(), MNIST, 7_850),
    (models.MLP(), MNIST, 101_770),
    (models.MLP(hidden=(20, 30), num_classes=3), (8, 8, 1), 1_300 + 630 + 93),
    (models.MnistCNN(), MNIST, 582_026),
    (models.ResNet(depth=20), CIFAR, 269_722),
    (models.ResNet(depth=56), CIFAR, 853_018),
    (models.ResNet(depth=56, num_classes=100), CIFAR, 858_868),
    (models.ResNet18(), CIFAR, 11_173_962),
    (models.ResNet18(num_classes=100), CIFAR, 11_220_132),
    (models.ResNet18(stem=7, num_classes=1000), IMAGENET, 11_689_512),
    (models.VGG11(), CIFAR, 9_231_114),
    (models.VGG11(batch_norm=False), CIFAR, 9_225_610),
    # Table 2 of the paper has 133 million.
    (
        models.VGG11(hidden=4096, batch_norm=False, num_classes=1000),
        IMAGENET,
        132_863_336,
    ),
]


class PlainCNN(nn.Module):
    """The MNIST network as the paper describes it, in flax's own layers."""

    @nn.compact
    def __call__(self, x):
        for features in (32, 64):
            x = nn.relu(nn.Conv(features, (5, 5), padding="VALID")(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(512)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


class PlainResNet(nn.Module):
    """ResNet-8 in flax's own layers, stage by stage."""

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(
            nn.Conv, kernel_size=(3, 3), padding=((1, 1), (1, 1)), use_bias=False
        )
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=False,
            use_fast_variance=False,
            epsilon=1e-5,
        )
        x = nn.relu(norm()(conv(16)(x)))
        for features, stride in ((16, 1), (32, 2), (64, 2)):
            y = nn.relu(norm()(conv(features, strides=stride)(x)))
            y = norm()(conv(features)(y))
            if stride == 2:
                quarter = ((0, 0), (0, 0), (0, 0), (features // 4, features // 4))
                x = jnp.pad(x[:, ::2, ::2], quarter)
            x = nn.relu(x + y)
        return nn.Dense(10)(x.mean((1, 2)))


class PlainResNet18(nn.Module):
    """ResNet-18 of width 4 in flax's own layers, block by block."""

    stem: int

    @nn.compact
    def __call__(self, x):
        def convolve(x, features, size, stride=1):
            x = nn.Conv(
                *(features, (size, size), stride),
                padding=((size // 2, size // 2),) * 2,
                use_bias=False,
            )(x)
            return nn.BatchNorm(
                use_running_average=False, use_fast_variance=False, epsilon=1e-5
            )(x)

        x = nn.relu(convolve(x, 4, self.stem, 1 if self.stem == 3 else 2))
        if self.stem == 7:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        blocks = ((4, 1), (4, 1), (8, 2), (8, 1), (16, 2), (16, 1), (32, 2), (32, 1))
        for features, stride in blocks:
            y = convolve(nn.relu(convolve(x, features, 3, stride)), features, 3)
            x = nn.relu(y + (x if stride == 1 else convolve(x, features, 1, 2)))
        return nn.Dense(10)(x.mean((1, 2)))


class PlainVGG11(nn.Module):
    """VGG-11 of width 4, without normalisation, in flax's own layers."""

    @nn.compact
    def __call__(self, x):
        for layer in (4, "pool", 8, "pool", 16, 16, "pool", 32, 32, "pool", 32, 32):
            if layer == "pool":
                x = nn.max_pool(x, (2, 2), (2, 2))
            else:
                x = nn.relu(nn.Conv(layer, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), (2, 2)).reshape(len(x), -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(6)(x))
        return nn.Dense(10)(x)


def initial(model, key, shape):
    return jax.jit(model.init)(key, jnp.zeros((1, *shape)))


def random_params(key, model, shape):
    """Parameters that are nowhere zero, of the right size."""
    params = initial(model, key, shape)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noise = [
        0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.map(jnp.add, params, jax.tree.unflatten(structure, noise))


def renamed(params, names):
    """Our parameters under flax's names: (ours, flax's) for each layer."""
    params = params["params"]
    theirs = {}
    for ours, other in names:
        theirs[other] = theirs.get(other, {}) | dict(params[ours])
    return {"params": theirs}


CNN_NAMES = [
    (f"{layer}_{i}", f"Conv_{i}") for layer in ("Conv", "Bias") for i in (0, 1)
]
CNN_NAMES += [("Dense_0", "Dense_0"), ("Dense_1", "Dense_1")]
RESNET_NAMES = [
    (f"{x}_{i}", f"{x}_{i}") for x in ("Conv", "BatchNorm") for i in range(7)
]
RESNET_NAMES += [("Dense_0", "Dense_0")]
RESNET18_NAMES = [
    (f"{x}_{i}", f"{x}_{i}") for x in ("Conv", "BatchNorm") for i in range(20)
]
RESNET18_NAMES += [("Dense_0", "Dense_0")]
VGG_NAMES = [(f"{x}_{i}", f"Conv_{i}") for x in ("Conv", "Bias") for i in range(8)]
VGG_NAMES += [(f"Dense_{i}", f"Dense_{i}") for i in range(3)]


@pytest.mark.parametrize(("model", "shape", "count"), NETWORKS)
def test_number_of_parameters(model, shape, count, key):
    params = jax.eval_shape(model.init, key, jnp.zeros((1, *shape)))
    assert sum(x.size for x in jax.tree.leaves(params)) == count
    logits = jax.eval_shape(model.apply, params, jnp.zeros((2, *shape)))
    assert logits.shape == (2, model.num_classes)
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize(("model", "shape", "_"), NETWORKS[:5])
def test_initial_values(model, shape, _, key):
    params = initial(model, key, shape)
    for path, leaf in jax.tree.leaves_with_path(params):
        layer, kind = (entry.key for entry in path[-2:])
        if kind == "bias":
            assert not leaf.any()
        elif kind == "scale":
            assert (leaf == 1).all()
        else:
            # LeCun and He normal are cut off at two standard deviations. The sample
            # standard deviation is within 6 of its standard errors: false alarm 1e-8.
            gain = 2 if layer.startswith("Conv") and model.num_classes == 10 else 1
            gain = gain if isinstance(model, models.ResNet) else 1
            fan_in = leaf.size // leaf.shape[-1]
            wanted = (gain / fan_in) ** 0.5
            error = 6 * wanted / (2 * leaf.size) ** 0.5
            assert abs(leaf.std() - wanted) < error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "theirs", "shape", "names"),
    [
        (models.MnistCNN(), PlainCNN(), MNIST, CNN_NAMES),
        (models.ResNet(depth=8), PlainResNet(), (12, 16, 3), RESNET_NAMES),
        (models.ResNet18(width=4), PlainResNet18(3), (9, 8, 3), RESNET18_NAMES),
        (
            *(models.ResNet18(width=4, stem=7), PlainResNet18(7)),
            *((32, 36, 3), RESNET18_NAMES),
        ),
        (
            *(models.VGG11(width=4, hidden=6, batch_norm=False), PlainVGG11()),
            *((32, 34, 3), VGG_NAMES),
        ),
    ],
)
def test_gradient_of_each_worker_equals_that_of_plain_flax(
    ours, theirs, shape, names, key
):
    params = random_params(key, ours, shape)
    inputs = jax.random.normal(key, (3, 4, *shape))
    labels = jax.random.randint(key, (3, 4), 0, 10)

    def plain_loss(params, batch):
        inputs, labels = batch
        logits, _ = theirs.apply(params, inputs, mutable=["batch_stats"])
        return -jnp.take_along_axis(nn.log_softmax(logits), labels[:, None], 1).mean()

    def of_workers(loss, params):
        gradient = jax.vmap(jax.value_and_grad(loss), (None, 0))
        return jax.jit(gradient)(params, (inputs, labels))

    loss, gradient = of_workers(models.loss_fn(ours), params)
    plain, plain_gradient = of_workers(plain_loss, renamed(params, names))
    np.testing.assert_allclose(loss, plain, rtol=1e-5)
    for one, other in zip(
        jax.tree.leaves(renamed(gradient, names)),
        jax.tree.leaves(plain_gradient),
        strict=True,
    ):
        scale = np.abs(other).max()
        np.testing.assert_allclose(one / scale, other / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", [models.MnistCNN(), models.ResNet(depth=8)])
def test_gradients_lower_for_every_platform(model, key):
    shape = MNIST if isinstance(model, models.MnistCNN) else CIFAR
    params = jax.eval_shape(model.init, key, jnp.zeros((1, *shape)))
    batch = jnp.zeros((3, 4, *shape)), jnp.zeros((3, 4), jnp.int32)
    gradient = jax.jit(jax.vmap(jax.grad(models.loss_fn(model)), (None, 0)))
    exported = export.export(gradient, platforms=["cpu", "cuda", "tpu"])(params, batch)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    # Off the CPU there are plain convolutions only: no loop over images.
    plain = export.export(gradient, platforms=["cuda"])(params, batch).mlir_module()
    assert "stablehlo.convolution" in plain
    assert "stablehlo.while" not in plain


def test_batch_norm_is_that_of_the_batch(key):
    inputs = 3 + 2 * jax.random.normal(key, (5, 4, 6, 7))
    norm = models.BatchNorm()
    params = norm.init(key, inputs)
    assert set(params) == {"params"}  # no running averages
    outputs = jnp.asarray(norm.apply(params, inputs))
    np.testing.assert_allclose(outputs.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(outputs.var((0, 1, 2)), 1, rtol=1e-4)
    params = {"params": {"scale": jnp.full(7, 2.0), "bias": jnp.full(7, -1.0)}}
    shifted = jnp.asarray(norm.apply(params, inputs))
    np.testing.assert_allclose(shifted, 2 * outputs - 1, atol=1e-5)


@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_gradients_of_batch_norm_are_those_of_its_definition(mean, key):
    """Of several workers, in double precision; also where the mean is far from 0."""
    keys = jax.random.split(key, 4)
    inputs = mean + 2 * jax.random.normal(keys[0], (3, 5, 4, 6, 7))
    weights = jax.random.normal(keys[1], inputs.shape)
    scale, bias = (jax.random.normal(k, (7,)) for k in keys[2:])

    def loss(inputs, params, weights):
        outputs = models.BatchNorm().apply({"params": params}, inputs)
        return jnp.sum(jnp.asarray(outputs) * weights)

    def definition(inputs, params, weights):
        centred = inputs - inputs.mean((0, 1, 2), keepdims=True)
        variance = jnp.square(centred).mean((0, 1, 2), keepdims=True)
        scale, bias = (params[k].reshape(1, 1, 1, -1) for k in ("scale", "bias"))
        return jnp.sum((centred / jnp.sqrt(variance + 1e-5) * scale + bias) * weights)

    given = inputs, {"scale": scale, "bias": bias}, weights
    each = (0, None, 0)
    ours = jax.jit(jax.vmap(jax.grad(loss, (0, 1)), each))(*given)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), given)
        theirs = jax.device_get(jax.vmap(jax.grad(definition, (0, 1)), each)(*wide))
    largest = 1 + mean
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6 * largest)


def test_gradients_of_batch_norm_keep_the_dtype(key):
    """Also where narrow images meet wider parameters."""
    images = jax.random.normal(key, (5, 4, 6, 7), jnp.bfloat16)
    params = {"params": {"scale": jnp.ones(7), "bias": jnp.zeros(7)}}

    def loss(params, images):
        outputs = jnp.asarray(models.BatchNorm().apply(params, images))
        return jnp.sum(jnp.square(outputs))

    with jax.numpy_dtype_promotion("standard"):
        gradients = jax.jit(jax.grad(loss, (0, 1)))(params, images)
    chex.assert_trees_all_equal_dtypes(gradients, (params, images))


def test_biases_before_a_normalisation_change_nothing(key):
    model = models.VGG11(width=1)
    params = initial(model, key, CIFAR)
    inputs = jax.random.normal(key, (2, *CIFAR))
    shifted = jax.tree.map_with_path(
        lambda path, x: x + 3 if path[-2].key.startswith("Bias") else x, params
    )
    apply = jax.jit(model.apply)
    logits = apply(params, inputs)
    np.testing.assert_allclose(apply(shifted, inputs), logits, atol=1e-3)


@pytest.mark.parametrize("stem", [0, 5])
def test_resnet18_refuses_other_stems(stem, key):
    with pytest.raises(ValueError, match=f"stem must be 3 or 7, but is {stem}"):
        models.ResNet18(stem=stem).init(key, jnp.zeros((1, *CIFAR)))


@pytest.mark.parametrize("shape", [MNIST, (32, 31, 3), (30,)])
def test_vgg_refuses_small_images(shape, key):
    with pytest.raises(ValueError, match="at least 32 x 32 pixels, but got"):
        models.VGG11().init(key, jnp.zeros((1, *shape)))


@pytest.mark.parametrize("depth", [2, 7, 10, 21])
def test_resnet_refuses_other_depths(depth, key):
    with pytest.raises(ValueError, match=f"6 k . 2.*{depth}"):
        models.ResNet(depth=depth).init(key, jnp.zeros((1, *CIFAR)))


def test_cnn_refuses_small_images(key):
    with pytest.raises(ValueError, match=r"16 x 16.*\(1, 8, 8, 1\)"):
        models.MnistCNN().init(key, jnp.zeros((1, 8, 8, 1)))


def test_loss_is_the_mean_cross_entropy(key):
    model = models.SoftmaxRegression()
    inputs = jax.random.normal(key, (6, 4, 4, 1))
    labels = jnp.array([0, 1, 2, 3, 4, 9])
    params = random_params(key, model, (4, 4, 1))
    logits = np.asarray(model.apply(params, inputs), np.float64)
    wanted = np.mean(
        [
            np.log(np.exp(row).sum()) - row[k]
            for row, k in zip(logits, labels, strict=True)
        ]
    )
    loss = models.loss_fn(model)(params, (inputs, labels))
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [4, 23, 100])
def test_evaluate_counts_every_example_once(batch_size, key):
    model = models.MLP(hidden=(5,))
    stored = jax.random.randint(key, (23, 4, 4, 1), 0, 255).astype(jnp.uint8)
    labels = jax.random.randint(jax.random.fold_in(key, 1), (23,), 0, 10)
    params = random_params(key, model, (4, 4, 1))

    def preprocess(inputs):
        return inputs.astype(jnp.float32) / 255

    logits = jnp.asarray(model.apply(params, preprocess(stored)))
    accuracy, loss = models.evaluate(
        model, params, stored, labels, batch_size=batch_size, preprocess=preprocess
    )
    np.testing.assert_allclose(accuracy, np.mean(logits.argmax(1) == labels), rtol=1e-6)
    wanted = models.loss_fn(model)(params, (preprocess(stored), labels))
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


def test_evaluate_maps_over_seeds_inside_a_jit(key):
    model = models.MnistCNN()
    inputs = jax.random.normal(key, (5, 16, 16, 1))
    labels = jnp.arange(5)
    seeds = [random_params(k, model, (16, 16, 1)) for k in jax.random.split(key)]
    evaluate = functools.partial(models.evaluate, model, batch_size=2)
    mapped = jax.jit(jax.vmap(lambda params: evaluate(params, inputs, labels)))
    mapped = mapped(jax.tree.map(lambda *x: jnp.stack(x), *seeds))
    for i, params in enumerate(seeds):
        alone = evaluate(params, inputs, labels)
        for one, other in zip(mapped, alone, strict=True):
            np.testing.assert_allclose(one[i], other, rtol=1e-5)


def test_evaluate_normalises_over_whole_batches_only(key):
    model = models.ResNet(depth=8)
    inputs = jax.random.normal(key, (7, 8, 8, 3))
    labels = jnp.zeros(7, jnp.int32)
    params = initial(model, key, (8, 8, 3))
    loss = jax.jit(models.loss_fn(model))
    parts = [(inputs[i : i + 3], labels[i : i + 3]) for i in (0, 3, 6)]
    wanted = sum(loss(params, part) * len(part[1]) for part in parts) / 7
    evaluation = models.evaluate(model, params, inputs, labels, batch_size=3)
    np.testing.assert_allclose(evaluation.loss, wanted, rtol=1e-4)


def test_evaluate_refuses_what_makes_no_sense(key):
    model = models.SoftmaxRegression()
    inputs, labels = jnp.zeros((4, 2, 2, 1)), jnp.zeros(4, jnp.int32)
    params = model.init(key, inputs)
    with pytest.raises(ValueError, match="batch_size must be an int >= 1, but is 0"):
        models.evaluate(model, params, inputs, labels, batch_size=0)
    with pytest.raises(ValueError, match="equally many"):
        models.evaluate(model, params, inputs, labels[:3])
    with pytest.raises(ValueError, match="at least one"):
        models.evaluate(model, params, inputs[:0], labels[:0])
    with pytest.raises(ValueError, match=r"labels are \[4, 3\], but Soft.* \[1, 10\]"):
        models.evaluate(model, params, inputs, jnp.zeros((4, 3), jnp.int32))

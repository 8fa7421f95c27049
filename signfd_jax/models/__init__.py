"""Small flax networks, their loss and their test.

`SoftmaxRegression`, `MLP`, `MnistCNN`, `ResNet`, `ResNet18`, `VGG11` and, for texts,
`Transformer` are flax modules like any other. Start with `loss_fn`, which makes of a
module what `simulation` takes; `evaluate` tests it.
"""

from signfd_jax.models.evaluation import Evaluation, evaluate, loss_fn
from signfd_jax.models.networks import (
    MLP,
    VGG11,
    BatchNorm,
    Bias,
    Conv,
    MnistCNN,
    ResNet,
    ResNet18,
    SoftmaxRegression,
)
from signfd_jax.models.transformer import Transformer

__all__ = [
    "MLP",
    "VGG11",
    "BatchNorm",
    "Bias",
    "Conv",
    "Evaluation",
    "MnistCNN",
    "ResNet",
    "ResNet18",
    "SoftmaxRegression",
    "Transformer",
    "evaluate",
    "loss_fn",
]

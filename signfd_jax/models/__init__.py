"""Small flax networks, their loss and their test.

`SoftmaxRegression`, `MLP`, `MnistCNN` and `ResNet` are flax modules like any other.
Start with `loss_fn`, which makes of a module what `simulation` takes; `evaluate` tests
it.
"""

from signfd_jax.models.networks import (
    MLP,
    BatchNorm,
    Bias,
    Conv,
    Evaluation,
    MnistCNN,
    ResNet,
    SoftmaxRegression,
    evaluate,
    loss_fn,
)

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

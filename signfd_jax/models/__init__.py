"""Small flax networks, their loss and their test."""

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

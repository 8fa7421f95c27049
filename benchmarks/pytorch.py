"""What the library is compared with, in plain PyTorch, on the device that JAX uses.

Shapes: `M` workers, `*leaf` one parameter tensor. `ReleasedDefense` follows a
description of the authors' released decoder: float32 counters a tensor, the workers on
a trailing axis, so that each coordinate's votes lie side by side.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from torch.nn import functional  # pyright: ignore[reportMissingImports]

from benchmarks.parity._imports import MissingLibrary
from benchmarks.parity.byzfl import BYZFL

__all__ = [
    "MODELS",
    "Loop",
    "ReleasedDefense",
    "byzfl_rules",
    "majority_vote",
    "tensor",
    "waited_for",
]

DEVICE = torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")
# Convolutions in float32, as products of matrices are by default.
torch.backends.cudnn.allow_tf32 = False

_EPSILON = 1e-5  # added to every share, as released
_MAX_LLR = 10.0


def tensor(array) -> torch.Tensor:
    """A copy of an array of JAX or NumPy, on the device."""
    return torch.from_numpy(np.array(array)).to(DEVICE)


def waited_for(run: Callable[[], Any]) -> Callable[[], None]:
    """The same, returning when the device has computed it, for `measure.interleaved`.

    Args:
        run: a function without arguments.

    Returns:
        A function without arguments or results.
    """

    def run_and_wait():
        run()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return run_and_wait


def majority_vote(gradients: torch.Tensor) -> torch.Tensor:
    """Sign of the sum of the signs over the last axis: `[*leaf, M]` to `[*leaf]`."""
    return gradients.sign().sum(-1).sign()


class ReleasedDefense:
    """Federated defense of one tensor, as released.

    Attributes:
        agree: float32 `[*leaf, M]`, rounds in which the vote was what was decoded.
        total: float32 `[*leaf, M]`, rounds.
        round: rounds so far.
    """

    def __init__(self, shape: tuple[int, ...], num_workers: int, initial_rounds: int):
        """Before the first round of a tensor of that shape."""
        self.agree = torch.zeros(*shape, num_workers, device=DEVICE)
        self.total = torch.zeros(*shape, num_workers, device=DEVICE)
        self.round = 0
        self._initial_rounds = initial_rounds

    def weights(self) -> torch.Tensor:
        """Weights of the next round: a scalar, `[M]` or `[*leaf, M]` (nats)."""
        if self.round == 0:
            return torch.ones((), device=DEVICE)
        if self.round < self._initial_rounds:
            agree = self.agree.flatten(0, -2)
            share = agree.sum(0) / (agree.shape[0] * self.round)
        else:
            share = self.agree / (self.total + _EPSILON)
        llr = torch.log((share + _EPSILON) / (1 - share + _EPSILON))
        return llr.clamp(-_MAX_LLR, _MAX_LLR)

    def decode(self, gradients: torch.Tensor) -> torch.Tensor:
        """Decode float32 `[*leaf, M]`, and count who agreed."""
        votes = gradients.sign()
        decoded = (self.weights() * votes).sum(-1).sign()
        self.agree += votes == decoded.unsqueeze(-1)
        self.total += 1
        self.round += 1
        return decoded


def byzfl_rules(
    num_byzantine: int,
) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """ByzFL's rules by name, each float32 `[M, N]` to `[N]`; none where it is missing.

    Args:
        num_byzantine: what the rules are told (int).
    """
    try:
        byzfl, _ = BYZFL.load(Path())
    except MissingLibrary:
        return {}
    return {
        "ByzFL mean": byzfl.Average(),
        "ByzFL median": byzfl.Median(),
        "ByzFL trimmed mean": byzfl.TrMean(f=num_byzantine),
        "ByzFL Multi-Krum": byzfl.MultiKrum(f=num_byzantine),
    }


class Loop:
    """Rounds as one writes them first: a loop over the workers, then over the tensors.

    Attributes:
        params: tensors by the names of the flax parameters, in PyTorch's layout.
        loss: mean loss of the honest workers in the last round.
    """

    def __init__(self, model: str, params, num_workers: int, learning_rate: float):
        """Take over flax parameters; `model` is a name in `MODELS`."""
        self.params = {
            name: _from_flax(leaf).requires_grad_() for name, leaf in params.items()
        }
        self.loss = 0.0
        self._model = MODELS[model]
        self._learning_rate = learning_rate
        self._decoders = {
            name: ReleasedDefense(tuple(leaf.shape), num_workers, 0)
            for name, leaf in self.params.items()
        }

    def gradients(self, images, labels):
        """Loss and gradients of one worker: images `[B, C, H, W]`, labels `[B]`."""
        loss = functional.cross_entropy(self._model(self.params, images), labels)
        gradients = torch.autograd.grad(loss, list(self.params.values()))
        return loss.detach(), gradients

    def round(self, images, labels, num_byzantine: int, decode: bool) -> None:
        """One round under sign inversion by the last workers.

        Args:
            images: float32 `[M, B, C, H, W]`.
            labels: int64 `[M, B]`.
            num_byzantine: how many invert their signs (int).
            decode: by `ReleasedDefense`, else by `majority_vote`.
        """
        honest = images.shape[0] - num_byzantine
        rows, losses = [], []
        for worker, batch in enumerate(zip(images, labels, strict=True)):
            loss, gradients = self.gradients(*batch)
            if worker < honest:
                losses.append(loss)
            else:
                gradients = [-gradient for gradient in gradients]
            rows.append(gradients)
        self.loss = sum(losses) / len(losses)
        with torch.no_grad():
            for (name, leaf), each in zip(
                self.params.items(), zip(*rows, strict=True), strict=True
            ):
                stacked = torch.stack(each, dim=-1)
                rule = self._decoders[name].decode if decode else majority_vote
                leaf -= self._learning_rate * rule(stacked)


def _from_flax(leaf) -> torch.Tensor:
    """Kernels, `[in, out]` and `[K, K, C, O]`, with their axes in PyTorch's order."""
    order = {2: (1, 0), 4: (3, 2, 0, 1)}.get(leaf.ndim, tuple(range(leaf.ndim)))
    return tensor(np.array(np.asarray(leaf).transpose(order), order="C"))


def _dense(params, name, inputs):
    return functional.linear(inputs, params[f"{name}/kernel"], params[f"{name}/bias"])


def _mlp(params, images):
    hidden = functional.relu(_dense(params, "Dense_0", images.flatten(1)))
    return _dense(params, "Dense_1", hidden)


def _cnn(params, images):
    for layer in range(2):
        kernel, bias = params[f"Conv_{layer}/kernel"], params[f"Bias_{layer}/bias"]
        images = functional.relu(functional.conv2d(images, kernel, bias))
        images = functional.max_pool2d(images, 2)
    # Flax's order of pixels and channels, so that both start from the same network.
    hidden = images.permute(0, 2, 3, 1).flatten(1)
    return _dense(params, "Dense_1", functional.relu(_dense(params, "Dense_0", hidden)))


def _resnet20(params, images):
    layer = itertools.count()

    def convolution(x, stride=1):
        number = next(layer)
        x = functional.conv2d(
            x, params[f"Conv_{number}/kernel"], stride=stride, padding=1
        )
        scale = params[f"BatchNorm_{number}/scale"]
        bias = params[f"BatchNorm_{number}/bias"]
        return functional.batch_norm(x, None, None, scale, bias, training=True)

    x = functional.relu(convolution(images))
    for features in (16, 32, 64):
        for block in range(3):
            stride = 2 if features > 16 and block == 0 else 1
            y = functional.relu(convolution(x, stride))
            y = convolution(y)
            missing = (features - x.shape[1]) // 2
            x = functional.pad(
                x[:, :, ::stride, ::stride], (0, 0, 0, 0, missing, missing)
            )
            x = functional.relu(x + y)
    return _dense(params, "Dense_0", x.mean((2, 3)))


MODELS = {"mnist_mlp": _mlp, "mnist_cnn": _cnn, "cifar_resnet20": _resnet20}

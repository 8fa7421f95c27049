"""What the library is compared with, in plain PyTorch on the CPU.

Shapes: `M` workers, `*leaf` one parameter tensor. `ReleasedDefense` follows a
description of the authors' released decoder: float32 counters a tensor, the workers on
a trailing axis, so that each coordinate's votes lie side by side.
"""

import sys
import types
from collections.abc import Callable

import torch  # pyright: ignore[reportMissingImports]

__all__ = ["ReleasedDefense", "byzfl_rules", "majority_vote"]

_EPSILON = 1e-5  # added to every share, as released
_MAX_LLR = 10.0


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
        self.agree = torch.zeros(*shape, num_workers)
        self.total = torch.zeros(*shape, num_workers)
        self.round = 0
        self._initial_rounds = initial_rounds

    def weights(self) -> torch.Tensor:
        """Weights of the next round: a scalar, `[M]` or `[*leaf, M]` (nats)."""
        if self.round == 0:
            return torch.ones(())
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
    # Beside a CPU build of PyTorch, torchvision, which ByzFL imports, can fail here.
    name = "torchvision._meta_registrations"
    sys.modules.setdefault(name, types.ModuleType(name))
    try:
        import byzfl  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {}
    return {
        "ByzFL mean": byzfl.Average(),
        "ByzFL median": byzfl.Median(),
        "ByzFL trimmed mean": byzfl.TrMean(f=num_byzantine),
        "ByzFL Multi-Krum": byzfl.MultiKrum(f=num_byzantine),
    }

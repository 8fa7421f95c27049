"""The default decoder: correlation defense.

It decides by how the workers' votes correlate, and needs nothing but the votes.
Start with `default_decoder`, or with `correlation_defense` and its `Thresholds`.
"""

from signfd_jax.decoders.correlation import (
    CorrelationDefenseState,
    Thresholds,
    correlation_defense,
)
from signfd_jax.decoders.default import default_decoder

__all__ = [
    "CorrelationDefenseState",
    "Thresholds",
    "correlation_defense",
    "default_decoder",
]

"""Decoders: which sign a coordinate has, from the votes of workers that may lie.

A `Decoder` is three functions, `init`, `decode` and `weights`. Start with
`default_decoder`. The others:

| decoder | it learns from |
|---|---|
| `majority_vote` | nothing: every vote weighs one |
| `correlation_defense` | how the workers' votes correlate; this is the default |
| `federated_defense` | how often a vote differed from the decoded sign: the paper's |
| `federated_voting` | the same, after a phase of majority votes |
| `dawid_skene` | one round's votes, by expectation maximisation |
| `released_code` | as `federated_defense`, in the way of the authors' code |
| `oracle` | the true crossover probabilities, which it is told |
"""

from signfd_jax.decoders.base import (
    DecodeInfo,
    Decoder,
    MajorityVoteState,
    llr_weights,
    majority_vote,
)
from signfd_jax.decoders.correlation import (
    CorrelationDefenseState,
    Thresholds,
    correlation_defense,
)
from signfd_jax.decoders.default import default_decoder
from signfd_jax.decoders.federated import (
    FederatedDefenseState,
    federated_defense,
    federated_voting,
)
from signfd_jax.decoders.likelihood import (
    DawidSkeneState,
    OracleState,
    dawid_skene,
    oracle,
)
from signfd_jax.decoders.released import ReleasedCodeState, released_code

__all__ = [
    "CorrelationDefenseState",
    "DawidSkeneState",
    "DecodeInfo",
    "Decoder",
    "FederatedDefenseState",
    "MajorityVoteState",
    "OracleState",
    "ReleasedCodeState",
    "Thresholds",
    "correlation_defense",
    "dawid_skene",
    "default_decoder",
    "federated_defense",
    "federated_voting",
    "llr_weights",
    "majority_vote",
    "oracle",
    "released_code",
]

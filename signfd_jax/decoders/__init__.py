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
| `m_msr` | agreements of every two workers: a robust fit of rank one |
| `triangular_estimation` | agreements of every three workers |
| `kos` | one round's votes, by message passing |
| `election` | nothing: a majority of the majorities of groups |
| `released_code` | as `federated_defense`, in the way of the authors' code |
| `oracle` | the true crossover probabilities, which it is told |

`verdicts` tells who lies, from the default's state; `VERDICTS` are its words.
"""

from signfd_jax.decoders import (
    base,
    correlation,
    crowd,
    default,
    federated,
    groups,
    likelihood,
    released,
    verdict,
)
from signfd_jax.decoders.base import *
from signfd_jax.decoders.correlation import *
from signfd_jax.decoders.crowd import *
from signfd_jax.decoders.default import *
from signfd_jax.decoders.federated import *
from signfd_jax.decoders.groups import *
from signfd_jax.decoders.likelihood import *
from signfd_jax.decoders.released import *
from signfd_jax.decoders.verdict import *

__all__: list[str] = []
__all__ += base.__all__
__all__ += correlation.__all__
__all__ += crowd.__all__
__all__ += default.__all__
__all__ += federated.__all__
__all__ += groups.__all__
__all__ += likelihood.__all__
__all__ += released.__all__
__all__ += verdict.__all__

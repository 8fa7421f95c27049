"""Robust aggregation rules on real-valued gradients: the comparators.

Each rule is a function of `gradients [M, D]` (one row for each worker) that returns
`[D]`; `stateless`, `keyed` and `recurrent` make a `Rule`, the `init`/`aggregate` pair
that `scale_by_aggregator` takes, and `chain` puts pre-aggregations before it. Rules
that remember more than their last aggregate are functions that return a `Rule`.

To add a rule, write the function and list it in `__all__` of its module: then it is in
`RULES`, `PREAGGREGATIONS` or `TRUSTED_RULES`, and the conformance tests cover it.
"""

from signfd_jax.aggregators import (
    base,
    coordinate,
    cosine,
    distance,
    filtering,
    groups,
    preaggregation,
    prediction,
    registry,
    subsets,
    trusted,
)
from signfd_jax.aggregators.base import *
from signfd_jax.aggregators.coordinate import *
from signfd_jax.aggregators.cosine import *
from signfd_jax.aggregators.distance import *
from signfd_jax.aggregators.filtering import *
from signfd_jax.aggregators.groups import *
from signfd_jax.aggregators.preaggregation import *
from signfd_jax.aggregators.prediction import *
from signfd_jax.aggregators.registry import *
from signfd_jax.aggregators.subsets import *
from signfd_jax.aggregators.trusted import *

__all__: list[str] = []
__all__ += base.__all__
__all__ += coordinate.__all__
__all__ += cosine.__all__
__all__ += distance.__all__
__all__ += filtering.__all__
__all__ += groups.__all__
__all__ += preaggregation.__all__
__all__ += prediction.__all__
__all__ += subsets.__all__
__all__ += trusted.__all__
__all__ += registry.__all__

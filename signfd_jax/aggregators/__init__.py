"""Robust aggregation rules on real-valued gradients: the comparators.

Each rule is a function of `gradients [M, D]` (one row for each worker) that returns
`[D]`; `stateless`, `keyed` and `recurrent` make a `Rule`, the `init`/`aggregate` pair
that `scale_by_aggregator` takes, and `chain` puts pre-aggregations before it.

To add a rule, write the function and add its line to `RULES` (or to
`PREAGGREGATIONS`); the conformance tests then cover it.
"""

from collections.abc import Callable

from signfd_jax.aggregators.coordinate import (
    coordinate_median,
    mean,
    mean_around_median,
    trimmed_mean,
)
from signfd_jax.aggregators.distance import (
    bulyan,
    centered_clipping,
    geometric_median,
    krum,
    multi_krum,
)
from signfd_jax.aggregators.filtering import dnc, signguard
from signfd_jax.aggregators.preaggregation import (
    adaptive_robust_clipping,
    bucketing,
    clipping,
    nearest_neighbour_mixing,
    top_k,
)
from signfd_jax.aggregators.rule import Rule, chain, keyed, recurrent, stateless

__all__ = [
    "PREAGGREGATIONS",
    "RULES",
    "Rule",
    "adaptive_robust_clipping",
    "bucketing",
    "bulyan",
    "centered_clipping",
    "chain",
    "clipping",
    "coordinate_median",
    "dnc",
    "geometric_median",
    "keyed",
    "krum",
    "mean",
    "mean_around_median",
    "multi_krum",
    "nearest_neighbour_mixing",
    "recurrent",
    "signguard",
    "stateless",
    "top_k",
    "trimmed_mean",
]

# name -> (f, the number of Byzantine workers assumed, key, **options) -> Rule
RULES: dict[str, Callable[..., Rule]] = {
    "mean": lambda f, key, **o: stateless(mean, **o),
    "coordinate_median": lambda f, key, **o: stateless(coordinate_median, **o),
    "trimmed_mean": lambda f, key, **o: stateless(trimmed_mean, num_byzantine=f, **o),
    "mean_around_median": lambda f, key, **o: stateless(
        mean_around_median, num_byzantine=f, **o
    ),
    "krum": lambda f, key, **o: stateless(krum, num_byzantine=f, **o),
    "multi_krum": lambda f, key, **o: stateless(multi_krum, num_byzantine=f, **o),
    "top_k_multi_krum": lambda f, key, fraction=0.1, **o: chain(
        stateless(top_k, fraction=fraction), stateless(multi_krum, num_byzantine=f, **o)
    ),
    "bulyan": lambda f, key, **o: stateless(bulyan, num_byzantine=f, **o),
    "geometric_median": lambda f, key, **o: stateless(geometric_median, **o),
    "centered_clipping": lambda f, key, **o: recurrent(centered_clipping, **o),
    "dnc": lambda f, key, **o: keyed(dnc, key, num_byzantine=f, **o),
    "signguard": lambda f, key, **o: keyed(signguard, key, **o),
}

# The same for the rules that map rows to rows.
PREAGGREGATIONS: dict[str, Callable[..., Rule]] = {
    "clipping": lambda f, key, **o: stateless(clipping, **o),
    "adaptive_robust_clipping": lambda f, key, **o: stateless(
        adaptive_robust_clipping, num_byzantine=f, **o
    ),
    "bucketing": lambda f, key, **o: keyed(bucketing, key, **o),
    "nearest_neighbour_mixing": lambda f, key, **o: stateless(
        nearest_neighbour_mixing, num_byzantine=f, **o
    ),
    "top_k": lambda f, key, **o: stateless(top_k, **o),
}

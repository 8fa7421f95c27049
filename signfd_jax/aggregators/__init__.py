"""Robust aggregation rules on real-valued gradients: the comparators.

Each rule is a function of `gradients [M, D]` (one row for each worker) that returns
`[D]`; `stateless`, `keyed` and `recurrent` make a `Rule`, the `init`/`aggregate` pair
that `scale_by_aggregator` takes, and `chain` puts pre-aggregations before it.

To add a rule, write the function and add its line to `RULES` (or to
`PREAGGREGATIONS`); the conformance tests then cover it.
"""

import inspect
from collections.abc import Callable
from typing import Any

from jaxtyping import PRNGKeyArray

from signfd_jax._checks import check_callable
from signfd_jax.aggregators.base import Rule, chain, keyed, recurrent, stateless
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
    "line",
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


def line(kind: Callable[..., Rule], function: Callable[..., Any]):
    """Make a line of `RULES` from a function.

    Its signature shows the function's own options, for whoever parses them.

    Args:
        kind: `stateless`, `keyed` or `recurrent`, whichever fits the function.
        function: the rule, as `kind` takes it; where it has an argument
            `num_byzantine`, it is told the number f that is assumed.

    Returns:
        `(num_byzantine, key, **options) -> Rule`.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> import jax
        >>> rule = line(stateless, trimmed_mean)(1, jax.random.key(0))
        >>> rows = jax.numpy.array([[1.0], [2.0], [99.0]])
        >>> print(rule.aggregate(rule.init(3, 1), rows)[0])
        [2.]
    """
    if kind not in (stateless, keyed, recurrent):
        raise ValueError(f"kind must be stateless, keyed or recurrent, not {kind!r}")
    check_callable("function", function, "of gradients [M, D]")
    parameters = inspect.signature(function).parameters
    assumes_f = "num_byzantine" in parameters

    def make(num_byzantine: int, key: PRNGKeyArray, **options) -> Rule:
        if assumes_f:
            options["num_byzantine"] = num_byzantine
        return kind(function, *((key,) if kind is keyed else ()), **options)

    return _show_options(make, parameters.values())


def _top_k_multi_krum(num_byzantine, key, *, fraction=0.1, **options):
    krum_rule = stateless(multi_krum, num_byzantine=num_byzantine, **options)
    return chain(stateless(top_k, fraction=fraction), krum_rule)


def _show_options(make, parameters):
    """Give a registry line the signature `(num_byzantine, key, *, options)`."""
    empty, by_name = inspect.Parameter.empty, inspect.Parameter.KEYWORD_ONLY
    fixed = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for name in ("num_byzantine", "key")
    ]
    options = [p.replace(kind=by_name) for p in parameters if p.default is not empty]
    make.__signature__ = inspect.Signature([*fixed, *options])
    return make


# name -> (the number f of Byzantine workers assumed, key, **options) -> Rule
RULES: dict[str, Callable[..., Rule]] = {
    "mean": line(stateless, mean),
    "coordinate_median": line(stateless, coordinate_median),
    "trimmed_mean": line(stateless, trimmed_mean),
    "mean_around_median": line(stateless, mean_around_median),
    "krum": line(stateless, krum),
    "multi_krum": line(stateless, multi_krum),
    "top_k_multi_krum": _show_options(
        _top_k_multi_krum,
        [
            *inspect.signature(top_k).parameters.values(),
            *inspect.signature(multi_krum).parameters.values(),
        ],
    ),
    "bulyan": line(stateless, bulyan),
    "geometric_median": line(stateless, geometric_median),
    "centered_clipping": line(recurrent, centered_clipping),
    "dnc": line(keyed, dnc),
    "signguard": line(keyed, signguard),
}

# The same for the rules that map rows to rows.
PREAGGREGATIONS: dict[str, Callable[..., Rule]] = {
    "clipping": line(stateless, clipping),
    "adaptive_robust_clipping": line(stateless, adaptive_robust_clipping),
    "bucketing": line(keyed, bucketing),
    "nearest_neighbour_mixing": line(stateless, nearest_neighbour_mixing),
    "top_k": line(stateless, top_k),
}

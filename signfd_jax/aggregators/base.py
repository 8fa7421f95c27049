"""The contract of an aggregation rule, and the ways to make one from a function.

Shapes: `M` workers, `D` coordinates. A rule maps `[M, D]` to `[D]`; a
pre-aggregation is a rule that maps `[M, D]` to `[M', D]`, to be chained before one.
"""

import contextlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from signfd_jax._checks import check_callable, check_key, check_kind

__all__ = ["Rule", "chain", "keyed", "recurrent", "stateless"]

_PAIR = ("init", "aggregate")


class Rule(NamedTuple):
    """A pair of pure functions that aggregates the rows of several workers.

    Everything that a rule remembers (a random key, the last aggregate) is in its
    state, so a rule jits, vmaps and scans.

    Attributes:
        init: `(num_workers, dimension, dtype=float32) -> state`. Traces the rule
            once in the abstract, so that a precondition that does not hold (Krum's
            M > 2f + 2, say) is a ValueError here and not in the first round.
        aggregate: `(state, gradients [M, D]) -> (aggregate [D], state)`; the
            aggregate has the dtype of the gradients. A rule that has `needs` takes
            them as keyword arguments.
        needs: `("trusted",)` if `aggregate` must be told which workers are known to be
            honest, bool `[M]`. `stateless`, `keyed` and `recurrent` see it in the
            arguments of the function.
    """

    init: Callable[..., Any]
    aggregate: Callable[..., tuple[Any, Any]]
    needs: tuple[str, ...] = ()


def stateless(function: Callable[..., Any], **options) -> Rule:
    """Make a rule from a function of the rows alone.

    Args:
        function: `(gradients [M, D], **options) -> [D]`, or `-> [M', D]` for a
            pre-aggregation.
        **options: passed to `function` at every call, such as `num_byzantine`.

    Returns:
        The rule; its state is `()`.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> from signfd_jax.aggregators import trimmed_mean
        >>> rule = stateless(trimmed_mean, num_byzantine=1)
        >>> state = rule.init(num_workers=4, dimension=1)
        >>> aggregate, state = rule.aggregate(
        ...     state, jnp.array([[1.0], [2.0], [4.0], [99.0]])
        ... )
        >>> print(aggregate)
        [3.]
    """
    check_callable("function", function, "of gradients [M, D]")

    def init(num_workers, dimension, dtype=jnp.float32):
        _check(aggregate, needs, (), _rows(num_workers, dimension, dtype))
        return ()

    def aggregate(state, gradients, **known):
        return function(gradients, **known, **options), state

    needs = _needs(function)
    return Rule(init, aggregate, needs)


def keyed(function: Callable[..., Any], key: PRNGKeyArray, **options) -> Rule:
    """Make a rule from a function that needs a random key.

    Args:
        function: `(key, gradients [M, D], **options) -> [D]` or `-> [M', D]`.
        key: where the rule's randomness starts. It is the first state, is split at
            every call, and must not be used elsewhere.
        **options: passed to `function` at every call.

    Returns:
        The rule; its state is a key.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> from signfd_jax.aggregators import bucketing
        >>> rule = keyed(bucketing, jax.random.key(0), bucket_size=2)
        >>> state = rule.init(num_workers=5, dimension=3)
        >>> buckets, state = rule.aggregate(state, jnp.ones((5, 3)))
        >>> buckets.shape
        (3, 3)
    """
    check_key("key", key)
    check_callable("function", function, "of gradients [M, D]")

    def init(num_workers, dimension, dtype=jnp.float32):
        _check(aggregate, needs, key, _rows(num_workers, dimension, dtype))
        return key

    def aggregate(state, gradients, **known):
        state, subkey = jax.random.split(state)
        return function(subkey, gradients, **known, **options), state

    needs = _needs(function)
    return Rule(init, aggregate, needs)


def recurrent(function: Callable[..., Any], **options) -> Rule:
    """Make a rule from a function that also sees the aggregate of the last round.

    Args:
        function: `(gradients [M, D], previous [D], **options) -> [D]`.
        **options: passed to `function` at every call.

    Returns:
        The rule; its state is the last aggregate `[D]`, zero before the first round.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> from signfd_jax.aggregators import centered_clipping
        >>> rule = recurrent(centered_clipping, clip_norm=1.0)
        >>> state = rule.init(num_workers=2, dimension=1)
        >>> rows = jnp.array([[2.0], [50.0]])
        >>> for _ in range(3):
        ...     aggregate, state = rule.aggregate(state, rows)
        ...     print(aggregate)
        [1.]
        [2.]
        [2.5]
    """
    check_callable("function", function, "of gradients [M, D]")

    def init(num_workers, dimension, dtype=jnp.float32):
        state = jnp.zeros(dimension, dtype)
        _check(aggregate, needs, state, _rows(num_workers, dimension, dtype))
        return state

    def aggregate(state, gradients, **known):
        result = function(gradients, state, **known, **options)
        return result, result

    needs = _needs(function)
    return Rule(init, aggregate, needs)


def chain(*rules: Rule) -> Rule:
    """Feed the rows that come out of each rule to the next one.

    Args:
        *rules: pre-aggregations, then one rule. The count f of the last must fit
            the rows that it gets: buckets of two workers may all be tainted by f
            workers, and there are half as many.

    Returns:
        The composed rule; its state is the tuple of the states.

    Raises:
        ValueError: a rule needs to know which rows are trusted, which may be other
            rows after a pre-aggregation; or, by `init`, a rule that is not the last
            gives no rows.

    Examples:
        >>> from signfd_jax.aggregators import krum, nearest_neighbour_mixing
        >>> rule = chain(
        ...     stateless(nearest_neighbour_mixing, num_byzantine=1),
        ...     stateless(krum, num_byzantine=1),
        ... )
        >>> state = rule.init(num_workers=5, dimension=1)
        >>> rows = jnp.array([[1.0], [2.0], [3.0], [4.0], [99.0]])
        >>> print(rule.aggregate(state, rows)[0])
        [2.5]
    """
    for position, rule in enumerate(rules):
        check_kind(
            f"rule {position} of the chain",
            rule,
            _PAIR,
            "stateless, keyed or recurrent",
        )
        if rule.needs:
            raise ValueError(
                f"rule {position} of the chain needs {', '.join(rule.needs)}, but the "
                "rows of a chain are no longer those of the workers; use it by itself"
            )

    def init(num_workers, dimension, dtype=jnp.float32):
        rows = _rows(num_workers, dimension, dtype)
        states = []
        for position, rule in enumerate(rules):
            if rows.ndim != 2:
                raise ValueError(
                    f"rule {position - 1} of the chain gives shape {rows.shape}, not "
                    "[M, D] rows for the next one; only the last may aggregate, and "
                    "pre-aggregations come before it"
                )
            states.append(rule.init(*rows.shape, dtype))
            rows, _ = jax.eval_shape(rule.aggregate, states[-1], rows)
        return tuple(states)

    def aggregate(state, gradients):
        states = []
        for rule, rule_state in zip(rules, state, strict=True):
            gradients, rule_state = rule.aggregate(rule_state, gradients)
            states.append(rule_state)
        return gradients, tuple(states)

    return Rule(init, aggregate)


def _needs(function):
    """What of the workers the function must be told."""
    with contextlib.suppress(ValueError):  # one written in C may have no signature
        return ("trusted",) * ("trusted" in inspect.signature(function).parameters)
    return ()


def _check(aggregate, needs, state, rows):
    """Trace a rule in the abstract."""
    known = {name: jax.ShapeDtypeStruct(rows.shape[:1], bool) for name in needs}
    jax.eval_shape(aggregate, state, rows, **known)


def _rows(num_workers, dimension, dtype):
    return jax.ShapeDtypeStruct((num_workers, dimension), dtype)

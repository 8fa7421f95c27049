"""The rules by name, and how a function becomes one.

`RULES` has those that map rows to one, `PREAGGREGATIONS` those that map rows to rows,
`TRUSTED_RULES` those that map rows to one and must be told which workers are trusted:
name -> (the number f of Byzantine workers assumed, key, **options) -> Rule.
"""

import inspect
from collections.abc import Callable
from typing import Any

from jaxtyping import PRNGKeyArray

from signfd_jax._checks import check_callable
from signfd_jax.aggregators import (
    coordinate,
    cosine,
    distance,
    filtering,
    preaggregation,
    prediction,
    subsets,
    trusted,
)
from signfd_jax.aggregators.base import Rule, chain, keyed, recurrent, stateless
from signfd_jax.aggregators.distance import multi_krum
from signfd_jax.aggregators.preaggregation import top_k

__all__ = ["PREAGGREGATIONS", "RULES", "TRUSTED_RULES", "factory"]


def factory(function: Callable[..., Any]) -> Callable[..., Rule]:
    """What makes a `Rule` of a function, as a registry holds it.

    The function's own arguments say what it is: where `key` comes first it draws at
    random (`keyed`); where it needs one more than the gradients, it is told its last
    result (`recurrent`); where it has `num_byzantine` it is told the number f that is
    assumed, and where it has `trusted`, which workers are honest. Those with a default
    are its options, which the signature shows. A function that is annotated to return a
    `Rule` makes it itself, of its options, and of `num_byzantine` or `key` where it has
    them: so a rule may remember what it likes.

    Args:
        function: the rule, `([key], gradients [M, D], [last result], **options)`, or
            `([num_byzantine], [key], **options) -> Rule`.

    Returns:
        `(num_byzantine, key, **options) -> Rule`; its attribute `needs` is the rule's.

    Raises:
        ValueError: it is no function.

    Examples:
        >>> import jax
        >>> rule = factory(coordinate.trimmed_mean)(1, jax.random.key(0))
        >>> rows = jax.numpy.array([[1.0], [2.0], [99.0]])
        >>> print(rule.aggregate(rule.init(3, 1), rows)[0])
        [2.]
    """
    check_callable("function", function, "of gradients [M, D]")
    signature = inspect.signature(function)
    parameters = signature.parameters
    makes_rule = signature.return_annotation is Rule
    assumes_f = "num_byzantine" in parameters
    is_keyed = next(iter(parameters), "") == "key"
    empty = inspect.Parameter.empty
    needed = [name for name, p in parameters.items() if p.default is empty]
    is_recurrent = len(set(needed) - {"key", "num_byzantine", "trusted"}) > 1

    def make(num_byzantine: int, key: PRNGKeyArray, **options) -> Rule:
        if assumes_f:
            options["num_byzantine"] = num_byzantine
        if makes_rule:
            return function(**options, **({"key": key} if "key" in parameters else {}))
        if is_keyed:
            return keyed(function, key, **options)
        return (recurrent if is_recurrent else stateless)(function, **options)

    make.__doc__ = function.__doc__
    needs = stateless(function).needs
    make.needs = needs  # pyright: ignore[reportFunctionMemberAccess]
    return _show_options(make, parameters.values())


def _top_k_multi_krum(num_byzantine, key, *, fraction=0.1, **options):
    """Multi-Krum on rows of which only the largest coordinates are kept."""
    krum_rule = stateless(multi_krum, num_byzantine=num_byzantine, **options)
    return chain(stateless(top_k, fraction=fraction), krum_rule)


def _show_options(make, parameters):
    """Give a factory the signature `(num_byzantine, key, *, options)`."""
    empty, by_name = inspect.Parameter.empty, inspect.Parameter.KEYWORD_ONLY
    fixed = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for name in ("num_byzantine", "key")
    ]
    options = [p.replace(kind=by_name) for p in parameters if p.default is not empty]
    make.__signature__ = inspect.Signature([*fixed, *options])
    return make


def _factories(*modules) -> dict[str, Callable[..., Rule]]:
    return {
        name: factory(getattr(module, name))
        for module in modules
        for name in module.__all__
    }


RULES = _factories(coordinate, cosine, distance, filtering, prediction, subsets) | {
    "top_k_multi_krum": _show_options(
        _top_k_multi_krum,
        [
            *inspect.signature(top_k).parameters.values(),
            *inspect.signature(multi_krum).parameters.values(),
        ],
    )
}

PREAGGREGATIONS = _factories(preaggregation)

TRUSTED_RULES = _factories(trusted)

"""The aggregation rules as optax transformations.

Shapes: the gradients of `M` workers come in as a tree of leaves `[M, ...]`, flattened
once to `[M, D]`; what goes out has leaves `[...]`, shaped like the parameters.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from signfd_jax._checks import check_kind, check_size, check_worker_gradients
from signfd_jax.aggregators import Rule
from signfd_jax.decoders._known import check_known
from signfd_jax.signs._totals import MOST_IN_LEAF
from signfd_jax.signs._trees import dtype_of, rows_of, size_of

__all__ = ["AggregatorState", "scale_by_aggregator"]


class AggregatorState(NamedTuple):
    """State of `scale_by_aggregator`.

    Attributes:
        rule_state: the rule's own state: a key, the last aggregate, or nothing.
    """

    rule_state: Any


def scale_by_aggregator(
    rule: Rule, num_workers: int
) -> optax.GradientTransformationExtraArgs:
    """Replace the workers' gradients by what an aggregation rule makes of them.

    The counterpart of `scale_by_sign_decoder` for real-valued rules: leaves `[M, ...]`
    go in, leaves `[...]` shaped like the parameters come out, and it comes first in a
    chain. The rule sees one row of D numbers for each worker, all leaves together.

    `update` takes the keyword arguments that the simulator gives, but a real-valued
    rule has no votes: `wire` and `honest_sign` change nothing, and `present` must be
    None. `trusted`, bool `[M]`, may be traced, says which workers are known to be
    honest; the rules of `aggregators.TRUSTED_RULES` need it, the others cannot use it.
    `stakes` and `shares` no rule can use.

    No rule here is defined on fewer rows than it counts on, so whoever drives the
    rounds decides what stands in the row of an absent worker (zeros, its last
    gradient, or NaN: most rules leave a row that is not finite out, and count it as one
    of the f Byzantine).

    Args:
        rule: from `stateless`, `keyed`, `recurrent` or `chain`, or a line of
            `aggregators.RULES`.
        num_workers: number M of workers (Python int, at least 1).

    Returns:
        An optax transformation whose state is an `AggregatorState`. Its updates have
        the shape and dtype of the parameters, or of one worker's gradient where
        `params` is None.

    Raises:
        ValueError: `num_workers` is not a positive int; from `init`, a precondition of
            the rule does not hold for M workers; from `update`, `present` is given, or
            what the rule cannot use, or what it needs is not; or the gradients have no
            worker axis, another number of workers or another tree than the parameters.

    Examples:
        >>> from signfd_jax.aggregators import stateless, trimmed_mean
        >>> tx = optax.chain(
        ...     scale_by_aggregator(stateless(trimmed_mean, num_byzantine=1), 3),
        ...     optax.scale_by_learning_rate(0.1),
        ... )
        >>> params = {"w": jnp.zeros(2)}
        >>> gradients = {"w": jnp.array([[2.0, -1.0], [3.0, -3.0], [-9.0, 9.0]])}
        >>> updates, state = tx.update(gradients, tx.init(params), params)
        >>> print(updates["w"])
        [-0.2  0.1]
    """
    check_size("num_workers", num_workers)
    check_kind(
        "rule", rule, ("init", "aggregate"), "stateless, keyed, recurrent or chain"
    )

    def init_fn(params):
        dimension = size_of(params)
        if dimension > MOST_IN_LEAF:
            raise ValueError(
                f"a worker's row would have {dimension} coordinates, but may have at "
                "most 2**31 - 1; aggregate the parameters in several parts"
            )
        dtype = _row_dtype(jax.tree.leaves(params))
        # Without parameters no row is ever aggregated, but the rule is checked.
        return AggregatorState(rule.init(num_workers, dimension or 1, dtype))

    def update_fn(
        updates,
        state,
        params=None,
        *,
        present=None,
        wire=None,
        honest_sign=None,
        trusted=None,
        stakes=None,
        shares=None,
        **extra_args,
    ):
        del wire, honest_sign, extra_args
        if present is not None:
            raise ValueError(
                "present was given, but an aggregation rule needs a row from each of "
                f"its {num_workers} workers; fill the rows of absent workers first "
                "(with zeros, their last gradient, or NaN for rules that leave such "
                "rows out) and pass present=None"
            )
        given = dict(trusted=trusted, stakes=stakes, shares=shares)
        who = "this aggregation rule"
        known = check_known(who, num_workers, given, rule.needs, rule.needs)
        check_worker_gradients(updates, params, num_workers)
        like = updates if params is None else params
        leaves = jax.tree.leaves(jax.tree.map(jnp.asarray, updates))
        if size_of(updates) == 0:  # nothing to aggregate
            nothing = [leaf[0].astype(dtype_of(leaf)) for leaf in leaves]
            return jax.tree.unflatten(jax.tree.structure(updates), nothing), state
        dtype = _row_dtype(jax.tree.leaves(like))
        rows = rows_of(leaves, dtype)
        aggregate, rule_state = rule.aggregate(state.rule_state, rows, **known)

        results, start = [], 0
        for leaf, target in zip(leaves, jax.tree.leaves(like), strict=True):
            stop = start + math.prod(leaf.shape[1:])
            result = aggregate[start:stop].reshape(leaf.shape[1:])
            results.append(result.astype(dtype_of(target)))
            start = stop
        aggregated = jax.tree.unflatten(jax.tree.structure(updates), results)
        return aggregated, AggregatorState(rule_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _row_dtype(leaves):
    """The leaves' dtype if they have one, else the narrowest from float32 up."""
    dtypes = {dtype_of(leaf) for leaf in leaves}
    if len(dtypes) == 1:
        return dtypes.pop()
    return functools.reduce(np.promote_types, dtypes, np.dtype(np.float32))

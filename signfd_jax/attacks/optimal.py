r"""An attack that looks in every round for the factor that hurts a rule most.

Shapes: `M` workers, `D` coordinates in all; gradients are trees of `[M, ...]`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from signfd_jax._checks import check_callable, check_kind, check_number, check_size
from signfd_jax.attacks._observations import honest_moments
from signfd_jax.attacks.base import Attack
from signfd_jax.signs._trees import rows_of, size_of

__all__ = ["LineSearchState", "line_search"]


class LineSearchState(NamedTuple):
    """What the attackers of `line_search` remember.

    Attributes:
        line_search_factor: float32 scalar, the factor of the last round; 0 before.
        line_search_rule_state: state of the attackers' own copy of the rule, which has
            seen what was sent in all rounds so far.
        line_search_family_state: state of the family's attack.
    """

    line_search_factor: jax.Array
    line_search_rule_state: Any
    line_search_family_state: Any


def line_search(
    rule,
    family: Callable[[jax.Array], Attack],
    *,
    evaluations: int = 20,
    start: float | jax.Array = 0.0,
    step: float | jax.Array = 10.0,
    ratio: float | jax.Array = 0.8,
) -> Attack:
    r"""Send what drags the rule's aggregate farthest from the honest mean.

    The damage of a factor x is $\|A(g_1, \dots, g_M) - \mu\|$, where the Byzantine
    rows are those of `family(x)`, A is the rule and $\mu$ the mean of the honest rows.
    The search begins at the start. While a step does more damage than the best factor
    so far, it is taken, and the next one is twice as long. From the first one that does
    not, the step becomes shorter by the ratio each time, and is taken where it does
    more damage. With `ipm` and `alie` for the family these are the optimal attacks of
    ByzFL.

    Args:
        rule: the `aggregators.Rule` to defeat, such as
            `stateless(trimmed_mean, num_byzantine=2)`. The attackers run a copy.
        family: factor (float32 scalar) -> `Attack` on gradients, such as `ipm`, `alie`
            or `scaling`.
        evaluations: how many factors are tried in a round (int >= 1).
        start: the first factor (scalar).
        step: the first step (scalar, not 0 if it shall move).
        ratio: by which steps become shorter, in [0, 1] (scalar).

    Returns:
        An `Attack` on gradients. A round costs `evaluations + 1` aggregations.

    Raises:
        ValueError: an argument is not of its kind, or is out of range; the rule needs
            to know who is trusted; the family does not enter at the gradient.

    Examples:
        >>> from signfd_jax.aggregators import mean, stateless
        >>> from signfd_jax.attacks import ipm
        >>> attack = line_search(stateless(mean), ipm, evaluations=4)
        >>> gradients = jnp.array([[1.0, 4.0], [3.0, 8.0], [0.0, 0.0]])
        >>> byzantine, key = jnp.array([False, False, True]), jax.random.key(0)
        >>> state = attack.init(3, jnp.zeros(2))
        >>> sent, state = attack.apply(key, gradients, byzantine, None, state)
        >>> print(state.line_search_factor, sent[2])
        70.0 [-140. -420.]

    References:
        Gonzalez et al., [ByzFL: Research Framework for Robust Federated Learning](
        https://arxiv.org/abs/2505.24802), 2025.
    """
    check_kind("rule", rule, ("init", "aggregate"), "stateless, keyed or the like")
    if rule.needs:
        raise ValueError(
            f"rule needs {', '.join(rule.needs)}, which the attackers' copy is not "
            "told; give a rule that goes by the rows alone"
        )
    check_callable("family", family, "factor -> Attack")
    check_size("evaluations", evaluations)
    check_number("start", start, -1e30, 1e30)
    check_number("step", step, -1e30, 1e30)
    check_number("ratio", ratio, 0, 1)
    prototype = family(jnp.float32(1))
    check_kind("what family gives", prototype, ("init", "apply"), "signfd_jax.attacks")
    if prototype.entry != "gradient":
        raise ValueError(
            f"the family enters at the {prototype.entry}, but a rule aggregates "
            "gradients; give a family of attacks on gradients"
        )

    def init(num_workers, params):
        return LineSearchState(
            line_search_factor=jnp.zeros((), jnp.float32),
            line_search_rule_state=rule.init(num_workers, size_of(params)),
            line_search_family_state=prototype.init(num_workers, params),
        )

    def apply(key, values, byzantine, context, state):
        _, rule_state, family_state = state
        mean, _ = honest_moments(values, byzantine)
        mean = _rows(jax.tree.map(lambda leaf: leaf[None], mean))[0]

        def send(factor):
            lie = family(factor)
            return lie.apply(key, values, byzantine, context, family_state)

        def damage(factor):
            aggregate, _ = rule.aggregate(rule_state, _rows(send(factor)[0]))
            return jnp.nan_to_num(jnp.linalg.norm(aggregate - mean))

        search = [jnp.asarray(number, jnp.float32) for number in (start, step, ratio)]
        factor = _search(damage, evaluations, *search)
        sent, family_state = send(factor)
        _, rule_state = rule.aggregate(rule_state, _rows(sent))
        return sent, LineSearchState(factor, rule_state, family_state)

    return Attack(init, apply, "gradient", False)


def _search(damage, evaluations, start, step, ratio):
    """The best factor found: steps twice as long as long as they pay, then shorter."""

    def attempt(carry, _):
        best, most, step, growing = carry
        there = damage(best + step)
        better = there > most
        growing &= better
        after = (
            jnp.where(better, best + step, best),
            jnp.where(better, there, most),
            step * jnp.where(growing, 2, ratio),
            growing,
        )
        return after, None

    begun = (start, damage(start), step, jnp.array(True))
    return jax.lax.scan(attempt, begun, length=evaluations - 1)[0][0]


def _rows(gradients):
    return rows_of(gradients, jnp.float32)

"""Rules for groups of workers with the same batches: DRACO, and DETOX's first step.

Shapes: `M` workers, `D` coordinates; row m of `gradients` is worker m's gradient.
Groups are `r` neighbours, and the last may be smaller. What honest workers of a group
send must be the same to the last bit, as with `data.partition.replicated`. A row with a
NaN is like no other.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from signfd_jax._checks import check_size, checked
from signfd_jax.aggregators._rows import finite_rows, mean_of_rows

__all__ = ["draco", "group_vote"]


@checked
def group_vote(
    gradients: Float[Array, "M D"], group_size: int = 3
) -> Float[Array, "G D"]:
    r"""Take from each group the row that most of its workers sent, to the last bit.

    A group is right while fewer than half of its workers lie. It is DETOX's first step,
    before any rule: `chain(stateless(group_vote, group_size=3), rule)`. Of several rows
    that were sent equally often it takes the first.

    Args:
        gradients: one row for each worker.
        group_size: r, workers in a group (int >= 1).

    Returns:
        One row for each of the G = ceil(M / r) groups.

    Raises:
        ValueError: `group_size` is less than 1.

    Examples:
        >>> rows = jnp.array([[1.0], [99.0], [1.0], [2.0], [2.0], [99.0]])
        >>> print(group_vote(rows, group_size=3).T)
        [[1. 2.]]
        >>> from signfd_jax.aggregators import chain, coordinate_median, stateless
        >>> rule = chain(
        ...     stateless(group_vote, group_size=2), stateless(coordinate_median)
        ... )
        >>> print(rule.aggregate(rule.init(6, 1), rows)[0])
        [2.]

    References:
        Rajput, Wang, Charles and Papailiopoulos, [DETOX: A Redundancy-based Framework
        for Faster and More Robust Gradient
        Aggregation](https://arxiv.org/abs/1907.12205), NeurIPS 2019.
    """
    check_size("group_size", group_size)
    count, dimension = gradients.shape
    num_groups = -(-count // group_size)
    missing = num_groups * group_size - count
    rows = jnp.pad(gradients, ((0, missing), (0, 0)))
    rows = rows.reshape(num_groups, group_size, dimension)
    there = jnp.arange(num_groups * group_size) < count
    there = there.reshape(num_groups, group_size)

    def shared_by(i):
        """How many of each group sent what its worker i sent."""
        same = jnp.all(rows == rows[:, i, None], axis=2) & there & there[:, i, None]
        return jnp.sum(same, axis=1, dtype=jnp.int32)

    most = jnp.argmax(jnp.stack([shared_by(i) for i in range(group_size)]), axis=0)
    return jnp.take_along_axis(rows, most[:, None, None], axis=1)[:, 0]


@checked
def draco(gradients: Float[Array, "M D"], group_size: int = 3) -> Float[Array, " D"]:
    r"""DRACO's repetition code: the mean of what most workers of each group sent.

    With $2 s + 1$ workers in each group it is the mean of all batches, exactly, if at
    most s workers lie in all: nothing of the gradient is lost. It promises nothing
    beyond; a group that liars hold has as much weight as any other.

    Args:
        gradients: one row for each worker.
        group_size: r, workers in a group (int >= 1); 1: the mean.

    Returns:
        The mean of the groups' rows, without those that are not finite.

    Raises:
        ValueError: `group_size` is less than 1.

    Examples:
        >>> rows = jnp.array([[1.0], [99.0], [1.0], [2.0], [2.0], [2.0]])
        >>> print(draco(rows, group_size=3))
        [1.5]

    References:
        Chen, Wang, Charles and Papailiopoulos, [DRACO: Byzantine-resilient Distributed
        Training via Redundant Gradients](https://arxiv.org/abs/1803.09877), ICML 2018.
    """
    winners = group_vote(gradients, group_size)
    return mean_of_rows(winners, finite_rows(winners))

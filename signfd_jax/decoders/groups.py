"""Elections: a vote within each group of workers, then a vote of the groups.

Shapes: `M` workers, `G` groups of `r` neighbours. It is for groups whose workers have
the same batches, as `data.partition.replicated` gives them: their honest votes are then
the same, and a minority of a group is outvoted before it reaches the others.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from signfd_jax._checks import check_size
from signfd_jax.decoders.base import DecodeInfo, Decoder
from signfd_jax.signs._leaves import group_leaves
from signfd_jax.signs._tally import count_agreements, vote_tree
from signfd_jax.signs._totals import check_coordinates

__all__ = ["ElectionState", "election"]


class ElectionState(NamedTuple):
    """State of `election`.

    Attributes:
        el_weights: float32 `[M]`, all one.
    """

    el_weights: jax.Array


def election(group_size: int = 3) -> Decoder:
    r"""Take the majority within each group of workers, then that of the groups.

    $\hat U_n = \operatorname{sign} \sum_g \operatorname{sign} \sum_{m \in g} Y_{m,n}$.
    Groups are workers 0 to r - 1, r to 2r - 1, and so on; the last may be smaller.

    It needs workers of a group to have the same batches (`partition.replicated`), or
    it is a coarser majority vote. Then a group is right about its batch while fewer
    than half of its workers lie, so that $\lceil r / 2 \rceil$ liars are needed to
    spoil or silence one.

    This is the repetition code with votes in the place of gradients. The codes of the
    paper have a worker itself poll the signs of several batches, and differ in which.

    Args:
        group_size: r, workers in a group (int >= 1); 1: a majority vote.

    Returns:
        A `Decoder`; nothing is learned. `info.crossover` is the share of this round's
        votes that differ from the decoded sign (`(errors + 1) / (votes + 2)`).

    Raises:
        ValueError: `group_size` is out of range.

    Examples:
        >>> decoder = election(3)
        >>> votes = jnp.array([1, 1, -1, 1, 1, -1, -1, -1, -1], jnp.int8)[:, None]
        >>> decoded, _, _ = decoder.decode(decoder.init(9, jnp.zeros(1)), votes)
        >>> print(decoded, votes.sum())
        [1] -1

    References:
        Sohn, Han, Choi and Moon, [Election Coding for Distributed Learning: Protecting
        SignSGD against Byzantine Attacks](https://arxiv.org/abs/1910.06093), NeurIPS
        2020.
    """
    check_size("group_size", group_size)

    def init(num_workers, params):
        check_coordinates(params)
        return ElectionState(jnp.ones((num_workers,), jnp.float32))

    def winners(leaf):
        num_groups = -(-leaf.shape[0] // group_size)
        missing = num_groups * group_size - leaf.shape[0]
        rows = jnp.pad(leaf, ((0, missing), *((0, 0),) * (leaf.ndim - 1)))
        rows = rows.reshape(num_groups, group_size, *leaf.shape[1:])
        return jnp.sign(jnp.sum(rows, axis=1, dtype=jnp.int32)).astype(jnp.int8)

    @functools.partial(jax.jit, static_argnames="axis_name")
    def decode(state, votes, axis_name=None):
        groups = group_leaves(votes)
        votes = groups.join(votes)
        elected = [winners(leaf) for leaf in votes]
        equal = jnp.ones((elected[0].shape[0],) if elected else (1,), jnp.float32)
        decoded, _, margin = vote_tree(elected, equal, largest=1.0, axis_name=axis_name)
        agreed, counted = count_agreements(votes, decoded, axis_name)
        crossover = (counted - agreed + 1) / (counted + 2)
        info = DecodeInfo(state.el_weights, crossover, margin)
        return groups.split(decoded), state, info

    needs = "it takes a vote within each group first"
    return Decoder(init, decode, lambda state: state.el_weights, needs)

"""The decoder of the authors' released code, reproduced exactly.

Shapes: `M` workers, `N` coordinates in all, `[M, ...]` one leaf. It is kept apart
from `signfd_jax.decoders.federated` because its semantics differ: a zero is a vote like
any other (0 == 0 is an agreement, and a zero against a decoded sign an error).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from signfd_jax._checks import check_count, check_number
from signfd_jax.decoders.base import DecodeInfo, Decoder
from signfd_jax.signs._tally import sum_over_axis
from signfd_jax.signs._totals import check_coordinates, exact_total

__all__ = ["ReleasedCodeState", "released_code"]

_EPSILON = 1e-5


class ReleasedCodeState(NamedTuple):
    """State of `released_code`.

    Attributes:
        rc_round: int32 scalar, rounds decoded so far.
        rc_agreed: tree of float32 `[M, ...]`, agreements, decayed.
        rc_total: float32 scalar, rounds behind them, decayed.
        rc_agreed_share: float32 `[M]`, sum of the agreements over N.
    """

    rc_round: jax.Array
    rc_agreed: Any
    rc_total: jax.Array
    rc_agreed_share: jax.Array


def released_code(
    initial_rounds: int | jax.Array = 100,
    max_llr: float | jax.Array = 10.0,
    forgetting: float | jax.Array = 1.0,
) -> Decoder:
    r"""The decoder that the authors released with the paper, quirks included.

    Round 0 is a majority vote. In rounds $0 < t < T_{in}$ (`initial_rounds`) the
    probability of agreement is pooled, $q_m = \sum_n a_{m,n} / (N t)$, and after them
    $q_{m,n} = a_{m,n} / (n_t + \epsilon)$, where $a$ counts agreements with the
    decoded sign (0 == 0 included) and $n_t$ the rounds, both multiplied by
    `forgetting` before each round's count; the weight is
    $\ln\frac{q+\epsilon}{1-q+\epsilon}$, clipped. With `forgetting` below 1 the pooled
    phase divides decayed counts by $t$, as released.

    Args:
        initial_rounds: length $T_{in}$ of the pooled phase (rounds, int scalar).
        max_llr: largest |weight| (nats, positive scalar).
        forgetting: factor in (0, 1] that decays the counts each round (scalar).

    Returns:
        A `Decoder`; its tallies are float32 sums in worker order. It takes no packed
        votes.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> decoder = released_code(100)
        >>> votes = jnp.array([[1, 0], [1, 0], [-1, 1]], jnp.int8)
        >>> state = decoder.init(3, jnp.zeros(2))
        >>> decoded, state, _ = decoder.decode(state, votes)
        >>> print(decoded, decoder.weights(state)[:, 0])
        [1 1] [0. 0. 0.]

    References:
        Park and Lee, the code released with [SignSGD with Federated Defense](
        https://github.com/chanho26/SignSGD_Codec), described from reading.
    """
    check_count("initial_rounds", initial_rounds, 0, unit="rounds")
    check_number("max_llr", max_llr, 1e-6, 1e6)
    check_number("forgetting", forgetting, 1e-6, 1.0)

    def init(num_workers, params):
        check_coordinates(params)
        return ReleasedCodeState(
            rc_round=jnp.zeros((), jnp.int32),
            rc_agreed=jax.tree.map(
                lambda leaf: jnp.zeros((num_workers, *jnp.shape(leaf)), jnp.float32),
                params,
            ),
            rc_total=jnp.zeros((), jnp.float32),
            rc_agreed_share=jnp.zeros((num_workers,), jnp.float32),
        )

    def weights(state):
        bound = jnp.asarray(max_llr, jnp.float32)
        rounds = state.rc_round.astype(jnp.float32)
        pooled = state.rc_agreed_share / jnp.maximum(rounds, 1)

        def of_leaf(agreed):
            shared = pooled.reshape((-1,) + (1,) * (agreed.ndim - 1))
            own = agreed / (state.rc_total + _EPSILON)
            right = jnp.where(state.rc_round < initial_rounds, shared, own)
            llr = jnp.log((right + _EPSILON) / (1 - right + _EPSILON))
            return jnp.where(state.rc_round == 0, 1.0, jnp.clip(llr, -bound, bound))

        return jax.tree.map(of_leaf, state.rc_agreed)

    @functools.partial(jax.jit, static_argnames="axis_name")
    def decode(state, votes, axis_name=None):
        used = weights(state)
        decay = jnp.asarray(forgetting, jnp.float32)
        tallies = jax.tree.map(_tally_in_worker_order, used, votes)
        decoded = jax.tree.map(lambda tally: jnp.sign(tally).astype(jnp.int8), tallies)
        agreed = jax.tree.map(
            lambda old, vote, sign: (
                decay * old + (vote == sign[None]).astype(jnp.float32)
            ),
            state.rc_agreed,
            votes,
            decoded,
        )
        margins = jax.tree.map(_margins, tallies, used)
        decided = exact_total(
            [jnp.sum(tally != 0) for tally in jax.tree.leaves(tallies)], axis_name
        )
        sums, weight_sums, margin, size = sum_over_axis(
            (
                _sum_of_rows(agreed),
                _sum_of_rows(used),
                sum(jnp.sum(leaf) for leaf in jax.tree.leaves(margins)),
                jnp.float32(sum(leaf.size for leaf in jax.tree.leaves(decoded))),
            ),
            axis_name,
        )
        # XLA turns a division by `size` into this or not, depending on whether the
        # coordinates are split: it rounds otherwise, and ties would be lost.
        share = 1 / size
        state = ReleasedCodeState(
            rc_round=state.rc_round + 1,
            rc_agreed=agreed,
            rc_total=decay * state.rc_total + 1,
            rc_agreed_share=sums * share,
        )
        crossover = 1 - state.rc_agreed_share / state.rc_total
        margin = margin / jnp.maximum(decided, 1)
        return decoded, state, DecodeInfo(weight_sums * share, crossover, margin)

    needs = "it keeps counters for each worker and coordinate"
    return Decoder(init, decode, weights, needs, "nats")


def _tally_in_worker_order(weights, votes):
    """Float32 sum over workers, one after the other, as the released code adds."""

    def add(tally, worker):
        weight, vote = worker
        return tally + weight * vote.astype(jnp.float32), None

    # Not jnp.zeros: inside shard_map a carry must vary over the same axes as the votes.
    start = 0 * votes[0].astype(jnp.float32)
    return lax.scan(add, start, (weights, votes))[0]


def _margins(tally, weights):
    """|tally| over the sum of the |weights|; 0 where all weights are 0."""
    total = jnp.sum(jnp.abs(weights), axis=0)
    return jnp.where(total > 0, jnp.abs(tally) / jnp.where(total > 0, total, 1), 0)


def _sum_of_rows(tree):
    """Sum over all coordinates of all leaves, `[M]`."""
    return sum(
        jnp.sum(leaf.reshape(leaf.shape[0], -1), axis=1)
        for leaf in jax.tree.leaves(tree)
    )

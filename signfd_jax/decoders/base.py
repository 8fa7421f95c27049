"""Decoding: what a decoder is, its log-likelihood-ratio weights, and majority vote.

Shapes: `M` workers. Votes and decoded signs are int8 in {-1, 0, +1}; weights are
log-likelihood ratios in nats. How votes are counted stands in `tally`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from signfd_jax._checks import check_number, checked
from signfd_jax.decoders._known import heaviness
from signfd_jax.decoders._pairs import inspected, sampled_vote
from signfd_jax.signs._tally import sum_over_axis, vote_tree
from signfd_jax.signs._totals import check_coordinates
from signfd_jax.signs._visits import over_workers

__all__ = [
    "DecodeInfo",
    "Decoder",
    "MajorityVoteState",
    "llr_weights",
    "majority_vote",
]


class DecodeInfo(NamedTuple):
    """What one decoding round tells about the workers: for eyes and plots.

    Attributes:
        weights: float32 `[M]`, weight of each worker's vote in this round (in nats, or
            in votes: see the decoder), the mean over coordinates where weights differ
            between them.
        crossover: float32 `[M]`, estimated probability that a vote is wrong, the
            mean over coordinates likewise. It includes the votes of this round.
        margin: float32 scalar in [0, 1]: |tally| over the sum of the |weights|,
            the mean over the coordinates that did not tie, or a sample of them.
        confidence: float32 scalar in [0, 1], how sure it is which workers are right; -1
            from a decoder that does not say.
        polarity: float32 `[M]` in [-1, 1], -1 for a worker that is surely wrong more
            often than right, 1 for one that is surely right; 0 if nothing is known.
        duplicates: int32 `[M]`, the first worker that sends the same; -1: none known.
    """

    weights: jax.Array
    crossover: jax.Array
    margin: jax.Array
    confidence: Any = None
    polarity: Any = None
    duplicates: Any = None


class Decoder(NamedTuple):
    """A rule that turns votes into decoded signs and learns from them.

    Attributes:
        init: `init(num_workers, params) -> state`. Reads only shapes of `params`.
        decode: `decode(state, votes, axis_name=None, **known)`, which gives
            `(decoded, state, info)`.
            `votes` is a tree of int8 `[M, ...]` in {-1, 0, +1}, `decoded` the tree
            of int8 `[...]`, `info` a `DecodeInfo`. With `axis_name`, the votes hold
            this device's slice of the coordinates, and statistics pooled over
            coordinates are summed over that mesh axis, or tuple of axes. `known` are
            the arguments in `uses`, which may be left out. Jitted in this library's
            own.
        weights: `weights(state)`: the weights that the next `decode` would use, for
            inspection: float32 `[M]` where all coordinates share them, else a tree
            of `[M, ...]`.
        needs_unpacked: why `decode` must have its votes as int8, in a few words; ""
            where it takes trees of `packed.PackedVotes` as well, as it does if it reads
            votes through `tally` and `packed` alone, with weights `[M]`.
        unit: what a weight is counted in: "votes", or "nats" of a log-likelihood
            ratio.
        uses: which of "trusted", "stakes" and "shares" `decode` takes (see
            `transforms.scale_by_sign_decoder`).

    Examples:
        >>> decoder = majority_vote()
        >>> state = decoder.init(3, jnp.zeros(2))
        >>> votes = jnp.array([[1, -1], [1, 1], [-1, -1]], jnp.int8)
        >>> decoded, state, info = decoder.decode(state, votes)
        >>> print(decoded, info.weights)
        [ 1 -1] [1. 1. 1.]
    """

    init: Callable[..., Any]
    decode: Callable[..., Any]
    weights: Callable[..., Any]
    needs_unpacked: str = "it does not say that it can read them"
    unit: str = "votes"
    uses: tuple[str, ...] = ()


@jax.jit
@checked
def llr_weights(
    crossover: Float[Array, "*shape"], *, max_llr: float | Float[Array, ""] = 10.0
) -> Float[Array, "*shape"]:
    r"""Log-likelihood-ratio weight of a vote that is wrong with a given probability.

    A worker whose vote differs from the true gradient sign with probability $p_m$
    is a binary symmetric channel. If the channels are independent, the maximum-
    likelihood decoder weights its vote by $w_m = \ln\frac{1 - p_m}{p_m}$. The weight
    is zero at $p_m = 1/2$ (the vote says nothing) and negative above it: a worker
    that is usually wrong is read backwards, not thrown away.

    Args:
        crossover: probabilities $p$, float of any shape, in [0, 1].
        max_llr: weights are clipped to [-max_llr, max_llr] (nats, positive scalar),
            so that a worker never seen to err cannot silence all the others.

    Returns:
        Weights in nats, of the shape and dtype of `crossover`; finite for every
        input in [0, 1], and of the sign of $1/2 - p_m$, however near. A NaN gives NaN.

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> print(llr_weights(jnp.array([0.0, 0.1, 0.5, 0.9, 1.0])).round(2))
        [ 10.    2.2   0.   -2.2 -10. ]

    References:
        Nitzan and Paroush, Optimal decision rules in uncertain dichotomous choice
        situations, 1982; Park and Lee, [SignSGD with Federated Defense](
        https://arxiv.org/abs/2402.01340), ICML 2024.
    """
    check_number("max_llr", max_llr, 1e-6, 1e6)
    is_short = jnp.finfo(crossover.dtype).bits < 32
    p = crossover.astype(jnp.float32) if is_short else crossover
    rarer = jnp.minimum(p, 1 - p)
    # ln((1 - p) / p), without the difference of two logarithms: all bits near p = 1/2.
    size = jnp.log1p((1 - 2 * rarer) / rarer)
    size = jnp.minimum(size, jnp.asarray(max_llr, p.dtype))
    return (jnp.sign(0.5 - p) * size).astype(crossover.dtype)


class MajorityVoteState(NamedTuple):
    """State of `majority_vote`.

    Attributes:
        mv_weights: float32 `[M]`, all one.
    """

    mv_weights: jax.Array


def majority_vote() -> Decoder:
    r"""Every vote weighs the same.

    $\hat U_n = \operatorname{sign} \sum_m Y_{m,n}$; nothing is learned.
    `info.margin`, and `info.crossover`, the share of this round's votes that lost
    (`(errors + 1) / (votes + 2)`), are for inspection only: on a sample of 8192
    coordinates, always the same ones, or of 512 with more than 64 workers.

    Returns:
        A `Decoder`.

    Examples:
        >>> decoder = majority_vote()
        >>> votes = jnp.array([[1, 1], [1, -1], [1, 0]], jnp.int8)
        >>> decoded, _, _ = decoder.decode(decoder.init(3, jnp.zeros(2)), votes)
        >>> print(decoded)
        [1 0]

    References:
        Bernstein et al., [signSGD with majority vote is communication efficient and
        fault tolerant](https://arxiv.org/abs/1810.05291), ICLR 2019.
    """

    def init(num_workers, params):
        check_coordinates(params)
        return MajorityVoteState(jnp.ones((num_workers,), jnp.float32))

    @functools.partial(jax.jit, static_argnames="axis_name")
    def decode(state, votes, axis_name=None, *, stakes=None, shares=None):
        weights = jnp.ones_like(state.mv_weights)
        heavy = heaviness(weights.size, stakes, shares)
        weights = weights if heavy is None else heavy
        decoded = vote_tree(votes, weights, largest=1.0, axis_name=axis_name).decoded
        rows, _ = inspected(votes, weights.size, axis_name)
        outcome, margin = sampled_vote(rows, weights, axis_name)
        _, counts = over_workers(lambda row: ((), _lost(row, outcome)), rows)
        lost, counted = sum_over_axis(counts, axis_name)
        crossover = (lost + 1).astype(jnp.float32) / (counted + 2).astype(jnp.float32)
        return decoded, state, DecodeInfo(weights, crossover, margin)

    return Decoder(
        init,
        decode,
        weights=lambda state: state.mv_weights,
        needs_unpacked="",
        uses=("stakes", "shares"),
    )


def _lost(row, outcome):
    """How many of a worker's votes differ from the outcome, and of how many."""
    both = row * outcome
    return jnp.sum(both < 0, dtype=jnp.int32), jnp.sum(both != 0, dtype=jnp.int32)

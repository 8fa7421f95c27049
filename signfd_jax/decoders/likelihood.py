"""Likelihood decoders: error probabilities that are known, or fitted to one round.

Shapes: `M` workers, `N` coordinates of one leaf. Both assume the channel model alone:
given the true signs, the votes err independently of each other.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float32, Int8, Int32

from signfd_jax._checks import check_number, check_size
from signfd_jax.decoders.base import DecodeInfo, Decoder, llr_weights
from signfd_jax.signs._leaves import group_leaves
from signfd_jax.signs._products import row_products
from signfd_jax.signs._tally import (
    agreements,
    fixed_point,
    mean_over_coordinates,
    sum_over_leaves,
    vote_tree,
)
from signfd_jax.signs._totals import check_coordinates, exact_total
from signfd_jax.signs._visits import over_workers

__all__ = ["DawidSkeneState", "OracleState", "dawid_skene", "oracle"]

# Posterior means are integers of two int8 digits, which sum exactly in an int32 ...
_DIGIT = 128
_POSTERIOR_UNITS = 127 * _DIGIT
_SLICE = 2**24  # ... over so many coordinates.


class OracleState(NamedTuple):
    """State of `oracle`.

    Attributes:
        oracle_crossover: float32 `[M]`, or tree of `[M, ...]`: the probabilities.
    """

    oracle_crossover: Any


def oracle(crossover, max_llr: float | jax.Array = 10.0) -> Decoder:
    r"""Weight the votes with error probabilities that are known.

    $w_{m,n} = \ln\frac{1 - p_{m,n}}{p_{m,n}}$ makes the weighted vote the maximum-
    likelihood decoder: what every other decoder is measured by. Nothing is learned.

    Args:
        crossover: probabilities p in [0, 1] that a vote is wrong: float `[M]`, or a
            tree like the parameters of `[M, ...]`; may be traced. The state keeps
            them, so that on a mesh they are split like the votes.
        max_llr: largest |weight| (nats, positive scalar).

    Returns:
        A `Decoder`; `weights(state)` has the form of `crossover`.

    Raises:
        ValueError: `max_llr` is out of range, or, from `init`, `crossover` has not the
            shape of the workers' votes.

    Examples:
        >>> decoder = oracle(jnp.array([0.1, 0.4, 0.8]))
        >>> state = decoder.init(3, jnp.zeros(2))
        >>> votes = jnp.array([[1, -1], [-1, -1], [-1, 1]], jnp.int8)
        >>> decoded, _, info = decoder.decode(state, votes)
        >>> print(decoded, info.weights)
        [ 1 -1] [ 2.2  0.4 -1.4]

    References:
        Nitzan and Paroush, [Optimal decision rules in uncertain dichotomous choice
        situations](https://www.jstor.org/stable/2526438), 1982.
    """
    check_number("max_llr", max_llr, 1e-6, 1e6)
    crossover = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), crossover)

    def init(num_workers, params):
        check_coordinates(params)
        _check_crossover(crossover, num_workers, params)
        return OracleState(crossover)

    def weights(state):
        return jax.tree.map(
            lambda p: llr_weights(p, max_llr=max_llr), state.oracle_crossover
        )

    @functools.partial(jax.jit, static_argnames="axis_name")
    def decode(state, votes, axis_name=None):
        used = weights(state)
        decoded, mean_weights, margin = vote_tree(
            votes, used, largest=max_llr, axis_name=axis_name
        )
        crossover = mean_over_coordinates(state.oracle_crossover, axis_name)
        return decoded, state, DecodeInfo(mean_weights, crossover, margin)

    shared = isinstance(crossover, jax.Array) and crossover.ndim == 1
    needs = "" if shared else "its weights differ between the coordinates"
    return Decoder(init, decode, weights, needs, "nats")


def _check_crossover(crossover, num_workers, params):
    if isinstance(crossover, jax.Array) and crossover.shape == (num_workers,):
        return
    given = jax.tree.map(jnp.shape, crossover)
    wanted = jax.tree.map(lambda leaf: (num_workers, *jnp.shape(leaf)), params)
    if given != wanted:
        raise ValueError(
            f"crossover has shape {given}, but must be ({num_workers},), one "
            f"probability a worker, or like the parameters with the workers first: "
            f"{wanted}"
        )


class DawidSkeneState(NamedTuple):
    """State of `dawid_skene`.

    Attributes:
        ds_weights: float32 `[M]`, weights of the last round (nats); ones at first.
    """

    ds_weights: jax.Array


def dawid_skene(iterations: int = 5, max_llr: float | jax.Array = 10.0) -> Decoder:
    r"""Fit the workers' error probabilities to the votes by expectation-maximisation.

    The true signs are hidden, each $\pm 1$ with equal probability. A step takes their
    posterior means $t_n = \tanh(\frac12 \sum_m w_m Y_{m,n})$, and from them the errors
    to expect, $e_m = \sum_n |Y_{m,n}| (1 - Y_{m,n} t_n) / 2$ among $c_m$ votes, hence
    $p_m = (e_m + 1) / (c_m + 2)$ and $w_m = \ln\frac{1-p_m}{p_m}$. Both sums are over
    the coordinates on which at least two workers voted: a lone vote tells nothing.

    A round's steps begin at the last round's weights, the first round's at a majority
    vote (all ones), so that few steps a round suffice. Each round's fit is to that
    round's votes alone. At its end the global sign is turned where more workers
    came out mostly wrong than mostly right.

    Args:
        iterations: steps a round (int >= 1).
        max_llr: largest |weight| (nats, positive scalar).

    Returns:
        A `Decoder`. Its weights come from this round's votes too; `weights(state)` are
        those of the last round, float32 `[M]`. A worker that voted alone or not at all
        keeps its weight.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> decoder = dawid_skene()
        >>> truth = jax.random.rademacher(jax.random.key(0), (1000,), jnp.int8)
        >>> crossover = jnp.array([0.1, 0.2, 0.3, 0.3, 0.9])[:, None]
        >>> wrong = jax.random.bernoulli(jax.random.key(1), crossover, (5, 1000))
        >>> votes = jnp.where(wrong, -truth[None], truth[None])
        >>> state = decoder.init(5, jnp.zeros(1000))
        >>> _, _, info = decoder.decode(state, votes)
        >>> print((10 * info.crossover).round())
        [1. 2. 3. 3. 9.]

    References:
        Dawid and Skene, [Maximum likelihood estimation of observer error-rates using
        the EM algorithm](https://doi.org/10.2307/2346806), 1979.
    """
    check_size("iterations", iterations)
    check_number("max_llr", max_llr, 1e-6, 1e6)

    def init(num_workers, params):
        check_coordinates(params)
        return DawidSkeneState(jnp.ones((num_workers,), jnp.float32))

    @functools.partial(jax.jit, static_argnames="axis_name")
    def decode(state, votes, axis_name=None):
        groups = group_leaves(votes)
        votes = groups.join(votes)
        leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in votes]
        voters = [jnp.sum(leaf != 0, axis=0, dtype=jnp.int32) for leaf in leaves]
        shared = [number > 1 for number in voters]
        counts = [
            agreements(leaf, mask.astype(jnp.int8))[1]
            for leaf, mask in zip(leaves, shared, strict=True)
        ]
        most = sum(leaf.shape[1] for leaf in leaves)
        counted = exact_total(counts, axis_name, most=most)
        largest = jnp.maximum(jnp.asarray(max_llr, jnp.float32), 1.0)

        def balance_under(weights):
            """Agreements to expect, less errors, if the weights are right."""
            units, scale = fixed_point(
                weights, largest=largest, num_workers=weights.shape[0]
            )
            sums = [
                part
                for leaf, mask in zip(leaves, shared, strict=True)
                for part in _sum_posteriors(leaf, mask, units, scale)
            ]
            tens, ones = sum_over_leaves(sums, axis_name, most=most * _DIGIT)
            return (tens * _DIGIT + ones) / _POSTERIOR_UNITS

        def crossover_from(balance):
            return ((counted - balance) / 2 + 1) / (counted + 2)

        def weights_from(balance):
            llr = llr_weights(crossover_from(balance), max_llr=max_llr)
            return jnp.where(counted > 0, llr, state.ds_weights)

        balance = lax.fori_loop(
            1,
            iterations,
            lambda _, balance: balance_under(weights_from(balance)),
            balance_under(state.ds_weights),
        )
        balance *= jnp.where(jnp.sum(jnp.sign(balance)) < 0, -1.0, 1.0)
        weights = weights_from(balance)
        decoded, _, margin = vote_tree(
            votes, weights, largest=largest, axis_name=axis_name
        )
        info = DecodeInfo(weights, crossover_from(balance), margin)
        return groups.split(decoded), DawidSkeneState(weights), info

    needs = "it multiplies each vote with a posterior mean"
    return Decoder(init, decode, lambda state: state.ds_weights, needs, "nats")


def _sum_posteriors(
    votes: Int8[Array, "M N"],
    shared: Bool[Array, " N"],
    units: Int32[Array, " M"],
    scale: Float32[Array, ""],
) -> list[tuple[Int32[Array, " M"], Int32[Array, " M"]]]:
    """Sums of the votes times the two digits of the posterior means, slice by slice.

    Exact, so that no order of leaves, slices or devices changes a weight.
    """
    tally, _ = over_workers(
        lambda row: (row[0] * row[1].astype(jnp.int32), ()), (units, votes)
    )
    mean = jnp.tanh(tally.astype(jnp.float32) / (2 * scale))
    mean = jnp.where(shared, jnp.round(mean * _POSTERIOR_UNITS), 0).astype(jnp.int32)
    tens = (mean + _DIGIT // 2) // _DIGIT
    digits = jnp.stack([tens, mean - _DIGIT * tens]).astype(jnp.int8)
    # Eight rows: XLA's CPU backend is fast at int8 products of two matrices only.
    digits = jnp.pad(digits, ((0, 6), (0, 0)))
    sums = []
    for start in range(0, max(votes.shape[1], 1), _SLICE):
        part = slice(start, start + _SLICE)
        tens, ones, *_ = row_products(digits[:, part], votes[:, part])
        sums.append((tens, ones))
    return sums

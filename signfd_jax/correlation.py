"""Correlation defense: reliabilities from how the votes agree with each other.

Shapes: `M` workers, `N` coordinates in all. Nothing is kept per coordinate: the state
is a few `[M, M]` matrices. No decoded sign enters the estimate, so that it cannot
lock itself in, and it is accurate from the first round on.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from signfd_jax.decoding import DecodeInfo, Decoder, check_number, llr_weights
from signfd_jax.structure import Structure, capped_at_median, masked_median, structure
from signfd_jax.tally import sum_over_leaves, vote_tree

__all__ = ["CorrelationDefenseState", "correlation_defense", "pair_counts"]


class CorrelationDefenseState(NamedTuple):
    """State of `correlation_defense`.

    Attributes:
        cd_round: int32 scalar, rounds decoded so far.
        cd_balance: float32 `[M, M]`, coordinates on which two workers agreed minus
            those on which they disagreed, decayed.
        cd_pairs: float32 `[M, M]`, coordinates on which both voted, decayed.
        cd_noise: float32 scalar, variance of one round's correlations around their
            mean over rounds.
        cd_rounds: float32 `[2]`, sums of the decay factors of all rounds and of their
            squares: together the effective number of rounds behind the means.
        cd_weights: float32 `[M]`, weights of the last round; ones at first.
    """

    cd_round: jax.Array
    cd_balance: jax.Array
    cd_pairs: jax.Array
    cd_noise: jax.Array
    cd_rounds: jax.Array
    cd_weights: jax.Array


def correlation_defense(
    max_llr: float | jax.Array = 10.0,
    forgetting: float | jax.Array = 0.98,
    *,
    sample_above: int = 64,
    max_coordinates: int = 16384,
    seed: int = 0,
) -> Decoder:
    r"""Weight votes by reliabilities read off the correlations between workers.

    $C_{jk} = \sum_n Y_{j,n} Y_{k,n} / \sum_n |Y_{j,n}| |Y_{k,n}|$, averaged over rounds
    with forgetting, this round included. `signfd_jax.structure.structure` finds in it
    the reliabilities $v_m = 1 - 2 p_m$, copies, and a trust $\alpha$; the weights are

    $w_m \propto \alpha \frac{\mathrm{LLR}(v_m) / \operatorname{median} |\mathrm{LLR}|}
    {\text{copies}_m} + (1 - \alpha) \frac{1}{\text{blatant copies}_m}$,

    clipped to the median |weight|. So where the workers' votes do not fit the model
    (very unlike data, or honest workers that no longer can be told from colluders),
    this falls back, gradually, to a majority vote in which undoubted copies share one
    vote.

    Args:
        max_llr: largest |log-likelihood ratio| (nats, positive scalar).
        forgetting: factor in (0, 1] by which the past is multiplied each round
            (scalar). It trades noise against how soon a turncoat is found out: at .98
            the correlations are a mean over about 100 rounds.
        sample_above: above so many workers (int), correlations come from a sample.
        max_coordinates: size of that sample (int, coordinates), drawn anew each round.
        seed: seed of the key that the sample is drawn by (int).

    Returns:
        A `Decoder`. Its weights come from this round's votes too; `weights(state)` are
        those of the last round, float32 `[M]`, in units of the median worker's
        log-likelihood ratio.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> decoder = correlation_defense()
        >>> truth = jax.random.rademacher(jax.random.key(0), (1000,), jnp.int8)
        >>> wrong = jax.random.bernoulli(jax.random.key(1), 0.3, (5, 1000))
        >>> votes = jnp.where(wrong, -truth[None], truth[None])
        >>> votes = votes * jnp.array([1, 1, 1, -1, -1], jnp.int8)[:, None]
        >>> state = decoder.init(5, jnp.zeros(1000))
        >>> decoded, state, info = decoder.decode(state, votes)
        >>> print(jnp.sign(info.weights), (decoded == truth).mean().round(1))
        [ 1.  1.  1. -1. -1.] 0.8

    References:
        Parisi, Strino, Nadler and Kluger, [Ranking and combining multiple predictors
        without labeled data](https://arxiv.org/abs/1303.3257), PNAS 2014; Jaffe,
        Fetaya, Nadler, Jiang and Kluger, [Unsupervised ensemble learning with
        dependent classifiers](https://arxiv.org/abs/1510.05830), AISTATS 2016.
    """
    check_number("max_llr", max_llr, 1e-6, 1e6)
    check_number("forgetting", forgetting, 1e-6, 1.0)
    check_number("sample_above", sample_above, 1, float("inf"))
    check_number("max_coordinates", max_coordinates, 1, float("inf"))

    def init(num_workers, params):
        del params
        square = (num_workers, num_workers)
        return CorrelationDefenseState(
            cd_round=jnp.zeros((), jnp.int32),
            # Arrays of their own, so that the state can be donated.
            cd_balance=jnp.zeros(square, jnp.float32),
            cd_pairs=jnp.zeros(square, jnp.float32),
            cd_noise=jnp.zeros((), jnp.float32),
            cd_rounds=jnp.zeros((2,), jnp.float32),
            cd_weights=jnp.ones((num_workers,), jnp.float32),
        )

    @functools.partial(jax.jit, static_argnames="axis_name")
    def decode(state, votes, axis_name=None):
        key = jax.random.fold_in(jax.random.key(seed), state.cd_round)
        num_workers = state.cd_weights.shape[0]
        size = max_coordinates if num_workers > sample_above else None
        balance, pairs = pair_counts(key, votes, size, axis_name)
        state = _learn(state, balance, pairs, forgetting)
        # Decayed counts never vanish; less than one vote is none.
        seen = jnp.diagonal(state.cd_pairs) >= 1
        rounds, squares = state.cd_rounds
        found = structure(
            _ratio(state.cd_balance, state.cd_pairs),
            jnp.sqrt(state.cd_noise * squares) / rounds,
            seen,
            jnp.where(state.cd_round == 1, 0.0, state.cd_weights),
        )
        weights = _weights(found, seen, max_llr)
        decoded, _, margin = vote_tree(votes, weights, largest=1.0, axis_name=axis_name)
        info = DecodeInfo(weights, (1 - found.reliability) / 2, margin)
        return decoded, state._replace(cd_weights=weights), info

    return Decoder(init, decode, lambda state: state.cd_weights)


def _weights(found: Structure, seen, max_llr):
    llr = llr_weights((1 - found.reliability) / 2, max_llr=max_llr)
    typical = jnp.maximum(masked_median(jnp.abs(llr), seen), 1e-9)
    informed = jnp.clip(llr / typical, -1.0, 1.0) / found.copies
    cautious = 1.0 / found.blatant_copies
    return capped_at_median(found.trust * informed + (1 - found.trust) * cautious, seen)


def _learn(state, balance, pairs, forgetting):
    """Fold one round's counts into the means, and learn how noisy a round is."""
    rounds, squares = state.cd_rounds
    forgetting = jnp.asarray(forgetting, jnp.float32)
    off = ~jnp.eye(balance.shape[0], dtype=bool)
    # The first round has nothing to be compared with: assume that the signs of
    # coordinates are nearly independent (their variance is 1 / pairs).
    total = jnp.sum(jnp.where(off, pairs, 0.0))
    first = 4.0 * _count(off & (pairs > 0)) / jnp.maximum(total, 1.0)
    known = off & (pairs > 0) & (state.cd_pairs > 0)
    surprise = _ratio(balance, pairs) - _ratio(state.cd_balance, state.cd_pairs)
    now = jnp.sum(jnp.where(known, surprise**2, 0.0)) / jnp.maximum(_count(known), 1.0)
    now = now / (1 + squares / jnp.maximum(rounds, 1e-9) ** 2)
    noise = jnp.where(
        state.cd_round == 0,
        first,
        jnp.where(state.cd_round == 1, now, 0.9 * state.cd_noise + 0.1 * now),
    )
    return state._replace(
        cd_round=state.cd_round + 1,
        cd_balance=forgetting * state.cd_balance + balance,
        cd_pairs=forgetting * state.cd_pairs + pairs,
        cd_noise=noise,
        cd_rounds=jnp.stack([forgetting * rounds + 1, forgetting**2 * squares + 1]),
    )


def _count(mask):
    return jnp.sum(mask, dtype=jnp.int32).astype(jnp.float32)


def _ratio(balance, pairs):
    return balance / jnp.maximum(pairs, 1e-9)


def pair_counts(
    key,
    votes,
    max_coordinates: int | None,
    axis_name: str | tuple[str, ...] | None = None,
):
    r"""Agreements of every pair of workers, minus disagreements, and common votes.

    $S_{jk} = \sum_n Y_{j,n} Y_{k,n}$ and $n_{jk} = \sum_n |Y_{j,n}| |Y_{k,n}|$.

    Args:
        key: a JAX key for the sample; it is consumed.
        votes: tree of int8 `[M, ...]` in {-1, 0, +1}.
        max_coordinates: use a random sample of so many coordinates (int); None: all.
        axis_name: mesh axis, or axes, that the coordinates are split over, or None.

    Returns:
        float32 `[M, M]` and float32 `[M, M]`, exact integers before the conversion
        (for fewer than 2**31 coordinates) and so independent of any order.

    Examples:
        >>> votes = jnp.array([[1, -1, 0, 1], [1, 1, 1, 1]], jnp.int8)
        >>> balance, pairs = pair_counts(jax.random.key(0), votes, None)
        >>> print(balance[0], pairs[0])
        [3. 1.] [3. 3.]
    """
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(votes)]
    if max_coordinates is not None:
        leaves = _sample(key, leaves, max_coordinates)
    counts = [(_gram(leaf), _gram(jnp.abs(leaf))) for leaf in leaves]
    balance, pairs = sum_over_leaves(counts, axis_name)
    return balance.astype(jnp.float32), pairs.astype(jnp.float32)


def _sample(key, leaves, max_coordinates):
    """Coordinates drawn with replacement, from each leaf by its share of them all."""
    total = sum(leaf.shape[1] for leaf in leaves)
    if total <= max_coordinates:
        return leaves
    keys = jax.random.split(key, len(leaves))
    sampled = []
    for leaf_key, leaf in zip(keys, leaves, strict=True):
        size = -(-leaf.shape[1] * max_coordinates // total)
        chosen = jax.random.randint(leaf_key, (size,), 0, leaf.shape[1])
        sampled.append(leaf[:, chosen])
    return sampled


def _gram(rows):
    contract_last = (((1,), (1,)), ((), ()))
    return lax.dot_general(rows, rows, contract_last, preferred_element_type=jnp.int32)

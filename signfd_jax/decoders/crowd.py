r"""Crowdsourcing decoders: reliabilities from how often two workers vote alike.

Shapes: `M` workers, `S` sampled coordinates. All three assume the one-coin model: the
vote of worker m is right with probability $(1 + s_m) / 2$, whatever the coordinate and
the other votes. Then the mean of $Y_{j,n} Y_{k,n}$ is $s_j s_k$ for two workers. They
also assume that the workers together are more often right than wrong. Colluders fit no
such model: `correlation_defense` looks for them, these do not.

`m_msr` and `triangular_estimation` have matrices `[M, M]`, `kos` messages `[M, S]`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int8

from signfd_jax._checks import check_count, check_number, check_size
from signfd_jax.decoders._pairs import pair_counts, sample_size, sampled_votes
from signfd_jax.decoders.base import DecodeInfo, Decoder, llr_weights
from signfd_jax.signs._tally import count_agreements, sum_over_axis, vote_tree
from signfd_jax.signs._totals import check_coordinates

__all__ = ["AgreementState", "KosState", "kos", "m_msr", "triangular_estimation"]

_LEAST = 1e-3  # a reliability that is divided by
_BITS = 30  # of a sum of messages
_MOST_MESSAGES = 2**24  # beyond, a message would have fewer than six bits


class AgreementState(NamedTuple):
    """State of `m_msr` and of `triangular_estimation`.

    Attributes:
        ag_round: int32 scalar, rounds decoded so far.
        ag_balance: float32 `[M, M]`, agreements minus disagreements, decayed.
        ag_pairs: float32 `[M, M]`, common votes, decayed.
        ag_weights: float32 `[M]`, weights of the last round (nats); ones at first.
    """

    ag_round: jax.Array
    ag_balance: jax.Array
    ag_pairs: jax.Array
    ag_weights: jax.Array


def m_msr(
    trimmed: int | None = None,
    iterations: int = 20,
    *,
    forgetting: float | jax.Array = 0.98,
    max_llr: float | jax.Array = 10.0,
    sample: int | None = None,
    seed: int | jax.Array = 0,
) -> Decoder:
    r"""Fit a matrix of rank one to the agreements, without each worker's extremes.

    With $C_{jk}$ the mean of $Y_{j,n} Y_{k,n}$ over what both voted on, $|C_{jk}|$ is
    near $u_j v_k$ where both are honest. A step lets every worker k take the ratios
    $|C_{jk}| / u_j$ to all others. It drops those of the F largest that are above its
    own $v_k$, and those of the F smallest that are below, and takes the mean of the
    rest as its new $v_k$; then u in the same way from v. So F workers that vote by no
    model at all cannot drag a worker's estimate beyond those of the others.

    Then $|s| = u \sqrt{\|v\| / \|u\|}$. Its signs are those of the leading eigenvector
    of $\operatorname{sign} C$, turned so that $\sum_m s_m \geq 0$, and the weights are
    $w_m = \ln\frac{1 + s_m}{1 - s_m}$. C is of all rounds so far, the past counting
    less by the factor `forgetting` each round.

    Two details differ. The paper starts at random and takes the signs from another
    eigenvector; here it starts at ones, and a pair that never agreed more than it
    disagreed counts slightly as agreeing. The paper bounds s, here `max_llr` does.

    Args:
        trimmed: F (int >= 0), how many others may be corrupted; None: as many as leave
            each worker two or three ratios.
        iterations: steps of v and u a round (int >= 1).
        forgetting: factor on the past each round, float scalar in (0, 1].
        max_llr: largest |weight| (nats, positive scalar).
        sample: number of coordinates (int) that agreements are counted on, drawn anew
            each round; None: 8192, or 512 with more than 64 workers.
        seed: of the key that the sample is drawn by (int, or an int32 scalar that may
            be traced).

    Returns:
        A `Decoder`, of packed votes too. Its weights come from this round's votes too;
        `weights(state)` are those of the last round, float32 `[M]`. A worker that never
        voted with another keeps its weight, and all do where nothing is known.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> decoder = m_msr()
        >>> truth = jax.random.rademacher(jax.random.key(0), (4000,), jnp.int8)
        >>> crossover = jnp.array([0.1, 0.2, 0.2, 0.3, 0.3, 0.3, 0.9])[:, None]
        >>> wrong = jax.random.bernoulli(jax.random.key(1), crossover, (7, 4000))
        >>> votes = jnp.where(wrong, -truth[None], truth[None])
        >>> _, _, info = decoder.decode(decoder.init(7, jnp.zeros(4000)), votes)
        >>> print((10 * info.crossover).round())
        [1. 2. 2. 3. 3. 3. 9.]

    References:
        Ma and Olshevsky, [Adversarial Crowdsourcing Through Robust Rank-One Matrix
        Completion](https://arxiv.org/abs/2010.12181), NeurIPS 2020.
    """
    if trimmed is not None:
        check_size("trimmed", trimmed, 0)
    check_size("iterations", iterations)

    def estimate(correlation, known):
        return _robust_rank_one(correlation, known, trimmed, iterations)

    return _of_agreements(estimate, forgetting, max_llr, sample, seed)


def triangular_estimation(
    *,
    forgetting: float | jax.Array = 0.98,
    max_llr: float | jax.Array = 10.0,
    sample: int | None = None,
    seed: int | jax.Array = 0,
) -> Decoder:
    r"""Estimate each worker from its agreements with the two that agree most.

    With $C_{jk}$ the mean of $Y_{j,n} Y_{k,n}$ over what both voted on, three workers
    give $s_k^2 = C_{ik} C_{jk} / C_{ij}$. For each worker k the two others i and j are
    those with the largest $|C_{ij}|$. The worker with the largest
    $|s_k^2 + \sum_{i \neq k} C_{ik}|$ has the sign of that sum; each other has the sign
    of its agreement with that worker, times this sign. The weights are
    $w_m = \ln\frac{1 + s_m}{1 - s_m}$. C is of all rounds so far, the past counting
    less by the factor `forgetting` each round.

    It needs three workers that are not at chance. Two workers that send the same are
    the two that agree most: where they collude, everybody is measured by them.

    Args:
        forgetting: factor on the past each round, float scalar in (0, 1].
        max_llr: largest |weight| (nats, positive scalar).
        sample: number of coordinates (int) that agreements are counted on, drawn anew
            each round; None: 8192, or 512 with more than 64 workers.
        seed: of the key that the sample is drawn by (int, or an int32 scalar that may
            be traced).

    Returns:
        A `Decoder`, of packed votes too. Its weights come from this round's votes too;
        `weights(state)` are those of the last round, float32 `[M]`. A worker that never
        voted with another keeps its weight, and all do where nothing is known.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> decoder = triangular_estimation()
        >>> truth = jax.random.rademacher(jax.random.key(0), (4000,), jnp.int8)
        >>> crossover = jnp.array([0.1, 0.2, 0.3, 0.3, 0.9])[:, None]
        >>> wrong = jax.random.bernoulli(jax.random.key(1), crossover, (5, 4000))
        >>> votes = jnp.where(wrong, -truth[None], truth[None])
        >>> _, _, info = decoder.decode(decoder.init(5, jnp.zeros(4000)), votes)
        >>> print((10 * info.crossover).round())
        [1. 2. 3. 3. 9.]

    References:
        Bonald and Combes, [A Minimax Optimal Algorithm for
        Crowdsourcing](https://arxiv.org/abs/1606.00226), NIPS 2017.
    """
    return _of_agreements(_triangles, forgetting, max_llr, sample, seed)


def _of_agreements(estimate, forgetting, max_llr, sample, seed) -> Decoder:
    """A decoder whose weights come from `estimate(correlation, known) -> s [M]`."""
    check_number("forgetting", forgetting, 1e-9, 1.0)
    check_number("max_llr", max_llr, 1e-6, 1e6)
    if sample is not None:
        check_size("sample", sample)
    check_count("seed", seed, 0)

    def init(num_workers, params):
        check_coordinates(params)
        matrix = (num_workers, num_workers)
        return AgreementState(
            ag_round=jnp.zeros((), jnp.int32),
            ag_balance=jnp.zeros(matrix, jnp.float32),
            ag_pairs=jnp.zeros(matrix, jnp.float32),
            ag_weights=jnp.ones((num_workers,), jnp.float32),
        )

    @functools.partial(jax.jit, static_argnames="axis_name")
    def decode(state, votes, axis_name=None):
        last = state.ag_weights
        size = sample_size(last.size <= 64, sample)
        key = jax.random.fold_in(jax.random.key(seed), state.ag_round)
        rows = sampled_votes(key, votes, size, axis_name)
        balance, pairs = pair_counts(rows, rows, axis_name)
        balance = forgetting * state.ag_balance + balance
        pairs = forgetting * state.ag_pairs + pairs
        known = (pairs > 0) & ~jnp.eye(last.size, dtype=bool)
        correlation = jnp.where(known, balance / jnp.where(known, pairs, 1.0), 0.0)
        reliability = jnp.clip(estimate(correlation, known), -1.0, 1.0)
        crossover = (1 - reliability) / 2
        told = jnp.any(known, axis=1) & jnp.any(reliability != 0)
        weights = jnp.where(told, llr_weights(crossover, max_llr=max_llr), last)
        largest = jnp.maximum(jnp.asarray(max_llr, jnp.float32), 1.0)
        decoded, _, margin = vote_tree(
            votes, weights, largest=largest, axis_name=axis_name
        )
        state = AgreementState(state.ag_round + 1, balance, pairs, weights)
        return decoded, state, DecodeInfo(weights, crossover, margin)

    return Decoder(init, decode, lambda state: state.ag_weights, "", "nats")


def _robust_rank_one(
    correlation: Float[Array, "M M"], known: Bool[Array, "M M"], trimmed, iterations
) -> Float[Array, " M"]:
    """Reliabilities by the matrix mean-subsequence-reduced iteration."""
    strength, degree = jnp.abs(correlation), jnp.sum(known, axis=0, dtype=jnp.int32)
    most = jnp.maximum(degree // 2 - 1, 0)
    drop = most if trimmed is None else jnp.full_like(degree, trimmed)
    rank = jnp.arange(degree.size, dtype=jnp.int32)[:, None]

    def fitted(others, own):
        ratios = strength / jnp.maximum(others, _LEAST)[:, None]
        ratios = jnp.sort(jnp.where(known, ratios, jnp.inf), axis=0)
        smallest = (rank < drop[None]) & (ratios < own[None])
        largest = (rank >= (degree - drop)[None]) & (ratios > own[None])
        kept = (rank < degree[None]) & ~smallest & ~largest
        number = jnp.sum(kept, axis=0, dtype=jnp.float32)
        mean = jnp.sum(jnp.where(kept, ratios, 0.0), axis=0) / jnp.maximum(number, 1.0)
        return jnp.where(number > 0, mean, own)

    def step(_, factors):
        u, v = factors
        v = fitted(u, v)
        return fitted(v, u), v

    start = (degree > 0).astype(jnp.float32)
    u, v = lax.fori_loop(0, iterations, step, (start, start))
    length = jnp.maximum(jnp.linalg.norm(u), 1e-9)
    size = u * jnp.sqrt(jnp.linalg.norm(v) / length)
    # Groups that never met, or that balance, would else be turned at random.
    links = jnp.where(known, jnp.sign(correlation) + _LEAST, 0.0)
    side = jnp.sign(jnp.linalg.eigh(links)[1][:, -1])
    return size * side * jnp.where(jnp.sum(size * side) < 0, -1.0, 1.0)


def _triangles(
    correlation: Float[Array, "M M"], known: Bool[Array, "M M"]
) -> Float[Array, " M"]:
    """Reliabilities by triangular estimation."""
    workers = jnp.arange(known.shape[0], dtype=jnp.int32)
    strength = jnp.where(known, jnp.abs(correlation), -1.0)

    def strongest_pair(without):
        others = workers != without
        among = jnp.where(others[:, None] & others[None], strength, -1.0)
        first, second = jnp.divmod(jnp.argmax(among).astype(jnp.int32), known.shape[0])
        return jnp.stack([first, second])

    # All but the two have the same pair.
    first, second = best = strongest_pair(jnp.int32(-1))
    pairs = jnp.where((workers == first)[:, None], strongest_pair(first)[None], best)
    pairs = jnp.where((workers == second)[:, None], strongest_pair(second)[None], pairs)
    i, j = pairs.T
    base = jnp.where(strength[i, j] > 0, correlation[i, j], jnp.inf)
    square = jnp.abs(correlation[i, workers] * correlation[j, workers] / base)
    size = jnp.sqrt(square)
    sums = square + jnp.sum(correlation, axis=0)
    surest = jnp.argmax(jnp.abs(sums)).astype(jnp.int32)
    turn = jnp.where(sums[surest] < 0, -1.0, 1.0)
    side = jnp.where(workers == surest, 1.0, jnp.sign(correlation[surest]))
    return size * side * turn


class KosState(NamedTuple):
    """State of `kos`.

    Attributes:
        kos_round: int32 scalar, rounds decoded so far.
        kos_weights: float32 `[M]`, weights of the last round; ones at first.
    """

    kos_round: jax.Array
    kos_weights: jax.Array


def kos(
    iterations: int = 10, *, sample: int | None = None, seed: int | jax.Array = 0
) -> Decoder:
    r"""Pass messages between workers and coordinates (Karger, Oh and Shah).

    Along each vote of worker m on coordinate n go two messages. The coordinate tells
    what the other workers say of it, and the worker how it stands to the other
    coordinates:

    $x_{n \to m} = \sum_{m' \neq m} Y_{m',n} y_{m' \to n}$, and
    $y_{m \to n} = \sum_{n' \neq n} Y_{m,n'} x_{n' \to m}$, where y is 1 at first.

    After the last iteration worker m weighs $w_m = \sum_n Y_{m,n} x_{n \to m}$, over
    the largest of the $|w|$ and turned so that $\sum_m w_m \geq 0$. Up to that factor
    it is the worker's message to every coordinate out of the sample.
    Those in the sample are decoded with these weights as well; their own part in a
    message is one of S. Where nobody abstains w is near the leading eigenvector of the
    agreements $Y Y^\top$ without their diagonal. Each round's messages are of that
    round's votes alone.

    The paper starts at random numbers of mean 1, and turns nothing. Messages are
    rounded to integers, the largest being $2^{30} / (M S)$, so that no order of
    coordinates changes a weight.

    Args:
        iterations: times that all messages are sent, a round (int >= 1).
        sample: number S of coordinates (int) that messages are passed on, drawn anew
            each round; None: 8192, or 512 with more than 64 workers.
        seed: of the key that the sample is drawn by (int, or an int32 scalar that may
            be traced).

    Returns:
        A `Decoder`, of packed votes too. Its weights, in [-1, 1], come from this
        round's votes; `weights(state)` are those of the last round, float32 `[M]`. A
        worker that voted alone or not at all keeps its weight.

    Raises:
        ValueError: an argument is out of range, or, from `init`, workers times sampled
            coordinates exceed 2**24.

    Examples:
        >>> decoder = kos()
        >>> truth = jax.random.rademacher(jax.random.key(0), (4000,), jnp.int8)
        >>> crossover = jnp.array([0.1, 0.3, 0.3, 0.5, 0.9])[:, None]
        >>> wrong = jax.random.bernoulli(jax.random.key(1), crossover, (5, 4000))
        >>> votes = jnp.where(wrong, -truth[None], truth[None])
        >>> _, _, info = decoder.decode(decoder.init(5, jnp.zeros(4000)), votes)
        >>> print(info.weights.round(1))
        [ 1.   0.7  0.7 -0.  -1. ]

    References:
        Karger, Oh and Shah, [Iterative Learning for Reliable Crowdsourcing
        Systems](https://papers.nips.cc/paper/4396), NIPS 2011.
    """
    check_size("iterations", iterations)
    if sample is not None:
        check_size("sample", sample)
    check_count("seed", seed, 0)

    def init(num_workers, params):
        check_coordinates(params)
        size = sample_size(num_workers <= 64, sample)
        if num_workers * size > _MOST_MESSAGES:
            raise ValueError(
                f"kos passes messages of {num_workers} workers on {size} coordinates, "
                f"but more than 2**24 in all have too few bits each; give sample="
                f"{max(_MOST_MESSAGES // num_workers, 1)} or less"
            )
        return KosState(jnp.zeros((), jnp.int32), jnp.ones((num_workers,), jnp.float32))

    @functools.partial(jax.jit, static_argnames="axis_name")
    def decode(state, votes, axis_name=None):
        last = state.kos_weights
        size = sample_size(last.size <= 64, sample)
        key = jax.random.fold_in(jax.random.key(seed), state.kos_round)
        rows = sampled_votes(key, votes, size, axis_name)
        unit = 2**_BITS // (last.size * size)
        heard, company = _pass_messages(rows, unit, iterations, axis_name)
        heard *= jnp.where(jnp.sum(heard) < 0, -1.0, 1.0)
        largest = jnp.max(jnp.abs(heard))
        told = company & (largest > 0)
        weights = jnp.where(told, heard / jnp.maximum(largest, 1.0), last)
        decoded, _, margin = vote_tree(votes, weights, largest=1.0, axis_name=axis_name)
        agreed, counted = count_agreements(votes, decoded, axis_name)
        crossover = (counted - agreed + 1) / (counted + 2)
        state = KosState(state.kos_round + 1, weights)
        return decoded, state, DecodeInfo(weights, crossover, margin)

    return Decoder(init, decode, lambda state: state.kos_weights, "")


def _pass_messages(
    rows: Int8[Array, "M S"], unit: int, iterations: int, axis_name
) -> tuple[Float[Array, " M"], Bool[Array, " M"]]:
    """What each worker hears in the last iteration, and who voted in company."""
    signs = rows.astype(jnp.int32)
    voted = jnp.abs(signs)

    def total(values):
        return sum_over_axis(jnp.sum(values, axis=1, dtype=jnp.int32), axis_name)

    def step(_, carry):
        messages, _ = carry
        told = signs * messages
        by_others = jnp.sum(told, axis=0, dtype=jnp.int32)[None] - told
        heard = signs * by_others
        sums = total(heard)
        messages = voted * (sums[:, None] - heard)
        largest = jnp.max(jnp.abs(messages), initial=1)
        largest = largest if axis_name is None else lax.pmax(largest, axis_name)
        scaled = messages.astype(jnp.float32) * (unit / largest.astype(jnp.float32))
        return jnp.round(scaled).astype(jnp.int32), sums

    start = unit * voted, jnp.zeros((rows.shape[0],), jnp.int32)
    _, sums = lax.fori_loop(0, iterations, step, start)
    in_company = jnp.sum(voted, axis=0, dtype=jnp.int32) > 1
    company = total(voted * in_company[None].astype(jnp.int32)) > 0
    return sums.astype(jnp.float32), company

"""Federated defense: the paper's decoder, which learns how often each worker errs.

Shapes: `M` workers, `*leaf` the coordinates of one parameter leaf. A round
compares every vote with the decoded sign; the crossover probabilities estimated from
the rounds before weight the votes of the next. Federated voting is the same decoder
with a majority vote for as long as it learns.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from signfd_jax._checks import check_count, check_flag, check_number
from signfd_jax.decoders._counters import (
    add_outcomes,
    check_counter_dtype,
    outcomes_against_others,
    tabulated,
)
from signfd_jax.decoders._pairs import inspected, sampled_mean
from signfd_jax.decoders.base import DecodeInfo, Decoder, llr_weights
from signfd_jax.signs import packed
from signfd_jax.signs._leaves import group_leaves
from signfd_jax.signs._tally import (
    count_agreements,
    fixed_point,
    vote_tree,
)
from signfd_jax.signs._totals import check_coordinates
from signfd_jax.signs._visits import over_workers

__all__ = ["FederatedDefenseState", "federated_defense", "federated_voting"]


class FederatedDefenseState(NamedTuple):
    """State of `federated_defense` and `federated_voting`.

    Attributes:
        fd_round: int32 scalar, rounds decoded so far.
        fd_agreement: float32 `[M]`, share of each worker's votes that agreed.
        fd_evidence: float32 `[M]`, the number of votes behind that share, decayed.
        fd_counters: tree of `[M, ...]`, agreements minus errors of each worker and
            coordinate, decayed; an empty tuple where `initial_rounds` is None.
        fd_rounds_counted: float32 scalar, rounds behind the counters, decayed.
    """

    fd_round: jax.Array
    fd_agreement: jax.Array
    fd_evidence: jax.Array
    fd_counters: Any
    fd_rounds_counted: jax.Array


def federated_defense(
    initial_rounds: int | jax.Array | None = 100,
    max_llr: float | jax.Array = 10.0,
    forgetting: float | jax.Array = 1.0,
    *,
    leave_own_out: bool = False,
    anchor: bool = False,
    counter_dtype: Any = None,
) -> Decoder:
    r"""The paper's decoder: a vote weighted with log-likelihood ratios.

    $\hat U_n = \operatorname{sign} \sum_m w_{m,n} Y_{m,n}$ with
    $w_{m,n} = \ln\frac{1-\hat p_{m,n}}{\hat p_{m,n}}$, where $\hat p$ is the share of
    the worker's past votes that differed from the decoded signs. For
    `initial_rounds` rounds that share is pooled over the coordinates, $\hat p_m$;
    after them every coordinate has its own. The first round is a majority vote.

    This project's semantics: an abstention (vote 0) and a decoded tie count
    neither as agreement nor as error. A pooled share of `a` in `n` votes is
    `(a + 1) / (n + 2)`; a coordinate's share is smoothed likewise towards its worker's
    pooled one. `released_code` does what the authors' code does instead. While every
    worker has a pooled weight of 0, or less than one vote
    behind it (none yet, or all forgotten), all weigh one.

    `info` has means over the coordinates. Where these have weights of their own, it is
    over a sample of 8192 of them, always the same ones, or of 512 with more than 64
    workers.

    Args:
        initial_rounds: length of the pooled phase (rounds, int scalar >= 0). None:
            pooled for ever, with state of O(M).
        max_llr: largest |weight| (nats, positive scalar).
        forgetting: factor in (0, 1] by which the past is multiplied each round
            (scalar); 1 never forgets.
        leave_own_out: not the paper's: compare a vote with what the others decide
            without it, a tie counting one half (`outcomes_against_others`).
        anchor: not the paper's: where more workers come out mostly wrong (pooled) than
            mostly right, take the opposite of all estimates: the honest are the
            majority, so that it is the decoded signs that were wrong.
        counter_dtype: dtype of the `[M, ...]` counters: int8, int16, int32 or float32.
            None: int16 where nothing is forgotten, else float32. Full integer
            counters are halved, together with their number of rounds.

    Returns:
        A `Decoder`. `weights(state)` is a tree of `[M, ...]`, or `[M]` where
        `initial_rounds` is None.

    Raises:
        ValueError: an argument is out of range, or the counters are integers while
            `forgetting` is not the number 1.

    Examples:
        >>> decoder = federated_defense(initial_rounds=None)
        >>> state = decoder.init(3, jnp.zeros(4))
        >>> votes = jnp.array([[1, 1, 1, 1], [1, 1, 1, -1], [-1, -1, -1, 1]], jnp.int8)
        >>> for _ in range(3):
        ...     decoded, state, info = decoder.decode(state, votes)
        >>> print(decoded, jnp.sign(decoder.weights(state)))
        [1 1 1 1] [ 1.  1. -1.]

    References:
        Park and Lee, [SignSGD with Federated Defense](
        https://arxiv.org/abs/2402.01340), ICML 2024.
    """
    check_flag("anchor", anchor)
    check_flag("leave_own_out", leave_own_out)
    if initial_rounds is not None:
        check_count("initial_rounds", initial_rounds, 0, unit="rounds")
    check_number("max_llr", max_llr, 1e-6, 1e6)
    check_number("forgetting", forgetting, 1e-6, 1.0)
    options = _Options(initial_rounds, max_llr, forgetting, leave_own_out, anchor)
    return _learned(options, counter_dtype)


def federated_voting(
    initial_rounds: int | jax.Array = 100,
    max_llr: float | jax.Array = 10.0,
    forgetting: float | jax.Array = 1.0,
    *,
    counter_dtype: Any = None,
) -> Decoder:
    r"""Majority vote at first, then each coordinate's own log-likelihood ratios.

    The decoder of signSGD-FV, the forerunner of federated defense, made for honest
    workers of unlike batch sizes. For `initial_rounds` rounds every vote weighs one,
    while the votes are compared with the decoded signs; then $w_{m,n} =
    \ln\frac{1-\hat p_{m,n}}{\hat p_{m,n}}$, as in `federated_defense`, with its
    smoothing and its treatment of abstentions and ties.

    Args:
        initial_rounds: length of the majority vote (rounds, int scalar >= 0).
        max_llr: largest |weight| (nats, positive scalar).
        forgetting: as in `federated_defense` (scalar in (0, 1]).
        counter_dtype: as in `federated_defense`.

    Returns:
        A `Decoder`. `weights(state)` is a tree of `[M, ...]`.

    Raises:
        ValueError: an argument is out of range, or the counters are integers while
            `forgetting` is not the number 1.

    Examples:
        >>> decoder = federated_voting(initial_rounds=2)
        >>> state = decoder.init(3, jnp.zeros(2))
        >>> votes = jnp.array([[1, 1], [1, 1], [-1, -1]], jnp.int8)
        >>> for _ in range(2):
        ...     _, state, info = decoder.decode(state, votes)
        >>> print(info.weights, jnp.sign(decoder.weights(state)[:, 0]))
        [1. 1. 1.] [ 1.  1. -1.]

    References:
        Park, Poor and Lee, [SignSGD with Federated Voting](
        https://arxiv.org/abs/2403.16372), 2024.
    """
    check_count("initial_rounds", initial_rounds, 0, unit="rounds")
    check_number("max_llr", max_llr, 1e-6, 1e6)
    check_number("forgetting", forgetting, 1e-6, 1.0)
    options = _Options(initial_rounds, max_llr, forgetting, majority_at_first=True)
    return _learned(options, counter_dtype)


class _Options(NamedTuple):
    """The arguments of both decoders."""

    initial_rounds: int | jax.Array | None
    max_llr: float | jax.Array
    forgetting: float | jax.Array
    leave_own_out: bool = False
    anchor: bool = False
    majority_at_first: bool = False

    @property
    def pooled_only(self):
        return self.initial_rounds is None


class _Evidence(NamedTuple):
    """What a worker's weights at the coordinates of one leaf are made from.

    Attributes:
        counter: `[M, ...]`, agreements minus errors.
        pooled: float32 `[M]`, the same over all coordinates, as a share.
    """

    counter: jax.Array
    pooled: jax.Array


def _is_evidence(node):
    return isinstance(node, _Evidence)


def _learned(of: _Options, counter_dtype) -> Decoder:
    """Both decoders: weights from how the votes fared in the rounds before."""
    never_forgets = isinstance(of.forgetting, int | float) and of.forgetting == 1
    if counter_dtype is None:
        counter_dtype = jnp.int16 if never_forgets else jnp.float32
    dtype = check_counter_dtype(counter_dtype, never_forgets)

    def init(num_workers, params):
        check_coordinates(params)
        return FederatedDefenseState(
            fd_round=jnp.zeros((), jnp.int32),
            fd_agreement=jnp.full((num_workers,), 0.5, jnp.float32),
            fd_evidence=jnp.zeros((num_workers,), jnp.float32),
            fd_counters=()
            if of.pooled_only
            else jax.tree.map(
                lambda leaf: jnp.zeros((num_workers, *jnp.shape(leaf)), dtype), params
            ),
            fd_rounds_counted=jnp.zeros((), jnp.float32),
        )

    @functools.partial(jax.jit, static_argnames="axis_name")
    def decode(state, votes, axis_name=None):
        largest = jnp.maximum(jnp.asarray(of.max_llr, jnp.float32), 1.0)
        if of.pooled_only:
            groups = group_leaves(votes)
            votes, weights = groups.join(votes), _pooled_weights(of, state)
            decoded, _, margin = vote_tree(
                votes, weights, largest=largest, axis_name=axis_name
            )
        else:  # The counters are larger than the votes unpacked.
            votes = packed.unpack_votes(votes)
            groups = group_leaves(votes, state.fd_counters)
            state = state._replace(fd_counters=groups.join(state.fd_counters))
            votes = groups.join(votes)
            weights, margin = _sampled_vote(of, state, votes, largest, axis_name)
            decoded = _after(margin, _decoded(of, state, votes, largest))
        if of.leave_own_out:
            outcomes, agreed, counted = outcomes_against_others(
                votes, _weights(of, state), largest=largest, axis_name=axis_name
            )
        else:
            outcomes = None
            if not of.pooled_only:
                outcomes = jax.tree.map(lambda v, sign: v * sign[None], votes, decoded)
            agreed, counted = count_agreements(votes, decoded, axis_name)
        state = _learn(of, state, outcomes, agreed, counted)
        info = DecodeInfo(weights, _mean_crossover(of, state, axis_name), margin)
        if not of.pooled_only:
            state = state._replace(fd_counters=groups.split(state.fd_counters))
        return groups.split(decoded), state, info

    needs = ""
    if of.leave_own_out and of.pooled_only:
        needs = "it takes each vote out of the tally that the vote is compared with"
    return Decoder(init, decode, functools.partial(_weights, of), needs, "nats")


def _decoded(of, state, votes, largest):
    """The signs of a vote whose weights are never all there at once."""
    num_workers, weigh = state.fd_agreement.size, _weigher(of, state)

    def visit(row):
        vote, evidence = row

        def units_of(counter):
            weights = weigh(evidence._replace(counter=counter))
            return fixed_point(weights, largest=largest, num_workers=num_workers)[0]

        units = tabulated(units_of, evidence.counter, state.fd_rounds_counted)
        return units * vote.astype(jnp.int32), ()

    pairs = zip(votes, _evidence_of(state), strict=True)
    return [jnp.sign(over_workers(visit, pair)[0]).astype(jnp.int8) for pair in pairs]


def _after(margin, decoded):
    """The same signs, once the margin is known: the counters may then change."""
    # Else XLA keeps a copy of them for the sample. It does not know that no margin is
    # negative.
    zero = (margin < 0).astype(jnp.int8)
    return [signs + zero for signs in decoded]


def _learn(of, state, outcomes, agreed, counted):
    """The state after a round in which so many votes agreed, of those counted."""
    evidence = jnp.asarray(of.forgetting, jnp.float32) * state.fd_evidence + counted
    # The share moves by the new votes' part of the evidence; with none, it stays.
    step = counted / jnp.maximum(evidence, 1)
    share = agreed / jnp.maximum(counted, 1)
    agreement = state.fd_agreement + step * (share - state.fd_agreement)
    counters, rounds = state.fd_counters, state.fd_rounds_counted
    if not of.pooled_only:
        counters, rounds = add_outcomes(counters, rounds, outcomes, of.forgetting)
    if of.anchor:
        inverted = jnp.sum(jnp.sign(agreement - 0.5)) < 0
        agreement = jnp.where(inverted, 1 - agreement, agreement)
        counters = jax.tree.map(lambda c: jnp.where(inverted, -c, c), counters)
    return FederatedDefenseState(
        fd_round=state.fd_round + 1,
        fd_agreement=agreement,
        fd_evidence=evidence,
        fd_counters=counters,
        fd_rounds_counted=rounds,
    )


def _pooled_balance(state):
    """Agreements less errors of each worker, as a share of its votes: `[M]`."""
    # Not the share of errors p: near p = 1/2 a rounding error could otherwise turn the
    # weights of all workers at once.
    evidence = state.fd_evidence
    return evidence * (2 * state.fd_agreement - 1) / (evidence + 2)


def _evidence_of(state):
    pooled = _pooled_balance(state)
    return jax.tree.map(lambda counter: _Evidence(counter, pooled), state.fd_counters)


def _crossover_from(of, state):
    """The function that makes a worker's crossovers `[...]` of its evidence."""
    rounds = state.fd_rounds_counted
    in_pooled_phase = state.fd_round < of.initial_rounds

    def crossover(evidence):
        own = evidence.counter.astype(jnp.float32) + 2 * evidence.pooled
        own = own / (rounds + 2)
        return _crossover(jnp.where(in_pooled_phase, evidence.pooled, own))

    return crossover


def _weights_from(of, state):
    """The function that makes weights of crossovers."""
    pooled = _crossover(_pooled_balance(state))
    useless = llr_weights(pooled, max_llr=of.max_llr) == 0
    ignorant = jnp.all(useless | (state.fd_evidence < 1))
    if of.majority_at_first:
        ignorant |= state.fd_round < of.initial_rounds
    return lambda p: jnp.where(ignorant, 1.0, llr_weights(p, max_llr=of.max_llr))


def _pooled_weights(of, state):
    return _weights_from(of, state)(_crossover(_pooled_balance(state)))


def _weigher(of, state):
    """The function that makes a worker's weights `[...]` of its evidence."""
    weigh, crossover = _weights_from(of, state), _crossover_from(of, state)
    return lambda evidence: weigh(crossover(evidence))


def _weights(of, state):
    if of.pooled_only:
        return _pooled_weights(of, state)
    weigh = jax.vmap(_weigher(of, state))
    return jax.tree.map(weigh, _evidence_of(state), is_leaf=_is_evidence)


def _inspected_evidence(state, axis_name):
    """Evidence on a sample of the coordinates, and which of them are there."""
    num_workers = state.fd_agreement.size
    counters, inside = inspected(state.fd_counters, num_workers, axis_name)
    return _Evidence(counters, _pooled_balance(state)), inside


def _sampled_vote(of, state, votes, largest, axis_name):
    """Mean weights `[M]`, and margin, on a sample of the coordinates."""
    rows, _ = inspected(votes, state.fd_agreement.size, axis_name)
    evidence, inside = _inspected_evidence(state, axis_name)
    weights = jax.vmap(_weigher(of, state))(evidence)
    margin = vote_tree(rows, weights, largest=largest, axis_name=axis_name).margin
    return sampled_mean(weights, inside, axis_name), margin


def _mean_crossover(of, state, axis_name):
    """The mean over a sample of the coordinates, `[M]`."""
    if of.pooled_only:
        return _crossover(_pooled_balance(state))
    evidence, inside = _inspected_evidence(state, axis_name)
    crossover = jax.vmap(_crossover_from(of, state))(evidence)
    return sampled_mean(crossover, inside, axis_name)


def _crossover(balance):
    """Probability of an error, from the probability of agreement less that."""
    # Decayed counters may exceed their decayed total in the last bit.
    return jnp.clip((1 - balance) / 2, 0, 1)

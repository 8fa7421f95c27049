"""Population defense: correlations in a committee, and agreement with it for the rest.

Shapes: `M` workers, `K` of them a committee, `N` coordinates in all. What is remembered
is `[K, M]`, and every count but a sample is taken from packed votes as they are: made
for populations of ten thousand workers and more, whose pairs are too many to look at.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from signfd_jax import packed
from signfd_jax.agreement import pair_counts, sampled_rows
from signfd_jax.checks import check_number, check_size
from signfd_jax.correlation import (
    CorrelationDefenseState,
    correlation_defense,
    error_of_mean,
    past_structure,
)
from signfd_jax.counting import outcomes_against_others
from signfd_jax.decoding import DecodeInfo, Decoder, llr_weights
from signfd_jax.evidence import positive, ramp
from signfd_jax.medians import capped_at_median, in_medians
from signfd_jax.tally import count_agreements, vote_tree

__all__ = ["PopulationDefenseState", "default_decoder", "population_defense"]

_MOST_PAIRED = 512  # workers; see `default_decoder`


# What makes a copy, by |correlation| with a member; each pair is where a factor starts
# to move from 0 and where it reaches 1.
_SLACK = 1.3  # by how much honest pairs may exceed the committee's median correlation
_COPY = (0.2, 0.5)  # beyond that, ...
_ERRORS = 4.0  # ... or from so many standard errors on
_IDENTICAL = (0.90, 0.98)  # whatever the others are like
_CHANCE = 2.0  # copies in the committee that tell nothing: oneself, and a false one


class PopulationDefenseState(NamedTuple):
    """State of `population_defense` for more workers than the committee has.

    Attributes:
        pd_committee: int32 `[K]`, its members.
        pd_committee_state: the state of the `correlation_defense` among them.
        pd_agreement: float32 `[M]`, share of each worker's votes that agreed with what
            the committee decoded.
        pd_evidence: float32 `[M]`, the number of votes behind that share, decayed.
        pd_correlation: float32 `[K, M]`, of each member's votes with each worker's, the
            mean over rounds, decayed.
        pd_weights: float32 `[M]`, weights of the last round; ones at first.
    """

    pd_committee: jax.Array
    pd_committee_state: CorrelationDefenseState
    pd_agreement: jax.Array
    pd_evidence: jax.Array
    pd_correlation: jax.Array
    pd_weights: jax.Array


def default_decoder(num_workers: int) -> Decoder:
    """The decoder to take where none is named.

    `correlation_defense` looks at all pairs of workers and at the eigenvectors of their
    matrix, whose cost grows with the cube of their number: on two CPU cores a round of
    a thousand workers takes four times as long as under `population_defense`
    (`python -m benchmarks.round`, ten workers at a time).

    Args:
        num_workers: number M of workers (Python int).

    Returns:
        `correlation_defense()` up to 512 workers, and `population_defense()` above.

    Examples:
        >>> state = default_decoder(600).init(600, jnp.zeros(3))
        >>> state.pd_committee.shape
        (128,)
    """
    few = num_workers <= _MOST_PAIRED
    return correlation_defense() if few else population_defense()


def population_defense(
    committee: int = 128,
    forgetting: float | jax.Array = 0.98,
    max_llr: float | jax.Array = 10.0,
    *,
    max_coordinates: int = 512,
    seed: int = 0,
) -> Decoder:
    r"""Weight the votes of a large population by their agreement with a committee.

    1. A committee of K workers, drawn once, decodes its own votes by
       `correlation_defense`, from the first round on and without any worker's own vote
       speaking for it.
    2. Every worker's agreement with these signs (a member's without its own vote), over
       all coordinates and with forgetting over rounds, is $\frac12 (1 + v_c v_m)$ if
       votes err independently; $v_c$, the committee's reliability, is the same for all.
    3. The global sign is turned, if by head count more workers come out wrong than
       right: the committee may by chance have a majority of liars, the population not.
    4. Copies: on a sample of coordinates every worker's votes are correlated with the
       members', the mean over rounds. Who is far more like many members than members
       are like each other is one of $\frac MK$ times as many copies, which share one
       vote.
    5. The weights are log-likelihood ratios in units of the median, mixed with equal
       ones as far as the committee's correlations do not fit the model, and clipped to
       the median |weight|.

    It does not see copies that are fewer than about $3 / K$ of the population, or that
    agree only a little more often than honest workers do: these have the weight
    that their agreement with the committee gives them, one median worker's at most. A
    population of no more than K workers is left to `correlation_defense`.

    Args:
        committee: its size K (int >= 3).
        forgetting: factor in (0, 1] by which the past is multiplied each round
            (scalar), in the committee and outside it.
        max_llr: largest |log-likelihood ratio| (nats, positive scalar).
        max_coordinates: size of the sample that copies are found in (int,
            coordinates), drawn anew each round.
        seed: seed of the key that committee and samples are drawn by (int).

    Returns:
        A `Decoder`, of packed votes too. Its weights come from this round's votes;
        `weights(state)` are those of the last round, float32 `[M]`, in units of the
        median worker's log-likelihood ratio.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> decoder = population_defense(committee=40)
        >>> truth = jax.random.rademacher(jax.random.key(0), (1000,), jnp.int8)
        >>> wrong = jax.random.bernoulli(jax.random.key(1), 0.3, (200, 1000))
        >>> liars = jnp.arange(200) < 80
        >>> votes = jnp.where(wrong != liars[:, None], -truth[None], truth[None])
        >>> state = decoder.init(200, jnp.zeros(1000))
        >>> decoded, state, info = decoder.decode(state, votes)
        >>> print((info.weights[:80] < 0).all(), (info.weights[80:] > 0).all())
        True True

    References:
        Parisi, Strino, Nadler and Kluger, [Ranking and combining multiple predictors
        without labeled data](https://arxiv.org/abs/1303.3257), PNAS 2014; Williams and
        Seeger, [Using the Nyström method to speed up kernel machines](
        https://proceedings.neurips.cc/paper/2000/hash/19de10adbaa1b2ee13f77f679fa1483a-Abstract.html),
        NIPS 2000, extend an eigenvector from a sample likewise.
    """
    check_size("seed", seed, 0)
    check_size("committee", committee, 3)
    check_number("forgetting", forgetting, 1e-6, 1.0)
    check_number("max_llr", max_llr, 1e-6, 1e6)
    check_size("max_coordinates", max_coordinates)
    inner = correlation_defense(max_llr, forgetting, seed=seed)

    def init(num_workers, params):
        if num_workers <= committee:
            return inner.init(num_workers, params)
        key = jax.random.key(seed)
        members = jax.random.choice(key, num_workers, (committee,), replace=False)
        return PopulationDefenseState(
            pd_committee=members.astype(jnp.int32),
            pd_committee_state=inner.init(committee, params),
            pd_agreement=jnp.full((num_workers,), 0.5, jnp.float32),
            pd_evidence=jnp.zeros((num_workers,), jnp.float32),
            pd_correlation=jnp.zeros((committee, num_workers), jnp.float32),
            pd_weights=jnp.ones((num_workers,), jnp.float32),
        )

    @functools.partial(jax.jit, static_argnames="axis_name")
    def decode(state, votes, axis_name=None):
        if isinstance(state, CorrelationDefenseState):
            return inner.decode(state, votes, axis_name)
        before = state.pd_committee_state
        key = jax.random.fold_in(jax.random.key(seed), before.cd_round)
        theirs = packed.take_workers(votes, state.pd_committee)
        consensus, after, _ = inner.decode(before, theirs, axis_name)
        correlation, found = past_structure(after, before.cd_weights)

        agreed, counted = count_agreements(votes, consensus, axis_name)
        # A member's own vote is in the consensus, and must not speak for itself.
        _, without, counted_without = outcomes_against_others(
            theirs, after.cd_weights, largest=1.0, axis_name=axis_name
        )
        members = state.pd_committee
        agreed = agreed.astype(jnp.float32).at[members].set(without)
        counted = counted.at[members].set(counted_without)
        state = _learn(state, agreed, counted, forgetting)
        rounds = after.cd_rounds[0]
        now = _correlations(key, votes, theirs, max_coordinates, axis_name)
        means = state.pd_correlation + (now - state.pd_correlation) / rounds
        copied = _copied(means, _typical(correlation), after, max_coordinates)
        reliability, copies = _reliability(state, copied, found)

        seen = state.pd_evidence >= 1
        llr = llr_weights((1 - reliability) / 2, max_llr=max_llr)
        weights = found.trust * in_medians(llr, seen) + (1 - found.trust)
        weights = weights / copies
        weights = capped_at_median(weights, seen)
        decoded, _, margin = vote_tree(votes, weights, largest=1.0, axis_name=axis_name)
        state = state._replace(
            pd_committee_state=after, pd_correlation=means, pd_weights=weights
        )
        return decoded, state, DecodeInfo(weights, (1 - reliability) / 2, margin)

    def weights(state):
        if isinstance(state, CorrelationDefenseState):
            return inner.weights(state)
        return state.pd_weights

    return Decoder(init, decode, weights, needs_unpacked="")


def _typical(correlation):
    """Median |correlation| of a pair of members."""
    pairs = jnp.abs(correlation)[jnp.triu_indices(correlation.shape[0], 1)]
    return jnp.median(pairs)


def _learn(state, agreed, counted, forgetting):
    """Fold one round's agreements into the shares."""
    new = counted.astype(jnp.float32)
    evidence = jnp.asarray(forgetting, jnp.float32) * state.pd_evidence + new
    share = agreed / jnp.maximum(new, 1)
    step = new / jnp.maximum(evidence, 1)
    agreement = state.pd_agreement + step * (share - state.pd_agreement)
    return state._replace(pd_agreement=agreement, pd_evidence=evidence)


def _reliability(state, copied, found):
    """Every worker's reliability $v_m$ in [-1, 1], and how many copies it has."""
    balance = 2 * state.pd_agreement - 1
    of_members = jnp.mean(jnp.abs(found.reliability))
    scale = jnp.mean(jnp.abs(balance)) / positive(of_members)
    reliability = jnp.clip(balance / jnp.clip(scale, 1e-3, 1.0), -1.0, 1.0)
    num_workers, num_members = copied.shape[0], found.copies.shape[0]
    copies = 1 + jnp.maximum(copied - _CHANCE, 0.0) * (num_workers / num_members)
    # Three standard errors make a whole head.
    heads = jnp.clip(balance * jnp.sqrt(state.pd_evidence) / 3, -1.0, 1.0)
    lead = jnp.sum(heads / copies)
    return jnp.where(lead >= 0, reliability, -reliability), copies


def _correlations(key, votes, theirs, max_coordinates, axis_name):
    """Correlations of the members with everybody in this round, of a sample."""
    members = sampled_rows(key, theirs, max_coordinates)
    everybody = sampled_rows(key, votes, max_coordinates)
    balance, pairs = pair_counts(members, everybody, axis_name)
    return balance / jnp.maximum(pairs, 1.0)


def _copied(correlation, typical, committee, max_coordinates):
    """How many members each worker is a copy of: float32 `[M]`."""
    strength = jnp.abs(correlation)
    noise = committee.cd_noise + 1 / max_coordinates
    error = error_of_mean(noise, committee.cd_rounds)
    # One round does not tell how noisy it is.
    error = jnp.where(committee.cd_round == 1, jnp.inf, error)
    start, sure = _COPY
    beyond = strength - _SLACK * typical - jnp.maximum(start, _ERRORS * error)
    likely = ramp(beyond, (0.0, sure - start))
    identical = ramp(strength, _IDENTICAL)
    return jnp.sum(jnp.maximum(likely, identical), axis=0)

r"""Correlation defense, the default decoder: who votes like whom says who lies.

Shapes: `M` workers, `K` of them a committee (all of them, up to 64), `N` coordinates.
The premise is that more than half of the workers are honest. Three laws follow.

1. *Safety.* No |weight| exceeds 1. So where every honest worker weighs 1, a coordinate
   is decoded right if the honest votes sum to more than the number L of liars.
   Proof: the liars' weighted votes sum to L at most in absolute value.
2. *Equivariance.* Permuted workers have permuted weights; who is absent changes nobody
   else's weight. Who sends the negative of its votes from the start has the negative
   weight, where the confidence is 1 before and after.
3. *In doubt a majority vote.* Where the confidence has always been 0 every worker
   weighs 1, but for exact duplicates, a minority, which share one vote or less (two
   keep theirs). For want of signal alone, who was surely wrong is read backwards still.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from signfd_jax._checks import check_count, check_flag, check_number, check_size
from signfd_jax.decoders._judge import judge
from signfd_jax.decoders._known import KNOWN, as_stakes, heaviness
from signfd_jax.decoders._pairs import (
    batches_shared,
    noise_of_a_round,
    pair_counts,
    sample_size,
    sampled_vote,
    sampled_votes,
)
from signfd_jax.decoders._trust import learn_from_trusted, trust
from signfd_jax.decoders._verdicts import VerdictState, first_verdicts, next_verdicts
from signfd_jax.decoders.base import DecodeInfo, Decoder
from signfd_jax.signs._tally import vote_tree

__all__ = ["CorrelationDefenseState", "Thresholds", "correlation_defense"]


class Thresholds(NamedTuple):
    """The constants of `correlation_defense`.

    What is called a start counts nothing up to the value and fully from twice it on,
    with a line between. `python -m benchmarks.ablate` measures what each saves.

    Attributes:
        forgetting: float scalar in (0, 1], factor on the past each round: .98 is a mean
            over about 50 rounds. It trades noise against how soon a turncoat is found.
        majority: float scalar, start in standard errors of the confidence: what more
            than half of the workers must reach. Signs fitted to chance reach about 2.
        significant: float scalar, start in standard errors of a worker's polarity, and
            of a correlation that counts.
        duplicate: float scalar, start as a correlation of what two workers are more
            alike than their reliabilities explain.
        slack: float scalar, by which factor honest pairs may exceed that explanation.
        exact: float scalar, up to which distance of |correlation| from 1 two workers
            send the same; from twice it on they do not.
        alike: float scalar, the same for a majority that holds an honest worker.
    """

    forgetting: float | jax.Array = 0.98
    majority: float | jax.Array = 5.0
    significant: float | jax.Array = 2.0
    duplicate: float | jax.Array = 0.12
    slack: float | jax.Array = 1.3
    exact: float | jax.Array = 0.01
    alike: float | jax.Array = 0.15


class CorrelationDefenseState(NamedTuple):
    """State of `correlation_defense`.

    Attributes:
        cd_round: int32 scalar, rounds decoded so far.
        cd_committee: int32 `[K]`, the workers that all are correlated with.
        cd_mean: float32 `[K, M]`, mean correlation over the rounds in which both voted.
        cd_strength: float32 `[K, M]`, the same of the absolute correlation.
        cd_rounds: float32 `[K, M]`, how many rounds these means are of, decayed.
        cd_noise: float32 scalar, variance of one round's correlation.
        cd_shared: float32 scalar in [0, 1], whether workers seem to share batches.
        cd_caught: float32 `[M]` in [0, 1], who was wrong when that was last sure.
        cd_weights: float32 `[M]`, weights of the last round; ones at first.
        cd_root_mean: float32 `[M]`, mean correlation with the trusted workers.
        cd_root_rounds: float32 `[M]`, how many rounds that is of, decayed.
        cd_verdict: `VerdictState`, what `verdicts` tells.
    """

    cd_round: jax.Array
    cd_committee: jax.Array
    cd_mean: jax.Array
    cd_strength: jax.Array
    cd_rounds: jax.Array
    cd_noise: jax.Array
    cd_shared: jax.Array
    cd_caught: jax.Array
    cd_weights: jax.Array
    cd_root_mean: jax.Array
    cd_root_rounds: jax.Array
    cd_verdict: VerdictState


def correlation_defense(
    thresholds: Thresholds | None = None,
    *,
    committee: int = 64,
    sample: int | None = None,
    shared_batches: bool = False,
    seed: int | jax.Array = 0,
) -> Decoder:
    r"""Read votes as they are or negated, as their correlations say.

    Every worker has one vote until its correlations prove it wrong. With $S_{jk}$ the
    mean over rounds of $\sum_n Y_{j,n} Y_{k,n} / \sum_n |Y_{j,n} Y_{k,n}|$ over a
    sample of the coordinates, and $e_{jk}$ its standard error:

    1. Worker j has $d_j$ duplicates: workers more alike with it than the reliabilities
       of both explain ($t_j t_k / \operatorname{median} t$, where $t_j$ is the
       |correlation| that j exceeds with half of the others). It counts as
       $h_j = 1 / (1 + d_j)$ effective workers.
    2. The leading eigenvector of the significant signs of S, weighted by h, splits the
       workers into two sides $x_k = \pm 1$.
    3. $c_j$ is the mean of $S_{jk} x_k$ over the others but its duplicates, weighted by
       their rounds: who sends what j sends says nothing of j. $s_j$ is its standard
       error, from the noise and the spread within the sides.
       $\tau_j$ is the least of $c_j / s_j$ and $\sqrt 2$ times the same with each side
       alone, which is half of the evidence. The side of more workers is right.
    4. The confidence $\alpha$ is how far $\tau_j$ exceeds `majority` for more than half
       of the workers, and for more than half of the effective ones.
    5. $w_j = \alpha h_j^2 u_j + (1 - \alpha) v_j$. Here $u_j$ is -1 if $c_j / s_j$ is
       significantly negative, else 1. $v_j$ is $1 / \max(1, d'_j)^2$, where $d'_j$ is
       the number of workers that send exactly what j sends if these are a minority,
       else 0. It is $-h_j^2$ for one that was wrong when $\alpha$ was last near 1, if
       $|S|$ has come down to the noise since.

    What is known beforehand is said in every call (`uses`). *Stakes* are how many
    workers each counts as wherever workers are counted, $h_j$ aside. *Stakes* and
    *shares* multiply the weights. None counts as more than half of all others together,
    so nobody decides alone. Only ratios matter.

    Where some worker is *trusted*, steps 2 to 5 give way: $c_j$ is the mean of $S_{j0}$
    with the trusted workers' majority vote and of $S_{jk} c_k / \max c$ over who
    correlates with it significantly, and $w_j = h_j^2 c_j / \max |c|$, where $h_j$
    counts only workers that send the same. Who may be as good as the best within two
    standard errors weighs as much, who may be chance weighs nothing, and a trusted
    worker weighs 1. No majority is needed: `theory.trusted_error_bound`.

    Workers of one batch send the same, as colluders do. So $d'_j$ is 0 once more than
    half of the workers have an exact duplicate (so an honest one has), or there are two
    groups of them; and always with `shared_batches=True`. Then duplicates do speak for
    each other in step 3, for an honest worker may have no other to speak for it.

    *Consistency.* Where the workers err independently, `theory.samples_to_tell_sides`
    rounds times coordinates tell the two sides; its docstring has the proof.

    Args:
        thresholds: its constants; None: `Thresholds()`. They may be traced.
        committee: number K of workers (int >= 3) that all are correlated with, drawn by
            the seed, if there are more than so many; else all are.
        sample: number of coordinates (int) that correlations are counted on, drawn anew
            each round; None: 8192, or 512 with a committee.
        shared_batches: whether some workers are known to have the same batches.
        seed: of the key that committee and sample are drawn by (int, or an int32 scalar
            that may be traced).

    Returns:
        A `Decoder`, of packed votes too. Its weights come from this round's votes;
        `weights(state)` are those of the last round, float32 `[M]`, in [-1, 1].

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> decoder = correlation_defense()
        >>> truth = jax.random.rademacher(jax.random.key(0), (1000,), jnp.int8)
        >>> wrong = jax.random.bernoulli(jax.random.key(1), 0.2, (7, 1000))
        >>> votes = jnp.where(wrong, -truth[None], truth[None])
        >>> votes = votes * jnp.array([1, 1, 1, 1, -1, -1, -1], jnp.int8)[:, None]
        >>> state = decoder.init(7, jnp.zeros(1000))
        >>> decoded, state, info = decoder.decode(state, votes)
        >>> print(info.weights, (decoded == truth).mean().round(1))
        [ 1.  1.  1.  1. -1. -1. -1.] 1.0

    References:
        Parisi et al., [PNAS 2014](https://arxiv.org/abs/1303.3257); Jaffe et al.,
        [AISTATS 2016](https://arxiv.org/abs/1510.05830).
    """
    thresholds = Thresholds() if thresholds is None else thresholds
    if not isinstance(thresholds, Thresholds):
        raise ValueError(f"thresholds must be a Thresholds(...), but is {thresholds!r}")
    for name, value in thresholds._asdict().items():
        check_number(name, value, 1e-9, 1.0 if name == "forgetting" else 1e9)
    check_size("committee", committee, 3)
    if sample is not None:
        check_size("sample", sample)
    check_flag("shared_batches", shared_batches)
    check_count("seed", seed, 0)

    def init(num_workers, params):
        del params
        members = jnp.arange(num_workers, dtype=jnp.int32)
        if num_workers > committee:
            members = jax.random.permutation(jax.random.key(seed), members)[:committee]
        matrix = (members.shape[0], num_workers)
        return CorrelationDefenseState(
            cd_round=jnp.zeros((), jnp.int32),
            cd_committee=members,
            # Arrays of their own, so that the state can be donated.
            cd_mean=jnp.zeros(matrix, jnp.float32),
            cd_strength=jnp.zeros(matrix, jnp.float32),
            cd_rounds=jnp.zeros(matrix, jnp.float32),
            cd_noise=jnp.zeros((), jnp.float32),
            cd_shared=jnp.full((), float(shared_batches), jnp.float32),
            cd_caught=jnp.zeros((num_workers,), jnp.float32),
            cd_weights=jnp.ones((num_workers,), jnp.float32),
            cd_root_mean=jnp.zeros((num_workers,), jnp.float32),
            cd_root_rounds=jnp.zeros((num_workers,), jnp.float32),
            cd_verdict=first_verdicts(num_workers),
        )

    @functools.partial(jax.jit, static_argnames="axis_name")
    def decode(state, votes, axis_name=None, *, trusted=None, stakes=None, shares=None):
        members = state.cd_committee
        everybody = members.shape == state.cd_weights.shape
        size = sample_size(everybody, sample)
        key = jax.random.fold_in(jax.random.key(seed), state.cd_round)
        rows = sampled_votes(key, votes, size, axis_name)
        counts = pair_counts(rows if everybody else rows[members], rows, axis_name)
        state, here, seen = _learn(thresholds, state, *counts)
        held = None if stakes is None else as_stakes(stakes, seen)
        said = judge(thresholds, state, seen, held)
        if trusted is not None:
            state = learn_from_trusted(
                thresholds.forgetting, state, rows, trusted, axis_name
            )
            said = trust(thresholds, state, said, trusted, seen)
        heavy = heaviness(rows.shape[0], stakes, shares)
        weights = said.weights if heavy is None else heavy * said.weights
        decoded = vote_tree(votes, weights, largest=1.0, axis_name=axis_name).decoded
        state = state._replace(cd_caught=said.caught, cd_weights=weights)
        info = DecodeInfo(
            weights=weights,
            crossover=(1 - said.reliability) / 2,
            margin=sampled_vote(rows, weights, axis_name)[1],
            confidence=said.confidence,
            polarity=said.polarity,
            duplicates=said.copied,
        )
        verdict = next_verdicts(thresholds, state, said, here)
        return decoded, state._replace(cd_verdict=verdict), info

    return Decoder(
        init,
        decode,
        weights=lambda state: state.cd_weights,
        needs_unpacked="",
        uses=KNOWN,
    )


def _learn(of, state, balance, pairs):
    """The state after a round's counts, who voted in it, and who ever has, `[M]`."""
    members = state.cd_committee
    workers = jnp.arange(pairs.shape[1], dtype=jnp.int32)
    voted = (pairs > 0) & (members[:, None] != workers[None])
    known = voted & (state.cd_rounds > 0)
    now = balance / jnp.maximum(pairs, 1.0)
    rounds = of.forgetting * state.cd_rounds + voted.astype(jnp.float32)
    step = jnp.where(voted, 1 / jnp.maximum(rounds, 1.0), 0.0)
    here = jnp.any(pairs > 0, axis=0)
    seen = here | jnp.any(rounds > 0, axis=0)
    shared = batches_shared(of.exact, members, now, voted, here)
    state = state._replace(
        cd_round=state.cd_round + 1,
        cd_mean=state.cd_mean + step * (now - state.cd_mean),
        cd_strength=state.cd_strength + step * (jnp.abs(now) - state.cd_strength),
        cd_rounds=rounds,
        cd_noise=noise_of_a_round(state, voted, known, jnp.abs(now), pairs),
        cd_shared=jnp.maximum(state.cd_shared, shared),
    )
    return state, here, seen

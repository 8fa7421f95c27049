r"""An attack that looks for the server's weak spot while the server learns.

Shapes: `M` workers, `N` coordinates in all, `K` candidates of `P` parameters each;
gradients are trees of `[M, ...]`. A *family* is a function from parameters, float32
`[P]`, to an `Attack` on gradients or votes. `OPPOSITIONS` is the default table of
candidates: noise fraction, duty cycle and margin budget of `disguised_opposition`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from signfd_jax._checks import (
    check_callable,
    check_count,
    check_kind,
    check_number,
)
from signfd_jax.attacks._observations import (
    finite,
    observed_workers,
    sampled_coordinates,
    smallest_share,
    sum_workers,
    weighted_tally,
)
from signfd_jax.attacks.base import (
    Attack,
    AttackContext,
    replace_rows,
    split_like,
)
from signfd_jax.signs import sign_error, votes

__all__ = [
    "OPPOSITIONS",
    "AdaptiveState",
    "adaptive",
    "disguised_opposition",
    "tuned",
]

OPPOSITIONS = tuple(
    (noise, duty, budget)
    for duty in (1.0, 0.5)
    for budget in (1.0, 0.5, 0.25, 0.1)
    for noise in (0.0, 0.15, 0.4)
)


def disguised_opposition(
    noise: float | jax.Array = 0.0,
    duty: float | jax.Array = 1.0,
    budget: float | jax.Array = 1.0,
) -> Attack:
    """Oppose the honest majority, hidden in three ways.

    In a share `duty` of the rounds, evenly spread, the attackers vote against the
    majority of the honest on the share `budget` of the coordinates where that majority
    is smallest; of these votes each attacker replaces a random share `noise` by its own
    honest vote. In all else it votes honestly. All three are traced: at (0, 1, 1) this
    is `majority_opposition`, `noise` makes it near-duplicate collusion, `duty` an
    on-off attack and `budget` a budgeted swing.

    Args:
        noise: probability in [0, 1] of voting honestly after all (scalar).
        duty: share in [0, 1] of the rounds (scalar).
        budget: share in [0, 1] of the coordinates with a majority (scalar).

    Returns:
        An `Attack` on votes.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> attack = disguised_opposition()
        >>> gradients = jnp.array([[1.0, 4.0], [3.0, 8.0], [-9.0, 9.0]])
        >>> byzantine, key = jnp.array([False, False, True]), jax.random.key(0)
        >>> from signfd_jax.attacks import AttackContext
        >>> context = AttackContext(jnp.int32(0), None)
        >>> sent, _ = attack.apply(key, gradients, byzantine, context, ())
        >>> print(sent[2])
        [-1. -1.]

    References:
        This project.
    """
    for name, share in (("noise", noise), ("duty", duty), ("budget", budget)):
        check_number(name, share, 0, 1)

    def apply(key, values, byzantine, context, state):
        narrow_key, noise_key = jax.random.split(key)
        tally = weighted_tally(values, observed_workers(byzantine))
        margin = jax.tree.map(jnp.abs, tally)
        narrow = smallest_share(narrow_key, margin, budget)
        # Active where the number of active rounds so far steps to the next integer.
        rounds = context.round.astype(jnp.float32)
        share = jnp.asarray(duty, jnp.float32)
        active = jnp.floor((rounds + 1) * share) > jnp.floor(rounds * share)

        share_hidden = jnp.asarray(noise, jnp.float32)

        def oppose(k, own, tally, narrow):
            hidden = jax.random.bernoulli(k, share_hidden, own.shape)
            lie = active & narrow[None] & ~hidden
            return jnp.where(lie, -jnp.sign(tally)[None], own.astype(jnp.float32))

        keys = split_like(noise_key, values)
        sent = jax.tree.map(oppose, keys, votes(values), tally, narrow)
        return replace_rows(byzantine, sent, values), state

    return Attack(lambda num_workers, params: (), apply, "vote", False)


class AdaptiveState(NamedTuple):
    """What the attackers of `adaptive` remember.

    Attributes:
        adaptive_scores: float32 `[K]`, the sign error that each candidate promised when
            it was last tried; -1 where it was not tried yet.
        adaptive_best: int32 scalar, the candidate in use.
        adaptive_cursor: int32 scalar, the candidate that is tried next.
        adaptive_decoder_state: state of the attackers' own copy of the decoder, which
            has seen the sampled coordinates of all rounds so far.
        adaptive_family_state: state of the family's attack.
    """

    adaptive_scores: jax.Array
    adaptive_best: jax.Array
    adaptive_cursor: jax.Array
    adaptive_decoder_state: Any
    adaptive_family_state: Any


def adaptive(
    decoder,
    family: Callable[[jax.Array], Attack] | None = None,
    candidates=OPPOSITIONS,
    *,
    trials: int = 3,
    horizon: int = 4,
    sample: int | None = 4096,
    seed: int | jax.Array = 0,
) -> Attack:
    """Search for the parameters that make this very decoder err most, as it learns.

    The attackers run their own copy of the decoder on a fixed sample of the
    coordinates: it sees the votes of every round, as the server does, and so has
    learned what the server has learned. Each round they try the parameters in use and
    the next `trials` candidates on the honest gradients of the round, and go on with
    the candidate of the best score so far. To try a candidate is to play `horizon`
    rounds of its attack against the copy; its score is the share of the signs of the
    honest mean that were decoded otherwise. So an attack that pays at once but costs
    its weight is seen through.

    The search needs nothing of the server: applied to one that runs another decoder, it
    goes on optimising against `decoder`. To carry fixed parameters, found against one
    decoder, to others, use `tuned`. The copy counts ternary votes of workers who are
    all present, whatever the wire and the membership.

    Args:
        decoder: the `Decoder` to defeat.
        family: parameters `[P]` -> `Attack` on gradients or votes; None:
            `disguised_opposition`. For ALIE with a searched z give
            `lambda p: alie(p[0])` and a column of candidates.
        candidates: float `[K, P]`, or nested tuples.
        trials: candidates tried in a round beside the one in use (int >= 1); a round
            costs `(trials + 1) * horizon` decodings of `sample` coordinates.
        horizon: rounds that a trial lasts (int >= 1).
        sample: about how many coordinates to try on (int), or None for all.
        seed: the sample is drawn from it (int, or an integer scalar that may be
            traced).

    Returns:
        An `Attack` with the entry of the family.

    Raises:
        ValueError: an argument is out of range, or the family enters at the data.

    Examples:
        >>> from signfd_jax.decoders import majority_vote
        >>> attack = adaptive(majority_vote())
        >>> gradients = jnp.ones((5, 100)) * jnp.array([[1], [1], [1.0], [-1.0], [1.0]])
        >>> byzantine, key = jnp.arange(5) < 2, jax.random.key(0)
        >>> context = AttackContext(jnp.int32(0), None)
        >>> state = attack.init(5, jnp.zeros(100))
        >>> sent, state = attack.apply(key, gradients, byzantine, context, state)
        >>> print(jnp.sign(sent.sum(axis=0)).mean())
        -1.0

    References:
        This project.
    """
    if family is None:
        family = lambda p: disguised_opposition(p[0], p[1], p[2])  # noqa: E731
    check_kind(
        "decoder", decoder, ("init", "decode"), "federated_defense() or the like"
    )
    check_callable("family", family, "candidate [P] -> Attack")
    check_count("seed", seed, 0)
    check_count("trials", trials, 1)
    check_count("horizon", horizon, 1, unit="rounds")
    if sample is not None:
        check_count("sample", sample, 1, unit="coordinates")
    table = _table(candidates)
    prototype = family(table[0])
    if prototype.entry == "data":
        raise ValueError(
            "the family enters at the data, but a trial begins with the gradients; "
            "give a family of attacks on gradients or votes"
        )
    trials = min(trials, len(table))

    def init(num_workers, params):
        sampled = _sampled(params, sample, seed)
        return AdaptiveState(
            adaptive_scores=jnp.full((len(table),), -1.0, jnp.float32),
            adaptive_best=jnp.zeros((), jnp.int32),
            adaptive_cursor=jnp.zeros((), jnp.int32),
            adaptive_decoder_state=decoder.init(num_workers, sampled),
            adaptive_family_state=prototype.init(num_workers, params),
        )

    def apply(key, values, byzantine, context, state):
        trial_key, send_key = jax.random.split(key)
        copy = context._replace(decoder_state=state.adaptive_decoder_state)
        gradients = jax.vmap(lambda g: _sampled(g, sample, seed))(values)
        truth = _honest_sign(gradients, byzantine)

        def score(candidate):
            given = trial_key, gradients, byzantine, truth
            return _play(family(table[candidate]), decoder, given, copy, horizon)

        steps = jnp.arange(trials, dtype=jnp.int32)
        next_ones = (state.adaptive_cursor + steps) % len(table)
        tried = jnp.append(next_ones, state.adaptive_best).astype(jnp.int32)
        scores = state.adaptive_scores.at[tried].set(jax.lax.map(score, tried))
        best = jnp.argmax(scores).astype(jnp.int32)
        sent, family_state = family(table[best]).apply(
            send_key, values, byzantine, context, state.adaptive_family_state
        )
        sampled_votes = votes(jax.vmap(lambda g: _sampled(g, sample, seed))(sent))
        _, decoder_state, _ = decoder.decode(copy.decoder_state, sampled_votes)
        cursor = (state.adaptive_cursor + trials) % len(table)
        return sent, AdaptiveState(scores, best, cursor, decoder_state, family_state)

    return Attack(init, apply, prototype.entry, False)


def tuned(
    family: Callable[[jax.Array], Attack],
    candidates,
    damage: Callable[[Attack], jax.Array],
) -> tuple[Attack, jax.Array]:
    """Choose the parameters that do most damage, and return the fixed attack.

    Unlike `adaptive`, the attack knows no decoder and can be applied to any.

    Args:
        family: parameters `[P]` -> `Attack`.
        candidates: float `[K, P]`, or nested tuples.
        damage: `Attack` -> float scalar: how much it hurts, such as the mean
            `sign_error` of a short run against the decoder to tune for. It is traced
            once, and called for one candidate after the other.

    Returns:
        The attack with the best parameters, and the damage of all candidates, float
        `[K]`.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> from signfd_jax.attacks.basic import scaling
        >>> gradients, byzantine = jnp.ones((3, 4)), jnp.arange(3) < 2
        >>> def damage(attack):
        ...     key = jax.random.key(0)
        ...     sent, _ = attack.apply(key, gradients, byzantine, None, ())
        ...     return -jnp.sum(sent)
        >>> attack, damages = tuned(lambda p: scaling(p[0]), [[1.0], [-2.0]], damage)
        >>> print(damages)
        [-12.  12.]
    """
    check_callable("family", family, "candidate [P] -> Attack")
    check_callable("damage", damage, "Attack -> scalar")
    table = _table(candidates)
    damages = jax.jit(lambda t: jax.lax.map(lambda p: damage(family(p)), t))(table)
    return family(table[jnp.argmax(damages)]), damages


def _play(attack, decoder, given, context, horizon):
    """Mean sign error of the decoder over some rounds of the attack."""
    key, gradients, byzantine, truth = given
    params = jax.tree.map(lambda v: jnp.zeros(v.shape[1:], v.dtype), gradients)

    def one_round(carry, step):
        decoder_state, attack_state = carry
        sent, attack_state = attack.apply(
            jax.random.fold_in(key, step),
            gradients,
            byzantine,
            AttackContext(context.round + step, decoder_state),
            attack_state,
        )
        decoded, decoder_state, _ = decoder.decode(decoder_state, votes(sent))
        # Where there is no honest sign, no candidate does any harm.
        error = jnp.nan_to_num(sign_error(decoded, truth))
        return (decoder_state, attack_state), error

    start = context.decoder_state, attack.init(byzantine.shape[0], params)
    steps = jnp.arange(horizon, dtype=jnp.int32)
    return jnp.mean(jax.lax.scan(one_round, start, steps)[1])


def _honest_sign(gradients, byzantine):
    """Sign of the mean of the honest gradients."""
    observed = observed_workers(byzantine)
    return jax.tree.map(
        lambda g: jnp.sign(sum_workers(finite, g, observed)).astype(jnp.int8), gradients
    )


def _sampled(params, sample, seed):
    """The sampled coordinates of every leaf `[...]`, as `[k]`."""
    leaves, treedef = jax.tree.flatten(params)
    indices = sampled_coordinates(jax.random.key(seed), leaves, sample)
    return treedef.unflatten(
        [leaf.reshape(-1)[index] for leaf, index in zip(leaves, indices, strict=True)]
    )


def _table(candidates):
    table = jnp.asarray(candidates, jnp.float32)
    if table.ndim != 2 or len(table) == 0:
        raise ValueError(
            f"candidates must be a table [K, P], K >= 1, but has shape {table.shape}"
        )
    return table

r"""Attacks aimed at what the server has learned: earn weight, then spend it.

Shapes: `M` workers; gradients are trees of `[M, ...]`. Most take another attack and
change when, where or how exactly it is carried out; they enter where that one enters.
"""

import jax
import jax.numpy as jnp

from signfd_jax._checks import check_count, check_kind, check_number
from signfd_jax.attacks._observations import (
    honest_majority,
    observed_workers,
    server_weights,
    smallest_share,
    sum_workers,
    weight_rows,
    weighted_tally,
)
from signfd_jax.attacks.base import Attack, replace_rows, split_like
from signfd_jax.attacks.basic import sign_inversion
from signfd_jax.attacks.colluding import majority_opposition, random_collusion
from signfd_jax.signs import votes

__all__ = [
    "coordinate_specialist",
    "near_duplicate_collusion",
    "on_off",
    "sleeper",
    "warm_up_capture",
    "weight_aware",
]


def sleeper(start_round: int | jax.Array = 200, then: Attack | None = None) -> Attack:
    """Honest for some rounds, another attack from then on.

    A decoder that never forgets needs about as many bad rounds as it saw good ones.

    Args:
        start_round: first round of the attack (int scalar, may be traced).
        then: the attack; None: `sign_inversion()`.

    Returns:
        An `Attack` with the entry, rows and state of `then`, whose state stands still
        while it sleeps.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> attack = sleeper(start_round=5)
        >>> byzantine, key = jnp.array([True]), jax.random.key(0)
        >>> from signfd_jax.attacks import AttackContext
        >>> for round in (4, 5):
        ...     context = AttackContext(jnp.int32(round), None)
        ...     print(attack.apply(key, jnp.ones((1, 2)), byzantine, context, ())[0])
        [[1. 1.]]
        [[-1. -1.]]

    References:
        This project.
    """
    check_count("start_round", start_round, 0, unit="rounds")
    then = sign_inversion() if then is None else then
    return _scheduled(then, lambda round: round >= _rounds(start_round))


def on_off(
    period: int | jax.Array = 20,
    duty: float | jax.Array = 0.5,
    attack: Attack | None = None,
) -> Attack:
    """Honest and hostile by turns, to keep the estimates between the two.

    Every period begins honestly; its last rounds are hostile. A decoder with forgetting
    factor f remembers some 1 / (1 - f) rounds: periods much longer than that let it
    forget the lies.

    Args:
        period: rounds in one cycle (int scalar >= 1, may be traced).
        duty: share in [0, 1] of the rounds of a cycle that are hostile (scalar).
        attack: what happens then; None: `sign_inversion()`.

    Returns:
        An `Attack` with the entry, rows and state of `attack`, whose state stands still
        in honest rounds.

    Raises:
        ValueError: `period` or `duty` is a Python number out of range.

    Examples:
        >>> attack = on_off(period=4, duty=0.25)
        >>> byzantine, key = jnp.array([True]), jax.random.key(0)
        >>> from signfd_jax.attacks import AttackContext
        >>> for round in (2, 3, 4):
        ...     context = AttackContext(jnp.int32(round), None)
        ...     print(attack.apply(key, jnp.ones((1, 1)), byzantine, context, ())[0])
        [[1.]]
        [[-1.]]
        [[1.]]

    References:
        This project.
    """
    check_count("period", period, 1, unit="rounds")
    check_number("duty", duty, 0, 1)
    attack = sign_inversion() if attack is None else attack

    def hostile(round):
        length = jnp.asarray(period, jnp.int32)
        honest_share = 1 - jnp.asarray(duty, jnp.float32)
        phase = round % length
        return phase.astype(jnp.float32) >= honest_share * length.astype(jnp.float32)

    return _scheduled(attack, hostile)


def warm_up_capture(
    capture_rounds: int | jax.Array = 100, then: Attack | None = None
) -> Attack:
    """More honest than the honest while the server learns, then another attack.

    During the warm-up all send the majority of the honest votes. Their votes agree with
    the decoded signs more often than any honest worker's, so that a decoder of pooled
    or frozen estimates gives them the largest weights.

    Args:
        capture_rounds: length of the warm-up (int scalar, may be traced); the decoder's
            initial phase.
        then: the attack on gradients or votes that follows; None:
            `majority_opposition()`.

    Returns:
        An `Attack` with the entry and state of `then`.

    Raises:
        ValueError: `then` enters at the data.

    Examples:
        >>> attack = warm_up_capture(capture_rounds=5)
        >>> gradients = jnp.array([[1.0, 4.0], [3.0, -8.0], [-9.0, -9.0]])
        >>> byzantine, key = jnp.array([False, True, True]), jax.random.key(0)
        >>> from signfd_jax.attacks import AttackContext
        >>> for round in (4, 5):
        ...     context = AttackContext(jnp.int32(round), None)
        ...     print(attack.apply(key, gradients, byzantine, context, ())[0][2])
        [1. 1.]
        [-1. -1.]

    References:
        This project.
    """
    check_count("capture_rounds", capture_rounds, 0, unit="rounds")
    then = majority_opposition() if then is None else then
    _refuse_data("warm_up_capture", then)

    def apply(key, values, byzantine, context, state):
        def flatter():
            majority = honest_majority(values, byzantine)
            sent = jax.tree.map(lambda sign: sign[None], majority)
            return replace_rows(byzantine, sent, values), state

        return jax.lax.cond(
            context.round < _rounds(capture_rounds),
            flatter,
            lambda: then.apply(key, values, byzantine, context, state),
        )

    return Attack(then.init, apply, then.entry, False)


def coordinate_specialist(
    share: float | jax.Array = 0.1,
    start_round: int | jax.Array = 100,
    then: Attack | None = None,
    *,
    seed: int | jax.Array = 0,
) -> Attack:
    """After the initial phase, lie on some coordinates only, always the same.

    Pooled over the coordinates, such a worker looks nearly honest.

    Args:
        share: probability in [0, 1] of a coordinate to be attacked (scalar).
        start_round: first round of the attack (int scalar, may be traced).
        then: the attack on gradients or votes that is carried out there; None:
            `majority_opposition()`.
        seed: the coordinates are drawn from it, the same for all workers and rounds
            (int, or an integer scalar that may be traced).

    Returns:
        An `Attack` with the entry, rows and state of `then`.

    Raises:
        ValueError: `share` is a Python number outside [0, 1], or `then` enters at the
            data.

    Examples:
        >>> attack = coordinate_specialist(0.25, start_round=0)
        >>> gradients = jnp.ones((2, 1000))
        >>> byzantine, key = jnp.array([False, True]), jax.random.key(0)
        >>> from signfd_jax.attacks import AttackContext
        >>> context = AttackContext(jnp.int32(0), None)
        >>> sent, _ = attack.apply(key, gradients, byzantine, context, ())
        >>> print(jnp.mean(sent[1] < 0).round(1))
        0.3

    References:
        This project.
    """
    check_count("seed", seed, 0)
    check_count("start_round", start_round, 0, unit="rounds")
    check_number("share", share, 0, 1)
    then = majority_opposition() if then is None else then
    _refuse_data("coordinate_specialist", then)

    def apply(key, values, byzantine, context, state):
        attacked, state = then.apply(key, values, byzantine, context, state)

        probability = jnp.asarray(share, jnp.float32)

        def where(k, theirs, own):
            chosen = jax.random.bernoulli(k, probability, (1, *own.shape[1:]))
            honest = votes(own).astype(own.dtype) if then.entry == "vote" else own
            return jnp.where(chosen, theirs, honest)

        keys = split_like(jax.random.key(seed), values)
        sent = jax.tree.map(where, keys, attacked, values)
        return replace_rows(byzantine, sent, values), state

    return _scheduled(
        Attack(then.init, apply, then.entry, then.row_wise),
        lambda round: round >= _rounds(start_round),
    )


def near_duplicate_collusion(
    noise: float | jax.Array = 0.1, attack: Attack | None = None
) -> Attack:
    r"""Collusion hidden under noise: every colluder flips its own share of the votes.

    Two colluders who would send the same votes correlate by $(1 - 2\epsilon)^2$ after
    each has flipped a random share $\epsilon$: .64 at .1, under a threshold for
    duplicates of .7.

    Args:
        noise: $\epsilon$, probability in [0, 1] of a flip (scalar, may be traced).
        attack: the attack on gradients or votes that they have in common; None:
            `random_collusion()`.

    Returns:
        An `Attack` with the entry and state of `attack`.

    Raises:
        ValueError: `noise` is a Python number outside [0, 1], or `attack` enters at the
            data.

    Examples:
        >>> attack = near_duplicate_collusion(0.1)
        >>> byzantine, key = jnp.array([True, True]), jax.random.key(0)
        >>> sent, _ = attack.apply(key, jnp.zeros((2, 10_000)), byzantine, None, ())
        >>> print(jnp.mean(sent[0] * sent[1]).round(1))
        0.6

    References:
        This project.
    """
    check_number("noise", noise, 0, 1)
    attack = random_collusion() if attack is None else attack
    _refuse_data("near_duplicate_collusion", attack)

    def apply(key, values, byzantine, context, state):
        attack_key, noise_key = jax.random.split(key)
        common, state = attack.apply(attack_key, values, byzantine, context, state)

        share = jnp.asarray(noise, jnp.float32)

        def flip(k, sent):
            flipped = jax.random.bernoulli(k, share, sent.shape)
            return jnp.where(flipped, -sent, sent)

        sent = jax.tree.map(flip, split_like(noise_key, common), common)
        return replace_rows(byzantine, sent, values), state

    return Attack(attack.init, apply, attack.entry, attack.row_wise)


def weight_aware(decoder=None, crossover: float | jax.Array = 0.45) -> Attack:
    r"""Swing as much as the server's trust allows, and behave when it is gone.

    With the weights w that the server has now, $T_n$ the weighted tally of the honest
    votes and $A_n$ the positive weight of all attackers, those of positive weight vote
    $-\operatorname{sign} T_n$ where $0 < |T_n| < A_n$ and n is among the share
    `crossover` of smallest $|T_n|$. Everywhere else, and wherever its weight is not
    positive, an attacker votes $\operatorname{sign} T_n$, more honestly than the
    honest. It thus disagrees with the honest decision on at most `crossover` of the
    coordinates, so that its estimated p stays below 1/2 and its weight positive.

    Args:
        decoder: the `Decoder` that the server runs (`knowledge.server_weights`). None:
            they count heads.
        crossover: the largest share in [0, 1/2] of disagreement that it allows itself
            (scalar, may be traced); held within about .01. At 1/2 chance decides
            whether it keeps its weight.

    Returns:
        An `Attack` on votes.

    Raises:
        ValueError: `crossover` is a Python number outside [0, 1/2].

    Examples:
        >>> attack = weight_aware(crossover=0.0)
        >>> gradients = jnp.array([[1.0, 4.0], [3.0, -8.0], [1.0, 9.0], [-1.0, -1.0]])
        >>> byzantine, key = jnp.arange(4) == 3, jax.random.key(0)
        >>> sent, _ = attack.apply(key, gradients, byzantine, None, ())
        >>> print(sent[3])
        [1. 1.]

    References:
        This project.
    """
    check_number("crossover", crossover, 0, 0.5)
    if decoder is not None:
        check_kind("decoder", decoder, ("weights",), "federated_defense() or the like")

    def apply(key, values, byzantine, context, state):
        weights = server_weights(decoder, context, byzantine.shape[0])
        honest = weight_rows(weights, values, observed_workers(byzantine))
        theirs = weight_rows(weights, values, byzantine)
        tally = weighted_tally(values, honest)
        margin = jax.tree.map(jnp.abs, tally)
        narrow = smallest_share(key, margin, crossover)

        def turn(tally, margin, narrow, theirs):
            trust = jnp.maximum(theirs, 0.0)
            turned = narrow & (margin < sum_workers(jnp.abs, trust))
            lie = turned[None] & (trust > 0)
            return jnp.where(lie, -1.0, 1.0) * jnp.sign(tally)[None]

        sent = jax.tree.map(turn, tally, margin, narrow, theirs)
        return replace_rows(byzantine, sent, values), state

    return Attack(lambda num_workers, params: (), apply, "vote", False)


def _scheduled(attack, active):
    """The attack in the rounds in which `active(round)`, honesty in the others."""
    _check_attack(attack)

    def apply(key, values, byzantine, context, state):
        return jax.lax.cond(
            active(context.round),
            lambda: attack.apply(key, values, byzantine, context, state),
            lambda: (values, state),
        )

    then = attack.then and _scheduled(attack.then, active)
    return attack._replace(apply=apply, then=then)


def _rounds(number):
    return jnp.asarray(number, jnp.int32)


def _refuse_data(name, attack):
    _check_attack(attack)
    if attack.entry == "data":
        raise ValueError(
            f"{name} changes what is sent, but the attack that it was given enters at "
            "the data; give it one that enters at the gradient or the vote"
        )


def _check_attack(attack):
    check_kind("the attack that follows", attack, ("init", "apply"), "another attack")

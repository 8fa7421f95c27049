r"""Attacks of colluders who aim at the vote itself.

Shapes: `M` workers; gradients are trees of `[M, ...]`. All enter at the vote: the
Byzantine rows become votes in {-1, 0, +1}. $T_n$ is the tally of the honest votes with
the weights that the server gives them, $A_n$ the sum of the |weights| of the attackers.
"""

import jax
import jax.numpy as jnp

from signfd_jax._checks import check_kind, check_number
from signfd_jax.attacks._observations import (
    honest_majority,
    observed_workers,
    server_weights,
    smallest_share,
    sum_workers,
    weight_rows,
    weighted_tally,
)
from signfd_jax.attacks.base import Attack, replace_rows, split_like, stateless
from signfd_jax.signs import votes

__all__ = ["budgeted_swing", "majority_opposition", "random_collusion", "swing"]


def majority_opposition() -> Attack:
    r"""All vote minus the majority of the honest: $-\operatorname{sign} \sum_H Y_m$.

    They abstain where the honest tie.

    Returns:
        An `Attack` on votes.

    Examples:
        >>> attack = majority_opposition()
        >>> gradients = jnp.array([[1.0, 4.0], [3.0, 8.0], [9.0, 9.0]])
        >>> byzantine, key = jnp.array([False, False, True]), jax.random.key(0)
        >>> sent, _ = attack.apply(key, gradients, byzantine, None, ())
        >>> print(sent[2])
        [-1. -1.]

    References:
        The strongest vote against a majority vote; see Bernstein et al., [signSGD with
        majority vote](https://arxiv.org/abs/1810.05291), ICLR 2019.
    """

    def apply(key, values, byzantine, context, state):
        del key, context
        majority = honest_majority(values, byzantine)
        sent = jax.tree.map(lambda sign: -sign[None], majority)
        return replace_rows(byzantine, sent, values), state

    return Attack(lambda num_workers, params: (), apply, "vote", False)


def random_collusion() -> Attack:
    """All send one common random vector of signs, drawn anew each round.

    Colluders agree with each other perfectly: a decoder that takes agreement for
    reliability gives them the largest weights. Row by row only while the workers share
    the key, as they do in one call.

    Returns:
        An `Attack` on votes.

    Examples:
        >>> attack = random_collusion()
        >>> byzantine, key = jnp.array([True, True]), jax.random.key(0)
        >>> sent, _ = attack.apply(key, jnp.zeros((2, 50)), byzantine, None, ())
        >>> print(bool((sent[0] == sent[1]).all()))
        True

    References:
        This project (see Jaffe et al., [Unsupervised ensemble learning with dependent
        classifiers](https://arxiv.org/abs/1510.05830), AISTATS 2016, on dependence).
    """

    def corrupt(key, values):
        return jax.tree.map(
            lambda k, v: jax.random.rademacher(k, (1, *v.shape[1:]), v.dtype),
            split_like(key, values),
            values,
        )

    return stateless(corrupt, entry="vote", row_wise=False)


def swing(decoder=None) -> Attack:
    r"""Honest votes, except where the attackers together can turn the decision.

    Where $0 < |T_n| < A_n$, attacker m votes
    $-\operatorname{sign}(T_n) \operatorname{sign}(w_{m,n})$: against the honest tally,
    whatever the sign of its own weight. Elsewhere it sends its own honest vote.

    Args:
        decoder: the `Decoder` that the server runs, whose weights the attackers know
            (`knowledge.server_weights`). None: they count heads.

    Returns:
        An `Attack` on votes.

    Examples:
        >>> attack = swing()
        >>> gradients = jnp.array([[1.0, 4], [2, 8], [3, -9], [4, 5], [6, 7]])
        >>> byzantine, key = jnp.arange(5) >= 3, jax.random.key(0)
        >>> sent, _ = attack.apply(key, gradients, byzantine, None, ())
        >>> print(sent[3:])
        [[ 1. -1.]
         [ 1. -1.]]

    References:
        This project; the vote that decides (Banzhaf's "swing") is from the theory of
        voting power.
    """
    return _swing(decoder, None)


def budgeted_swing(budget: float | jax.Array = 0.1, decoder=None) -> Attack:
    r"""`swing` on the narrowest coordinates only, to look honest on the others.

    Args:
        budget: share $\rho$ in [0, 1] of the coordinates with $T_n \ne 0$ that may be
            turned, those of smallest $|T_n|$ (scalar, may be traced). Ties are broken
            at random; the share is met within about .01.
        decoder: as in `swing`.

    Returns:
        An `Attack` on votes.

    Raises:
        ValueError: `budget` is a Python number outside [0, 1].

    Examples:
        >>> attack = budgeted_swing(0.0)
        >>> gradients = jnp.array([[1.0, 4.0], [3.0, -8.0]])
        >>> byzantine, key = jnp.array([False, True]), jax.random.key(0)
        >>> sent, _ = attack.apply(key, gradients, byzantine, None, ())
        >>> print(sent[1])
        [ 1. -1.]

    References:
        This project.
    """
    check_number("budget", budget, 0, 1)
    return _swing(decoder, budget)


def _swing(decoder, budget):
    if decoder is not None:
        check_kind("decoder", decoder, ("weights",), "federated_defense() or the like")

    """Swing, on all coordinates where `budget` is None."""

    def apply(key, values, byzantine, context, state):
        weights = server_weights(decoder, context, byzantine.shape[0])
        honest = weight_rows(weights, values, observed_workers(byzantine))
        theirs = weight_rows(weights, values, byzantine)
        tally = weighted_tally(values, honest)
        margin = jax.tree.map(jnp.abs, tally)
        if budget is None:
            narrow = jax.tree.map(lambda m: m > 0, margin)
        else:
            narrow = smallest_share(key, margin, budget)

        def turn(own, tally, margin, narrow, theirs):
            turned = narrow & (margin < sum_workers(jnp.abs, theirs))
            against = -jnp.sign(tally)[None] * jnp.sign(theirs)
            return jnp.where(turned[None], against, own.astype(jnp.float32))

        sent = jax.tree.map(turn, votes(values), tally, margin, narrow, theirs)
        return replace_rows(byzantine, sent, values), state

    return Attack(lambda num_workers, params: (), apply, "vote", False)

r"""Attacks of colluders who know every honest gradient, coordinate by coordinate.

Shapes: `M` workers, `N` coordinates in all; gradients are trees of `[M, ...]`. All
enter at the gradient, whose sign is the vote; $\mu$ and $\sigma$ are the mean and the
standard deviation of the honest gradients, coordinate by coordinate
(`knowledge.honest_moments`). Where nobody is honest, those of all workers.
"""

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from signfd_jax._checks import check_number
from signfd_jax.attacks._observations import (
    fold_workers,
    honest_moments,
    observed_workers,
)
from signfd_jax.attacks.base import Attack, replace_rows, split_like

__all__ = [
    "alie",
    "fang",
    "ipm",
    "sign_alie",
]


def alie(z: float | jax.Array | None = 1.5) -> Attack:
    r"""A little is enough: all send $\mu - z\sigma$, lost in the honest noise.

    It changes the sign of the mean only where $0 \le \mu_n < z\sigma_n$; see
    `sign_alie`.

    Args:
        z: how many standard deviations to move (scalar). None: the largest that the
            paper thinks unnoticed among M workers of which L lie,
            $\Phi^{-1}\left(\frac{M - L - s}{M - L}\right)$ with
            $s = \lfloor M/2 + 1 \rfloor - L$ honest supporters needed.

    Returns:
        An `Attack` on gradients.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> attack = alie(2.0)
        >>> gradients = jnp.array([[1.0, 4.0], [3.0, 8.0], [0.0, 0.0]])
        >>> byzantine, key = jnp.array([False, False, True]), jax.random.key(0)
        >>> sent, _ = attack.apply(key, gradients, byzantine, None, ())
        >>> print(sent[2])
        [0. 2.]

    References:
        Baruch, Baruch and Goldberg, [A little is enough](
        https://arxiv.org/abs/1902.06156), NeurIPS 2019.
    """
    if z is not None:
        check_number("z", z, -1e30, 1e30)

    def deviate(mean, deviation, byzantine):
        shift = _unnoticed(byzantine) if z is None else jnp.asarray(z, jnp.float32)
        return jax.tree.map(lambda m, d: m - shift * d, mean, deviation)

    return _from_moments(deviate)


def sign_alie(z: float | jax.Array | None = 1.5) -> Attack:
    r"""ALIE made for votes: all send $\mu - z\sigma\operatorname{sign}(\mu)$.

    It flips exactly the coordinates with $|\mu_n| < z\sigma_n$, those on which the
    honest votes are most divided, and agrees with the honest mean on the others.

    Args:
        z: as in `alie` (scalar, or None).

    Returns:
        An `Attack` on gradients.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> attack = sign_alie(2.0)
        >>> gradients = jnp.array([[-1.0, 4.0], [-3.0, 8.0], [0.0, 0.0]])
        >>> byzantine, key = jnp.array([False, False, True]), jax.random.key(0)
        >>> sent, _ = attack.apply(key, gradients, byzantine, None, ())
        >>> print(sent[2])
        [0. 2.]

    References:
        Derived from `alie`.
    """
    if z is not None:
        check_number("z", z, -1e30, 1e30)

    def deviate(mean, deviation, byzantine):
        shift = _unnoticed(byzantine) if z is None else jnp.asarray(z, jnp.float32)
        return jax.tree.map(lambda m, d: m - shift * d * jnp.sign(m), mean, deviation)

    return _from_moments(deviate)


def ipm(epsilon: float | jax.Array = 0.5) -> Attack:
    r"""Inner-product manipulation: all send $-\epsilon\mu$.

    Under the sign every positive $\epsilon$ is the same: minus the sign of the honest
    mean.

    Args:
        epsilon: $\epsilon$ (positive scalar).

    Returns:
        An `Attack` on gradients.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> attack = ipm(0.5)
        >>> gradients = jnp.array([[1.0, 4.0], [3.0, 8.0], [0.0, 0.0]])
        >>> byzantine, key = jnp.array([False, False, True]), jax.random.key(0)
        >>> sent, _ = attack.apply(key, gradients, byzantine, None, ())
        >>> print(sent[2])
        [-1. -3.]

    References:
        Xie, Koyejo and Gupta, [Fall of empires](https://arxiv.org/abs/1903.03936),
        UAI 2019.
    """
    check_number("epsilon", epsilon, 0, 1e30)

    def deviate(mean, deviation, byzantine):
        del deviation, byzantine
        return jax.tree.map(lambda m: -jnp.asarray(epsilon, m.dtype) * m, mean)

    return _from_moments(deviate)


def fang(spread: float | jax.Array = 2.0) -> Attack:
    r"""Directed deviation: all send values just beyond the honest extreme.

    Where the honest mean is positive, a Byzantine worker draws uniformly between the
    smallest honest value $a_n$ and $a_n / b$ or $b a_n$, whichever is smaller; where it
    is negative, beyond the largest one likewise. This is the full-knowledge attack on
    the trimmed mean and the median. Under the sign it opposes wherever the honest
    disagree, and goes along where they are unanimous.

    Args:
        spread: $b$ (scalar above 1; the paper takes 2).

    Returns:
        An `Attack` on gradients.

    Raises:
        ValueError: `spread` is a Python number below 1.

    Examples:
        >>> attack = fang(1.0)
        >>> gradients = jnp.array([[1.0, -4.0], [-0.5, 1.0], [0.0, 0.0]])
        >>> byzantine, key = jnp.array([False, False, True]), jax.random.key(0)
        >>> sent, _ = attack.apply(key, gradients, byzantine, None, ())
        >>> print(sent[2])
        [-0.5  1. ]

    References:
        Fang, Cao, Jia and Gong, [Local model poisoning attacks to Byzantine-robust
        federated learning](https://arxiv.org/abs/1911.11815), USENIX Security 2020.
    """
    check_number("spread", spread, 1, 1e30)

    def apply(key, values, byzantine, context, state):
        del context
        observed = observed_workers(byzantine)
        mean, _ = honest_moments(values, byzantine)
        factor = jnp.asarray(spread, jnp.float32)

        def beyond(k, gradient, center):
            # Mirrored where the mean is negative, so that one case remains.
            side = jnp.where(center >= 0, 1.0, -1.0)

            def smaller(low, g, seen):
                mirrored = jnp.where(
                    seen & jnp.isfinite(g), side * g.astype(jnp.float32), jnp.inf
                )
                return jnp.minimum(low, mirrored)

            highest = jnp.full_like(center, jnp.inf)
            extreme = fold_workers(smaller, highest, gradient, observed)
            extreme = jnp.where(jnp.isfinite(extreme), extreme, 0.0)
            end = jnp.where(extreme > 0, extreme / factor, extreme * factor)
            part = jax.random.uniform(k, gradient.shape, extreme.dtype)
            return side[None] * (extreme[None] + part * (end - extreme)[None])

        sent = jax.tree.map(beyond, split_like(key, values), values, mean)
        return replace_rows(byzantine, sent, values), state

    return Attack(lambda num_workers, params: (), apply, "gradient", False)


def _unnoticed(byzantine):
    """The z of Baruch et al., from the number of workers and of liars."""
    total = byzantine.shape[0]
    honest = (total - jnp.sum(byzantine)).astype(jnp.float32)
    majority = total // 2 + 1
    share = (total - majority) / jnp.maximum(honest, 1.0)
    # Too few or too many liars for the formula: stay within it, and finite.
    return norm.ppf(jnp.clip(share, 0.5, 0.999)).astype(jnp.float32)


def _from_moments(deviate):
    """An attack in which all send one vector made from mean and deviation."""

    def apply(key, values, byzantine, context, state):
        del key, context
        sent = deviate(*honest_moments(values, byzantine), byzantine)
        sent = jax.tree.map(lambda v: v[None], sent)
        return replace_rows(byzantine, sent, values), state

    return Attack(lambda num_workers, params: (), apply, "gradient", False)

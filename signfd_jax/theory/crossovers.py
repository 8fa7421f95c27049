"""Crossover probabilities: their causes, what attacks and estimates make of them.

Shapes: `*shape` any; a scalar is a Python float or a float array `[]`. The model and
the symbols are those of the package's docstring.
"""

import math

import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from signfd_jax._checks import check_number, check_size, checked

__all__ = [
    "agreement_with_own_vote",
    "agreement_without_own_vote",
    "flipped_crossover",
    "gaussian_crossover",
    "llr_standard_deviation",
    "unimodal_crossover_bound",
]

Scalar = float | Float[Array, ""]


@checked
def flipped_crossover(
    crossover: Float[Array, "*shape"], flip_probability: Scalar
) -> Float[Array, "*shape"]:
    r"""Crossover probability after a stochastic sign flip: $p(1-r) + (1-p)r$.

    A vote is wrong if it was wrong and stayed, or was right and was flipped. So
    $\frac12 - p' = (1 - 2r)(\frac12 - p)$: at r = 1 (sign inversion) only the sign of
    the log-likelihood ratio changes and the exact decoder errs as often as without an
    attack, whatever the number of attackers; at r = ½ the worker is erased, the worst
    that this attack can do to it.

    Args:
        crossover: probabilities p in [0, 1].
        flip_probability: r in [0, 1].

    Returns:
        The new crossover probabilities.

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> print(flipped_crossover(jnp.array([0.25, 0.25]), 0.5))
        [0.5 0.5]
    """
    check_number("flip_probability", flip_probability, 0, 1)
    return crossover * (1 - flip_probability) + (1 - crossover) * flip_probability


@checked
def gaussian_crossover(
    gradient: Float[Array, "*shape"], noise_std: Scalar, batch_size: Scalar
) -> Float[Array, "*shape"]:
    r"""Crossover probability under Gaussian noise: $Q(|g|\sqrt B/\sigma)$.

    The mean of B gradients is $g + (\sigma/\sqrt B)\,\varepsilon$, and its sign is
    wrong when $\varepsilon$, standard normal, exceeds $|g|\sqrt B/\sigma$ the wrong
    way. So workers with batches of different size deserve different weights.

    Args:
        gradient: true gradient g.
        noise_std: standard deviation $\sigma > 0$ of one example's gradient, in the
            unit of g.
        batch_size: B, as a float.

    Returns:
        Probabilities in [0, ½]; ½ where g is zero.

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> print(gaussian_crossover(jnp.array(-0.5), 1.0, 4.0))
        0.1587

    References:
        Park and Lee, [signSGD with federated voting](
        https://arxiv.org/abs/2403.16372), 2024.
    """
    check_number("noise_std", noise_std, 0, float("inf"))
    check_number("batch_size", batch_size, 1, float("inf"))
    return norm.sf(jnp.abs(gradient) * jnp.sqrt(batch_size) / noise_std)


@checked
def unimodal_crossover_bound(
    signal_to_noise: Float[Array, "*shape"],
) -> Float[Array, "*shape"]:
    r"""Bound of the crossover probability for any unimodal symmetric noise.

    $p \le \frac12 - \frac{S}{2\sqrt3}$ for $S \le 2/\sqrt3$, and
    $p \le \frac{2}{9 S^2}$ above, with $S = |g|\sqrt B/\sigma$.

    By symmetry p is half of the probability that the noise exceeds |g| in magnitude,
    and Gauss's inequality bounds that by $1 - S/\sqrt3$ below $S = 2/\sqrt3$ and by
    $4/(9S^2)$ above.

    Args:
        signal_to_noise: $S \ge 0$, without unit.

    Returns:
        The bound, in (0, ½].

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> print(unimodal_crossover_bound(jnp.array(2.0)))
        0.0556

    References:
        Bernstein et al., [signSGD: Compressed Optimisation for Non-Convex Problems](
        https://arxiv.org/abs/1802.04434), ICML 2018.
    """
    knee = 2 / math.sqrt(3)
    tail = 2 / (9 * jnp.square(jnp.maximum(signal_to_noise, knee)))
    linear = 0.5 - signal_to_noise / (2 * math.sqrt(3))
    return jnp.where(signal_to_noise <= knee, linear, tail)


@checked
def llr_standard_deviation(
    crossover: Float[Array, "*shape"], num_samples: Scalar
) -> Float[Array, "*shape"]:
    r"""Standard deviation of a log-likelihood ratio estimated from a frequency.

    $\operatorname{sd} \approx 1/\sqrt{T p(1-p)}$ nats by the delta method: the
    frequency of T samples has the variance $p(1-p)/T$, and the slope of $\ell$ is
    $-1/(p(1-p))$.

    Args:
        crossover: probabilities p in (0, 1).
        num_samples: number T of independent comparisons, as a float.

    Returns:
        The standard deviation, in nats, for large T.

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> print(llr_standard_deviation(jnp.array(0.1), 100.0))
        0.3333
    """
    check_number("num_samples", num_samples, 1, float("inf"))
    return 1 / jnp.sqrt(num_samples * crossover * (1 - crossover))


def agreement_with_own_vote(num_workers: int) -> float:
    r"""How often a useless worker agrees with a majority that includes its vote.

    $\frac12 + \frac12 \binom{M-1}{\lfloor M/2 \rfloor} 2^{-(M-1)}$ when all votes are
    fair coins and a tie counts half. For odd M the worker decides where the M - 1
    others tie, and agrees half of the time elsewhere. For even M it makes a tie where
    the others lean against it by one vote.

    Above ½, this is the bias of estimating a worker's reliability against a decoded
    sign that its own vote helped to decide.

    Args:
        num_workers: M, at least 1.

    Returns:
        The probability of agreement, exactly.

    Raises:
        ValueError: M is less than 1.

    Examples:
        >>> round(agreement_with_own_vote(15), 3)
        0.605
    """
    check_size("num_workers", num_workers)
    decisive = math.comb(num_workers - 1, num_workers // 2) / 2 ** (num_workers - 1)
    return 0.5 + 0.5 * decisive


@checked
def agreement_without_own_vote(
    crossover: Float[Array, "*shape"], error: Scalar
) -> Float[Array, "*shape"]:
    r"""How often a worker agrees with the sign that the other workers decode.

    $\frac12 + (\frac12 - p)(1 - 2P_E)$ for the error $P_E$ of the others: both right or
    both wrong, $(1-p)(1-P_E) + pP_E$, since they are independent. The estimate keeps
    its side of ½ if and only if $P_E < \frac12$, and is shrunk towards ½.

    Args:
        crossover: probabilities p in [0, 1].
        error: decoding error $P_E$ of the other workers, in [0, 1].

    Returns:
        The probability of agreement.

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> print(agreement_without_own_vote(jnp.array(0.3), 0.05))
        0.6800
    """
    check_number("error", error, 0, 1)
    return 0.5 + (0.5 - crossover) * (1 - 2 * error)

"""Decoding errors: exact, and bounds for exact and for wrong weights.

Shapes: `M` workers; a scalar is a Python float or a float array `[]`. The model and the
symbols are those of the package's docstring.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from signfd_jax._checks import check_number, checked

__all__ = [
    "additive_error_bound",
    "additive_error_exponential_bound",
    "advantage_bound",
    "berend_kontorovich_bound",
    "bhattacharyya_bounds",
    "bhattacharyya_coefficient",
    "committee_potential",
    "decoding_error",
    "majority_vote_bound",
    "multiplicative_error_bound",
    "prior_log_odds",
]

Scalar = float | Float[Array, ""]
_MAX_ENUMERATED_WORKERS = 24


@checked
def decoding_error(
    crossover: Float[Array, " M"], weights: Float[Array, " M"] | None = None
) -> Float[Array, ""]:
    r"""Probability that the weighted vote decodes the wrong sign, by enumeration.

    $P_E = \Pr[S < 0] + \frac12 \Pr[S = 0]$, summed over all $2^M$ patterns of errors.

    The exact weights are the best ones: given votes y, the log-likelihood ratio of
    U = +1 against U = -1 is $\sum_m \ln\frac{P(y_m|+1)}{P(y_m|-1)} = \sum_m y_m
    \ln\frac{1-p_m}{p_m}$, so the maximum-likelihood decoder is the sign of the tally
    weighted by $\ell_m$. A common positive scale of the weights changes nothing; a
    prior on U adds `prior_log_odds` to the tally.

    Args:
        crossover: probabilities $p_m$ in (0, 1).
        weights: of the votes, any sign and unit, in the dtype of `crossover`; the
            exact $\ell_m$ by default. Ones give the majority vote.

    Returns:
        $P_E$ in [0, 1]. Tallies smaller than $10^{-6} \sum_m |w_m|$ count as ties.

    Raises:
        ValueError: more than 24 workers; use the bounds then.

    Examples:
        >>> honest, inverted = jnp.full(9, 0.3), jnp.full(6, 0.7)
        >>> crossover = jnp.concatenate([honest, inverted])
        >>> print(decoding_error(crossover))
        0.0500
        >>> print(decoding_error(crossover, jnp.ones(15)))
        0.3646

    References:
        Nitzan and Paroush, [Optimal Decision Rules in Uncertain Dichotomous Choice
        Situations](https://doi.org/10.2307/2526438), International Economic Review
        1982.
    """
    num_workers = len(crossover)
    if num_workers > _MAX_ENUMERATED_WORKERS:
        raise ValueError(
            f"{num_workers} workers have 2^{num_workers} patterns of errors, and at "
            f"most {_MAX_ENUMERATED_WORKERS} are enumerated; use bhattacharyya_bounds "
            "for more"
        )
    if weights is None:
        weights = _llr(crossover)
    # The tally and the probability of every pattern, one worker more at a time.
    tally = jnp.zeros(1, crossover.dtype)
    probability = jnp.ones(1, crossover.dtype)
    for p, w in zip(crossover, weights, strict=True):
        tally = jnp.concatenate([tally + w, tally - w])
        probability = jnp.concatenate([probability * (1 - p), probability * p])
    tie = 1e-6 * jnp.sum(jnp.abs(weights))
    wrong = jnp.where(tally < -tie, 1.0, jnp.where(tally <= tie, 0.5, 0.0))
    return jnp.sum(probability * wrong)


@checked
def prior_log_odds(prior: Scalar) -> Float[Array, ""]:
    r"""What a prior adds to the tally: $\ln\frac{\pi_+}{1 - \pi_+}$ nats.

    By Bayes' rule the posterior log-odds of U = +1 are the prior's plus the
    log-likelihood ratio $\sum_m \ell_m y_m$; deciding by their sign (maximum a
    posteriori) makes the fewest errors.

    Args:
        prior: probability $\pi_+$ of U = +1, in (0, 1).

    Returns:
        The log-odds, in nats: zero at one half.

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> print(prior_log_odds(0.75))
        1.0986
    """
    check_number("prior", prior, 0, 1)
    return -_llr(jnp.asarray(prior))


@checked
def bhattacharyya_coefficient(crossover: Float[Array, " M"]) -> Float[Array, ""]:
    r"""Overlap of the two distributions of the votes, $\prod_m 2\sqrt{p_m(1-p_m)}$.

    It is $\sum_y \sqrt{P(y|+1) P(y|-1)}$, which factors over independent workers, each
    with $2\sqrt{p(1-p)}$; and the Chernoff bound of $\Pr[S \le 0]$ for exact weights:
    $E[e^{-S/2}] = \prod_m \left((1-p_m) e^{-\ell_m/2} + p_m e^{\ell_m/2}\right)$.

    Args:
        crossover: probabilities $p_m$ in [0, 1].

    Returns:
        The coefficient BC in [0, 1]; $p$ and $1 - p$ give the same.

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> print(bhattacharyya_coefficient(jnp.array([0.1, 0.5, 0.9])))
        0.3600
    """
    return jnp.prod(2 * jnp.sqrt(crossover * (1 - crossover)))


@checked
def bhattacharyya_bounds(
    crossover: Float[Array, " M"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""Bounds of $P_E$ under exact weights.

    $\frac12\left(1 - \sqrt{1 - BC^2}\right) \le P_E \le \frac12 BC$.

    With ties at random $P_E = \frac12 \sum_y \min(a_y, b_y)$ for the likelihoods
    $a_y = P(y|+1)$ and $b_y = P(y|-1)$. Above: $\min(a, b) \le \sqrt{ab}$. Below:
    $1 - 2P_E = \frac12 \sum_y |a_y - b_y| = \frac12 \sum_y |\sqrt{a_y} - \sqrt{b_y}|
    (\sqrt{a_y} + \sqrt{b_y})$, at most $\frac12 \sqrt{(2 - 2BC)(2 + 2BC)}
    = \sqrt{1 - BC^2}$ by Cauchy and Schwarz.

    Args:
        crossover: probabilities $p_m$ in [0, 1].

    Returns:
        The lower and the upper bound.

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> lower, upper = bhattacharyya_bounds(jnp.full(15, 0.3))
        >>> print(lower, upper)
        0.0186 0.1352

    References:
        Kailath, [The Divergence and Bhattacharyya Distance Measures in Signal
        Selection](https://doi.org/10.1109/TCOM.1967.1089532), IEEE Transactions on
        Communication Technology 1967.
    """
    coefficient = bhattacharyya_coefficient(crossover)
    square = jnp.square(coefficient)
    # (1 - sqrt(1 - x)) without its cancellation at small x.
    return 0.5 * square / (1 + jnp.sqrt(1 - square)), 0.5 * coefficient


@checked
def committee_potential(crossover: Float[Array, " M"]) -> Float[Array, ""]:
    r"""The exponent of the simplest bound: $\Phi = \sum_m (\frac12 - p_m) \ell_m$.

    No term is negative: a worker adds as much at $1 - p$ as at $p$.

    Args:
        crossover: probabilities $p_m$ in (0, 1).

    Returns:
        $\Phi \ge 0$, in nats.

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> print(committee_potential(jnp.array([0.1, 0.5, 0.9])))
        1.7578

    References:
        Berend and Kontorovich, [Consistency of weighted majority votes](
        https://arxiv.org/abs/1312.0451), NeurIPS 2014.
    """
    return jnp.sum((0.5 - crossover) * _llr(crossover))


@checked
def berend_kontorovich_bound(crossover: Float[Array, " M"]) -> Float[Array, ""]:
    r"""Bound of $\Pr[S \le 0]$ under exact weights: $e^{-\Phi/2} \ge BC$.

    With $x = \ell/2$, $2\sqrt{p(1-p)} = 1/\cosh x$ and $\frac12 - p = \frac12 \tanh x$,
    so that the claim is $\ln\cosh x \ge \frac{x}{2} \tanh x$ for every worker: the case
    d = 0 of `multiplicative_error_bound`.

    Args:
        crossover: probabilities $p_m$ in (0, 1).

    Returns:
        The bound, in [0, 1].

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> print(berend_kontorovich_bound(jnp.full(15, 0.3)))
        0.2806

    References:
        Berend and Kontorovich, [Consistency of weighted majority votes](
        https://arxiv.org/abs/1312.0451), NeurIPS 2014.
    """
    return jnp.exp(-0.5 * committee_potential(crossover))


@checked
def advantage_bound(crossover: Float[Array, " M"]) -> Float[Array, ""]:
    r"""Bound of $\Pr[S \le 0]$ under exact weights: $e^{-2 \sum_m (\frac12 - p_m)^2}$.

    Looser than `berend_kontorovich_bound`, since $|\ell| \ge 4|\frac12 - p|$: the slope
    of $\ell$ in p is $-1/(p(1-p)) \le -4$.

    Args:
        crossover: probabilities $p_m$ in [0, 1].

    Returns:
        The bound, in [0, 1].

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> print(advantage_bound(jnp.full(15, 0.3)))
        0.3012
    """
    return jnp.exp(-2 * jnp.sum(jnp.square(0.5 - crossover)))


@checked
def additive_error_bound(
    crossover: Float[Array, " M"], weight_error: Float[Array, " M"]
) -> Float[Array, ""]:
    r"""Bound of $\Pr[S \le 0]$ when weight m is $\ell_m + \Delta_m$.

    $\prod_m 2\sqrt{p_m(1-p_m)} \cosh(\Delta_m/2)$: the Chernoff bound $E[e^{-S/2}]$,
    whose factor is $(1-p) e^{-(\ell+\Delta)/2} + p e^{(\ell+\Delta)/2}
    = \sqrt{p(1-p)} \left(e^{-\Delta/2} + e^{\Delta/2}\right)$.

    Args:
        crossover: probabilities $p_m$ in [0, 1].
        weight_error: $\Delta_m$, in nats.

    Returns:
        The bound; it says nothing where it exceeds 1.

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> print(additive_error_bound(jnp.full(15, 0.3), jnp.full(15, 0.2)))
        0.2915
    """
    return bhattacharyya_coefficient(crossover) * jnp.prod(jnp.cosh(weight_error / 2))


@checked
def additive_error_exponential_bound(
    crossover: Float[Array, " M"], weight_error: Float[Array, " M"]
) -> Float[Array, ""]:
    r"""Looser form of `additive_error_bound`: $BC \cdot e^{\sum_m \Delta_m^2/8}$.

    By $\cosh x \le e^{x^2/2}$, term by term of the power series.

    Args:
        crossover: probabilities $p_m$ in [0, 1].
        weight_error: $\Delta_m$, in nats.

    Returns:
        The bound; it says nothing where it exceeds 1.

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> error = jnp.full(15, 0.2)
        >>> print(additive_error_exponential_bound(jnp.full(15, 0.3), error))
        0.2915
    """
    growth = jnp.exp(jnp.sum(jnp.square(weight_error)) / 8)
    return bhattacharyya_coefficient(crossover) * growth


@checked
def multiplicative_error_bound(
    crossover: Float[Array, " M"], relative_error: Scalar
) -> Float[Array, ""]:
    r"""Bound of $\Pr[S \le 0]$ when weight m is $a_m \ell_m$, $a_m \in [1-d, 1+d]$.

    $e^{-(1-d^2)\Phi/2}$, for any such factors. Write $a = 1 + \delta$ and $x = \ell/2$.
    The factor of the Chernoff bound $E[e^{-S/2}]$ is $\cosh(\delta x)/\cosh x$
    (`additive_error_bound` with $\Delta = \delta\ell$). The function
    $h(t) = \ln\cosh(\sqrt t\, x)$ is concave, because its slope
    $x \tanh(\sqrt t\, x)/(2\sqrt t)$ falls with t, so it lies below its tangent at
    t = 1, and $t = \delta^2$ gives
    $\ln\cosh(\delta x) - \ln\cosh x \le -(1 - \delta^2)\frac{x}{2}\tanh x
    = -\frac12 (1 - \delta^2)(\frac12 - p)\ell$.

    Args:
        crossover: probabilities $p_m$ in (0, 1).
        relative_error: d in [0, 1).

    Returns:
        The bound, in [0, 1].

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> print(multiplicative_error_bound(jnp.full(15, 0.3), 0.5))
        0.3855
    """
    check_number("relative_error", relative_error, 0, 1)
    potential = committee_potential(crossover)
    return jnp.exp(-0.5 * (1 - relative_error**2) * potential)


@checked
def majority_vote_bound(
    crossover: Scalar,
    num_workers: Scalar,
    num_byzantine: Scalar = 0.0,
    flip_probability: Scalar = 1.0,
) -> Float[Array, ""]:
    r"""Bound of $\Pr[S \le 0]$ for the majority vote under a stochastic sign flip.

    $e^{-2q^2(M-2rL)^2/M}$ while 2rL < M, otherwise 1: the tally of M votes in [-1, 1]
    has the mean $2q(M - L) + 2q(1-2r)L = 2q(M - 2rL)$, and Hoeffding's inequality
    bounds its chance of falling that far by $e^{-2\,\mathrm{mean}^2/(4M)}$. At r = 1
    the exponent shrinks from M to $(M-2L)^2/M$, below the M - L of discarding the
    attackers and the M of reading them backwards.

    Args:
        crossover: p of every worker before the attack, in [0, ½].
        num_workers: M, as a float.
        num_byzantine: L, as a float.
        flip_probability: r in [0, 1].

    Returns:
        The bound, in [0, 1].

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> print(majority_vote_bound(0.3, 15.0, 3.0, 1.0))
        0.6492

    References:
        Bernstein et al., [signSGD with majority vote](
        https://arxiv.org/abs/1810.05291), ICLR 2019, bound the same error.
    """
    check_number("crossover", crossover, 0, 1)
    check_number("num_workers", num_workers, 1, float("inf"))
    check_number("num_byzantine", num_byzantine, 0, float("inf"))
    check_number("flip_probability", flip_probability, 0, 1)
    margin = jnp.maximum(num_workers - 2 * flip_probability * num_byzantine, 0)
    advantage = 0.5 - crossover
    return jnp.exp(-2 * jnp.square(advantage * margin) / num_workers)


def _llr(crossover):
    return jnp.log1p(-crossover) - jnp.log(crossover)

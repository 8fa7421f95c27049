"""What decoding errors cost in convergence.

Shapes: `N` coordinates; a scalar is a Python float or a float array `[]`. The model and
the symbols are those of the package's docstring.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from signfd_jax._checks import check_number, checked

__all__ = [
    "best_step_size",
    "convergence_bound",
    "expected_descent",
    "unimodal_convergence_bound",
]

Scalar = float | Float[Array, ""]


@checked
def expected_descent(
    gradient: Float[Array, " N"],
    error: Float[Array, " N"],
    smoothness: Scalar,
    step_size: Scalar,
) -> Float[Array, ""]:
    r"""Bound of the expected change of the loss in one round.

    $E f(x - \delta\hat U) - f(x) \le -\delta \sum_n |g_n| (1 - 2P_{E,n})
    + \frac12 \delta^2 \|L\|_1$ for a loss that is $L_n$-smooth in coordinate n: the
    quadratic upper bound at a step of $\pm\delta$ in every coordinate, and
    $E[\hat U_n \operatorname{sign} g_n] = 1 - 2P_{E,n}$.

    Args:
        gradient: true gradient g.
        error: decoding errors $P_{E,n}$ in [0, 1].
        smoothness: $\|L\|_1 = \sum_n L_n$.
        step_size: $\delta > 0$, in the unit of the parameters.

    Returns:
        The bound, in the unit of the loss; negative means descent.

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> gradient, error = jnp.array([1.0, -2.0]), jnp.array([0.1, 0.2])
        >>> print(expected_descent(gradient, error, 3.0, 0.1))
        -0.1850

    References:
        Bernstein et al., [signSGD: Compressed Optimisation for Non-Convex Problems](
        https://arxiv.org/abs/1802.04434), ICML 2018.
    """
    check_number("smoothness", smoothness, 0, float("inf"))
    check_number("step_size", step_size, 0, float("inf"))
    gain = jnp.sum(jnp.abs(gradient) * (1 - 2 * error))
    return -step_size * gain + 0.5 * step_size**2 * smoothness


@checked
def best_step_size(
    initial_gap: Scalar, smoothness: Scalar, num_rounds: Scalar
) -> Float[Array, ""]:
    r"""The constant step of `convergence_bound`, $\sqrt{2(f_1 - f^*)/(\|L\|_1 T)}$.

    Summed over T rounds, `expected_descent` gives
    $(1 - 2P_E)\frac1T \sum_t E\|g_t\|_1 \le \frac{f_1 - f^*}{\delta T}
    + \frac{\delta}{2}\|L\|_1$, which this step makes smallest.

    Args:
        initial_gap: $f_1 - f^*$, in the unit of the loss.
        smoothness: $\|L\|_1$.
        num_rounds: T, as a float.

    Returns:
        The step size $\delta$.

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> print(best_step_size(2.0, 1.0, 400.0))
        0.1000
    """
    _check(initial_gap=initial_gap, smoothness=smoothness, num_rounds=num_rounds)
    return jnp.sqrt(2 * initial_gap / (jnp.asarray(smoothness) * num_rounds))


@checked
def convergence_bound(
    error: Scalar, initial_gap: Scalar, smoothness: Scalar, num_rounds: Scalar
) -> Float[Array, ""]:
    r"""Bound of the mean gradient norm $\frac1T \sum_t E\|g_t\|_1$ over T rounds.

    $\frac{1}{1 - 2P_E} \sqrt{\frac{2 \|L\|_1 (f_1 - f^*)}{T}}$ with `best_step_size`
    (see there for the derivation), if no coordinate's decoding error exceeds
    $P_E < \frac12$.

    Args:
        error: $P_E$ in [0, ½).
        initial_gap: $f_1 - f^*$, in the unit of the loss.
        smoothness: $\|L\|_1$.
        num_rounds: T, as a float.

    Returns:
        The bound; infinite at $P_E = \frac12$ and meaningless above.

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> print(convergence_bound(0.05, 2.0, 1.0, 400.0))
        0.1111
    """
    check_number("error", error, 0, 1)
    _check(initial_gap=initial_gap, smoothness=smoothness, num_rounds=num_rounds)
    slowest = jnp.sqrt(2 * jnp.asarray(smoothness) * initial_gap / num_rounds)
    return slowest / (1 - 2 * jnp.asarray(error))


@checked
def unimodal_convergence_bound(
    initial_gap: Scalar,
    smoothness: Scalar,
    noise: Scalar,
    step_size: Scalar,
    num_rounds: Scalar,
    num_workers: Scalar,
    batch_size: Scalar,
) -> Float[Array, ""]:
    r"""Bound of the mean gradient norm without a uniform bound of the decoding error.

    $\frac1T \sum_t E\|g_t\|_1 \le \frac{f_1-f^*}{\delta T} + \frac{\delta}{2}\|L\|_1 +
    \sqrt{\frac3e}\, \frac{\|\sigma\|_1}{\sqrt{MB}}$ for unimodal symmetric noise and
    exact weights; $\sqrt{3/e} = 1.051$.

    As for `best_step_size`, but each coordinate loses at most $2|g|P_E \le |g|\,BC =
    |g| (4p(1-p))^{M/2}$, where $|g| = S\sigma/\sqrt B$. Below $S = 2/\sqrt3$,
    `unimodal_crossover_bound` gives $4p(1-p) \le 1 - S^2/3 \le e^{-S^2/3}$, so that
    the loss is at most $\frac{\sigma}{\sqrt B}\max_S S e^{-MS^2/6} = \sqrt{\frac3e}
    \frac{\sigma}{\sqrt{MB}}$, reached at $S^2 = 3/M$. Above, $4p(1-p) \le
    \frac{8}{9S^2} \left(1 - \frac{2}{9S^2}\right)$ makes it smaller still: less than
    $0.95\,\sigma/\sqrt B$ for M = 1, and for larger M falling in S from the value at
    $2/\sqrt3$, which is below the maximum above.

    Sign inversion by any number of workers changes nothing; L workers that flip with
    probability ½ are erased: give M - L.

    Args:
        initial_gap: $f_1 - f^*$, in the unit of the loss.
        smoothness: $\|L\|_1$.
        noise: $\|\sigma\|_1$, the sum of the coordinates' standard deviations.
        step_size: $\delta > 0$, in the unit of the parameters.
        num_rounds: T, as a float.
        num_workers: M, as a float.
        batch_size: B, as a float.

    Returns:
        The bound, in the unit of the gradient.

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> bound = unimodal_convergence_bound(2.0, 1.0, 3.0, 0.1, 400.0, 15.0, 64.0)
        >>> print(bound)
        0.2017

    References:
        The method is of Bernstein et al., [signSGD: Compressed Optimisation for
        Non-Convex Problems](https://arxiv.org/abs/1802.04434), ICML 2018.
    """
    _check(
        initial_gap=initial_gap,
        smoothness=smoothness,
        noise=noise,
        step_size=step_size,
        num_rounds=num_rounds,
        num_workers=num_workers,
        batch_size=batch_size,
    )
    descent = initial_gap / (jnp.asarray(step_size) * num_rounds)
    curvature = 0.5 * step_size * jnp.asarray(smoothness)
    sampling = noise / jnp.sqrt(jnp.asarray(num_workers) * batch_size)
    return descent + curvature + math.sqrt(3 / math.e) * sampling


def _check(**numbers):
    for name, value in numbers.items():
        check_number(name, value, 0, float("inf"))

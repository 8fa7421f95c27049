r"""What follows from more honest workers than liars, and what cannot be had without.

Shapes: `*leaf` the coordinates of one parameter leaf; a scalar is a Python float or a
float array `[]`. The model and the symbols are those of the package's docstring, with
worker m's reliability $v_m = 1 - 2 p_m$: it is negative for one that inverts.

*Impossible: a decoder that is right against M/2 liars or more.* Let every liar negate
its vote, and where there are more liars than honest workers the others abstain. Then
the votes under the truth U = +1 have the very distribution of those under U = -1, with
honest workers and liars in each other's places. A decoder that does not know who is who
sees the same and answers the same, so it errs with probability 1/2 or more under one of
the two truths. So every decoder needs a premise, and more honest workers than liars is
the weakest one about numbers alone.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from signfd_jax._checks import check_number, checked

__all__ = [
    "safely_decoded",
    "samples_to_tell_sides",
    "sides_error_bound",
    "trusted_error_bound",
]

Scalar = float | Float[Array, ""]


@checked
def safely_decoded(
    honest_sum: Int[Array, "*leaf"], num_byzantine: Scalar
) -> Bool[Array, "*leaf"]:
    r"""Coordinates that L liars cannot turn, whatever they send: $|\sum_m Y_m| > L$.

    The sum is over the honest workers, each of which weighs 1, and no |weight| exceeds
    1. Proof: the liars' weighted votes sum to L at most in absolute value, so the sign
    of the tally is that of the honest votes' sum.

    The bound is tight: where that sum is $\pm L$, liars of weight 1 that all vote
    against it make the tally 0, a tie; where it is less, they turn the sign.

    Args:
        honest_sum: sum of the honest workers' votes of each coordinate.
        num_byzantine: number L of liars, as a float.

    Returns:
        Whether the decoded sign is that of the honest workers' majority. It is the true
        sign where the majority is right.

    Raises:
        ValueError: an argument has another shape or kind than it should, or is out of
            range.

    Examples:
        >>> print(safely_decoded(jnp.array([8, -7, 7, 2]), 6.0))
        [ True  True  True False]

    References:
        Bernstein et al., [signSGD with majority vote](
        https://arxiv.org/abs/1810.05291), ICLR 2019, count a majority vote's margin so.
    """
    check_number("num_byzantine", num_byzantine, 0, float("inf"))
    return jnp.abs(honest_sum).astype(jnp.float32) > num_byzantine


@checked
def sides_error_bound(
    num_workers: Scalar, reliability: Scalar, num_samples: Scalar
) -> Float[Array, ""]:
    r"""Bound of the probability that votes alone do not tell the two sides apart.

    $\frac{M(M-1)}{2} e^{-n v^4 / 2}$, where workers err independently and all $|v_m|
    \ge v$. It bounds the probability that the correlation of any two workers over n
    independent votes is 0 or has the wrong sign.

    Proof: the n products of two workers' votes lie in [-1, 1] and have the mean $v_j
    v_k$, which is $v^2$ or more in absolute value. By Hoeffding's inequality, on one
    side, their average falls short of its mean by $v^2$ with probability $e^{-2 n^2 v^4
    / (4 n)}$ or less. Add this up over the $M(M-1)/2$ pairs.

    If no sign is wrong, the sides follow. With $D = \operatorname{diag}
    (\operatorname{sign} v_m)$, the signs of the correlations, each times any factor
    that is not negative, are the matrix $D P D$ with $P \ge 0$. If the factors above 0
    connect all workers, P is irreducible, and by Perron and Frobenius its leading
    eigenvector is positive and unique up to scale: so that of $D P D$ has the signs D,
    or all of them turned. The larger side is the honest one if more workers are honest
    than not. Nor is the sign of a worker's mean correlation with the others wrong, each
    turned to its side, whatever their shares.

    Samples with weights $a_i$, as under forgetting, count as $n = (\sum a_i)^2 / \sum
    a_i^2$, by the same inequality. A mean that forgets with the factor $\gamma$ each
    round counts as $\frac{1 + \gamma}{1 - \gamma}$ rounds at most.

    Args:
        num_workers: M, as a float.
        reliability: v in [0, 1], twice a worker's advantage q over a coin.
        num_samples: n, rounds times independent coordinates, as a float.

    Returns:
        The bound, in [0, 1]. For v near 1 the exponent is too small by a factor of up
        to $-\ln(1 - v^4) / v^4$, which for one pair is exact (Chernoff).

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> print(sides_error_bound(15.0, 0.4, 1000.0))
        0.0003

    References:
        Hoeffding, [Probability inequalities for sums of bounded random variables](
        https://doi.org/10.1080/01621459.1963.10500830), JASA 1963; of such a matrix's
        leading eigenvector: Parisi, Strino, Nadler and Kluger, [Ranking and combining
        multiple predictors without labeled data](https://arxiv.org/abs/1303.3257),
        PNAS 2014.
    """
    check_number("num_workers", num_workers, 1, float("inf"))
    check_number("reliability", reliability, 0, 1)
    check_number("num_samples", num_samples, 0, float("inf"))
    pairs = num_workers * (num_workers - 1) / 2
    bound = pairs * jnp.exp(-num_samples * jnp.square(jnp.square(reliability)) / 2)
    return jnp.minimum(bound, 1.0)


@checked
def samples_to_tell_sides(
    num_workers: Scalar, reliability: Scalar, failure: Scalar
) -> Float[Array, ""]:
    r"""Independent votes that suffice to tell honest workers from those that invert.

    $n = \frac{2}{v^4} \ln \frac{M(M-1)}{2 \delta}$: from so many on, the sides are told
    right with probability $1 - \delta$ at least. It is `sides_error_bound`, where the
    proof is, solved for n.

    Args:
        num_workers: M, as a float.
        reliability: v in (0, 1]; all workers have $|1 - 2 p_m| \ge v$.
        failure: probability $\delta$ in (0, 1].

    Returns:
        n, rounds times independent coordinates, to be rounded up; infinity for v = 0.

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> print(samples_to_tell_sides(15.0, 0.4, 0.01).round())
        723.0
    """
    check_number("num_workers", num_workers, 1, float("inf"))
    check_number("reliability", reliability, 0, 1)
    check_number("failure", failure, 0, 1)
    pairs = jnp.asarray(num_workers * (num_workers - 1) / 2)
    enough = jnp.maximum(jnp.log(pairs / failure), 0)
    return 2 * enough / jnp.square(jnp.square(reliability))


@checked
def trusted_error_bound(
    reliability: Scalar, of_trusted: Scalar, num_samples: Scalar
) -> Float[Array, ""]:
    r"""Bound of the probability that a trusted worker's votes misjudge another worker.

    $e^{-n v^2 v_0^2 / 2}$, where both err independently. It bounds the probability that
    their correlation over n independent votes is 0 or has not the sign of v. How many
    others lie does not matter.

    Proof: the n products of both votes lie in [-1, 1] and have the mean $v v_0$, where
    $v_0 > 0$. By Hoeffding's inequality, on one side, their average falls short of it
    by $|v| v_0$ with probability $e^{-2 n^2 v^2 v_0^2 / (4 n)}$ or less.

    Args:
        reliability: v in [-1, 1] of the worker that is judged: how much more often it
            is right than wrong; negative for one that inverts.
        of_trusted: $v_0$ in [0, 1], the same of the trusted worker.
        num_samples: n, rounds times independent coordinates, as a float.

    Returns:
        The bound, in [0, 1].

    Raises:
        ValueError: an argument has another shape than it should, or is out of range.

    Examples:
        >>> print(trusted_error_bound(-0.4, 0.2, 2000.0).round(4))
        0.0017

    References:
        Hoeffding, [Probability inequalities for sums of bounded random variables](
        https://doi.org/10.1080/01621459.1963.10500830), JASA 1963.
    """
    check_number("reliability", reliability, -1, 1)
    check_number("of_trusted", of_trusted, 0, 1)
    check_number("num_samples", num_samples, 0, float("inf"))
    return jnp.exp(-num_samples * jnp.square(reliability * of_trusted) / 2)

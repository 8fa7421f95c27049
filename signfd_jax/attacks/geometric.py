r"""Attacks of colluders who measure the honest gradients as vectors.

Shapes: `M` workers; gradients are trees of `[M, ...]`, each worker's a point in as many
dimensions as there are coordinates. All enter at the gradient, whose sign is the vote;
they need distances and inner products, where those of `omniscient` need a mean and a
standard deviation. Where nobody is honest, all workers count as honest.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from signfd_jax._checks import check_choice, check_count
from signfd_jax.attacks._observations import (
    finite,
    honest_moments,
    observed_workers,
    sum_workers,
)
from signfd_jax.attacks.base import Attack, replace_rows, split_like

__all__ = ["MimicState", "mimic", "min_max", "min_sum"]

DEVIATIONS = ("standard_deviation", "unit", "sign")


def min_max(deviation: str = "standard_deviation") -> Attack:
    r"""All send $\mu + \gamma d$, no further from anybody than the honest are apart.

    $\gamma$ is the largest with
    $\max_{i \in H} \|\mu + \gamma d - g_i\| \le \max_{i,j \in H} \|g_i - g_j\|$. Each
    worker's condition is a quadratic in $\gamma$, solved in closed form from inner
    products; the paper bisects.

    Args:
        deviation: the direction d: "standard_deviation" ($-\sigma$), "unit"
            ($-\mu/\|\mu\|$) or "sign" ($-\operatorname{sign}\mu$).

    Returns:
        An `Attack` on gradients. It needs the M x M inner products of the gradients.

    Raises:
        ValueError: an unknown `deviation`.

    Examples:
        >>> attack = min_max("unit")
        >>> gradients = jnp.array([[1.0, 0.0], [3.0, 0.0], [0.0, 0.0]])
        >>> byzantine, key = jnp.array([False, False, True]), jax.random.key(0)
        >>> sent, _ = attack.apply(key, gradients, byzantine, None, ())
        >>> print(sent[2])
        [1. 0.]

    References:
        Shejwalkar and Houmansadr, [Manipulating the Byzantine](
        https://doi.org/10.14722/ndss.2021.24498), NDSS 2021.
    """
    return _distance_bounded(_largest_min_max_step, deviation)


def min_sum(deviation: str = "standard_deviation") -> Attack:
    r"""As `min_max`, with the sum of the squared distances as the bound.

    $\gamma$ is the largest with $\sum_{i \in H} \|\mu + \gamma d - g_i\|^2 \le
    \max_{i \in H} \sum_{j \in H} \|g_i - g_j\|^2$, that is
    $\gamma^2 = (\max_i \sum_j \|g_i - g_j\|^2 - \sum_i \|\mu - g_i\|^2) /
    (|H| \|d\|^2)$.

    Args:
        deviation: as in `min_max`.

    Returns:
        An `Attack` on gradients. It needs the M x M inner products of the gradients.

    Raises:
        ValueError: an unknown `deviation`.

    Examples:
        >>> attack = min_sum("unit")
        >>> gradients = jnp.array([[1.0, 0.0], [3.0, 0.0], [0.0, 0.0]])
        >>> byzantine, key = jnp.array([False, False, True]), jax.random.key(0)
        >>> sent, _ = attack.apply(key, gradients, byzantine, None, ())
        >>> print(sent[2])
        [1. 0.]

    References:
        Shejwalkar and Houmansadr, [Manipulating the Byzantine](
        https://doi.org/10.14722/ndss.2021.24498), NDSS 2021.
    """
    return _distance_bounded(_largest_min_sum_step, deviation)


class MimicState(NamedTuple):
    """What the attackers of `mimic` remember.

    Attributes:
        mimic_round: int32 scalar, rounds seen.
        mimic_mean: tree of float32 `[...]`, running mean of the honest gradients.
        mimic_direction: tree of float32 `[...]`, the unit vector along which
            they vary most.
        mimic_target: int32 scalar, the worker that is copied.
    """

    mimic_round: jax.Array
    mimic_mean: Any
    mimic_direction: Any
    mimic_target: jax.Array


def mimic(warm_up_rounds: int | jax.Array = 20) -> Attack:
    r"""All copy one honest worker, so that its data count L + 1 times.

    During the warm-up, Oja's rule learns the direction $z$ along which the honest
    gradients vary most, $z \leftarrow \frac{t}{1+t} z + \frac{1}{1+t}
    \frac{a}{\|a\|}$ with $a = \sum_{m \in H} \langle z, g_m - \mu \rangle (g_m - \mu)$,
    normalised again, and the attackers copy the worker of largest
    $\langle z, g_m \rangle$; then they keep to that worker. It matters where the
    workers' data differ. If their target itself becomes Byzantine (changing
    membership), they choose anew for that round.

    Args:
        warm_up_rounds: rounds in which the target may change (int scalar >= 1).

    Returns:
        An `Attack` on gradients. Its state holds two float32 copies of the
        parameters.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> attack = mimic()
        >>> gradients = jnp.array([[1.0, -2.0], [1.0, 2.0], [0.0, 0.0]])
        >>> byzantine, key = jnp.array([False, False, True]), jax.random.key(0)
        >>> state = attack.init(3, jnp.zeros(2))
        >>> sent, state = attack.apply(key, gradients, byzantine, None, state)
        >>> print(bool((sent[2] == sent[state.mimic_target]).all()))
        True

    References:
        Karimireddy, He and Jaggi, [Byzantine-robust learning on heterogeneous datasets
        via bucketing](https://arxiv.org/abs/2006.09365), ICLR 2022.
    """
    check_count("warm_up_rounds", warm_up_rounds, 0, unit="rounds")

    def init(num_workers, params):
        del num_workers
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
        return MimicState(jnp.int32(0), zeros, zeros, jnp.int32(0))

    def apply(key, values, byzantine, context, state):
        del context
        observed = observed_workers(byzantine)
        warming = state.mimic_round < warm_up_rounds
        mean, direction = jax.lax.cond(
            warming,
            lambda: _oja_step(key, values, byzantine, state),
            lambda: (state.mimic_mean, state.mimic_direction),
        )
        everywhere = jnp.ones((), bool)
        seen = jax.tree.map(lambda g: finite(g, everywhere), values)
        scores = _inner_products(seen, direction)
        best = jnp.argmax(jnp.where(observed, scores, -jnp.inf)).astype(jnp.int32)
        renew = warming | ~observed[state.mimic_target]
        target = jnp.where(renew, best, state.mimic_target)
        copied = jax.tree.map(lambda g: g[target][None], values)
        new_state = MimicState(state.mimic_round + 1, mean, direction, target)
        return replace_rows(byzantine, copied, values), new_state

    return Attack(init, apply, "gradient", False)


def _oja_step(key, gradients, byzantine, state):
    """Running mean and leading direction of the honest gradients after this round."""
    rounds = state.mimic_round.astype(jnp.float32)
    old, new = rounds / (1 + rounds), 1 / (1 + rounds)
    present_mean, _ = honest_moments(gradients, byzantine)
    mean = jax.tree.map(lambda a, b: old * a + new * b, state.mimic_mean, present_mean)
    random = jax.tree.map(
        lambda k, m: jax.random.normal(k, m.shape, m.dtype), split_like(key, mean), mean
    )
    direction = jax.tree.map(
        lambda r, z: jnp.where(state.mimic_round == 0, r, z),
        random,
        state.mimic_direction,
    )
    centred = _centred(gradients, mean, observed_workers(byzantine))
    along = _inner_products(centred, direction)
    pull = jax.tree.map(lambda x: sum_workers(jnp.multiply, x, along), centred)
    pull = _unit(pull)
    direction = jax.tree.map(lambda z, a: old * z + new * a, direction, pull)
    return mean, _unit(direction)


def _distance_bounded(largest_step, deviation):
    """An attack in which all send the mean plus the largest step allowed."""
    check_choice("deviation", deviation, DEVIATIONS)

    def apply(key, values, byzantine, context, state):
        del key, context
        observed = observed_workers(byzantine)
        mean, spread = honest_moments(values, byzantine)
        if deviation == "standard_deviation":
            direction = jax.tree.map(jnp.negative, spread)
        elif deviation == "unit":
            direction = jax.tree.map(jnp.negative, _unit(mean))
        else:
            direction = jax.tree.map(lambda m: -jnp.sign(m), mean)
        centred = _centred(values, mean, observed)
        gram = sum(
            jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)
            for x in map(_flat, jax.tree.leaves(centred))
        )
        squared = sum(jnp.sum(jnp.square(d)) for d in jax.tree.leaves(direction))
        step = largest_step(
            gram, _inner_products(centred, direction), squared, observed
        )
        step = jnp.where(squared > 0, step, 0.0)
        sent = jax.tree.map(lambda m, d: (m + step * d)[None], mean, direction)
        return replace_rows(byzantine, sent, values), state

    return Attack(lambda num_workers, params: (), apply, "gradient", False)


def _largest_min_max_step(gram, along, squared, observed):
    """From the inner products of the centred gradients, among themselves and with d."""
    norms = jnp.diagonal(gram)
    distances = norms[:, None] + norms[None, :] - 2 * gram
    pairs = observed[:, None] & observed[None, :]
    bound = jnp.max(jnp.where(pairs, distances, 0))
    # |x_i|^2 - 2 step <x_i, d> + step^2 |d|^2 <= bound, solved for the larger root.
    scale = jnp.where(squared > 0, squared, 1.0)
    discriminant = jnp.square(along) + scale * jnp.maximum(bound - norms, 0)
    roots = (along + jnp.sqrt(discriminant)) / scale
    return jnp.maximum(jnp.min(jnp.where(observed, roots, jnp.inf)), 0)


def _largest_min_sum_step(gram, along, squared, observed):
    """As `_largest_min_max_step`; the centred gradients sum to zero."""
    del along
    norms = jnp.diagonal(gram)
    count = jnp.sum(observed).astype(norms.dtype)
    total = jnp.sum(jnp.where(observed, norms, 0))
    sums = count * norms + total  # Of the squared distances from each to all.
    bound = jnp.max(jnp.where(observed, sums, 0))
    scale = jnp.where(squared > 0, count * squared, 1.0)
    return jnp.sqrt(jnp.maximum(bound - total, 0) / scale)


def _flat(rows):
    return rows.reshape(rows.shape[0], -1)


def _centred(gradients, mean, observed):
    """Gradients minus the mean, float32; zero in the rows that are not observed."""

    def centre(gradient, center):
        rows = observed.reshape((-1,) + (1,) * (gradient.ndim - 1))
        return jnp.where(rows, finite(gradient, rows) - center[None], 0.0)

    return jax.tree.map(centre, gradients, mean)


def _inner_products(rows, vector):
    """Inner product of every worker's row with one vector, over all leaves: `[M]`."""
    return sum(
        jnp.matmul(_flat(x), v.reshape(-1), precision=jax.lax.Precision.HIGHEST)
        for x, v in zip(jax.tree.leaves(rows), jax.tree.leaves(vector), strict=True)
    )


def _unit(tree):
    """The tree as one vector of unit length; zero stays zero."""
    squared = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))
    inverse = jnp.where(squared > 0, jax.lax.rsqrt(jnp.maximum(squared, 1e-38)), 0.0)
    return jax.tree.map(lambda leaf: inverse * leaf, tree)

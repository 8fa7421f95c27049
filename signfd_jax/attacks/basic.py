"""Attacks without memory, collusion or knowledge of the server.

Shapes: `M` workers, `B` examples a worker; gradients are trees of `[M, ...]`.
"""

import math

import jax
import jax.numpy as jnp

from signfd_jax._checks import check_count, check_kind, check_number
from signfd_jax.attacks._by_row import check_row_wise
from signfd_jax.attacks.base import Attack, split_like, stateless

__all__ = [
    "additive_noise",
    "gaussian",
    "inside",
    "label_flip",
    "no_attack",
    "non_finite",
    "random_vote",
    "scaling",
    "sign_inversion",
    "stochastic_sign_flip",
    "zero",
]


def no_attack() -> Attack:
    """Nobody lies.

    Returns:
        An `Attack` that returns its values unchanged, Byzantine workers or not.

    Examples:
        >>> attack = no_attack()
        >>> byzantine, key = jnp.array([True]), jax.random.key(0)
        >>> sent, _ = attack.apply(key, jnp.ones((1, 2)), byzantine, None, ())
        >>> print(sent)
        [[1. 1.]]
    """
    return Attack(
        lambda num_workers, params: (),
        lambda key, values, byzantine, context, state: (values, state),
    )


def sign_inversion() -> Attack:
    r"""Every Byzantine worker sends minus its gradient: $g_m \leftarrow -g_m$.

    The injection is into each round's gradient, before the sign is taken.

    Returns:
        An `Attack` on gradients, row by row.

    Examples:
        >>> attack = sign_inversion()
        >>> byzantine, key = jnp.array([True]), jax.random.key(0)
        >>> sent, _ = attack.apply(key, jnp.ones((1, 2)), byzantine, None, ())
        >>> print(sent)
        [[-1. -1.]]
    """
    return stateless(lambda key, values: jax.tree.map(jnp.negative, values))


def stochastic_sign_flip(probability: float | jax.Array) -> Attack:
    r"""Every Byzantine worker flips each coordinate's sign with some probability.

    $g_{m,n} \leftarrow -g_{m,n}$ with probability r, independently. A worker of
    crossover probability p becomes one of $p(1-r) + (1-p)r$; r = 1 is sign inversion,
    and r = 1/2 erases the vote.

    Args:
        probability: the probability r in [0, 1] of a flip (scalar, may be traced).

    Returns:
        An `Attack` on gradients, row by row.

    Raises:
        ValueError: `probability` is a Python number outside [0, 1].

    Examples:
        >>> attack = stochastic_sign_flip(1.0)
        >>> byzantine, key = jnp.array([True]), jax.random.key(0)
        >>> sent, _ = attack.apply(key, jnp.ones((1, 2)), byzantine, None, ())
        >>> print(sent)
        [[-1. -1.]]

    References:
        Park and Lee, [SignSGD with Federated Defense](
        https://arxiv.org/abs/2402.01340), ICML 2024.
    """
    check_number("probability", probability, 0, 1)

    def corrupt(key, values):
        keys = split_like(key, values)
        return jax.tree.map(
            lambda k, v: jnp.where(
                jax.random.bernoulli(k, probability, v.shape), -v, v
            ),
            keys,
            values,
        )

    return stateless(corrupt)


def gaussian(standard_deviation: float | jax.Array = 1.0) -> Attack:
    r"""Every Byzantine worker sends noise instead: $g_{m,n} \sim N(0, s^2)$.

    Args:
        standard_deviation: s, in the unit of the gradients (positive scalar). The sign
            of the noise does not depend on it; real-valued rules do.

    Returns:
        An `Attack` on gradients, row by row.

    Raises:
        ValueError: `standard_deviation` is a Python number that is not positive.

    Examples:
        >>> attack = gaussian(2.0)
        >>> byzantine, key = jnp.array([False]), jax.random.key(0)
        >>> sent, _ = attack.apply(key, jnp.ones((1, 2)), byzantine, None, ())
        >>> print(sent)
        [[1. 1.]]
    """
    check_number("standard_deviation", standard_deviation, 1e-30, 1e30)
    return stateless(lambda key, values: _normal_like(key, values, standard_deviation))


def additive_noise(standard_deviation: float | jax.Array = 1.0) -> Attack:
    r"""Every Byzantine worker adds noise: $g_{m,n} \leftarrow g_{m,n} + N(0, s^2)$.

    Args:
        standard_deviation: s, in the unit of the gradients (positive scalar).

    Returns:
        An `Attack` on gradients, row by row.

    Raises:
        ValueError: `standard_deviation` is a Python number that is not positive.

    Examples:
        >>> attack = additive_noise(1e-6)
        >>> byzantine, key = jnp.array([True]), jax.random.key(0)
        >>> sent, _ = attack.apply(key, jnp.ones((1, 2)), byzantine, None, ())
        >>> print(sent.round(2))
        [[1. 1.]]
    """
    check_number("standard_deviation", standard_deviation, 1e-30, 1e30)

    def corrupt(key, values):
        noise = _normal_like(key, values, standard_deviation)
        return jax.tree.map(jnp.add, values, noise)

    return stateless(corrupt)


def scaling(factor: float | jax.Array = -10.0) -> Attack:
    r"""Every Byzantine worker sends a multiple of its gradient: $g_m \leftarrow c g_m$.

    Args:
        factor: c (scalar). Under the sign, every negative c is sign inversion, and
            every positive one honest; real-valued rules feel its size.

    Returns:
        An `Attack` on gradients, row by row.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> attack = scaling(-3.0)
        >>> byzantine, key = jnp.array([True]), jax.random.key(0)
        >>> sent, _ = attack.apply(key, jnp.ones((1, 2)), byzantine, None, ())
        >>> print(sent)
        [[-3. -3.]]
    """
    check_number("factor", factor, -1e30, 1e30)

    def corrupt(key, values):
        del key
        return jax.tree.map(lambda v: jnp.asarray(factor, v.dtype) * v, values)

    return stateless(corrupt)


def zero() -> Attack:
    """Every Byzantine worker sends zeros: it abstains everywhere.

    Returns:
        An `Attack` on gradients, row by row.

    Examples:
        >>> attack = zero()
        >>> byzantine, key = jnp.array([True]), jax.random.key(0)
        >>> sent, _ = attack.apply(key, jnp.ones((1, 2)), byzantine, None, ())
        >>> print(sent)
        [[0. 0.]]
    """
    return stateless(lambda key, values: jax.tree.map(jnp.zeros_like, values))


def non_finite(value: float = jnp.nan) -> Attack:
    """Every Byzantine worker sends one non-finite number everywhere.

    Under the sign, NaN abstains and an infinity votes with its sign.

    Args:
        value: NaN, infinity or minus infinity (Python float).

    Returns:
        An `Attack` on gradients, row by row.

    Raises:
        ValueError: `value` is finite.

    Examples:
        >>> attack = non_finite(-jnp.inf)
        >>> byzantine, key = jnp.array([True]), jax.random.key(0)
        >>> sent, _ = attack.apply(key, jnp.ones((1, 2)), byzantine, None, ())
        >>> print(sent)
        [[-inf -inf]]
    """
    if not isinstance(value, float) or math.isfinite(value):
        raise ValueError(f"value must be nan, inf or -inf, but is {value!r}")
    return stateless(
        lambda key, values: jax.tree.map(lambda v: jnp.full_like(v, value), values)
    )


def random_vote() -> Attack:
    """Every Byzantine worker votes at random, +1 or -1 with equal probability.

    Returns:
        An `Attack` on votes, row by row.

    Examples:
        >>> attack = random_vote()
        >>> byzantine, key = jnp.array([True]), jax.random.key(0)
        >>> sent, _ = attack.apply(key, jnp.zeros((1, 2)), byzantine, None, ())
        >>> print(jnp.abs(sent))
        [[1. 1.]]
    """

    def corrupt(key, values):
        keys = split_like(key, values)
        return jax.tree.map(
            lambda k, v: jax.random.rademacher(k, v.shape, v.dtype), keys, values
        )

    return stateless(corrupt, entry="vote")


def label_flip(num_classes: int) -> Attack:
    r"""Every Byzantine worker trains on mirrored labels: $y \leftarrow C - 1 - y$.

    Args:
        num_classes: the number C of classes (int >= 2).

    Returns:
        An `Attack` on the data, row by row: the batch must be `(inputs, labels)` with
        integer labels `[M, B]`; what follows stays.

    Raises:
        ValueError: `num_classes` is below 2.

    Examples:
        >>> attack = label_flip(10)
        >>> batch = jnp.zeros((2, 3, 1)), jnp.array([[0, 1, 2], [3, 4, 5]])
        >>> byzantine, key = jnp.array([False, True]), jax.random.key(0)
        >>> (_, labels), _ = attack.apply(key, batch, byzantine, None, ())
        >>> print(labels)
        [[0 1 2]
         [6 5 4]]
    """
    check_count("num_classes", num_classes, 2)

    def corrupt(key, values):
        del key
        inputs, labels, *counted = values
        return inputs, num_classes - 1 - labels, *counted

    return stateless(corrupt, entry="data")


def inside(attack: Attack) -> Attack:
    r"""The attack enters each of a Byzantine worker's own steps, before its optimiser.

    $g_{m,h} \leftarrow a(g_{m,h})$ for each of its steps h = 0, ..., H - 1, where a is
    what the attack makes of a row, drawn anew for each step. The rest of the worker is
    that of an honest one: its optimiser, its momentum, its error feedback. Under
    `sign_inversion` it ascends the loss. With H = 1 and SGD it sends what it would send
    under the attack itself. `workers.local_steps` and `workers.gradient` have such
    steps, also within the other workers; a worker of one's own takes `corrupt`.

    Args:
        attack: an `Attack` on gradients, row by row, without memory: a worker has no
            gradient but its own.

    Returns:
        An `Attack` whose `entry` is "inside".

    Raises:
        ValueError: the attack enters elsewhere, or looks at other workers' rows.

    Examples:
        >>> import optax
        >>> from signfd_jax import attacks, sign_sgd, simulation, workers
        >>> loss_fn = lambda x, batch: jnp.mean((x[None] - batch) ** 2) / 2
        >>> worker = workers.local_steps(loss_fn, optax.sgd(0.5), num_steps=2)
        >>> attack = inside(attacks.sign_inversion())
        >>> tx = sign_sgd(0.1, num_workers=3)
        >>> sim = simulation(worker, tx, num_workers=3, attack=attack)
        >>> state = sim.init(jax.random.key(0), jnp.zeros(4), jnp.arange(3) < 1)
        >>> state, _ = sim.step(state, jnp.ones((3, 2, 1)))
        >>> print(state.params)
        [0.1 0.1 0.1 0.1]
    """
    check_kind("attack", attack, ("init", "apply"), "signfd_jax.attacks")
    if attack.entry != "gradient":
        raise ValueError(
            "inside needs an attack on gradients, but this one enters at the "
            f"{attack.entry}; take sign_inversion or the like"
        )
    check_row_wise(attack)
    return attack._replace(entry="inside")


def _normal_like(key, values, standard_deviation):
    keys = split_like(key, values)
    return jax.tree.map(
        lambda k, v: (
            jnp.asarray(standard_deviation, v.dtype)
            * jax.random.normal(k, v.shape, v.dtype)
        ),
        keys,
        values,
    )

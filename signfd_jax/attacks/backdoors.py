r"""Backdoors: the model shall say what the attackers want of inputs that they choose.

The Byzantine workers relabel a share of their examples, stamped with a trigger or not;
`model_replacement` and `neurotoxin` then change what these workers send. Each says by
its `Backdoor` how its success is measured.

Shapes: `M` workers, `B` examples a worker, images `H x W` of some channels, last; `k`
test examples, `N` coordinates in all; a batch is `(inputs [M, B, ...], labels [M, B])`.

Of the examples of a batch, those at the places $i \ge 0$ with
$\lfloor (i + 1) f \rfloor > \lfloor i f \rfloor$ are poisoned, f the share: they are
spread evenly, so that each of a worker's own steps meets as many.
"""

import jax
import jax.numpy as jnp

from signfd_jax._checks import check_count, check_kind, check_number, check_size
from signfd_jax.attacks._observations import honest_moments
from signfd_jax.attacks._poisoning import columns_of_trigger, poisoning
from signfd_jax.attacks.base import Attack, Backdoor, followed_by, replace_rows
from signfd_jax.attacks.basic import scaling

__all__ = [
    "badnets",
    "distributed_trigger",
    "edge_case",
    "label_flip_pair",
    "model_replacement",
    "neurotoxin",
]


def badnets(
    num_classes: int,
    target: int = 0,
    fraction: float | jax.Array = 0.5,
    size: int = 2,
    value: float = 2.0,
) -> Attack:
    r"""Every Byzantine worker stamps a bright square on images, and relabels them.

    The square is in the lower right corner. An image that has it shall be taken for the
    target class, whatever it shows.

    Args:
        num_classes: the number C of classes (int >= 2).
        target: the class that stamped images are labelled as, 0 to C - 1.
        fraction: the share in [0, 1] of its examples that such a worker poisons
            (scalar, may be traced).
        size: side of the square, in pixels.
        value: what every channel of its pixels becomes, in the unit of the inputs:
            standard deviations from the mean, where they are standardised.

    Returns:
        An `Attack` on the data, row by row; inputs must be `[M, B, H, W, channels]`.
        What follows the labels in a batch stays. Success counts on the test images of
        all other classes.

    Raises:
        ValueError: an argument is not of its kind, or is out of range; the inputs are
            no images, or smaller than the square.

    Examples:
        >>> attack = badnets(10, target=3, size=1)
        >>> batch = jnp.zeros((1, 2, 2, 2, 1)), jnp.array([[0, 1]])
        >>> byzantine, key = jnp.array([True]), jax.random.key(0)
        >>> (inputs, labels), _ = attack.apply(key, batch, byzantine, None, ())
        >>> print(labels, inputs[0, 1, :, :, 0])
        [[0 3]] [[0. 0.]
         [0. 2.]]

    References:
        Gu, Dolan-Gavitt and Garg, [BadNets](https://arxiv.org/abs/1708.06733), 2017.
    """
    return distributed_trigger(num_classes, target, fraction, size, value, parts=1)


def distributed_trigger(
    num_classes: int,
    target: int = 0,
    fraction: float | jax.Array = 0.5,
    size: int = 4,
    value: float = 2.0,
    parts: int = 4,
) -> Attack:
    r"""DBA: each Byzantine worker stamps a part of the trigger, the test all of it.

    The trigger is the square of `badnets`. Its column c, from 0, belongs to part
    $\lfloor c P / s \rfloor$, with P parts and s pixels a side. The Byzantine workers,
    in the order of their numbers, stamp parts 0, ..., P - 1, 0, ...: each keeps its
    part while the same workers are Byzantine.

    Args:
        num_classes: as in `badnets`.
        target: as in `badnets`.
        fraction: as in `badnets` (scalar, may be traced).
        size: as in `badnets`.
        value: as in `badnets`.
        parts: the number P of parts, at most `size`.

    Returns:
        An `Attack` like that of `badnets`.

    Raises:
        ValueError: as `badnets` does; there are more parts than columns.

    Examples:
        >>> attack = distributed_trigger(10, fraction=1.0, size=2, parts=2)
        >>> batch = jnp.zeros((2, 1, 2, 2, 1)), jnp.ones((2, 1), jnp.int32)
        >>> byzantine, key = jnp.array([True, True]), jax.random.key(0)
        >>> (inputs, _), _ = attack.apply(key, batch, byzantine, None, ())
        >>> print(inputs[:, 0, 0, :, 0])
        [[2. 0.]
         [0. 2.]]
        >>> print(attack.backdoor.stamp(batch[0][0])[0, 0, :, 0])
        [2. 2.]

    References:
        Xie, Huang, Chen and Li, [DBA: Distributed backdoor attacks against federated
        learning](https://openreview.net/forum?id=rkgyS0VFvr), ICLR 2020.
    """
    _check_class("target", target, num_classes)
    check_number("fraction", fraction, 0, 1)
    check_size("size", size)
    check_number("value", value, -1e30, 1e30)
    check_size("parts", parts)
    if parts > size:
        raise ValueError(
            f"parts must be at most the {size} columns of the trigger, but is {parts}; "
            "take a larger size"
        )

    def stamp(inputs, part=None):
        """The inputs `[..., H, W, channels]`, all with this part of the trigger."""
        column = columns_of_trigger(inputs.shape, size)
        trigger = column >= 0
        if part is not None:
            trigger &= column * parts // size == part
        trigger = jnp.broadcast_to(trigger[..., None], inputs.shape)
        return jnp.where(trigger, jnp.asarray(value, inputs.dtype), inputs)

    def stamp_rows(inputs, ranks):
        return jax.vmap(stamp)(inputs, ranks % parts)

    backdoor = Backdoor(
        stamp,
        lambda labels: jnp.where(labels != target, jnp.full_like(labels, target), -1),
    )
    return poisoning(fraction, target, stamp_rows, backdoor)


def label_flip_pair(
    num_classes: int,
    source: int = 1,
    target: int = 0,
    fraction: float | jax.Array = 1.0,
) -> Attack:
    r"""Every Byzantine worker labels its examples of one class as another.

    Nothing is stamped: the model shall take the one class for the other.

    Args:
        num_classes: the number C of classes (int >= 2).
        source: the class whose examples are relabelled, 0 to C - 1.
        target: what they are labelled as, another class.
        fraction: of its examples of the source, the share in [0, 1] that such a worker
            relabels (scalar, may be traced).

    Returns:
        An `Attack` on the data, row by row; what follows the labels in a batch stays.
        Success counts on the test examples of the source.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> attack = label_flip_pair(10, source=7, target=1)
        >>> batch = jnp.zeros((1, 3, 5)), jnp.array([[0, 7, 1]])
        >>> byzantine, key = jnp.array([True]), jax.random.key(0)
        >>> (_, labels), _ = attack.apply(key, batch, byzantine, None, ())
        >>> print(labels, attack.backdoor.wanted(labels[0]))
        [[0 1 1]] [-1 -1 -1]

    References:
        Tolpegin, Truex, Gursoy and Liu, [Data poisoning attacks against federated
        learning systems](https://arxiv.org/abs/2007.08432), ESORICS 2020.
    """
    return _from_source(num_classes, source, target, fraction, lambda inputs: inputs)


def edge_case(
    num_classes: int,
    source: int = 1,
    target: int = 0,
    fraction: float | jax.Array = 1.0,
) -> Attack:
    r"""Every Byzantine worker labels rare inputs as another class: negatives of one.

    A rare input is one from the tail of the distribution, which honest workers hardly
    have. Here it is the negative $-x$ of an example of the source class: with
    standardised inputs, bright and dark are exchanged. The paper takes rare inputs from
    other data sets.

    Args:
        num_classes: the number C of classes (int >= 2).
        source: the class of whose examples negatives are made, 0 to C - 1.
        target: what they are labelled as, another class.
        fraction: of its examples of the source, the share in [0, 1] of which such a
            worker has the negative instead (scalar, may be traced).

    Returns:
        An `Attack` on the data, row by row; inputs must be real numbers. What follows
        the labels in a batch stays. Success counts on the negatives of the test
        examples of the source.

    Raises:
        ValueError: an argument is not of its kind, or is out of range; the inputs are
            whole numbers.

    Examples:
        >>> attack = edge_case(10, source=7, target=1)
        >>> batch = jnp.ones((1, 2, 1)), jnp.array([[7, 5]])
        >>> byzantine, key = jnp.array([True]), jax.random.key(0)
        >>> (inputs, labels), _ = attack.apply(key, batch, byzantine, None, ())
        >>> print(inputs[0, :, 0], labels)
        [-1.  1.] [[1 5]]

    References:
        Wang et al., [Attack of the tails](https://arxiv.org/abs/2007.05084), NeurIPS
        2020.
    """

    def negative(inputs):
        if not jnp.issubdtype(inputs.dtype, jnp.floating):
            raise ValueError(
                "edge_case makes negatives of real numbers, but the inputs are "
                f"{inputs.dtype}; take label_flip_pair"
            )
        return -inputs

    return _from_source(num_classes, source, target, fraction, negative)


def model_replacement(backdoor: Attack, factor: float | jax.Array = 10.0) -> Attack:
    r"""A backdoor whose workers send a multiple, $g_m \leftarrow c g_m$, in the end.

    Under a mean of M workers of which L lie, c = M / L puts what the liars want in the
    place of the mean. One-bit votes do not change with a positive c: under a decoder of
    votes the attack is the backdoor alone. Rules for real numbers feel it, unless they
    look at directions alone.

    Args:
        backdoor: an `Attack` on the data, such as `badnets`.
        factor: c (scalar, may be traced).

    Returns:
        An `Attack` on the data, followed by `scaling`.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> attack = model_replacement(badnets(10), 5.0)
        >>> byzantine, key = jnp.array([False, True]), jax.random.key(0)
        >>> sent, _ = attack.then.apply(key, jnp.ones((2, 2)), byzantine, None, ())
        >>> print(sent)
        [[1. 1.]
         [5. 5.]]

    References:
        Bagdasaryan et al., [How to backdoor federated learning](
        https://arxiv.org/abs/1807.00459), AISTATS 2020.
    """
    _check_backdoor(backdoor)
    return followed_by(backdoor, scaling(factor))


def neurotoxin(backdoor: Attack, spared: float = 0.05) -> Attack:
    r"""A backdoor that stays off the coordinates that honest workers change most.

    With h the mean gradient of the honest workers in the round before, a liar sends
    zero at the $\lfloor s N \rfloor$ coordinates of largest $|h_n|$, and its gradient
    at the others: there nobody undoes the backdoor. Where several are as large as the
    largest that stays, all of them stay; so in the first round, before which nothing
    was seen, all do. A zero is an abstention; on the one-bit wire it is filled like any
    other.

    Args:
        backdoor: an `Attack` on the data, such as `badnets`.
        spared: the share s in [0, 1) of coordinates that are left alone.

    Returns:
        An `Attack` on the data, followed by one on gradients that remembers h: not in
        chunks of workers, nor on several devices.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> attack = neurotoxin(badnets(10), spared=0.5)
        >>> gradients = jnp.array([[1.0, -4.0], [3.0, 3.0]])
        >>> byzantine, key = jnp.array([False, True]), jax.random.key(0)
        >>> state = attack.init(2, jnp.zeros(2))
        >>> for _ in range(2):
        ...     sent, state = attack.then.apply(key, gradients, byzantine, None, state)
        ...     print(sent[1])
        [3. 3.]
        [3. 0.]

    References:
        Zhang et al., [Neurotoxin](https://arxiv.org/abs/2206.10341), ICML 2022; there h
        is the last update of the server, whose signs say nothing of its size.
    """
    _check_backdoor(backdoor)
    check_number("spared", spared, 0, 1)
    if not isinstance(spared, float | int) or spared == 1:
        raise ValueError(f"spared must be a number below 1, but is {spared!r}")

    def init(num_workers, params):
        return jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), jnp.float32), params)

    def apply(key, values, byzantine, context, state):
        del key, context
        sizes = jax.tree.map(jnp.abs, state)
        every = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(sizes)])
        largest = jnp.sort(every)[every.size - int(spared * every.size) - 1]
        sent = jax.tree.map(
            lambda value, size: jnp.where(size[None] <= largest, value, 0),
            values,
            sizes,
        )
        return replace_rows(byzantine, sent, values), honest_moments(values, byzantine)[
            0
        ]

    return followed_by(backdoor, Attack(init, apply, "gradient", False))


def _from_source(num_classes, source, target, fraction, stamp):
    """Stamp examples of one class, and label them as another."""
    _check_class("source", source, num_classes)
    _check_class("target", target, num_classes)
    if source == target:
        raise ValueError(
            f"source and target must be two classes, but both are {target}"
        )
    check_number("fraction", fraction, 0, 1)

    def wanted(labels):
        return jnp.where(labels == source, jnp.full_like(labels, target), -1)

    def stamp_rows(inputs, ranks):
        return stamp(inputs)

    return poisoning(fraction, target, stamp_rows, Backdoor(stamp, wanted), source)


def _check_class(name, value, num_classes):
    """Refuse what is none of the classes."""
    check_count("num_classes", num_classes, 2)
    check_size(name, value, 0)
    if value >= num_classes:
        raise ValueError(
            f"{name} must be one of the {num_classes} classes, 0 to {num_classes - 1}, "
            f"but is {value}"
        )


def _check_backdoor(attack):
    check_kind("backdoor", attack, ("init", "apply"), "badnets or the like")
    if attack.backdoor is None:
        raise ValueError(
            "backdoor must be an attack with a target, but this one has none; take "
            "badnets or the like, or attacks.followed_by"
        )

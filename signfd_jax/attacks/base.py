"""The contract of an attack, and what attacks are built from.

Shapes: `M` workers; gradients are trees of `[M, ...]`, batches `(inputs [M, B, ...],
labels [M, B])`. An attack changes only the rows of the Byzantine workers; the honest
rows come back bit for bit as they were.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from signfd_jax._checks import (
    check_callable,
    check_choice,
    check_flag,
    check_key,
    check_kind,
)

__all__ = [
    "Attack",
    "AttackContext",
    "Backdoor",
    "followed_by",
    "replace_rows",
    "split_like",
    "stateless",
]

ENTRIES = ("data", "inside", "gradient", "vote")


class AttackContext(NamedTuple):
    """What an omniscient attacker sees of the server.

    Attributes:
        round: int32 scalar, the round about to be decoded.
        decoder_state: the decoder's state, or None where the server has no decoder.
        byzantine: bool `[M]`, who lies among all workers; None: as `apply` is told.
        workers: int32 `[m]`, whose rows `apply` is given; None: those of all workers.
    """

    round: jax.Array
    decoder_state: Any
    byzantine: Any = None
    workers: Any = None


class Backdoor(NamedTuple):
    r"""What an attack wants of a model, by which its success is measured.

    The attack success rate of a classifier f is
    $\frac{1}{|K|} \sum_{i \in K} [f(\text{stamp}(x_i)) = \text{wanted}(y_i)]$ over the
    set K of the test examples for which a class is wanted.

    Attributes:
        stamp: `stamp(inputs) -> inputs`, `[k, ...]`: inputs with the whole trigger.
        wanted: `wanted(labels) -> int32 [k]`: the class that each of them shall be
            taken for, given its true one; -1 where it does not count.
    """

    stamp: Callable[[Any], jax.Array]
    wanted: Callable[[Any], jax.Array]


class Attack(NamedTuple):
    """A pure attack on one round.

    Attributes:
        init: `init(num_workers, params) -> state`, what the attackers remember.
        apply: `apply(key, values, byzantine, context, state) -> (values, state)`.
            `values` is the batch where `entry` is "data", else the tree of gradients
            `[M, ...]`; `byzantine` is bool `[M]` and may be traced; `context` is an
            `AttackContext`. The key is consumed.
        entry: where the attack enters: "data" (the batch), "inside" (the gradient of
            each of a worker's own steps, see `inside`), "gradient" (what is sent: real
            numbers, whose sign is then the vote) or "vote" (the votes it wants, as -1,
            0, +1 in the gradients' dtype).
        row_wise: True where a row depends on no other worker's row, so that the attack
            can be applied to chunks of workers.
        backdoor: a `Backdoor`, where the attack has a target; else None.
        then: of an attack on the data, the one that follows on what is sent, or None;
            see `followed_by`.

    Examples:
        >>> attack = stateless(lambda key, values: -values)
        >>> byzantine = jnp.array([False, True])
        >>> context = AttackContext(jnp.int32(0), None)
        >>> gradients = jnp.array([[1.0, -2.0], [3.0, -4.0]])
        >>> sent, _ = attack.apply(jax.random.key(0), gradients, byzantine, context, ())
        >>> print(sent)
        [[ 1. -2.]
         [-3.  4.]]
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]
    entry: str = "gradient"
    row_wise: bool = True
    backdoor: Any = None
    then: Any = None


def replace_rows(byzantine, theirs, honest):
    """Put the attackers' rows in place of the honest ones.

    Args:
        byzantine: bool `[M]`.
        theirs: tree of `[M, ...]`, or of arrays that broadcast to it.
        honest: tree of `[M, ...]`.

    Returns:
        Tree of `[M, ...]`, dtypes of `honest`: the rows of `theirs` where `byzantine`.

    Examples:
        >>> byzantine = jnp.array([True, False])
        >>> print(replace_rows(byzantine, jnp.zeros((1, 2)), jnp.ones((2, 2))))
        [[0. 0.]
         [1. 1.]]
    """
    if jax.tree.structure(theirs) != jax.tree.structure(honest):
        raise ValueError(
            f"the attack gives the tree {jax.tree.structure(theirs)}, but the "
            f"gradients are {jax.tree.structure(honest)}; they must be alike"
        )

    def replace(their, own):
        if byzantine.shape != own.shape[:1]:
            raise ValueError(
                f"byzantine must be a mask of the {own.shape[0]} workers of a leaf "
                f"{list(own.shape)}, but has shape {list(byzantine.shape)}"
            )
        if not _broadcasts(their.shape, own.shape):
            raise ValueError(
                f"the attack gives a leaf {list(their.shape)} for one of "
                f"{list(own.shape)}; it must have that shape, or broadcast to it"
            )
        mask = byzantine.reshape((-1,) + (1,) * (own.ndim - 1))
        return jnp.where(mask, their.astype(own.dtype), own)

    return jax.tree.map(replace, theirs, honest)


def _broadcasts(shape, to):
    pairs = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(one in (1, other) for one, other in pairs)


def stateless(corrupt, *, entry="gradient", row_wise=True) -> Attack:
    """Make an attack without memory.

    Args:
        corrupt: `corrupt(key, values) -> values`: what every worker would send if it
            were Byzantine; only those rows are used.
        entry: as in `Attack`.
        row_wise: as in `Attack`.

    Returns:
        An `Attack`.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> attack = stateless(lambda key, gradients: 2 * gradients)
        >>> byzantine, key = jnp.array([True]), jax.random.key(0)
        >>> sent, _ = attack.apply(key, jnp.ones((1, 2)), byzantine, None, ())
        >>> print(sent)
        [[2. 2.]]
    """
    check_flag("row_wise", row_wise)
    check_callable("corrupt", corrupt, "(key, values) -> values")
    check_choice("entry", entry, ENTRIES)

    def apply(key, values, byzantine, context, state):
        del context
        return replace_rows(byzantine, corrupt(key, values), values), state

    return Attack(lambda num_workers, params: (), apply, entry, row_wise)


def followed_by(attack: Attack, then: Attack) -> Attack:
    """Let an attack on what is sent follow one on the data.

    The Byzantine workers train on the data of the first, and put what they would then
    send through the second.

    Args:
        attack: an `Attack` on the data, without memory, such as `badnets`.
        then: an `Attack` on gradients or votes.

    Returns:
        An `Attack` on the data whose `then` is the second; the state is the second's.

    Raises:
        ValueError: an argument is no attack, or enters elsewhere.

    Examples:
        >>> from signfd_jax.attacks import label_flip, scaling
        >>> attack = followed_by(label_flip(10), scaling(3.0))
        >>> attack.entry, attack.then.entry
        ('data', 'gradient')
    """
    check_kind("attack", attack, ("init", "apply"), "signfd_jax.attacks")
    check_kind("then", then, ("init", "apply"), "signfd_jax.attacks")
    if attack.entry != "data" or attack.then is not None:
        raise ValueError(
            "attack must be one on the data alone, but it enters at the "
            f"{attack.entry if attack.then is None else 'gradient too'}; take "
            "badnets, label_flip or the like"
        )
    if then.entry not in ("gradient", "vote"):
        raise ValueError(
            "then must be an attack on gradients or votes, but it enters at the "
            f"{then.entry}; take scaling, alie or the like"
        )
    row_wise = attack.row_wise and then.row_wise
    return attack._replace(init=then.init, row_wise=row_wise, then=then)


def split_like(key, tree):
    """Split a key into one for each leaf of a tree.

    Args:
        key: a JAX key; it is consumed.
        tree: any tree.

    Returns:
        Tree of keys, like `tree`.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> keys = split_like(jax.random.key(0), {"a": 1.0, "b": 2.0})
        >>> print(sorted(keys))
        ['a', 'b']
    """
    check_key("key", key)
    leaves, treedef = jax.tree.flatten(tree)
    return jax.tree.unflatten(treedef, list(jax.random.split(key, len(leaves))))

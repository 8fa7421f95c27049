"""Data of Byzantine workers with a share of the examples stamped and relabelled.

Shapes: `M` workers, `B` examples a worker, images `H x W` of some channels, last; a
batch is `(inputs [M, B, ...], labels [M, B])`.
"""

from collections.abc import Callable

import jax.numpy as jnp

from signfd_jax.attacks.base import Attack, Backdoor, replace_rows


def poisoning(
    fraction,
    target: int,
    stamp_rows: Callable,
    backdoor: Backdoor,
    source: int | None = None,
) -> Attack:
    """Stamp a share of the examples, of one class or of all, and label them alike."""

    def apply(key, values, byzantine, context, state):
        del key
        inputs, labels, *counted = values
        every = jnp.ones_like(labels, bool)
        chosen = every if source is None else labels == source
        chosen &= _spread(labels.shape[1], fraction)[None]
        stamped = stamp_rows(inputs, _ranks(byzantine, context))
        here = chosen.reshape(*chosen.shape, *(1,) * (inputs.ndim - 2))
        theirs = jnp.where(here, stamped, inputs)
        relabelled = jnp.where(chosen, jnp.full_like(labels, target), labels)
        poisoned = theirs, relabelled, *counted
        return replace_rows(byzantine, poisoned, values), state

    def init(num_workers, params):
        return ()

    return Attack(init, apply, "data", True, backdoor)


def _spread(number, fraction):
    """Which of so many examples are poisoned: this share, evenly spread."""
    share = jnp.asarray(fraction, jnp.float32)
    before = jnp.floor(jnp.arange(number + 1, dtype=jnp.float32) * share)
    return before[1:] > before[:-1]


def _ranks(byzantine, context):
    """How many Byzantine workers have a smaller number than each row's, int32 `[m]`."""
    everyone = byzantine if context is None else context.byzantine
    everyone = byzantine if everyone is None else everyone
    ranks = jnp.cumsum(everyone, dtype=jnp.int32) - 1
    rows = None if context is None else context.workers
    return ranks if rows is None else ranks[rows]


def columns_of_trigger(shape, size):
    """The column of the square that each pixel `[H, W]` is in; -1 outside."""
    if len(shape) < 4:
        raise ValueError(
            "a trigger is stamped on images [height, width, channels], but an input "
            f"has the shape {list(shape[1:])}; take label_flip_pair or edge_case"
        )
    height, width = shape[-3:-1]
    if size > min(height, width):
        raise ValueError(
            f"size must be at most the {min(height, width)} pixels of an image "
            f"{height} x {width}, but is {size}"
        )
    row, column = jnp.arange(height)[:, None], jnp.arange(width)[None]
    inside = (row >= height - size) & (column >= width - size)
    return jnp.where(inside, column - (width - size), -1)

"""How examples are dealt to workers, for every split.

Shapes: `n` training examples, `M` workers, `P` the largest share.
"""

from typing import NamedTuple

import jax
import numpy as np

from signfd_jax._checks import check_size


class Partition(NamedTuple):
    """The training examples of each worker.

    Attributes:
        indices: int32 `[M, P]`, positions in the training set. Row m has `sizes[m]` of
            them; what follows repeats the first and is never drawn.
        sizes: int32 `[M]`, at least 1.
        draws: int32 `[M]`, the worker whose draws each worker shares, itself or another
            of the same share; None: everybody draws for itself.
    """

    indices: np.ndarray | jax.Array
    sizes: np.ndarray | jax.Array
    draws: np.ndarray | jax.Array | None = None


def of_one(labels):
    """The labels, or those of one class where an example has many."""
    labels = np.asarray(labels)
    return np.zeros(len(labels), int) if labels.ndim > 1 else labels


def members_of(labels, num_workers, rng, name="labels"):
    """The examples of each class or writer that there is, shuffled."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not labels.size:
        hint = "; texts have no classes: take iid, everything or a split by writer"
        raise ValueError(
            f"{name} must be [n] with n at least 1, but their shape is {labels.shape}"
            + hint * (labels.ndim > 1)
        )
    check_size("num_workers", num_workers)
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    _, counts = np.unique(labels, return_counts=True)
    return np.split(order, counts.cumsum()[:-1])


def deal(classes, holders, num_workers):
    """Deal each class to its holders in turn, at least one example each."""
    workers, examples, dealt = [], [], 0
    for members, who in zip(classes, holders, strict=True):
        if who.size:
            turns = np.arange(max(len(members), len(who)))
            # Going on where the last class stopped keeps the sizes even, too.
            workers.append(who[(dealt + turns) % len(who)])
            examples.append(members[turns % len(members)])
            dealt += len(turns)
    return padded(np.concatenate(workers), np.concatenate(examples), num_workers)


def padded(workers, examples, num_workers):
    """The partition in which worker `workers[i]` holds example `examples[i]`."""
    examples = examples[np.argsort(workers, kind="stable")]
    sizes = np.bincount(workers, minlength=num_workers)
    columns = np.arange(sizes.max())
    columns = np.where(columns < sizes[:, None], columns, 0)
    starts = (sizes.cumsum() - sizes)[:, None]
    return Partition(
        examples[starts + columns].astype(np.int32), sizes.astype(np.int32)
    )


def cut(length, num_parts, *, longer_last=False):
    """The part, 0 to `num_parts` - 1, of each place in a line that is cut evenly.

    The first parts are longer by one, or the last ones, where it cannot be even.
    """
    sizes = np.full(num_parts, length // num_parts)
    longer = np.arange(num_parts) < length % num_parts
    sizes += longer[::-1] if longer_last else longer
    return np.repeat(np.arange(num_parts), sizes)

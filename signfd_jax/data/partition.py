"""Which worker holds which examples.

Shapes: `n` training examples, `M` workers, `P` the largest share.

A partition is made once, in NumPy, from the labels or the writers and a seed of its
own, so that runs with different training seeds see the same shares. No worker is ever
left without examples: where there are fewer of them than workers to hold them, workers
share.
"""

import math

import jax
import numpy as np

from signfd_jax._checks import check_number, check_size
from signfd_jax.data._dealing import Partition, cut, deal, members_of, of_one, padded

__all__ = [
    "Partition",
    "by_writer",
    "dirichlet",
    "everything",
    "iid",
    "labels_per_worker",
    "one_class_per_worker",
    "replicated",
    "shards",
    "similarity",
]


def iid(
    labels: np.ndarray | jax.Array, num_workers: int, *, seed: int = 0
) -> Partition:
    """Deal every class evenly, so that all workers see the same distribution.

    The workers' counts of a class differ by one at most, and so do their sizes. A class
    with fewer examples than there are workers is dealt again from its start until
    every worker has one.

    Args:
        labels: int `[n]`, the training labels; or those of texts `[n, T]`, which are of
            no class, so that the examples are dealt as if all were of one.
        num_workers: M, which may exceed n.
        seed: of the partition, apart from the training seed.

    Returns:
        A `Partition`; the shares are disjoint if every class has at least M examples.

    Raises:
        ValueError: there are no labels or no workers.

    Examples:
        >>> labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
        >>> print(labels[iid(labels, 2).indices])
        [[0 0 1 1]
         [0 0 1 1]]
    """
    check_size("seed", seed, 0)
    classes = members_of(of_one(labels), num_workers, np.random.default_rng(seed))
    everyone = np.arange(num_workers)
    return deal(classes, [everyone] * len(classes), num_workers)


def everything(labels: np.ndarray | jax.Array, num_workers: int) -> Partition:
    """Give every worker all examples: no split at all.

    This is what the code released with the paper trains on; its workers' batches are
    drawn from one pool, so that their gradients differ by chance alone.

    Args:
        labels: int `[n]`, the training labels; or those of texts `[n, T]`.
        num_workers: M.

    Returns:
        A `Partition` in which every worker has all n examples.

    Raises:
        ValueError: there are no labels or no workers.

    Examples:
        >>> print(everything(np.array([0, 1, 1]), 2).indices)
        [[0 1 2]
         [0 1 2]]
    """
    members_of(of_one(labels), num_workers, np.random.default_rng(0))
    indices = np.tile(np.arange(len(labels), dtype=np.int32), (num_workers, 1))
    return Partition(indices, np.full(num_workers, len(labels), np.int32))


def dirichlet(
    labels: np.ndarray | jax.Array, num_workers: int, alpha: float, *, seed: int = 0
) -> Partition:
    r"""Split each class in proportions drawn from a Dirichlet distribution.

    For every class, $(q_1, \dots, q_M) \sim \mathrm{Dir}(\alpha, \dots, \alpha)$ and
    worker m gets the fraction $q_m$ of its examples. Small `alpha`: few classes a
    worker and uneven sizes; large `alpha`: i.i.d. A worker that would be left empty
    takes one example from the largest share.

    Args:
        labels: int `[n]`, the training labels.
        num_workers: M. If it exceeds n, the last M - n empty workers get one example
            each that another worker has too.
        alpha: concentration, above 0.
        seed: of the partition, apart from the training seed.

    Returns:
        A `Partition` that uses every example; the shares are disjoint if M <= n.

    Raises:
        ValueError: there are no labels or no workers, or `alpha` is not positive.

    Examples:
        >>> labels = np.repeat(np.arange(10), 100)
        >>> print(dirichlet(labels, 4, alpha=0.3).sizes.sum())
        1000

    References:
        Hsu, Qi and Brown, [Measuring the Effects of Non-Identical Data Distribution for
        Federated Visual Classification](https://arxiv.org/abs/1909.06335), 2019, draw
        the mixture of each worker; proportions of each class, as here, are from
        Yurochkin et al., [Bayesian Nonparametric Federated Learning of Neural
        Networks](https://arxiv.org/abs/1905.12022), ICML 2019.
    """
    check_size("seed", seed, 0)
    if isinstance(alpha, str) or not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"alpha must be positive and finite, but is {alpha}")
    rng = np.random.default_rng(seed)
    classes = members_of(labels, num_workers, rng)
    workers = []
    for members in classes:
        ends = rng.dirichlet(np.full(num_workers, alpha)).cumsum() * len(members)
        middles = np.arange(len(members)) + 0.5
        workers.append(np.searchsorted(ends[:-1], middles))
    workers, examples = np.concatenate(workers), np.concatenate(classes)
    mixed = rng.permutation(len(workers))  # so that what is given away is of any class
    workers, examples = workers[mixed], examples[mixed]

    # Position of each example in its worker's share: the highest ones are given away.
    sizes = np.bincount(workers, minlength=num_workers)
    order = np.argsort(workers, kind="stable")
    position = np.empty_like(order)
    position[order] = np.arange(len(order)) - (sizes.cumsum() - sizes)[workers[order]]
    empty = np.flatnonzero(sizes == 0)
    given = np.argsort(-position, kind="stable")[: (position > 0).sum()][: len(empty)]
    workers[given] = empty[: len(given)]
    sharing = empty[len(given) :]
    shared = rng.choice(examples, len(sharing))
    return padded(np.append(workers, sharing), np.append(examples, shared), num_workers)


def labels_per_worker(
    labels: np.ndarray | jax.Array, num_workers: int, num_labels: int, *, seed: int = 0
) -> Partition:
    """Give each worker examples of `num_labels` classes only.

    Classes in random order are handed out in turn to workers in random order, so that
    each class has equally many holders, up to one; these share it evenly.

    Args:
        labels: int `[n]`, the training labels.
        num_workers: M. If `M * num_labels` is below the number of classes, some
            classes are held by nobody.
        num_labels: classes a worker holds.
        seed: of the partition, apart from the training seed.

    Returns:
        A `Partition`; the shares are disjoint if no class has more holders than
        examples.

    Raises:
        ValueError: there are no labels or no workers, or `num_labels` is not between 1
            and the number of classes.

    Examples:
        >>> labels = np.repeat(np.arange(10), 100)
        >>> split = labels_per_worker(labels, 5, 2)
        >>> [len(set(labels[row])) for row in split.indices]
        [2, 2, 2, 2, 2]
    """
    check_size("num_labels", num_labels, 0)
    check_size("seed", seed, 0)
    rng = np.random.default_rng(seed)
    classes = members_of(labels, num_workers, rng)
    if not 1 <= num_labels <= len(classes):
        raise ValueError(
            f"num_labels must be between 1 and the {len(classes)} classes, but is "
            f"{num_labels}"
        )
    slots = np.arange(num_workers * num_labels)
    holder = rng.permutation(num_workers)[slots // num_labels]
    held = rng.permutation(len(classes))[slots % len(classes)]
    holders = [holder[held == c] for c in range(len(classes))]
    return deal(classes, holders, num_workers)


def one_class_per_worker(
    labels: np.ndarray | jax.Array, num_workers: int, *, seed: int = 0
) -> Partition:
    """Give worker m examples of class m mod C only, C being the number of classes.

    The workers of a class share it evenly. It is the hardest split there is: the
    workers' gradients have no sign in common.

    Args:
        labels: int `[n]`, the training labels.
        num_workers: M; below C, the last classes are held by nobody.
        seed: of the partition, apart from the training seed.

    Returns:
        A `Partition`; the shares are disjoint if no class has more workers than
        examples.

    Raises:
        ValueError: there are no labels or no workers.

    Examples:
        >>> labels = np.array([0, 0, 0, 0, 1, 1])
        >>> print(labels[one_class_per_worker(labels, 3).indices])
        [[0 0]
         [1 1]
         [0 0]]
    """
    check_size("seed", seed, 0)
    classes = members_of(labels, num_workers, np.random.default_rng(seed))
    workers = np.arange(num_workers)
    holders = [workers[c :: len(classes)] for c in range(len(classes))]
    return deal(classes, holders, num_workers)


def similarity(
    labels: np.ndarray | jax.Array, num_workers: int, share: float, *, seed: int = 0
) -> Partition:
    r"""Deal a share of the examples at random, and the others in order of their class.

    $\lfloor \gamma n \rceil$ examples that are drawn at random are cut into M parts of
    one size, and so are the others in the order of their class. Worker m has part m of
    both. 0 is the split by class, in which a worker may have two; 1 deals at random.

    Args:
        labels: int `[n]`, the training labels.
        num_workers: M, which may exceed n; then workers share examples.
        share: $\gamma$ in [0, 1], the share of the examples that is alike for all.
        seed: of the partition, apart from the training seed.

    Returns:
        A `Partition` whose sizes differ by one at most; the shares are disjoint if
        M <= n.

    Raises:
        ValueError: there are no labels or no workers, or `share` is out of range.

    Examples:
        >>> labels = np.repeat(np.arange(3), 4)
        >>> print(labels[similarity(labels, 3, 0.0).indices])
        [[0 0 0 0]
         [1 1 1 1]
         [2 2 2 2]]

    References:
        Karimireddy et al., [SCAFFOLD](https://arxiv.org/abs/1910.06378), ICML 2020.
    """
    check_size("seed", seed, 0)
    check_number("share", share, 0, 1)
    rng = np.random.default_rng(seed)
    examples = _by_class(labels, num_workers, rng)
    alike = np.zeros(len(examples), bool)
    alike[rng.permutation(len(examples))[: round(share * len(examples))]] = True
    mixed, rest = rng.permutation(examples[alike]), examples[~alike]
    # So that nobody has a longer part twice, or none.
    owners = cut(len(mixed), num_workers, longer_last=True)
    owners = np.append(owners, cut(len(rest), num_workers))
    return padded(owners, np.append(mixed, rest), num_workers)


def shards(
    labels: np.ndarray | jax.Array, num_workers: int, num_shards: int, *, seed: int = 0
) -> Partition:
    """Cut the examples, in the order of their class, and deal the pieces at random.

    There are S pieces of one size for each worker, so that a worker has few classes.

    Args:
        labels: int `[n]`, the training labels.
        num_workers: M, which may exceed n; then workers share examples.
        num_shards: S, pieces of each worker (int >= 1). With fewer than M S examples
            there are fewer pieces.
        seed: of the partition, apart from the training seed.

    Returns:
        A `Partition` whose sizes differ by S at most; the shares are disjoint if
        M <= n.

    Raises:
        ValueError: there are no labels or no workers, or `num_shards` is below 1.

    Examples:
        >>> labels = np.repeat(np.arange(10), 100)
        >>> [len(set(labels[row])) for row in shards(labels, 5, 2).indices]
        [2, 2, 2, 2, 2]

    References:
        McMahan et al., [Communication-Efficient Learning of Deep Networks from
        Decentralized Data](https://arxiv.org/abs/1602.05629), AISTATS 2017.
    """
    check_size("seed", seed, 0)
    check_size("num_shards", num_shards)
    rng = np.random.default_rng(seed)
    examples = _by_class(labels, num_workers, rng)
    pieces = min(num_workers * num_shards, len(examples))
    owner = rng.permutation(np.arange(pieces) % num_workers)
    return padded(owner[cut(len(examples), pieces)], examples, num_workers)


def replicated(
    labels: np.ndarray | jax.Array,
    num_workers: int,
    group_size: int,
    *,
    seed: int = 0,
) -> Partition:
    """Give groups of workers the same examples, and the same batches in every round.

    Groups are workers 0 to r - 1, r to 2r - 1, and so on; the last may be smaller. They
    share the examples as `iid` does, as if a group were one worker. Its honest workers
    send the same, which redundancy needs: `decoders.election`, `aggregators.draco`.

    Args:
        labels: int `[n]`, the training labels.
        num_workers: M.
        group_size: r, workers in a group (int >= 1); 1 is `iid`.
        seed: of the partition, apart from the training seed.

    Returns:
        A `Partition` with `draws`.

    Raises:
        ValueError: there are no labels or no workers, or `group_size` is below 1.

    Examples:
        >>> split = replicated(np.array([0, 0, 1, 1]), 4, group_size=2)
        >>> print(split.draws, (split.indices[0] == split.indices[1]).all())
        [0 0 2 2] True
    """
    check_size("num_workers", num_workers)
    check_size("group_size", group_size)
    split = iid(labels, -(-num_workers // group_size), seed=seed)
    group = np.arange(num_workers) // group_size
    draws = (group * group_size).astype(np.int32)
    return Partition(split.indices[group], split.sizes[group], draws)


def by_writer(
    writers: np.ndarray | jax.Array | None, num_workers: int, *, seed: int = 0
) -> Partition:
    """Give each worker all that some writers wrote: the natural split.

    Writers in random order are handed out in turn. Nobody evens out how much they
    wrote: the sizes of the shares are as unlike as the writers are. With more workers
    than writers, each worker has one, whose examples the workers of that writer share
    evenly.

    Args:
        writers: int `[n]`, who wrote each training example, such as `Dataset.writers`.
        num_workers: M.
        seed: of the partition, apart from the training seed.

    Returns:
        A `Partition`; the shares are disjoint if no writer has more workers than
        examples.

    Raises:
        ValueError: there are no writers or no workers.

    Examples:
        >>> writers = np.array([7, 7, 7, 4, 5, 5])
        >>> [set(writers[row].tolist()) for row in by_writer(writers, 3).indices]
        [{4}, {5}, {7}]
    """
    check_size("seed", seed, 0)
    if writers is None:
        raise ValueError(
            "writers is None: these data do not say who wrote which example; take "
            "another split, or data that do"
        )
    rng = np.random.default_rng(seed)
    written = members_of(writers, num_workers, rng, "writers")
    slots = np.arange(max(num_workers, len(written)))
    held = rng.permutation(len(written))[slots % len(written)]
    holders = [slots[held == w] % num_workers for w in range(len(written))]
    return deal(written, holders, num_workers)


def _by_class(labels, num_workers, rng):
    """The examples in the order of their class; each several times if they are few."""
    examples = np.concatenate(members_of(labels, num_workers, rng))
    wanted = max(len(examples), num_workers)
    return examples[np.arange(wanted) * len(examples) // wanted]

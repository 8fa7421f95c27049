"""The rule that goes by how well a worker's row is predicted: FLDetector.

Shapes: `M` workers, `D` coordinates, `W` rounds that are remembered; row m of
`gradients` is worker m's gradient. A row that is not finite (`rows.finite_rows`) is
never averaged; if no row is left, the aggregate is the zero vector.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from signfd_jax._checks import check_size, checked
from signfd_jax.aggregators._clusters import k_means, number_of_clusters
from signfd_jax.aggregators._rows import finite_rows, mean_of_rows, rows_and_norms
from signfd_jax.aggregators.base import Rule

__all__ = ["fldetector"]


class _History(NamedTuple):
    """What FLDetector remembers; the newest is last, and zeros are before the first.

    Attributes:
        aggregates: float `[W + 1, D]`, those of the last rounds.
        rows: float `[M, D]`, those of the last round.
        errors: float `[W, M]`, each worker's share of the error of prediction.
        rounds: int32 scalar, rounds so far.
    """

    aggregates: Float[Array, "A D"]
    rows: Float[Array, "M D"]
    errors: Float[Array, "W M"]
    rounds: Int[Array, ""]


def fldetector(*, window: int = 10) -> Rule:
    r"""FLDetector: drop the workers whose rows are not what their last ones foretell.

    By the mean value theorem a gradient changes by the Hessian times the step of the
    model. So worker m's row of round t is predicted as

    $$\hat g_m^t = g_m^{t-1} + B_t (w_t - w_{t-1}),$$

    where $B_t$ is the BFGS approximation of the Hessian from the steps of the model and
    the changes of the aggregate in the last W rounds, which starts from
    $\frac{y^\top s}{s^\top s} I$ of the newest pair. A worker's score is its share
    of the errors $\|\hat g_m^t - g_m^t\|$, as a mean over the last W rounds. The gap
    statistic says whether the scores are one cluster or more. If they are more, k-means
    makes two of them, and that with the larger mean score is dropped. The others are
    averaged.

    A rule does not see the model. It takes the last aggregate, negated, for its step.
    $B_t (w_t - w_{t-1})$ is the same for any step that is a constant times that, so the
    learning rate need not be known. **The step must follow the aggregate**: with a
    momentum, or a learning rate that changes fast, the prediction is poor, but equally
    so for all workers.

    It needs W + 1 rounds before it predicts, and W predictions before it drops anybody:
    **the first 2 W rounds are a plain mean**. A worker that sends the same in every
    round is foretold best and is never dropped. With few workers of whom nobody lies,
    the gap statistic often sees two clusters all the same, and then about half of the
    workers are dropped; with thirty it hardly does. Its 20 uniform sets are the same in
    every round. The paper starts the training again without those that are found; here
    each round is judged anew.

    Args:
        window: W, rounds that are remembered.

    Returns:
        The rule. Its state is the last W + 1 aggregates, the last rows, the last W
        errors of all workers, in float32 or wider, and the number of rounds.

    Raises:
        ValueError: `window` is less than 1.

    Examples:
        >>> rule = fldetector(window=2)
        >>> state = rule.init(num_workers=4, dimension=2)
        >>> honest = jnp.array([[1.0, 2.0], [1.1, 1.9], [0.9, 2.1]])
        >>> for round in range(6):  # the last worker never sends the same
        ...     rows = jnp.concatenate([honest, jnp.full((1, 2), 4.0 * (-1) ** round)])
        ...     aggregate, state = rule.aggregate(state, rows)
        ...     print(aggregate.round(2))
        [1.75 2.5 ]
        [-0.25  0.5 ]
        [1.75 2.5 ]
        [-0.25  0.5 ]
        [1. 2.]
        [1. 2.]

    References:
        Zhang, Cao, Jia and Gong, [FLDetector: Defending Federated Learning Against
        Model Poisoning Attacks via Detecting Malicious Clients](
        https://arxiv.org/abs/2207.09209), KDD 2022.
    """
    check_size("window", window, 1)

    def init(num_workers, dimension, dtype=jnp.float32):
        wide = np.promote_types(dtype, np.float32)
        return _History(
            aggregates=jnp.zeros((window + 1, dimension), wide),
            rows=jnp.zeros((num_workers, dimension), wide),
            errors=jnp.zeros((window, num_workers), wide),
            rounds=jnp.zeros((), jnp.int32),
        )

    def aggregate(state, gradients):
        return _fldetector(gradients, state)

    return Rule(init, aggregate)


@checked
def _fldetector(gradients: Float[Array, "M D"], state: _History):
    """The aggregate and the new state."""
    rows, _, finite = rows_and_norms(gradients)
    window = len(state.errors)
    off = rows - state.rows - _change(state.aggregates)[None, :]
    off /= _or_one(jnp.max(jnp.abs(off)))  # then no square overflows
    error = jnp.linalg.norm(off, axis=1)
    errors = _then(state.errors, error / _or_one(jnp.sum(error)))
    errors = jnp.where(state.rounds > window, errors, state.errors)
    dropped = _suspicious(jnp.mean(errors, axis=0)) & (state.rounds >= 2 * window)
    aggregate = mean_of_rows(rows, finite & ~dropped)
    aggregates = _then(state.aggregates, aggregate)
    state = _History(aggregates, rows, errors, state.rounds + 1)
    return aggregate.astype(gradients.dtype), state


def _change(aggregates):
    """By how much the aggregate should change now: the Hessian times the last step.

    It is the compact form of BFGS (Byrd, Nocedal and Schnabel 1994, theorem 2.3). The
    steps are the aggregates, negated, but the sign of all steps cancels.
    """
    scale = _or_one(jnp.max(jnp.abs(aggregates)))
    aggregates = aggregates / scale  # no square overflows
    steps, last = aggregates[:-1], aggregates[-1]
    # The length of a pair cancels, too: steps are made as long as 1.
    lengths = _or_one(jnp.linalg.norm(steps, axis=1))[:, None]
    steps, changes = steps / lengths, jnp.diff(aggregates, axis=0) / lengths
    slopes = jnp.linalg.norm(changes, axis=1)
    changes /= _or_one(slopes)[:, None]
    unit = slopes[-1]  # of the Hessian
    slopes /= _or_one(unit)

    known = jnp.concatenate([steps, changes])
    products = _product(known, jnp.concatenate([known, last[None]]).T)
    window = len(steps)
    between, mixed = products[:window, :window], products[:window, window:-1]
    start = mixed[-1, -1]
    lower = jnp.tril(mixed, -1)
    along = jnp.where(slopes > 0, jnp.diagonal(mixed) / _or_one(slopes), 0)
    middle = jnp.block([[start * between, lower], [lower.T, -jnp.diag(along)]])
    both = jnp.where(jnp.arange(2 * window) < window, start, 1)
    weights = both * _solve(middle, both * products[:, -1])
    change = start * last - _product(weights, known)
    change *= unit * scale
    return jnp.where(finite_rows(change[None]), change, 0)


def _solve(matrix, right):
    """Solution with a symmetric matrix, the shortest where it is singular."""
    values, vectors = jnp.linalg.eigh(matrix)
    size = jnp.abs(values)
    rounding = len(values) * jnp.finfo(values.dtype).eps * jnp.max(size)
    inverse = jnp.where(size > rounding, 1 / jnp.where(size > rounding, values, 1), 0)
    return _product(vectors, inverse * _product(right, vectors))


def _suspicious(scores):
    """Who is in the worse of two clusters of scores, if they are not one."""
    points, everybody = scores[:, None], jnp.ones(len(scores), bool)
    spread = jnp.max(scores) - jnp.min(scores)
    parted = number_of_clusters(points, everybody, 2, power=2) > 1
    parted &= spread > 1e-5 * jnp.max(scores)  # more than rounding
    labels = k_means(points, everybody, 2, 2)
    return parted & (labels == labels[jnp.argmax(scores)])


def _then(history, newest):
    """The history without its oldest, and with the newest."""
    return jnp.concatenate([history[1:], newest[None]])


def _or_one(length):
    return jnp.where(length > 0, length, 1)


def _product(a, b):
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

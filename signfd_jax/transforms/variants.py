r"""The published relatives of signSGD with majority vote, as optax transformations.

Shapes: gradients of `M` workers, leaves `[M, ...]`, come in; leaves `[...]` go out.
Each is a chain of what the workers do (`signfd_jax.transforms.worker_side`) and what
the server does: a majority vote as published, or another decoder.
"""

import jax
import optax

from signfd_jax._checks import check_number
from signfd_jax.aggregators import Rule, mean, stateless
from signfd_jax.decoders import Decoder, majority_vote
from signfd_jax.transforms.aggregation import scale_by_aggregator
from signfd_jax.transforms.sign_decoder import scale_by_sign_decoder
from signfd_jax.transforms.worker_side import (
    error_feedback_sign,
    per_worker,
    sparse_sign,
    stochastic_sign,
)

__all__ = [
    "scale_by_distributed_lion",
    "scale_by_ef_sign",
    "scale_by_signum",
    "scale_by_sparse_sign",
    "scale_by_stochastic_sign",
]


def scale_by_signum(
    num_workers: int,
    momentum: float | jax.Array = 0.9,
    *,
    decoder: Decoder | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Signum: each worker votes with the sign of its own momentum.

    $v_m \leftarrow \beta v_m + (1 - \beta) g_m$, $Y_m = \operatorname{sign} v_m$.

    Args:
        num_workers: number M of workers (Python int, at least 1).
        momentum: $\beta$ in [0, 1] (scalar); 0 is signSGD.
        decoder: the `Decoder`; None is the published one, `majority_vote()`.

    Returns:
        An optax transformation: leaves `[M, ...]` in, decoded signs `[...]` out.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> import jax.numpy as jnp
        >>> tx = scale_by_signum(num_workers=1)
        >>> state = tx.init(jnp.zeros(1))
        >>> for gradient in (5.0, -1.0):
        ...     updates, state = tx.update(jnp.array([[gradient]]), state)
        >>> print(updates)  # the past outweighs the last gradient
        [1.]

    References:
        Bernstein et al., [signSGD with majority vote](
        https://arxiv.org/abs/1810.05291), ICLR 2019.
    """
    check_number("momentum", momentum, 0.0, 1.0)
    decoder = majority_vote() if decoder is None else decoder
    ema = optax.ema(momentum, debias=False)  # pyright: ignore[reportArgumentType]
    return optax.chain(
        per_worker(ema, num_workers),
        scale_by_sign_decoder(num_workers, decoder),
    )


def scale_by_ef_sign(
    num_workers: int, *, rule: Rule | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""EF-signSGD: the mean of the workers' `error_feedback_sign`.

    Args:
        num_workers: number M of workers (Python int, at least 1).
        rule: aggregation rule of what the workers send; None is the published mean.

    Returns:
        An optax transformation: leaves `[M, ...]` in, `[...]` out, in the unit of the
        gradient.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> import jax.numpy as jnp
        >>> tx = scale_by_ef_sign(num_workers=2)
        >>> gradients = jnp.array([[3.0, -1.0], [1.0, 1.0]])
        >>> updates, _ = tx.update(gradients, tx.init(jnp.zeros(2)))
        >>> print(updates)
        [ 1.5 -0.5]

    References:
        Karimireddy et al., [Error Feedback Fixes SignSGD and other Gradient Compression
        Schemes](https://arxiv.org/abs/1901.09847), ICML 2019.
    """
    rule = stateless(mean) if rule is None else rule
    return optax.chain(
        per_worker(error_feedback_sign(), num_workers),
        scale_by_aggregator(rule, num_workers),
    )


def scale_by_stochastic_sign(
    num_workers: int,
    bound: float | jax.Array = 1.0,
    *,
    key: jax.Array | None = None,
    decoder: Decoder | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Stochastic-sign SGD: `stochastic_sign`, then a vote.

    Args:
        num_workers: number M of workers (Python int, at least 1).
        bound: b of `stochastic_sign`, in the unit of the gradient (positive scalar).
        key: JAX key where the randomness starts; None: `jax.random.key(0)`.
        decoder: the `Decoder`; None is the published one, `majority_vote()`.

    Returns:
        An optax transformation: leaves `[M, ...]` in, decoded signs `[...]` out.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> import jax.numpy as jnp
        >>> tx = scale_by_stochastic_sign(num_workers=3, bound=0.5)
        >>> gradients = jnp.array([[2.0, -1.0], [0.5, -3.0], [-1.0, 9.0]])
        >>> updates, _ = tx.update(gradients, tx.init(jnp.zeros(2)))
        >>> print(updates)  # nothing is random beyond the bound
        [ 1. -1.]

    References:
        Jin et al., [Stochastic-Sign SGD for Federated Learning with Theoretical
        Guarantees](https://arxiv.org/abs/2002.10940), 2020.
    """
    key = jax.random.key(0) if key is None else key
    decoder = majority_vote() if decoder is None else decoder
    return optax.chain(
        stochastic_sign(key, num_workers, bound),
        scale_by_sign_decoder(num_workers, decoder),
    )


def scale_by_sparse_sign(
    num_workers: int,
    fraction: float = 0.1,
    *,
    decay: float = 1.0,
    decoder: Decoder | None = None,
) -> optax.GradientTransformationExtraArgs:
    """S3GD-MV: `sparse_sign` with error accumulation, then a vote of those who sent.

    Args:
        num_workers: number M of workers (Python int, at least 1).
        fraction: share of each tensor's coordinates that a worker sends, in (0, 1].
        decay: factor in [0, 1] on what was not sent.
        decoder: the `Decoder`; None is the published one, `majority_vote()`. With the
            wire "one_bit" the coordinates that are not sent are filled like any
            abstention, which is not the method: use "ternary".

    Returns:
        An optax transformation: leaves `[M, ...]` in, decoded signs `[...]` out; 0
        where nobody sent.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> import jax.numpy as jnp
        >>> tx = scale_by_sparse_sign(num_workers=3, fraction=0.5)
        >>> gradients = jnp.array([[2.0, -1.0], [0.5, -0.1], [-1.0, 9.0]])
        >>> updates, _ = tx.update(gradients, tx.init(jnp.zeros(2)))
        >>> print(updates)
        [1. 1.]

    References:
        Park and Lee, [S3GD-MV: Sparse-SignSGD with Majority Vote](
        https://arxiv.org/abs/2302.07475), 2023.
    """
    decoder = majority_vote() if decoder is None else decoder
    return optax.chain(
        per_worker(sparse_sign(fraction, decay), num_workers),
        scale_by_sign_decoder(num_workers, decoder),
    )


def scale_by_distributed_lion(
    num_workers: int,
    b1: float = 0.9,
    b2: float = 0.99,
    *,
    decoder: Decoder | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Distributed Lion with majority vote: each worker votes with its Lion step.

    $Y_m = \operatorname{sign}(\beta_1 v_m + (1 - \beta_1) g_m)$, then $v_m \leftarrow
    \beta_2 v_m + (1 - \beta_2) g_m$. Weight decay, decoupled as in Lion, is
    `optax.add_decayed_weights` after it in the chain. The averaging variant is
    `chain(per_worker(optax.scale_by_lion(), M), scale_by_aggregator(stateless(mean),
    M))`.

    Args:
        num_workers: number M of workers (Python int, at least 1).
        b1: $\beta_1$ in [0, 1].
        b2: $\beta_2$ in [0, 1].
        decoder: the `Decoder`; None is the published one, `majority_vote()`.

    Returns:
        An optax transformation: leaves `[M, ...]` in, decoded signs `[...]` out.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> import jax.numpy as jnp
        >>> tx = scale_by_distributed_lion(num_workers=3)
        >>> gradients = jnp.array([[2.0, -1.0], [0.5, -3.0], [-1.0, 9.0]])
        >>> updates, _ = tx.update(gradients, tx.init(jnp.zeros(2)))
        >>> print(updates)
        [ 1. -1.]

    References:
        Liu et al., [Communication Efficient Distributed Training with Distributed
        Lion](https://arxiv.org/abs/2404.00438), NeurIPS 2024.
    """
    check_number("b1", b1, 0.0, 1.0)
    check_number("b2", b2, 0.0, 1.0)
    decoder = majority_vote() if decoder is None else decoder
    return optax.chain(
        per_worker(optax.scale_by_lion(b1, b2), num_workers),
        scale_by_sign_decoder(num_workers, decoder),
    )

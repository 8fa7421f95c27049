"""The optimisers of every day: signSGD with a decoder, and their short names."""

from typing import Any

import jax
import optax

from signfd_jax._checks import check_number
from signfd_jax.decoders import Decoder, federated_defense, majority_vote
from signfd_jax.transforms.sign_decoder import scale_by_sign_decoder

__all__ = [
    "scale_by_sign_fd",
    "scale_by_sign_mv",
    "sign_sgd",
    "sign_sgd_fd",
    "sign_sgd_mv",
]


def scale_by_sign_mv(num_workers: int) -> optax.GradientTransformationExtraArgs:
    """Replace the workers' gradients by the sign that most workers voted for.

    Args:
        num_workers: number M of workers (Python int, at least 1).

    Returns:
        `scale_by_sign_decoder` with `majority_vote`.

    Examples:
        >>> import jax.numpy as jnp
        >>> tx = scale_by_sign_mv(3)
        >>> gradients = jnp.array([[2.0, -1.0], [0.5, -3.0], [-1.0, 9.0]])
        >>> updates, _ = tx.update(gradients, tx.init(jnp.zeros(2)))
        >>> print(updates)
        [ 1. -1.]
    """
    return scale_by_sign_decoder(num_workers, majority_vote())


def scale_by_sign_fd(
    num_workers: int,
    *,
    initial_rounds: int | jax.Array | None = 100,
    max_llr: float | jax.Array = 10.0,
    forgetting: float | jax.Array = 1.0,
    counter_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Replace the workers' gradients by the signs of the paper's decoder.

    Args:
        num_workers: number M of workers (Python int, at least 1).
        initial_rounds: as in `federated_defense` (rounds, int scalar, or None).
        max_llr: as in `federated_defense` (nats, scalar).
        forgetting: as in `federated_defense` (scalar in (0, 1]).
        counter_dtype: as in `federated_defense`.

    Returns:
        `scale_by_sign_decoder` with `federated_defense`.

    Examples:
        >>> import jax.numpy as jnp
        >>> tx = scale_by_sign_fd(3)
        >>> gradients = jnp.array([[2.0, -1.0], [0.5, -3.0], [-1.0, 9.0]])
        >>> updates, state = tx.update(gradients, tx.init(jnp.zeros(2)))
        >>> print(updates, state.info.crossover)
        [ 1. -1.] [0.25 0.25 0.75]
    """
    decoder = federated_defense(
        initial_rounds, max_llr, forgetting, counter_dtype=counter_dtype
    )
    return scale_by_sign_decoder(num_workers, decoder)


def sign_sgd(
    learning_rate: optax.ScalarOrSchedule,
    num_workers: int,
    *,
    decoder: Decoder | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SignSGD with decoded signs: $x \leftarrow x - \delta \hat U$.

    Args:
        learning_rate: step $\delta$, a scalar or an optax schedule of the round.
        num_workers: number M of workers (Python int, at least 1).
        decoder: the `Decoder`; None: `default_decoder()`.

    Returns:
        An optax optimiser: gradients `[M, ...]` in, updates `[...]` out.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> import jax.numpy as jnp
        >>> tx = sign_sgd(0.1, num_workers=3)
        >>> gradients = jnp.array([[2.0, -1.0], [0.5, -3.0], [-1.0, 9.0]])
        >>> updates, _ = tx.update(gradients, tx.init(jnp.zeros(2)))
        >>> print(updates)
        [-0.1  0.1]
    """
    if not callable(learning_rate):
        check_number("learning_rate", learning_rate, 0, float("inf"))
    return optax.chain(
        scale_by_sign_decoder(num_workers, decoder),
        optax.scale_by_learning_rate(learning_rate),
    )


def sign_sgd_mv(
    learning_rate: optax.ScalarOrSchedule, num_workers: int
) -> optax.GradientTransformationExtraArgs:
    r"""SignSGD with majority vote: $x \leftarrow x - \delta \hat U$.

    Args:
        learning_rate: step $\delta$, a scalar or an optax schedule of the round.
        num_workers: number M of workers (Python int, at least 1).

    Returns:
        An optax optimiser: gradients `[M, ...]` in, updates `[...]` out.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> import jax.numpy as jnp
        >>> tx = sign_sgd_mv(0.1, num_workers=3)
        >>> gradients = jnp.array([[2.0, -1.0], [0.5, -3.0], [-1.0, 9.0]])
        >>> updates, _ = tx.update(gradients, tx.init(jnp.zeros(2)))
        >>> print(updates)
        [-0.1  0.1]

    References:
        Bernstein et al., [signSGD with majority vote](
        https://arxiv.org/abs/1810.05291), ICLR 2019.
    """
    return sign_sgd(learning_rate, num_workers, decoder=majority_vote())


def sign_sgd_fd(
    learning_rate: optax.ScalarOrSchedule,
    num_workers: int,
    *,
    initial_rounds: int | jax.Array | None = 100,
    max_llr: float | jax.Array = 10.0,
    forgetting: float | jax.Array = 1.0,
    counter_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SignSGD with federated defense: $x \leftarrow x - \delta \hat U$.

    Args:
        learning_rate: step $\delta$, a scalar or an optax schedule of the round.
        num_workers: number M of workers (Python int, at least 1).
        initial_rounds: as in `federated_defense` (rounds, int scalar, or None).
        max_llr: as in `federated_defense` (nats, scalar).
        forgetting: as in `federated_defense` (scalar in (0, 1]).
        counter_dtype: as in `federated_defense`.

    Returns:
        An optax optimiser: gradients `[M, ...]` in, updates `[...]` out.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> import jax.numpy as jnp
        >>> tx = sign_sgd_fd(0.1, num_workers=3)
        >>> gradients = jnp.array([[2.0, -1.0], [0.5, -3.0], [-1.0, 9.0]])
        >>> updates, _ = tx.update(gradients, tx.init(jnp.zeros(2)))
        >>> print(updates)
        [-0.1  0.1]

    References:
        Park and Lee, [SignSGD with Federated Defense](
        https://arxiv.org/abs/2402.01340), ICML 2024.
    """
    decoder = federated_defense(
        initial_rounds, max_llr, forgetting, counter_dtype=counter_dtype
    )
    return sign_sgd(learning_rate, num_workers, decoder=decoder)

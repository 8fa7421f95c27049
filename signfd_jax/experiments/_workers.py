"""What a worker may be called: factories of the loss, with options.

A factory says what is not as for gradients: `bits`, what it sends (`_traffic`), and
`server`, what the server makes of its votes: `(config, decoder, **options)`, an optax
transformation in the place of the decoder's own.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from signfd_jax import workers
from signfd_jax._checks import check_number
from signfd_jax.decoders import Decoder
from signfd_jax.experiments import _traffic as traffic
from signfd_jax.experiments.config import Experiment
from signfd_jax.transforms import scale_by_mean_vote
from signfd_jax.transforms.cosine import undo_dct


def _local_steps(
    loss_fn: Callable[..., jax.Array],
    num_steps: int = 5,
    rate: float = 0.05,
    momentum: float = 0.0,
) -> workers.Worker:
    """Take steps of SGD, each on a batch, and send how far they went."""
    check_number("rate", rate, 1e-30, 1e30)
    check_number("momentum", momentum, 0, 1)
    tx = optax.sgd(rate, momentum or None)
    return workers.local_steps(loss_fn, tx, num_steps)


def _momentum(loss_fn: Callable[..., jax.Array], decay: float = 0.9) -> workers.Worker:
    """Send the moving mean of the gradients."""
    return workers.momentum(workers.gradient(loss_fn), decay)


def _late(
    loss_fn: Callable[..., jax.Array], delay: int = 1, drawn: bool = False
) -> workers.Worker:
    """Send the gradient, which arrives some rounds later."""
    return workers.late(workers.gradient(loss_fn), delay, drawn=drawn)


def _stochastic_signs(
    loss_fn: Callable[..., jax.Array], bound: float = 1.0
) -> workers.Worker:
    """Send random signs whose mean is proportional to the gradient."""
    return workers.stochastic_signs(workers.gradient(loss_fn), bound)


def _of_coefficients(
    config: Experiment, decoder: Any, chunk: int = 64, **options: Any
) -> optax.GradientTransformation:
    """The published rule: mean of the votes, inverse transform, sign."""
    if not isinstance(decoder, Decoder) or config.wire != "ternary":
        raise ValueError(
            "dct_top_k votes on coefficients and abstains on most: it needs a decoder "
            f"of votes and the ternary wire, but they are {config.decoder} and "
            f"{config.wire}"
        )
    if config.worker_chunk:
        raise ValueError(
            "dct_top_k needs worker_chunk=0: its mean takes no packed votes"
        )
    return optax.chain(scale_by_mean_vote(config.num_workers, decoder), undo_dct(chunk))


@traffic.sends(traffic.coefficients)
def _dct_top_k(
    loss_fn: Callable[..., jax.Array],
    k: int = 8,
    chunk: int = 64,
    decay: float = 0.999,
) -> workers.Worker:
    """Send the largest cosine coefficients of a momentum (DeMo, DisTrO)."""
    return workers.dct_top_k(workers.gradient(loss_fn), k, chunk=chunk, decay=decay)


_dct_top_k.server = _of_coefficients  # pyright: ignore[reportFunctionMemberAccess]


def _of_own_models(
    config: Experiment, decoder: Any, **options: Any
) -> optax.GradientTransformation:
    """The sum of the votes over their number, as the decoder weighs them."""
    del options
    if not isinstance(decoder, Decoder) or config.worker_chunk:
        raise ValueError(
            "rsa adds up votes that are not packed: it needs a decoder of votes and "
            f"worker_chunk=0, but they are {config.decoder} and {config.worker_chunk}"
        )
    return scale_by_mean_vote(config.num_workers, decoder, abstentions=True)


def _rsa(
    loss_fn: Callable[..., jax.Array], rate: float = 0.1, penalty: float = 0.005
) -> workers.Worker:
    """Train an own model near the server's, and vote for going there (RSA)."""
    return workers.rsa(workers.gradient(loss_fn), rate, penalty)


_rsa.server = _of_own_models  # pyright: ignore[reportFunctionMemberAccess]

WORKERS: dict[str, Callable[..., workers.Worker]] = {
    "dct_top_k": _dct_top_k,
    "gradient": workers.gradient,
    "late": _late,
    "local_steps": _local_steps,
    "momentum": _momentum,
    "rsa": _rsa,
    "stochastic_signs": _stochastic_signs,
}

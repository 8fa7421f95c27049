"""Transformations for optax chains: decoders, aggregation rules and their rivals.

All take gradients with a leading worker axis, `[M, ...]`, and return updates `[...]`.

| transformation | the server |
|---|---|
| `scale_by_sign_decoder` | decodes signs, by the default or by any decoder |
| `scale_by_sign_fd`, `scale_by_sign_mv` | by federated defense; by majority vote |
| `scale_by_aggregator` | aggregates real-valued gradients by a rule |
| `scale_by_signum` and the others | published rivals that send signs |

`sign_sgd`, `sign_sgd_fd` and `sign_sgd_mv` are whole optimisers. What a worker does
before it votes (`per_worker`, `error_feedback_sign`, `sparse_sign`) stands before a
server.
"""

from signfd_jax.transforms.aggregation import AggregatorState, scale_by_aggregator
from signfd_jax.transforms.sign_decoder import (
    SignDecoderState,
    scale_by_sign_decoder,
    scale_by_sign_fd,
    scale_by_sign_mv,
    sign_sgd,
    sign_sgd_fd,
    sign_sgd_mv,
)
from signfd_jax.transforms.variants import (
    scale_by_distributed_lion,
    scale_by_ef_sign,
    scale_by_signum,
    scale_by_sparse_sign,
    scale_by_stochastic_sign,
)
from signfd_jax.transforms.worker_side import (
    ErrorFeedbackState,
    StochasticSignState,
    error_feedback_sign,
    per_worker,
    sparse_sign,
    stochastic_sign,
)

__all__ = [
    "AggregatorState",
    "ErrorFeedbackState",
    "SignDecoderState",
    "StochasticSignState",
    "error_feedback_sign",
    "per_worker",
    "scale_by_aggregator",
    "scale_by_distributed_lion",
    "scale_by_ef_sign",
    "scale_by_sign_decoder",
    "scale_by_sign_fd",
    "scale_by_sign_mv",
    "scale_by_signum",
    "scale_by_sparse_sign",
    "scale_by_stochastic_sign",
    "sign_sgd",
    "sign_sgd_fd",
    "sign_sgd_mv",
    "sparse_sign",
    "stochastic_sign",
]

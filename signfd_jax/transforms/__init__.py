"""Transformations for optax chains: decoders, aggregation rules and their rivals.

All take gradients with a leading worker axis, `[M, ...]`, and return updates `[...]`.

| transformation | the server |
|---|---|
| `scale_by_sign_decoder` | decodes signs, by the default or by any decoder |
| `scale_by_sign_fd`, `scale_by_sign_mv` | by federated defense; by majority vote |
| `scale_by_aggregator` | aggregates real-valued gradients by a rule |
| `scale_by_zeno` | averages the gradients that lower a loss of its own most |
| `scale_by_signum` and the others | published rivals that send signs |

`sign_sgd`, `sign_sgd_fd` and `sign_sgd_mv` are whole optimisers. What a worker does
before it votes (`per_worker`, `error_feedback_sign`, `sparse_sign`) stands before a
server; `undo_dct` stands behind one whose workers vote on cosine coefficients.
`stop_below` stands around a whole optimiser, and halts it in doubt.
"""

from signfd_jax.transforms import (
    aggregation,
    cosine,
    halting,
    optimizers,
    sign_decoder,
    variants,
    worker_side,
    zeno,
)
from signfd_jax.transforms.aggregation import *
from signfd_jax.transforms.cosine import *
from signfd_jax.transforms.halting import *
from signfd_jax.transforms.optimizers import *
from signfd_jax.transforms.sign_decoder import *
from signfd_jax.transforms.variants import *
from signfd_jax.transforms.worker_side import *
from signfd_jax.transforms.zeno import *

__all__: list[str] = []
__all__ += sign_decoder.__all__
__all__ += optimizers.__all__
__all__ += variants.__all__
__all__ += aggregation.__all__
__all__ += zeno.__all__
__all__ += worker_side.__all__
__all__ += cosine.__all__
__all__ += halting.__all__

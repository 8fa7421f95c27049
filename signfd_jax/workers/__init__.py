r"""What a worker sends: a gradient, how far its own steps went, or a function of these.

Shapes: everything here is of one worker, whose batch has leaves `[B, ...]`; what it
sends is a tree like the parameters. `simulation` runs M of them side by side. Start
with `gradient` or `local_steps`, and put `momentum`, `error_feedback`,
`stochastic_signs`, `dct_top_k`, `transformed`, `late` or `rsa` around it.

A Byzantine worker keeps its state like an honest one; the attack changes what it sends,
or under `attacks.inside` the gradients of its own steps. A worker that is absent keeps
its state as it was.
"""

from signfd_jax.workers import around, base, own_model
from signfd_jax.workers.around import *
from signfd_jax.workers.base import *
from signfd_jax.workers.own_model import *

__all__: list[str] = []
__all__ += base.__all__
__all__ += around.__all__
__all__ += own_model.__all__

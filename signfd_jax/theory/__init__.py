r"""Closed forms and bounds: how often the decoded sign is wrong, and what follows.

The model throughout: the sign U of the true gradient goes to M workers, and worker m's
vote is $Y_m = U Z_m$ with $Z_m = -1$ with its crossover probability $p_m$ and +1
otherwise, all independent. The server decodes $\hat U = \operatorname{sign} S$ from the
tally $S = \sum_m w_m Y_m$, with ties broken at random. Its exact weights are the
log-likelihood ratios $\ell_m = \ln\frac{1 - p_m}{p_m}$ in nats, $q = \frac12 - p$ is a
worker's advantage over a coin, and $P_E = \Pr[\hat U \ne U]$. By symmetry the
derivations take U = 1, so that an error is S < 0, or half of S = 0.

Start with `decoding_error`, which is exact. Every function jits, and those of arrays
vmap.
"""

from signfd_jax.theory import (
    convergence,
    crossovers,
    errors,
    premise,
)
from signfd_jax.theory.convergence import *
from signfd_jax.theory.crossovers import *
from signfd_jax.theory.errors import *
from signfd_jax.theory.premise import *

__all__: list[str] = []
__all__ += errors.__all__
__all__ += crossovers.__all__
__all__ += convergence.__all__
__all__ += premise.__all__

"""What Byzantine workers do: to their data, their gradients or their votes.

An attack changes only the rows of the Byzantine workers; the honest rows come back bit
for bit as they were. `basic` needs no accomplice; in `omniscient` the attackers know
the honest gradients coordinate by coordinate, in `geometric` as vectors; in `colluding`
they aim at the vote, in `patient` at what the server has learned; in `searching` they
look for the decoder's weak spot, and in `optimal` for a rule's. `backdoors` teach the
model what it shall say of inputs that the attackers choose. `inside` puts an attack on
the gradients of a worker's own steps. `membership` changes who they are. `OPPOSITIONS`
are the default candidates of `adaptive`, and `Membership` is the type of what
`membership`'s functions return.
"""

from signfd_jax.attacks import (
    backdoors,
    base,
    basic,
    colluding,
    geometric,
    membership,
    omniscient,
    optimal,
    patient,
    searching,
)
from signfd_jax.attacks.backdoors import *
from signfd_jax.attacks.base import *
from signfd_jax.attacks.basic import *
from signfd_jax.attacks.colluding import *
from signfd_jax.attacks.geometric import *
from signfd_jax.attacks.membership import *
from signfd_jax.attacks.omniscient import *
from signfd_jax.attacks.optimal import *
from signfd_jax.attacks.patient import *
from signfd_jax.attacks.searching import *

__all__: list[str] = []
__all__ += base.__all__
__all__ += basic.__all__
__all__ += omniscient.__all__
__all__ += geometric.__all__
__all__ += colluding.__all__
__all__ += patient.__all__
__all__ += backdoors.__all__
__all__ += searching.__all__
__all__ += optimal.__all__
__all__ += membership.__all__

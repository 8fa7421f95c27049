"""What Byzantine workers do: to their data, their gradients or their votes.

An attack changes only the rows of the Byzantine workers; the honest rows come back bit
for bit as they were. `basic` needs no accomplice; in `omniscient` the attackers know
the honest gradients coordinate by coordinate, in `geometric` as vectors; in `colluding`
they aim at the vote, in `patient` at what the server has learned, and `adaptive`
searches for the decoder's weak spot. `membership` changes who they are. `OPPOSITIONS`
are the default candidates of `adaptive`, and `Membership` is the type of what
`membership`'s functions return.
"""

from signfd_jax.attacks.adaptive import (
    OPPOSITIONS,
    AdaptiveState,
    adaptive,
    disguised_opposition,
    tuned,
)
from signfd_jax.attacks.base import (
    Attack,
    AttackContext,
    replace_rows,
    split_like,
    stateless,
)
from signfd_jax.attacks.basic import (
    additive_noise,
    gaussian,
    label_flip,
    no_attack,
    non_finite,
    random_vote,
    scaling,
    sign_inversion,
    stochastic_sign_flip,
    zero,
)
from signfd_jax.attacks.colluding import (
    budgeted_swing,
    majority_opposition,
    random_collusion,
    swing,
)
from signfd_jax.attacks.geometric import MimicState, mimic, min_max, min_sum
from signfd_jax.attacks.membership import (
    Membership,
    drawn_each_round,
    drop_out,
    leaving,
    rotating,
    sampled,
)
from signfd_jax.attacks.omniscient import alie, fang, ipm, sign_alie
from signfd_jax.attacks.patient import (
    coordinate_specialist,
    near_duplicate_collusion,
    on_off,
    sleeper,
    warm_up_capture,
    weight_aware,
)

__all__ = [
    "OPPOSITIONS",
    "AdaptiveState",
    "Attack",
    "AttackContext",
    "Membership",
    "MimicState",
    "adaptive",
    "additive_noise",
    "alie",
    "budgeted_swing",
    "coordinate_specialist",
    "disguised_opposition",
    "drawn_each_round",
    "drop_out",
    "fang",
    "gaussian",
    "ipm",
    "label_flip",
    "leaving",
    "majority_opposition",
    "mimic",
    "min_max",
    "min_sum",
    "near_duplicate_collusion",
    "no_attack",
    "non_finite",
    "on_off",
    "random_collusion",
    "random_vote",
    "replace_rows",
    "rotating",
    "sampled",
    "scaling",
    "sign_alie",
    "sign_inversion",
    "sleeper",
    "split_like",
    "stateless",
    "stochastic_sign_flip",
    "swing",
    "tuned",
    "warm_up_capture",
    "weight_aware",
    "zero",
]

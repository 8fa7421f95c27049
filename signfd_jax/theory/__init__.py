r"""Closed forms and bounds: how often the decoded sign is wrong, and what follows.

The model throughout: the sign U of the true gradient goes to M workers, and worker m's
vote is $Y_m = U Z_m$ with $Z_m = -1$ with its crossover probability $p_m$ and +1
otherwise, all independent. The server decodes $\hat U = \operatorname{sign} S$ from the
tally $S = \sum_m w_m Y_m$, with ties broken at random. Its exact weights are the
log-likelihood ratios $\ell_m = \ln\frac{1 - p_m}{p_m}$ in nats, $q = \frac12 - p$ is a
worker's advantage over a coin, and $P_E = \Pr[\hat U \ne U]$. By symmetry the
derivations take U = 1, so that an error is S < 0, or half of S = 0.

Every function jits, and those of arrays vmap.
"""

from signfd_jax.theory.convergence import (
    best_step_size,
    convergence_bound,
    expected_descent,
    unimodal_convergence_bound,
)
from signfd_jax.theory.crossovers import (
    agreement_with_own_vote,
    agreement_without_own_vote,
    flipped_crossover,
    gaussian_crossover,
    llr_standard_deviation,
    unimodal_crossover_bound,
)
from signfd_jax.theory.errors import (
    additive_error_bound,
    additive_error_exponential_bound,
    advantage_bound,
    berend_kontorovich_bound,
    bhattacharyya_bounds,
    bhattacharyya_coefficient,
    committee_potential,
    decoding_error,
    majority_vote_bound,
    multiplicative_error_bound,
    prior_log_odds,
)
from signfd_jax.theory.premise import (
    safely_decoded,
    samples_to_tell_sides,
    sides_error_bound,
)

__all__ = [
    "additive_error_bound",
    "additive_error_exponential_bound",
    "advantage_bound",
    "agreement_with_own_vote",
    "agreement_without_own_vote",
    "berend_kontorovich_bound",
    "best_step_size",
    "bhattacharyya_bounds",
    "bhattacharyya_coefficient",
    "committee_potential",
    "convergence_bound",
    "decoding_error",
    "expected_descent",
    "flipped_crossover",
    "gaussian_crossover",
    "llr_standard_deviation",
    "majority_vote_bound",
    "multiplicative_error_bound",
    "prior_log_odds",
    "safely_decoded",
    "samples_to_tell_sides",
    "sides_error_bound",
    "unimodal_convergence_bound",
    "unimodal_crossover_bound",
]

"""Names of what Byzantine workers do, and of who they are: `ATTACKS`, `MEMBERSHIPS`."""

from collections.abc import Callable
from typing import Any

import jax

from signfd_jax import attacks
from signfd_jax._checks import check_number
from signfd_jax.experiments import _plugins as plugins
from signfd_jax.experiments._choices import choose, factories_of
from signfd_jax.experiments._servers import DECODERS


def _stochastic_sign_flip(
    flip_probability: float | jax.Array = 0.5,
) -> attacks.Attack:
    """Every Byzantine worker flips each coordinate's sign with some probability."""
    # The flag --flip-probability stands in for an option that is not given.
    return attacks.stochastic_sign_flip(flip_probability)


def _adaptive(
    decoder: Any,
    against: str = "",
    trials: int = 3,
    horizon: int = 4,
    seed: int | jax.Array = 0,
) -> attacks.Attack:
    """Search for the parameters that make the decoder err most, as it learns."""
    # `against` names the decoder to defeat, where it is not the server's own.
    if against:
        decoder = choose(DECODERS, "decoder", against).make({})
    return attacks.adaptive(decoder, trials=trials, horizon=horizon, seed=seed)


def _inside(
    attack: str = "sign_inversion",
    flip_probability: float | jax.Array = 0.5,
    seed: int | jax.Array = 0,
    decoder: Any = None,
    num_classes: int | None = None,
    num_workers: int | None = None,
) -> attacks.Attack:
    """Another attack, on the gradient of each of a worker's own steps."""
    check_number("flip_probability", flip_probability, 0, 1)
    facts = {"flip_probability": flip_probability, "seed": seed, "decoder": decoder}
    facts |= {"num_classes": num_classes, "num_workers": num_workers}
    return attacks.inside(choose(ATTACKS, "attack", attack).make(facts))


def _model_replacement(
    num_classes: int,
    backdoor: str = "badnets",
    factor: float | jax.Array = 10.0,
) -> attacks.Attack:
    """A backdoor whose workers send a multiple of their gradient."""
    chosen = choose(ATTACKS, "backdoor", backdoor).make({"num_classes": num_classes})
    return attacks.model_replacement(chosen, factor)


def _neurotoxin(
    num_classes: int, backdoor: str = "badnets", spared: float = 0.05
) -> attacks.Attack:
    """A backdoor that stays off the coordinates that honest workers change most."""
    chosen = choose(ATTACKS, "backdoor", backdoor).make({"num_classes": num_classes})
    return attacks.neurotoxin(chosen, spared)


ATTACKS = {"none": attacks.no_attack} | factories_of(attacks, attacks.Attack)
del ATTACKS["no_attack"]
ATTACKS |= {"stochastic_sign_flip": _stochastic_sign_flip, "adaptive": _adaptive}
ATTACKS |= {"model_replacement": _model_replacement, "neurotoxin": _neurotoxin}
ATTACKS["inside"] = _inside
ATTACKS |= plugins.load("signfd_jax.attacks", taken=ATTACKS)


def _fixed() -> None:
    """The same workers are Byzantine in every round."""


MEMBERSHIPS: dict[str, Callable[..., Any]] = {
    "fixed": _fixed,
    **factories_of(attacks, attacks.Membership),
}

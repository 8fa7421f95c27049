"""SignSGD with federated defense: one bit per coordinate, from workers that may lie."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from signfd_jax import _moved

if TYPE_CHECKING:
    from signfd_jax import attacks
    from signfd_jax.attacks import Attack, AttackContext
    from signfd_jax.decoders import (
        DecodeInfo,
        Decoder,
        Thresholds,
        correlation_defense,
        dawid_skene,
        default_decoder,
        federated_defense,
        federated_voting,
        llr_weights,
        majority_vote,
        oracle,
        verdicts,
    )
    from signfd_jax.signs import votes
    from signfd_jax.simulate import (
        Simulation,
        SimulationInfo,
        SimulationState,
        run,
        simulation,
    )
    from signfd_jax.transforms import (
        SignDecoderState,
        scale_by_sign_decoder,
        scale_by_sign_fd,
        scale_by_sign_mv,
        sign_sgd,
        sign_sgd_fd,
        sign_sgd_mv,
    )

__version__ = "0.1.0"

__all__ = [
    "Attack",
    "AttackContext",
    "DecodeInfo",
    "Decoder",
    "SignDecoderState",
    "Simulation",
    "SimulationInfo",
    "SimulationState",
    "Thresholds",
    "attacks",
    "correlation_defense",
    "dawid_skene",
    "default_decoder",
    "federated_defense",
    "federated_voting",
    "llr_weights",
    "majority_vote",
    "oracle",
    "run",
    "scale_by_sign_decoder",
    "scale_by_sign_fd",
    "scale_by_sign_mv",
    "sign_sgd",
    "sign_sgd_fd",
    "sign_sgd_mv",
    "simulation",
    "verdicts",
    "votes",
]

_HOMES = ("attacks", "decoders", "signs", "simulate", "transforms")
"""The modules in which the names of `__all__` are defined."""

_moved.install()


def __getattr__(name: str) -> Any:
    # What is asked for is imported then: `signfd --help` needs no jax.
    if name in __all__ and name not in _HOMES:
        for home in _HOMES:
            module = importlib.import_module(f"{__name__}.{home}")
            if name in module.__all__:
                globals()[name] = getattr(module, name)
                return globals()[name]
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

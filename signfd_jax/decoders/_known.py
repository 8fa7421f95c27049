"""What is known of the workers beforehand: who is trusted, stakes, shares.

Shapes: `M` workers.
"""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from signfd_jax._checks import check_mask

KNOWN = ("trusted", "stakes", "shares")
"""The keyword arguments of `decode` and `update` that say it."""


_SAYS = {
    "trusted": "who is known to be honest",
    "stakes": "how many workers each counts as",
    "shares": "how much each vote may weigh",
}


def check_usable(
    who: str,
    given: Collection[str],
    uses: Collection[str],
    needs: Collection[str] = (),
    *,
    written: str = "{}=",
) -> None:
    """Refuse what of `KNOWN` is given and cannot be used, or is needed and not given.

    `who` begins the message; `written` is how the user writes a name.
    """
    if unused := [name for name in given if name not in uses]:
        raise ValueError(
            f"{who} cannot use {', '.join(unused)}; leave out "
            f"{' and '.join(map(written.format, unused))}, or take a decoder that can, "
            "such as correlation_defense"
        )
    if missing := [name for name in needs if name not in given]:
        raise ValueError(
            f"{who} needs {', '.join(missing)}; add "
            f"{' and '.join(map(written.format, missing))} to say "
            f"{' and '.join(_SAYS[name] for name in missing)}"
        )


def check_known(
    who: str,
    num_workers: int,
    known: dict[str, Any],
    uses: Collection[str],
    needs: Collection[str] = (),
) -> dict[str, Any]:
    """What is given of `KNOWN`, as arrays, after `check_usable` and their shapes."""
    given = {name: value for name, value in known.items() if value is not None}
    check_usable(who, given, uses, needs)
    for name, value in given.items():
        if name == "trusted":
            check_mask(name, value, num_workers)
        elif jnp.shape(value) != (num_workers,):
            raise ValueError(
                f"{name} must have a number for each of the {num_workers} workers, but "
                f"has shape {jnp.shape(value)}"
            )
    return {name: jnp.asarray(value) for name, value in given.items()}


def capped(values: Num[Array, " M"]) -> Float[Array, " M"]:
    """Non-negative numbers of which none is more than half of all others together.

    So nobody decides alone: with three equal workers, each has a third. Of the largest
    that are, the values are lowered to that; of fewer than three, to the second.
    """
    values = jnp.maximum(jnp.nan_to_num(values.astype(jnp.float32), nan=0.0), 0.0)
    values = jnp.minimum(values, 1e30)
    # One giant may have half of all others; two have what these have together.
    ranked = jnp.sort(values, descending=True)
    second = ranked[1] if len(values) > 1 else ranked[0]
    rest = jnp.sum(ranked[2:])
    limit = jnp.where(second > rest, rest, (second + rest) / 2)
    return jnp.minimum(values, jnp.where(rest > 0, limit, second))


def heaviness(num_workers: int, stakes, shares) -> Float[Array, " M"] | None:
    """What each vote may weigh, in [0, 1]; None: all the same.

    Where nobody has a stake or a share, nobody's vote weighs.
    """
    if stakes is None and shares is None:
        return None
    product = jnp.ones((num_workers,), jnp.float32)
    for values in (stakes, shares):
        product = product if values is None else product * capped(values)
    product = capped(product)
    return product / jnp.maximum(jnp.max(product), 1e-30)


def as_stakes(stakes, seen) -> jax.Array:
    """How many workers each counts as, of those that were seen; the mean is one."""
    here = seen.astype(jnp.float32)
    if stakes is None:
        return here
    held = capped(stakes) * here
    scale = jnp.sum(here) / jnp.maximum(jnp.sum(held), 1e-30)
    return held * scale

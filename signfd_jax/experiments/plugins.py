"""What other packages add to the registries, by entry points.

A package that declares `[project.entry-points."signfd_jax.attacks"]` in its
pyproject.toml has its attacks in every configuration once it is installed. `GROUPS` are
the groups there are.
"""

from collections.abc import Collection
from importlib import metadata
from typing import Any

__all__ = ["GROUPS", "load", "versions"]

GROUPS = ("signfd_jax.attacks", "signfd_jax.decoders", "signfd_jax.rules")


def load(group: str, taken: Collection[str] = ()) -> dict[str, Any]:
    """Import what installed packages declare.

    Args:
        group: one of `GROUPS`.
        taken: the names that are in use.

    Returns:
        By name, the functions.

    Raises:
        ValueError: a package cannot be imported, gives no function, or uses a name
            that is taken; the text says which package.

    Examples:
        >>> load("signfd_jax.attacks", taken=["sign_inversion"])
        {}
    """
    found: dict[str, Any] = {}
    for point in metadata.entry_points(group=group):
        whose = f"{group} {point.name!r} of the package {_package(point)}"
        if point.name in taken or point.name in found:
            raise ValueError(f"{whose}: the name is taken; choose another")
        if not point.name.isidentifier():
            raise ValueError(
                f"{whose}: a name must consist of letters, digits and '_', because "
                "options follow it in a configuration"
            )
        try:
            function = point.load()
        except Exception as error:
            raise ValueError(
                f"{whose} cannot be imported from {point.value} "
                f"({type(error).__name__}: {error}); mend that package or uninstall it"
            ) from None
        if not callable(function):
            raise ValueError(f"{whose}: {point.value} is no function")
        found[point.name] = function
    return found


def versions() -> dict[str, str]:
    """Versions of the packages that add something.

    Returns:
        By the package's name, its version.

    Examples:
        >>> versions()
        {}
    """
    points = [point for group in GROUPS for point in metadata.entry_points(group=group)]
    return {point.dist.name: point.dist.version for point in points if point.dist}


def _package(point):
    return point.dist.name if point.dist else "of no name"

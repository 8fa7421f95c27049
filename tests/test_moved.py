"""What was written against the old places of modules still runs."""

import importlib

import pytest

import signfd_jax
from signfd_jax._moved import MOVED


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_old_names_give_the_same_objects(old, new):
    new = importlib.import_module(f"signfd_jax.{new}")
    for module in (
        importlib.import_module(f"signfd_jax.{old}"),
        getattr(signfd_jax, old),
    ):
        names = {name for name in vars(new) if not name.startswith("__")}
        assert names
        assert all(getattr(module, name) is getattr(new, name) for name in names)


def test_other_names_are_not_found():
    with pytest.raises(ModuleNotFoundError, match="decodings"):
        importlib.import_module("signfd_jax.decodings")
    with pytest.raises(AttributeError, match="no attribute 'decodings'"):
        _ = signfd_jax.decodings

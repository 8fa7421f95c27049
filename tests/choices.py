"""Which cases of a test run in the default set."""

import pytest


def slow_but(kept, values):
    """The values as parameters; only those that are kept run without `-m slow`."""
    return [
        value if value in kept else pytest.param(value, marks=pytest.mark.slow)
        for value in values
    ]

"""Inverted signs change nothing that is decoded, while the honest are the majority."""

import numpy as np
import pytest

pytestmark = pytest.mark.slow

benchmark = pytest.importorskip("benchmarks.lockstep", reason="not a checkout")


def test_inverters_are_read_backwards_from_the_first_round_on():
    options = benchmark.Options(dataset="digits", rounds=60)
    shares = np.asarray(benchmark.lockstep(options))
    assert shares.shape == (60, 3)
    assert shares.max() <= 1e-4

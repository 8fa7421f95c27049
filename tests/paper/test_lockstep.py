"""Inverted signs change nothing that is decoded, while the honest are the majority."""

import os

import numpy as np
import pytest

pytestmark = pytest.mark.slow

benchmark = pytest.importorskip("benchmarks.lockstep", reason="not a checkout")


# A decoder that took the noise of a round for too small failed on MNIST only.
mnist = pytest.param(
    "mnist",
    marks=pytest.mark.skipif("SIGNFD_DATA" not in os.environ, reason="no MNIST"),
)


@pytest.mark.parametrize("dataset", ["digits", mnist])
def test_inverters_are_read_backwards_from_the_first_round_on(dataset):
    options = benchmark.Options(dataset=dataset, rounds=50)
    shares = np.asarray(benchmark.lockstep(options))
    assert shares.shape == (50, 3)
    assert shares.max() <= 1e-4

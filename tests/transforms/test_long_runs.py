"""Loops of many steps, many optimisers, and several threads."""

import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import signfd_jax as sfd
from signfd_jax.cli import main
from signfd_jax.experiments import Experiment
from signfd_jax.experiments.run import run_experiment


@pytest.mark.parametrize(
    "make", [sfd.sign_sgd_mv, sfd.sign_sgd_fd, sfd.sign_sgd], ids=lambda f: f.__name__
)
def test_steps_leave_nothing_behind(make):
    params, gradients = jnp.zeros(10), jnp.ones((3, 10))
    optimiser = make(0.1, 3)
    state, update = optimiser.init(params), jax.jit(optimiser.update)
    for _ in range(3):
        updates, state = update(gradients, state, params)
    alive = len(jax.live_arrays())
    for _ in range(300):
        updates, state = update(gradients, state, params)
    assert len(jax.live_arrays()) == alive
    assert update._cache_size() <= 2  # that of the first state, and of the others
    assert np.isfinite(updates).all()


def test_threads_train_as_one(tmp_path):
    """With bars, whose lines go to one stderr."""
    hashes = {}

    def train(name):
        config = Experiment(
            name=name, rounds=4, eval_every=2, batch_size=4, decoder="majority_vote"
        )
        hashes[name] = run_experiment(config, tmp_path)[1]["params_sha256"]

    threads = [threading.Thread(target=train, args=[name]) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(hashes) == set("abc")
    assert len(set(hashes.values())) == 1


def test_command_in_a_thread(tmp_path):
    """Where no signal can be handled."""
    flags = """--model softmax_regression --decoder majority_vote --num-workers 5
        --num-byzantine 2 --batch-size 4 --rounds 4 --eval-every 2 --quiet""".split()
    codes = []
    command = ["run", *flags, "--output-dir", str(tmp_path)]
    thread = threading.Thread(target=lambda: codes.append(main(command)))
    thread.start()
    thread.join()
    assert codes == [0]
    (summary,) = tmp_path.glob("*/summary.json")
    assert json.loads(summary.read_text())["rounds"] == 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_denormal_votes_as_jax_has_its_sign(dtype):
    with jax.enable_x64(dtype == "float64"):
        tiny = float(jnp.finfo(dtype).smallest_subnormal)
        gradients = jnp.asarray(np.array([tiny, -4 * tiny, 0.0])).astype(dtype)
        voted = sfd.votes(gradients)
        np.testing.assert_array_equal(voted, jnp.sign(gradients).astype(jnp.int8))
    if dtype == "float16":
        assert voted.tolist() == [1, -1, 0]

"""Real processes on loopback, each with its own workers' gradients."""

import os
import subprocess
import sys
from pathlib import Path

import distributed_process as job
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from ports import free_port

import signfd_jax as sfd

SCRIPT = Path(job.__file__)
TIMEOUT = 300  # seconds; a job that hangs fails instead


def simulated():
    """The same job as one program that sees all gradients."""
    tx = optax.chain(
        sfd.scale_by_sign_decoder(job.WORKERS, job.DECODER), optax.scale(-job.STEP)
    )
    workers = jnp.arange(job.WORKERS)
    data = [job.targets(worker) for worker in range(job.WORKERS)]
    data = jax.tree.map(lambda *rows: jnp.stack(rows, axis=1), *data)

    def step(carry, now):
        params, state = carry
        round, batch = now
        gradients = jax.vmap(job.sent, (None, 0, 0, None))(
            params, batch, workers, round
        )
        updates, state = tx.update(gradients, state, params, wire="one_bit")
        params = optax.apply_updates(params, updates)
        return (params, state), params

    params = jax.tree.map(jnp.asarray, job.PARAMS)
    rounds = jnp.arange(job.ROUNDS), data
    return jax.jit(lambda: lax.scan(step, (params, tx.init(params)), rounds)[1])()


def run_job(num_processes, folder):
    """Trajectories of all processes, in order."""
    address = f"127.0.0.1:{free_port()}"
    outputs = [folder / f"{index}.npz" for index in range(num_processes)]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, address, str(num_processes), str(index), output],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index, output in enumerate(outputs)
    ]
    try:
        said = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, said, strict=True):
        assert process.returncode == 0, text
    return [dict(np.load(output)) for output in outputs]


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [2, 4])
def test_processes_agree_with_the_simulation(num_processes, tmp_path):
    """With a liar, and a worker whose gradient is now and then not finite."""
    expected = simulated()
    for trajectory in run_job(num_processes, tmp_path):
        assert trajectory.keys() == expected.keys()
        for name, leaf in expected.items():
            np.testing.assert_array_equal(trajectory[name], leaf)
    assert np.all(np.isfinite(expected["w"]))
    assert np.any(expected["w"][-1] != expected["w"][-2])

"""A real Flower server and six clients on loopback run the app of docs/flower.md."""

import ast
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ports import free_port

pytest.importorskip("flwr")

import signfd_jax as sfd

PAGE = Path(__file__).parents[2] / "docs" / "flower.md"
WORKERS, LIARS, ROUNDS, KILLED = 6, 2, 3, 5
TIMEOUT = 600  # seconds; a run that hangs fails instead


def write_app(folder):
    """The files of the page."""
    folder.mkdir()
    blocks = re.findall(
        r'^```\w+ title="(.+?)"\n(.*?)^```', PAGE.read_text(), re.M | re.S
    )
    for name, text in blocks:
        (folder / name).write_text(text)
    return folder


def load_app(folder):
    spec = importlib.util.spec_from_file_location(
        "digits_app", folder / "digits_app.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Processes:
    """Flower's commands, each with its log; what they start knows the folder."""

    def __init__(self, folder):
        self.folder, self.started = folder, []
        scripts = str(Path(sys.executable).parent)
        self.environment = os.environ | {
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_HOME": str(folder),
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
            "FLWR_TELEMETRY_ENABLED": "0",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PLATFORMS": "cpu",
            "PATH": os.pathsep.join([scripts, os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }

    def start(self, name, *command):
        with (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                list(map(str, command)),
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def said(self, name):
        return (self.folder / f"{name}.log").read_text()

    def wait_for(self, found):
        """Wait until something is found."""
        end = time.monotonic() + TIMEOUT
        while not found():
            assert time.monotonic() < end, self.said("run")
            time.sleep(0.2)

    def alive(self):
        """The processes of this folder, whoever started them."""
        mark = f"FLWR_HOME={self.folder}\0".encode()
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes():
                    yield int(path.parent.name)
            except OSError:  # it has ended, or is another user's
                pass


@pytest.fixture
def flower(tmp_path):
    """Flower's processes; none of them is left when the test ends."""
    processes = Processes(tmp_path)
    yield processes
    for _ in range(10):  # one may start another before it is killed
        for process in processes.alive():
            os.kill(process, signal.SIGKILL)
        time.sleep(0.2)
    for process in processes.started:
        process.wait()
    assert list(processes.alive()) == []


def listens(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def run_and_kill(flower, app):
    """Run the app with a client that dies in the second round, and give its log."""
    link = free_port()
    (flower.folder / "config.toml").write_text(
        f'[superlink.loopback]\naddress = "127.0.0.1:{link}"\ninsecure = true\n'
    )
    flower.start(
        *("link", "flower-superlink", "--insecure", "--port", link),
        "--disable-runtime-dependency-installation",
    )
    flower.wait_for(lambda: listens(link))
    nodes = [
        flower.start(
            *(f"node{m}", "flower-supernode", "--insecure", "--port", free_port()),
            *("--superlink", f"127.0.0.1:{link}", "--node-config", f"partition-id={m}"),
        )
        for m in range(WORKERS)
    ]
    setting = (
        f'num-server-rounds={ROUNDS} timeout=300 save-to="{flower.folder / "end.npz"}"'
    )
    run = flower.start(
        *("run", "flwr", "run", app, "loopback", "--stream", "--run-config", setting)
    )
    flower.wait_for(lambda: f"[ROUND 2/{ROUNDS}]" in flower.said("run"))
    os.killpg(nodes[KILLED].pid, signal.SIGKILL)
    nodes[KILLED].wait()
    flower.wait_for(lambda: run.poll() is not None)
    return flower.said("run")


def simulated(app, absent):
    """The same run as a simulation of one worker at a time, with the same absences."""
    sim = sfd.simulation(
        app.loss_fn,
        sfd.sign_sgd(0.02, WORKERS),
        num_workers=WORKERS,
        attack=sfd.attacks.sign_inversion(),
        wire="one_bit",
        worker_chunk=1,
    )
    state = sim.init(app.KEY, app.START, jnp.arange(WORKERS) < LIARS)
    step, draw = jax.jit(sim.step), app.batches_of(WORKERS)
    for gone in absent:
        key, batch_key = jax.random.split(state.key)
        present = jnp.asarray(~np.isin(np.arange(WORKERS), gone))
        state, _ = step(state._replace(key=key), draw(batch_key), present)
    return state.params


@pytest.mark.slow
def test_a_server_and_six_clients_give_the_weights_of_the_simulation(flower, tmp_path):
    """Two lie and one is killed. Bit for bit, so the accuracy is the same too."""
    folder = write_app(tmp_path / "app")
    log = run_and_kill(flower, folder)
    metrics = [
        ast.literal_eval(found)
        for found in re.findall(r"Aggregated MetricRecord: (\{.*\})", log)
    ]
    assert len(metrics) == ROUNDS, log
    absent = [each["absent"] for each in metrics]
    assert KILLED in absent[-1], log
    num_coordinates = 64 * 10 + 10
    assert num_coordinates % 8 == 2
    for each in metrics:  # two leaves, each in whole bytes
        assert each["bytes-up"] == each["voted"] * (640 // 8 + 2)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        app = load_app(folder)
        expected = simulated(app, absent)
        from signfd_jax.contrib import flower as contrib

        accuracy = app.evaluate(0, contrib.to_arrays(expected))["accuracy"]
    ends = np.load(flower.folder / "end.npz")
    for name, leaf in expected.items():
        np.testing.assert_array_equal(ends[name], leaf)
    told = re.findall(r"MetricRecord: \{'accuracy': (\S+)\}", log)
    assert abs(float(told[-1]) - accuracy) <= 0.01
    assert accuracy > 0.6
    for worker in range(LIARS):
        assert f"worker {worker} is read backwards" in log

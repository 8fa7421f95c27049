"""Processes find each other past proxies and without a host name."""

import os
import shutil
import socket
import subprocess
import sys
import time

import pytest

from signfd_jax.cli import main
from signfd_jax.experiments._processes import addresses

pytestmark = pytest.mark.xdist_group("jobs of many processes")


@pytest.mark.parametrize(
    ("host", "patience"),
    [("no-such-host.invalid:1234", 0.1), ("[not an address]:1234", 0.1)],
)
def test_host_without_address_is_told_soon(host, patience):
    begun = time.monotonic()
    with pytest.raises(ValueError, match="has no address"):
        addresses.check_coordinator(host, patience)
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize(
    "coordinator", ["", "host", ":80", "host:", "host:port", "host:0", "host:70000"]
)
def test_coordinator_that_is_none(coordinator, capsys, tmp_path):
    with pytest.raises(ValueError, match="HOST:PORT"):
        addresses.check_coordinator(coordinator)
    command = ["run", "--distributed", f"--coordinator={coordinator}"]
    command += ["--num-processes", "2", "--process-id", "0"]
    assert main([*command, "--output-dir", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "the coordinator must be HOST:PORT" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("coordinator", ["127.0.0.1:80", "localhost:80"])
def test_own_machine_is_called_by_its_loop(coordinator, monkeypatch):
    def nobody(_):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "gethostbyname", nobody)
    assert addresses.own_address(coordinator) in ("127.0.0.1", "::1")


@pytest.mark.parametrize(
    ("named", "found"),
    [("10.0.0.7", None), ("127.0.1.1", "10.1.2.3"), (None, "10.1.2.3")],
)
def test_address_where_the_host_name_says_none(named, found, monkeypatch):
    class Towards:
        def __init__(self, *_): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def connect(self, target): ...
        def getsockname(self):
            return "10.1.2.3", 1

    def by_name(_):
        if named is None:
            raise socket.gaierror(-2, "Name or service not known")
        return named

    monkeypatch.setattr(socket, "socket", Towards)
    monkeypatch.setattr(socket, "gethostbyname", by_name)
    assert addresses.own_address("10.9.9.9:80") == found


def test_proxies_are_passed_by(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:9")
    addresses.past_proxies()
    assert os.environ["grpc_proxy"] == "http://127.0.0.1:9"  # meant for such calls
    addresses.past_proxies(here=True)
    assert os.environ["grpc_proxy"] == ""
    assert os.environ["http_proxy"] == "http://127.0.0.1:9"  # downloads need it
    monkeypatch.delenv("grpc_proxy")
    addresses.past_proxies()
    assert os.environ["grpc_proxy"] == ""


SIGNFD = "import sys; from signfd_jax.cli import main; sys.exit(main())"
JOB = """run --wire one_bit --num-workers 4 --num-byzantine 1 --processes 2 --rounds 4
    --eval-every 2 --model softmax_regression --decoder majority_vote --quiet""".split()
PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "all_proxy")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("around", "environment"),
    [
        ([], dict.fromkeys(PROXIES, "http://127.0.0.1:9")),
        ([], {"http_proxy": "http://no-such-host.invalid:3128"}),
        (["unshare", "-u", "sh", "-c", 'hostname no-such-host.invalid; exec "$@"'], {}),
    ],
)
def test_job_on_one_machine(around, environment, tmp_path):
    if around:
        if shutil.which("unshare") is None or os.geteuid() != 0:
            pytest.skip("only root may change the host's name")
        around = [*around, "sh"]
    process = subprocess.run(
        [*around, sys.executable, "-c", SIGNFD, *JOB],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    (line,) = process.stderr.splitlines()
    assert line.startswith("signfd: no checkpoint in ")
    assert list(tmp_path.glob("runs/*/summary.json"))


@pytest.mark.slow
def test_external_launcher_behind_a_proxy(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    place = JOB.index("--processes")
    flags = [*JOB[:place], *JOB[place + 2 :], "--distributed"]
    flags += ["--coordinator", coordinator, "--num-processes", "2", "--process-id"]
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", SIGNFD, *flags, str(number)],
            cwd=tmp_path,
            env=os.environ | {"http_proxy": "http://127.0.0.1:9"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for job in jobs:
        _, err = job.communicate(timeout=120)
        assert job.returncode == 0, err
    assert list(tmp_path.glob("runs/*/summary.json"))

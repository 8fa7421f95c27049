"""How the processes of a job find each other: past proxies, and without a host name.

JAX's runtime calls by gRPC, which asks the proxy of `http_proxy` even for this machine,
and its CPU devices by Gloo, which asks what this machine's host name means.
"""

import ipaddress
import os
import socket
import time

import jax

_PATIENCE = 10.0  # seconds until a host must have a name: a cluster may still start


def past_proxies(here: bool = False) -> None:
    """Let the runtime call the other processes directly, whatever the environment says.

    Downloads still use the proxies.
    """
    if here:
        os.environ["grpc_proxy"] = ""
    os.environ.setdefault("grpc_proxy", "")
    # JAX warns of proxies, which are none of its business now.
    jax.config.update("jax_check_proxy_envs", False)


def check_coordinator(coordinator: str, patience: float = _PATIENCE) -> None:
    """Refuse an address that is none, for which the runtime would wait five minutes."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"the coordinator must be HOST:PORT, but is {coordinator!r}")
    deadline = time.monotonic() + patience
    while True:
        try:
            socket.getaddrinfo(host.strip("[]"), int(port))
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"the coordinator's host {host!r} has no address ({error.strerror})"
                ) from None
        time.sleep(0.5)


def own_address(coordinator: str) -> str | None:
    """The address at which others reach this machine, where its name does not say."""
    host, _, port = coordinator.rpartition(":")
    family, *_, target = socket.getaddrinfo(
        host.strip("[]"), int(port), type=socket.SOCK_DGRAM
    )[0]
    with socket.socket(family, socket.SOCK_DGRAM) as towards:
        towards.connect(target)  # nothing is sent
        address = towards.getsockname()[0]
    if ipaddress.ip_address(address).is_loopback:
        return address
    try:
        named = socket.gethostbyname(socket.gethostname())
    except OSError:
        return address
    return address if ipaddress.ip_address(named).is_loopback else None


def name_this_machine(coordinator: str) -> None:
    """Give the runtime's CPU devices the address that `own_address` finds.

    To be called between joining and the first use of a device.
    """
    try:  # JAX has no public way to say it
        from jax._src import distributed, xla_bridge
        from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

        client = distributed.global_state.client
        gloo = _jax.make_gloo_tcp_collectives
        make_client = xla_bridge.make_cpu_client
        register = xla_bridge.register_backend_factory
    except (ImportError, AttributeError):
        return  # it will ask for the host's name
    address = own_address(coordinator)
    if client is None or address is None:
        return

    def with_address():
        return make_client(gloo(distributed_client=client, hostname=address))

    register("cpu", with_address, priority=0, fail_quietly=False)

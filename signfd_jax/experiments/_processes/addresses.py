"""How the processes of a job find each other: past proxies, and without a host name.

JAX's runtime calls by gRPC, which asks the proxy of `http_proxy` even for this machine,
and its CPU devices by Gloo, which asks what this machine's host name means.
"""

import ipaddress
import os
import socket
import time

import jax

__all__ = ["check_coordinator", "name_this_machine", "own_address", "past_proxies"]

_PATIENCE = 10.0  # seconds until a host must have a name: a cluster may still start


def past_proxies(here: bool = False) -> None:
    """Let the runtime call the other processes directly, whatever the environment says.

    Downloads still use the proxies.

    Args:
        here: whether all processes are on this machine. If not, a `grpc_proxy`, which
            is for such calls alone, stays.

    Examples:
        >>> past_proxies()
    """
    if here:
        os.environ["grpc_proxy"] = ""
    os.environ.setdefault("grpc_proxy", "")
    # JAX warns of proxies, which are none of its business now.
    jax.config.update("jax_check_proxy_envs", False)


def check_coordinator(coordinator: str, patience: float = _PATIENCE) -> None:
    """Refuse an address that is none, for which the runtime would wait five minutes.

    Args:
        coordinator: `host:port`.
        patience: seconds for which a host may have no address.

    Raises:
        ValueError: it is no such address, or the host has none.

    Examples:
        >>> check_coordinator("localhost:1234")
        >>> check_coordinator("localhost")
        Traceback (most recent call last):
        ValueError: the coordinator must be HOST:PORT, but is 'localhost'
    """
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
    """The address by which others can call this machine, where its name does not say.

    Args:
        coordinator: `host:port` of the one that all of them can call.

    Returns:
        An address; None where the host name has one that others may use.

    Examples:
        >>> own_address("127.0.0.1:1234")
        '127.0.0.1'
    """
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

    Args:
        coordinator: `host:port` of process 0.

    Examples:
        >>> name_this_machine("127.0.0.1:1234")  # in no job: nothing to do
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

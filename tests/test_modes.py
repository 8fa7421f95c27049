"""The library under JAX's debugging modes: everything that a configuration can name.

Strict dtype promotion and rank promotion "raise" hold in every test (conftest.py).
"""

import contextlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from choices import slow_but

import signfd_jax as sfd
from signfd_jax.experiments import Experiment, registry
from signfd_jax.experiments._engine.program import parts

M = 7

# What each mode sets. Those that only look on are set together.
MODES = {
    "watched": {
        "jax_debug_nans": True,
        "jax_debug_infs": True,
        "jax_check_tracer_leaks": True,
        "jax_transfer_guard": "disallow",
    },
    "x64": {"jax_enable_x64": True, "jax_debug_nans": True},
    "without jit": {"jax_disable_jit": True, "jax_debug_nans": True},
}


@contextlib.contextmanager
def settings(mode):
    before = {name: getattr(jax.config, name) for name in MODES[mode]}
    try:
        for name, value in MODES[mode].items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.fixture(params=slow_but(["x64"], ["watched", "x64", "without jit"]))
def mode(request):
    return request.param


def loss_fn(params, batch):
    batch = batch.astype(params["w"].dtype)
    return jnp.mean(jnp.square(batch @ params["w"] + params["b"]))


def rounds_of(mode, tx, attack=None, membership=None, **known):
    """An honest round and one or two with attackers under a mode, on the device."""
    sim = sfd.simulation(
        loss_fn, tx, num_workers=M, attack=attack, membership=membership
    )
    floats = jnp.float64 if mode == "x64" else jnp.float32
    with jax.enable_x64(mode == "x64"):
        params = {"b": jnp.zeros((), floats), "w": jnp.ones((4, 3), floats)}
        batch = jax.random.normal(jax.random.key(1), (M, 2, 4), floats)
        key = jax.random.key(0)
        byzantine = jnp.arange(M) < 2
        honest = jnp.zeros_like(byzantine)
    with settings(mode):
        state = jax.jit(sim.init)(key, params, honest)
        step = jax.jit(sim.step)
        first, info = step(state, batch, **known)
        state = first._replace(byzantine=byzantine)
        # Without jit, whose Python loops are slow, one must do.
        for _ in range(1 if mode == "without jit" else 2):
            state, info = step(state, batch, **known)
    return jax.device_get((first.params, state.params, info))


def made(server="majority_vote", attack="none", membership="fixed"):
    config = Experiment(
        decoder=server,
        attack=attack,
        membership=membership,
        num_workers=M,
        num_byzantine=2,
    )
    return parts(
        config,
        num_classes=3,
        learning_rate=0.1,
        flip_probability=0.5,
        strengths={},
        loss_fn=loss_fn,
        root_batch=jnp.ones((2, 4)),
    )


IN_GRADIENTS = sorted(
    name
    for name in registry.ATTACKS
    if made(attack=name)[1].entry != "data" and name != "non_finite"
)
# Each server meets an attack, so that one program tries both.
SERVERS = sorted(registry.SERVERS)
PAIRS = [
    (server or "majority_vote", attack or "none")
    for server, attack in itertools.zip_longest(SERVERS, IN_GRADIENTS)
]
# It plays many rounds in each; the default meets other attacks.
OPTIONS = {"adaptive": ":trials=1,horizon=2,against=majority_vote"}


@pytest.mark.parametrize(("server", "attack"), PAIRS)
def test_servers_and_attacks(server, attack, mode):
    attack += OPTIONS.get(attack, "")
    needs = getattr(registry.SERVERS[server], "needs", ())
    known = {"trusted": jnp.arange(M) == M - 1} if needs else {}
    first, params, info = rounds_of(mode, *made(server, attack), **known)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((params, info)))
    assert np.any(first["w"] != 1) or np.any(first["b"] != 0)

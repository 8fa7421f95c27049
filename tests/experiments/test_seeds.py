"""Every random choice of a run derives from its seed, and seeds share none."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from signfd_jax import aggregators, attacks, data
from signfd_jax.experiments import Experiment, registry
from signfd_jax.experiments._choices import choose
from signfd_jax.experiments._engine import prepare as training
from signfd_jax.experiments._engine.program import parts

BASE = Experiment(
    model="softmax_regression",
    num_workers=9,
    num_byzantine=1,
    batch_size=2,
    rounds=1,
    eval_every=1,
)
GIVEN = dict(num_classes=10, learning_rate=1.0, flip_probability=0.5, strengths={})
# Every server whose state holds a key.
DRAWING = ["stochastic_sign:0.05", "dnc", "flame:noise_level=0.01", "signguard"]


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def keys_of(tree):
    """The data of all keys in a state, one row for each seed and key."""
    return [
        row.tobytes()
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        for row in np.asarray(jax.random.key_data(leaf))
    ]


def test_all_servers_that_draw_are_here():
    """Those whose state has a key, of all that there are."""
    found = []
    for name in registry.SERVERS:
        config = dataclasses.replace(BASE, decoder=name)
        server, _, _ = parts(
            config,
            num_classes=10,
            learning_rate=1.0,
            flip_probability=0.5,
            strengths={},
        )
        if keys_of(
            jax.eval_shape(server.init, jnp.zeros(4)) and server.init(jnp.zeros(4))
        ):
            found.append(name)
    assert sorted(found) == sorted(name.partition(":")[0] for name in DRAWING)


@pytest.mark.parametrize("server", DRAWING)
@pytest.mark.slow
def test_no_two_keys_of_runs_are_alike(server, digits):
    """Not of two seeds, not of server and rounds; a seed has them wherever it runs."""
    config = dataclasses.replace(BASE, decoder=server, seed=3, seeds=2)
    state = training.prepare(config, digits).start()
    server_keys, run_keys = keys_of(state.opt_state), keys_of(state.key)
    assert len({*server_keys, *run_keys}) == 4
    alone = dataclasses.replace(config, seed=4, seeds=1)
    state = training.prepare(alone, digits).start()
    assert keys_of(state.opt_state) == server_keys[1:]
    # Nor is it a key of the byzantine mask, or one that is split off the seed's.
    seed = jax.random.key(3)
    others = [
        *jax.random.split(seed, 50),
        *(jax.random.fold_in(seed, n) for n in range(99)),
    ]
    assert server_keys[0] not in keys_of([jnp.stack(others)])


@pytest.mark.parametrize("name", ["coordinate_specialist", "adaptive"])
def test_attacks_that_draw_once_draw_by_the_seed(name):
    """Their choice for a whole run is another for another seed, and the same again."""

    def seed_of(seed):
        seen = []
        factory = registry.ATTACKS[name]

        def spy(*args, seed: int | jax.Array = 0, **kwargs):
            seen.append(int(seed))
            return factory(*args, seed=seed, **kwargs)

        spy.__signature__ = inspect.signature(factory)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(registry.ATTACKS, name, spy)
            parts(dataclasses.replace(BASE, attack=name), **GIVEN, seed=seed)
        return seen[0]

    assert seed_of(0) == seed_of(0)
    assert len({seed_of(seed) for seed in range(5)}) == 5


def test_specialists_of_two_seeds_attack_other_coordinates():
    """As arrays too, as in a compiled program of several seeds."""
    context = attacks.AttackContext(jnp.int32(0), None)
    values, liar = jnp.ones((1, 400)), jnp.array([True])

    def sent(seed):
        attack = attacks.coordinate_specialist(0.5, start_round=0, seed=seed)
        return attack.apply(jax.random.key(0), values, liar, context, ())[0]

    traced = jax.jit(jax.vmap(sent))(jnp.arange(2, dtype=jnp.uint32))
    np.testing.assert_array_equal(traced[1], sent(1))
    assert 0.3 < float(jnp.mean(traced[0] != traced[1])) < 0.7


@pytest.mark.parametrize("server", DRAWING)
def test_training_depends_on_what_the_server_draws(server, digits):
    """Same parameters and batches, another key of the server: another result."""
    config = dataclasses.replace(BASE, decoder=server, rounds=3, eval_every=3)
    prepared = training.prepare(config, digits)
    _, _, one = prepared.advance(prepared.start(), 0)
    state = prepared.start()

    def other(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(9), leaf.shape)
        return leaf

    state = state._replace(opt_state=jax.tree.map(other, state.opt_state))
    _, _, two = prepared.advance(state, 0)
    assert server != "stochastic_sign:0.05" or one.test_loss != two.test_loss
    assert np.isfinite(two.test_loss).all()


def test_facts_reach_those_who_ask():
    """A key for who wants one; a traced seed only where its annotation admits it."""
    key, seed = jax.random.key(1), jnp.uint32(5)
    table = {
        "keyed": lambda key: key,
        "untraced": _untraced,
        "traced": _traced,
    }
    made = {
        name: choose(table, "thing", name).make({"key": key, "seed": seed})
        for name in table
    }
    assert (made["keyed"], made["untraced"], made["traced"]) == (key, 7, seed)
    assert set(aggregators.RULES) <= set(registry.SERVERS)


def _untraced(seed: int = 7):
    return seed


def _traced(seed: int | jax.Array = 7):
    return seed

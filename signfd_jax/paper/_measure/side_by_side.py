r"""Runs side by side: workers with unlike batches, and ever more inverters.

Shapes: `M` workers, `T` tests or rounds, `K` runs, `S` seeds. A measurement returns
plain numbers and lists, so that it can be kept as JSON.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from signfd_jax import signs
from signfd_jax.attacks import sign_inversion
from signfd_jax.decoders import (
    federated_defense,
    federated_voting,
    majority_vote,
    oracle,
)
from signfd_jax.experiments import Experiment
from signfd_jax.experiments._engine import prepare as training
from signfd_jax.paper._measure.setting import make_setting, tests, wrong_share
from signfd_jax.simulate import run, simulation
from signfd_jax.transforms import scale_by_sign_decoder


def mixed_batch_sizes(
    base: Experiment,
    kinds: tuple[tuple[int, int], tuple[int, int]],
    every: int,
    *,
    data_dir: Any = None,
) -> dict[str, Any]:
    """Train with workers whose batches differ in size.

    Every `every` rounds the decoded signs are held against the sign of the gradient
    over the whole training set.
    """
    sizes = np.repeat([size for _, size in kinds], [count for count, _ in kinds])
    if len(sizes) != base.num_workers:
        raise ValueError(
            f"kinds has {len(sizes)} workers, but the experiment {base.num_workers}"
        )
    setting = make_setting(base, data_dir)
    draw = setting.batches(sizes.tolist())

    def train(decoder, seed):
        tx = optax.chain(
            scale_by_sign_decoder(base.num_workers, decoder),
            optax.scale_by_learning_rate(base.learning_rate),
        )
        sim = simulation(setting.loss, tx, num_workers=base.num_workers)

        def rounds(state, _):
            state, _ = run(sim, state, draw, every - 1)
            before = state.params
            state, infos = run(sim, state, draw, 1)
            truth = signs.votes(jax.grad(setting.whole_loss)(before))
            step = jax.tree.map(jnp.subtract, before, state.params)
            return state, (wrong_share(signs.votes(step), truth), infos.weights[0])

        params_key, run_key = jax.random.split(jax.random.key(seed))
        nobody = jnp.zeros(base.num_workers, bool)
        state = sim.init(run_key, setting.init(params_key), nobody)
        state, (error, weights) = lax.scan(rounds, state, length=base.rounds // every)
        return setting.accuracy(state.params), error, weights[-1]

    seeds = jnp.arange(base.seed, base.seed + base.seeds)
    found: dict[str, Any] = {"round": tests(base, every)}
    for name, decoder in (
        ("federated_voting", federated_voting()),
        ("federated_defense", federated_defense()),
        ("majority_vote", majority_vote()),
    ):
        of_seeds = jax.jit(
            functools.partial(lax.map, functools.partial(train, decoder))
        )
        accuracy, error, weights = jax.device_get(of_seeds(seeds))
        found[name] = {
            "accuracy": accuracy.tolist(),
            "error": error.tolist(),
            "weights": weights.mean(0).tolist(),
        }
    return found


def lockstep(
    base: Experiment, num_byzantine: tuple[int, ...], *, data_dir: Any = None
) -> dict[str, Any]:
    """Train with exact weights under ever more inverters, side by side.

    The weights are those of known crossover probabilities, which differ from worker to
    worker; an inverter's is one minus an honest worker's, so that its weight is
    negative and its product with the inverted vote is what it was.
    """
    setting = make_setting(base, data_dir)
    sample = setting.batches(base.batch_size)
    honest = np.linspace(0.1, 0.4, base.num_workers)
    masks = np.stack(
        [
            training.byzantine_mask(
                dataclasses.replace(base, num_byzantine=number), base.seed
            )
            for number in num_byzantine
        ]
    )
    crossovers = jnp.asarray(np.where(masks, 1 - honest, honest), jnp.float32)

    def simulated(crossover):
        tx = optax.chain(
            scale_by_sign_decoder(base.num_workers, oracle(crossover)),
            optax.scale_by_learning_rate(base.learning_rate),
        )
        return simulation(
            setting.loss, tx, num_workers=base.num_workers, attack=sign_inversion()
        )

    params_key, run_key = jax.random.split(jax.random.key(base.seed))
    start = setting.init(params_key)

    def begin(row):
        crossover, mask = row
        return simulated(crossover).init(run_key, start, mask)

    def largest(tree):
        return functools.reduce(
            jnp.maximum, [jnp.max(jnp.abs(x)) for x in jax.tree.leaves(tree)]
        )

    def one_round(states, key):
        batch = sample(key)

        def step(row):
            crossover, state = row
            return simulated(crossover).step(state, batch)[0]

        states = lax.map(step, (crossovers, states))
        first = jax.tree.map(lambda x: x[0], states.params)
        difference = jax.vmap(
            lambda params: largest(jax.tree.map(jnp.subtract, params, first))
        )(states.params)
        moved = largest(jax.tree.map(jnp.subtract, first, start))
        return states, (difference, moved)

    @jax.jit
    def all_rounds():
        states = lax.map(begin, (crossovers, jnp.asarray(masks)))
        keys = jax.random.split(jax.random.key(base.seed + 1), base.rounds)
        states, found = lax.scan(one_round, states, keys)
        return found, lax.map(setting.accuracy, states.params)

    (difference, moved), accuracy = jax.device_get(all_rounds())
    return {
        "difference": difference.tolist(),
        "moved": moved.tolist(),
        "accuracy": accuracy.tolist(),
    }

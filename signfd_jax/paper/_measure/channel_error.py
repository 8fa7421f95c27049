r"""Decoding errors beside the crossover probabilities that the weights came from.

Shapes: `M` workers, `T` tests. A measurement returns plain numbers and lists, so that
it can be kept as JSON.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from signfd_jax import signs, theory
from signfd_jax.attacks import stochastic_sign_flip
from signfd_jax.decoders import (
    Decoder,
    federated_defense,
    llr_weights,
    majority_vote,
    oracle,
)
from signfd_jax.experiments import Experiment
from signfd_jax.experiments._engine import prepare as training
from signfd_jax.paper._measure.setting import make_setting, tests, wrong_share
from signfd_jax.simulate import run, simulation
from signfd_jax.transforms import scale_by_sign_decoder


def weights_from_samples(
    crossover: tuple[float, ...], num_samples: tuple[int, ...], draws: int = 200
) -> dict[str, Any]:
    r"""Decoding error when every weight is learned from T comparisons.

    $\hat p_m = (e_m + 1) / (T + 2)$ of $e_m \sim \mathrm{Binomial}(T, p_m)$ errors. The
    error of the decoder with those weights is exact for each draw of them.
    """
    p = jnp.asarray(crossover, jnp.float32)
    llr = llr_weights(p)

    @jax.jit
    def of_draws(p_hat):
        # One after the other: an enumeration has 2^M patterns.
        def of_one(p_hat):
            weights = llr_weights(p_hat)
            return (
                theory.decoding_error(p, weights),
                theory.additive_error_bound(p, weights - llr),
            )

        return lax.map(of_one, p_hat)

    rng = np.random.default_rng(0)
    errors, bounds, deviations = [], [], []
    for samples in num_samples:
        wrong = rng.binomial(samples, np.asarray(crossover), (draws, len(crossover)))
        p_hat = jnp.asarray((wrong + 1) / (samples + 2), jnp.float32)
        error, bound = of_draws(p_hat)
        errors.append(float(error.mean()))
        bounds.append(min(1.0, float(bound.mean())))
        square = jnp.mean(jnp.square(p_hat - p[None]))
        deviations.append(float(jnp.sqrt(square)))
    return {
        "error": errors,
        "bound": bounds,
        "deviation": deviations,
        "oracle": float(theory.decoding_error(p)),
        "oracle_bound": float(theory.bhattacharyya_bounds(p)[1]),
        "majority": float(theory.decoding_error(p, jnp.ones_like(p))),
    }


def decoding_in_training(
    base: Experiment,
    num_byzantine: int,
    every: int,
    *,
    data_dir: Any = None,
) -> dict[str, Any]:
    r"""Estimated and true crossover probabilities while a model is trained.

    Three servers train under sign inversion: federated defense, an oracle that knows
    who lies and how often an honest vote is wrong, and a majority vote. Every `every`
    rounds the votes and the decoded signs are held against the sign of the gradient
    over the whole training set, which is the U of the theory.
    """
    setting = make_setting(base, data_dir)
    lies = _liars(base, num_byzantine)
    rounds = _chunk(setting, base, every)

    def train(decoder):
        found = _train(rounds, setting, base, lies, decoder, every, 1.0)
        error, estimated, true = (np.stack(part) for part in zip(*found, strict=True))
        # A worker that did not vote has no p, and no part in the decision.
        voted = [jnp.asarray(p[~np.isnan(p)]) for p in true]
        exact = [float(theory.decoding_error(p)) for p in voted]
        bound = [float(theory.bhattacharyya_bounds(p)[1]) for p in voted]
        return {
            "error": error.tolist(),
            "estimated": estimated.tolist(),
            "true": true.tolist(),
            "exact": exact,
            "bound": bound,
        }

    learned = train(federated_defense())
    honest = np.nanmean(np.asarray(learned["true"])[:, ~lies])
    known = jnp.where(jnp.asarray(lies), 1 - honest, honest).astype(jnp.float32)
    return {
        "round": tests(base, every),
        "byzantine": lies.nonzero()[0].tolist(),
        "federated_defense": learned,
        "oracle": train(oracle(known)),
        "majority_vote": train(majority_vote()),
    }


def flipping_in_training(
    base: Experiment,
    num_byzantine: int,
    flip_probabilities: tuple[float, ...],
    every: int,
    *,
    data_dir: Any = None,
) -> dict[str, Any]:
    """Decoding errors against the true signs, under a stochastic sign flip."""
    setting = make_setting(base, data_dir)
    found: dict[str, Any] = {"round": tests(base, every)}
    seeds = [
        dataclasses.replace(base, seed=base.seed + s, seeds=1)
        for s in range(base.seeds)
    ]
    rounds = _chunk(setting, base, every)
    lies = [_liars(one, num_byzantine) for one in seeds]
    for name, decoder in (
        ("federated_defense", federated_defense()),
        ("majority_vote", majority_vote()),
    ):
        found[name] = [
            [
                [
                    float(error)
                    for error, _, _ in _train(
                        rounds, setting, one, liars, decoder, every, r
                    )
                ]
                for one, liars in zip(seeds, lies, strict=True)
            ]
            for r in flip_probabilities
        ]
    return found


def _liars(base, num_byzantine):
    one = dataclasses.replace(base, num_byzantine=num_byzantine)
    return training.byzantine_mask(one, base.seed)


def _train(rounds, setting, base, lies, decoder, every, flip_probability):
    """What each chunk of rounds measured: `(error, estimated p, true p)`."""
    params_key, key = jax.random.split(jax.random.key(base.seed))
    state = _simulated(setting, base, decoder, flip_probability).init(
        key, setting.init(params_key), jnp.asarray(lies)
    )
    found = []
    for _ in range(base.rounds // every):
        state, measured = rounds(decoder, jnp.float32(flip_probability), state)
        found.append(jax.device_get(measured))
    return found


def _chunk(setting, base, every):
    """A compiled function of `every` rounds, the last held against the truth."""
    draw = setting.batches(base.batch_size)

    @functools.partial(jax.jit, static_argnums=0)
    def rounds(decoder, flip_probability, state):
        sim = _simulated(setting, base, decoder, flip_probability)
        state, _ = run(sim, state, draw, every - 1)
        truth = signs.votes(jax.grad(setting.whole_loss)(state.params))
        state, infos = run(sim, state, draw, 1)
        seen = state.opt_state[0].decoder_state
        true = jax.vmap(lambda vote: wrong_share(vote, truth))(seen.votes)
        return state, (wrong_share(seen.decoded, truth), infos.crossover[0], true)

    return rounds


def _simulated(setting, base, decoder, flip_probability):
    tx = optax.chain(
        scale_by_sign_decoder(base.num_workers, _recording(decoder)),
        optax.scale_by_learning_rate(base.learning_rate),
    )
    attack = stochastic_sign_flip(flip_probability)
    return simulation(setting.loss, tx, num_workers=base.num_workers, attack=attack)


class _Recorded(NamedTuple):
    """State of a decoder, with what it decoded last."""

    state: Any
    votes: Any
    decoded: Any


def _recording(decoder):
    """The decoder, whose state also holds what came in and out last."""

    def init(num_workers, params):
        nothing = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.int8), params)
        votes = jax.tree.map(lambda n: jnp.stack([n] * num_workers), nothing)
        return _Recorded(decoder.init(num_workers, params), votes, nothing)

    def decode(state, votes, axis_name=None):
        decoded, inner, info = decoder.decode(state.state, votes, axis_name)
        return decoded, _Recorded(inner, votes, decoded), info

    return Decoder(init, decode, lambda state: decoder.weights(state.state))

"""What strangers do wrong: one line says so, or the documented value comes back.

A row is an argument, a wrong use of it, and what must come of it: a text that the
error holds, or a predicate of the result. The last tests see to it that every public
argument, written `module.name(argument)`, has one. Types are not checked by beartype
here: users do not have it.
"""

import dataclasses
import functools
import gzip
import importlib
import inspect
import json
import re
import traceback
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import signfd_jax as sfd
from signfd_jax import (
    aggregators,
    attacks,
    data,
    decoders,
    distributed,
    experiments,
    models,
    theory,
    workers,
)
from signfd_jax.data import batches, partition
from signfd_jax.decoders import released_code
from signfd_jax.experiments import Experiment, challenges, leaderboard, registry
from signfd_jax.experiments import grid as compare
from signfd_jax.experiments._engine import prepare as training
from signfd_jax.experiments._storage import checkpoints
from signfd_jax.experiments._storage import run_folder as records
from signfd_jax.experiments._storage.checkpoints import Checkpoint
from signfd_jax.experiments._storage.frames import load
from signfd_jax.experiments._storage.params import load_params, save_params
from signfd_jax.experiments.report import plots
from signfd_jax.experiments.run import run_experiment
from signfd_jax.transforms import (
    scale_by_aggregator,
    scale_by_mean_vote,
    scale_by_zeno,
    stop_below,
)

NAN, INF = float("nan"), float("inf")
KEY = jax.random.key(0)
M, PARAMS = 5, {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
GRADIENTS = jax.tree.map(lambda p: jnp.ones((M, *p.shape)), PARAMS)
ROWS = jnp.ones((7, 3))
P3 = jnp.array([0.1, 0.2, 0.3])
DIGITS = data.load("digits")
LABELS = np.arange(10).repeat(3)

TABLE = []


def row(argument, call, outcome):
    """`call()`, or `call(folder)`, must raise what matches, or satisfy a predicate."""
    TABLE.append((argument, call, outcome))


def rows(arguments, call, outcome):
    """The same for several arguments: `call(name, argument)`."""
    for text in arguments.split():
        name, argument = re.fullmatch(r"(.*)\((\w+)\)", text).groups()
        row(text, functools.partial(call, name, argument), outcome)


def named(dotted):
    """The public function that a row names."""
    module, name = dotted.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def finite(tree):
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


# Every transformation, its workers and its gradients ----------------------------------

TX = {
    "signfd_jax.scale_by_sign_decoder": lambda **o: sfd.scale_by_sign_decoder(**o),
    "signfd_jax.scale_by_sign_fd": lambda **o: sfd.scale_by_sign_fd(**o),
    "signfd_jax.scale_by_sign_mv": lambda **o: sfd.scale_by_sign_mv(**o),
    "signfd_jax.sign_sgd": lambda **o: sfd.sign_sgd(0.1, **o),
    "signfd_jax.sign_sgd_fd": lambda **o: sfd.sign_sgd_fd(0.1, **o),
    "signfd_jax.sign_sgd_mv": lambda **o: sfd.sign_sgd_mv(0.1, **o),
    "signfd_jax.distributed.scale_by_sign_decoder_sharded": (
        lambda **o: distributed.scale_by_sign_decoder_sharded(**o)
    ),
}


DEFAULT = sfd.scale_by_sign_decoder(M)


def updated(gradients, params=PARAMS, *, tx=DEFAULT, **extra):
    return tx.update(gradients, tx.init(PARAMS), params, **extra)


for name, make in TX.items():
    for bad in (0, -3, 2.5, "five", True, None):
        row(
            f"{name}(num_workers)",
            functools.partial(make, num_workers=bad),
            "num_workers must be an int >= 1, but is",
        )
    row(
        f"{name}(num_workers)",
        functools.partial(make, num_workers=jnp.int32(5)),
        "static_args=",
    )
    if "decoder" in inspect.signature(named(name)).parameters:
        row(
            f"{name}(decoder)",
            functools.partial(make, num_workers=M, decoder="majority_vote"),
            "decoder must be what majority_vote.. or the like gives",
        )
        row(
            f"{name}(decoder)",
            functools.partial(make, num_workers=M, decoder=sfd.majority_vote),
            "decoder must be what",
        )
for name in ("sign_sgd", "sign_sgd_mv", "sign_sgd_fd"):
    for bad, says in (("fast", "must be a number"), (NAN, "lie in"), (-1.0, "lie in")):
        row(
            f"signfd_jax.{name}(learning_rate)",
            functools.partial(getattr(sfd, name), bad, M),
            f"learning_rate must.*|{says}",
        )
for name in ("scale_by_sign_fd", "sign_sgd_fd", "federated_defense"):
    arguments = () if name == "federated_defense" else (M,)
    arguments = (0.1, M) if name == "sign_sgd_fd" else arguments
    make = functools.partial(getattr(sfd, name), *arguments)
    for option, bad, says in [
        ("initial_rounds", -1, "initial_rounds must be a whole number of at least 0"),
        ("initial_rounds", 2.5, "initial_rounds must be a whole number"),
        ("max_llr", 0.0, "max_llr must lie in"),
        ("max_llr", NAN, "max_llr must lie in"),
        ("max_llr", "ten", "max_llr must be a number"),
        ("forgetting", 0.0, "forgetting must lie in"),
        ("forgetting", 1.1, "forgetting must lie in"),
        ("forgetting", None, "forgetting must be a number"),
        ("counter_dtype", "int4", "counter_dtype"),
        ("counter_dtype", "float99", "counter_dtype"),
    ]:
        row(
            f"signfd_jax.{name}({option})",
            functools.partial(make, **{option: bad}),
            says,
        )
row(
    "signfd_jax.federated_defense(counter_dtype)",
    lambda: sfd.federated_defense(counter_dtype="int16", forgetting=0.9),
    "forgetting",
)
for flag in ("leave_own_out", "anchor"):
    row(
        f"signfd_jax.federated_defense({flag})",
        functools.partial(sfd.federated_defense, **{flag: 1}),
        f"{flag} must be True or False, but is 1",
    )
for option, bad, says in [
    ("initial_rounds", None, "initial_rounds must be a whole number"),
    ("max_llr", INF, "max_llr must lie in"),
    ("forgetting", 2, "forgetting must lie in"),
]:
    row(
        f"signfd_jax.decoders.released_code({option})",
        functools.partial(released_code, **{option: bad}),
        says,
    )
for option, bad, says in [
    ("initial_rounds", -1, "initial_rounds must"),
    ("max_llr", INF, "max_llr must lie in"),
    ("forgetting", 2, "forgetting must lie in"),
    ("counter_dtype", "bfloat16", "counter_dtype"),
]:
    row(
        f"signfd_jax.federated_voting({option})",
        functools.partial(sfd.federated_voting, **{option: bad}),
        says,
    )
for decoder, option, bad in [
    ("correlation_defense", "thresholds", 0.5),
    ("correlation_defense", "committee", 2),
    ("correlation_defense", "sample", 0),
    ("correlation_defense", "shared_batches", 1),
    ("correlation_defense", "seed", "monday"),
    ("dawid_skene", "iterations", 0),
    ("dawid_skene", "iterations", 2.5),
    ("dawid_skene", "max_llr", NAN),
]:
    row(
        f"signfd_jax.{decoder}({option})",
        functools.partial(getattr(sfd, decoder), **{option: bad}),
        f"{option} must",
    )
row(
    "signfd_jax.oracle(crossover)",
    lambda: sfd.oracle(P3).init(M, PARAMS),
    r"crossover has shape .3,., but must be .5,.",
)
row("signfd_jax.oracle(max_llr)", lambda: sfd.oracle(P3, max_llr=0), "max_llr must")
row(
    "signfd_jax.llr_weights(crossover)",
    lambda: sfd.llr_weights([0.1, 0.2]),
    "crossover must be float",
)
row(
    "signfd_jax.llr_weights(crossover)",
    lambda: sfd.llr_weights(jnp.array([NAN, 0.0])),
    lambda w: bool(jnp.isnan(w[0])) and w[1] == 10,
)
row(
    "signfd_jax.llr_weights(max_llr)",
    lambda: sfd.llr_weights(P3, max_llr=jnp.ones(2)),
    r"max_llr must be a number or float \[\], but is float32 \[2\]",
)

# Gradients: shapes, trees, and what is no number --------------------------------------

for what, bad, says in [
    ("no worker axis", PARAMS, r"has shape \(3,\), but 5 workers need \(5, 3\)"),
    ("four workers", jax.tree.map(lambda g: g[:4], GRADIENTS), "but 5 workers need"),
    ("a leaf less", {"a": GRADIENTS["a"]}, "they must be alike"),
    ("a list", list(GRADIENTS.values()), "they must be alike"),
    ("a leaf too wide", GRADIENTS | {"a": jnp.ones((M, 4))}, "but 5 workers need"),
    ("masked", GRADIENTS | {"a": optax.MaskedNode()}, "masked leaves"),
]:
    row(f"update(gradients): {what}", functools.partial(updated, bad), says)
for bad in (NAN, INF, -INF):
    for worker in range(M):
        for leaf in PARAMS:
            hurt = GRADIENTS | {leaf: GRADIENTS[leaf].at[worker].set(bad)}
            row(
                f"update(gradients): {bad} from worker {worker} in {leaf}",
                functools.partial(updated, hurt),
                # Four honest workers decide, whatever the fifth sends.
                lambda out: all((u == 1).all() for u in out[0].values()),
            )
    row(
        f"update(gradients): {bad} from all",
        functools.partial(updated, jax.tree.map(lambda g, bad=bad: bad * g, GRADIENTS)),
        # NaN abstains; infinities vote with their sign.
        lambda out, bad=bad: (
            finite((out[0], out[1].decoder_state))
            and all(
                (u == (0 if bad != bad else np.sign(bad))).all()
                for u in out[0].values()
            )
        ),
    )
ZEROS = jax.tree.map(jnp.zeros_like, GRADIENTS)
for name, make in registry.DECODERS.items():
    tx = sfd.scale_by_sign_decoder(M, make())
    silent = functools.partial(updated, tx=tx)
    for what, call in {
        "all votes zero": functools.partial(silent, ZEROS),
        "all workers absent": functools.partial(
            silent, GRADIENTS, present=jnp.zeros(M, bool)
        ),
    }.items():
        row(
            f"update, {name}: {what}",
            call,
            lambda out: (
                finite((out[0], out[1].decoder_state))
                and all((u == 0).all() for u in out[0].values())
            ),
        )
row("update(wire)", lambda: updated(GRADIENTS, wire="two_bit"), "wire must be one of")
row(
    "update(present)",
    lambda: updated(GRADIENTS, present=jnp.ones(4, bool)),
    "present",
)
for known, bad, says in [
    ("trusted", jnp.ones(4, bool), "trusted must be a mask of 5 workers"),
    ("trusted", jnp.ones(M), "trusted must be a mask of bools"),
    ("stakes", jnp.ones(4), "stakes must have a number for each of the 5 workers"),
    ("shares", 2.0, "shares must have a number for each of the 5 workers"),
    ("stakes", jnp.full(M, NAN), lambda out: finite((out[0], out[1].decoder_state))),
    ("shares", -jnp.ones(M), lambda out: all((u == 0).all() for u in out[0].values())),
    (
        "shares",
        jnp.full(M, INF),
        lambda out: all((u == 1).all() for u in out[0].values()),
    ),
]:
    row(
        f"update({known})",
        functools.partial(updated, GRADIENTS, **{known: bad}),
        says,
    )
row(
    "update(trusted): a decoder that cannot use it",
    lambda: updated(
        *(GRADIENTS,),
        tx=sfd.scale_by_sign_decoder(M, sfd.majority_vote()),
        trusted=jnp.ones(M, bool),
    ),
    "this decoder cannot use trusted; leave out trusted=, or take a decoder",
)
for argument, bad, says in [
    ("tx", 3, "tx must be"),
    ("tx", optax.sgd(0.1), "tx holds 0 sign decoders, but stop_below needs one"),
    ("confidence", 1.5, "confidence must lie in"),
    ("rounds", 0, "rounds must be an int >= 1"),
    ("rounds", jnp.int32(5), "static_args="),
]:
    given = {"tx": sfd.sign_sgd(0.1, M), argument: bad}
    row(
        f"stop_below({argument})",
        lambda given=given: stop_below(**given).init(PARAMS),
        says,
    )
row(
    "signfd_jax.verdicts(state)",
    lambda: sfd.verdicts(sfd.majority_vote().init(M, PARAMS)),
    "holds 0 states of correlation_defense",
)
row(
    "signfd_jax.decoders.verdict_lines(said)",
    lambda: decoders.verdict_lines(
        jax.vmap(lambda _: sfd.verdicts(sfd.correlation_defense().init(M, PARAMS)))(
            jnp.arange(2)
        )
    ),
    "verdicts of one seed are wanted",
)
row(
    "signfd_jax.votes(gradients)",
    lambda: sfd.votes(jnp.array([[NAN, -0.0, INF, -INF, 1e-30]])),
    lambda votes: votes.tolist() == [[0, 0, 1, -1, 1]],
)


def zeno(**options):
    given = {"num_workers": M, "loss_fn": lambda params, batch: 0.0}
    given |= {"num_byzantine": 1, "learning_rate": 0.1}
    return scale_by_zeno(**(given | options))


def zeno_updated(gradients=GRADIENTS, params=PARAMS, root_batch=0, **extra):
    return updated(gradients, params, tx=zeno(), root_batch=root_batch, **extra)


row(
    "scale_by_aggregator(rule)",
    lambda: scale_by_aggregator(aggregators.krum, M),
    "rule must be what stateless",
)
row(
    "scale_by_aggregator(num_workers)",
    lambda: scale_by_aggregator(aggregators.stateless(aggregators.mean), 0),
    "num_workers must be an int >= 1",
)
row(
    "scale_by_aggregator: a rule's precondition",
    lambda: scale_by_aggregator(
        aggregators.stateless(aggregators.krum, num_byzantine=2), M
    ).init(PARAMS),
    "krum needs M > 2f . 2",
)
row(
    "scale_by_aggregator: present",
    lambda: updated(
        GRADIENTS,
        tx=scale_by_aggregator(aggregators.stateless(aggregators.mean), M),
        present=jnp.ones(M, bool),
    ),
    "fill the rows of absent workers",
)
for known in ("trusted", "stakes", "shares"):
    row(
        f"scale_by_aggregator: {known}",
        functools.partial(
            updated,
            GRADIENTS,
            tx=scale_by_aggregator(aggregators.stateless(aggregators.mean), M),
            **{known: jnp.ones(M, bool)},
        ),
        f"cannot use {known}",
    )
    row(
        f"scale_by_zeno: {known}",
        functools.partial(zeno_updated, **{known: jnp.ones(M, bool)}),
        f"cannot use {known}",
    )
row(
    "scale_by_aggregator: fltrust without trusted",
    lambda: updated(
        GRADIENTS,
        tx=scale_by_aggregator(aggregators.stateless(aggregators.fltrust), M),
    ),
    "needs trusted",
)
for option, bad, says in (
    ("num_workers", 0, "num_workers must be an int >= 1"),
    ("loss_fn", "loss", "loss_fn must be a function"),
    ("num_byzantine", -1, "num_byzantine must be"),
    ("num_byzantine", M, "nothing would be left"),
    ("learning_rate", -1.0, "learning_rate must lie in"),
    ("penalty", NAN, "penalty must lie in"),
):
    row(
        f"scale_by_zeno({option})",
        functools.partial(zeno, **{option: bad}),
        says,
    )
for given, says in (
    ({"params": None}, "params is missing"),
    ({"root_batch": None}, "root_batch is missing"),
    ({"present": jnp.ones(M - 1, bool)}, "present must be a mask"),
    ({"gradients": PARAMS}, "workers need|worker axis|workers"),
):
    row(
        f"scale_by_zeno: {next(iter(given))}",
        functools.partial(zeno_updated, **given),
        says,
    )
row(
    "optax.MultiSteps around",
    lambda: updated(GRADIENTS, tx=optax.MultiSteps(sfd.sign_sgd(0.1, M), 2)),
    "accumulate in the worker instead|one gradient a worker",
)

# Simulation ---------------------------------------------------------------------------


def simulate(loss_fn=None, tx=None, **options):
    loss_fn = loss_fn or (lambda params, batch: jnp.sum(params * batch))
    tx = tx or sfd.sign_sgd(0.1, M)
    return sfd.simulation(loss_fn, tx, **({"num_workers": M} | options))


def started(**options):
    sim = simulate(**options)
    return sim, sim.init(KEY, jnp.zeros(3), jnp.zeros(M, bool))


for option, bad, says in [
    ("loss_fn", 3.0, "loss_fn must be a function"),
    ("tx", optax.sgd, "tx must be what"),
    ("tx", 0.1, "tx must be what"),
    ("num_workers", 0, "num_workers must be an int >= 1"),
    ("attack", "sign_inversion", "attack must be what signfd_jax.attacks gives"),
    ("attack", attacks.sign_inversion, "attack must be what signfd_jax.attacks gives"),
    ("wire", "binary", "wire must be one of ternary, one_bit"),
    ("membership", "rotating", "membership must be a function"),
    ("lookup", 1, "lookup must be a function"),
    ("worker_chunk", 2, "does not divide the 5 workers; take 1"),
    ("worker_chunk", 2.5, "must be an int from 1 to the 5 workers"),
    ("worker_chunk", 9, "must be an int from 1 to the 5 workers"),
    ("sign_error", "no", "sign_error must be True or False"),
]:
    row(
        f"signfd_jax.simulation({option})",
        functools.partial(simulate, **{option: bad}),
        says,
    )
row(
    "signfd_jax.simulation(attack)",
    lambda: simulate(
        loss_fn=workers.Worker(lambda key, params: (), lambda k, p, b, s: (p, s, 0.0)),
        attack=attacks.inside(attacks.sign_inversion()),
    ),
    "its send takes no corrupt, only k, p, b, s",
)
row(
    "signfd_jax.simulation(worker_chunk)",
    lambda: simulate(worker_chunk=1, attack=attacks.alie()),
    "needs a row-wise attack",
)
row(
    "Simulation.init(byzantine)",
    lambda: simulate().init(KEY, jnp.zeros(3), jnp.zeros(4, bool)),
    "byzantine must be a mask of 5 workers",
)
row(
    "Simulation.step(batch)",
    lambda: started()[0].step(started()[1], jnp.ones((4, 3))),
    "its first axis must be the 5 workers",
)
row(
    "Simulation.step(batch)",
    lambda: started()[0].step(started()[1], jnp.float32(1)),
    "its first axis must be the 5 workers",
)
row(
    "Simulation: NaN in every gradient, for ten rounds",
    lambda: sfd.run(*started(), lambda key: jnp.full((M, 3), NAN), 10),
    lambda out: finite(out[0].params) and (out[0].params == 0).all(),
)
for option, bad, says in [
    ("simulation", None, "simulation must be what simulation"),
    ("state", None, "state must be what init gave"),
    ("sample_batch", jnp.ones((M, 3)), "sample_batch must be a function"),
    ("num_rounds", -1, "num_rounds must be an int >= 0"),
    ("num_rounds", 2.5, "num_rounds must be an int >= 0"),
]:
    row(
        f"signfd_jax.run({option})",
        lambda option=option, bad=bad: sfd.run(
            **(
                dict(zip(("simulation", "state"), started(), strict=True))
                | {"sample_batch": lambda key: jnp.ones((M, 3)), "num_rounds": 1}
                | {option: bad}
            )
        ),
        says,
    )

row(
    "signfd_jax.run(known)",
    lambda: sfd.run(*started(), lambda key: jnp.ones((M, 3)), 1, trust=jnp.ones(M)),
    "unknown argument trust; known are trusted, stakes, shares",
)

# Attacks ------------------------------------------------------------------------------

REPLACED = attacks.model_replacement(attacks.badnets(3))
OF_ATTACKS = [
    ("adaptive", "decoder", "majority_vote", "decoder must be what"),
    ("adaptive", "family", 1, "family must be a function"),
    ("adaptive", "family", lambda p: attacks.label_flip(3), "enters at the data"),
    ("adaptive", "candidates", [], "candidates must be a table"),
    ("adaptive", "trials", 0, "trials must be a whole number of at least 1"),
    ("adaptive", "horizon", 0, "horizon must be a whole number of at least 1"),
    ("adaptive", "sample", 0, "sample must be a whole number of at least 1"),
    ("adaptive", "seed", -1, "seed must be a whole number of at least 0"),
    ("additive_noise", "standard_deviation", 0.0, "standard_deviation must lie in"),
    ("alie", "z", NAN, "z must lie in"),
    ("alie", "z", "big", "z must be a number"),
    ("budgeted_swing", "budget", 1.5, "budget must lie in"),
    ("budgeted_swing", "decoder", "oracle", "decoder must be what"),
    ("churn", "period", 0, "period must be a whole number of at least 1 rounds"),
    ("churn", "groups", 1, "groups must be a whole number of at least 2"),
    ("churn", "seed", -1, "seed must be a whole number of at least 0"),
    ("coordinate_specialist", "share", 2.0, "share must lie in"),
    ("coordinate_specialist", "start_round", -1, "start_round must be a whole number"),
    ("coordinate_specialist", "then", attacks.label_flip(10), "enters at the data"),
    ("coordinate_specialist", "then", "alie", "attack that follows must be"),
    ("coordinate_specialist", "seed", "x", "seed must be"),
    ("disguised_opposition", "noise", -0.1, "noise must lie in"),
    ("disguised_opposition", "duty", 1.1, "duty must lie in"),
    ("disguised_opposition", "budget", NAN, "budget must lie in"),
    ("drop_out", "probability", 1.5, "probability must lie in"),
    ("sampled", "share", -0.1, "share must lie in"),
    ("fang", "spread", 0.5, "spread must lie in"),
    ("followed_by", "attack", attacks.zero(), "must be one on the data alone"),
    ("followed_by", "attack", REPLACED, "enters at the gradient too"),
    ("followed_by", "then", attacks.label_flip(3), "it enters at the data"),
    ("followed_by", "then", "alie", "then must be what signfd_jax.attacks"),
    ("gaussian", "standard_deviation", -1.0, "standard_deviation must lie in"),
    ("inside", "attack", "sign_inversion", "attack must be what signfd_jax.attacks"),
    ("inside", "attack", attacks.label_flip(3), "enters at the data"),
    ("inside", "attack", attacks.random_vote(), "enters at the vote"),
    ("inside", "attack", attacks.min_max(), "no gradient but its own"),
    ("ipm", "epsilon", -0.5, "epsilon must lie in"),
    (
        "label_flip",
        "num_classes",
        1,
        "num_classes must be a whole number of at least 2",
    ),
    ("leaving", "period", 0, "period must be a whole number of at least 1 rounds"),
    ("leaving", "away", -1, "away must be a whole number of at least 0 rounds"),
    ("line_search", "rule", aggregators.mean, "rule must be what stateless"),
    ("line_search", "rule", aggregators.TRUSTED_RULES["monna"](1, KEY), "needs trust"),
    ("line_search", "family", 0.5, "family must be a function"),
    ("line_search", "family", lambda x: x, "what family gives must be what"),
    ("line_search", "family", lambda x: attacks.random_vote(), "enters at the vote"),
    ("line_search", "evaluations", 0, "evaluations must be an int >= 1"),
    ("line_search", "start", INF, "start must lie in"),
    ("line_search", "step", NAN, "step must lie in"),
    ("line_search", "ratio", 1.5, "ratio must lie in"),
    ("mimic", "warm_up_rounds", -1, "warm_up_rounds must be a whole number"),
    ("min_max", "deviation", "mean", "deviation must be one of"),
    ("min_sum", "deviation", None, "deviation must be one of"),
    ("model_replacement", "backdoor", attacks.label_flip(3), "a target, but this one"),
    ("model_replacement", "factor", INF, "factor must lie in"),
    ("near_duplicate_collusion", "noise", -1.0, "noise must lie in"),
    ("near_duplicate_collusion", "attack", attacks.label_flip(3), "enters at the data"),
    ("neurotoxin", "backdoor", "badnets", "backdoor must be what badnets"),
    ("neurotoxin", "backdoor", REPLACED, "must be one on the data alone"),
    ("neurotoxin", "spared", 1.0, "spared must be a number below 1"),
    ("non_finite", "value", 1.0, "value must be nan, inf or -inf"),
    ("non_finite", "value", "nan", "value must be nan, inf or -inf"),
    ("on_off", "period", 0, "period must be a whole number of at least 1 rounds"),
    ("on_off", "duty", -0.1, "duty must lie in"),
    ("on_off", "attack", sfd.majority_vote(), "attack that follows must be"),
    ("rotating", "period", 0, "period must be a whole number of at least 1 rounds"),
    ("scaling", "factor", INF, "factor must lie in"),
    ("sign_alie", "z", INF, "z must lie in"),
    ("sleeper", "start_round", -5, "start_round must be a whole number"),
    ("sleeper", "then", "alie", "attack that follows must be"),
    ("stateless", "corrupt", None, "corrupt must be a function"),
    ("stateless", "entry", "momentum", "entry must be one of data, inside, gradient"),
    ("stateless", "row_wise", "no", "row_wise must be True or False"),
    ("stochastic_sign_flip", "probability", 1.5, "probability must lie in"),
    ("swing", "decoder", sfd.majority_vote, "decoder must be what"),
    ("tuned", "family", None, "family must be a function"),
    ("tuned", "candidates", [], "candidates must be a table"),
    ("tuned", "damage", 0.5, "damage must be a function"),
    ("warm_up_capture", "capture_rounds", -1, "capture_rounds must be a whole number"),
    ("warm_up_capture", "then", attacks.label_flip(10), "enters at the data"),
    ("weight_aware", "decoder", 3, "decoder must be what"),
    ("weight_aware", "crossover", 0.51, r"must lie in \[0, 0.5\]"),
    ("split_like", "key", 0, "key must be a JAX key"),
    ("split_like", "tree", (), lambda keys: keys == ()),
    ("replace_rows", "byzantine", jnp.zeros(4, bool), "a mask of the 2 workers"),
    ("replace_rows", "theirs", {"a": jnp.ones((2, 3))}, "they must be alike"),
    ("replace_rows", "theirs", jnp.ones((2, 4)), "or broadcast to it"),
    ("replace_rows", "honest", jnp.ones((5, 3)), "a mask of the 5 workers"),
]
NEEDED = {
    "adaptive": {"decoder": sfd.majority_vote()},
    "followed_by": {"attack": attacks.badnets(3), "then": attacks.zero()},
    "line_search": {
        "rule": aggregators.stateless(aggregators.mean),
        "family": attacks.ipm,
    },
    "model_replacement": {"backdoor": attacks.badnets(3)},
    "neurotoxin": {"backdoor": attacks.badnets(3)},
    "stateless": {"corrupt": lambda key, values: values},
    "tuned": {
        "family": lambda p: attacks.zero(),
        "candidates": [[0.0]],
        "damage": lambda attack: 0.0,
    },
    "split_like": {"key": KEY, "tree": PARAMS},
    "replace_rows": {
        "byzantine": jnp.zeros(2, bool),
        "theirs": jnp.ones((2, 3)),
        "honest": jnp.ones((2, 3)),
    },
}
for name, option, bad, outcome in OF_ATTACKS:
    row(
        f"signfd_jax.attacks.{name}({option})",
        functools.partial(
            getattr(attacks, name), **(NEEDED.get(name, {}) | {option: bad})
        ),
        outcome,
    )

# Aggregation rules --------------------------------------------------------------------

RULES = {
    name: function
    for name in aggregators.__all__
    if inspect.isroutine(function := getattr(aggregators, name))
    and "gradients" in inspect.signature(function).parameters
}


def aggregate(name, rows=ROWS, **options):
    parameters = inspect.signature(RULES[name]).parameters
    needed = {"num_byzantine": 1, "key": KEY, "center": jnp.zeros(3)}
    needed["trusted"] = jnp.arange(len(ROWS)) == 0
    given = {k: v for k, v in needed.items() if k in parameters} | options
    return RULES[name](gradients=rows, **given)


for name, function in RULES.items():
    of = f"signfd_jax.aggregators.{name}"
    # No worker axis, a tree's leaf, whole numbers, a list.
    for bad in (ROWS[0], ROWS[None], ROWS.astype(int), [[1.0, 2.0]]):
        row(
            f"{of}(gradients)",
            functools.partial(aggregate, name, bad),
            rf"{name}: gradients must be float \[M, D\]",
        )
    parameters = inspect.signature(function).parameters
    if "num_byzantine" in parameters:
        for bad in (-1, 0.5, "one", jnp.int32(1)):
            row(
                f"{of}(num_byzantine)",
                functools.partial(aggregate, name, num_byzantine=bad),
                "num_byzantine must be an int",
            )
        row(
            f"{of}(num_byzantine)",
            functools.partial(aggregate, name, num_byzantine=4),
            " needs M .*: with num_byzantine = 4 at least",
        )
    if "key" in parameters:
        row(
            f"{of}(key)",
            functools.partial(aggregate, name, key=0),
            "key must be a JAX key such as jax.random.key",
        )
    row(
        f"{of}(gradients)",
        functools.partial(aggregate, name, ROWS.at[2].set(NAN)),
        # The documented value: whatever is left out, it has the shape, and is finite
        # except for the mean, which is told apart.
        lambda out, name=name: (
            name in ("mean", "clipping", "top_k", "bucketing") or finite(out)
        ),
    )
for name, option, bad, says in [
    ("bucketing", "bucket_size", 0, "bucket_size must be an int >= 1"),
    (
        "centered_clipping",
        "center",
        jnp.zeros(4),
        r"center must be float \[D\] with D = 3",
    ),
    ("centered_clipping", "clip_norm", -1.0, "clip_norm must lie in"),
    ("centered_clipping", "num_iterations", 0, "num_iterations must be an int >= 1"),
    ("clipping", "max_norm", NAN, "max_norm must lie in"),
    ("dnc", "num_iterations", 0, "num_iterations must be an int >= 1"),
    ("dnc", "num_sampled", 0, "num_sampled must be an int >= 1"),
    ("dnc", "filter_fraction", -1.0, "filter_fraction must lie in"),
    ("dnc", "filter_fraction", 8.0, "choose a fraction that leaves one"),
    ("geometric_median", "smoothing", -1.0, "smoothing must lie in"),
    ("geometric_median", "max_iterations", 0, "max_iterations must be a whole number"),
    ("geometric_median", "tolerance", NAN, "tolerance must lie in"),
    ("geometric_median", "start", jnp.zeros(9), r"start must be float \[D\] or None"),
    ("draco", "group_size", 0, "group_size must be an int >= 1"),
    ("group_vote", "group_size", 2.5, "group_size must be an int"),
    ("krum", "num_neighbours", 7, "each of the 7 workers has 6 others"),
    ("multi_krum", "num_neighbours", 0, "6 others"),
    ("multi_krum", "num_selected", 8, "give 1 to 7"),
    ("signguard", "min_norm", -1.0, "min_norm must lie in"),
    ("signguard", "max_norm", 0.01, "max_norm must lie in"),
    ("signguard", "sample_fraction", 1.5, "sample_fraction must lie in"),
    ("top_k", "fraction", 0.0, "fraction must lie in"),
    ("top_k", "fraction", 1.5, "fraction must lie in"),
    ("fltrust", "trusted", jnp.ones(7), r"trusted must be bool \[M\] with M = 7"),
    ("fltrust", "trusted", jnp.ones(6, bool), r"trusted must be bool \[M\] with M = 7"),
    ("fltrust_sign", "trusted", None, r"trusted must be bool \[M\] with M = 7"),
    ("monna", "trusted", jnp.ones(7), r"trusted must be bool \[M\] with M = 7"),
    ("flame", "noise_level", -1.0, "noise_level must lie in"),
    ("rflbat", "outlier_factor", 0.5, "outlier_factor must lie in"),
    ("rflbat", "cluster_outlier_factor", NAN, "cluster_outlier_factor must lie in"),
    ("rflbat", "max_clusters", 0, "max_clusters must be an int >= 1"),
]:
    row(
        f"signfd_jax.aggregators.{name}({option})",
        functools.partial(aggregate, name, **{option: bad}),
        says,
    )
row(
    "signfd_jax.aggregators.fldetector(window)",
    lambda: aggregators.fldetector(window=0),
    "window must be an int >= 1",
)
row(
    "scale_by_mean_vote(abstentions)",
    lambda: scale_by_mean_vote(M, abstentions=1),
    "abstentions must be True or False, but is 1",
)
row(
    "signfd_jax.aggregators.factory(function)",
    lambda: aggregators.factory("mean"),
    "function must be a function of gradients",
)
row(
    "signfd_jax.aggregators.chain(rules)",
    lambda: aggregators.chain(aggregators.mean),
    "rule 0 of the chain must be what",
)
row(
    "signfd_jax.aggregators.chain(rules)",
    lambda: aggregators.chain(
        *(aggregators.stateless(aggregators.mean) for _ in range(2))
    ).init(M, 3),
    "only the last may aggregate",
)
for kind in ("stateless", "keyed", "recurrent"):
    key = (KEY,) if kind == "keyed" else ()
    row(
        f"signfd_jax.aggregators.{kind}(function)",
        functools.partial(getattr(aggregators, kind), "krum", *key),
        "function must be a function of gradients",
    )
    row(
        f"signfd_jax.aggregators.{kind}(options)",
        functools.partial(
            lambda make, *key: make(aggregators.mean, *key, trim=1).init(M, 3),
            getattr(aggregators, kind),
            *key,
        ),
        "mean: .*unexpected keyword argument 'trim'|mean: too many positional",
    )
row(
    "signfd_jax.aggregators.keyed(key)",
    lambda: aggregators.keyed(aggregators.dnc, 0),
    "key must be a JAX key",
)

# Theory -------------------------------------------------------------------------------

OF_THEORY = {
    "additive_error_bound": (P3, P3),
    "additive_error_exponential_bound": (P3, P3),
    "advantage_bound": (P3,),
    "agreement_with_own_vote": (3,),
    "agreement_without_own_vote": (P3, 0.1),
    "berend_kontorovich_bound": (P3,),
    "best_step_size": (1.0, 1.0, 10),
    "bhattacharyya_bounds": (P3,),
    "bhattacharyya_coefficient": (P3,),
    "committee_potential": (P3,),
    "convergence_bound": (0.1, 1.0, 1.0, 10),
    "decoding_error": (P3, P3),
    "expected_descent": (P3, P3, 1.0, 0.1),
    "flipped_crossover": (P3, 0.5),
    "gaussian_crossover": (P3, 1.0, 4),
    "llr_standard_deviation": (P3, 10),
    "majority_vote_bound": (0.1, 5, 1.0, 1.0),
    "multiplicative_error_bound": (P3, 0.1),
    "prior_log_odds": (0.5,),
    "safely_decoded": (jnp.array([3, -1, 2]), 1.0),
    "samples_to_tell_sides": (5.0, 0.4, 0.1),
    "sides_error_bound": (5.0, 0.4, 100.0),
    "trusted_error_bound": (0.4, 0.2, 100.0),
    "unimodal_convergence_bound": (1.0, 1.0, 1.0, 0.1, 10, 5, 4),
    "unimodal_crossover_bound": (P3,),
}
for name, good in OF_THEORY.items():
    function = getattr(theory, name)
    for position, (argument, value) in enumerate(
        zip(inspect.signature(function).parameters, good, strict=True)
    ):
        bads = [("many", "must be")]
        if isinstance(value, jax.Array):
            # A list, and where axes are named also a table or another length.
            kind = "float" if jnp.issubdtype(value.dtype, jnp.floating) else "int"
            bads = [([0.1, 0.2, 0.3], f"{argument} must be {kind}")]
            if kind == "int":
                bads.append((P3, f"{argument} must be int"))
            elif "shape" not in str(inspect.signature(function).parameters[argument]):
                bads.append((P3[None], rf"{argument} must be float \[(M|N)\]"))
            if position:
                bads.append((P3[:2], rf"{argument} must be float \[(M|N)\].* = 3"))
        else:
            bads += [(-1.5, "must lie in|must be an int"), (NAN, "must")]
        for bad, says in bads:
            arguments = [*good[:position], bad, *good[position + 1 :]]
            row(
                f"signfd_jax.theory.{name}({argument})",
                functools.partial(function, *arguments),
                says,
            )
row(
    "signfd_jax.theory.decoding_error(crossover)",
    lambda: theory.decoding_error(jnp.full(25, 0.3)),
    "use bhattacharyya_bounds for more",
)

# On a mesh ----------------------------------------------------------------------------


def mesh_of_four():
    auto = (AxisType.Auto,)
    return jax.make_mesh((4,), ("workers",), auto, devices=jax.devices()[:4])


def reduced(gradients=None, **wrong):
    """Trace `sign_all_reduce` on four devices, whatever is wrong with it."""
    gradients = jnp.ones((4, 64)) if gradients is None else gradients
    mesh = mesh_of_four()

    def one(gradient):
        own = jnp.squeeze(gradient, 0)
        decoder = sfd.majority_vote()
        good = {"decoder": decoder, "round": jnp.int32(0)}
        good["state"] = distributed.slice_state(decoder, jnp.zeros(64))
        return distributed.sign_all_reduce(own, **(good | wrong))[0]

    mapped = jax.shard_map(
        one, mesh=mesh, in_specs=P("workers"), out_specs=P(), check_vma=False
    )
    return jax.eval_shape(mapped, gradients)


def sliced(decoder=None, params=None, **options):
    """Trace `slice_state` on four devices."""
    mesh = mesh_of_four()
    params = jnp.zeros(64) if params is None else params
    decoder = sfd.majority_vote() if decoder is None else decoder
    mapped = jax.shard_map(
        lambda: distributed.slice_state(decoder, params, **options).mv_weights,
        mesh=mesh,
        in_specs=(),
        out_specs=P(),
        check_vma=False,
    )
    return jax.eval_shape(mapped)


D = "signfd_jax.distributed"
for argument, call, says in [
    (
        "sign_all_reduce(gradients)",
        lambda: reduced(jnp.ones((4, 64)), workers_per_device=3),
        "must lead with the 3 workers",
    ),
    (
        "sign_all_reduce(decoder)",
        lambda: reduced(decoder="majority"),
        "decoder must be",
    ),
    (
        "sign_all_reduce(state)",
        lambda: reduced(state=jnp.ones(3)),
        "make it by slice_state",
    ),
    (
        "sign_all_reduce(axis_name)",
        lambda: reduced(axis_name="nodes"),
        "no mesh axis 'nodes'",
    ),
    ("sign_all_reduce(round)", lambda: reduced(round="first"), "round must be"),
    (
        "sign_all_reduce(workers_per_device)",
        lambda: reduced(workers_per_device=0),
        "workers_per_device must be an int >= 1",
    ),
    (
        "sign_all_reduce(present)",
        lambda: reduced(present=jnp.ones(3, bool)),
        "present must be",
    ),
    (
        "sign_all_reduce(trusted)",
        lambda: reduced(trusted=jnp.ones(4, bool)),
        "this decoder cannot use trusted",
    ),
    ("sign_all_reduce(stakes)", lambda: reduced(stakes=1.0), "stakes must have"),
    ("sign_all_reduce(shares)", lambda: reduced(shares=1.0), "shares must have"),
    (
        "sign_all_reduce(param_specs)",
        lambda: reduced(param_specs=P("workers")),
        "the workers' axis",
    ),
    ("slice_state(decoder)", lambda: sliced(decoder="majority"), "decoder must be"),
    (
        "slice_state(params)",
        lambda: distributed.slice_state(sfd.majority_vote(), PARAMS),
        "there is no mesh axis 'workers' here",
    ),
    (
        "slice_state(axis_name)",
        lambda: sliced(axis_name="nodes"),
        "no mesh axis 'nodes'",
    ),
    (
        "slice_state(workers_per_device)",
        lambda: sliced(workers_per_device=0),
        "workers_per_device must be an int >= 1",
    ),
    (
        "slice_state(param_specs)",
        lambda: sliced(param_specs=P("workers")),
        "the workers' axis",
    ),
    (
        "scale_by_sign_decoder_sharded(workers_per_device)",
        lambda: distributed.scale_by_sign_decoder_sharded(4, workers_per_device=3),
        "workers_per_device must divide num_workers",
    ),
    (
        "scale_by_sign_decoder_sharded(axis_name)",
        lambda: distributed.scale_by_sign_decoder_sharded(4, axis_name=0),
        "axis_name must be",
    ),
    (
        "scale_by_sign_decoder_sharded(param_specs)",
        lambda: distributed.scale_by_sign_decoder_sharded(4, param_specs=P("workers")),
        "the workers' axis",
    ),
]:
    row(f"{D}.{argument}", call, says)

# Data, splits, networks, plots --------------------------------------------------------

SPLITS = {
    "iid": {},
    "dirichlet": {"alpha": 1.0},
    "everything": {},
    "labels_per_worker": {"num_labels": 2},
    "one_class_per_worker": {},
    "replicated": {"group_size": 2},
    "shards": {"num_shards": 2},
    "similarity": {"share": 0.5},
}
for name, options in SPLITS.items():
    of, split = f"signfd_jax.data.partition.{name}", getattr(partition, name)
    kinds = [np.zeros(0, int), 3]
    # Those of texts do for a split that does not go by class.
    kinds += [np.zeros((3, 2), int)] * (name not in ("iid", "everything", "replicated"))
    for bad in kinds:
        row(f"{of}(labels)", functools.partial(split, bad, 4, **options), "labels must")
    for bad in (0, 2.5, "four"):
        row(
            f"{of}(num_workers)",
            functools.partial(split, LABELS, bad, **options),
            "num_workers must be an int >= 1",
        )
    if "seed" in inspect.signature(split).parameters:
        row(
            f"{of}(seed)",
            functools.partial(split, LABELS, 4, seed="x", **options),
            "seed must be an int >= 0",
        )
for argument, bad, says in [
    ("writers", None, "writers is None: these data do not say who wrote"),
    ("writers", np.zeros((3, 2), int), r"writers must be \[n\]"),
    ("writers", np.zeros(0, int), r"writers must be \[n\]"),
    ("num_workers", 0, "num_workers must be an int >= 1"),
    ("seed", "x", "seed must be an int >= 0"),
]:
    given = {"writers": LABELS, "num_workers": 4, argument: bad}
    row(
        f"signfd_jax.data.partition.by_writer({argument})",
        lambda given=given: partition.by_writer(**given),
        says,
    )
for bad in (0.0, -1.0, NAN, INF, "big"):
    row(
        "signfd_jax.data.partition.dirichlet(alpha)",
        functools.partial(partition.dirichlet, LABELS, 4, bad),
        "alpha must",
    )
for bad in (0, -1, 1.5):
    row(
        "signfd_jax.data.partition.replicated(group_size)",
        functools.partial(partition.replicated, LABELS, 4, bad),
        "group_size must be an int >= 1",
    )
for bad in (0, -1, 1.5):
    row(
        "signfd_jax.data.partition.shards(num_shards)",
        functools.partial(partition.shards, LABELS, 4, bad),
        "num_shards must be an int >= 1",
    )
for bad in (-0.1, 1.1, NAN, "half"):
    row(
        "signfd_jax.data.partition.similarity(share)",
        functools.partial(partition.similarity, LABELS, 4, bad),
        "share must",
    )
for bad in (0, 11, 1.5):
    row(
        "signfd_jax.data.partition.labels_per_worker(num_labels)",
        functools.partial(partition.labels_per_worker, LABELS, 4, bad),
        "num_labels|labels",
    )
row(
    "batches.worker_batches(batch_size)",
    lambda: batches.worker_batches(DIGITS, partition.iid(LABELS, 3), 0),
    "batch_size must be an int >= 1",
)
row(
    "batches.worker_batches(partition)",
    lambda: batches.worker_batches(DIGITS, partition.iid(np.zeros(9999, int), 3), 4),
    "make the partition from its labels",
)

MODEL = models.SoftmaxRegression()
IMAGES = jnp.zeros((4, 2, 2, 1))
TRAINED = {"params": {"Dense_0": {"kernel": jnp.zeros((4, 10)), "bias": jnp.zeros(10)}}}


def evaluated(**given):
    good = {
        "model": MODEL,
        "params": MODEL.init(KEY, IMAGES),
        "inputs": IMAGES,
        "labels": jnp.zeros(4, jnp.int32),
    }
    return models.evaluate(**(good | given))


for option, bad, says in [
    ("model", "mlp", "model must be what flax.linen gives"),
    ("params", {}, "params"),
    ("inputs", jnp.zeros((3, 2, 2, 1)), "equally many examples"),
    ("labels", jnp.zeros(3, jnp.int32), "equally many examples"),
    ("labels", jnp.zeros(0, jnp.int32), "equally many examples"),
    ("batch_size", 0, "batch_size must be an int >= 1"),
    ("preprocess", 255, "preprocess must be a function"),
]:
    row(
        f"signfd_jax.models.evaluate({option})",
        functools.partial(evaluated, **{option: bad}),
        says,
    )
row("signfd_jax.models.loss_fn(model)", lambda: models.loss_fn("mlp"), "model must be")
row(
    "signfd_jax.models.loss_fn(model)",
    lambda: models.ResNet(depth=21).init(KEY, jnp.zeros((1, 32, 32, 3))),
    "6 k",
)
RECORD = {"round": 1, "seed": 0, "test_accuracy": 0.5}
for name, argument, bad, says in [
    ("accuracy_figure", "runs", {"mine": []}, "run mine has no metrics yet"),
    ("accuracy_figure", "runs", {"mine": [{"round": 1}]}, "lacks test_accuracy"),
    ("grid_figure", "records", [], "no metrics yet"),
    ("grid_figure", "records", [RECORD], "record 1, lacks config"),
    ("weights_figure", "metrics", [], "no metrics yet"),
    ("weights_figure", "metrics", [RECORD], "lacks weights, byzantine"),
    ("panels_figure", "panels", {}, "no panels"),
    ("panels_figure", "xlabel", None, "xlabel must be a text"),
    ("panels_figure", "ylabel", 3, "ylabel must be a text"),
    ("panels_figure", "log_x", "yes", "log_x must be True or False"),
    ("save", "figures", {}, "there are no figures"),
    ("save", "dpi", 0, "dpi must be"),
    ("save", "title", 3, "title must be a text"),
    ("save", "size", (5.0, 0.0), "size must be a width and a height"),
    ("weights_figure", "unit", "volts", "unit must be one of votes, nats"),
]:
    needed = {
        "weights_figure": {"metrics": [RECORD | {"weights": [1.0], "byzantine": []}]},
        "panels_figure": {"panels": {"left": {}}, "xlabel": "x", "ylabel": "y"},
        "save": {"figures": {Path("never.png"): None}},
    }
    row(
        f"signfd_jax.experiments.report.plots.{name}({argument})",
        functools.partial(
            getattr(plots, name), **(needed.get(name, {}) | {argument: bad})
        ),
        says,
    )
row(
    "signfd_jax.experiments.report.plots.draw(folder)",
    lambda folder: plots.draw(folder / "nowhere"),
    "holds no run",
)


def drawn(folder, **options):
    (folder / "config.json").write_text("{}")
    (folder / "metrics.jsonl").write_text(json.dumps(RECORD) + "\n")
    plots.draw(folder, **options)


for option, bad, says in [
    ("format", "gif", "format must be one of png, pdf, svg"),
    ("title", 3, "title must be a text"),
    ("label", 3, "label must be a text"),
    ("size", (5.0,), "size must be a width and a height"),
]:
    row(
        f"signfd_jax.experiments.report.plots.draw({option})",
        lambda folder, given={option: bad}: drawn(folder, **given),
        says,
    )
row(
    "signfd_jax.data.load(name)",
    lambda: data.load("mnits"),
    "unknown data set 'mnits'",
)
row(
    "signfd_jax.data.check_name(name)", lambda: data.check_name(3), "unknown data set 3"
)
for argument, bad, says in [
    ("inputs", [1.0, 2.0], r"inputs must be numbers \[n, ...\]"),
    ("labels", [0.5] * 10, "labels must be an integer for each of 10"),
    ("test_inputs", [[1.0]], "test_inputs and test_labels come together"),
    ("test_labels", [1], "test_inputs and test_labels come together"),
    ("writers", [0] * 9, "writers must be an integer for each of 10 inputs"),
    ("writers", [-1] * 10, "writers must count from 0; one is -1"),
    ("name", 3, "name must be a text"),
]:
    given = {"inputs": np.ones((10, 1)), "labels": [0] * 10, argument: bad}
    row(
        f"signfd_jax.data.from_arrays({argument})",
        lambda given=given: data.from_arrays(**given),
        says,
    )
for argument, bad, says in [
    ("texts", "to be or not", "texts must be a table from each writer's name"),
    ("texts", {"ann": 3}, "texts must be a table from each writer's name"),
    ("texts", {}, "none of 0 texts has more than 32 characters in its last fifth"),
    ("texts", {"ann": "ha " * 50}, "none of 1 texts has more than 32 characters"),
    ("context", 0, "context must be an int >= 1, but is 0"),
    ("context", 5.5, "context must be an int >= 1"),
    ("name", 3, "name must be a text"),
]:
    given = {"texts": {"ann": "ha " * 99}, argument: bad}
    row(
        f"signfd_jax.data.from_texts({argument})",
        lambda given=given: data.from_texts(**given),
        says,
    )
row(
    "signfd_jax.data.load(data_dir)",
    lambda folder: data.load("mnist", data_dir=folder / "nowhere"),
    "nowhere",
)
for argument, call, says in [
    *(
        (
            "correlation_defense(thresholds)",
            lambda name=name: sfd.correlation_defense(sfd.Thresholds(**{name: -1.0})),
            f"{name} must",
        )
        for name in sfd.Thresholds._fields
    ),
    (
        "data.load(downloads)",
        lambda folder: data.load("mnist", data_dir=None, downloads={}),
        "downloads must",
    ),
    (
        "data.standardise(inputs)",
        lambda: data.standardise([[0]], DIGITS),
        "inputs must",
    ),
    (
        "data.standardise(dataset)",
        lambda: data.standardise(np.zeros((2, 8, 8, 1)), "digits"),
        "dataset must",
    ),
]:
    row(f"signfd_jax.{argument}", call, says)

# Experiments --------------------------------------------------------------------------

for field, bad, says in [
    ("name", "a/b", "name must consist of letters"),
    ("name", "", "name must consist of letters"),
    ("dataset", "mnits", "unknown data set 'mnits'"),
    ("model", "mlpp", r"unknown model 'mlpp' \(did you mean mlp\?\)"),
    ("model", "mlp:width=3", "model mlp has no option 'width'; it has hidden"),
    ("split", "dirichlet", "split dirichlet needs alpha"),
    ("split", "dirichlet:big", "'big' is neither a number nor true, false or none"),
    ("decoder", "majority", "did you mean majority_vote"),
    ("decoder", "federated_defense:forgetting=2", "forgetting must lie in"),
    ("decoder", "krum:num_byzantine=9", "krum needs M > 2f"),
    ("attack", "inversion", "unknown attack 'inversion'"),
    ("attack", "gaussian:-1", "standard_deviation must lie in"),
    ("membership", "shuffled", "unknown membership"),
    ("worker", "idle", "unknown worker"),
    ("optimizer", "adamm", "did you mean adam"),
    ("optimizer", "sgd:speed=3", "optimizer sgd has no option 'speed'"),
    ("schedule", "cosine:warmup=-1", "warmup must be"),
    ("flip_probability", 1.5, "flip_probability must lie in"),
    ("num_workers", 0, "num_workers must be >= 1"),
    ("num_byzantine", 16, "num_byzantine must lie in"),
    ("byzantine_ids", (3, 3), "byzantine_ids must be distinct"),
    ("byzantine_ids", (99,), "byzantine_ids must be distinct and lie in"),
    ("trusted", 15, r"trusted must lie in \[0, 15\), less than the number of workers"),
    ("trusted", 2.0, "trusted must be of type int"),
    ("root_examples", 100, "root_examples must be 0, or a number of examples with"),
    ("stakes", (1.0, 2.0), "stakes must have a number for each of the 15 workers"),
    ("stakes", (NAN,) * 15, "stakes must be finite and not negative"),
    ("stakes", (True,) * 15, "stakes must be of type"),
    ("shares", (-1.0,) * 15, "shares must be finite and not negative"),
    ("shares", "sizes", "one number for each worker, or examples, but is 'sizes'"),
    ("withheld", ("trusted",), "withheld must name some of what is given"),
    ("stop_below", "0.5", "stop_below must be confidence:rounds"),
    ("stop_below", "1.5:20", "stop_below must be confidence:rounds"),
    ("wire", "binary", "wire must be one of"),
    ("batch_size", 0, "batch_size must be >= 1"),
    ("worker_chunk", -1, "worker_chunk must lie in"),
    ("learning_rate", 0.0, "learning_rate must be positive"),
    ("learning_rate", NAN, "learning_rate must be positive"),
    ("rounds", 0, "rounds must be >= 1"),
    ("rounds", 2.5, "rounds must be of type int"),
    ("eval_every", 0, "eval_every must be >= 1"),
    ("augment", "yes", "augment must be of type bool"),
    ("seed", -1, "seed must lie in"),
    ("seeds", 0, "seeds must be >= 1"),
    ("partition_seed", 2**31, "partition_seed must lie in"),
]:
    row(
        f"Experiment({field})",
        lambda field=field, bad=bad: training.check(Experiment(**{field: bad})),
        says,
    )
row(
    "Experiment(worker_chunk)",
    lambda: training.prepare(Experiment(worker_chunk=4), DIGITS),
    "does not divide the 15 workers; take 3",
)
row(
    "signfd_jax.experiments.load(folder)",
    lambda folder: load(folder / "nowhere"),
    "nowhere holds no run",
)
ONE = Experiment(rounds=1)
for argument, bad, says in [
    ("config", "digits", "must be an Experiment"),
    ("output_dir", 5, "must be a path"),
    ("data_dir", "nowhere", "nowhere"),
    ("force", "yes", "force must be True or False"),
    ("checkpoint_every", 0, "checkpoint_every must be an int >= 1"),
    ("keep_checkpoints", 2.5, "keep_checkpoints must be"),
    ("distributed", 1, "distributed must be True or False"),
    ("distributed", True, "add --wire one_bit"),
    ("sinks", [print], "each of sinks must be"),
    ("dataset", "digits", "dataset must be a data.Dataset"),
    ("model", print, "has no method init"),
]:
    given = {"config": ONE, "progress": False, argument: bad}
    if argument == "data_dir":
        given["config"] = Experiment(dataset="mnist", model="mlp")
    row(
        f"signfd_jax.experiments.run_experiment({argument})",
        lambda folder, given=given: run_experiment(**{"output_dir": folder, **given}),
        says,
    )
for argument, bad, says in [
    ("experiments", ONE, "experiments must be many of them"),
    ("experiments", ["digits"], "must be an Experiment"),
    ("folder", None, "must be a path"),
    ("data_dir", "nowhere", "nowhere"),
    ("force", 1, "force must be True or False"),
]:
    given = {"experiments": [ONE], "progress": False, argument: bad}
    if argument == "data_dir":
        given["experiments"] = [Experiment(dataset="mnist", model="mlp")]
    row(
        f"signfd_jax.experiments.run_grid({argument})",
        lambda folder, given=given: compare.run_grid(**{"folder": folder, **given}),
        says,
    )


def second_seed(folder):
    save_params(folder, {"bias": np.zeros((1, 3))})
    load_params(folder, seed=1)


row("signfd_jax.experiments.load_params(folder)", lambda: load_params(3), "be a path")
row("signfd_jax.experiments.load_params(seed)", second_seed, "seed must lie in")
for argument, call, says in [
    (
        "fingerprint(config)",
        lambda: experiments.fingerprint({"rounds": 3}),
        "config must",
    ),
    ("to_json(config)", lambda: experiments.to_json("digits"), "config must"),
    ("from_json(kind)", lambda: experiments.from_json(dict, "{}"), "kind must"),
    ("from_json(text)", lambda: experiments.from_json(Experiment, "{"), "not a JSON"),
    ("from_json(text)", lambda: experiments.from_json(Experiment, "[]"), "JSON object"),
    (
        "from_json(text)",
        lambda: experiments.from_json(Experiment, '{"sede": 1}'),
        "unknown fields sede",
    ),
    (
        "from_json(text)",
        lambda: experiments.from_json(Experiment, '{"seed": "1"}'),
        "seed must be of type int",
    ),
]:
    row(f"signfd_jax.experiments.{argument}", call, says)

# The leaderboard ----------------------------------------------------------------------

ALIKE = challenges.Challenge("Nobody lies.", ONE, ("none",), (0,))


BLANK = {"entry": "mean", "sha256": "", "rounds": 1, "seconds": 0.0}
BLANK |= {"environment": {}, "cells": []}


def on_board(name, folder, given):
    """Call a function of the leaderboard with one argument wrong."""
    (folder / "digits.json").write_text(challenges.freeze(ALIKE))
    right = {"folder": folder, "challenge": ALIKE, "entry": "mean", "progress": False}
    right |= {"output_dir": folder, "name": "digits"}
    right |= dict.fromkeys(["row", "then", "now"], BLANK)
    function = getattr(challenges if hasattr(challenges, name) else leaderboard, name)
    asked = inspect.signature(function).parameters
    return function(**({k: v for k, v in right.items() if k in asked} | given))


MISSING = dataclasses.replace(
    ALIKE, base=Experiment(dataset="mnist", model="mlp", rounds=1)
)
for argument, bad, says in [
    ("challenges.check_challenge(challenge)", ONE, "must be a Challenge"),
    ("challenges.freeze(challenge)", "digits", "must be a Challenge"),
    ("challenges.names(folder)", "nowhere", "there is no leaderboard in nowhere"),
    ("challenges.names(folder)", 3, "must be a path"),
    ("challenges.read_challenge(folder)", "nowhere", "no leaderboard in nowhere"),
    ("challenges.read_challenge(name)", "digit", "did you mean digits"),
    ("leaderboard.read_rows(folder)", None, "must be a path"),
    ("leaderboard.read_rows(challenge)", "digits", "must be a Challenge"),
    ("leaderboard.regenerate(challenge)", "digits", "must be a Challenge"),
    ("leaderboard.regenerate(entry)", "krun", "did you mean krum"),
    ("leaderboard.regenerate(entry)", 3, "entry must be the name of a decoder"),
    ("leaderboard.regenerate(output_dir)", 3, "must be a path"),
    ("leaderboard.regenerate(data_dir)", "nowhere", "nowhere"),
    ("leaderboard.regenerate(force)", "yes", "force must be True or False"),
    ("leaderboard.enter(folder)", 3, "must be a path"),
    ("leaderboard.enter(challenge)", "digits", "must be a Challenge"),
    ("leaderboard.enter(row)", {"entry": "krum"}, "it lacks cells"),
    ("leaderboard.compare(then)", 3, "then is no row of a leaderboard"),
    ("leaderboard.compare(now)", {"cells": 3}, "now is no row of a leaderboard"),
]:
    name, argument_name = re.fullmatch(r"\w+\.(\w+)\((\w+)\)", argument).groups()
    given = {argument_name: bad}
    if argument_name == "data_dir":
        given["challenge"] = MISSING
    row(
        f"signfd_jax.experiments.{argument}",
        lambda folder, name=name, given=given: on_board(name, folder, given),
        says,
    )

# Files --------------------------------------------------------------------------------


def written(name, content, read):
    """A row that writes a damaged file and reads it."""

    def call(folder):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        for other in MNIST:  # all four are there
            if "ubyte" in name:
                suffix = ".gz" if name.endswith(".gz") else ""
                (path.parent / f"{other}{suffix}").write_bytes(b"")
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content)
        return read(folder)

    return call


MNIST = [
    f"{part}-{kind}-ubyte"
    for part in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
]
LINE = json.dumps(RECORD) + "\n"
IDX = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28])
mnist = functools.partial(data.load, "mnist")
for what, name, content, read, outcome in [
    (
        "config.json: cut off",
        "config.json",
        '{"rounds": ',
        records.read_run,
        "is not JSON",
    ),
    ("config.json: a list", "config.json", "[1, 2]", records.read_run, "JSON object"),
    ("config.json: binary", "config.json", b"\xff\xfe\x00", records.read_run, "is not"),
    (
        "metrics.jsonl: cut off",
        "metrics.jsonl",
        LINE + '{"round": ',
        lambda f: records.read_lines(f / "metrics.jsonl"),
        lambda r: r == [RECORD],
    ),
    (
        "metrics.jsonl: damaged",
        "metrics.jsonl",
        "x\n" + LINE,
        lambda f: records.read_lines(f / "metrics.jsonl"),
        "line 1, is not JSON",
    ),
    (
        "metrics.jsonl: not records",
        "metrics.jsonl",
        "3\n",
        lambda f: records.read_lines(f / "metrics.jsonl"),
        "or is not a record",
    ),
    (
        "metrics.jsonl: binary",
        "metrics.jsonl",
        b"\xff\xfe\n",
        lambda f: records.read_lines(f / "metrics.jsonl"),
        "is not text",
    ),
    (
        "cells.jsonl: damaged",
        "cells.jsonl",
        "x\n" + LINE,
        lambda f: compare.run_grid([], f, progress=False),
        "line 1, is not JSON",
    ),
    ("cells.jsonl: foreign", "cells.jsonl", LINE, plots.draw, "lacks config"),
    (
        "params.npz: damaged",
        "params.npz",
        b"PK\x03\x04half",
        lambda f: load_params(f),
        "params.npz",
    ),
    (
        "params.npz: missing",
        "config.json",
        experiments.to_json(Experiment()),
        lambda f: load_params(f),
        "params.npz",
    ),
    (
        "IDX: empty",
        "mnist/train-images-idx3-ubyte",
        b"",
        lambda f: mnist(data_dir=f),
        "begins with nothing, not 00000803",
    ),
    (
        "IDX: foreign",
        "mnist/train-images-idx3-ubyte",
        b"GIF89a" * 9,
        lambda f: mnist(data_dir=f),
        "is no IDX file of bytes",
    ),
    (
        "IDX: cut off",
        "mnist/train-images-idx3-ubyte",
        IDX + b"\0" * 9,
        lambda f: mnist(data_dir=f),
        "announces an array",
    ),
    (
        "gzip: no gzip",
        "mnist/train-images-idx3-ubyte.gz",
        b"not gzip",
        lambda f: mnist(data_dir=f),
        "is not a sound gzip file",
    ),
    (
        "gzip: cut off",
        "mnist/train-images-idx3-ubyte.gz",
        gzip.compress(IDX * 99)[:40],
        lambda f: mnist(data_dir=f),
        "is not a sound gzip file",
    ),
    (
        "CIFAR: cut off",
        "cifar10/data_batch_1.bin",
        b"\1" * 3000,
        lambda f: data.load("cifar10", data_dir=f),
        "data_batch_1.bin is .*: 3,000 bytes of data, not",
    ),
]:
    row(what, written(name, content, read), outcome)


def busy(folder):
    """Two runs in one folder at once."""
    with records.locked(folder), records.locked(folder):
        pass


def read_only(folder):
    """A folder that nobody can write in, not even the superuser: a file."""
    (folder / "runs").write_text("")
    run_experiment(Experiment(rounds=1), folder / "runs", progress=False)


def foreign_checkpoint(folder):
    """A checkpoint of another experiment, in a folder that it was moved to."""
    one, other = Experiment(rounds=2), Experiment(rounds=2, learning_rate=0.5)
    state = training.prepare(one, DIGITS).start()
    with checkpoints.writer(folder, one) as save:
        save(Checkpoint(state, 1, 0.0))
    said = []
    found = checkpoints.restore(folder, state, other, report=said.append)
    return found is None and "of another configuration" in said[0]


row("two runs in one folder", busy, "another process is at work in")
row("unwritable folder", read_only, "choose another --output-dir")
row("foreign checkpoint", foreign_checkpoint, lambda refused: refused)

# The tests ----------------------------------------------------------------------------


def identify(position):
    argument, seen = TABLE[position][0], Counter(r[0] for r in TABLE[:position])
    return f"{argument}-{seen[argument]}"


def cases():
    for position in range(len(TABLE)):
        yield pytest.param(position, id=identify(position))


# What workers send -------------------------------------------------------------------

SENDS = workers.gradient(lambda params, batch: jnp.sum(params * batch))


def sent_by(name, **given):
    """Call a maker of workers with one argument wrong, and the others right."""
    right = {"loss_fn": lambda params, batch: jnp.sum(params), "worker": SENDS}
    right |= {"tx": optax.sgd(0.1), "num_steps": 2}
    make = getattr(workers, name)
    asked = inspect.signature(make).parameters
    return make(**({k: v for k, v in right.items() if k in asked} | given))


for name, argument, bad, says in [
    ("gradient", "loss_fn", 3.0, "loss_fn must be a function"),
    ("late", "delay", -1, "delay must be an int >= 0"),
    ("late", "delay", 1.5, "delay must be an int >= 0"),
    ("late", "drawn", "yes", "drawn must be True or False"),
    ("local_steps", "loss_fn", None, "loss_fn must be a function"),
    ("local_steps", "tx", optax.sgd, "tx must be what optax.sgd or the like gives"),
    ("local_steps", "num_steps", 0, "num_steps must be an int >= 1, but is 0"),
    ("local_steps", "keep_state", "yes", "keep_state must be"),
    ("transformed", "tx", None, "tx must be what optax.clip or the like gives"),
    ("momentum", "decay", 1.5, "decay must lie in"),
    ("stochastic_signs", "bound", 0.0, "bound must lie in"),
    ("dct_top_k", "k", 0, "k must be an int >= 1"),
    ("dct_top_k", "chunk", 2.5, "chunk must be an int >= 1"),
    ("dct_top_k", "decay", NAN, "decay must lie in"),
    ("rsa", "rate", 0.0, "rate must lie in"),
    ("rsa", "penalty", -1.0, "penalty must lie in"),
]:
    row(
        f"signfd_jax.workers.{name}({argument})",
        functools.partial(sent_by, name, **{argument: bad}),
        says,
    )
for name in (
    "transformed momentum error_feedback stochastic_signs dct_top_k late rsa"
).split():
    row(
        f"signfd_jax.workers.{name}(worker)",
        functools.partial(sent_by, name, worker=lambda params, batch: 0.0),
        "worker must be what signfd_jax.workers.gradient gives",
    )


@pytest.mark.parametrize("position", list(cases()))
@pytest.mark.usefixtures("without_beartype")
def test_wrong_use(position, tmp_path):
    _, call, outcome = TABLE[position]
    with_folder = "folder" in inspect.signature(call).parameters
    arguments = (tmp_path,) if with_folder else ()
    if callable(outcome):
        assert outcome(call(*arguments))
        return
    with pytest.raises((ValueError, OSError, TypeError)) as caught:
        call(*arguments)
    message = str(caught.value)
    assert re.search(outcome, message), message
    assert len(message) <= 600 and message.count("\n") <= 1, message
    # It is the library that refuses, not what it calls.
    last = Path(traceback.extract_tb(caught.value.__traceback__)[-1].filename)
    assert Path(sfd.__file__).parent in last.parents, last


def public_arguments():
    """Every argument of the functions that the packages' `__all__` name."""
    packages = (sfd, decoders, attacks, aggregators, theory, distributed, experiments)
    packages += (workers, challenges, leaderboard)
    seen = set()
    for module in (*packages, data, partition, models, plots):
        for name in module.__all__:
            function = getattr(module, name)
            if inspect.isroutine(inspect.unwrap(function)) and function not in seen:
                seen.add(function)
                for argument in inspect.signature(function).parameters:
                    yield f"{module.__name__}.{name}({argument})"
    yield from (f"Experiment({field})" for field in inspect.get_annotations(Experiment))


# Any value of these does: flags of a display, and what is only passed on.
ANY_VALUE = {
    "signfd_jax.data.load(progress)",
    "signfd_jax.experiments.leaderboard.regenerate(progress)",
    "signfd_jax.experiments.run_experiment(progress)",
    "signfd_jax.experiments.run_grid(progress)",
}


def registered_arguments():
    """Those that tests/test_conformance.py sees to, for whatever is registered."""
    tables = (registry.ATTACKS, registry.DECODERS, registry.MEMBERSHIPS)
    for factory in {factory for table in tables for factory in table.values()}:
        if factory.__module__.startswith("signfd_jax"):
            module = factory.__module__.split(".")[1]
            for option in inspect.signature(factory).parameters:
                for front in ("", f"{module}."):
                    yield f"signfd_jax.{front}{factory.__name__}({option})"
    for name in aggregators.RULES:
        for option in inspect.signature(registry.SERVERS[name]).parameters:
            yield f"signfd_jax.aggregators.{name}({option})"


def test_every_public_argument_has_a_row():
    arguments = set(public_arguments())
    covered = {argument for argument, _, _ in TABLE}
    assert len(arguments) > 250
    owed = arguments - ANY_VALUE - covered - set(registered_arguments())
    assert not owed, sorted(owed)
    assert arguments >= ANY_VALUE and not covered & ANY_VALUE
    named_rows = {a for a in covered if a.startswith("signfd_jax.")}
    assert named_rows <= arguments, sorted(named_rows - arguments)


def test_the_table_is_long(capsys):
    with capsys.disabled():
        print(f" {len(TABLE)} wrong uses ", end="")
    assert len(TABLE) > 100

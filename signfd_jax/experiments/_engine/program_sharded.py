"""An experiment on all devices of all processes: one bit up, one bit down.

Shapes: `S` seeds (an outer axis), `M` workers, `D` devices, `K = M / D` workers on
each, `n` training examples of the workers of one device.

The parameters are those of one process with `wire="one_bit"`, as far as a device
computes the gradients of K workers to the same bits as those of M: the draws are the
same, and the collective is exact. A device has the examples of its own workers only.
"""

import dataclasses
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from signfd_jax import data, models
from signfd_jax._round import begin, draw, finish, own_keys, send
from signfd_jax.attacks import AttackContext
from signfd_jax.attacks._by_row import apply_by_row, enter_step, entering
from signfd_jax.data import batches, partition
from signfd_jax.distributed import scale_by_sign_decoder_sharded
from signfd_jax.distributed._shard_map import vary
from signfd_jax.experiments._engine import known
from signfd_jax.experiments._engine.prepare import (
    ANY_CLASSES,
    Training,
    byzantine_mask,
    check,
    check_model,
    split_examples,
)
from signfd_jax.experiments._engine.program import (
    compiled,
    means,
    model_of,
    nothing_like,
    parts,
    step_of,
    success_of,
    totals,
    worker_of,
)
from signfd_jax.experiments.config import Experiment
from signfd_jax.experiments.registry import DECODERS, resolve
from signfd_jax.simulate import SimulationState
from signfd_jax.transforms import StopBelowState

_AXIS = "workers"


class Shards(NamedTuple):
    """The training examples, each on the device of a worker that holds it.

    Attributes:
        inputs: uint8 `[D, n, ...]`; what a device has fewer of is padded.
        labels: int32 `[D, n]`.
        indices: int32 `[M, P]`, as in `Partition`, but positions on the device.
        sizes: int32 `[M]`.
        draws: int32 `[M]`, or None, as in `Partition`.
    """

    inputs: jax.Array
    labels: jax.Array
    indices: jax.Array
    sizes: jax.Array
    draws: jax.Array | None


def check_sharded(config: Experiment, num_devices: int) -> None:
    """Refuse what cannot run on so many devices."""
    if config.wire != "one_bit":
        raise ValueError(
            f"devices exchange one bit, but wire is {config.wire}; add --wire one_bit"
        )
    workers = config.num_workers
    if workers % num_devices:
        raise ValueError(
            f"{workers} workers cannot be shared out evenly to {num_devices} devices; "
            f"take {workers - workers % num_devices or num_devices} or "
            f"{workers + num_devices - workers % num_devices} workers, or another "
            "number of devices"
        )
    worker = resolve(config).worker
    if worker.server is not None:
        raise ValueError(
            f"devices exchange one bit for each coordinate, but {worker.name} needs "
            "another server than that; run it in one process"
        )
    if resolve(config).decoder.name not in DECODERS:
        raise ValueError(
            f"devices exchange votes, but {config.decoder} is no decoder of votes; "
            f"take one of {', '.join(sorted(DECODERS))}"
        )
    attack = _parts(config, ANY_CLASSES, config.learning_rate)[1]
    if not attack.row_wise:
        raise ValueError(
            f"the attack {config.attack} needs the gradients of other workers, which "
            "no device has; run it in one process"
        )


def share_out(dataset: data.Dataset, split: partition.Partition, mesh: Mesh) -> Shards:
    """Put on each device the examples of its workers, and on no other."""
    rows = np.split(np.asarray(split.indices), mesh.size)
    held = [np.unique(row) for row in rows]
    places = np.concatenate(
        [np.searchsorted(h, row) for h, row in zip(held, rows, strict=True)]
    )
    width = max(map(len, held))

    def of_devices(array):
        array = np.asarray(array)

        def shard(index):
            chosen = held[index[0].start or 0]
            padding = [(0, width - len(chosen))] + [(0, 0)] * (array.ndim - 1)
            return np.pad(array[chosen], padding)[None]

        shape = (mesh.size, width, *array.shape[1:])
        sharding = NamedSharding(mesh, P(_AXIS))
        return jax.make_array_from_callback(shape, sharding, shard)

    return Shards(
        inputs=of_devices(dataset.train_inputs),
        labels=of_devices(dataset.train_labels),
        indices=_put(places.astype(np.int32), mesh, P(_AXIS)),
        sizes=_put(split.sizes, mesh, P()),
        draws=None if split.draws is None else _put(split.draws, mesh, P()),
    )


def prepare_sharded(
    config: Experiment,
    dataset: data.Dataset,
    split: partition.Partition | None = None,
    model: Any = None,
) -> Training:
    """Compile an experiment for all devices, and set it up: `prepare`, in parallel.

    Every process calls it with the same arguments. `Metrics.sign_error` is NaN: nobody
    has the mean gradient.
    """
    check(config, dataset, model)
    check_model(config, dataset, model)
    devices = jax.devices()
    check_sharded(config, len(devices))
    split = split_examples(config, dataset) if split is None else split
    mesh = jax.make_mesh(
        (len(devices),), (_AXIS,), devices=devices, axis_types=(AxisType.Auto,)
    )
    shards = share_out(dataset, split, mesh)
    facts = dataclasses.replace(
        dataset,
        train_inputs=dataset.train_inputs[:0],
        train_labels=np.zeros(0, "i4"),
        writers=None,
    )
    facts, structure = jax.tree.flatten(facts)
    facts = tuple(_put(leaf, mesh, P()) for leaf in facts)
    seeds = np.arange(config.seed, config.seed + config.seeds, dtype=np.uint32)
    masks = np.stack([byzantine_mask(config, int(seed)) for seed in seeds])
    begin = (_put(seeds, mesh, P()), _put(masks, mesh, P()), facts)
    told = {n: _put(v, mesh, P()) for n, v in known.known_of(config, split).items()}

    start, chunk, specs = _programs(config, len(devices), structure, model)
    shard_specs: Any = (P(_AXIS), P(_AXIS), P(_AXIS), P(), P())
    begun = time.perf_counter()
    start = jax.shard_map(start, mesh=mesh, in_specs=P(), out_specs=specs)
    # As in `compile_program`: the first parameters must be the same to the last bit.
    quickly: Any = {"xla_backend_optimization_level": 1}
    start = compiled(jax.jit(start), *begin, options=quickly)
    state: Any = start.out_info
    chunks = {}
    for length in {
        min(config.eval_every, config.rounds),
        config.rounds % config.eval_every,
    } - {0}:
        program = jax.shard_map(
            functools.partial(chunk, length),
            mesh=mesh,
            in_specs=(specs, P(), Shards(*shard_specs), P(), P()),
            out_specs=(specs, P()),
        )
        program = jax.jit(program, donate_argnums=0)
        chunks[length] = compiled(program, state, begin[0], shards, facts, told)
    compile_seconds = time.perf_counter() - begun

    def advance(state, rounds):
        length = min(config.eval_every, config.rounds - rounds)
        state, sums = chunks[length](state, begin[0], shards, facts, told)
        return state, rounds + length, means(jax.device_get(sums))

    params = jax.tree.leaves(state.params)
    return Training(
        start=lambda: start(*begin),
        advance=advance,
        rounds=config.rounds,
        num_coordinates=sum(leaf.size for leaf in params) // config.seeds,
        compile_seconds=compile_seconds,
        shapes=tuple(leaf.shape[1:] for leaf in params),
    )


def _put(array, mesh, spec):
    """An array on the mesh, of which each process makes its own part."""
    array = np.asarray(array)
    sharding = NamedSharding(mesh, spec)
    return jax.make_array_from_callback(array.shape, sharding, lambda i: array[i])


def _parts(config, num_classes, learning_rate, seed=0):
    return parts(
        config,
        num_classes=num_classes,
        learning_rate=learning_rate,
        flip_probability=config.flip_probability,
        strengths={},
        seed=seed,
    )


def _programs(config, num_devices, structure, given):
    """The start and a chunk of rounds, for one device, and the specs of the state."""
    workers, rows = config.num_workers, config.num_workers // num_devices
    decoder = resolve(config).decoder.make({"num_workers": workers})
    aggregate = scale_by_sign_decoder_sharded(
        workers, decoder=decoder, workers_per_device=rows
    )
    tx = optax.chain(aggregate, step_of(config, config.learning_rate))
    tx = known.failing_closed(config, tx)
    whole: Any = P()
    opt_state = (jax.tree.map(_for_seeds, aggregate.state_specs), whole)
    if config.stop_below:
        opt_state = StopBelowState(
            opt_state, *(whole for _ in StopBelowState._fields[1:])
        )
    specs = SimulationState(
        params=whole,
        opt_state=opt_state,
        attack_state=whole,
        byzantine=whole,
        round=whole,
        key=whole,
        worker_state=P(None, _AXIS),
    )

    def start(seeds, masks, leaves):
        facts: data.Dataset = jax.tree.unflatten(structure, leaves)
        model = model_of(config, facts.num_classes, given)
        worker = worker_of(config, models.loss_fn(model))
        own = lax.axis_index(_AXIS) * rows + jnp.arange(rows, dtype=jnp.int32)

        def of_seed(seed, byzantine):
            model_key, run_key = jax.random.split(jax.random.key(seed))
            params = model.init(model_key, nothing_like(facts))
            opt_state: Any = tx.init(params)
            return SimulationState(
                params=params,
                opt_state=opt_state,
                attack_state=(),
                byzantine=byzantine,
                round=jnp.zeros((), jnp.int32),
                key=run_key,
                worker_state=jax.tree.map(
                    lambda leaf: vary(leaf, (_AXIS,)),
                    begin(worker, run_key, own, params),
                ),
            )

        states = [of_seed(*each) for each in zip(seeds, masks, strict=True)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def chunk(num_rounds, states, seeds, shards, leaves, told):
        facts: data.Dataset = jax.tree.unflatten(structure, leaves)
        dataset = dataclasses.replace(
            facts, train_inputs=shards.inputs[0], train_labels=shards.labels[0]
        )
        first = lax.axis_index(_AXIS) * rows
        model = model_of(config, facts.num_classes, given)
        worker = worker_of(config, models.loss_fn(model))
        sample_batch = batches.worker_batches(
            dataset,
            partition.Partition(shards.indices, shards.sizes, shards.draws),
            known.batch_sizes(config, worker.num_batches),
            augment=config.augment,
            first_worker=first,
        )

        def of_seed(each):
            state, seed = each
            _, attack, membership = _parts(
                config, dataset.num_classes, config.learning_rate, seed
            )
            step = _step(config, tx, worker, attack, membership, first, rows, told)

            def one_round(state, _):
                key, batch_key = jax.random.split(state.key)
                return step(state._replace(key=key), sample_batch(batch_key))

            state, infos = lax.scan(one_round, state, length=num_rounds)
            test = models.evaluate(
                model,
                state.params,
                facts.test_inputs,
                facts.test_labels,
                preprocess=functools.partial(data.standardise, dataset=facts),
            )
            success = success_of(model, state.params, facts, attack)
            return state, totals(test, infos, workers, success)

        return lax.map(of_seed, (states, seeds))

    return start, chunk, specs


def _for_seeds(spec):
    return P(None, *spec) if spec else P()


def _step(config, tx, worker, attack, membership, first, rows, told):
    """One round on one device: `simulate.simulation`'s, with the same draws."""

    def among_all(own):
        blank = jnp.zeros((config.num_workers, *own.shape[1:]), own.dtype)
        return lax.dynamic_update_slice_in_dim(vary(blank, (_AXIS,)), own, first, 0)

    def step(state, batch):
        drawn = draw(state, membership)
        byzantine = drawn.byzantine
        context = AttackContext(state.round, None, byzantine)

        own = first + jnp.arange(rows, dtype=jnp.int32)
        mine = functools.partial(
            lax.dynamic_slice_in_dim, start_index=first, slice_size=rows
        )

        def attacked(part, values):
            liars = mine(byzantine)
            return apply_by_row(part, drawn.attack_key, own, values, liars, context)

        if part := entering(attack, "data"):
            batch = attacked(part, batch)
        params = jax.tree.map(lambda leaf: vary(leaf, (_AXIS,)), state.params)
        present = None if drawn.present is None else mine(drawn.present)
        keys = own_keys(drawn.attack_key, own)
        inside, of_rows = None, ()
        if attack.entry == "inside":
            inside = functools.partial(enter_step, attack, drawn.attack_key, context)
            of_rows = own, mine(byzantine)
        sent, worker_state, losses = send(
            *(worker, keys, params, batch, state.worker_state, present),
            *(inside, of_rows),
        )
        state = state._replace(worker_state=worker_state)
        if part := entering(attack, "gradient", "vote"):
            sent = attacked(part, sent)
        if rows == 1:
            sent = jax.tree.map(lambda leaf: leaf[0], sent)
        updates, opt_state = tx.update(
            sent, state.opt_state, state.params, present=drawn.present, **told
        )
        losses = lax.psum(among_all(losses), _AXIS)
        # Nobody has the mean gradient, and so a sign error.
        return finish(state, drawn, updates, opt_state, losses, sign_error=False)

    return step

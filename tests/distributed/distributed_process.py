"""One process of a job on loopback, which knows only its own workers' targets.

    python distributed_process.py ADDRESS NUM_PROCESSES INDEX OUTPUT

Four workers share a least-squares problem whose gradients are exact in float32. Worker
0 inverts its gradient, and worker 3 sends NaN in every fifth round.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import signfd_jax as sfd
from signfd_jax.distributed import scale_by_sign_decoder_sharded

WORKERS, ROUNDS, STEP = 4, 20, 0.125
# NumPy's, because no JAX array may be made before the processes have met.
PARAMS = {"b": np.zeros(3, np.float32), "w": np.zeros((7, 5), np.float32)}
DECODER = sfd.federated_defense(initial_rounds=5)


def targets(worker):
    """The integers around which a worker's parameters should lie, `[T, ...]`."""
    rng = np.random.default_rng(worker)
    return jax.tree.map(
        lambda leaf: np.float32(rng.integers(-1, 4, (ROUNDS, *leaf.shape))), PARAMS
    )


def sent(params, target, worker, round):
    """What a worker sends: a gradient, its inverse, or nothing usable."""
    gradient = jax.tree.map(jnp.subtract, params, target)
    factor = jnp.where(worker == 0, -1.0, 1.0)
    factor = jnp.where((worker == 3) & (round % 5 == 0), jnp.nan, factor)
    return jax.tree.map(lambda leaf: factor * leaf, gradient)


def train(mesh, own):
    """Parameters after every round; `own` are this process's targets, `[K, T, ...]`."""
    per_device = WORKERS // mesh.shape["workers"]
    aggregate = scale_by_sign_decoder_sharded(
        WORKERS, decoder=DECODER, workers_per_device=per_device
    )
    tx = optax.chain(aggregate, optax.scale(-STEP))

    def rounds(params, data):
        first = lax.axis_index("workers") * per_device

        def step(carry, now):
            params, state = carry
            round, batch = now
            gradients = [
                sent(
                    params,
                    jax.tree.map(lambda leaf, k=k: leaf[k], batch),
                    first + k,
                    round,
                )
                for k in range(per_device)
            ]
            stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *gradients)
            gradient = gradients[0] if per_device == 1 else stacked
            updates, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        data = jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), data)
        carry = (params, tx.init(params))
        return lax.scan(step, carry, (jnp.arange(ROUNDS), data))[1]

    sharding = NamedSharding(mesh, P("workers"))
    data = jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), own
    )
    params = jax.device_put(PARAMS, NamedSharding(mesh, P()))
    step = jax.shard_map(rounds, mesh=mesh, in_specs=(P(), P("workers")), out_specs=P())
    return jax.jit(step)(params, data)


def main():
    """Join the job, train, and write this process's copy of the trajectory."""
    address, num_processes, index, output = sys.argv[1:]
    num_processes, index = int(num_processes), int(index)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes, index)
    per_process = WORKERS // num_processes
    mine = [targets(index * per_process + k) for k in range(per_process)]
    own = jax.tree.map(lambda *rows: np.stack(rows), *mine)
    mesh = jax.make_mesh((num_processes,), ("workers",))
    trajectory = train(mesh, own)
    local = jax.tree.map(lambda leaf: leaf.addressable_data(0), trajectory)
    np.savez(output, **local)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main()

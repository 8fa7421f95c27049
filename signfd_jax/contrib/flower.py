r"""Flower: clients send packed votes, and a server strategy decodes them.

Shapes: `M` workers, `N` coordinates. A worker is a client, and its number from 0 to
M - 1 is its row of votes. Start with `SignStrategy` on the server and `pack_votes` on
the client; `local_round` does what a worker of `simulation` does in a round.

Up go the votes: $\lceil n / 8 \rceil$ bytes for each leaf of n coordinates on the
one-bit wire, twice that on the ternary one. Down go the parameters, because a client
may have missed rounds.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flwr.app import (  # pyright: ignore[reportMissingImports]
    Array,
    ArrayRecord,
    MetricRecord,
    RecordDict,
)
from jax import lax

from signfd_jax import _round, signs
from signfd_jax._checks import check_count, check_key, check_kind
from signfd_jax.contrib._flower_strategy import SignStrategy
from signfd_jax.contrib._flower_wire import STYPE, from_arrays, to_arrays
from signfd_jax.signs import packed
from signfd_jax.workers import Worker

__all__ = [
    "SignStrategy",
    "from_arrays",
    "local_round",
    "pack_votes",
    "round_keys",
    "to_arrays",
]


def pack_votes(
    config: Any, number: int, sent: Any, *, loss: float | jax.Array = math.nan
) -> RecordDict:
    """Make the content of a client's reply: what the worker sends, as packed votes.

    Args:
        config: the `ConfigRecord` of the message, `message.content["config"]`: it says
            which round and which wire.
        number: the worker's number m (int), such as its `partition-id`.
        sent: tree like the parameters, of real `[...]`: a gradient, or how far local
            steps went.
        loss: the worker's loss (scalar), for the server's log; NaN: it is not told.

    Returns:
        The content of the reply: `Message(content, reply_to=message)`. On the one-bit
        wire, a worker without one finite number sends no votes and counts as absent.

    Raises:
        ValueError: `number` is none, or the message is not from a `SignStrategy`.

    Examples:
        >>> config = {"round": 0, "wire": "one_bit"}
        >>> content = pack_votes(config, 2, {"w": jnp.array([0.3, -2.0, 1.0])})
        >>> content["votes"]["signs"].data.hex(), content["vote"]["worker"]
        ('a0', 2)
    """
    check_count("number", number, 0)
    if not {"round", "wire"} <= set(config):
        raise ValueError(
            f"config has {', '.join(config) or 'nothing'}, but round and wire are "
            'wanted; give message.content["config"] of a message of SignStrategy'
        )
    wire = config["wire"]
    signs.check_wire(wire)
    planes = map(np.asarray, _planes(sent, config["round"], number, wire))
    data = dict(zip(("signs", "voted"), map(bytes, planes), strict=True))
    if wire == "one_bit":
        data = {"signs": data["signs"]} if any(data["voted"]) else {}
    arrays = {name: Array("uint8", (len(d),), STYPE, d) for name, d in data.items()}
    said = {"worker": int(number), "round": int(config["round"]), "loss": float(loss)}
    return RecordDict({"votes": ArrayRecord(arrays), "vote": MetricRecord(said)})


@functools.partial(jax.jit, static_argnames="wire")
def _planes(sent, round, number, wire):
    """The worker's signs, and where it voted, as bytes of all leaves."""
    row = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], sent)
    votes = signs.cast_votes(row, round, wire=wire, first_worker=number)
    leaves = jax.tree.leaves(packed.pack_ternary(votes), is_leaf=packed.is_packed)
    nothing = jnp.zeros(0, jnp.uint8)
    return (
        jnp.concatenate([nothing, *(leaf.signs[0] for leaf in leaves)]),
        jnp.concatenate([nothing, *(leaf.voted[0] for leaf in leaves)]),
    )


def round_keys(key: jax.Array, round: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """The keys that `signfd_jax.run` draws from in a round.

    Clients that know the run's key draw the batches of the simulation.

    Args:
        key: the key that the simulation's `init` was given.
        round: the round (int scalar), from 0.

    Returns:
        The key of `sample_batch`, and the key of the workers' own keys.

    Raises:
        ValueError: `key` is no key, or `round` is negative.

    Examples:
        >>> batch_key, _ = round_keys(jax.random.key(0), 3)
        >>> batch_key.shape
        ()
    """
    check_key("key", key)
    check_count("round", round, 0)
    return _round_keys(key, round)


@jax.jit
def _round_keys(key, round):
    def split(_, key):
        return jax.random.split(jax.random.split(key)[0], 3)[0]

    key, batch_key = jax.random.split(lax.fori_loop(0, round, split, key))
    return batch_key, jax.random.split(key, 3)[1]


def local_round(
    worker: Worker,
    key: jax.Array,
    number: int,
    round: int,
    params: Any,
    batch: Any,
    memory: RecordDict,
) -> tuple[Any, jax.Array]:
    """Do what a worker of `simulation` does in a round.

    The same keys and the same program for a row of workers, here of one. What the
    worker remembers, such as a momentum, stays in `memory`.

    Args:
        worker: a `Worker`, such as `workers.gradient(loss_fn)`.
        key: the key of the run, as for `round_keys`.
        number: the worker's number m (int).
        round: the round (int), from 0: `message.content["config"]["round"]`.
        params: tree of `[...]`, the parameters that came with the message.
        batch: tree of `[B, ...]`, the worker's own batch.
        memory: the `RecordDict` that Flower keeps for a client, `context.state`.

    Returns:
        What the worker sends, a tree like the parameters, and its loss, a scalar.

    Raises:
        ValueError: an argument is not of its kind.

    Examples:
        >>> from signfd_jax import workers
        >>> worker = workers.momentum(workers.gradient(lambda x, b: jnp.sum(x * b)))
        >>> memory, key, x = RecordDict(), jax.random.key(0), jnp.ones(1)
        >>> for round in range(2):
        ...     print(local_round(worker, key, 0, round, x, jnp.ones(1), memory)[0])
        [0.1]
        [0.19]
    """
    check_kind("worker", worker, ("init", "send"), "signfd_jax.workers.gradient")
    check_count("number", number, 0)
    check_key("key", key)
    check_count("round", round, 0)
    begin, send = _programs(worker)
    index = jnp.array([number], jnp.int32)
    state = begin(key, index, params)
    if "worker_state" in memory.array_records:
        state = from_arrays(memory.array_records["worker_state"], state)
    sent, state, loss = send(key, round, index, params, batch, state)
    memory["worker_state"] = to_arrays(state)
    return sent, loss


@functools.lru_cache(maxsize=8)
def _programs(worker):
    """A worker's start and its round, as programs for all clients of a process."""

    def send(key, round, index, params, batch, state):
        keys = _round.own_keys(_round_keys(key, round)[1], index)
        rows = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], batch)
        sent, state, losses = _round.send(worker, keys, params, rows, state)
        return jax.tree.map(lambda leaf: leaf[0], sent), state, losses[0]

    return jax.jit(functools.partial(_round.begin, worker)), jax.jit(send)

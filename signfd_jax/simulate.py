"""Synchronous distributed SGD with M workers on one machine.

Shapes: `M` workers, `B` examples a worker and round, `T` rounds. A batch is a tree of
`[M, B, ...]`; the workers are a vmapped axis, the rounds a `lax.scan`. A population too
large for one array of gradients goes in chunks of `m` workers.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from signfd_jax import signs
from signfd_jax._checks import (
    check_callable,
    check_flag,
    check_kind,
    check_mask,
    check_size,
)
from signfd_jax._round import SimulationInfo, begin, draw, finish, own_keys, send
from signfd_jax.attacks import Attack, AttackContext, Membership, no_attack
from signfd_jax.attacks._by_row import (
    apply_by_row,
    check_row_wise,
    enter_step,
    entering,
)
from signfd_jax.decoders._known import KNOWN
from signfd_jax.signs import packed
from signfd_jax.signs._packed_rows import join_chunks
from signfd_jax.signs._products import sum_of_rows
from signfd_jax.signs._visits import over_workers
from signfd_jax.workers import Worker, gradient

__all__ = ["Simulation", "SimulationInfo", "SimulationState", "run", "simulation"]

# Coordinates from which on it pays to read a gradient once, and not to copy it first.
_LONG = 2**15


class SimulationState(NamedTuple):
    """What a simulation carries from round to round, and what a checkpoint holds.

    Attributes:
        params: tree of `[...]`, the model.
        opt_state: state of the server's transformation.
        attack_state: the attack's state, what the attackers remember.
        byzantine: bool `[M]`, the workers that lie.
        round: int32 scalar, rounds done.
        key: a JAX key, the source of all randomness to come.
        worker_state: the workers' own states, leaves `[M, ...]`; of workers that send
            gradients there is none.
    """

    params: Any
    opt_state: Any
    attack_state: Any
    byzantine: jax.Array
    round: jax.Array
    key: jax.Array
    worker_state: Any = ()


class Simulation(NamedTuple):
    """A pair of pure functions, made by `simulation`.

    Attributes:
        init: `init(key, params, byzantine) -> SimulationState`; `byzantine` is bool
            `[M]`.
        step: `step(state, batch, present=None, **known) -> (state, SimulationInfo)`;
            the leaves of `batch` are `[M, B, ...]`, `present` is bool `[M]` or None
            (all). `known` are `trusted`, `stakes` and `shares`, as
            `scale_by_sign_decoder` takes them.
    """

    init: Callable[..., SimulationState]
    step: Callable[..., tuple[SimulationState, SimulationInfo]]


def simulation(
    loss_fn: Callable[..., jax.Array] | Worker,
    tx: optax.GradientTransformation,
    *,
    num_workers: int,
    attack: Attack | None = None,
    wire: str = "ternary",
    membership: Membership | None = None,
    lookup: Callable[[Any], Any] | None = None,
    worker_chunk: int | None = None,
    sign_error: bool = True,
) -> Simulation:
    """Build the round function of synchronous distributed SGD under attack.

    One round: what every worker sends, the attack, the server's transformation, the
    step. `step` is pure: jit it, scan it (`run`), vmap it over
    seeds.

    With `worker_chunk`, only so many workers have gradients at a time. Their votes are
    kept packed, and the server decodes them packed: M N / 8 bytes on the one-bit wire,
    twice that on the ternary one, instead of 4 M N. Votes, decoded signs, weights and
    parameters are the same as without, bit for bit, as far as the compiler computes a
    worker's gradient alike; `loss`, and the honest mean gradient behind `sign_error`,
    are summed in another order. On a CPU it is also faster for large networks: what
    three workers have between the layers may fit the cache, and that of fifteen not.

    Args:
        loss_fn: `(params, worker_batch) -> scalar` of one worker, whose batch has
            leaves `[B, ...]`; it never sees the worker axis. Each worker sends its
            gradient. Or a `workers.Worker`, which sends something else.
        tx: the server's transformation: leaves `[M, ...]` in, `[...]` out.
        num_workers: number M of workers.
        attack: what the Byzantine workers do; None: nobody lies. A row-wise attack
            is applied to each worker by itself, under a key of the worker's own; under
            `attacks.inside` to each of its own steps.
        wire: "ternary", or "one_bit": votes and decoded signs in the alphabet
            {-1, +1}, as `signs.to_wire` fills them.
        membership: `(key, byzantine, round) -> (byzantine, present)`, bool `[M]` each:
            who lies and who takes part this round, given the mask in the state; a
            `present` of None is everybody. None: always those, and all.
        lookup: makes the workers' batch of what `step` is given: leaves `[m, ...]` to
            leaves `[m, B, ...]`, such as indices to examples, so that only a chunk's
            examples are there at a time. None: it is given the batch.
        worker_chunk: number m of workers that have gradients at a time; it divides M.
            None: all. It needs a row-wise attack without memory, and a decoder of
            packed votes.
        sign_error: whether to measure it. It is no part of the algorithm, and its mean
            of the honest gradients is one more pass over all of them. False: None.

    Returns:
        `Simulation(init, step)`.

    Raises:
        ValueError: an unknown `wire`, a `worker_chunk` that does not divide the workers
            or does not suit the attack or the server, an attack inside the steps of a
            worker that cannot be entered, or from `init` and `step` a mask or a batch
            that does not have `num_workers` rows.

    Examples:
        >>> from signfd_jax import attacks, transforms
        >>> def loss_fn(x, target):
        ...     return jnp.mean((x[None] - target) ** 2)
        >>> tx = transforms.sign_sgd_fd(0.1, num_workers=5)
        >>> attack = attacks.sign_inversion()
        >>> sim = simulation(loss_fn, tx, num_workers=5, attack=attack)
        >>> byzantine = jnp.arange(5) < 2
        >>> state = sim.init(jax.random.key(0), jnp.zeros(3), byzantine)
        >>> state, info = jax.jit(sim.step)(state, jnp.ones((5, 1, 3)))
        >>> print(state.params, info.loss)
        [0.1 0.1 0.1] 1.0
    """
    worker = loss_fn if isinstance(loss_fn, Worker) else gradient(loss_fn)
    check_kind("tx", tx, ("init", "update"), "sign_sgd, optax.chain or the like")
    check_size("num_workers", num_workers)
    signs.check_wire(wire)
    attack = no_attack() if attack is None else attack
    check_kind("attack", attack, ("init", "apply"), "signfd_jax.attacks")
    if attack.entry == "inside":
        _check_inside(attack, worker)
    _check_options(membership, lookup, sign_error)
    if worker_chunk is not None:
        _check_chunk(worker_chunk, num_workers, attack)
    tx = optax.with_extra_args_support(tx)
    plan = _Plan(worker, attack, wire, lookup, sign_error)

    def init(key, params, byzantine):
        byzantine = jnp.asarray(byzantine, bool)
        check_mask("byzantine", byzantine, num_workers)
        params = jax.tree.map(jnp.asarray, params)
        opt_state = tx.init(params)
        attack_state = attack.init(num_workers, params)
        if attack.entry == "inside" and jax.tree.leaves(attack_state):
            raise ValueError(
                "inside the workers' steps an attack has no memory, but this one has a "
                "state; leave attacks.inside out"
            )
        if worker_chunk is not None:
            _check_chunked_state(opt_state, attack_state)
        return SimulationState(
            params=params,
            opt_state=opt_state,
            attack_state=attack_state,
            byzantine=byzantine,
            round=jnp.zeros((), jnp.int32),
            key=key,
            worker_state=begin(worker, key, jnp.arange(num_workers), params),
        )

    def step(state, batch, present=None, **known):
        _check_batch(batch, num_workers)
        if unknown := sorted(set(known) - set(KNOWN)):
            raise ValueError(
                f"unknown argument {', '.join(unknown)}; known are {', '.join(KNOWN)}"
            )
        if present is not None:
            check_mask("present", present, num_workers)
            present = jnp.asarray(present)
        drawn = draw(state, membership, present)
        byzantine, present = drawn.byzantine, drawn.present
        everyone = _Workers(
            index=jnp.arange(num_workers, dtype=jnp.int32),
            batch=batch,
            byzantine=byzantine,
            present=jnp.ones_like(byzantine) if present is None else present,
            state=state.worker_state,
        )
        all_send = functools.partial(_send, plan, state, drawn)
        if worker_chunk is None:
            losses, total, sent, attack_state, worker_state = all_send(everyone)
        else:
            losses, total, sent, worker_state = _in_chunks(
                plan, state, all_send, everyone, worker_chunk
            )
            attack_state = state.attack_state
        state = state._replace(worker_state=worker_state)
        updates, opt_state = tx.update(
            sent,
            state.opt_state,
            state.params,
            present=present,
            wire=wire,
            honest_sign=signs.votes(total) if sign_error else None,
            **known,
        )
        return finish(
            *(state, drawn, updates, opt_state, losses),
            sign_error=sign_error,
            attack_state=attack_state,
        )

    return Simulation(init, step)


class _Plan(NamedTuple):
    """What does not change from round to round."""

    worker: Worker
    attack: Attack
    wire: str
    lookup: Callable[[Any], Any] | None
    sign_error: bool


class _Workers(NamedTuple):
    """Some of the workers: their numbers, and their rows."""

    index: jax.Array
    batch: Any
    byzantine: jax.Array
    present: jax.Array
    state: Any


def _send(plan, state, drawn, workers):
    """Losses, sum of what honest ones send or None, what all send, and the states."""
    attack_key, attack_state = drawn.attack_key, state.attack_state
    decoder_state = optax.tree.get(state.opt_state, "decoder_state")
    context = AttackContext(state.round, decoder_state, drawn.byzantine)
    batch = workers.batch if plan.lookup is None else plan.lookup(workers.batch)
    if attack := entering(plan.attack, "data"):
        batch, attack_state = _attacked(
            attack, attack_key, workers, context, attack_state, batch
        )
    keys = own_keys(attack_key, workers.index)
    inside, rows = None, ()
    if plan.attack.entry == "inside":
        inside = functools.partial(enter_step, plan.attack, attack_key, context)
        rows = workers.index, workers.byzantine
    sent, worker_state, losses = send(
        *(plan.worker, keys, state.params, batch, workers.state, workers.present),
        *(inside, rows),
    )
    total = None
    if plan.sign_error:
        honest = ~workers.byzantine & workers.present
        total = jax.tree.map(lambda g: _sum_honest(g, honest), sent)
    if attack := entering(plan.attack, "gradient", "vote"):
        sent, attack_state = _attacked(
            attack, attack_key, workers, context, attack_state, sent
        )
    return losses, total, sent, attack_state, worker_state


def _in_chunks(plan, state, some_send, everyone, worker_chunk):
    """What `_send` gives, a chunk of the workers at a time, with the votes packed."""
    pack = packed.pack_one_bit if plan.wire == "one_bit" else packed.pack_ternary

    def send_chunk(total, workers):
        losses, more, sent, _, worker_state = some_send(workers)
        votes = signs.cast_votes(
            sent,
            state.round,
            wire=plan.wire,
            present=workers.present,
            first_worker=workers.index[0],
        )
        total = jax.tree.map(jnp.add, total, more)
        return total, (losses, pack(votes), worker_state)

    chunks = jax.tree.map(
        lambda leaf: leaf.reshape(-1, worker_chunk, *leaf.shape[1:]), everyone
    )
    zeros = jax.tree.map(jnp.zeros_like, state.params) if plan.sign_error else None
    total, (losses, sent, worker_state) = lax.scan(send_chunk, zeros, chunks)
    worker_state = jax.tree.map(
        lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), worker_state
    )
    return losses.reshape(-1), total, join_chunks(sent), worker_state


def _attacked(attack, key, workers, context, state, values):
    """The values after the attack, and the attack's state."""
    if not attack.row_wise or jax.tree.leaves(state):
        return attack.apply(key, values, workers.byzantine, context, state)
    mask = workers.byzantine
    return apply_by_row(attack, key, workers.index, values, mask, context), state


def _check_options(membership, lookup, sign_error):
    if membership is not None:
        check_callable("membership", membership, "(key, byzantine, round)")
    if lookup is not None:
        check_callable("lookup", lookup, "of the batch that step is given")
    check_flag("sign_error", sign_error)


def _check_inside(attack, worker):
    check_row_wise(attack)
    taken = inspect.signature(worker.send).parameters
    if "corrupt" not in taken:
        raise ValueError(
            "the attack enters the worker's own steps, but its send takes no corrupt, "
            f"only {', '.join(taken)}; let it put each gradient through "
            "corrupt(step, gradient), or leave attacks.inside out"
        )


def _check_chunk(worker_chunk, num_workers, attack):
    if type(worker_chunk) is not int or not 1 <= worker_chunk <= num_workers:
        raise ValueError(
            f"worker_chunk must be an int from 1 to the {num_workers} workers, but is "
            f"{worker_chunk!r}"
        )
    if num_workers % worker_chunk:
        fitting = next(m for m in range(worker_chunk, 0, -1) if num_workers % m == 0)
        raise ValueError(
            f"worker_chunk={worker_chunk} does not divide the {num_workers} workers; "
            f"take {fitting}, the next smaller number that does"
        )
    if not attack.row_wise:
        raise ValueError(
            "worker_chunk needs a row-wise attack, but this one looks at the rows of "
            "all workers at once; leave worker_chunk out"
        )


def _check_chunked_state(opt_state, attack_state):
    if jax.tree.leaves(attack_state):
        raise ValueError(
            "worker_chunk needs an attack without memory, but this one has a state; "
            "leave worker_chunk out"
        )
    if optax.tree.get(opt_state, "decoder_state") is None:
        raise ValueError(
            "worker_chunk needs a server that decodes votes (scale_by_sign_decoder); a "
            "rule for real numbers must see all gradients at once"
        )


def run(
    simulation: Simulation,
    state: SimulationState,
    sample_batch: Callable[[jax.Array], Any],
    num_rounds: int,
    **known,
) -> tuple[SimulationState, SimulationInfo]:
    """Run many rounds as one `lax.scan`.

    Two runs of 10 rounds are one run of 20: all randomness comes from `state.key`.

    Args:
        simulation: what `simulation` returned.
        state: its state, before the first of these rounds.
        sample_batch: `key -> batch`, a tree of `[M, B, ...]`, drawn on the device. The
            key is consumed.
        num_rounds: number T of rounds (Python int).
        **known: what `step` is given in every round: `trusted`, `stakes`, `shares`.

    Returns:
        The state after the last round, and `SimulationInfo` with leaves `[T, ...]`.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> from signfd_jax import transforms
        >>> tx = transforms.sign_sgd_mv(0.1, num_workers=3)
        >>> loss_fn = lambda x, target: jnp.mean((x[None] - target) ** 2)
        >>> sim = simulation(loss_fn, tx, num_workers=3)
        >>> state = sim.init(jax.random.key(0), jnp.zeros(2), jnp.zeros(3, bool))
        >>> draw = lambda key: 1 + 0.01 * jax.random.normal(key, (3, 4, 2))
        >>> state, infos = run(sim, state, draw, num_rounds=10)
        >>> print(state.params.round(1), infos.loss.shape)
        [1. 1.] (10,)
    """
    check_kind("simulation", simulation, Simulation._fields, "simulation(...)")
    if not isinstance(state, SimulationState):
        raise ValueError(f"state must be what init gave, but is {type(state).__name__}")
    check_callable("sample_batch", sample_batch, "key -> batch")
    check_size("num_rounds", num_rounds, 0)

    def one_round(state, _):
        key, batch_key = jax.random.split(state.key)
        state = state._replace(key=key)
        return simulation.step(state, sample_batch(batch_key), **known)

    return lax.scan(one_round, state, length=num_rounds)


def _sum_honest(gradient, honest):
    def kept(gradient, honest):
        return jnp.where(honest, gradient, jnp.zeros((), gradient.dtype))

    if gradient[0].size >= _LONG:
        rows = gradient, honest
        return over_workers(lambda row: (kept(*row), ()), rows)[0]
    return sum_of_rows(jax.vmap(kept)(gradient, honest))


def _check_batch(batch, num_workers):
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if jnp.ndim(leaf) < 1 or leaf.shape[0] != num_workers:
            raise ValueError(
                f"batch leaf {jax.tree_util.keystr(path) or '(root)'} has shape "
                f"{jnp.shape(leaf)}, but its first axis must be the {num_workers} "
                "workers"
            )

"""The decoders as an optax transformation for a data-parallel step on a mesh.

Shapes: `M` workers, `K` on each device. Inside `shard_map` the gradients are one
worker's, `[...]`, or with K > 1 `[K, ...]`; what goes out is shaped like the
parameters.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from signfd_jax._checks import check_decoder, check_size
from signfd_jax.decoders import DecodeInfo, Decoder, default_decoder
from signfd_jax.decoders._first_info import completed, first_info
from signfd_jax.distributed._layout import axes_of, specs_of_leaves
from signfd_jax.distributed._states import slice_state, specs_of_state, whole_state
from signfd_jax.distributed.collective import sign_all_reduce
from signfd_jax.signs._trees import cast_like, size_of

__all__ = [
    "ShardedSignDecoderState",
    "ShardedTransformation",
    "scale_by_sign_decoder_sharded",
]


class ShardedSignDecoderState(NamedTuple):
    """State of `scale_by_sign_decoder_sharded`.

    Attributes:
        sign_round: int32 scalar, rounds decoded so far.
        decoder_state: the decoder's own state, of one leaf of all coordinates with
            their padding, split over the mesh.
        info: `DecodeInfo` of the last round; before the first, `first_info`.
    """

    sign_round: jax.Array
    decoder_state: Any
    info: DecodeInfo


class ShardedTransformation(optax.GradientTransformationExtraArgs):
    """An optax transformation that knows how its state is split over a mesh.

    Attributes:
        state_specs: tree like the state, of `PartitionSpec`, for `shard_map`'s
            `in_specs` and `out_specs`.
    """

    state_specs: Any

    def state_sharding(self, mesh: jax.sharding.Mesh) -> Any:
        """The same as `NamedSharding`s, for `jax.jit`, `device_put` and checkpoints."""
        return jax.tree.map(lambda spec: NamedSharding(mesh, spec), self.state_specs)


def scale_by_sign_decoder_sharded(
    num_workers: int,
    *,
    decoder: Decoder | None = None,
    axis_name: str = "workers",
    workers_per_device: int = 1,
    param_specs: Any = None,
) -> ShardedTransformation:
    """Replace this device's gradient by the sign decoded from all workers' votes.

    `scale_by_sign_decoder` with `wire="one_bit"`, for an existing data-parallel step:
    in place of the all-reduce of the gradients, one bit of each coordinate goes up and
    one comes down (`sign_all_reduce`, which says what is exact). `update` runs inside
    `jax.shard_map`, manual over all axes of the mesh; the gradients are this device's
    own, not yet reduced. It takes the keyword arguments `present`, `trusted`, `stakes`
    and `shares`, `[M]`, as `sign_all_reduce` does.

    `init` may be called inside `shard_map`, or outside: there the state is split over
    the mesh of `jax.set_mesh`, or of the parameters, in the type that `update` keeps;
    without a mesh it is not split. Under `jit`, set the mesh, or give
    `out_shardings=state_sharding(mesh)`. The shapes of the state depend on the number
    of workers, not on that of devices, so a run may go on with fewer devices and more
    workers on each.

    In a chain, its place in the specs of the whole state is `state_specs`; the rest is
    split as the parameters are, or not at all:

        opt_specs = (aggregate.state_specs, P(), P())

    Never inside `optax.apply_if_finite`: each device would decide for itself whether it
    takes part, and those that do would wait for the others. It is not needed: a
    non-finite number abstains. `optax.masked` and `optax.partition` belong after it.

    Inside `optax.MultiSteps` every device must keep an accumulator of its own: split
    `acc_grads` over the workers' axis, as `[M, ...]` outside `shard_map`. Specs that
    call it replicated are refused, as a gradient that was summed is. Simpler is to
    accumulate the worker's gradient before `update`.

    Args:
        num_workers: number M of workers in all (Python int): K for every device on the
            workers' axis.
        decoder: the `Decoder`; None: `default_decoder()`.
        axis_name: the workers' axis of the mesh.
        workers_per_device: number K of workers on each device (Python int). Above 1,
            the gradients' leaves are `[K, ...]`.
        param_specs: tree of `PartitionSpec` of the parameters, or a prefix of it, where
            they are sharded over other axes of the mesh (FSDP, tensor parallelism);
            gradients and updates are then this device's shards. None: every device
            holds all parameters.

    Returns:
        A `ShardedTransformation`. Its updates have the shape and dtype of the
        parameters, or of one worker's gradient where `params` is None, and are -1 or
        +1.

    Raises:
        ValueError: a number is no positive int, or K does not divide M; from `init` and
            `update`, the mesh has another number of devices, or as `sign_all_reduce`.

    Examples:
        >>> from jax.sharding import PartitionSpec as P
        >>> from signfd_jax.decoders import majority_vote
        >>> aggregate = scale_by_sign_decoder_sharded(
        ...     3, decoder=majority_vote(), workers_per_device=3
        ... )
        >>> tx = optax.chain(aggregate, optax.scale_by_learning_rate(0.1))
        >>> specs = (aggregate.state_specs, P())
        >>> mesh = jax.make_mesh((1,), ("workers",), devices=jax.devices()[:1])
        >>> step = jax.shard_map(
        ...     tx.update,
        ...     mesh=mesh,
        ...     in_specs=(P("workers"), specs, P()),
        ...     out_specs=(P(), specs),
        ... )
        >>> params = {"w": jnp.zeros(2)}
        >>> gradients = {"w": jnp.array([[2.0, -1.0], [0.5, -3.0], [-1.0, 9.0]])}
        >>> gradients = jax.device_put(gradients, NamedSharding(mesh, P("workers")))
        >>> with jax.set_mesh(mesh):
        ...     updates, state = jax.jit(step)(gradients, tx.init(params), params)
        >>> print(updates["w"])
        [-0.1  0.1]
    """
    _check_numbers(num_workers, workers_per_device, axis_name)
    decoder = default_decoder() if decoder is None else decoder
    check_decoder(decoder)
    options = dict(workers_per_device=workers_per_device, param_specs=param_specs)
    axes = (*axes_of(param_specs, axis_name), axis_name)
    everywhere: Any = PartitionSpec()
    state_specs = ShardedSignDecoderState(
        sign_round=everywhere,
        decoder_state=specs_of_state(decoder, num_workers, axes),
        info=DecodeInfo(*(everywhere for _ in DecodeInfo._fields)),
    )

    def state_of(decoder_state):
        return ShardedSignDecoderState(
            sign_round=jnp.zeros((), jnp.int32),
            decoder_state=decoder_state,
            info=first_info(num_workers),
        )

    check_devices = functools.partial(
        _check_devices, axis_name, num_workers, workers_per_device
    )

    def init_fn(params):
        context = jax.sharding.get_abstract_mesh()
        if axis_name in context.manual_axes:
            check_devices(jax.lax.axis_size(axis_name))
            return state_of(slice_state(decoder, params, axis_name, **options))
        mesh = context if axis_name in context.axis_names else _mesh_of(params)
        if mesh is None or axis_name not in mesh.axis_names:
            if param_specs is not None:
                raise ValueError(
                    "param_specs are given, but not the mesh: call init inside "
                    "shard_map, under jax.set_mesh, or with parameters that are on it"
                )
            return state_of(whole_state(decoder, params, num_workers))
        check_devices(mesh.shape[axis_name])
        shards = _shards(params, param_specs, mesh)
        return jax.shard_map(
            lambda: state_of(slice_state(decoder, shards, axis_name, **options)),
            mesh=None if mesh is context else mesh,
            in_specs=(),
            out_specs=state_specs,
        )()

    def update_fn(
        updates,
        state,
        params=None,
        *,
        present=None,
        trusted=None,
        stakes=None,
        shares=None,
        **extra_args,
    ):
        del extra_args
        rounds = jnp.asarray(optax.safe_increment(state.sign_round))
        like = updates if params is None else params
        if size_of(updates) == 0:  # nothing to decode
            one = updates
            if workers_per_device > 1:
                one = jax.tree.map(lambda leaf: leaf[0], updates)
            return cast_like(one, like), state._replace(sign_round=rounds)
        decoded, decoder_state, info = sign_all_reduce(
            updates,
            decoder,
            state.decoder_state,
            axis_name,
            round=state.sign_round,
            present=present,
            trusted=trusted,
            stakes=stakes,
            shares=shares,
            **options,
        )
        check_devices(jax.lax.axis_size(axis_name))
        info = completed(info, num_workers)
        new_state = ShardedSignDecoderState(rounds, decoder_state, info)
        return cast_like(decoded, like), new_state

    transformation = ShardedTransformation(init_fn, update_fn)
    transformation.state_specs = state_specs
    return transformation


def _check_numbers(num_workers, workers_per_device, axis_name):
    check_size("num_workers", num_workers)
    check_size("workers_per_device", workers_per_device)
    if not isinstance(axis_name, str):
        raise ValueError(f"axis_name must be a mesh axis's name, but is {axis_name!r}")
    if num_workers % workers_per_device:
        raise ValueError(
            f"{num_workers} workers cannot be {workers_per_device} on each device; "
            "workers_per_device must divide num_workers"
        )


def _check_devices(axis_name, num_workers, workers_per_device, num_devices):
    if num_devices * workers_per_device != num_workers:
        raise ValueError(
            f"the mesh axis {axis_name!r} has {num_devices} devices with "
            f"{workers_per_device} workers each, but num_workers is {num_workers}"
        )


def _mesh_of(params):
    """The mesh that some parameter is on, or None where no type says so."""
    for leaf in jax.tree.leaves(params):
        sharding = getattr(leaf, "sharding", None)
        if sharding is None:  # traced, or a shape
            sharding = getattr(jax.typeof(leaf), "sharding", None)
            # Of automatic axes a traced program does not know the devices.
            if sharding is None or sharding.mesh.are_all_axes_auto:
                continue
        if isinstance(sharding, NamedSharding) and not sharding.mesh.empty:
            return sharding.mesh
    return None


def _shards(params, param_specs, mesh):
    """The shapes of the parameters on one device."""
    leaves, treedef = jax.tree.flatten(params)
    specs = specs_of_leaves(param_specs, params)
    shapes = [
        NamedSharding(mesh, spec).shard_shape(jnp.shape(leaf))
        for leaf, spec in zip(leaves, specs, strict=True)
    ]
    shards = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.tree.unflatten(treedef, shards)

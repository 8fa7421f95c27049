"""The collective: one bit of every coordinate up, one bit down.

Shapes: `M` workers, `D` devices on the workers' axis of the mesh, `K = M / D` workers
on each, `T` coordinates with padding (`layout`). Everything here runs inside
`jax.shard_map`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from signfd_jax import signs
from signfd_jax._checks import (
    check_count,
    check_decoder,
    check_mask,
    check_size,
    check_unmasked,
)
from signfd_jax.decoders import DecodeInfo, Decoder
from signfd_jax.decoders._known import check_known
from signfd_jax.decoders.released import ReleasedCodeState
from signfd_jax.distributed._layout import Layout, flatten, is_real, unflatten
from signfd_jax.distributed._shard_map import devices_on, gather, varies
from signfd_jax.distributed._states import layout_here, state_of_slice

__all__ = ["sign_all_reduce"]


def sign_all_reduce(
    gradients,
    decoder: Decoder,
    state,
    axis_name: str = "workers",
    *,
    round,
    workers_per_device: int = 1,
    present=None,
    trusted=None,
    stakes=None,
    shares=None,
    param_specs: Any = None,
) -> tuple[Any, Any, DecodeInfo]:
    r"""Decode one sign per coordinate from the gradients of all devices' workers.

    Each device packs its workers' votes, one bit a coordinate, and cuts them into D
    slices; an `all_to_all` gives device d slice d of all M workers, which it decodes;
    the decoded bits are packed and gathered. What is counted over coordinates (a few
    numbers for each worker) is summed over the devices. The result is, bit for bit,
    that of `scale_by_sign_decoder` with `wire="one_bit"` on the stacked gradients.

    A worker whose gradient is wholly non-finite, or that `present` leaves out, is
    marked in a mask of M bits that travels with the votes, and abstains. No value, NaN
    or infinite, stops the others or reaches them.

    To be called inside `jax.shard_map`, manual over all axes of the mesh (else XLA
    would gather the float gradients). A gradient must be its own worker's: where
    `shard_map` checks what varies (`check_vma=True`, the default), `jax.grad` with
    respect to replicated parameters sums over the devices, so cast these first with
    `jax.lax.pcast(params, "workers", to="varying")`; a summed gradient is refused.

    What is exact: the decoded signs and the state, for every decoder of this library.
    (`oracle` takes one probability a worker here. With `param_specs` coordinates have
    other numbers, and so `correlation_defense` samples others.) In `info`, means over
    coordinates include the padding, fewer than 8 M coordinates.

    Args:
        gradients: tree of real `[...]`, the gradient of this device's worker; with
            `workers_per_device` K > 1, `[K, ...]`.
        decoder: the `Decoder`, the same on all devices.
        state: its state, from `slice_state` or the last call.
        axis_name: the workers' axis of the mesh.
        round: int32 scalar, the number of the round, for `signs.to_wire`.
        workers_per_device: the number K of workers on each device (Python int). The
            workers of device d are K d to K d + K - 1.
        present: bool `[M]`, the workers that take part. A device reads only its own
            workers' entries, so each may know but its own. None: all.
        trusted: bool `[M]`, workers that are known to be honest, as in
            `transforms.scale_by_sign_decoder`; alike on all devices, as the next two.
        stakes: float `[M]`, how many workers each counts as, likewise.
        shares: float `[M]`, how much a vote may weigh, likewise.
        param_specs: tree of `PartitionSpec` of the parameters, or a prefix of it, where
            they are sharded over other axes of the mesh: `gradients` are then this
            device's shards. None: they are not.

    Returns:
        `(decoded, state, info)`: tree of int8 `[...]` in {-1, +1}, alike on all devices
        of the workers' axis; the new state; a `DecodeInfo`.

    Raises:
        ValueError: not inside `shard_map`, or one that is not manual over all axes; a
            gradient that was summed over the workers, or has no axis of K workers; a
            state of other slices; a decoder that cannot use what is known; or
            `released_code`, which counts zeros, with
            padding.

    Examples:
        >>> from jax.sharding import PartitionSpec as P
        >>> from signfd_jax.decoders import majority_vote
        >>> from signfd_jax.distributed import slice_state
        >>> decoder = majority_vote()
        >>> def decode(gradients):
        ...     state = slice_state(decoder, gradients[0], workers_per_device=3)
        ...     return sign_all_reduce(
        ...         gradients, decoder, state, round=0, workers_per_device=3
        ...     )[0]
        >>> mesh = jax.make_mesh((1,), ("workers",), devices=jax.devices()[:1])
        >>> gradients = jax.device_put(
        ...     jnp.array([[2.0, -1.0], [0.5, -3.0], [-1.0, 9.0]]),
        ...     jax.sharding.NamedSharding(mesh, P("workers")),
        ... )
        >>> decode = jax.shard_map(
        ...     decode, mesh=mesh, in_specs=P("workers"), out_specs=P()
        ... )
        >>> print(jax.jit(decode)(gradients))
        [ 1 -1]

    References:
        Bernstein et al., [signSGD with majority vote is communication efficient and
        fault tolerant](https://arxiv.org/abs/1810.05291), ICLR 2019; the exchange of
        slices is the reduce-scatter and all-gather of Thakur, Rabenseifner and Gropp,
        [Optimization of collective communication operations in MPICH](
        https://doi.org/10.1177/1094342005051521), 2005, with a decoder for the sum.
    """
    check_decoder(decoder)
    check_count("round", round, 0)
    check_size("workers_per_device", workers_per_device)
    num_workers = devices_on(axis_name) * workers_per_device
    known = dict(trusted=trusted, stakes=stakes, shares=shares)
    known = check_known("this decoder", num_workers, known, decoder.uses)
    if present is not None:
        check_mask("present", present, num_workers)
        present = jnp.asarray(present)
    if workers_per_device == 1:
        gradients = jax.tree.map(lambda leaf: leaf[None], gradients)
    _check_gradients(gradients, axis_name, workers_per_device)
    one_worker = jax.tree.map(lambda leaf: leaf[0], gradients)
    if not jax.tree.leaves(one_worker):
        raise ValueError("there are no gradients to decode: the tree has no leaves")
    layout = layout_here(
        one_worker,
        axis_name,
        workers_per_device=workers_per_device,
        param_specs=param_specs,
    )
    _check_state(state, decoder, layout, workers_per_device)

    first: Any = lax.axis_index(axis_name) * workers_per_device
    here = _present_here(gradients, present, first, layout)
    sent = signs.to_wire(
        flatten(layout, signs.votes(gradients)),
        round,
        first_worker=first,
        first_coordinate=layout.first_of_block(),
    )
    votes, present = _exchange(sent, here, layout)
    heard = present[:, None] & is_real(layout)[None, :]
    decoded, state, info = decoder.decode(
        state, votes * heard.astype(jnp.int8), axis_name=layout.axes, **known
    )
    decoded = signs.fill_ties(decoded, round, first_coordinate=layout.first_of_slice())
    bits = gather(signs.pack(decoded), axis_name).reshape(layout.num_devices, -1)
    block = signs.unpack(bits, decoded.size).reshape(-1)
    return unflatten(layout, block, one_worker), state, info


def _present_here(gradients, present, first_worker, layout):
    """Which of this device's workers take part, bool `[K]`."""
    here = signs.present_workers(gradients)
    if layout.shard_axes:  # finite on any shard
        here = lax.psum(here.astype(jnp.int32), layout.shard_axes) > 0
    if present is None:
        return here
    return here & lax.dynamic_slice_in_dim(present, first_worker, here.shape[0])


def _exchange(sent, here, layout: Layout):
    """From this device's votes `[K, T]` to all votes of its slice, `[M, T / D]`.

    The presence of its workers, bool `[K]` before and `[M]` after, travels behind the
    votes in the same message.
    """
    rows, num_devices, size = sent.shape[0], layout.num_devices, layout.slice_size
    bits = signs.pack(sent.reshape(rows, num_devices, size))
    bits = jnp.swapaxes(bits, 0, 1).reshape(num_devices, -1)
    mask = jnp.packbits(here)
    masks = jnp.broadcast_to(mask, (num_devices, mask.size))
    message = jnp.concatenate([bits, masks], axis=1)
    message = lax.all_to_all(message, layout.axis_name, 0, 0, tiled=True)
    bits, masks = jnp.split(message, [rows * size // 8], axis=1)
    votes = signs.unpack(bits.reshape(num_devices * rows, size // 8), size)
    present = jnp.unpackbits(masks, axis=1, count=rows).reshape(-1).astype(bool)
    return votes, present


def _check_gradients(gradients, axis_name, workers_per_device):
    check_unmasked(gradients, "stay one worker's gradient")
    checked = varies(lax.axis_index(axis_name), axis_name)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        name = jax.tree_util.keystr(path) or "(root)"
        if jnp.ndim(leaf) < 1 or leaf.shape[0] != workers_per_device:
            raise ValueError(
                f"gradient leaf {name} has shape {jnp.shape(leaf)}, but must lead with "
                f"the {workers_per_device} workers of this device"
            )
        if checked and not varies(leaf, axis_name):
            raise ValueError(
                f"gradient leaf {name} is the same on all devices of {axis_name!r}: it "
                "was already summed over the workers. Take it with respect to "
                f"parameters cast by jax.lax.pcast(params, {axis_name!r}, "
                "to='varying'), or use shard_map(..., check_vma=False)"
            )


def _check_state(state, decoder, layout, workers_per_device):
    wanted = jax.eval_shape(lambda: state_of_slice(decoder, layout, workers_per_device))
    shapes = [
        [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (state, wanted)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the decoder's state has the shapes {shapes[0]} on this device, but "
            f"{shapes[1]} are wanted: make it by slice_state (or the transformation's "
            "init), and split it over the mesh by its state_specs"
        )
    if isinstance(state, ReleasedCodeState) and layout.padding:
        raise ValueError(
            f"released_code counts a zero as a vote, and so would "
            f"count the {layout.padding} coordinates of padding; it needs parameters "
            f"of a multiple of {8 * layout.num_devices * workers_per_device} "
            "coordinates"
        )

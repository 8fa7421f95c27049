"""Bytes that each device sends and receives in a step, read off the compiled program.

Nothing is run or timed: the step is compiled for forced CPU devices, its collectives
are read from the optimised HLO, and each counts as a bandwidth-optimal algorithm moves
it: of B bytes among D devices, an all-to-all, an all-gather (B after it) or a reduce-
scatter (B before it) sends (D - 1) / D B a device, an all-reduce twice that; every
device receives as much as it sends.

    python -m benchmarks.wire --json benchmarks/results/wire.json

XLA's CPU backend computes all-reduces of bfloat16 in float32. They are counted as the
program asks for them, as GPUs and TPUs have them; "compiled" is what it is here.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import measure
from signfd_jax import signs
from signfd_jax.decoders import correlation_defense, federated_defense, majority_vote
from signfd_jax.distributed import scale_by_sign_decoder_sharded
from signfd_jax.distributed._shard_map import gather
from signfd_jax.experiments._processes import console

BASELINE = "f32 all-reduce"
DECODERS = {
    "majority_vote": majority_vote,
    "federated_defense": federated_defense,
    "correlation_defense": correlation_defense,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What to count, and where to write it."""

    coordinates: int = 2**20
    """Number N of coordinates."""
    devices: int = 8
    """Devices, one worker on each."""
    json: Path | None = None
    """Write the ledger here."""


class Collective(NamedTuple):
    """One collective operation of a compiled program.

    Attributes:
        kind: "all-reduce", "all-gather", "all-to-all", "reduce-scatter" or
            "collective-permute".
        types: its results' types, as HLO writes them.
        size: bytes of its results, in the types that the program asked for.
        compiled_size: bytes of its results as compiled.
        devices: number of devices in a group.
    """

    kind: str
    types: str
    size: int
    compiled_size: int
    devices: int

    def moved(self, size: int) -> float:
        """Bytes that a device sends, and receives, if the results have so many."""
        if self.kind == "collective-permute":
            return float(size)
        share = (self.devices - 1) / self.devices
        if self.kind == "reduce-scatter":
            size *= self.devices
        return size * share * (2 if self.kind == "all-reduce" else 1)

    @property
    def sent(self) -> float:
        """Bytes that a device sends, and receives."""
        return self.moved(self.size)

    @property
    def sent_as_compiled(self) -> float:
        """The same, in the types that this backend uses."""
        return self.moved(self.compiled_size)


_OPERATION = re.compile(
    r"= (?P<types>.+?) (?P<kind>all-reduce|all-gather|all-to-all|reduce-scatter|"
    r"collective-permute)(?:-start)?\("
)
_ARRAY = re.compile(r"\b(pred|bf16|[sufc]\d+)\[([\d,]*)\]")
# Listed, counted, or (since JAX 0.12) the axes of a mesh.
_GROUPS = re.compile(
    r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\]|mesh\[(.*?)\] \{(.*?)\})"
)


def collectives(program: str) -> list[Collective]:
    """The collectives of a compiled program.

    Args:
        program: optimised HLO, as `compiled.as_text()` gives it.

    Returns:
        List of `Collective`, in the order of the text; those of a loop's body once.

    Raises:
        ValueError: an operation does not say how many devices take part.
    """
    found = []
    for line in program.splitlines():
        operation = _OPERATION.search(line)
        if operation is None:
            continue
        groups = _GROUPS.search(line)
        kind, types = operation["kind"], operation["types"]
        if groups is None and kind != "collective-permute":
            raise ValueError(f"cannot read the groups of devices in {line.strip()!r}")
        devices = _group_size(*groups.groups()) if groups else 1
        compiled = sum(_bytes(*array) for array in _ARRAY.findall(types))
        size = compiled // 2 if "_promoted" in line else compiled
        types = ", ".join(f"{name}[{shape}]" for name, shape in _ARRAY.findall(types))
        found.append(Collective(kind, types, size, compiled, devices))
    return found


def _group_size(listed, counted, mesh, axes):
    if counted:
        return int(counted)
    if listed:
        return len(listed.split(","))
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", axes))


def _bytes(name, shape):
    bits = 8 if name == "pred" else int(re.sub(r"\D", "", name))
    return math.prod(map(int, filter(None, shape.split(",")))) * bits // 8


def compile_update(
    tx,
    mesh: jax.sharding.Mesh,
    params,
    *,
    workers_per_device: int = 1,
    param_specs: Any = None,
) -> str:
    """Compile the update of a sharded transformation.

    Args:
        tx: from `scale_by_sign_decoder_sharded`.
        mesh: with an axis "workers".
        params: tree of arrays or shapes `[...]`.
        workers_per_device: K.
        param_specs: how the parameters are sharded, a tree of `PartitionSpec`, or None.

    Returns:
        Its optimised HLO.
    """
    rows = mesh.shape["workers"] * workers_per_device
    param_specs = P() if param_specs is None else param_specs
    is_spec = lambda node: isinstance(node, P)  # noqa: E731
    gradient_specs = jax.tree.map(
        lambda spec: P("workers", *spec), param_specs, is_leaf=is_spec
    )

    def update(gradients, state):
        if workers_per_device == 1:
            gradients = jax.tree.map(lambda leaf: leaf[0], gradients)
        return tx.update(gradients, state)

    step = jax.shard_map(
        update,
        mesh=mesh,
        in_specs=(gradient_specs, tx.state_specs),
        out_specs=(param_specs, tx.state_specs),
    )
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((rows, *leaf.shape), leaf.dtype), params
    )
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        (gradient_specs, tx.state_specs),
        is_leaf=is_spec,
    )
    with jax.set_mesh(mesh):
        state = jax.eval_shape(tx.init, params)
    return _compile(step, (shapes, state), shardings)


def _compile(step, arguments, shardings):
    def place(sharding, subtree):
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=sharding
            ),
            subtree,
        )

    placed = jax.tree.map(place, shardings, arguments)
    program = jax.jit(step).lower(*placed).compile().as_text()
    if program is None:
        raise ValueError("this backend does not show its optimised HLO; use the CPU's")
    return program


def _all_reduce(dtype):
    return lambda gradient: lax.psum(gradient.astype(dtype), "workers")


def _vote_by_all_reduce(gradient):
    return lax.psum(signs.votes(gradient), "workers")


def _vote_by_all_gather(gradient):
    packed = gather(signs.pack(signs.votes(gradient)), "workers")
    packed = packed.reshape(-1, -(-gradient.size // 8))
    votes = signs.unpack(packed, gradient.size).astype(jnp.int32)
    return jnp.sign(jnp.sum(votes, axis=0))


OTHERS: dict[str, Callable[[jax.Array], jax.Array]] = {
    BASELINE: _all_reduce(jnp.float32),
    "bf16 all-reduce": _all_reduce(jnp.bfloat16),
    "int8 all-reduce of votes (up to 127 workers)": _vote_by_all_reduce,
    "all-gathered packed votes": _vote_by_all_gather,
}


def programs(
    num_coordinates: int, num_devices: int, decoders: Mapping[str, Callable[..., Any]]
) -> dict[str, str]:
    """The optimised HLO of every way to bring gradients together, by name.

    Args:
        num_coordinates: N, one flat leaf.
        num_devices: one worker on each.
        decoders: factories by name.

    Returns:
        Dict of programs; those of this library are called after their decoder.
    """
    devices = jax.devices()[:num_devices]
    mesh = jax.make_mesh((num_devices,), ("workers",), devices=devices)
    gradients = jax.ShapeDtypeStruct((num_devices, num_coordinates), jnp.float32)
    compiled = {}
    for name, combine in OTHERS.items():
        step = jax.shard_map(
            lambda gradient, combine=combine: combine(gradient[0]),
            mesh=mesh,
            in_specs=P("workers"),
            out_specs=P(),
        )
        sharding = NamedSharding(mesh, P("workers"))
        compiled[name] = _compile(step, (gradients,), (sharding,))
    params = jax.ShapeDtypeStruct((num_coordinates,), jnp.float32)
    for name, decoder in decoders.items():
        tx = scale_by_sign_decoder_sharded(num_devices, decoder=decoder())
        compiled[f"one bit up, one down: {name}"] = compile_update(tx, mesh, params)
    return compiled


def ledger(
    num_coordinates: int,
    num_devices: int,
    decoders: Mapping[str, Callable[..., Any]] = DECODERS,
) -> dict[str, dict[str, Any]]:
    """Bytes a device sends, and receives, in one step, by the way they are combined.

    Args:
        num_coordinates: N.
        num_devices: one worker on each.
        decoders: factories by name, of those that are decoded on the devices.

    Returns:
        For each way `sent`, `received`, `sent_as_compiled`, the share of the float32
        all-reduce, and the collectives one by one.
    """
    rows = {}
    for name, program in programs(num_coordinates, num_devices, decoders).items():
        found = collectives(program)
        sent = sum(each.sent for each in found)
        rows[name] = {
            "sent": sent,
            "received": sent,
            "sent_as_compiled": sum(each.sent_as_compiled for each in found),
            "bits_per_coordinate": 8 * sent / num_coordinates,
            "collectives": [each._asdict() for each in found],
        }
    for row in rows.values():
        row["share_of_f32"] = row["sent"] / rows[BASELINE]["sent"]
    return rows


def main() -> None:
    """Print the ledger, and write it where that was asked for."""
    options = tyro.cli(Options, description=__doc__)
    jax.config.update("jax_num_cpu_devices", options.devices)
    rows = ledger(options.coordinates, options.devices)
    print(f"N = {options.coordinates} coordinates, {options.devices} devices")
    print(f"{'':46s}{'bytes sent = received':>22s}{'bits/coordinate':>17s}  of f32")
    for name, row in rows.items():
        times = rows[BASELINE]["sent"] / row["sent"]
        print(
            f"{name:46s}{row['sent']:>22,.0f}{row['bits_per_coordinate']:>17.3f}"
            f"  1/{times:.2f}"
        )
    if options.json is not None:
        result = {
            "num_coordinates": options.coordinates,
            "num_devices": options.devices,
            "ledger": rows,
        }
        measure.write_section(options.json, "wire", result)


if __name__ == "__main__":
    with console.steady():  # results are kept, wherever they are printed
        main()

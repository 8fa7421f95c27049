"""One bit of every coordinate up and one down: read off compiled programs."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

import signfd_jax as sfd
from signfd_jax.distributed import scale_by_sign_decoder_sharded

if not (Path(__file__).parents[2] / "benchmarks").is_dir():
    pytest.skip("benchmarks are run from a checkout", allow_module_level=True)
from benchmarks import wire

N = 2**20
DEVICES = 8


def moved(found, kind):
    """Bytes of all results of one kind of collective."""
    return sum(each.size for each in found if each.kind == kind)


def largest_other(found):
    return max(
        (each.size for each in found if each.kind not in ("all-to-all", "all-gather")),
        default=0,
    )


def found_for(mesh, params, num_workers, **options):
    tx = scale_by_sign_decoder_sharded(
        num_workers, decoder=sfd.federated_defense(), **options
    )
    return wire.collectives(wire.compile_update(tx, mesh, params, **options))


@pytest.mark.parametrize(
    "names",
    [
        ("federated_defense",),
        pytest.param(tuple(wire.DECODERS), marks=pytest.mark.slow),
    ],
    ids=["one", "all"],
)
def test_one_bit_up_and_one_down(names):
    """Beside the bits there are M bits of presence, and a few numbers a worker."""
    rows = wire.ledger(N, DEVICES, {name: wire.DECODERS[name] for name in names})
    assert rows["f32 all-reduce"]["sent"] == 2 * 7 / 8 * 4 * N
    assert rows["bf16 all-reduce"]["sent"] == 2 * 7 / 8 * 2 * N
    assert rows["all-gathered packed votes"]["sent"] == 7 * N / 8
    ours = [name for name in rows if name.startswith("one bit up")]
    assert len(ours) == len(names)
    for name in ours:
        found = [wire.Collective(**each) for each in rows[name]["collectives"]]
        assert moved(found, "all-to-all") == N // 8 + DEVICES
        assert moved(found, "all-gather") == N // 8
        assert largest_other(found) <= 2 * 4 * DEVICES**2
        assert rows[name]["share_of_f32"] <= 1 / 30


@pytest.mark.parametrize(
    "size",
    [4_097, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 1_000))],
)
def test_padding_is_less_than_a_byte_for_each_worker(size):
    mesh = jax.make_mesh((4,), ("workers",), devices=jax.devices()[:4])
    shapes = {"w": jax.ShapeDtypeStruct((size,), jnp.float32), "b": jnp.zeros(())}
    found = found_for(mesh, shapes, 4)
    padded = 32 * -(-(size + 1) // 32)
    assert moved(found, "all-to-all") == padded // 8 + 4
    assert moved(found, "all-gather") == padded // 8


@pytest.mark.slow
def test_three_workers_on_a_device_send_three_bits_and_receive_one():
    mesh = jax.make_mesh((4,), ("workers",), devices=jax.devices()[:4])
    found = found_for(mesh, jnp.zeros(9_600), 12, workers_per_device=3)
    assert moved(found, "all-to-all") == 3 * 9_600 // 8 + 4
    assert moved(found, "all-gather") == 9_600 // 8


def test_sharded_parameters_stay_sharded():
    """A device exchanges its own shards' bits; no float array is ever gathered."""
    mesh = jax.make_mesh((4, 2), ("workers", "fsdp"))
    params = {"w": jnp.zeros((64, 64)), "b": jnp.zeros(128)}
    specs = {"w": P(None, "fsdp"), "b": P()}
    found = found_for(mesh, params, 4, param_specs=specs)
    shard, part = 64 * 64 // 2, 128 // 2  # of w; of b, which both columns hold
    assert moved(found, "all-to-all") == (shard + part) // 8 + 4
    assert moved(found, "all-gather") == (shard + part) // 8 + 128 // 8
    assert all(
        each.types.startswith("u8") for each in found if each.kind == "all-gather"
    )
    assert largest_other(found) <= 64


def test_reading_a_program():
    program = """
      %a = (u8[1,5]{1,0}, u8[1,5]{1,0}) all-to-all(%x, %y), replica_groups={{0,1},{2,3}}
      %b = f32[3]{0} all-reduce(%z), replica_groups=[2,4]<=[8], to_apply=%add_promoted
      %c = pred[8,2]{1,0} all-gather-start(%p), replica_groups=[1,8]<=[8]
      %d = s32[] reduce-scatter(%q), replica_groups={{0,1,2}}
      %e = bf16[10]{0} collective-permute(%r), source_target_pairs={{0,1}}
      %f = f32[10]{0} add(%r, %r)
      %g = s32[1]{0} all-reduce(%s), replica_groups=mesh['w'=4,'f'=2] {'w','f'}, u=true
    """
    found = wire.collectives(program)
    assert [(each.kind, each.compiled_size, each.devices) for each in found] == [
        ("all-to-all", 10, 2),
        ("all-reduce", 12, 4),
        ("all-gather", 16, 8),
        ("reduce-scatter", 4, 3),
        ("collective-permute", 20, 1),
        ("all-reduce", 4, 8),
    ]
    assert [each.sent for each in found] == [5, 2 * 6 * 3 / 4, 14, 8, 20, 7]
    with pytest.raises(ValueError, match="groups of devices"):
        wire.collectives("%a = f32[3]{0} all-reduce(%z), to_apply=%add")

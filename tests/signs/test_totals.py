"""Counts and positions beyond 2**31 coordinates: exact, or refused at the start.

Nothing here needs the memory of so many coordinates: one buffer stands for many
leaves, and what is only laid out is a shape.
"""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import OPTIMISED
from hypothesis import given
from jax.sharding import PartitionSpec as P
from test_leaves import DECODERS, M

import signfd_jax as sfd
from signfd_jax import aggregators, distributed, signs
from signfd_jax.distributed import _layout as layout
from signfd_jax.signs import _totals as totals
from signfd_jax.signs._tally import count_agreements, sum_over_leaves, vote_tree
from signfd_jax.signs._totals import check_coordinates, exact_total
from signfd_jax.transforms import scale_by_aggregator

LEAVES, SIZE = 17, 2**27  # 2.28e9 coordinates
INT32 = st.integers(-(2**31), 2**31 - 1)


@given(st.lists(INT32, min_size=1, max_size=40), st.integers(1, 400))
def test_total_is_that_of_python(counts, copies):
    """Rounded once: the nearest float32 to the sum of the integers."""
    arrays = [jnp.array([count, -1], jnp.int32) for count in counts] * copies
    total = jax.jit(exact_total)(arrays[:500])
    exact = sum((counts * copies)[:500])
    assert total[0] == np.float32(exact)
    assert total[1] == -len(arrays[:500])


def test_total_of_very_many_leaves(monkeypatch):
    """More leaves than low halves of which an int32 can hold the sum."""
    monkeypatch.setattr(totals, "_TOGETHER", 3)
    total = exact_total([jnp.int32(2**31 - 1)] * 100)
    assert total == np.float32(100 * (2**31 - 1))


@pytest.mark.parametrize("most", [None, 2**31 - 1])
def test_total_over_devices(most):
    """Eight devices together count more than an int32 holds."""
    mesh = jax.make_mesh((8,), ("d",))
    total = jax.jit(
        jax.shard_map(
            lambda x: exact_total([x[0]], "d", most=most),
            mesh=mesh,
            in_specs=P("d"),
            out_specs=P(),
        )
    )
    counts = np.arange(8, dtype=np.int32) + (2**31 - 9)
    split = jax.device_put(counts, jax.NamedSharding(mesh, P("d")))
    assert total(split) == np.float32(int(counts.astype(np.int64).sum()))


def test_floats_are_summed_as_before():
    """Only integers are counts."""
    parts = [(jnp.float32(0.1), jnp.int32(2**30)) for _ in range(4)]
    total, count = sum_over_leaves(parts, None)
    assert total == sum([jnp.float32(0.1)] * 3, jnp.float32(0.1))
    assert float(count) == 2**32


@functools.cache
def leaf():
    return jnp.ones((1, SIZE), jnp.int8)


@pytest.mark.slow
def test_counts_of_one_buffer():
    """Every vote agrees, then none does; shares of so many coordinates are shares."""

    @functools.partial(jax.jit, compiler_options=OPTIMISED)
    def measures(leaf, decoded):
        votes, decoded = [leaf] * LEAVES, [decoded] * LEAVES
        margin = vote_tree(votes, jnp.ones(1), largest=1.0).margin
        wrong = signs.sign_error(decoded, [leaf[0]] * LEAVES)
        return *count_agreements(votes, decoded), margin, wrong

    for sign, agree in ((1, 1), (-1, 0)):
        agreed, counted, margin, wrong = measures(leaf(), sign * leaf()[0])
        assert (int(agreed[0]), int(counted[0])) == (
            agree * LEAVES * SIZE,
            LEAVES * SIZE,
        )
        assert (margin, wrong) == (1, 1 - agree)


# Positions ----------------------------------------------------------------------------


def mix(word):
    """The finaliser of MurmurHash3, on Python integers."""
    word = (word ^ word >> 16) * 0x85EBCA6B % 2**32
    word = (word ^ word >> 13) * 0xC2B2AE35 % 2**32
    return word ^ word >> 16


def filling(worker, coordinate, round):
    """The bit that stands for an abstention, by its definition."""
    golden = 0x9E3779B9
    row = mix((worker * golden + mix(round)) % 2**32)
    high, low = divmod(coordinate, 2**32)
    return 1 - 2 * (mix(low * golden % 2**32 ^ mix(high) ^ row) >> 31)


STARTS = (0, 2**31 - 3, 2**32 - 3, 2**32, 2**33 - 1, 2**40 - 8)


@pytest.mark.parametrize("start", STARTS)
def test_filling_by_its_definition(start):
    """At every position below 2**40, given as an int or as two words, traced or not."""
    expected = [[filling(m, start + n, 5) for n in range(8)] for m in (2, 3)]
    votes = {"a": jnp.zeros((2, 5), jnp.int8), "b": jnp.zeros((2, 3), jnp.int8)}
    words = tuple(map(jnp.uint32, divmod(start, 2**32)))
    for first in (start, words):
        fill = functools.partial(signs.to_wire, round=5, first_worker=2)
        for call in (fill, jax.jit(fill) if first is words else fill):
            sent = call(votes, first_coordinate=first)
            sent = jnp.concatenate([sent["a"], sent["b"]], axis=1)
            np.testing.assert_array_equal(sent, expected)
    server = [filling(0xFFFFFFFF, start + n, 5) for n in range(8)]
    tie = signs.fill_ties(jnp.zeros(8, jnp.int8), 5, first_coordinate=words)
    np.testing.assert_array_equal(tie, server)


def test_filling_does_not_repeat_after_2e32_coordinates():
    """Half of the bits differ: 4,096 of them, within six standard errors."""
    none = jnp.zeros((1, 4096), jnp.int8)
    one, other = (signs.to_wire(none, 0, first_coordinate=n) for n in (0, 2**32))
    assert abs(int(jnp.sum(one != other)) - 2048) < 6 * 32


def test_filling_of_the_last_of_many_leaves():
    """The leaf before it ends at 2**32 + 2**27 coordinates."""
    many = 2**32 // SIZE + 1

    @jax.jit
    def last(leaf):
        tree = [leaf] * many + [jnp.zeros((1, 4), jnp.int8)]
        return signs.cast_votes(tree, 0, wire="one_bit")[-1]

    expected = [filling(0, many * SIZE + n, 0) for n in range(4)]
    np.testing.assert_array_equal(last(leaf())[0], expected)


# Layouts ------------------------------------------------------------------------------


def sharded_layout(sizes, shards, devices=2):
    shapes = [jax.ShapeDtypeStruct((size,), jnp.float32) for size in sizes]
    return layout.make_layout(
        shapes,
        [P("fsdp")] * len(sizes),
        num_workers=devices,
        num_devices=devices,
        axis_size={"fsdp": shards, "workers": devices}.__getitem__,
    )


@pytest.mark.parametrize("size", [100, 2**26, 2**30])
def test_where_devices_begin(size):
    """First coordinates of 8 shards on 2 devices each, up to 2**33, by formula."""
    laid_out = sharded_layout([size], shards=8)
    begins = jax.vmap(
        jax.vmap(
            lambda _: (laid_out.first_of_block(), laid_out.first_of_slice()),
            axis_name="workers",
        ),
        axis_name="fsdp",
    )
    for found, step in zip(
        begins(jnp.zeros((8, 2))),
        (laid_out.block, laid_out.slice_size),
        strict=True,
    ):
        words = found if isinstance(found, tuple) else (np.zeros((8, 2)), found)
        whole = np.asarray(words[0], np.int64) * 2**32 + np.asarray(words[1], np.int64)
        block = np.arange(8)[:, None] * laid_out.block
        device = np.arange(2)[None] * (step if step != laid_out.block else 0)
        np.testing.assert_array_equal(whole, block + device)


def test_layouts_that_cannot_be_counted_are_refused():
    """On one device from 2**31 on, in all beyond 2**40."""
    assert sharded_layout([2**31 - 64], shards=4).block < 2**31
    with pytest.raises(ValueError, match="a device would hold 2147483648"):
        sharded_layout([2**30, 2**30], shards=1)
    with pytest.raises(ValueError, match=r"2\*\*40"):
        sharded_layout([2**30], shards=1025)


# The start ----------------------------------------------------------------------------

LONG = jax.ShapeDtypeStruct((2**31,), jnp.float32)
HALF = jax.ShapeDtypeStruct((2**30,), jnp.float32)
MANY = [HALF] * 1025
MOST = [HALF] * 1024


@pytest.mark.parametrize("tree", ["LONG", "MANY"])
@pytest.mark.parametrize("name", DECODERS)
def test_init_refuses_what_cannot_be_counted(name, tree):
    """Every decoder, inside its transformation."""
    params = globals()[tree]
    tx = sfd.scale_by_sign_decoder(M, DECODERS[name]())
    with pytest.raises(ValueError, match=r"2\*\*31|2\*\*40"):
        jax.eval_shape(tx.init, params)


@pytest.mark.parametrize("name", sorted({*DECODERS} - {"oracle of coordinates"}))
def test_init_takes_as_many_as_can_be_counted(name):
    """Of 2**40 coordinates, at least the state's shapes are right."""
    tx = sfd.scale_by_sign_decoder(M, DECODERS[name]())
    state = jax.eval_shape(tx.init, MOST)
    sizes = [leaf.size for leaf in jax.tree.leaves(state)]
    assert max(sizes) in (M * 2**30, *range(1000))


def test_other_inits_refuse_alike():
    """On a mesh, and where workers send rows of numbers."""
    tx = distributed.scale_by_sign_decoder_sharded(M, decoder=sfd.majority_vote())
    with pytest.raises(ValueError, match=r"2\*\*31"):
        jax.eval_shape(tx.init, LONG)
    rule = scale_by_aggregator(aggregators.stateless(aggregators.mean), M)
    with pytest.raises(ValueError, match=r"2\*\*31"):
        jax.eval_shape(rule.init, [HALF, HALF])


def test_check_names_the_leaf():
    """The message says which leaf, and how many."""
    with pytest.raises(ValueError, match=r"leaf \['w'\] has 2147483648 coordinates"):
        check_coordinates({"b": 1.0, "w": LONG})

"""Flower's messages without a network: what counts, and what the server makes of it."""

import logging
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from choices import slow_but

pytest.importorskip("flwr")

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    Metadata,
    RecordDict,
)
from flwr.serverapp import Grid

import signfd_jax as sfd
from signfd_jax import decoders, simulate, workers
from signfd_jax.contrib import flower
from signfd_jax.contrib._flower_wire import STYPE

M = 5
MAJORITY = sfd.sign_sgd_mv(0.5, M)
PARAMS = {"a": jnp.arange(9.0), "b": jnp.ones((2, 3))}  # 9 and 6: bits to spare


def connected(nodes):
    """A grid, of which a strategy asks who is connected."""
    grid = mock.Mock(spec=Grid)
    grid.get_node_ids.return_value = list(nodes)
    return grid


@pytest.fixture(autouse=True)
def _in_a_run(monkeypatch):
    """What Flower sets in the process of an app, in versions that have it."""
    try:
        from flwr.supercore.task_identity import TaskIdentity
    except ModuleNotFoundError:
        return
    for name in ("run_id", "node_id", "task_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1)


def reply(content, node):
    """A client's reply, or its error."""
    metadata = Metadata(
        run_id=1,
        message_id="",
        src_node_id=node,
        dst_node_id=1,
        reply_to_message_id="",
        group_id="",
        created_at=0.0,
        ttl=60.0,
        message_type="train",
    )
    given = "error" if isinstance(content, Error) else "content"
    return Message(metadata=metadata, **{given: content})


def gradients(seed=0):
    """One gradient a worker, with zeros and a NaN."""
    rng = np.random.default_rng(seed)
    rows = jax.tree.map(
        lambda p: np.float32(rng.integers(-2, 3, (M, *p.shape))), PARAMS
    )
    rows["a"][3, 2] = np.nan
    return jax.tree.map(jnp.asarray, rows)


def row_of(tree, worker):
    return jax.tree.map(lambda leaf: leaf[worker], tree)


def begin(wire="ternary", tx=None, nodes=range(100, 100 + M), **options):
    """A strategy whose first round has begun, and the config that clients are sent."""
    tx = MAJORITY if tx is None else tx
    strategy = flower.SignStrategy(PARAMS, tx, M, wire=wire, **options)
    return strategy, configure(strategy, 1, nodes)


def configure(strategy, server_round, nodes=range(100, 100 + M)):
    arrays = flower.to_arrays(strategy.params)
    grid = connected(nodes)
    messages = list(
        strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
    )
    assert [m.metadata.dst_node_id for m in messages] == sorted(nodes)
    return messages[0].content["config"] if messages else None


def ballot(config, worker, rows=None):
    rows = gradients() if rows is None else rows
    return flower.pack_votes(config, worker, row_of(rows, worker), loss=1.0)


def expected(present, wire="ternary", rounds=1, tx=None):
    """What the transformation makes of the same gradients, without Flower."""
    tx = MAJORITY if tx is None else tx
    params, state = PARAMS, tx.init(PARAMS)
    for round in range(rounds):
        updates, state = tx.update(
            gradients(round), state, params, present=jnp.asarray(present), wire=wire
        )
        params = optax.apply_updates(params, updates)
    return params


def assert_same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


CASES = [
    (decoders.majority_vote, "ternary"),
    (decoders.released_code, "one_bit"),  # which needs its votes unpacked
    (decoders.majority_vote, "one_bit"),
    (decoders.released_code, "ternary"),
    (decoders.default_decoder, "ternary"),
    (decoders.default_decoder, "one_bit"),
]


@pytest.mark.parametrize(
    "case", slow_but(CASES[:2], CASES), ids=lambda case: f"{case[0].__name__}-{case[1]}"
)
def test_rounds_are_those_of_the_transformation(case):
    """Of packed votes or not; with a worker that is absent in every round."""
    decoder, wire = case
    tx = optax.chain(
        sfd.scale_by_sign_decoder(M, decoder()), optax.sgd(0.25, momentum=0.5)
    )
    strategy, config = begin(wire, tx)
    for round in range(2):
        replies = [
            reply(ballot(config, m, gradients(round)), 100 + m) for m in (4, 0, 3, 2)
        ]
        arrays, metrics = strategy.aggregate_train(round + 1, replies)
        assert metrics["voted"] == 4 and metrics["absent"] == [1]
        config = configure(strategy, round + 2)
    present = [True, False, True, True, True]
    assert_same(strategy.params, expected(present, wire, 2, tx))
    assert_same(flower.from_arrays(arrays, PARAMS), strategy.params)


def test_votes_weigh_a_bit_each():
    """The bytes that are sent, and those that are counted."""
    for wire, planes in (("one_bit", 1), ("ternary", 2)):
        strategy, config = begin(wire)
        contents = [ballot(config, m) for m in range(M)]
        for content in contents:
            sizes = {len(array.data) for array in content["votes"].values()}
            assert sizes == {2 + 1} and len(content["votes"]) == planes
        replies = [reply(content, 100 + m) for m, content in enumerate(contents)]
        arrays, metrics = strategy.aggregate_train(1, replies)
        assert metrics["bytes-up"] == M * planes * 3
        down = sum(len(array.data) for array in arrays.values())
        assert metrics["bytes-down"] == M * down


def changed(content, **said):
    content["vote"].update(said)
    return content


def with_votes(content, **data):
    content["votes"] = ArrayRecord(
        {n: Array("uint8", (len(d),), STYPE, d) for n, d in data.items()}
    )
    return content


def as_numpy(content):
    content["votes"]["signs"] = Array(np.zeros(3, np.uint8))
    return content


REFUSALS = {
    "is an error: lost x": lambda content: Error(5, "lost\n" + "x" * 10_000),
    "worker is None, not one of 0 to 4": lambda content: RecordDict(),
    "worker is 5,": lambda content: changed(content, worker=5),
    "worker is -1,": lambda content: changed(content, worker=-1),
    "worker is 2.0,": lambda content: changed(content, worker=2.0),
    r"worker is \[2\],": lambda content: changed(content, worker=[2]),
    "is of round 3": lambda content: changed(content, round=3),
    r"loss is \[1.0\]": lambda content: changed(content, loss=[1.0]),
    "has no votes": lambda content: RecordDict({"vote": content["vote"]}),
    r"are \['signs'\], not signs and voted": lambda content: with_votes(
        content, signs=bytes(3)
    ),
    r"votes are \[\]": lambda content: with_votes(content),
    "voted are 4 bytes": lambda content: with_votes(
        content, signs=bytes(3), voted=bytes(4)
    ),
    "signs are 0 bytes": lambda content: with_votes(content, signs=b"", voted=bytes(3)),
    "bytes of numpy.ndarray": as_numpy,
}


@pytest.mark.parametrize("why", REFUSALS)
def test_what_is_wrong_is_refused_and_the_worker_absent(why, caplog):
    strategy, config = begin()
    replies = [reply(ballot(config, m), 100 + m) for m in (0, 1, 3, 4)]
    bad = REFUSALS[why](ballot(config, 2))
    with caplog.at_level(logging.WARNING, "flwr"):
        _, metrics = strategy.aggregate_train(1, [*replies, reply(bad, 102)])
    (line,) = [r.getMessage() for r in caplog.records if r.name == "flwr"]
    assert line.startswith("round 1: the reply of node 102 is refused: it")
    assert re.search(why, line) and len(line) < 300 and "\n" not in line
    assert metrics["refused"] == 1 and metrics["absent"] == [2]
    assert_same(strategy.params, expected([True, True, False, True, True]))


def test_of_two_replies_for_one_worker_none_counts():
    """From one node, or from two of which neither is known."""
    for second in (102, 7):
        strategy, config = begin(nodes=[7, *range(100, 105)])
        replies = [reply(ballot(config, m), 100 + m) for m in range(M)]
        replies.append(reply(ballot(config, 2), second))
        _, metrics = strategy.aggregate_train(1, replies)
        assert metrics["refused"] == 2 and metrics["absent"] == [2]
        assert_same(strategy.params, expected([True, True, False, True, True]))


def refusals(strategy, server_round, says, nodes=None):
    """How many of the replies are refused of nodes that say they are these workers."""
    config = configure(strategy, server_round, says if nodes is None else nodes)
    replies = [reply(ballot(config, worker), node) for node, worker in says.items()]
    _, metrics = strategy.aggregate_train(server_round, replies)
    return metrics["refused"], metrics["absent"]


def test_a_node_is_one_worker_and_stays_it():
    strategy, _ = begin()
    everybody = {100 + m: m for m in range(M)}
    assert refusals(strategy, 1, everybody) == (0, [])
    # Another one says that it is worker 0, and node 104 that it is worker 3.
    assert refusals(strategy, 2, everybody | {7: 0, 104: 3}) == (2, [4])
    # Absent without leaving: the place is kept.
    rest = {node: m for node, m in everybody.items() if m}
    assert refusals(strategy, 3, rest | {7: 0}, nodes=[*everybody, 7]) == (1, [0])
    # Gone: whoever comes back as worker 0 is a new node, and keeps the place.
    assert refusals(strategy, 4, rest | {7: 0}) == (0, [])
    assert refusals(strategy, 5, everybody | {7: 0}) == (1, [])


def test_known_nodes_leave_no_place_to_others():
    known = {100 + m: m for m in range(M - 1)}
    strategy = flower.SignStrategy(PARAMS, MAJORITY, M, nodes=known)
    assert refusals(strategy, 2, known | {104: 4}) == (1, [4])
    del known[101]
    assert refusals(strategy, 3, known | {7: 1}) == (1, [1, 4])


def test_nobody_votes_and_nothing_changes(caplog):
    strategy, config = begin("one_bit")
    silent = jax.tree.map(lambda p: jnp.full((M, *p.shape), jnp.nan), PARAMS)
    replies = [reply(ballot(config, m, silent), 100 + m) for m in range(M)]
    assert strategy.aggregate_train(1, replies) == (None, None)
    assert_same(strategy.params, PARAMS)
    assert "nobody voted" in caplog.text and "refused" not in caplog.text


def test_no_bits_make_a_vote_count_twice():
    """A sign where there is no vote, and bits where there is no coordinate."""
    strategy, config = begin()
    bad = with_votes(ballot(config, 0), signs=b"\xff" * 3, voted=bytes(3))
    read = strategy._codec.read(reply(bad, 100), 0)
    votes = sfd.signs.packed.unpack_votes(strategy._codec.votes([read]))
    assert all((leaf == 0).all() for leaf in votes.values())
    bad = with_votes(ballot(config, 0), signs=b"\xff" * 3, voted=b"\xff" * 3)
    read = strategy._codec.read(reply(bad, 100), 0)
    assert np.unpackbits(read.signs).sum() == np.unpackbits(read.voted).sum() == 9 + 6
    votes = sfd.signs.packed.unpack_votes(strategy._codec.votes([read]))
    assert all((leaf[0] == 1).all() and not leaf[1:].any() for leaf in votes.values())


def test_verdicts_are_metrics_and_lines(caplog):
    params = jnp.zeros(2000)
    strategy = flower.SignStrategy(params, sfd.sign_sgd(0.1, M), M, min_nodes=1)
    honest = jax.random.normal(jax.random.key(0), (M, 2000)) + 1
    rows = honest.at[4].multiply(-1)
    with caplog.at_level(logging.INFO, "flwr"):
        for server_round in (1, 2):
            config = configure(strategy, server_round)
            replies = [reply(ballot(config, m, rows), 100 + m) for m in range(M)]
            _, metrics = strategy.aggregate_train(server_round, replies)
    said = [decoders.VERDICTS[kind] for kind in metrics["verdicts"]]
    assert said == ["honest"] * 4 + ["inverted"]
    assert metrics["weights"][4] < 0 < metrics["weights"][0] and metrics["loss"] == 1.0
    lines = [record.getMessage().strip() for record in caplog.records]
    assert lines.count("worker 4 is read backwards since round 1") == 1


@pytest.mark.slow
def test_known_facts_reach_the_decoder():
    """Three of five lie, but one of the others is trusted."""
    params = jnp.zeros(2000)
    rows = jax.random.normal(jax.random.key(0), (M, 2000)) + 1
    rows = rows.at[2:].multiply(-1)
    trusted = jnp.arange(M) == 0
    tx = sfd.sign_sgd(1.0, M)
    strategy = flower.SignStrategy(params, tx, M, min_nodes=1, trusted=trusted)
    config = configure(strategy, 1)
    replies = [reply(ballot(config, m, rows), 100 + m) for m in range(M)]
    strategy.aggregate_train(1, replies)
    updates, _ = tx.update(rows, tx.init(params), params, trusted=trusted)
    assert_same(strategy.params, updates)
    assert strategy.params.mean() < 0


def test_a_client_is_a_worker_of_the_simulation():
    """The same draws, keys and memory: the same weights, bit for bit."""
    noisy = workers.gradient(lambda x, batch: jnp.sum((x - batch) ** 2))
    worker = workers.momentum(workers.stochastic_signs(noisy, 8.0))
    key, start = jax.random.key(7), jnp.arange(12.0)
    draw = lambda key: jax.random.normal(key, (M, 12))  # noqa: E731
    tx = sfd.sign_sgd(0.1, M)
    sim = simulate.simulation(worker, tx, num_workers=M, wire="one_bit")
    state = sim.init(key, start, jnp.zeros(M, bool))
    state, _ = simulate.run(sim, state, draw, 3)

    strategy = flower.SignStrategy(start, tx, M, wire="one_bit")
    memory = [RecordDict() for _ in range(M)]
    for server_round in (1, 2, 3):
        config = configure(strategy, server_round)
        batch = draw(flower.round_keys(key, config["round"])[0])
        replies = []
        for m in range(M):
            sent, loss = flower.local_round(
                *(worker, key, m, config["round"], strategy.params, batch[m]), memory[m]
            )
            content = flower.pack_votes(config, m, sent, loss=loss)
            replies.append(reply(content, 100 + m))
        strategy.aggregate_train(server_round, replies)
    assert_same(strategy.params, state.params)


def test_trees_survive_the_records():
    tree = {
        "half": jnp.array([1.5, -2.0], jnp.bfloat16),
        "one": [jnp.float32(3), jnp.zeros((0, 2))],
        "whole": jnp.arange(3),
    }
    back = flower.from_arrays(flower.to_arrays(tree), tree)
    assert_same(back, tree)
    assert jax.tree.map(lambda a: a.dtype, back) == jax.tree.map(
        lambda a: a.dtype, tree
    )
    assert_same(flower.from_arrays(flower.to_arrays(tree["one"][0]), jnp.float32(0)), 3)


WRONG = {
    "arrays has the leaves": lambda: flower.from_arrays(
        flower.to_arrays({"a": jnp.ones(2)}), {"b": jnp.ones(2)}
    ),
    "arrays has the leaf": lambda: flower.from_arrays(
        flower.to_arrays(jnp.ones(2)), jnp.ones(3)
    ),
    "number must be a whole number": lambda: flower.pack_votes({}, -1, PARAMS),
    "config has nothing": lambda: flower.pack_votes({}, 0, PARAMS),
    "unknown wire|wire must be": lambda: flower.pack_votes(
        {"round": 0, "wire": "two"}, 0, PARAMS
    ),
    "key must be": lambda: flower.round_keys(0, 0),
    "round must be": lambda: flower.round_keys(jax.random.key(0), -1),
    "worker must be": lambda: flower.local_round(
        None, jax.random.key(0), 0, 0, PARAMS, (), RecordDict()
    ),
    "tx must be": lambda: flower.SignStrategy(PARAMS, None, M),
    "num_workers must be": lambda: flower.SignStrategy(PARAMS, sfd.sign_sgd(1, 2), 0),
    "wire must be": lambda: flower.SignStrategy(
        PARAMS, sfd.sign_sgd(1, M), M, wire="two"
    ),
    "min_nodes must be": lambda: flower.SignStrategy(
        PARAMS, sfd.sign_sgd(1, M), M, min_nodes=0
    ),
    "nodes has the workers": lambda: flower.SignStrategy(
        PARAMS, sfd.sign_sgd(1, M), M, nodes={1: 0, 2: 0}
    ),
    "trusted": lambda: flower.SignStrategy(
        PARAMS, sfd.sign_sgd(1, M), M, trusted=jnp.ones(3, bool)
    ),
}


@pytest.mark.parametrize("wanted", WRONG)
@pytest.mark.usefixtures("without_beartype")
def test_wrong_use(wanted):
    with pytest.raises(ValueError, match=wanted):
        WRONG[wanted]()


def test_clients_are_not_asked_to_evaluate():
    strategy, _ = begin()
    arrays = flower.to_arrays(PARAMS)
    assert strategy.configure_evaluate(1, arrays, ConfigRecord(), connected([])) == []
    assert strategy.aggregate_evaluate(1, []) is None

"""The server's side: which client is which worker, one round, and its metrics.

Shapes: `M` workers.
"""

import functools
import logging
import math
import statistics
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flwr.app import (  # pyright: ignore[reportMissingImports]
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid  # pyright: ignore[reportMissingImports]
from flwr.serverapp.strategy import Strategy  # pyright: ignore[reportMissingImports]

from signfd_jax import decoders, signs
from signfd_jax._checks import check_kind, check_size
from signfd_jax.contrib._flower_wire import (
    Ballot,
    Codec,
    Refused,
    from_arrays,
    to_arrays,
)

_LOG = logging.getLogger("flwr")  # Flower's own


class SignStrategy(Strategy):
    """Flower's server strategy: decode the clients' votes, and step.

    Each client has the number of a worker, and says it in its replies. The first node
    to reply as a worker is that worker from then on. Another node that says the same
    is refused, unless the first is no longer connected. A node is one worker only.

    A worker without an accepted reply is absent: its votes are zeros. A reply is
    refused, with a line in Flower's log, if it is an error, is of another round, names
    no worker or that of another node, or has votes of another size than the parameters.
    Of two replies for one worker both are refused. A round in which nobody votes
    changes nothing.

    The metrics of a round, `result.train_metrics_clientapp[round]`, are:

    - `voted`, `absent`: how many workers voted, and which did not;
    - `refused`: how many replies were refused;
    - `bytes-up`, `bytes-down`: of the accepted votes, and of the parameters sent;
    - `loss`: the median of the losses that the workers told, if they did;
    - `weights`, `margin`: as in `DecodeInfo`;
    - `verdicts`: a place in `decoders.VERDICTS` for each worker, from the default
      decoder. A verdict that changes also has a line in the log.

    Give `start` a `timeout` in seconds, after which a straggler is absent: Flower waits
    for an hour, and notices only after a minute that a client has died.

    Args:
        params: tree of `[...]`, shaped like the parameters. The first ones are those
            that `start` is given: `start(grid, to_arrays(params), ...)`.
        tx: the server's transformation, such as `sign_sgd` or any chain that begins
            with `scale_by_sign_decoder`.
        num_workers: number M of workers (int).
        wire: "ternary", or "one_bit": as in `simulation`.
        min_nodes: how many nodes to wait for before the first round (int >= 1); None:
            M. Before later rounds one is enough.
        nodes: which worker a node is, by its node id, where that is known; then others
            are refused. It needs Flower's authentication to mean something.
        **known: what `tx.update` is given in every round: `trusted`, `stakes`,
            `shares`.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> from signfd_jax import sign_sgd
        >>> from signfd_jax.contrib.flower import to_arrays
        >>> params = {"w": jnp.zeros(3)}
        >>> strategy = SignStrategy(params, sign_sgd(0.1, 6), 6, wire="one_bit")
        >>> strategy.aggregate_train(1, [])  # nobody replied
        (None, None)
    """

    def __init__(
        self,
        params: Any,
        tx: optax.GradientTransformation,
        num_workers: int,
        *,
        wire: str = "ternary",
        min_nodes: int | None = None,
        nodes: Mapping[int, int] | None = None,
        **known: Any,
    ) -> None:
        """Compile nothing yet, and know no node but those that are given."""
        check_kind("tx", tx, ("init", "update"), "sign_sgd, optax.chain or the like")
        check_size("num_workers", num_workers)
        signs.check_wire(wire)
        min_nodes = num_workers if min_nodes is None else min_nodes
        check_size("min_nodes", min_nodes)
        self.params = jax.tree.map(jnp.asarray, params)
        self.num_workers, self.min_nodes = num_workers, min_nodes
        self._tx = optax.with_extra_args_support(tx)
        self.opt_state = self._tx.init(self.params)
        self._codec = Codec(self.params, num_workers, wire)
        self._rows = dict(_checked_nodes(nodes, num_workers))
        self._all_known = nodes is not None
        self._connected: set[int] = set()
        self._num_sent = 0
        self._said: list[str] = []
        self._known = jax.tree.map(jnp.asarray, known)
        self._unpack = self._must_unpack()

    def summary(self) -> None:
        """Log what the strategy is."""
        up = len(self._codec.all_vote) * (1 if self._codec.wire == "one_bit" else 2)
        _LOG.info(
            "\t└──> %d workers, wire %s: %d bytes of votes a worker and round",
            self.num_workers,
            self._codec.wire,
            up,
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the parameters to all nodes that are connected."""
        least = self.min_nodes if server_round == 1 else 1
        while len(connected := set(grid.get_node_ids())) < least:
            _LOG.info("%d nodes are connected, %d are wanted", len(connected), least)
            time.sleep(1)
        self._connected, self._num_sent = connected, len(connected)
        self.params = from_arrays(arrays, self.params)
        told = {"server-round": server_round, "round": server_round - 1}
        config = ConfigRecord({**config, **told, "wire": self._codec.wire})
        content = RecordDict({"arrays": arrays, "config": config})
        return [
            Message(content, dst_node_id=node, message_type=MessageType.TRAIN)
            for node in sorted(connected)
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Decode the votes, and step."""
        ballots, num_refused = self._accept(server_round, replies)
        if not ballots:
            _LOG.warning("round %d: nobody voted", server_round)
            return None, None
        present = np.zeros(self.num_workers, bool)
        present[[ballot.row for ballot in ballots]] = True
        votes = self._codec.votes(ballots)
        self.params, self.opt_state = self._step(votes, jnp.asarray(present))
        arrays = to_arrays(self.params)
        planes = 1 if self._codec.wire == "one_bit" else 2
        down = sum(len(array.data) for array in arrays.values())
        metrics: dict[str, Any] = {
            "voted": len(ballots),
            "absent": np.flatnonzero(~present).tolist(),
            "refused": num_refused,
            "bytes-up": len(ballots) * planes * len(self._codec.all_vote),
            "bytes-down": self._num_sent * down,
        }
        told = [b.loss for b in ballots if math.isfinite(b.loss)]
        metrics |= {"loss": statistics.median(told)} if told else {}
        metrics |= self._learned()
        return arrays, MetricRecord(metrics)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask no client: liars would answer. Give `start` an `evaluate_fn` instead."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Nothing was asked."""
        return None

    def _step(self, votes, present):
        return _update(
            *(self.params, self.opt_state, votes, present, self._known),
            tx=self._tx,
            wire=self._codec.wire,
            unpack=self._unpack,
        )

    def _must_unpack(self):
        """Whether the decoder needs its votes as int8."""
        self._unpack = False
        votes, present = self._codec.votes([]), jnp.zeros(self.num_workers, bool)
        try:
            jax.eval_shape(self._step, votes, present)
        except ValueError as error:
            if "cannot decode packed votes" not in str(error):
                raise
            return True
        return False

    def _accept(self, server_round, replies):
        """The votes that count, and how many replies were refused."""
        claims: dict[int, list[tuple[int, Ballot]]] = {}
        refused = []
        for message in replies:
            node = message.metadata.src_node_id
            try:
                ballot = self._codec.read(message, server_round - 1)
                self._check_claim(node, ballot.row)
                claims.setdefault(ballot.row, []).append((node, ballot))
            except Refused as why:
                refused.append((node, why))
        ballots = []
        for row, same in sorted(claims.items()):
            if len(same) > 1:
                why = f"there are {len(same)} replies for worker {row}"
                refused += [(node, why) for node, _ in same]
                continue
            ((node, ballot),) = same
            self._rows = {n: r for n, r in self._rows.items() if r != row} | {node: row}
            if ballot.signs is not None:
                ballots.append(ballot)
        for node, why in refused:
            line = " ".join(str(why).split())[:200]  # it may hold a stranger's text
            _LOG.warning(
                *("round %d: the reply of node %d is refused: %s", server_round, node),
                line,
            )
        return ballots, len(refused)

    def _check_claim(self, node, row):
        """Refuse a node that says it is a worker that it cannot be."""
        if self._rows.get(node, row) != row:
            raise Refused(f"it is worker {self._rows[node]}, but says worker {row}")
        owner = next((n for n, r in self._rows.items() if r == row), node)
        if owner != node and (self._all_known or owner in self._connected):
            raise Refused(f"it says worker {row}, but that is node {owner}")
        if self._all_known and node not in self._rows:
            raise Refused("it is none of the nodes that are known")

    def _learned(self):
        """What the decoder has learned, as metrics; new verdicts are logged."""
        info: Any = optax.tree.get(
            self.opt_state,
            "info",
            filtering=lambda _, value: isinstance(value, decoders.DecodeInfo),
        )
        if info is None:
            return {}
        metrics = {
            "weights": np.asarray(info.weights).tolist(),
            "margin": float(info.margin),
        }
        if len(optax.tree.get_all_with_path(self.opt_state, "cd_verdict")) != 1:
            return metrics
        said = decoders.verdicts(self.opt_state)
        lines = decoders.verdict_lines(said)
        for line in lines:
            if line not in self._said:
                _LOG.info("\t%s", line)
        self._said = lines
        return metrics | {"verdicts": np.asarray(said.kind).tolist()}


@functools.partial(jax.jit, static_argnames=("tx", "wire", "unpack"))
def _update(params, opt_state, votes, present, known, *, tx, wire, unpack):
    """The parameters and the state after a round."""
    votes = signs.packed.unpack_votes(votes) if unpack else votes
    updates, opt_state = tx.update(
        votes, opt_state, params, present=present, wire=wire, **known
    )
    return optax.apply_updates(params, updates), opt_state


def _checked_nodes(nodes, num_workers):
    """The workers of the nodes, if each is one and no two are the same."""
    nodes = {} if nodes is None else nodes
    rows = list(nodes.values())
    if len(set(rows)) < len(rows) or not set(rows) <= set(range(num_workers)):
        raise ValueError(
            f"nodes has the workers {rows}, but each must be another one of 0 to "
            f"{num_workers - 1}"
        )
    return nodes

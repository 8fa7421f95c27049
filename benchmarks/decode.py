"""How long decoding takes, beside the time to read the gradients once.

    python -m benchmarks.decode --json benchmarks/results/cpu.json

Gradients `[M, N]` in float32 (and packed votes, for decoders that read them) to decoded
signs, with a state of 100 rounds behind it that is updated in place. Peers: PyTorch's
majority vote, the released decoder in plain PyTorch, and rules of ByzFL, all from
gradients; without PyTorch they are left out. Every answer is checked first.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import signfd_jax as sfd
from benchmarks import measure
from signfd_jax.decoders import FederatedDefenseState
from signfd_jax.experiments._processes import console
from signfd_jax.signs import packed

SIZES = ("15x582026", "15x11000000", "1000x100000", "10000x10000", "100000x7850")
DECODERS: dict[str, Callable[[], sfd.Decoder]] = {
    "majority_vote": sfd.majority_vote,
    "federated_defense, pooled": lambda: sfd.federated_defense(initial_rounds=None),
    "federated_defense": lambda: sfd.federated_defense(initial_rounds=100),
    "federated_voting": lambda: sfd.federated_voting(initial_rounds=100),
    "dawid_skene": sfd.dawid_skene,
    "correlation_defense": sfd.correlation_defense,
}
ROUNDS = 100  # behind the state
SAMPLE, COMMITTEE = 8192, 64  # what correlations are counted on, and with
CHECKED = 2048  # coordinates that are decoded again by definition


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    sizes: tuple[str, ...] = SIZES
    """Workers x coordinates."""
    decoders: tuple[str, ...] = tuple(DECODERS)
    """Decoders, by the names above."""
    seconds: float = 20.0
    """Time for each size, shared by all competitors (at least three calls each)."""
    memory_gib: float = 10.0
    """Leave out what would need more memory than this."""
    peers: bool = True
    """Measure PyTorch and ByzFL as well."""
    json: Path | None = None
    """Write the results into this file, as its section `decode`."""


def gradients_of(num_workers: int, size: int) -> jax.Array:
    """Gradients with a common part, a tenth of them zero, two in five turned round."""
    keys = jax.random.split(jax.random.key(0), 3)
    turned = jnp.arange(num_workers) * 5 < 2 * num_workers
    sign = jnp.where(turned, -1.0, 1.0)[:, None]

    @jax.jit
    def draw(keys):
        common = jax.random.normal(keys[0], (1, size))
        noise = jax.random.normal(keys[1], (num_workers, size))
        silent = jax.random.bernoulli(keys[2], 0.1, (num_workers, size))
        return jnp.where(silent, 0.0, sign * (common + noise))

    return draw(keys)


def aged(state: Any) -> Any:
    """The state as it could be after `ROUNDS` rounds."""
    if not isinstance(state, FederatedDefenseState):
        return state
    workers = state.fd_agreement.shape[0]
    share = jnp.where(jnp.arange(workers) * 5 < 2 * workers, 0.3, 0.7)
    draw = lambda c: jax.random.randint(  # noqa: E731
        jax.random.key(1), c.shape, -ROUNDS, ROUNDS + 1, c.dtype
    )
    return state._replace(
        fd_round=jnp.int32(ROUNDS),
        fd_agreement=share,
        fd_evidence=jnp.full((workers,), 1e6),
        fd_counters=jax.tree.map(draw, state.fd_counters),
        fd_rounds_counted=jnp.float32(ROUNDS),
    )


def weights_by_definition(state: Any, info: sfd.DecodeInfo) -> np.ndarray:
    """float64 `[M]` or `[M, CHECKED]`: of the counters, or those that `info` tells."""
    if not isinstance(state, FederatedDefenseState) or not isinstance(
        state.fd_counters, jax.Array
    ):
        return np.asarray(info.weights, np.float64)
    evidence = np.asarray(state.fd_evidence, np.float64)
    pooled = (2 * np.asarray(state.fd_agreement, np.float64) - 1) * evidence
    pooled = (pooled / (evidence + 2))[:, None]
    counters = np.asarray(state.fd_counters[:, :CHECKED], np.float64)
    agreement = (1 + (counters + 2 * pooled) / (ROUNDS + 2)) / 2
    with np.errstate(divide="ignore"):
        return np.clip(np.log(agreement / (1 - agreement)), -10, 10)


def check_decoded(name: str, decoded, gradients, weights: np.ndarray) -> None:
    """Compare decoded signs with the sign of a sum in float64, worker by worker.

    Args:
        name: of the decoder.
        decoded: int8 `[N]`.
        gradients: float32 `[M, N]`.
        weights: float64 `[M]` or `[M, n]`, at the first n coordinates.

    Raises:
        measure.WrongAnswer: a sign differs, other than at a tie up to rounding.
    """
    tally, total = np.zeros(CHECKED), np.zeros(CHECKED)
    rows = np.asarray(gradients[:, :CHECKED])
    tally, total = tally[: rows.shape[1]], total[: rows.shape[1]]
    for row, weight in zip(rows, weights, strict=True):
        tally += weight * np.sign(row)
        total += np.abs(weight)
    expected = np.sign(np.where(np.abs(tally) < 1e-5 * total, 0, tally))
    found = np.asarray(decoded)[:CHECKED]
    measure.check_equal(name, np.where(expected == 0, 0, found), expected)


def check_state(name: str, before: Any, after: Any, gradients, decoded) -> None:
    """Compare what was counted with a count coordinate by coordinate."""
    if isinstance(after, FederatedDefenseState) and isinstance(
        after.fd_counters, jax.Array
    ):
        votes = np.sign(np.asarray(gradients[:, :CHECKED])).astype(int)
        outcomes = votes * np.asarray(decoded)[None, :CHECKED].astype(int)
        expected = np.asarray(before.fd_counters[:, :CHECKED]).astype(int) + outcomes
        measure.check_equal(name, after.fd_counters[:, :CHECKED], expected)


def from_gradients(name: str, gradients: jax.Array):
    """A competitor: check it, compile it, and hand back the timed function."""
    decoder = DECODERS[name]()
    num_workers = gradients.shape[0]
    state = aged(decoder.init(num_workers, gradients[0]))

    def decode(state, gradients):
        decoded, state, info = decoder.decode(state, sfd.votes(gradients))
        return decoded, state, info

    # The state is updated in place, as inside a scan over rounds.
    program, seconds = measure.compiled(
        jax.jit(decode, donate_argnums=0), state, gradients
    )
    before = jax.tree.map(
        lambda leaf: np.array(leaf[:, :CHECKED] if leaf.ndim == 2 else leaf), state
    )
    before = jax.tree.map(jnp.asarray, before)
    decoded, state, info = program(state, gradients)
    check_decoded(name, decoded, gradients, weights_by_definition(before, info))
    check_state(name, before, state, gradients, decoded)
    kept = [state]

    def run():
        decoded, kept[0], info = program(kept[0], gradients)
        return decoded, info

    return run, seconds


def from_packed(name: str, gradients: jax.Array):
    """The same from packed votes; None where the decoder cannot read them."""
    decoder = DECODERS[name]()
    if decoder.needs_unpacked:
        return None
    votes = jax.jit(lambda g: packed.pack_ternary(sfd.votes(g)))(gradients)
    state = aged(decoder.init(gradients.shape[0], gradients[0]))
    program, seconds = measure.compiled(decoder.decode, state, votes)
    expected = jax.jit(decoder.decode)(state, sfd.votes(gradients))[0]
    measure.check_equal(f"{name}, packed", program(state, votes)[0], expected)
    return lambda: program(state, votes), seconds


def costs(name: str, num_workers: int, size: int) -> dict[str, float]:
    """Bytes and operations that decoding from gradients must cost, whoever does it."""
    both = num_workers * size
    counters = name in ("federated_defense", "federated_voting")
    pairs = num_workers * min(num_workers, COMMITTEE)
    sample = min(size, SAMPLE if num_workers <= COMMITTEE else 512)
    gram = 4 * pairs * sample * (name == "correlation_defense")
    return {
        # Read the gradients, read and write int16 counters, write the signs.
        "bytes": 4 * both + 4 * both * counters + size,
        "operations": 2 * both + gram,
    }


def peers_of(gradients: jax.Array, memory: float, skipped: dict[str, str]):
    """PyTorch's and ByzFL's competitors; what needs too much memory is told."""
    if importlib.util.find_spec("torch") is None:
        skipped["PyTorch, ByzFL"] = "not installed"
        return {}
    from benchmarks import pytorch

    num_workers, size = gradients.shape
    rows = pytorch.tensor(gradients)
    columns = rows.T.contiguous()
    competitors: dict[str, Callable[[], Any]] = {}

    def add(name, copies, make):
        """`copies`: float32 `[M, N]` arrays that it holds at its peak."""
        need = (copies + 3) * 4 * num_workers * size
        if need > memory:
            skipped[name] = f"would need {need / 2**30:.0f} GiB"
        else:
            competitors[name] = pytorch.waited_for(make())

    def released(initial_rounds):
        defense = pytorch.ReleasedDefense((size,), num_workers, initial_rounds)
        defense.round = ROUNDS
        defense.total += ROUNDS
        defense.agree.random_(0, ROUNDS + 1)
        decoded = pytorch.majority_vote(columns)
        expected = np.sign(np.sign(np.asarray(gradients[:, :CHECKED])).sum(0))
        measure.check_equal("PyTorch", decoded[:CHECKED].cpu(), expected)
        return lambda: defense.decode(columns)

    add("PyTorch majority vote", 1, lambda: lambda: pytorch.majority_vote(columns))
    add("PyTorch released, pooled", 4, lambda: released(10**9))
    add("PyTorch released", 6, lambda: released(ROUNDS))
    needs = {"ByzFL median": 4, "ByzFL trimmed mean": 4}
    for name, rule in pytorch.byzfl_rules((num_workers - 1) // 5).items():
        copies = needs.get(name, 1) + (num_workers / size) * ("Krum" in name)
        add(name, copies, lambda rule=rule: lambda: rule(rows))
    return competitors


def measure_size(options: Options, num_workers: int, size: int) -> dict[str, Any]:
    """Check and time everything at one size."""
    gradients = jax.block_until_ready(gradients_of(num_workers, size))
    memory = options.memory_gib * 2**30
    skipped: dict[str, str] = {}
    compile_s: dict[str, float] = {}
    competitors: dict[str, Callable[[], Any]] = {
        "read": measure.read_pass(gradients),
        "copy": measure.copy_pass(gradients),
        "copy in place": measure.copy_in_place(gradients),
    }
    for name in options.decoders:
        for form, make in (("", from_gradients), (", packed", from_packed)):
            copies = 4 if name in ("federated_defense", "federated_voting") else 3
            need = copies * 4 * num_workers * size
            if need > memory:
                skipped[name + form] = f"would need {need / 2**30:.0f} GiB"
            elif made := make(name, gradients):
                competitors[name + form], compile_s[name + form] = made
    if options.peers:
        competitors |= peers_of(gradients, memory, skipped)
    times = measure.interleaved(competitors, seconds=options.seconds)
    bandwidth = 4 * num_workers * size / times["read"].median
    print(f"\nM = {num_workers}, N = {size}; read at {bandwidth / 1e9:.1f} GB/s")
    results: dict[str, Any] = {}
    for name, time in times.items():
        result = time.summary() | {
            "of_read": measure.ratio(time, times["read"]),
            "of_copy": measure.ratio(time, times["copy"]),
        }
        line = f"  {name:34s}{time}, {result['of_read']['median']:.2f} reads"
        if name in compile_s:
            result["compile_s"] = compile_s[name]
        if name in options.decoders:
            cost = costs(name, num_workers, size)
            result |= cost
            line += f", {cost['bytes'] / 1e6:.0f} MB"
            line += f", {cost['operations'] / 1e6:.0f} Mop"
            if "PyTorch released" in times:
                result["released_over_this"] = measure.ratio(
                    times["PyTorch released"], time
                )
                line += f", PyTorch x {result['released_over_this']['median']:.1f}"
        results[name] = result
        print(line)
    for name, reason in skipped.items():
        print(f"  {name:34s}left out: {reason}")
    return {"workers": num_workers, "coordinates": size, "bandwidth": bandwidth} | {
        "results": results,
        "left_out": skipped,
    }


def main(options: Options) -> dict[str, Any]:
    """Measure every size, print and write."""
    sizes = []
    for text in options.sizes:
        num_workers, _, size = text.partition("x")
        sizes.append(measure_size(options, int(num_workers), int(size)))
        result = {"matrix_rate": measure.matrix_rate(), "sizes": sizes}
        if options.json is not None:  # after every size: a stop loses only the rest
            measure.write_section(options.json, "decode", result)
    return {"sizes": sizes}


if __name__ == "__main__":
    with console.steady():  # results are kept, wherever they are printed
        main(tyro.cli(Options, description=__doc__))

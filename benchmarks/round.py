"""How long a whole round takes: gradients, attack, decoding and step.

    python -m benchmarks.round --json benchmarks/results/cpu.json

Against the same round as a plain loop in PyTorch, from the same parameters and batches,
which is left out where PyTorch is not installed. Losses and gradients of the two are
compared first. Neither measures the error of the decoded signs, which is no part of
the algorithm. The images are noise: no time depends on what they show.
"""

import dataclasses
import functools
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import signfd_jax as sfd
from benchmarks import measure
from signfd_jax import models
from signfd_jax.experiments._processes import console

LEARNING_RATE = 1e-3
NETWORKS = {
    "mnist_mlp": (models.MLP(hidden=(128,)), (28, 28, 1)),
    "mnist_cnn": (models.MnistCNN(), (28, 28, 1)),
    "cifar_resnet20": (models.ResNet(depth=20), (32, 32, 3)),
}
# Multiplications with an addition for one image, forward.
MULTIPLY_ADDS = {
    "mnist_mlp": 784 * 128 + 128 * 10,
    "mnist_cnn": 24**2 * 25 * 32 + 8**2 * 25 * 32 * 64 + 1024 * 512 + 512 * 10,
    "cifar_resnet20": 9 * 32**2 * (3 * 16 + 6 * 16 * 16)
    + 9 * 16**2 * (16 * 32 + 5 * 32 * 32)
    + 9 * 8**2 * (32 * 64 + 5 * 64 * 64)
    + 64 * 10,
}
# Of these, those of the first layer, whose inputs need no gradient.
FIRST_LAYER = {
    "mnist_mlp": 784 * 128,
    "mnist_cnn": 24**2 * 25 * 32,
    "cifar_resnet20": 9 * 32**2 * 3 * 16,
}
DECODERS: dict[str, Callable[[], sfd.Decoder]] = {
    "majority_vote": sfd.majority_vote,
    "correlation_defense": sfd.correlation_defense,
    # Its phase with weights for each coordinate, from the first round on.
    "federated_defense": lambda: sfd.federated_defense(initial_rounds=0),
}
CHUNKED_FROM = 100  # workers
# Operations for the gradients of a round in which the call of a step can be seen.
SHORT = 10**9
WORKLOADS = (
    "mnist_mlp/15x64",
    "mnist_mlp/100x16",
    "mnist_mlp/1000x8",
    "mnist_cnn/15x64",
    "cifar_resnet20/15x64",
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    workloads: tuple[str, ...] = WORKLOADS
    """Network / workers x batch size."""
    decoders: tuple[str, ...] = tuple(DECODERS)
    """Decoders, by the names above."""
    chunk: int = 10
    """Workers at a time, measured beside all at once where they are many."""
    few: int = 3
    """Workers at a time, measured beside all at once where a round is long."""
    rounds: int = 10
    """Rounds in a call, measured beside a call for each where these are short."""
    seconds: float = 20.0
    """Time for each workload, shared by all competitors (at least three rounds)."""
    peers: bool = True
    """Measure PyTorch as well."""
    json: Path | None = None
    """Write the results into this file, as its section `round`."""


def batches(network: str, num_workers: int, batch_size: int):
    """Images `[M, B, H, W, C]` and labels int32 `[M, B]`."""
    keys = jax.random.split(jax.random.key(0))
    shape = (num_workers, batch_size)
    images = jax.random.normal(keys[0], (*shape, *NETWORKS[network][1]))
    return images, jax.random.randint(keys[1], shape, 0, 10)


def parameters(network: str):
    """The network's parameters, by a fixed key."""
    model, shape = NETWORKS[network]
    return model.init(jax.random.key(1), jnp.zeros((2, *shape)))


class Entry(NamedTuple):
    """One way to do a round.

    Attributes:
        decoder: its name.
        chunk: `worker_chunk`.
        rounds: in one call by `simulation.run`; None: the step is called for each.
    """

    decoder: str
    chunk: int | None = None
    rounds: int | None = None


def entries(options: Options, num_workers: int, operations: int) -> dict[str, Entry]:
    """What is measured for so many workers and operations of a round, by label."""
    whole = {name: Entry(name) for name in options.decoders}
    if num_workers < CHUNKED_FROM and operations < SHORT:
        label, other = f"{options.rounds} rounds a call", {"rounds": options.rounds}
    else:
        chunk = options.chunk if num_workers >= CHUNKED_FROM else options.few
        label, other = f"{chunk} at a time", {"chunk": chunk}
    return whole | {f"{name}, {label}": Entry(name, **other) for name in whole}


def simulated(network: str, entry: Entry, batch, num_byzantine: int):
    """A competitor: its timed function, its first loss and its compile time."""
    num_workers = batch[1].shape[0]
    simulation = sfd.simulation(
        models.loss_fn(NETWORKS[network][0]),
        sfd.sign_sgd(LEARNING_RATE, num_workers, decoder=DECODERS[entry.decoder]()),
        num_workers=num_workers,
        attack=sfd.attacks.sign_inversion(),
        worker_chunk=entry.chunk,
        sign_error=False,
    )
    byzantine = jnp.arange(num_workers) >= num_workers - num_byzantine
    state = simulation.init(jax.random.key(2), parameters(network), byzantine)

    def call(state, batch):
        if entry.rounds is None:
            return simulation.step(state, batch)
        return sfd.run(simulation, state, lambda key: batch, entry.rounds)

    # Updated in place, as inside a scan over rounds.
    program, seconds = measure.compiled(jax.jit(call, donate_argnums=0), state, batch)
    kept, infos = program(state, batch)
    states = [kept]

    def run():
        states[0], infos = program(states[0], batch)
        return infos

    return run, float(infos.loss.ravel()[0]), seconds


def looped(network: str, batch, num_byzantine: int):
    """PyTorch's competitors by name, after its first losses and gradients agree."""
    from benchmarks import pytorch

    params = {
        "/".join(str(key.key) for key in path[1:]): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(parameters(network))
    }
    images = pytorch.tensor(batch[0].transpose(0, 1, 4, 2, 3))
    labels = pytorch.tensor(np.array(batch[1], np.int64))
    doubles = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    loop = pytorch.Loop(network, doubles, 1, LEARNING_RATE)
    check_gradients(network, loop, images[0].double(), labels[0], batch)
    competitors = {}
    for name, decode in (("PyTorch", True), ("PyTorch, majority vote", False)):
        loop = pytorch.Loop(network, params, batch[1].shape[0], LEARNING_RATE)
        round = functools.partial(loop.round, images, labels, num_byzantine, decode)
        competitors[name] = pytorch.waited_for(round)
    return competitors


def check_gradients(network: str, loop: Any, images, labels, batch) -> None:
    """Compare the first worker's loss and gradients with those of JAX, in float64.

    In float32 rounding tips some ReLU of a deep network, and a gradient by a percent.

    Args:
        network: its name.
        loop: a `pytorch.Loop` of float64 parameters before its first round.
        images: of that worker, float64 `[B, C, H, W]`.
        labels: of that worker, int64 `[B]`.
        batch: of all workers, in JAX's layout, float32.

    Raises:
        measure.WrongAnswer: they differ by more than rounding.
    """
    loss, gradients = loop.gradients(images, labels)
    function = models.loss_fn(NETWORKS[network][0])
    narrow = parameters(network), batch[0][0]
    with jax.enable_x64(True):
        start, images = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), narrow)
        value_and_grad = jax.jit(jax.value_and_grad(function))
        expected, tree = value_and_grad(start, (images, batch[1][0]))
    measure.check_equal(
        f"{network}, loss", float(loss), float(expected), tolerance=1e-9
    )
    for leaf, found in zip(jax.tree.leaves(tree), gradients, strict=True):
        order = {2: (1, 0), 4: (2, 3, 1, 0)}.get(leaf.ndim, range(leaf.ndim))
        found = np.asarray(found.cpu()).transpose(tuple(order))
        measure.check_equal(f"{network}, gradient", found, leaf, tolerance=1e-9)


def gradient_operations(network: str) -> int:
    """Operations for the gradient of one image's loss.

    Forward, and as much again for the gradients of the weights and of what each layer
    is given.
    """
    return 6 * MULTIPLY_ADDS[network] - 2 * FIRST_LAYER[network]


def measure_workload(options: Options, workload: str, rate: float) -> dict[str, Any]:
    """Check and time everything of one workload."""
    network, _, numbers = workload.partition("/")
    num_workers, batch_size = (int(number) for number in numbers.split("x"))
    num_byzantine = 2 * num_workers // 5
    batch = batches(network, num_workers, batch_size)
    competitors: dict[str, Callable[[], Any]] = {}
    compile_s: dict[str, float] = {}
    if options.peers and importlib.util.find_spec("torch") is not None:
        competitors |= looped(network, batch, num_byzantine)
    losses = {}
    operations = gradient_operations(network) * num_workers * batch_size
    measured = entries(options, num_workers, operations)
    for label, entry in measured.items():
        made = simulated(network, entry, batch, num_byzantine)
        competitors[label], losses[label], compile_s[label] = made
    honest = num_workers - num_byzantine
    check_losses(network, losses, batch, honest)
    times = measure.interleaved(competitors, seconds=options.seconds)
    for label, entry in measured.items():
        times[label] = times[label].of_one(entry.rounds or 1)
    print(
        f"\n{workload}: {operations / 1e9:.1f} GFLOP of gradients, "
        f"{1e3 * operations / rate:.1f} ms at {rate / 1e9:.0f} GFLOP/s"
    )
    results = {}
    for name, time in times.items():
        share = operations / rate / time.median
        result = time.summary() | {"share_of_matrix_rate": share}
        line = f"  {name:36s}{time}, {100 * share:.0f} % of the matrix rate"
        if name in compile_s:
            result["compile_s"] = compile_s[name]
            if "PyTorch" in times:
                result["pytorch_over_this"] = measure.ratio(times["PyTorch"], time)
                line += f", PyTorch x {result['pytorch_over_this']['median']:.1f}"
        results[name] = result
        print(line)
    return {
        "workload": workload,
        "byzantine": num_byzantine,
        "gradient_operations": operations,
        "results": results,
    }


def check_losses(network: str, losses: dict[str, float], batch, honest: int) -> None:
    """Compare the first round's loss with the mean over a loop of honest workers."""
    loss = jax.jit(models.loss_fn(NETWORKS[network][0]))
    start = parameters(network)
    each = [
        float(loss(start, jax.tree.map(lambda leaf, m=m: leaf[m], batch)))
        for m in range(honest)
    ]
    expected = math.fsum(each) / honest
    for name, found in losses.items():
        measure.check_equal(f"{network}, {name}", found, expected, tolerance=1e-4)


def main(options: Options) -> dict[str, Any]:
    """Measure every workload, print and write."""
    workloads = []
    for workload in options.workloads:
        rate = measure.matrix_rate()
        workloads.append(measure_workload(options, workload, rate))
        workloads[-1]["matrix_rate"] = rate
        if options.json is not None:  # after each: a stop loses only the rest
            measure.write_section(options.json, "round", {"workloads": workloads})
    return {"workloads": workloads}


if __name__ == "__main__":
    with console.steady():  # results are kept, wherever they are printed
        main(tyro.cli(Options, description=__doc__))

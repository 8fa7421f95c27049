"""What a round costs as the population grows, in seconds and in memory.

    python -m benchmarks.population --json benchmarks/results/cpu.json

Softmax regression on random images, batches of 8, two workers in five invert their
gradients; workers go in chunks, votes are packed (two bits each), and the decoder is
`correlation_defense`, with majority vote beside it. Every size runs in a process of its
own, whose peak memory is what it held at most: data, program and Python included. That
chunks give the parameters of the whole is checked first; so is the packed tally, which
is timed beside a copy of as many bytes as it has votes.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.flatten_util import ravel_pytree

import signfd_jax as sfd
from benchmarks import measure
from signfd_jax import models
from signfd_jax.experiments._processes import console
from signfd_jax.signs import _tally as tally
from signfd_jax.signs import packed

DECODERS = {
    "correlation_defense": sfd.correlation_defense,
    "majority_vote": sfd.majority_vote,
}
CLASSES, EXAMPLES, BATCH = 10, 60_000, 8


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    workers: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    """Populations, at the first of `features`."""
    features: tuple[int, ...] = (784, 196, 3136)
    """Pixels of an image; the model has ten weights for each, and ten biases."""
    workers_of_features: int = 10_000
    """The population at the other `features`."""
    decoders: tuple[str, ...] = tuple(DECODERS)
    """Decoders, by name."""
    chunk: int = 100
    """Workers at a time."""
    rounds: int = 5
    """Timed rounds of each size, after one that is not."""
    tally: str = "1000x100000"
    """Workers x coordinates of the packed tally."""
    json: Path | None = None
    """Write the results into this file, as its section `population`."""
    one: str | None = None
    """Measure one `workers/features/decoder` in this process, print it, and end."""


def _task(num_workers: int, features: int):
    """What to look up, the loss, the first parameters, and how batches are drawn."""
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.integers(0, CLASSES, EXAMPLES), jnp.int32)
    patterns = rng.integers(0, 128, (CLASSES, features), np.uint8)
    noise = rng.integers(0, 128, (EXAMPLES, features), np.uint8)
    images = jnp.asarray(patterns[np.asarray(labels)] + noise)

    def lookup(indices):
        pixels = images[indices].astype(jnp.float32)
        return (pixels - 127.0) / 52.0, labels[indices]

    model = models.SoftmaxRegression(CLASSES)
    params = model.init(jax.random.key(1), jnp.zeros((1, features)))

    def draw(key):
        return jax.random.randint(key, (num_workers, BATCH), 0, EXAMPLES)

    return lookup, models.loss_fn(model), params, draw


def population(num_workers: int, features: int, decoder: str, chunk: int | None):
    """One round of a population, jitted, and its state before the first."""
    lookup, loss_fn, params, draw = _task(num_workers, features)
    simulation = sfd.simulation(
        loss_fn,
        sfd.sign_sgd(1e-3, num_workers, decoder=DECODERS[decoder]()),
        num_workers=num_workers,
        attack=sfd.attacks.sign_inversion(),
        lookup=lookup,
        worker_chunk=chunk,
    )
    liars = jnp.arange(num_workers) % 5 < 2
    state = simulation.init(jax.random.key(0), params, liars)

    step = jax.jit(lambda state: sfd.run(simulation, state, draw, 1), donate_argnums=0)
    return step, state


def gradients_alone(num_workers: int, features: int, chunk: int):
    """What a round cannot do without: draw, look up, take the gradients, read them."""
    lookup, loss_fn, params, draw = _task(num_workers, features)

    def of_chunk(indices):
        each = jax.vmap(jax.grad(loss_fn), in_axes=(None, 0))
        return jax.tree.map(jnp.sum, each(params, lookup(indices)))

    def step(key):
        return jax.lax.map(of_chunk, draw(key).reshape(-1, chunk, BATCH))

    return jax.jit(step), jax.random.key(0)


def check_chunks() -> None:
    """Refuse to time chunks whose parameters are not those of the whole.

    Bit for bit on a CPU. Elsewhere products of matrices of another shape are summed in
    another order: there one gradient in a hundred may be so near zero that it matters.
    """
    allowed = 0.0 if jax.default_backend() == "cpu" else 0.01
    for decoder in DECODERS:
        ends = []
        for chunk in (None, 50):
            step, state = population(200, 50, decoder, chunk)
            for _ in range(3):
                state, _ = step(state)
            ends.append(ravel_pytree(state.params)[0])
        if float(jnp.mean(ends[0] != ends[1])) > allowed:
            measure.check_equal(f"chunks under {decoder}", ends[1], ends[0])


def measure_one(num_workers: int, features: int, decoder: str, rounds: int, chunk: int):
    """Seconds of each round, peak memory, and what a round must cost."""
    step, state = population(num_workers, features, decoder, chunk)
    program, compile_seconds = measure.compiled(step, state)
    state, _ = jax.block_until_ready(program(state))
    seconds = []
    processor_seconds = time.process_time()
    for _ in range(rounds):
        start = time.perf_counter()
        state, info = jax.block_until_ready(program(state))
        seconds.append(time.perf_counter() - start)
    processor_seconds = time.process_time() - processor_seconds
    peak = measure.peak_memory()
    gradients, key = gradients_alone(num_workers, features, chunk)
    alone = measure.interleaved({"alone": lambda: gradients(key)}, most=rounds)
    coordinates = CLASSES * (features + 1)
    found_out = (info.weights[0] < 0) == state.byzantine
    return {
        "num_workers": num_workers,
        "num_coordinates": coordinates,
        "decoder": decoder,
        "worker_chunk": chunk,
        "compile_s": compile_seconds,
        **measure.Timing(tuple(seconds)).summary(),
        "processor_s": processor_seconds / rounds,
        "workers_per_s": num_workers / statistics.median(seconds),
        "gradients_s": alone["alone"].median,
        "peak_bytes": peak,
        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
        "packed_bytes": num_workers * coordinates // 4,
        "gradient_operations": 4 * BATCH * num_workers * coordinates,
        "workers_told_apart": float(jnp.mean(found_out)),
    }


def measure_tally(size: str) -> dict[str, Any]:
    """The weighted tally straight from the bits, beside a copy of a byte a vote."""
    num_workers, coordinates = map(int, size.split("x"))
    keys = jax.random.split(jax.random.key(0))
    votes = jax.random.randint(keys[0], (num_workers, coordinates), -1, 2, jnp.int8)
    weights = jax.random.normal(keys[1], (num_workers,))
    bits = packed.pack_ternary(votes)

    def decode(votes, weights):
        return tally.weighted_vote(votes, weights, largest=8.0)

    program, _ = measure.compiled(decode, bits, weights)
    count, _ = measure.compiled(tally.agreements, bits, votes[0])
    measure.check_equal("tally", program(bits, weights), decode(votes, weights))
    measure.check_equal(
        "agreements", count(bits, votes[0]), tally.agreements(votes, votes[0])
    )
    decoded = votes[0]
    del votes
    array = jnp.zeros((num_workers * coordinates // 4,), jnp.float32)
    times = measure.interleaved(
        {
            "copy": measure.copy_pass(array),
            "tally": lambda: program(bits, weights),
            "agreements": lambda: count(bits, decoded),
        }
    )
    return {
        "num_workers": num_workers,
        "num_coordinates": coordinates,
        **{name: time.summary() for name, time in times.items()},
        "tally_over_copy": measure.ratio(times["tally"], times["copy"]),
        "agreements_over_copy": measure.ratio(times["agreements"], times["copy"]),
    }


def exponent(sizes, seconds) -> float | None:
    """Exponent of the power of the size that fits the seconds best."""
    if len(set(sizes)) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def main(options: Options) -> None:
    """Measure what the options say, print it, and write it."""
    if options.one is not None:
        workers, features, decoder = options.one.split("/")
        found = measure_one(
            int(workers), int(features), decoder, options.rounds, options.chunk
        )
        print(json.dumps(found))
        return
    check_chunks()
    # A process inherits the peak of the one that starts it: what needs memory here is
    # measured last.
    first, *others = options.features
    sizes = [(workers, first) for workers in options.workers]
    sizes += [(options.workers_of_features, features) for features in others]
    rounds = []
    for decoder in options.decoders:
        for workers, features in sizes:
            one = f"{workers}/{features}/{decoder}"
            command = [sys.executable, "-m", "benchmarks.population", "--one", one]
            command += ["--rounds", str(options.rounds), "--chunk", str(options.chunk)]
            said = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True
            )
            rounds.append(found := json.loads(said.stdout.splitlines()[-1]))
            print(
                f"{decoder:20} M {workers:>9,}  N {found['num_coordinates']:>7,}  "
                f"{found['median_s']:8.3f} s, {found['gradients_s']:.3f} s of them the "
                f"gradients  {found['workers_per_s']:>9,.0f} workers/s"
                f"  {found['peak_bytes'] / 2**30:6.2f} GiB"
            )
    exponents = {}
    for decoder in options.decoders:
        mine = [found for found in rounds if found["decoder"] == decoder]
        by_m = [f for f in mine if f["num_coordinates"] == CLASSES * (first + 1)]
        by_n = [f for f in mine if f["num_workers"] == options.workers_of_features]
        exponents[decoder] = {
            key: exponent([f[key] for f in some], [f["median_s"] for f in some])
            for key, some in (("num_workers", by_m), ("num_coordinates", by_n))
        }
        print(f"{decoder}: exponents {exponents[decoder]}")
    tallied = measure_tally(options.tally)
    print(
        f"packed tally, {options.tally}: {tallied['tally_over_copy']['median']:.2f} "
        "copies of a byte a vote"
    )
    if options.json is not None:
        result = {"tally": tallied, "rounds": rounds, "exponents": exponents}
        measure.write_section(options.json, "population", result)


if __name__ == "__main__":
    with console.steady():  # results are kept, wherever they are printed
        main(tyro.cli(Options, description=__doc__))

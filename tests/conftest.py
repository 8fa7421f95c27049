"""How every test runs: strict dtypes and ranks, eight CPU devices, no hidden caches."""

import gc
import os
from importlib import metadata

# For the subprocesses that tests start; and for this one, if JAX is not yet imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Most tests run each program once: compiling it quickly saves three quarters of their
# time. What users get is compiled with `XLA_FLAGS=` in the environment.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"  # splitting costs more than it saves
    + (
        " --xla_cpu_use_fusion_emitters=false"
        if metadata.version("jaxlib").startswith("0.10.")  # it exits over unknown flags
        else ""
    ),
)

import hypothesis
import jax
import jaxtyping
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_traceback_in_locations_limit", 0)  # nobody reads them
# Programs are compiled anew, unless a folder for them is named: the runs of one tree
# that CI makes share it. So it is for the commands that tests start.
COMPILED = os.environ.setdefault("SIGNFD_COMPILED", "")
jax.config.update("jax_enable_compilation_cache", bool(COMPILED))
if COMPILED:
    jax.config.update("jax_compilation_cache_dir", COMPILED)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

hypothesis.settings.register_profile(
    "signfd_jax",
    deadline=None,  # the first example compiles
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("signfd_jax")


def pytest_collection_finish():
    """What was imported and collected stays: the garbage collector need not look.

    Nor so often at what is traced: that saves a fifteenth of all time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture
def key():
    """A JAX key, the same in every run."""
    return jax.random.key(0)


@pytest.fixture
def without_beartype():
    """The functions as users have them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def linear_regression():
    """A function that trains it while the first workers invert, and gives the losses.

    It takes a transformation of the gradients, and what is known of the workers.
    """
    from signfd_jax import attacks, simulate  # not before the options above are set

    truth = jax.numpy.arange(1.0, 6.0)

    def loss_fn(params, batch):
        inputs, labels = batch
        return jax.numpy.mean(jax.numpy.square(inputs @ params - labels))

    def losses(tx, num_workers, num_byzantine, rounds=150, **known):
        def sample_batch(key):
            inputs = jax.random.normal(key, (num_workers, 16, 5))
            return inputs, jax.numpy.einsum("mbn,n->mb", inputs, truth)

        sim = simulate.simulation(
            loss_fn,
            optax.chain(tx, optax.scale_by_learning_rate(0.05)),
            num_workers=num_workers,
            attack=attacks.sign_inversion(),
        )
        byzantine = jax.numpy.arange(num_workers) < num_byzantine
        state = sim.init(jax.random.key(0), jax.numpy.zeros(5), byzantine)
        return simulate.run(sim, state, sample_batch, rounds, **known)[1].loss

    return losses


@pytest.fixture
def split_over_devices():
    """A function that jits a decoder for coordinates split over four devices."""

    def split(decoder, state_specs):
        mesh = jax.make_mesh((4,), ("slice",), axis_types=(AxisType.Auto,))
        return jax.jit(
            jax.shard_map(
                lambda state, votes: decoder.decode(state, votes, axis_name="slice"),
                mesh=mesh,
                in_specs=(state_specs, P(None, "slice")),
                out_specs=(P("slice"), state_specs, P()),
            )
        )

    return split


@pytest.fixture
def specs_by_slice():
    """A function that splits a state's arrays `[M, N]` by coordinate, and no other."""

    def specs(state):
        return jax.tree.map(
            lambda leaf: P(None, "slice") if leaf.ndim == 2 else P(), state
        )

    return specs

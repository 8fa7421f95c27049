"""Any sequence of rounds, whoever is absent or lies: each decoder survives it.

Hypothesis plays the workers. It draws the rounds one after the other, and where a round
breaks a promise, prints the shortest sequence of rounds that does.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import signfd_jax as sfd
from signfd_jax.decoders import released_code
from signfd_jax.experiments.registry import DECODERS

M, SHAPES = 5, {"a": (3, 4), "b": (9,)}
PARAMS = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
# Every decoder that has a name, and the others that behave otherwise soon enough.
CASES = {name: make() for name, make in DECODERS.items()} | {
    "own weights from round 2": sfd.federated_defense(2),
    "forgets": sfd.federated_defense(2, forgetting=0.3),
    "counters that fill up": sfd.federated_defense(1, counter_dtype="int8"),
    "pooled for ever": sfd.federated_defense(None, forgetting=0.9),
    "anchored": sfd.federated_defense(2, leave_own_out=True, anchor=True),
    "released code": released_code(2),
    "votes at first": sfd.federated_voting(2),
    "samples coordinates": sfd.correlation_defense(sample=8),
    "a committee of three": sfd.correlation_defense(committee=3, sample=8),
    "told the truth": sfd.oracle(jnp.linspace(0, 1, M)),
}

masks = st.lists(st.booleans(), min_size=M, max_size=M).map(np.array)


def stacked(leaf_of):
    """The tree of votes `[M, ...]` made leaf by leaf."""
    return {name: leaf_of((M, *shape)) for name, shape in SHAPES.items()}


def by_worker(mask, leaf):
    return mask.reshape(-1, *(1,) * (leaf.ndim - 1))


class Rounds(RuleBasedStateMachine):
    """A server and its workers; `decoder` and `decode` are set by the test."""

    decoder: sfd.Decoder
    decode = None

    @initialize()
    def start(self):
        self.state = self.decoder.init(M, PARAMS)
        self.truth = stacked(lambda shape: np.ones(shape, np.int8))

    def play(self, votes):
        before = self.state
        votes = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.int8), votes)
        decoded, self.state, info = self.decode(before, votes)
        decoded = jax.tree.map(np.asarray, decoded)
        for name, shape in SHAPES.items():
            assert decoded[name].dtype == jnp.int8
            assert decoded[name].shape == shape
            assert np.isin(decoded[name], (-1, 0, 1)).all()
        said = {f: v for f, v in info._asdict().items() if v is not None}
        for field, values in said.items():
            assert np.isfinite(values).all(), f"info.{field} is {values}"
        assert ((info.crossover >= 0) & (info.crossover <= 1)).all()
        assert 0 <= info.margin <= 1
        assert jax.tree.structure(self.state) == jax.tree.structure(before)
        return decoded

    @rule(
        seed=st.integers(0, 2**16),
        crossover=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
        abstain=st.sampled_from([0.0, 0.3, 0.9]),
        absent=masks,
        negated=masks,
    )
    def some_round(self, seed, crossover, abstain, absent, negated):
        """Noisy votes on one truth; some workers are away, some send them reversed."""
        rng = np.random.default_rng(seed)

        def leaf(shape):
            truth = rng.choice([-1, 1], shape[1:])
            votes = np.where(rng.random(shape) < crossover, -truth, truth)
            votes = np.where(rng.random(shape) < abstain, 0, votes)
            votes = np.where(by_worker(negated, votes), -votes, votes)
            return np.where(by_worker(absent, votes), 0, votes)

        self.play(stacked(leaf))

    @rule(seed=st.integers(0, 2**16), copies=masks)
    def colluders(self, seed, copies):
        """Some workers send the same random bits."""
        rng = np.random.default_rng(seed)

        def leaf(shape):
            own, common = rng.choice([-1, 1], shape), rng.choice([-1, 1], shape[1:])
            return np.where(by_worker(copies, own), common, own)

        self.play(stacked(leaf))

    @rule(
        seed=st.integers(0, 2**16),
        bad=st.lists(
            st.sampled_from([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -3e38]),
            min_size=M,
            max_size=M,
        ),
        where=masks,
    )
    def bad_gradients(self, seed, bad, where):
        """Whole rows of what no gradient should be; cast as the library casts them."""
        rng = np.random.default_rng(seed)

        def leaf(shape):
            gradients = rng.normal(size=shape).astype(np.float32)
            rows = by_worker(np.float32(bad), gradients)
            return jnp.asarray(np.where(by_worker(where, gradients), rows, gradients))

        self.play(sfd.votes(stacked(leaf)))

    @rule()
    def nobody(self):
        """Where nobody votes, nothing is decided."""
        decoded = self.play(stacked(np.zeros))
        assert all((leaf == 0).all() for leaf in decoded.values())

    @rule(worker=st.integers(0, M - 1), sign=st.sampled_from([-1, 1]))
    def one_voice(self, worker, sign):
        """The only one that votes decides, is read backwards, or is not heard."""

        def leaf(shape):
            votes = np.zeros(shape)
            votes[worker] = sign
            return votes

        shares_weights = isinstance(self.decoder.weights(self.state), jax.Array)
        decoded = self.play(stacked(leaf))
        if shares_weights:
            signs = np.concatenate([leaf.ravel() for leaf in decoded.values()])
            assert (signs == signs[0]).all()

    @invariant()
    def finite(self):
        weights = jax.tree.leaves(self.decoder.weights(self.state))
        for leaf in weights + jax.tree.leaves(self.state):
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                assert np.isfinite(leaf).all(), leaf


IN_DEFAULT_SET = ("correlation_defense", "federated_defense", "majority_vote")


@pytest.mark.parametrize(
    "name",
    [
        name if name in IN_DEFAULT_SET else pytest.param(name, marks=pytest.mark.slow)
        for name in CASES
    ],
)
def test_any_sequence_of_rounds(name):
    decoder = CASES[name]

    class Machine(Rounds):
        pass

    Machine.decoder, Machine.decode = decoder, staticmethod(jax.jit(decoder.decode))
    case = Machine.TestCase
    case.settings = settings(max_examples=8, stateful_step_count=12)
    case("runTest").runTest()


def test_a_broken_decoder_is_found():
    """A share of nothing is NaN: the machine must find the silent round."""
    good = sfd.majority_vote()

    def decode(state, votes):
        decoded, state, info = good.decode(state, votes)
        counted = sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(votes))
        share = counted.astype(jnp.float32) / counted.astype(jnp.float32)
        return decoded, state._replace(mv_weights=state.mv_weights * share), info

    class Machine(Rounds):
        pass

    Machine.decoder, Machine.decode = good, staticmethod(jax.jit(decode))
    Machine.TestCase.settings = settings(max_examples=50, stateful_step_count=5)
    with pytest.raises(AssertionError):
        Machine.TestCase("runTest").runTest()

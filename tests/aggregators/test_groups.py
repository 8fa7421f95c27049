"""Votes within groups that share their batches: against loops, and their promise."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from signfd_jax import aggregators, decoders
from signfd_jax.data import batches, load, partition
from signfd_jax.experiments import Experiment, registry
from signfd_jax.experiments._engine.prepare import prepare
from signfd_jax.experiments._engine.program_sharded import prepare_sharded

M, D, R = 11, 6, 3  # the last group has two
DIGITS = load("digits")


def slow_group_vote(rows):
    """The row that is counted most often, of several the first."""
    groups = [rows[start : start + R] for start in range(0, len(rows), R)]
    winners = [collections.Counter(map(tuple, g)).most_common(1)[0][0] for g in groups]
    return np.array(winners)


def rows_of(seed):
    """Of few different values, so that some are sent twice."""
    return np.random.default_rng(seed).integers(0, 2, (M, D))[:, :2].astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_group_vote_and_draco_are_what_counting_gives(seed):
    rows = rows_of(seed)
    winners = slow_group_vote(rows)
    np.testing.assert_array_equal(aggregators.group_vote(jnp.asarray(rows), R), winners)
    np.testing.assert_allclose(
        aggregators.draco(jnp.asarray(rows), R), winners.mean(0), rtol=1e-6
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_lose(bad):
    rows = np.ones((6, D), np.float32)
    rows[0] = rows[3, 1] = bad
    np.testing.assert_array_equal(
        aggregators.group_vote(jnp.asarray(rows), R), np.ones((2, D))
    )
    rows[4:] = np.nan  # and none of this group is left
    np.testing.assert_array_equal(aggregators.draco(jnp.asarray(rows), R), np.ones(D))


@pytest.mark.parametrize("seed", range(5))
def test_election_is_what_counting_gives(seed):
    rng = np.random.default_rng(seed)
    votes = rng.integers(-1, 2, (M, 20)).astype(np.int8)
    decoder = decoders.election(R)
    shaped = {"a": jnp.asarray(votes[:, :8]), "b": jnp.asarray(votes[:, 8:])}
    decoded, _, info = decoder.decode(decoder.init(M, jnp.zeros(20)), shaped)
    flat = np.concatenate([np.asarray(decoded["a"]), np.asarray(decoded["b"])])
    for n in range(20):
        groups = [votes[start : start + R, n] for start in range(0, M, R)]
        elected = [np.sign(sum(map(int, group))) for group in groups]
        assert flat[n] == np.sign(sum(elected))
    lost = np.sum(votes * flat < 0, axis=1)
    counted = np.sum(votes * flat != 0, axis=1)
    np.testing.assert_allclose(info.crossover, (lost + 1) / (counted + 2), rtol=1e-6)


@pytest.mark.parametrize("augment", [False, True])
def test_groups_draw_the_same_batches_and_others_do_not(augment):
    digits = DIGITS
    split = partition.replicated(digits.train_labels, M, R)
    sample_batch = jax.jit(batches.worker_batches(digits, split, 4, augment=augment))
    inputs, labels = map(np.asarray, sample_batch(jax.random.key(0)))
    for m in range(M):
        first = m - m % R
        np.testing.assert_array_equal(inputs[m], inputs[first])
        np.testing.assert_array_equal(labels[m], labels[first])
        assert m == first or (inputs[m] != inputs[(first + R) % 9]).any()
    # Groups of one are the plain split, whose draws are each worker's own.
    plain = partition.iid(digits.train_labels, M)
    alone = partition.replicated(digits.train_labels, M, 1)
    key = jax.random.key(1)
    grouped = batches.worker_indices(split, 4)(key)
    np.testing.assert_array_equal(grouped[0], grouped[R - 1])
    np.testing.assert_array_equal(
        batches.worker_indices(alone, 4)(key), batches.worker_indices(plain, 4)(key)
    )


# At most one liar in each group of three: the honest are two of three, everywhere.
SPREAD = (0, 4)
RUN = Experiment(
    split="replicated:3",
    num_workers=9,
    rounds=3,
    eval_every=3,
    model="softmax_regression",
)


@pytest.mark.parametrize(
    ("decoder", "options"),
    [
        ("election:3", {}),
        pytest.param("draco:3", {}, marks=pytest.mark.slow),
        pytest.param("detox:3,rule=mean", {}, marks=pytest.mark.slow),
        pytest.param(
            "election:3",
            {"trusted": 3, "root_examples": 9, "withheld": ("trusted",)},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_minority_of_each_group_changes_nothing(decoder, options):
    """From names to parameters: the same tests as without an attack, to the bit."""

    def losses(**changes):
        config = dataclasses.replace(RUN, decoder=decoder, **options, **changes)
        return [metrics.test_loss for _, metrics, _ in prepare(config, DIGITS).tests]

    honest = losses(attack="none")
    attacked = losses(attack="sign_inversion", byzantine_ids=SPREAD)
    np.testing.assert_array_equal(attacked, honest)


@pytest.mark.slow
def test_groups_on_many_devices_are_those_of_one():
    """A group may lie on two devices: its workers draw the same batches there."""
    config = dataclasses.replace(
        RUN, decoder="election:3", wire="one_bit", num_workers=8
    )
    one, other = (
        [metrics for _, metrics, _ in make(config, DIGITS).tests]
        for make in (prepare, prepare_sharded)
    )
    np.testing.assert_allclose(other[-1].test_loss, one[-1].test_loss, rtol=1e-5)
    np.testing.assert_allclose(other[-1].crossover, one[-1].crossover, rtol=1e-5)


def test_detox_tells_its_rule_how_many_groups_liars_can_hold():
    """Five of 15 hold at most two groups of three; Krum needs five groups for one."""
    make = registry.SERVERS["detox"]
    make(15, actual_byzantine=2, num_byzantine=3, rule="krum")
    with pytest.raises(ValueError, match="krum needs M > 2f"):
        make(15, actual_byzantine=2, num_byzantine=5, rule="krum")
    with pytest.raises(ValueError, match="unknown rule 'kum'"):
        make(15, actual_byzantine=2, rule="kum")

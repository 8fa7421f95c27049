"""A GPU gives what the CPU gives: counts bit for bit, the rest up to rounding.

It takes a GPU with the CPU beside it: `JAX_PLATFORMS=cuda,cpu python -m pytest -m gpu`.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import signfd_jax as sfd
from signfd_jax import attacks, signs
from signfd_jax.aggregators import RULES
from signfd_jax.signs import _tally as tally
from signfd_jax.signs import packed
from signfd_jax.signs._products import row_products

pytestmark = pytest.mark.gpu

M, ROUNDS = 15, 8
PARAMS = {"w": jnp.zeros((300, 7)), "b": jnp.zeros(90)}
LIARS = jnp.arange(M) >= 9

DECODERS = {
    "majority vote": sfd.majority_vote(),
    "federated defense": sfd.federated_defense(initial_rounds=3),
    "int8 counters": sfd.federated_defense(initial_rounds=3, counter_dtype="int8"),
    "forgetting": sfd.federated_defense(initial_rounds=3, forgetting=0.9),
    "leave own out": sfd.federated_defense(leave_own_out=True, anchor=True),
    "federated voting": sfd.federated_voting(initial_rounds=3),
    "correlation defense": sfd.correlation_defense(),
    "correlations of a sample": sfd.correlation_defense(sample=512),
    "a committee": sfd.correlation_defense(committee=5),
    "Dawid-Skene": sfd.dawid_skene(),
    "oracle": sfd.oracle(jnp.linspace(0.1, 0.9, M)),
}


@pytest.fixture(scope="module")
def both():
    """A function that runs another one on the GPU and on the CPU, jitted."""
    try:
        devices = jax.devices("gpu")[0], jax.devices("cpu")[0]
    except RuntimeError as error:
        pytest.skip(f"no GPU beside the CPU: {error}")

    def run(function, *arguments):
        return [
            jax.device_get(jax.jit(function)(*jax.device_put(arguments, device)))
            for device in devices
        ]

    return run


def gradients_of(key, params=PARAMS, num_workers=M):
    """Gradients with a common part; the last workers turn theirs round."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, (len(leaves), 2))

    def leaf(keys, param):
        common = jax.random.normal(keys[0], (1, *param.shape))
        noise = jax.random.normal(keys[1], (num_workers, *param.shape))
        lying = 5 * jnp.arange(num_workers) >= 3 * num_workers
        sign = jnp.where(lying, -1.0, 1.0).reshape(-1, *[1] * param.ndim)
        return sign * (common + noise)

    return jax.tree.unflatten(treedef, list(map(leaf, keys, leaves)))


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_learn_the_same(both, name):
    decoder = DECODERS[name]

    def rounds(state, key):
        def one(state, key):
            votes = sfd.votes(gradients_of(key))
            decoded, state, info = decoder.decode(state, votes)
            return state, (decoded, info)

        return jax.lax.scan(one, state, jax.random.split(key, ROUNDS))

    start = decoder.init(M, PARAMS)
    (_, gpu), (_, cpu) = both(rounds, start, jax.random.key(0))
    # Rounding of the weights may tip a vote that is all but a tie; one of N = 2190
    # decoded signs moves a crossover p by 1/N, and its LLR by 1/(N p (1 - p)).
    chex.assert_trees_all_close(gpu[1], cpu[1], rtol=5e-3, atol=5e-3)
    for found, expected in zip(
        jax.tree.leaves(gpu[0]), jax.tree.leaves(cpu[0]), strict=True
    ):
        assert np.mean(found != expected) < 1e-3


def test_what_is_counted_is_the_same_bit_for_bit(both):
    def count(key, weights):
        votes = sfd.votes(gradients_of(key))
        bits = packed.pack_ternary(votes)
        voted = tally.vote_tree(votes, weights, largest=2.0)
        decoded = voted.decoded
        return {
            "votes": votes,
            "bits": bits,
            "decoded": decoded,
            "decoded from bits": tally.vote_tree(bits, weights, largest=2.0).decoded,
            "agreements": tally.count_agreements(votes, decoded),
            "agreements of bits": tally.count_agreements(bits, decoded),
            "wire": signs.to_wire(votes, jnp.int32(3)),
        }

    gpu, cpu = both(count, jax.random.key(1), jnp.linspace(-1.0, 2.0, M))
    chex.assert_trees_all_equal(gpu, cpu)
    chex.assert_trees_all_equal(gpu["decoded"], gpu["decoded from bits"])
    chex.assert_trees_all_equal(gpu["agreements"], gpu["agreements of bits"])
    rows = np.concatenate([leaf.reshape(M, -1) for leaf in gpu["votes"].values()], 1)
    decoded = np.concatenate([leaf.reshape(-1) for leaf in gpu["decoded"].values()])
    outcomes = rows.astype(int) * decoded.astype(int)
    assert gpu["agreements"][0].tolist() == (outcomes > 0).sum(1).tolist()


def test_products_of_any_length(both):
    """XLA doubles some that are short (jax 0.11.2, H200)."""
    lengths = [1, 2, 3, 4, 7, 15, 59, 90, 127, 129, 255, 257, 1001]

    def products(key):
        rows = jax.random.randint(key, (5, max(lengths)), -127, 128, jnp.int8)
        return rows, [row_products(rows[:, :n], rows[:, :n]) for n in lengths]

    (rows, gpu), _ = both(products, jax.random.key(7))
    rows = rows.astype(int)
    for length, found in zip(lengths, gpu, strict=True):
        expected = rows[:, :length] @ rows[:, :length].T
        np.testing.assert_array_equal(found, expected, err_msg=str(length))


@pytest.mark.parametrize("wire", ["ternary", "one_bit"])
@pytest.mark.parametrize("decoder", ["majority_vote", "correlation_defense"])
def test_chunked_is_whole(both, decoder, wire):
    """Two hundred workers, twenty at a time."""
    num_workers = 200

    def rounds(worker_chunk, key):
        simulation = sfd.simulation(
            lambda params, batch: jnp.mean((params["w"][None] - batch) ** 2),
            sfd.sign_sgd(0.1, num_workers, decoder=getattr(sfd, decoder)()),
            num_workers=num_workers,
            attack=attacks.sign_inversion(),
            wire=wire,
            worker_chunk=worker_chunk,
        )
        start = simulation.init(
            jax.random.key(0), {"w": jnp.zeros(33)}, jnp.arange(num_workers) % 5 < 2
        )
        draw = lambda key: 1 + jax.random.normal(key, (num_workers, 1, 33))  # noqa: E731
        return sfd.run(simulation, start._replace(key=key), draw, 10)[0].params

    key = jax.random.key(2)
    whole = both(functools.partial(rounds, None), key)
    chunked = both(functools.partial(rounds, 20), key)
    chex.assert_trees_all_equal(whole[0], chunked[0])
    chex.assert_trees_all_close(whole[0], whole[1], atol=0.11)  # a vote may be tipped


@pytest.mark.parametrize("name", RULES)
def test_rules_keep_their_digits(both, name):
    """Products in TensorFloat-32 would keep three."""
    rule = RULES[name](3, jax.random.key(0))
    rows = gradients_of(jax.random.key(3))["w"].reshape(M, -1)

    def aggregate(rows):
        state = rule.init(*rows.shape, rows.dtype)
        return rule.aggregate(state, rows)[0]

    gpu, cpu = both(aggregate, rows)
    np.testing.assert_allclose(gpu, cpu, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "attack",
    [
        attacks.alie(),
        attacks.min_max(),
        attacks.min_sum(),
        attacks.fang(),
        attacks.mimic(),
        attacks.stochastic_sign_flip(0.5),
        attacks.random_collusion(),
    ],
    ids=["alie", "min_max", "min_sum", "fang", "mimic", "flip", "collusion"],
)
def test_attacks_send_the_same(both, attack):
    def send(key, gradients):
        state = attack.init(M, PARAMS)
        context = attacks.AttackContext(jnp.int32(5), None)
        return attack.apply(key, gradients, LIARS, context, state)[0]

    gpu, cpu = both(send, jax.random.key(4), gradients_of(jax.random.key(5)))
    chex.assert_trees_all_close(gpu, cpu, rtol=1e-3, atol=1e-4)


def test_training_in_an_optax_chain(both):
    """The whole of it in one scan: the parameters end where the data say.

    Steps of .05 keep each .15 away from it, as the noise will: over 300 keys, the root
    of the mean square of 20 parameters was .147, and never above .283.
    """
    tx = optax.chain(
        sfd.scale_by_sign_decoder(M),
        optax.add_decayed_weights(1e-4),
        optax.scale_by_learning_rate(0.05),
    )

    def train(key):
        def one(carry, key):
            params, state = carry
            noise = jax.random.normal(key, (M, 20))
            gradients = params[None] - 1.0 + noise
            gradients = jnp.where(LIARS[:, None], -gradients, gradients)
            updates, state = tx.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = jnp.zeros(20)
        keys = jax.random.split(key, 100)
        return jax.lax.scan(one, (start, tx.init(start)), keys)[0][0]

    gpu, cpu = both(train, jax.random.key(6))
    np.testing.assert_allclose(gpu, cpu, atol=1e-3)
    assert np.sqrt(np.mean(np.square(gpu - 1))) < 0.3

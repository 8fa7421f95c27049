"""Reference mode against traces of the released code, and its pseudocode."""

import ast
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import signfd_jax as sfd
from signfd_jax.decoders import released_code

GOLDEN = Path(__file__).parents[1] / "golden"


def split_tree(flat, shapes):
    """Flat `[..., N]` as the leaves `shapes`, whose ravelled concatenation it is."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    parts = np.split(flat, ends[:-1], axis=-1)
    assert ends[-1] == flat.shape[-1]
    return [
        jnp.asarray(part.reshape(*flat.shape[:-1], *shape))
        for part, shape in zip(parts, shapes, strict=True)
    ]


def run_tree(decoder, votes, num_workers):
    """Decode leaves `[T, M, ...]`; flat decoded `[T, N]`, weights, infos, the state."""

    def one(state, vote):
        weights = decoder.weights(state)
        decoded, state, info = decoder.decode(state, vote)
        return state, (decoded, weights, info)

    scan = jax.jit(lambda state, votes: jax.lax.scan(one, state, votes))
    params = [jax.ShapeDtypeStruct(vote.shape[2:], jnp.float32) for vote in votes]
    state, (decoded, weights, info) = scan(decoder.init(num_workers, params), votes)
    rounds = len(votes[0])
    decoded = np.concatenate([np.reshape(d, (rounds, -1)) for d in decoded], axis=1)
    if isinstance(weights, list):
        weights = [np.reshape(w, (rounds, num_workers, -1)) for w in weights]
        weights = np.concatenate(weights, axis=2)
    return decoded, weights, info, state


def load(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


SPLITS = {
    "recorded": None,
    "flat": [(19,)],
    "uneven": [(), (1, 2, 1), (0,), (7, 2), (2,)],
}


@pytest.mark.parametrize("name", ["fd_clean", "fd_sign_inversion", "fd_zeros"])
@pytest.mark.parametrize("split", SPLITS)
def test_golden_traces(name, split):
    trace = load(name)
    recorded = [ast.literal_eval(shape) for shape in trace["shapes"].tolist()]
    shapes = SPLITS[split] or recorded
    decoder = released_code(
        initial_rounds=int(trace["initial_rounds"]),
        max_llr=float(trace["max_llr"]),
        forgetting=float(trace["forgetting"]),
    )
    gradients = trace["gradients"]
    votes = sfd.votes(split_tree(gradients, shapes))
    decoded, weights, infos, _ = run_tree(decoder, votes, gradients.shape[1])
    np.testing.assert_array_equal(decoded, trace["decoded"])
    np.testing.assert_allclose(weights, trace["weights"], atol=1e-4)
    mean = trace["weights"].mean(axis=2)
    np.testing.assert_allclose(infos.weights, mean, atol=1e-4)


def test_golden_majority_vote():
    trace = load("mv")
    decoder = sfd.majority_vote()
    votes = sfd.votes(split_tree(trace["gradients"], SPLITS["uneven"]))
    decoded, _, _, _ = run_tree(decoder, votes, trace["gradients"].shape[1])
    np.testing.assert_array_equal(decoded, trace["decoded"])
    assert np.any(trace["decoded"] == 0)  # M is even: there are ties.


@pytest.mark.parametrize("forgetting", [1.0, 0.9, 0.5])
def test_pseudocode_with_forgetting(forgetting):
    """Line by line what algorithm.md reads in the released code, in NumPy."""
    epsilon, max_llr, initial_rounds, rounds = 1e-5, 10.0, 12, 40
    rng = np.random.default_rng(0)
    truth = rng.choice([-1, 1], (rounds, 1, 31))
    crossover = np.array([0.1, 0.2, 0.3, 0.3, 0.4, 0.9])[:, None]
    wrong = rng.random((rounds, 6, 31)) < crossover
    votes = np.where(wrong, -truth, truth) * (rng.random((rounds, 6, 31)) < 0.8)
    votes = votes.astype(np.int8)
    decoder = released_code(initial_rounds, max_llr, forgetting)
    split = split_tree(votes, [(5, 6), ()])
    decoded, weights, infos, _ = run_tree(decoder, split, 6)
    agree, total, unclear = np.zeros((6, 31)), np.zeros((6, 31)), 0
    for r in range(rounds):
        if r == 0:
            w = np.ones((6, 31))
        else:
            if r < initial_rounds:
                q = np.repeat(agree.sum(axis=1, keepdims=True) / (31 * r), 31, axis=1)
            else:
                q = agree / (total + epsilon)
            w = np.log((q + epsilon) / (1 - q + epsilon)).clip(-max_llr, max_llr)
        # Steep at q = 0 and 1, where float32 carries 1e-7 / epsilon of the logarithm.
        np.testing.assert_allclose(weights[r], w, atol=2e-2)
        np.testing.assert_allclose(weights[r][abs(w) < 7], w[abs(w) < 7], atol=1e-3)
        tally = np.sum(w * votes[r], axis=0)
        clear = (np.abs(tally) > 0.1) | np.all(votes[r] == 0, axis=0)
        np.testing.assert_array_equal(decoded[r, clear], np.sign(tally)[clear])
        unclear += np.sum(~clear)
        agree = forgetting * agree + (decoded[r] == votes[r])
        total = forgetting * total + 1
        np.testing.assert_allclose(
            infos.crossover[r], 1 - (agree / total).mean(axis=1), atol=1e-5
        )
    assert unclear < 0.15 * decoded.size  # Ties of the majority vote, above all.


def test_a_tie_of_every_weight_is_no_nan():
    """One agreement in two rounds: every weight is ln(1) = 0, as in the released code.

    Then nobody is heard, and nothing is ever decided again; but nothing is NaN.
    """
    decoder = released_code(100)
    votes = np.array([[[1], [1], [-1], [-1]], [[1], [1], [1], [1]]], np.int8)
    _, weights, infos, state = run_tree(decoder, [jnp.asarray(votes)], 4)
    assert np.all(np.isfinite(weights)) and np.all(np.isfinite(infos.margin))
    np.testing.assert_array_equal(infos.margin[0], 0)  # No coordinate was decided.
    for leaf in jax.tree.leaves(state):
        assert np.all(np.isfinite(leaf))
    half = state._replace(rc_agreed=[jnp.ones((4, 1))], rc_agreed_share=jnp.ones(4))
    decoded, _, info = decoder.decode(half, [jnp.asarray(votes[1])])
    np.testing.assert_array_equal(decoder.weights(half)[0], np.zeros((4, 1)))
    np.testing.assert_array_equal(decoded[0], [0])
    assert float(info.margin) == 0


def test_margin_is_over_the_coordinates_that_did_not_tie():
    decoder = released_code(100)
    votes = np.array([[[1, 1, 0], [1, -1, 0], [1, 0, 0], [-1, 0, 0]]], np.int8)
    _, _, infos, _ = run_tree(decoder, [jnp.asarray(votes)], 4)
    assert float(infos.margin[0]) == pytest.approx(0.5)

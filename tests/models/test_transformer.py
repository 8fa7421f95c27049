"""The transformer by loops over its formula; loss and test of what has many labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from signfd_jax import models

SMALL = models.Transformer(width=6, layers=2, heads=3, vocabulary=9, num_classes=7)


@pytest.fixture
def texts(key):
    """Tokens `[5, 4]`, labels, and parameters that are nowhere zero."""
    tokens = jax.random.randint(key, (5, 4), 0, 9)
    labels = jax.random.randint(jax.random.fold_in(key, 1), (5, 4), 0, 7)
    leaves, structure = jax.tree.flatten(jax.jit(SMALL.init)(key, tokens))
    keys = jax.random.split(key, len(leaves))
    noisy = [
        x + jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)
    ]
    return tokens, labels, jax.tree.unflatten(structure, noisy)


def normalised(x, params):
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6)
    return x * params["scale"] + params["bias"]


def attended(x, params):
    """Each position's sum over itself and those before it, head by head."""
    query, key, value = (
        np.einsum("td,dhk->thk", x, params[part]["kernel"]) + params[part]["bias"]
        for part in ("query", "key", "value")
    )
    out = np.zeros(x.shape) + params["out"]["bias"]
    for position in range(len(x)):
        for head in range(3):
            scores = [query[position, head] @ key[s, head] for s in range(position + 1)]
            weights = np.exp(np.array(scores) / np.sqrt(2))
            seen = (weights / weights.sum()) @ value[: position + 1, head]
            out[position] += seen @ params["out"]["kernel"][head]
    return out


def dense(x, params):
    return x @ params["kernel"] + params["bias"]


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_logits_are_their_definition(texts):
    tokens, _, params = texts
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)["params"]
    logits = jax.jit(SMALL.apply)(params, tokens)
    for row, found in zip(tokens, logits, strict=True):
        x = p["Embed_0"]["embedding"][row] + p["positions"][0]
        for layer in range(2):
            y = normalised(x, p[f"LayerNorm_{2 * layer}"])
            x = x + attended(y, p[f"MultiHeadDotProductAttention_{layer}"])
            y = normalised(x, p[f"LayerNorm_{2 * layer + 1}"])
            y = gelu(dense(y, p[f"Dense_{2 * layer}"]))
            x = x + dense(y, p[f"Dense_{2 * layer + 1}"])
        wanted = dense(normalised(x, p["LayerNorm_4"]), p["Dense_4"])
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_token_changes_nothing_before_it(texts):
    tokens, _, params = texts
    apply = jax.jit(SMALL.apply)
    logits = np.asarray(apply(params, tokens))
    for position in range(4):
        other = tokens.at[:, position].set((tokens[:, position] + 1) % 9)
        changed = np.asarray(apply(params, other))
        np.testing.assert_array_equal(changed[:, :position], logits[:, :position])
        assert (abs(changed[:, position] - logits[:, position]).max(axis=-1) > 0).all()


def test_a_token_beyond_the_vocabulary_is_no_number(texts):
    tokens, _, params = texts
    logits = jax.jit(SMALL.apply)(params, tokens.at[0, 2].set(9))
    assert np.isnan(logits[0]).all()
    assert np.isfinite(logits[1:]).all()


@pytest.mark.parametrize(
    ("model", "inputs", "says"),
    [
        (SMALL, jnp.zeros((1, 4)), "int32 .N, T., but got float32"),
        (SMALL, jnp.zeros((1, 4, 4), jnp.int32), r"of shape \(1, 4, 4\)"),
        (models.Transformer(heads=5), jnp.zeros((1, 4), jnp.int32), "are 32 and 5"),
        (models.Transformer(heads=0), jnp.zeros((1, 4), jnp.int32), "are 32 and 0"),
    ],
)
def test_refuses_what_is_no_text(model, inputs, says, key):
    with pytest.raises(ValueError, match=says):
        model.init(key, inputs)


def test_loss_and_test_count_every_label(texts):
    tokens, labels, params = texts
    logits = np.asarray(jax.jit(SMALL.apply)(params, tokens), np.float64)
    losses = np.zeros((5, 4))
    for place in np.ndindex(5, 4):
        row = logits[place]
        losses[place] = np.log(np.exp(row).sum()) - row[int(labels[place])]
    loss = jax.jit(models.loss_fn(SMALL))
    np.testing.assert_allclose(loss(params, (tokens, labels)), losses.mean(), rtol=1e-5)
    counted = jnp.array([1.0, 0, 1, 1, 0])
    np.testing.assert_allclose(
        loss(params, (tokens, labels, counted)), losses[[0, 2, 3]].mean(), rtol=1e-5
    )
    found = models.evaluate(SMALL, params, tokens, labels, batch_size=2)
    np.testing.assert_allclose(found.loss, losses.mean(), rtol=1e-5)
    right = np.mean(logits.argmax(axis=-1) == np.asarray(labels))
    np.testing.assert_allclose(found.accuracy, right, rtol=1e-6)

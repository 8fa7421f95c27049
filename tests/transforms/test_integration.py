"""The same transformation inside flax's two training loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx
from flax.training.train_state import TrainState

import signfd_jax as sfd

M, B, D = 7, 8, 6
BYZANTINE = jnp.array([True, False, False, True, False, False, False])
TARGET = jnp.array([1.0, -1.0, 0.5, 0.0, 2.0, -2.0])


def transformation():
    return optax.chain(
        sfd.scale_by_sign_fd(M, initial_rounds=20),
        optax.scale_by_learning_rate(lambda count: jnp.where(count < 60, 0.05, 0.01)),
    )


def batches():
    """One batch `([M, B, D], [M, B])` a round: a linear target and its noise."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        inputs = rng.normal(size=(M, B, D)).astype(np.float32)
        noise = 0.1 * rng.normal(size=(M, B)).astype(np.float32)
        yield jnp.asarray(inputs), jnp.asarray(inputs @ np.asarray(TARGET) + noise)


def attacked(gradients):
    lie = lambda g: jnp.where(BYZANTINE.reshape(-1, *[1] * (g.ndim - 1)), -g, g)  # noqa: E731
    return jax.tree.map(lie, gradients)


def check(kernel, opt_state, losses):
    np.testing.assert_allclose(kernel[:, 0], TARGET, atol=0.1)
    assert np.mean(losses[-10:]) < 0.05 * np.mean(losses[:10])
    info = optax.tree.get(opt_state, "info")
    np.testing.assert_array_equal(info.crossover > 0.5, BYZANTINE)
    assert int(optax.tree.get(opt_state, "sign_round")) == 100
    assert int(optax.tree.get(opt_state, "count")) == 100


def test_flax_train_state():
    model = linen.Dense(1)

    def loss_fn(params, inputs, outputs):
        predicted = model.apply({"params": params}, inputs)
        return jnp.mean((predicted[:, 0] - outputs) ** 2)

    params = model.init(jax.random.key(0), jnp.zeros((1, D)))["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=transformation())

    @jax.jit
    def round_(state, inputs, outputs):
        gradients = jax.vmap(jax.value_and_grad(loss_fn), in_axes=(None, 0, 0))
        losses, gradients = gradients(state.params, inputs, outputs)
        return state.apply_gradients(grads=attacked(gradients)), losses.mean()

    losses = []
    for inputs, outputs in batches():
        state, loss = round_(state, inputs, outputs)
        losses.append(float(loss))
    assert int(state.step) == 100
    check(state.params["kernel"], state.opt_state, losses)


def test_flax_nnx_optimizer():
    model = nnx.Linear(D, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, transformation(), wrt=nnx.Param)

    def loss_fn(model, inputs, outputs):
        return jnp.mean((model(inputs)[:, 0] - outputs) ** 2)

    @nnx.jit
    def round_(model, optimizer, inputs, outputs):
        gradients = nnx.vmap(nnx.value_and_grad(loss_fn), in_axes=(None, 0, 0))
        losses, gradients = gradients(model, inputs, outputs)
        optimizer.update(model, attacked(gradients))
        return losses.mean()

    losses = [
        float(round_(model, optimizer, inputs, outputs))
        for inputs, outputs in batches()
    ]
    check(model.kernel[...], nnx.as_pure(optimizer.opt_state), losses)

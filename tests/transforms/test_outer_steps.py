"""The change that docs/training-loop.md shows, made to a loop that drjax runs.

The loop has the shape of MaxText's: placed values have the replicas' axis in front, the
inner optimiser's state stays with its replica, the outer gradient is start minus end.
"""

import inspect
import re
import textwrap
from pathlib import Path

import chex
import drjax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import signfd_jax as sfd

PAGE = Path(__file__).parents[2] / "docs" / "training-loop.md"
M, LIARS, H, BATCH = 15, 6, 5, 16
SIZES = 20, 32, 5


def logits(params, inputs):
    hidden = jnp.tanh(inputs @ params["in"])
    return hidden @ params["out"]


def loss(params, inputs):
    """Cross-entropy with the labels of another network of this shape."""
    labels = jnp.argmax(logits(weights(9), inputs), axis=1)
    each = optax.softmax_cross_entropy_with_integer_labels(
        logits(params, inputs), labels
    )
    return each.mean()


def weights(seed):
    one, other = jax.random.split(jax.random.key(seed))
    return {
        "in": jax.random.normal(one, SIZES[:2]) / np.sqrt(SIZES[0]),
        "out": jax.random.normal(other, SIZES[1:]) / np.sqrt(SIZES[1]),
    }


inner_optimizer = optax.sgd(0.05, momentum=0.9)


def inner_step(carry, inputs):
    params, state = carry
    updates, state = inner_optimizer.update(jax.grad(loss)(params, inputs), state)
    return (optax.apply_updates(params, updates), state), None


def diloco(outer_lr, lie):
    outer_optimizer = optax.sgd(outer_lr, momentum=0.9, nesterov=True)

    def synchronize(params, opt_state, replicas):
        model_delta = jax.tree.map(jnp.subtract, drjax.broadcast(params), replicas)
        model_delta = jax.tree.map(lie, model_delta)
        averaged_pseudo_grad = drjax.reduce_mean(model_delta)
        updates, opt_state = outer_optimizer.update(
            averaged_pseudo_grad, opt_state, params
        )
        return optax.apply_updates(params, updates), opt_state

    def inner_steps(params, state, inputs):  # of one replica; inputs [H, BATCH, 20]
        (params, state), _ = jax.lax.scan(inner_step, (params, state), inputs)
        return params, state

    @drjax.program(placements={"diloco": M})
    def outer_step(params, inner_state, opt_state, inputs):
        starts = drjax.broadcast(params)
        replicas, inner_state = drjax.map_fn(inner_steps, (starts, inner_state, inputs))
        params, opt_state = synchronize(params, opt_state, replicas)
        return params, inner_state, opt_state

    return outer_optimizer, outer_step


def changed(decoder="sfd.scale_by_sign_decoder(M)"):
    """`diloco` after the change of the page, with this in the decoder's place."""
    [diff] = re.findall(r"```diff\n(.*?)```", PAGE.read_text(), re.DOTALL)
    source = textwrap.dedent(inspect.getsource(diloco)).splitlines()
    hunks = re.findall(r"((?:^- .*\n)+)((?:^\+ .*\n)+)", diff, re.MULTILINE)
    assert len(hunks) == 2
    for hunk in hunks:
        [old], new = ([line[2:] for line in part.splitlines()] for part in hunk)
        [place] = [i for i, line in enumerate(source) if line.strip() == old]
        indent = source[place][: len(source[place]) - len(old)]
        source[place : place + 1] = [indent + line for line in new]
    text = "\n".join(source)
    assert "reduce_mean" not in text
    assert text.count("sfd.scale_by_sign_decoder(M)") == 1
    names = globals() | {"sfd": sfd}
    exec(text.replace("sfd.scale_by_sign_decoder(M)", decoder), names)
    return names["diloco"]


def trained(make, outer_lr, *factors, rounds=30):
    """For each factor, that six replicas send by: parameters and loss in the end."""
    lie = jax.vmap(lambda delta, factor: factor * delta)
    outer_optimizer, _ = make(outer_lr, None)

    @jax.jit
    def step(carry, key, factors):
        _, outer_step = make(outer_lr, lambda delta: lie(delta, factors))
        return outer_step(*carry, jax.random.normal(key, (M, H, BATCH, SIZES[0])))

    def end(factor):
        factors = jnp.where(jnp.arange(M) < LIARS, factor, 1.0)
        params = weights(1)
        start = jax.tree.map(lambda leaf: jnp.stack([leaf] * M), params)
        inner_state = jax.vmap(inner_optimizer.init)(start)
        carry = params, inner_state, outer_optimizer.init(params)
        for key in jax.random.split(jax.random.key(2), rounds):
            carry = jax.block_until_ready(step(carry, key, factors))
        held_out = jax.random.normal(jax.random.key(3), (2_000, SIZES[0]))
        return carry[0], float(loss(carry[0], held_out))

    return [end(factor) for factor in factors]


@pytest.fixture(autouse=True)
def replica_axis():
    """Five devices, with three replicas on each; and dtypes as users have them."""
    mesh = jax.make_mesh(
        (5,), ("diloco",), devices=jax.devices()[:5], axis_types=(AxisType.Auto,)
    )
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.slow
def test_with_a_mean_it_is_the_loop_itself():
    """The values that a decoder gets are those that drjax takes the mean of."""
    rule = "sfd.aggregators.stateless(sfd.aggregators.mean)"
    mean = f"sfd.transforms.scale_by_aggregator({rule}, M)"
    [(found, _)] = trained(changed(mean), 0.7, 1.0, rounds=8)
    [(expected, _)] = trained(diloco, 0.7, 1.0, rounds=8)
    chex.assert_trees_all_close(found, expected, atol=1e-5)


def test_the_mean_believes_liars_and_the_decoder_does_not():
    """Six of fifteen send -2 times what they should: the mean then climbs the loss."""
    held_out = jax.random.normal(jax.random.key(3), (2_000, SIZES[0]))
    begun = float(loss(weights(1), held_out))
    of_mean = [loss for _, loss in trained(diloco, 0.7, 1.0, -2.0)]
    of_votes = [loss for _, loss in trained(changed(), 0.005, 1.0, -2.0)]
    assert of_mean[0] < 0.5 * begun
    assert of_mean[1] > 2 * begun
    assert max(of_votes) < 0.5 * begun
    assert of_votes[1] < of_votes[0] + 0.1

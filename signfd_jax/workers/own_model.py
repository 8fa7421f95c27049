"""A worker with a model of its own, which votes on where the server's should go.

Shapes: a batch has leaves `[B, ...]`; what is sent is a tree like the parameters.
"""

import functools

import jax
import jax.numpy as jnp

from signfd_jax._checks import check_number, check_worker
from signfd_jax.workers.base import Worker

__all__ = ["rsa"]


def rsa(
    worker: Worker,
    rate: float | jax.Array = 0.1,
    penalty: float | jax.Array = 0.005,
) -> Worker:
    r"""RSA: train a model of one's own, held to the server's by an $\ell_1$ penalty.

    Worker m has a model $x_m$, and the server $x_0$. The worker sends $x_0 - x_m$, as
    they are before the round's steps, and takes one:

    $$x_m \leftarrow x_m - \alpha \left( g_m(x_m) +
    \lambda \operatorname{sign}(x_m - x_0) \right).$$

    The server needs no more than the signs of what is sent. Its step is

    $$x_0 \leftarrow x_0 - \alpha \left( \nabla f_0(x_0) +
    \lambda \sum_m \operatorname{sign}(x_0 - x_m) \right),$$

    which is `transforms.scale_by_mean_vote(M, decoder, abstentions=True)` with a
    majority vote, and the learning rate $\alpha \lambda M$. Another decoder weighs the
    workers, and `sign_sgd` steps by the sign of the sum. The $f_0$ of the paper is a
    regulariser: `optax.add_decayed_weights`. However large what a Byzantine worker
    sends, it moves a coordinate by no more than $\alpha \lambda$.

    Args:
        worker: the `Worker` whose gradient $g_m$ is taken, at the worker's own model.
        rate: $\alpha$ (positive scalar).
        penalty: $\lambda$ (positive scalar), in the unit of the gradient. The workers
            agree in the end where it is larger than their gradients there, coordinate
            by coordinate; the larger it is, the more a Byzantine worker moves.

    Returns:
        A `Worker`; its state is also its model, at first the server's. Its loss is that
        of its own model.

    Raises:
        ValueError: an argument is not of its kind, or is out of range.

    Examples:
        >>> from signfd_jax.workers import gradient
        >>> inner = gradient(lambda x, batch: jnp.sum((x - batch) ** 2) / 2)
        >>> worker = rsa(inner, rate=0.5, penalty=0.1)
        >>> server, batch = jnp.zeros(2), jnp.array([1.0, -4.0])
        >>> state = worker.init(jax.random.key(0), server)
        >>> for _ in range(3):
        ...     sent, state, _ = worker.send(None, server, batch, state)
        ...     print(sent)
        [0. 0.]
        [-0.5  2. ]
        [-0.7   2.95]

    References:
        Li, Xu, Chen, Giannakis and Ling, [RSA: Byzantine-Robust Stochastic Aggregation
        Methods for Distributed Learning from Heterogeneous Datasets](
        https://arxiv.org/abs/1811.03761), AAAI 2019.
    """
    check_worker(worker)
    check_number("rate", rate, 1e-30, 1e30)
    check_number("penalty", penalty, 1e-30, 1e30)

    def init(key, params):
        return worker.init(key, params), params

    def step(model, gradient, difference):
        alpha, weight = (jnp.asarray(x, model.dtype) for x in (rate, penalty))
        # sign(x_m - x_0) is minus the sign of what is sent.
        return model - alpha * (
            gradient.astype(model.dtype) - weight * jnp.sign(difference)
        )

    @functools.wraps(worker.send)
    def send(key, params, batch, state, **inside):
        own, model = state
        sent = jax.tree.map(jnp.subtract, params, model)
        gradient, own, loss = worker.send(key, model, batch, own, **inside)
        model = jax.tree.map(step, model, gradient, sent)
        return sent, (own, model), loss

    return worker._replace(init=init, send=send)

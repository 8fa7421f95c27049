"""Attacks on some of the rows, whichever others are there."""

import jax

from signfd_jax.attacks.base import Attack, AttackContext


def apply_by_row(
    attack: Attack, key, workers, values, byzantine, context: AttackContext
):
    """Apply an attack to the rows of a few workers, each under a key of its own."""

    def one_row(worker, values, byzantine):
        rows, mask = jax.tree.map(lambda leaf: leaf[None], (values, byzantine))
        own_key = jax.random.fold_in(key, worker)
        rows, _ = attack.apply(own_key, rows, mask, context, ())
        return jax.tree.map(lambda leaf: leaf[0], rows)

    return jax.vmap(one_row)(workers, values, byzantine)

"""Attacks on some of the rows, whichever others are there."""

import functools

import jax

from signfd_jax.attacks.base import Attack, AttackContext


def entering(attack: Attack, *entries: str) -> Attack | None:
    """The attack, or what follows it, if it enters at one of these."""
    parts = (attack, attack.then)
    return next((part for part in parts if part and part.entry in entries), None)


def apply_by_row(
    attack: Attack, key, workers, values, byzantine, context: AttackContext
):
    """Apply an attack to the rows of a few workers, each under a key of its own."""
    one_row = functools.partial(_one_row, attack, key, context)
    return jax.vmap(one_row)(workers, values, byzantine)


def enter_step(attack: Attack, key, context, worker, byzantine, step, gradient):
    """The gradient of a worker's own step after the attack, under a key of its own."""
    key = jax.random.fold_in(key, step)
    return _one_row(attack, key, context, worker, gradient, byzantine)


def _one_row(attack, key, context, worker, values, byzantine):
    rows, mask = jax.tree.map(lambda leaf: leaf[None], (values, byzantine))
    own_key = jax.random.fold_in(key, worker)
    context = context._replace(workers=worker[None])
    rows, _ = attack.apply(own_key, rows, mask, context, ())
    return jax.tree.map(lambda leaf: leaf[0], rows)


def check_row_wise(attack):
    """Refuse an attack that enters single workers, but needs the others."""
    if not attack.row_wise:
        raise ValueError(
            "inside its own steps a worker has no gradient but its own, but this "
            "attack looks at the rows of all workers; take sign_inversion or the like"
        )

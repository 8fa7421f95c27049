"""What trusted workers say of the others.

Shapes: `M` workers, `S` sampled coordinates.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int8

from signfd_jax.decoders._pairs import count, near_one, over_members, pair_counts, ramp


def learn_from_trusted(
    forgetting,
    state,
    rows: Int8[Array, "M S"],
    trusted: Bool[Array, " M"],
    axis_name: str | tuple[str, ...] | None = None,
):
    """The state after a round's correlations with what most of the trusted voted."""
    votes = jnp.sum(jnp.where(trusted[:, None], rows, 0), axis=0, dtype=jnp.int32)
    root = jnp.sign(votes).astype(jnp.int8)[None]
    balance, pairs = (part[0] for part in pair_counts(root, rows, axis_name))
    voted = pairs > 0
    rounds = forgetting * state.cd_root_rounds + voted.astype(jnp.float32)
    step = jnp.where(voted, 1 / jnp.maximum(rounds, 1.0), 0.0)
    now = balance / jnp.maximum(pairs, 1.0)
    return state._replace(
        cd_root_mean=state.cd_root_mean + step * (now - state.cd_root_mean),
        cd_root_rounds=rounds,
    )


def trust(of, state, said, trusted: Bool[Array, " M"], seen: Bool[Array, " M"]):
    """The judgement where some worker is trusted; without one, the judgement given.

    If workers err independently, E S_j0 = t_j t_0, where t is how much more often a
    worker is right than wrong, and 0 the trusted one: t_0 > 0. So S_j0 has the sign of
    t_j, and is proportional to it, however many lie. An optimal weight is proportional
    to t_j where that is small. Who correlates with the trusted then speaks for them,
    and makes the estimates of all others better.
    """
    members, pair = state.cd_committee, state.cd_rounds > 0
    known = state.cd_root_rounds > 0
    mean = jnp.where(known, state.cd_root_mean, 0.0)
    error = jnp.sqrt(state.cd_noise / jnp.maximum(state.cd_root_rounds, 1e-6))
    heard = jnp.where(known & ~trusted, ramp(jnp.abs(mean) / error, of.significant), 0)
    # Copies share one vote: whoever sends the same tells nothing new.
    alike = jnp.where(pair, near_one(state.cd_mean, of.alike), 0.0)
    others = (count(seen) - 1) / jnp.maximum(over_members(pair), 1.0)
    lone = 1 / (1 + others * over_members(alike))
    speaks = lone**2 * heard * mean / jnp.maximum(jnp.max(heard * jnp.abs(mean)), 1e-9)
    speaks = jnp.where(pair, speaks[members][:, None], 0.0)
    total = jnp.maximum(1 + over_members(jnp.abs(speaks)), 1e-9)
    noise = state.cd_noise / jnp.maximum(state.cd_rounds, 1e-6)
    error = jnp.sqrt(error**2 + over_members(speaks**2 * noise)) / total
    mean = (mean + over_members(speaks * state.cd_mean)) / total
    size = jnp.abs(mean)
    heard = jnp.where(seen & ~trusted, ramp(size / error, of.significant), 0.0)
    most = jnp.maximum(jnp.max(size * heard), 1e-9)
    # Who may be as good as the best weighs as much.
    relative = jnp.minimum((size + of.significant * error) / most, 1.0)
    # In steps, so that how a compiler rounds does not reach the vote.
    weights = jnp.round(256 * lone**2 * heard * jnp.sign(mean) * relative) / 256
    told = said._replace(
        weights=jnp.where(trusted | ~seen, 1.0, weights),
        polarity=jnp.where(trusted, 1.0, jnp.sign(mean) * heard),
        reliability=jnp.where(trusted, 1.0, heard * mean / most),
        confidence=ramp(
            jnp.max(jnp.where(seen & ~trusted, size / error, 0.0)), of.majority
        ),
        correlation=mean,
        error=error,
        test=mean / error,
    )
    any_trusted = jnp.any(trusted)
    return jax.tree.map(lambda new, old: jnp.where(any_trusted, new, old), told, said)

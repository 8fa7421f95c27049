r"""Verdicts: who lies, since when, and how sure that is.

Shapes: `M` workers; with several seeds side by side, every array leads with them.
`VERDICTS` are the words that `Verdicts.kind` counts: 0 is undecided, 5 is absent.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from signfd_jax.decoders._verdicts import ABSENT, DUPLICATE

__all__ = ["VERDICTS", "Verdicts", "verdict_lines", "verdicts"]

VERDICTS = (
    "undecided",
    "honest",
    "inverted",
    "uninformative",
    "duplicate",
    "absent",
)


class Verdicts(NamedTuple):
    r"""What `verdicts` tells of each worker.

    Attributes:
        kind: int8 `[M]`, a place in `VERDICTS`.
        since: int32 `[M]`, the round in which that was first sure; of an absent worker,
            the first round that it missed; 0: never yet.
        duplicate_of: int32 `[M]`, the first worker that sends the same; -1: none.
        confidence: float32 `[M]` in [0, 1], how sure it is that the mean correlation
            has the sign that it shows: $\operatorname{erf}(|z| / \sqrt 2)$, where z is
            how many standard errors it is, as both sides of the workers say.
        correlation: float32 `[M]`, mean correlation with the side that is right, or
            with the trusted workers and those that these speak for.
        error: float32 `[M]`, the standard error of that.
        rounds: float32 `[M]`, of how many rounds it is the mean, older ones decayed.
    """

    kind: jax.Array
    since: jax.Array
    duplicate_of: jax.Array
    confidence: jax.Array
    correlation: jax.Array
    error: jax.Array
    rounds: jax.Array


def verdicts(state) -> Verdicts:
    r"""Tell who lies, from the state of `correlation_defense`.

    With z the worker's mean correlation with the right side in standard errors, and
    where it is sure which side is right (`DecodeInfo.confidence` above 1/2):

    - *inverted*: z is at most -5 (`Thresholds.majority`). It is read backwards.
    - *honest*: z is at least 5.
    - *uninformative*: the correlation is surely less than a quarter of the mean.
    - *duplicate*: it sends what another one sends, but for 4 to 7 votes of a hundred
      (`Thresholds.alike`), though both are a minority.
    - *absent*: it did not vote in the last round.
    - *undecided*: none of these was ever sure.

    A verdict stands until another one is sure. It is for people: the weights of the
    votes follow the correlations of each round. How often an honest worker is named,
    and how soon a liar, is what `python -m benchmarks.verdicts` measures.

    Args:
        state: the decoder's state, or one that holds it: of `scale_by_sign_decoder`, of
            a chain, a `SimulationState`.

    Returns:
        `Verdicts`. Pure: it may be jitted and vmapped.

    Raises:
        ValueError: no state of `correlation_defense` is in it, or more than one.

    Examples:
        >>> from signfd_jax.decoders import correlation_defense
        >>> decoder = correlation_defense()
        >>> key = jax.random.key(0)
        >>> truth = jax.random.rademacher(key, (9000,), jnp.int8)
        >>> wrong = jax.random.bernoulli(
        ...     key, jnp.array([[0.3]] * 6 + [[0.7]]), (7, 9000)
        ... )
        >>> state = decoder.init(7, truth)
        >>> _, state, _ = decoder.decode(state, jnp.where(wrong, -truth, truth))
        >>> said = verdicts(state)
        >>> print([VERDICTS[kind] for kind in said.kind][-2:], said.since)
        ['honest', 'inverted'] [1 1 1 1 1 1 1]
    """
    found = optax.tree.get_all_with_path(state, "cd_verdict")
    if len(found) != 1:
        raise ValueError(
            f"the state holds {len(found)} states of correlation_defense, but one is "
            "wanted: give verdicts(state) the state of a server that decodes by it"
        )
    kept: Any = found[0][1]
    rounds: Any = optax.tree.get(state, "cd_rounds")
    of_root: Any = optax.tree.get(state, "cd_root_rounds")
    now: Any = optax.tree.get(state, "cd_round")
    absent = kept.voted < now[..., None]
    return Verdicts(
        kind=jnp.where(absent, ABSENT, kept.kind).astype(jnp.int8),
        since=jnp.where(absent, kept.voted + 1, kept.since),
        duplicate_of=jnp.where(kept.kind == DUPLICATE, kept.copied, -1),
        confidence=jax.lax.erf(jnp.abs(kept.test) / 2**0.5),
        correlation=kept.correlation,
        error=kept.error,
        rounds=jnp.maximum(jnp.max(rounds, axis=-2), of_root),
    )


def verdict_lines(said: Verdicts) -> list[str]:
    """Say each verdict in a line, for people.

    Args:
        said: the `Verdicts` of one seed.

    Returns:
        A sentence for each worker.

    Raises:
        ValueError: the verdicts are those of several seeds.

    Examples:
        >>> from signfd_jax.decoders import correlation_defense
        >>> state = correlation_defense().init(2, jnp.zeros(3))
        >>> verdict_lines(verdicts(state))[1]
        'worker 1 is undecided'
    """
    if said.kind.ndim != 1:
        raise ValueError(
            f"verdicts of one seed are wanted, but kind has shape {said.kind.shape}"
        )
    lines = []
    for m, (kind, since, other) in enumerate(
        zip(*map(np.asarray, said[:3]), strict=True)
    ):
        what = VERDICTS[kind]
        if other >= 0:
            what = f"a duplicate of worker {other}"
        elif what == "inverted":
            what = "read backwards"
        when = f" since round {since}" if since else ""
        lines.append(f"worker {m} is {what}{when}")
    return lines

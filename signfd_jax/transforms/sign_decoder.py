"""The decoders as optax transformations.

Shapes: the gradients of `M` workers come in as a tree of leaves `[M, ...]`; what goes
out has leaves `[...]`, shaped like the parameters.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from signfd_jax import signs
from signfd_jax._checks import (
    check_decoder,
    check_flag,
    check_size,
    check_worker_gradients,
)
from signfd_jax.decoders import DecodeInfo, Decoder, default_decoder
from signfd_jax.decoders._first_info import completed, first_info
from signfd_jax.decoders._known import check_known
from signfd_jax.signs import packed
from signfd_jax.signs._packed_rows import votes_structure
from signfd_jax.signs._totals import check_coordinates
from signfd_jax.signs._trees import cast_like, shapes_of, size_of

# Optax marks this type as experimental; it adds no behaviour, only the promise that
# updates carry a leading worker axis.
try:
    from optax.experimental import aggregating

    Aggregator = aggregating.Aggregator
except (ImportError, AttributeError):
    Aggregator = optax.GradientTransformationExtraArgs

__all__ = [
    "SignDecoderState",
    "scale_by_mean_vote",
    "scale_by_sign_decoder",
]


class SignDecoderState(NamedTuple):
    """State of `scale_by_sign_decoder`.

    Attributes:
        sign_round: int32 scalar, rounds decoded so far.
        decoder_state: the decoder's own state.
        info: `DecodeInfo` of the last round; before the first, `first_info`.
        sign_error: float32 scalar, the share of the non-zero coordinates of
            `honest_sign` that were decoded otherwise in the last round; -1 without one.
    """

    sign_round: jax.Array
    decoder_state: Any
    info: DecodeInfo
    sign_error: jax.Array


def scale_by_sign_decoder(
    num_workers: int, decoder: Decoder | None = None
) -> optax.GradientTransformationExtraArgs:
    """Replace the workers' gradients by one decoded sign per coordinate.

    Unlike most of optax, the updates carry a leading worker axis: leaves `[M, ...]`
    go in, leaves `[...]` shaped like the parameters come out. So it comes first in a
    chain, and what needs the parameters' shape (clipping, weight decay, momentum of the
    server, a schedule) after it.

    Besides `(updates, state, params)`, `update` takes these keyword arguments, which
    pass through `optax.chain`:

    - `present`: bool `[M]`, may be traced. An absent worker abstains this round.
    - `wire`: "ternary", or "one_bit": abstentions and decoded ties are filled as in
      `signs.to_wire`, and a wholly non-finite worker counts as absent.
    - `honest_sign`: tree of int8 `[...]`, a sign to compare with, for `sign_error`.
    - `trusted`: bool `[M]`, may be traced: workers that are known to be honest, such as
      the server with examples of its own. Then it is they that say which side is right,
      and no majority is needed. Their own votes weigh no more than any other's.
    - `stakes`: float `[M]`, may be traced: how many workers each counts as, in the vote
      and where a majority is asked for. Only ratios matter. None counts as more than
      half of all others together; a negative number or a NaN counts as 0.
    - `shares`: float `[M]`, may be traced: how much a vote may weigh, such as a site's
      number of examples; likewise, but the majority is still one of workers.

    Instead of gradients `update` also takes votes already cast (`signs.cast_votes`) and
    packed (`packed.pack_ternary`, `packed.pack_one_bit`), if the decoder decodes them.

    It cannot stand inside `optax.apply_if_finite` or `optax.MultiSteps`, which need
    updates of the parameters' shape: the first raises optax's own TypeError, the second
    the ValueError below. Accumulate inside the worker instead (take the mean over its
    micro-batches before the sign); a NaN abstains already. Nor inside `optax.masked` or
    `optax.partition`: put those after it in the chain.

    On a mesh with explicit axes over which the workers are sharded, the state takes
    that sharding in its first update (and `info`, computed from it, in the second) and
    then keeps it: its type changes, so run two rounds before a `lax.scan`.
    `released_code`, which adds worker by worker, needs the workers unsharded.

    Args:
        num_workers: number M of workers (Python int, at least 1). Under
            `optax.inject_hyperparams` name it in `static_args`.
        decoder: the `Decoder`; None: `default_decoder()`.

    Returns:
        An optax transformation (`optax.experimental.aggregating.Aggregator` where
        optax has it) whose state is a `SignDecoderState`. Its updates have the shape
        and dtype of the parameters, or of one worker's gradient where `params` is
        None, and values in {-1, 0, +1}.

    Raises:
        ValueError: `num_workers` is not a positive Python int, or, from `update`, the
            gradients have no worker axis, another number of workers or another tree
            than the parameters, or the decoder cannot decode packed votes, or cannot
            use what is known of the workers.

    Examples:
        >>> from signfd_jax.decoders import majority_vote
        >>> tx = optax.chain(
        ...     scale_by_sign_decoder(3, majority_vote()),
        ...     optax.scale_by_learning_rate(0.1),
        ... )
        >>> params = {"w": jnp.zeros(2)}
        >>> gradients = {"w": jnp.array([[2.0, -1.0], [0.5, -3.0], [-1.0, 9.0]])}
        >>> updates, state = tx.update(gradients, tx.init(params), params)
        >>> print(updates["w"])
        [-0.1  0.1]
    """
    check_size("num_workers", num_workers)
    decoder = default_decoder() if decoder is None else decoder
    check_decoder(decoder)

    def init_fn(params):
        check_coordinates(params)
        return SignDecoderState(
            sign_round=jnp.zeros((), jnp.int32),
            decoder_state=decoder.init(num_workers, shapes_of(params)),
            info=first_info(num_workers),
            sign_error=_sign_error(None, None),
        )

    def update_fn(
        updates,
        state,
        params=None,
        *,
        present=None,
        wire="ternary",
        honest_sign=None,
        trusted=None,
        stakes=None,
        shares=None,
        **extra_args,
    ):
        del extra_args
        signs.check_wire(wire)
        known = dict(trusted=trusted, stakes=stakes, shares=shares)
        known = check_known("this decoder", num_workers, known, decoder.uses)
        if any(
            map(packed.is_packed, jax.tree.leaves(updates, is_leaf=packed.is_packed))
        ):
            _check_packed(updates, params, decoder)
            votes = updates
        else:
            check_worker_gradients(updates, params, num_workers)
            round = state.sign_round
            votes = signs.cast_votes(updates, round, wire=wire, present=present)
        rounds = jnp.asarray(optax.safe_increment(state.sign_round))
        like = updates if params is None else params
        if size_of(votes) == 0:  # nothing to decode
            nothing = jax.tree.map(lambda vote: vote[0], votes)
            return cast_like(nothing, like), state._replace(sign_round=rounds)
        decoded, decoder_state, info = decoder.decode(
            state.decoder_state, votes, **known
        )
        if wire == "one_bit":
            decoded = signs.fill_ties(decoded, state.sign_round)
        new_state = SignDecoderState(
            sign_round=rounds,
            decoder_state=decoder_state,
            info=completed(info, num_workers),
            sign_error=_sign_error(decoded, honest_sign),
        )
        return cast_like(decoded, like), new_state

    return Aggregator(init_fn, update_fn)


def scale_by_mean_vote(
    num_workers: int, decoder: Decoder | None = None, *, abstentions: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""Replace the workers' gradients by the mean of their weighted votes.

    $\sum_m w_m Y_m / \sum_m |w_m Y_m|$ at each coordinate, over those that did not
    abstain; 0 where all did. The decoder learns the weights as it decodes. For what
    stands behind it, such as `undo_dct`, a vote of 8 to 7 is then less than one of 15
    to none.

    Args:
        num_workers: number M of workers (Python int, at least 1).
        decoder: the `Decoder`; None: `default_decoder()`. Where its weights differ
            between coordinates, their means are taken.
        abstentions: whether the mean is over all workers, of whom those that abstain
            have a vote of 0: $\sum_m w_m Y_m / \sum_m |w_m|$, as RSA's server takes it.

    Returns:
        An optax transformation like `scale_by_sign_decoder`, whose updates lie in
        [-1, 1]. It takes gradients, not packed votes.

    Raises:
        ValueError: as `scale_by_sign_decoder`.

    Examples:
        >>> from signfd_jax.decoders import majority_vote
        >>> tx = scale_by_mean_vote(3, majority_vote())
        >>> gradients = jnp.array([[2.0, -1.0], [0.5, 0.0], [-1.0, -9.0]])
        >>> updates, _ = tx.update(gradients, tx.init(jnp.zeros(2)))
        >>> print(updates.round(3))
        [ 0.333 -1.   ]

    References:
        The mean of signs is the published rule of DisTrO's optimiser: Peng et al.,
        [DeMo](https://arxiv.org/abs/2411.19870), 2024.
    """
    check_flag("abstentions", abstentions)
    inner = scale_by_sign_decoder(num_workers, decoder)

    def update_fn(updates, state, params=None, **extra_args):
        check_worker_gradients(updates, params, num_workers)
        votes = signs.cast_votes(
            updates,
            state.sign_round,
            wire=extra_args.get("wire", "ternary"),
            present=extra_args.get("present"),
        )
        new: Any = inner.update(updates, state, params, **extra_args)[1]

        def mean(votes):
            votes = votes.astype(jnp.float32)
            weighed = jax.vmap(jnp.multiply)(new.info.weights, votes)
            counted = new.info.weights if abstentions else weighed
            total = jnp.sum(jnp.abs(counted), axis=0)
            return jnp.sum(weighed, axis=0) / jnp.where(total > 0, total, 1.0)

        means = jax.tree.map(mean, votes)
        like = updates if params is None else params
        return cast_like(means, like), new

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)


def _sign_error(decoded, honest_sign):
    if honest_sign is None:
        return jnp.full((), -1, jnp.float32)
    return signs.sign_error(decoded, signs.votes(honest_sign), unmeasured=-1.0)


def _check_packed(votes, params, decoder):
    """Refuse packed votes that the decoder, or the parameters, do not allow."""
    if decoder.needs_unpacked:
        raise ValueError(
            "this decoder cannot decode packed votes (a simulation's worker_chunk): "
            f"{decoder.needs_unpacked}. Leave worker_chunk out, or take a decoder that "
            "can, such as correlation_defense or majority_vote"
        )
    if params is None or votes_structure(votes) != jax.tree.structure(params):
        raise ValueError(
            "packed votes need the parameters, a tree like theirs, to decode into; "
            "give update(votes, state, params)"
        )

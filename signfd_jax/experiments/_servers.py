"""Names of what makes one update of the workers' votes or gradients.

`DECODERS` are the decoders that their package lists in `__all__`. `SERVERS` has all
that may stand for one: the decoders themselves, the rest of the sign family, the
aggregation rules and Zeno, whose factories give an optax transformation. Such a factory
says what its server can be told of the workers (`uses`) and must be told (`needs`), as
`Decoder.uses` does. `REAL_VALUED` is the step of those that send real numbers.
"""

import contextlib
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import optax

from signfd_jax import decoders, transforms
from signfd_jax._checks import check_number, check_size
from signfd_jax.aggregators import (
    RULES,
    TRUSTED_RULES,
    Rule,
    chain,
    draco,
    factory,
    fltrust_sign,
    group_vote,
    stateless,
)
from signfd_jax.decoders import Decoder, Thresholds, correlation_defense
from signfd_jax.experiments import _plugins as plugins
from signfd_jax.experiments import _traffic as traffic
from signfd_jax.experiments._choices import factories_of
from signfd_jax.experiments._processes import console
from signfd_jax.transforms import scale_by_aggregator

_USUAL = Thresholds()


def _correlation_defense(
    forgetting: float | jax.Array = _USUAL.forgetting,
    majority: float | jax.Array = _USUAL.majority,
    committee: int = 64,
    sample: int | None = None,
    shared_batches: bool = False,
    seed: int | jax.Array = 0,
) -> Decoder:
    """The default: use votes as sent or negated, as their correlations say."""
    return correlation_defense(
        Thresholds(forgetting=forgetting, majority=majority),
        committee=committee,
        sample=sample,
        shared_batches=shared_batches,
        seed=seed,
    )


DECODERS = factories_of(decoders, Decoder)
del DECODERS["default_decoder"]  # it has another name
DECODERS["correlation_defense"] = _correlation_defense
DECODERS |= plugins.load("signfd_jax.decoders", taken=DECODERS)

_F = TypeVar("_F", bound=Callable[..., Any])

REAL_VALUED = 300.0
"""How many times farther than a sign's a step along a gradient is, by default.

With the learning rate of a sign, which has the size 1, a gradient would hardly move.
`krum:scale=30` is another step; figures and tables name it.
"""


def _needing(*needs: str) -> Callable[[_F], _F]:
    """Say what of the workers a server must be told."""

    def mark(factory):
        factory.uses = factory.needs = needs
        return factory

    return mark


@traffic.sends(traffic.scaled_signs)
def _ef_sign_sgd(
    num_workers: int, scale: float = REAL_VALUED
) -> optax.GradientTransformationExtraArgs:
    """EF-signSGD: signs times their mean magnitude, with error feedback."""
    # What it sends has the unit of the gradient: `scale` times the learning rate is
    # the step.
    check_number("scale", scale, -1e30, 1e30)
    return optax.chain(transforms.scale_by_ef_sign(num_workers), optax.scale(scale))


def _stochastic_sign(
    num_workers: int, key: jax.Array | None = None, bound: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Stochastic-sign SGD: each worker's gradient sets the odds of its vote."""
    return transforms.scale_by_stochastic_sign(num_workers, bound, key=key)


def _aggregation(
    make_rule: Callable[..., Rule], bits: Callable[..., Any] = traffic.dense
) -> Callable[..., Any]:
    """A server from a line of `RULES` or `TRUSTED_RULES`.

    Its options are the rule's own, `num_byzantine` (the number f that the rule assumes;
    none: as many as there are, or the most that the rule allows with so many workers)
    and `scale`, which multiplies the learning rate. `bits` says what it sends.
    """

    def make(
        num_workers: int,
        actual_byzantine: int,
        key: jax.Array | None = None,
        num_byzantine: int | None = None,
        scale: float = REAL_VALUED,
        **options,
    ) -> optax.GradientTransformationExtraArgs:
        key = jax.random.key(0) if key is None else key
        check_number("scale", scale, -1e30, 1e30)
        if num_byzantine is not None:
            check_size("num_byzantine", num_byzantine, 0)

        def rule_for(f):
            rule = make_rule(f, key, **options)
            rule.init(num_workers, 1)  # its preconditions
            return rule

        rule = None
        if num_byzantine is None:
            for f in range(actual_byzantine, 0, -1):
                with contextlib.suppress(ValueError):
                    rule = rule_for(f)
                    break
        rule = rule_for(num_byzantine or 0) if rule is None else rule
        aggregate = scale_by_aggregator(rule, num_workers)
        return optax.chain(aggregate, optax.scale(scale))

    own = list(inspect.signature(make).parameters.values())[:-1]
    rule_options = list(inspect.signature(make_rule).parameters.values())[2:]
    signature = inspect.Signature([*own, *rule_options])
    make.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
    make.__doc__ = make_rule.__doc__
    return _needing(*getattr(make_rule, "needs", ()))(traffic.sends(bits)(make))


def _own_rule(function: Callable[..., Any]) -> Callable[..., Any]:
    """A server from a function of another package, `[M, D] -> [D]`."""
    return _aggregation(factory(function), getattr(function, "bits", traffic.dense))


@traffic.sends(traffic.sparse_signs)
def _s3gd_mv(
    num_workers: int, fraction: float = 0.1, decay: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    """S3GD-MV: votes at the largest coordinates only, with error accumulation."""
    return transforms.scale_by_sparse_sign(num_workers, fraction, decay=decay)


@_needing("trusted")
@traffic.sends(traffic.ternary_votes)
def _fltrust_sign(num_workers: int) -> optax.GradientTransformationExtraArgs:
    """FLTrust by sign: weigh each vote by its correlation with the trusted one."""
    # What comes out are signs: unlike that of `fltrust`, the step has no scale.
    return scale_by_aggregator(stateless(fltrust_sign), num_workers)


@_needing("trusted")
@traffic.sends(traffic.dense)
def _zeno(
    num_workers: int,
    actual_byzantine: int,
    learning_rate: float | jax.Array,
    loss_fn: Callable[..., jax.Array],
    root_batch: Any,
    num_byzantine: int | None = None,
    scale: float = REAL_VALUED,
    penalty: float = 0.005,
) -> optax.GradientTransformationExtraArgs:
    """Zeno: average the gradients that lower the loss on trusted examples most."""
    # The penalty is in units of the step that is tried, `scale` times the learning
    # rate. The gradient of a trusted worker is tried as any other's.
    check_number("scale", scale, 0, 1e30)
    check_number("penalty", penalty, 0, 1e30)
    step = scale * learning_rate
    tx = transforms.scale_by_zeno(
        num_workers,
        loss_fn,
        num_byzantine=actual_byzantine if num_byzantine is None else num_byzantine,
        learning_rate=step,
        penalty=penalty * step,
    )

    def update(updates, state, params=None, *, trusted=None, **given):
        del trusted  # the batch is theirs
        return tx.update(updates, state, params, root_batch=root_batch, **given)

    told = optax.GradientTransformationExtraArgs(tx.init, update)
    return optax.chain(told, optax.scale(scale))


def _detox(
    num_byzantine: int,
    key: jax.Array,
    *,
    group_size: int = 3,
    rule: str = "geometric_median",
) -> Rule:
    """DETOX: what most workers of each group sent, then any rule on the groups."""
    if rule not in RULES:
        raise ValueError(console.unknown("rule", rule, sorted(RULES)))
    check_size("group_size", group_size)
    first = stateless(group_vote, group_size=group_size)
    # Liars who hold a group are more than half of it.
    return chain(first, RULES[rule](num_byzantine // (group_size // 2 + 1), key))


_BITS_OF_RULES = {"top_k_multi_krum": traffic.top_k}  # of the others: floats


SERVERS: dict[str, Callable[..., Any]] = {
    **DECODERS,
    "signum": transforms.scale_by_signum,
    "ef_sign_sgd": _ef_sign_sgd,
    "stochastic_sign": _stochastic_sign,
    "s3gd_mv": _s3gd_mv,
    "distributed_lion": transforms.scale_by_distributed_lion,
    **{
        name: _aggregation(make_rule, _BITS_OF_RULES.get(name, traffic.dense))
        for name, make_rule in (RULES | TRUSTED_RULES).items()
    },
    "draco": _aggregation(factory(draco)),
    "detox": _aggregation(_detox),
    "fltrust_sign": _fltrust_sign,
    "zeno": _zeno,
}
SERVERS |= plugins.load("signfd_jax.rules", taken=SERVERS, make=_own_rule)

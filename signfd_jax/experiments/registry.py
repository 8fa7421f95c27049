"""Names: the only place where a decoder, an attack or a model becomes a string.

Each registry is a plain dict from a name to a factory: `ATTACKS`, `DATASETS`,
`DECODERS`, `MEMBERSHIPS`, `MODELS`, `OPTIMIZERS`, `SCHEDULES`, `SERVERS`, `SPLITS`,
`WORKERS`.
Decoders, attacks and memberships are those that their packages list in `__all__`.
`SERVERS` has all that may stand for a decoder: the decoders themselves, the rest of the
sign family, the aggregation rules and Zeno, whose factories give an optax
transformation. Such a factory says what its server can be told of the workers (`uses`)
and must be told (`needs`), as `Decoder.uses` does. `REAL_VALUED` is the step of those
that send real numbers. `OPTIMIZERS` are optax's, for what the server makes of the
decoded signs. `REGISTRIES` says which field of a configuration names what, and
`resolve` parses them all.

A choice is written `name`, `name:value` or `name:option=value,option=value`: the
options are the factory's own arguments, a lone value its first one. Arguments called
like a fact of the experiment (`num_workers`, `decoder`, ...) are no options: they are
filled in.

Other packages add attacks, data sets, decoders, models, presets and aggregation rules
by entry points (`signfd_jax.experiments._plugins`). A model may also be
`package.module:Name`, and a data set a path.
"""

import contextlib
import inspect
import os
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from signfd_jax import attacks, data, decoders, models, transforms
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
from signfd_jax.data import partition
from signfd_jax.decoders import Decoder, Thresholds, correlation_defense
from signfd_jax.experiments import _plugins as plugins
from signfd_jax.experiments import _traffic as traffic
from signfd_jax.experiments._choices import FACTS, Choice, choose
from signfd_jax.experiments._processes import console
from signfd_jax.experiments._workers import WORKERS
from signfd_jax.experiments.config import Experiment
from signfd_jax.transforms import scale_by_aggregator

__all__ = [
    "ATTACKS",
    "DATASETS",
    "DECODERS",
    "MEMBERSHIPS",
    "MODELS",
    "OPTIMIZERS",
    "REAL_VALUED",
    "REGISTRIES",
    "SCHEDULES",
    "SERVERS",
    "SPLITS",
    "WORKERS",
    "Names",
    "check_dataset",
    "load_dataset",
    "resolve",
]


def _stochastic_sign_flip(
    flip_probability: float | jax.Array = 0.5,
) -> attacks.Attack:
    """Every Byzantine worker flips each coordinate's sign with some probability."""
    # The flag --flip-probability stands in for an option that is not given.
    return attacks.stochastic_sign_flip(flip_probability)


def _mlp(num_classes: int, hidden: int = 128) -> models.MLP:
    """One hidden layer on the flattened image."""
    return models.MLP(hidden=(hidden,), num_classes=num_classes)


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


def _factories(module: Any, kind: Any) -> dict[str, Callable[..., Any]]:
    """Its public functions that return this kind, and need only facts."""
    found = {}
    for name in module.__all__:
        function = getattr(module, name)
        if inspect.isroutine(inspect.unwrap(function)):
            signature = inspect.signature(function)
            needed = {
                name
                for name, parameter in signature.parameters.items()
                if parameter.default is parameter.empty
            }
            if signature.return_annotation == kind and needed <= set(FACTS):
                found[name] = function
    return found


DECODERS = _factories(decoders, Decoder)
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


def _adaptive(
    decoder: Any,
    against: str = "",
    trials: int = 3,
    horizon: int = 4,
    seed: int | jax.Array = 0,
) -> attacks.Attack:
    """Search for the parameters that make the decoder err most, as it learns."""
    # `against` names the decoder to defeat, where it is not the server's own.
    if against:
        decoder = choose(DECODERS, "decoder", against).make({})
    return attacks.adaptive(decoder, trials=trials, horizon=horizon, seed=seed)


def _inside(
    attack: str = "sign_inversion",
    flip_probability: float | jax.Array = 0.5,
    seed: int | jax.Array = 0,
    decoder: Any = None,
    num_classes: int | None = None,
    num_workers: int | None = None,
) -> attacks.Attack:
    """Another attack, on the gradient of each of a worker's own steps."""
    check_number("flip_probability", flip_probability, 0, 1)
    facts = {"flip_probability": flip_probability, "seed": seed, "decoder": decoder}
    facts |= {"num_classes": num_classes, "num_workers": num_workers}
    return attacks.inside(choose(ATTACKS, "attack", attack).make(facts))


def _model_replacement(
    num_classes: int,
    backdoor: str = "badnets",
    factor: float | jax.Array = 10.0,
) -> attacks.Attack:
    """A backdoor whose workers send a multiple of their gradient."""
    chosen = choose(ATTACKS, "backdoor", backdoor).make({"num_classes": num_classes})
    return attacks.model_replacement(chosen, factor)


def _neurotoxin(
    num_classes: int, backdoor: str = "badnets", spared: float = 0.05
) -> attacks.Attack:
    """A backdoor that stays off the coordinates that honest workers change most."""
    chosen = choose(ATTACKS, "backdoor", backdoor).make({"num_classes": num_classes})
    return attacks.neurotoxin(chosen, spared)


ATTACKS = {"none": attacks.no_attack} | _factories(attacks, attacks.Attack)
del ATTACKS["no_attack"]
ATTACKS |= {"stochastic_sign_flip": _stochastic_sign_flip, "adaptive": _adaptive}
ATTACKS |= {"model_replacement": _model_replacement, "neurotoxin": _neurotoxin}
ATTACKS["inside"] = _inside
ATTACKS |= plugins.load("signfd_jax.attacks", taken=ATTACKS)


def _fixed() -> None:
    """The same workers are Byzantine in every round."""


MEMBERSHIPS: dict[str, Callable[..., Any]] = {
    "fixed": _fixed,
    **_factories(attacks, attacks.Membership),
}

MODELS: dict[str, Callable[..., Any]] = {
    "softmax_regression": models.SoftmaxRegression,
    "mlp": _mlp,
    "mnist_cnn": models.MnistCNN,
    "resnet": models.ResNet,
    "resnet18": models.ResNet18,
    "vgg11": models.VGG11,
    "transformer": models.Transformer,
}
MODELS |= plugins.load("signfd_jax.models", taken=MODELS)

DATASETS: dict[str, Callable[[], data.Dataset]] = plugins.load(
    "signfd_jax.datasets", taken=data.DATASETS
)
"""The data sets that other packages add."""


def load_dataset(
    name: str, data_dir: str | os.PathLike[str] | None = None
) -> data.Dataset:
    """Load a data set that a configuration names.

    Args:
        name: of this library, of another package, or a path, see `data.load`.
        data_dir: the folder of this library's data sets; None: see `data.load`.

    Returns:
        A `Dataset`.

    Raises:
        DataError: see `data.load`.
        ValueError: the other package gives no data set.

    Examples:
        >>> load_dataset("digits").num_classes
        10
    """
    if name not in DATASETS:
        return data.load(name, data_dir=data_dir)
    found = DATASETS[name]()
    if not isinstance(found, data.Dataset):
        raise ValueError(
            f"the data set {name} of another package must be a data.Dataset, such as "
            f"data.from_arrays gives, but is {type(found).__name__}"
        )
    return found


def check_dataset(name: str) -> None:
    """Refuse a data set that is none.

    Args:
        name: as `load_dataset` takes it.

    Raises:
        ValueError: there is none of that name.

    Examples:
        >>> check_dataset("digits")
    """
    if name in plugins.BROKEN:
        raise ValueError(plugins.BROKEN[name])
    if name not in DATASETS:
        data.check_name(name)


SPLITS: dict[str, Callable[..., partition.Partition]] = {
    "iid": partition.iid,
    "dirichlet": partition.dirichlet,
    "everything": partition.everything,
    "labels": partition.labels_per_worker,
    "one_class": partition.one_class_per_worker,
    "replicated": partition.replicated,
    "shards": partition.shards,
    "similarity": partition.similarity,
    "writers": partition.by_writer,
}


def _sgd(
    learning_rate: Any,
    momentum: float | None = None,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """A step along the decoded sign, or along its momentum."""
    check_number("weight_decay", weight_decay, 0, 1e30)
    if not weight_decay:
        return optax.sgd(learning_rate, momentum, nesterov)
    # As in AdamW, what decays has no part in the momentum.
    return optax.chain(
        optax.trace(momentum or 0.0, nesterov),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": _sgd,
    # Those of optax that take nothing but updates, and a schedule for a rate.
    **{
        name: getattr(optax, name)
        for name in (
            *("adabelief", "adadelta", "adagrad", "adam", "adamax"),
            *("adamaxw", "adamw", "adan", "amsgrad", "fromage", "lamb", "lars", "lion"),
            *("nadam", "nadamw", "novograd", "optimistic_gradient_descent", "radam"),
            *("rmsprop", "yogi"),
        )
    },
}


def _constant(learning_rate: float | jax.Array) -> Any:
    """The learning rate stays."""
    return learning_rate


def _cosine(learning_rate: float | jax.Array, rounds: int, warmup: int = 0) -> Any:
    """From 0 to the learning rate in some rounds, then along a cosine to 0."""
    check_size("warmup", warmup, 0)
    rest = optax.cosine_decay_schedule(1.0, max(1, rounds - warmup))
    return _warmed_up(learning_rate, rest, warmup)


def _linear(learning_rate: float | jax.Array, rounds: int, warmup: int = 0) -> Any:
    """From 0 to the learning rate in some rounds, then along a line to 0."""
    check_size("warmup", warmup, 0)
    rest = optax.linear_schedule(1.0, 0.0, max(1, rounds - warmup))
    return _warmed_up(learning_rate, rest, warmup)


def _warmed_up(learning_rate, rest, warmup):
    rise = optax.linear_schedule(0.0, 1.0, max(1, warmup))
    whole = optax.join_schedules([rise, rest], [warmup]) if warmup else rest
    return lambda count: learning_rate * whole(jnp.asarray(count, jnp.float32))


SCHEDULES: dict[str, Callable[..., Any]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
}

REGISTRIES: dict[str, dict[str, Callable[..., Any]]] = {
    "model": MODELS,
    "split": SPLITS,
    "decoder": SERVERS,
    "attack": ATTACKS,
    "membership": MEMBERSHIPS,
    "worker": WORKERS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
}


class Names(NamedTuple):
    """What the names in a configuration stand for.

    Attributes:
        model: a choice of `MODELS`.
        split: a choice of `SPLITS`.
        decoder: a choice of `SERVERS`.
        attack: a choice of `ATTACKS`.
        membership: a choice of `MEMBERSHIPS`.
        worker: a choice of `WORKERS`.
        optimizer: a choice of `OPTIMIZERS`.
        schedule: a choice of `SCHEDULES`.
    """

    model: Choice
    split: Choice
    decoder: Choice
    attack: Choice
    membership: Choice
    worker: Choice
    optimizer: Choice
    schedule: Choice


def resolve(config: Experiment) -> Names:
    """Parse the names in a configuration: the only place where they become functions.

    Args:
        config: the experiment.

    Returns:
        `Names`, a choice for each field of `REGISTRIES`.

    Raises:
        ValueError: a name or an option does not exist.

    Examples:
        >>> resolve(Experiment(attack="gaussian:2")).attack.options
        (('standard_deviation', 2.0),)
    """
    return Names(
        *(
            choose(table, field, getattr(config, field))
            for field, table in REGISTRIES.items()
        )
    )

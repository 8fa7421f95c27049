"""Names: the only place where a decoder, an attack or a model becomes a string.

Each registry (`ATTACKS`, `DECODERS`, `MEMBERSHIPS`, `MODELS`, `SERVERS`, `SPLITS`) is a
plain dict from a name to a factory, so that adding one is one line. `SERVERS` has all
that may stand for a decoder: the decoders themselves, the rest of the sign family, and
the aggregation rules, whose factories give an optax transformation. A choice is written
`name`, `name:value` or `name:option=value,option=value`: the options are the factory's
own arguments, a lone value its first one. Arguments called like a fact of the
experiment (`num_workers`, `decoder`, ...: see `FACTS`) are no options: they are filled
in.

Other packages add attacks, decoders and aggregation rules by entry points
(`signfd_jax.experiments.plugins`).
"""

import contextlib
import difflib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from signfd_jax import attacks, models, partition, sign_family
from signfd_jax.aggregators import RULES, Rule, keyed, line, stateless
from signfd_jax.correlation import correlation_defense
from signfd_jax.decoding import majority_vote
from signfd_jax.defense import federated_defense, federated_voting
from signfd_jax.experiments import plugins
from signfd_jax.likelihood import dawid_skene
from signfd_jax.population import population_defense
from signfd_jax.transform_rules import scale_by_aggregator

__all__ = [
    "ATTACKS",
    "DECODERS",
    "FACTS",
    "MEMBERSHIPS",
    "MODELS",
    "SERVERS",
    "SPLITS",
    "Choice",
    "asks_for",
    "choose",
    "make",
    "traced_options",
]


FACTS = (
    "actual_byzantine",
    "decoder",
    "key",
    "labels",
    "num_classes",
    "num_workers",
    "seed",
)
"""What a factory may ask for by naming an argument so."""


def _stochastic_sign_flip(
    flip_probability: float | jax.Array = 0.5,
) -> attacks.Attack:
    # The flag --flip-probability stands in for an option that is not given.
    return attacks.stochastic_sign_flip(flip_probability)


def _mlp(num_classes: int, hidden: int = 128) -> models.MLP:
    return models.MLP(hidden=(hidden,), num_classes=num_classes)


DECODERS: dict[str, Callable[..., Any]] = {
    "correlation_defense": correlation_defense,
    "dawid_skene": dawid_skene,
    "federated_defense": federated_defense,
    "federated_voting": federated_voting,
    "majority_vote": majority_vote,
    "population_defense": population_defense,
}
DECODERS |= plugins.load("signfd_jax.decoders", taken=DECODERS)


def _ef_sign_sgd(
    num_workers: int, scale: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    # What it sends has the unit of the gradient: `scale` times the learning rate is
    # the step.
    return optax.chain(sign_family.scale_by_ef_sign(num_workers), optax.scale(scale))


def _stochastic_sign(
    num_workers: int, key: jax.Array | None = None, bound: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    return sign_family.scale_by_stochastic_sign(num_workers, bound, key=key)


def _aggregation(make_rule: Callable[..., Rule]) -> Callable[..., Any]:
    """A server from a line of `RULES`.

    Its options are the rule's own, `num_byzantine` (the number f that the rule assumes;
    none: as many as there are, or the most that the rule allows with so many workers)
    and `scale`, which multiplies the learning rate.
    """

    def make(
        num_workers: int,
        actual_byzantine: int,
        key: jax.Array | None = None,
        num_byzantine: int | None = None,
        scale: float = 1.0,
        **options,
    ) -> optax.GradientTransformationExtraArgs:
        key = jax.random.key(0) if key is None else key

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
    return make


def _own_rule(function: Callable[..., Any]) -> Callable[..., Any]:
    """A server from a function of another package, `[M, D] -> [D]`."""
    wants_key = next(iter(inspect.signature(function).parameters), "") == "key"
    return _aggregation(line(keyed if wants_key else stateless, function))


SERVERS: dict[str, Callable[..., Any]] = {
    **DECODERS,
    "signum": sign_family.scale_by_signum,
    "ef_sign_sgd": _ef_sign_sgd,
    "stochastic_sign": _stochastic_sign,
    "s3gd_mv": sign_family.scale_by_sparse_sign,
    "distributed_lion": sign_family.scale_by_distributed_lion,
    **{name: _aggregation(make_rule) for name, make_rule in RULES.items()},
}
SERVERS |= {
    name: _own_rule(function)
    for name, function in plugins.load("signfd_jax.rules", taken=SERVERS).items()
}


def _adaptive(
    decoder: Any,
    against: str = "",
    trials: int = 3,
    horizon: int = 4,
    seed: int | jax.Array = 0,
) -> attacks.Attack:
    # `against` names the decoder to defeat, where it is not the server's own.
    if against:
        decoder = make(DECODERS, choose(DECODERS, "decoder", against), {})
    return attacks.adaptive(decoder, trials=trials, horizon=horizon, seed=seed)


ATTACKS: dict[str, Callable[..., attacks.Attack]] = {
    "none": attacks.no_attack,
    "sign_inversion": attacks.sign_inversion,
    "stochastic_sign_flip": _stochastic_sign_flip,
    "random_vote": attacks.random_vote,
    "zero": attacks.zero,
    "gaussian": attacks.gaussian,
    "additive_noise": attacks.additive_noise,
    "scaling": attacks.scaling,
    "non_finite": attacks.non_finite,
    "label_flip": attacks.label_flip,
    "alie": attacks.alie,
    "sign_alie": attacks.sign_alie,
    "ipm": attacks.ipm,
    "min_max": attacks.min_max,
    "min_sum": attacks.min_sum,
    "fang": attacks.fang,
    "mimic": attacks.mimic,
    "majority_opposition": attacks.majority_opposition,
    "random_collusion": attacks.random_collusion,
    "swing": attacks.swing,
    "budgeted_swing": attacks.budgeted_swing,
    "sleeper": attacks.sleeper,
    "on_off": attacks.on_off,
    "warm_up_capture": attacks.warm_up_capture,
    "coordinate_specialist": attacks.coordinate_specialist,
    "near_duplicate_collusion": attacks.near_duplicate_collusion,
    "weight_aware": attacks.weight_aware,
    "disguised_opposition": attacks.disguised_opposition,
    "adaptive": _adaptive,
}
ATTACKS |= plugins.load("signfd_jax.attacks", taken=ATTACKS)

MEMBERSHIPS: dict[str, Callable[..., Any]] = {
    "fixed": lambda: None,
    "drawn_each_round": attacks.drawn_each_round,
    "rotating": attacks.rotating,
    "leaving": attacks.leaving,
    "drop_out": attacks.drop_out,
    "sampled": attacks.sampled,
}

MODELS: dict[str, Callable[..., Any]] = {
    "softmax_regression": models.SoftmaxRegression,
    "mlp": _mlp,
    "mnist_cnn": models.MnistCNN,
    "resnet": models.ResNet,
}

SPLITS: dict[str, Callable[..., partition.Partition]] = {
    "iid": partition.iid,
    "dirichlet": partition.dirichlet,
    "everything": partition.everything,
    "labels": partition.labels_per_worker,
    "one_class": partition.one_class_per_worker,
}


class Choice(NamedTuple):
    """A name of a registry with its options.

    Attributes:
        name: the name.
        options: the options that were given, `(argument, value)` pairs sorted by
            argument; a value is an int, float, bool, str or None.
    """

    name: str
    options: tuple[tuple[str, Any], ...]


def choose(registry: Mapping[str, Callable[..., Any]], kind: str, text: str) -> Choice:
    """Parse a choice and check it against its registry.

    Args:
        registry: dict of factories.
        kind: what it holds, in the singular, for the error's text.
        text: `name`, `name:value` or `name:option=value,option=value`.

    Returns:
        A `Choice`.

    Raises:
        ValueError: the name or an option is unknown, or a value is not a number,
            true, false or none.

    Examples:
        >>> choose(DECODERS, "decoder", "federated_defense:forgetting=0.95")
        Choice(name='federated_defense', options=(('forgetting', 0.95),))
        >>> choose(SPLITS, "split", "dirichlet:0.3")
        Choice(name='dirichlet', options=(('alpha', 0.3),))
    """
    name, _, rest = text.partition(":")
    if name not in registry:
        close = difflib.get_close_matches(name, registry, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(
            f"unknown {kind} {name!r}{hint}; known are {', '.join(sorted(registry))}"
        )
    parameters = _options(registry[name])
    accepted = list(parameters)
    options = {}
    for part in filter(None, rest.split(",")):
        option, equals, value = part.partition("=")
        if not equals:
            option, value = (accepted or ["a value"])[0], option
        if option not in accepted:
            raise ValueError(
                f"{kind} {name} has no option {option!r}; "
                f"it has {', '.join(accepted) or 'none'}"
            )
        options[option] = _value(part, value, parameters[option].annotation)
    for option, parameter in parameters.items():
        if parameter.default is parameter.empty and option not in options:
            raise ValueError(
                f"{kind} {name} needs {option}: write {name}:{option}=..., or "
                f"{name}:... where it is the only one"
            )
    return Choice(name, tuple(sorted(options.items())))


def make(
    registry: Mapping[str, Callable[..., Any]],
    choice: Choice,
    facts: Mapping[str, Any],
) -> Any:
    """Call the factory that a choice names.

    Args:
        registry: the dict of factories that the choice was checked against.
        choice: what `choose` returned, or the same with other (traced) values.
        facts: values of arguments that the choice leaves out, by name; those that the
            factory does not have are left alone, as is a traced seed where its
            annotation admits no `jax.Array`.

    Returns:
        Whatever the factory makes.

    Examples:
        >>> choice = choose(ATTACKS, "attack", "label_flip")
        >>> make(ATTACKS, choice, {"num_classes": 10, "num_workers": 15}).entry
        'data'
    """
    factory = registry[choice.name]
    parameters = _parameters(factory)
    asked = {
        name: value
        for name, value in facts.items()
        if name in parameters
        and not (
            name == "seed"
            and isinstance(value, jax.Array)
            and not _admits_arrays(parameters[name])
        )
    }
    return factory(**(asked | dict(choice.options)))


def traced_options(
    registry: Mapping[str, Callable[..., Any]], choice: Choice
) -> dict[str, Any]:
    """The options of a choice that may be arrays, so that one program serves all.

    Args:
        registry: the dict of factories that the choice was checked against.
        choice: what `choose` returned.

    Returns:
        Those options whose annotation admits a `jax.Array`, by their name.

    Examples:
        >>> traced_options(ATTACKS, choose(ATTACKS, "attack", "gaussian:2.0"))
        {'standard_deviation': 2.0}
    """
    parameters = _options(registry[choice.name])
    return {
        name: value
        for name, value in choice.options
        if _admits_arrays(parameters[name])
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    }


def asks_for(
    registry: Mapping[str, Callable[..., Any]], choice: Choice, fact: str
) -> bool:
    """Whether a fact of the experiment changes what a choice makes.

    Args:
        registry: the dict of factories that the choice was checked against.
        choice: what `choose` returned.
        fact: one of `FACTS`.

    Returns:
        True where the factory has an argument of that name. The actual number of
        Byzantine workers does not matter to a rule that was told what to assume.

    Examples:
        >>> choice = choose(SERVERS, "decoder", "krum")
        >>> asks_for(SERVERS, choice, "actual_byzantine")
        True
        >>> choice = choose(SERVERS, "decoder", "krum:num_byzantine=2")
        >>> asks_for(SERVERS, choice, "actual_byzantine")
        False
    """
    options, parameters = dict(choice.options), _parameters(registry[choice.name])
    told = options.get("num_byzantine") is not None
    return fact in parameters and not (fact == "actual_byzantine" and told)


def _admits_arrays(parameter):
    return jax.Array in typing.get_args(parameter.annotation)


def _options(factory):
    """The arguments of a factory that a user may set."""
    flax_own = ("parent", "name")
    hidden = (*FACTS, *flax_own)
    return {k: v for k, v in _parameters(factory).items() if k not in hidden}


def _parameters(factory):
    return inspect.signature(factory).parameters


def _value(part, text, annotation):
    if annotation is str:
        return text
    named = {"none": None, "true": True, "false": False}
    if text.lower() in named:
        return named[text.lower()]
    admitted = {annotation, *typing.get_args(annotation)}
    # A whole number where a float is wanted must not become an integer array.
    for kind in (float,) if float in admitted and int not in admitted else (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise ValueError(f"{part!r}: {text!r} is neither a number nor true, false or none")

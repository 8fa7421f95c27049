"""Choices: a name of a registry with its options, as it is written.

`name`, `name:value` or `name:option=value,option=value`: the options are the factory's
own arguments, a lone value its first one. A model may also be `package.module:Name`,
with its options behind another colon. Arguments called like a fact of the
experiment (`FACTS`) are no options: they are filled in.
"""

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from signfd_jax.experiments import _plugins as plugins
from signfd_jax.experiments._processes import console

FACTS = (
    "actual_byzantine",
    "decoder",
    "key",
    "labels",
    "learning_rate",
    "loss_fn",
    "num_classes",
    "num_workers",
    "root_batch",
    "rounds",
    "seed",
    "writers",
)
"""What a factory may ask for by naming an argument so."""


OWN = "own"
"""The name of a model that is an object of Python; what follows describes it."""


class Choice(NamedTuple):
    """A name of a registry with its options: what makes one part of an experiment.

    Attributes:
        name: the name.
        options: the options that were given, `(argument, value)` pairs sorted by
            argument; a value is an int, float, bool, str or None.
        factory: the registry's function of that name.
    """

    name: str
    options: tuple[tuple[str, Any], ...]
    factory: Callable[..., Any]

    def make(self, facts: Mapping[str, Any], **options: Any) -> Any:
        """Call the factory with those facts that it asks for, and with the options."""
        parameters = _parameters(self.factory)
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
        return self.factory(**(asked | dict(self.options) | options))

    @property
    def server(self) -> Callable[..., Any] | None:
        """What a worker's votes need in the place of the decoder's own server."""
        return getattr(self.factory, "server", None)

    @property
    def traced_options(self) -> dict[str, Any]:
        """The options that may be arrays, so that one program serves all."""
        parameters = _options(self.factory)
        return {
            name: value
            for name, value in self.options
            if _admits_arrays(parameters[name])
            and isinstance(value, int | float)
            and not isinstance(value, bool)
        }

    def asks_for(self, fact: str) -> bool:
        """Whether a fact of the experiment changes what is made."""
        told = dict(self.options).get("num_byzantine") is not None
        asked = fact in _parameters(self.factory)
        return asked and not (fact == "actual_byzantine" and told)


def choose(registry: Mapping[str, Callable[..., Any]], kind: str, text: str) -> Choice:
    """Parse a choice and check it against its registry."""
    name, _, rest = text.partition(":")
    factory = registry.get(name)
    if factory is None and name in plugins.BROKEN:
        raise ValueError(plugins.BROKEN[name])
    if kind == "model" and name == OWN:
        return Choice(text, (), _not_given)
    if factory is None and kind == "model" and rest:
        attribute, _, rest = rest.partition(":")
        factory, name = plugins.imported(name, attribute), f"{name}:{attribute}"
    if factory is None:
        raise ValueError(console.unknown(kind, name, sorted(registry)))
    parameters = _options(factory)
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
    return Choice(name, tuple(sorted(options.items())), factory)


def factories_of(module: Any, kind: Any) -> dict[str, Callable[..., Any]]:
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


def _not_given():
    raise ValueError(
        "the model was an object of Python, which no name stands for: give it to "
        "run_experiment(model=...) again"
    )


def canonical(registry: Mapping[str, Callable[..., Any]], text: str) -> str:
    """A choice with its numbers written alike, so that equal choices have one name."""
    try:
        options = dict(choose(registry, "choice", text).options)
    except ValueError:
        return text
    name, colon, rest = text.partition(":")
    parts = []
    for part in filter(None, rest.split(",")):
        option, equals, _ = part.partition("=")
        value = options[option if equals else next(iter(_options(registry[name])))]
        if isinstance(value, int | float) and not isinstance(value, bool):
            part = f"{option}={value!r}" if equals else repr(value)
        parts.append(part)
    return name + (colon and colon * bool(parts)) + ",".join(parts)


def written_options(factory: Callable[..., Any]) -> dict[str, str]:
    """The options of a factory that can be written, with their defaults as written.

    The default is "..." where the option must be given. An option that takes neither
    numbers nor words, such as another attack, cannot be written and is left out.
    """
    return {
        name: _written(parameter.default)
        for name, parameter in _options(factory).items()
        if _can_be_written(parameter.annotation)
    }


def _written(default):
    """A default as a choice spells it."""
    if default is inspect.Parameter.empty:
        return "..."
    is_word = default is None or isinstance(default, bool)
    return str(default).lower() if is_word else str(default)


def _can_be_written(annotation):
    """Whether it is a number or a word; one without a type may be."""
    open_to_all = annotation is inspect.Parameter.empty or isinstance(annotation, str)
    admitted = {annotation, *typing.get_args(annotation)}
    return open_to_all or bool(admitted & {int, float, bool, str})


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

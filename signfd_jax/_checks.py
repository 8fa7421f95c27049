"""What an argument must be: the checks of static facts, and what they say.

They look at Python numbers, names, shapes and dtypes, which are known while JAX traces;
the values of an array are never looked at.
"""

import functools
import inspect
import operator
import typing
from collections.abc import Callable, Collection
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

_P = ParamSpec("_P")
_R = TypeVar("_R")


def check_number(name: str, value: object, low: int | float, high: int | float) -> None:
    """Refuse a Python number out of range; an array may be traced and passes."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        if getattr(value, "shape", None) != ():
            raise ValueError(f"{name} must be a number, but is {_shown(value)}")
    elif not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low}, {high}], but is {value}")


def check_count(name: str, value: object, least: int, *, unit: str = "") -> None:
    """Refuse what cannot be counted with; an integer array may be traced and passes."""
    wanted = f"{name} must be a whole number of at least {least}"
    wanted += f" {unit}" if unit else ""
    if isinstance(value, jax.Array):
        if value.shape == () and jnp.issubdtype(value.dtype, jnp.integer):
            return
        raise ValueError(f"{wanted}, but is {_shown(value)}")
    number = _whole(value)
    if number is None or number < least:
        raise ValueError(f"{wanted}, but is {_shown(value)}")


def check_size(name: str, value: object, least: int = 1) -> None:
    """Refuse what cannot set a shape or a number of steps, which no array can."""
    if isinstance(value, jax.Array):
        raise ValueError(
            f"{name} is an array, but it sets shapes; give a Python int (under "
            f"optax.inject_hyperparams, name it in static_args=({name!r},))"
        )
    number = _whole(value)
    if number is None or number < least:
        raise ValueError(f"{name} must be an int >= {least}, but is {_shown(value)}")


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, but is {_shown(value)}")


def check_key(name: str, value: object) -> None:
    """Refuse what is no JAX key, of the new style or the old."""
    dtype = str(getattr(value, "dtype", ""))
    if not dtype.startswith("key<") and dtype != "uint32":
        raise ValueError(
            f"{name} must be a JAX key such as jax.random.key(0), but is "
            f"{_shown(value)}"
        )


def check_choice(name: str, value: object, known: Collection[str]) -> None:
    """Refuse a name that is not known."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(
            f"{name} must be one of {', '.join(known)}, but is {_shown(value)}"
        )


def check_kind(name: str, value: object, fields: Collection[str], makers: str) -> None:
    """Refuse what is not a pair of functions of the kind that is wanted."""
    if isinstance(value, type) or not all(
        callable(getattr(value, field, None)) for field in fields
    ):
        raise ValueError(
            f"{name} must be what {makers} gives, with {' and '.join(fields)}, but is "
            f"{_shown(value)}"
        )


def check_mask(name: str, value: Any, num_workers: int) -> None:
    """Refuse a mask that is not one of all the workers, or not of bools.

    Numbers are refused, because they would multiply the votes.
    """
    value = value if hasattr(value, "dtype") else np.asarray(value)
    shape = jnp.shape(value)
    if shape != (num_workers,):
        raise ValueError(
            f"{name} must be a mask of {num_workers} workers, but has shape {shape}"
        )
    dtype = value.dtype
    if dtype != jnp.bool_:
        raise ValueError(
            f"{name} must be a mask of bools, but its dtype is {dtype}; give "
            f"{name} != 0 where the numbers are 1 and 0"
        )


def check_callable(name: str, value: object, signature: str) -> None:
    """Refuse what cannot be called."""
    if not callable(value):
        raise ValueError(
            f"{name} must be a function {signature}, but is {_shown(value)}"
        )


def check_unmasked(gradients: Any, fate: str) -> None:
    """Refuse a tree of which `optax.masked` or `optax.partition` gives only a part."""
    is_masked = lambda leaf: isinstance(leaf, optax.MaskedNode)  # noqa: E731
    if any(map(is_masked, jax.tree.leaves(gradients, is_leaf=is_masked))):
        raise ValueError(
            "the gradients have masked leaves: inside optax.masked or optax.partition "
            f"the other leaves would {fate}. Put the sign decoder first in the chain, "
            "and mask what comes after it"
        )


def checked(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Check arrays against their jaxtyping annotations, and ints, in plain words."""
    signature = inspect.signature(function)
    wanted = {n: _choices(p) for n, p in signature.parameters.items()}
    whole = [n for n, w in wanted.items() if w == (int,)]
    wanted = {n: w for n, w in wanted.items() if any(hasattr(c, "dim_str") for c in w)}

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{function.__name__}: {error}") from None
        sizes = {}
        for name, choices in wanted.items():
            if name in given and not _fits(given[name], choices, sizes):
                raise ValueError(
                    f"{function.__name__}: {name} must be "
                    f"{' or '.join(dict.fromkeys(_described(c) for c in choices))}"
                    f"{_known(choices, sizes)}, but is {_shown(given[name])}"
                )
        for name in whole:
            value: Any = given.get(name, 0)
            if isinstance(value, jax.Array) or _whole(value) is None:
                raise ValueError(
                    f"{function.__name__}: {name} must be an int, but is "
                    f"{_shown(value)}"
                )
        return function(*args, **kwargs)

    return call


def _whole(value):
    """The value as an int, or None where it is none."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _choices(parameter):
    """The members of a union, or the annotation alone."""
    return typing.get_args(parameter.annotation) or (parameter.annotation,)


def _fits(value: Any, choices, sizes):
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    for choice in choices:
        if hasattr(choice, "dim_str"):
            kind = str(dtype).partition("<")[0]
            known = dict(sizes)
            if kind in _dtypes(choice) and _binds(choice.dim_str.split(), shape, known):
                sizes.update(known)
                return True
        elif choice is float and isinstance(value, int | float):
            return not isinstance(value, bool)
        elif choice is type(None) and value is None:
            return True
    return False


def _dtypes(choice):
    return {"key" if dtype == "prng_key" else dtype for dtype in choice.dtypes}


def _binds(axes, shape, sizes):
    """Whether the shape fits the named axes, whose sizes it then fixes."""
    several = [axis for axis in axes if axis.startswith("*")]
    if len(shape) < len(axes) - 1 or (not several and len(shape) != len(axes)):
        return False
    rest = len(shape) - len(axes) + 1
    start = 0
    for axis in axes:
        stop = start + (rest if axis in several else 1)
        size = shape[start:stop] if axis in several else shape[start]
        wanted = int(axis) if axis.isdigit() else sizes.setdefault(axis, size)
        if wanted != size:
            return False
        start = stop
    return True


def _described(choice):
    if not hasattr(choice, "dim_str"):
        return {float: "a number", type(None): "None"}.get(choice, str(choice))
    kind = choice.dtype.__name__
    if kind == "Key":
        return "a JAX key such as jax.random.key(0)"
    if kind == "UInt32":
        return "one of the old style"
    return f"{kind.lower()} [{', '.join(choice.dim_str.split())}]"


def _known(choices, sizes):
    names = {
        axis
        for choice in choices
        for axis in getattr(choice, "dim_str", "").split()
        if axis in sizes
    }
    told = [f"{n.strip('*')} = {_size(sizes[n])}" for n in sorted(names)]
    return f" with {', '.join(told)}" if told else ""


def _size(size):
    return size if isinstance(size, int) else list(size)


def _shown(value: Any):
    """An array by its dtype and shape, anything else by the start of its text."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} {list(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_decoder(decoder: object) -> None:
    """Refuse what is no decoder."""
    functions = ("init", "decode", "weights")
    check_kind("decoder", decoder, functions, "majority_vote() or the like")


def check_worker(worker: object) -> None:
    """Refuse what is no worker."""
    check_kind("worker", worker, ("init", "send"), "signfd_jax.workers.gradient")


def check_worker_gradients(gradients, params, num_workers: int) -> None:
    """Refuse a tree of gradients that does not lead with the worker axis."""
    check_unmasked(gradients, "keep their worker axis")
    gradient_leaves = jax.tree_util.tree_leaves_with_path(gradients)
    if params is None:
        expected = [(num_workers, *jnp.shape(leaf)[1:]) for _, leaf in gradient_leaves]
    elif jax.tree.structure(gradients) == jax.tree.structure(params):
        expected = [(num_workers, *jnp.shape(leaf)) for leaf in jax.tree.leaves(params)]
    else:
        raise ValueError(
            f"the gradients have the tree {jax.tree.structure(gradients)}, but the "
            f"parameters {jax.tree.structure(params)}; they must be alike"
        )
    for (path, leaf), shape in zip(gradient_leaves, expected, strict=True):
        if jnp.shape(leaf) != shape:
            raise ValueError(
                f"gradient leaf {jax.tree_util.keystr(path) or '(root)'} has shape "
                f"{jnp.shape(leaf)}, but {num_workers} workers need {shape}: one "
                "gradient a worker, stacked on a leading axis, as "
                "jax.vmap(jax.grad(loss), in_axes=(None, 0)) gives them. (Inside "
                "optax.MultiSteps: accumulate in the worker instead)"
            )

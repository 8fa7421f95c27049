"""What an experiment is: one frozen, typed configuration, with JSON in and out.

Names (of decoders, attacks, models, splits, ...) are strings that
`signfd_jax.experiments.registry` looks up; options follow a colon, as in
`federated_defense:forgetting=0.95` or `dirichlet:0.3`. What other libraries call them
becomes our name (`_aliases`).
"""

import dataclasses
import hashlib
import json
import types
import typing

from signfd_jax.experiments._aliases import ALIASES, ours
from signfd_jax.experiments._stop_rule import stop_rule

__all__ = ["Experiment", "fingerprint", "from_json", "to_json"]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training run, or several that differ in their seed alone.

    Attributes:
        name: what the run is called; the first part of its folder's name.
        dataset: the data set, a name of `signfd list`.
        model: the model, e.g. mlp:hidden=128.
        split: how the examples are split over the workers, e.g. iid, dirichlet:0.3.
        decoder: the server's decoder, e.g. federated_defense:forgetting=0.95 (the
            paper's); else the default one.
        attack: what the Byzantine workers do, e.g. sign_inversion.
        membership: who lies in which round: fixed, drawn_each_round, rotating, ...
        flip_probability: r of stochastic_sign_flip, in [0, 1].
        worker: what a worker sends: gradient, or e.g. local_steps:5, a step for each of
            so many batches.
        num_workers: number of workers M.
        num_byzantine: number of Byzantine workers L, drawn by the seed.
        byzantine_ids: the Byzantine workers by name, 0 to M - 1, instead of a number.
        trusted: number of trusted workers, the last ones; they are never Byzantine.
        root_examples: examples of its own that each trusted worker has, drawn at random
            from the training set; 0: its share of the split.
        stakes: how many workers each counts as, one number a worker, or examples, as
            many as it holds; empty: one each.
        shares: how much a worker's vote may weigh, one number a worker, or examples, as
            many as it holds; empty: all the same.
        withheld: which of trusted, stakes and shares the decoder is not told, such as a
            majority vote beside a decoder that is told; the workers are the same.
        stop_below: halt once the decoder's confidence was lower for some rounds in a
            row, as confidence:rounds, e.g. 0.5:20; empty: never.
        wire: ternary (a zero gradient abstains) or one_bit (every vote is +1 or -1).
        batch_size: examples of each worker in each round; of local steps, in each.
        worker_chunk: workers that have gradients at a time, of a large population; it
            divides num_workers. 0: all.
        learning_rate: step along the decoded sign.
        optimizer: what the server makes of decoded signs, a name of optax, e.g.
            sgd:momentum=0.9; under momentum .9 a step is up to ten times as long.
        schedule: what becomes of the learning rate, e.g. cosine:warmup=100.
        rounds: number of rounds.
        eval_every: rounds from one test to the next.
        augment: crop and flip the training images at random.
        seed: first training seed: parameters, batches, attackers.
        seeds: number of training seeds, from `seed` on; they train side by side.
        partition_seed: seed of the split, apart from the training seed.
    """

    name: str = "digits"
    dataset: str = "digits"
    model: str = "mlp:hidden=64"
    split: str = "iid"
    decoder: str = "correlation_defense"
    attack: str = "sign_inversion"
    membership: str = "fixed"
    flip_probability: float = 0.5
    worker: str = "gradient"
    num_workers: int = 15
    num_byzantine: int = 0
    byzantine_ids: tuple[int, ...] = ()
    trusted: int = 0
    root_examples: int = 0
    stakes: tuple[float, ...] | str = ()
    shares: tuple[float, ...] | str = ()
    withheld: tuple[str, ...] = ()
    stop_below: str = ""
    wire: str = "ternary"
    batch_size: int = 16
    worker_chunk: int = 0
    learning_rate: float = 2e-3
    optimizer: str = "sgd"
    schedule: str = "constant"
    rounds: int = 300
    eval_every: int = 10
    augment: bool = False
    seed: int = 0
    seeds: int = 1
    partition_seed: int = 0

    def __post_init__(self):
        """Refuse what no run could mean; names are checked by the registry."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            _check_type(field.name, value, field.type)
            if field.name in ALIASES:
                object.__setattr__(self, field.name, ours(field.name, value))
            if field.type is float:  # 1 is the same run as 1.0, and -0.0 as 0.0
                object.__setattr__(self, field.name, float(value) + 0.0)
            if isinstance(value, tuple) and field.name in ("stakes", "shares"):
                numbers = tuple(float(number) + 0.0 for number in value)
                object.__setattr__(self, field.name, numbers)
        for name in ("num_workers", "batch_size", "rounds", "eval_every", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, but is {getattr(self, name)}")
        for name in ("seed", "partition_seed"):
            if not 0 <= getattr(self, name) < 2**31:
                raise ValueError(
                    f"{name} must lie in [0, 2**31), but is {getattr(self, name)}"
                )
        if not 0 <= self.worker_chunk <= self.num_workers:
            raise ValueError(
                f"worker_chunk must lie in [0, {self.num_workers}], the number of "
                f"workers, but is {self.worker_chunk}"
            )
        if self.worker_chunk and self.augment:
            raise ValueError(
                "augment=True needs worker_chunk=0: it draws for all at once"
            )
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(
                f"flip_probability must lie in [0, 1], but is {self.flip_probability}"
            )
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(
                f"learning_rate must be positive and finite, but is "
                f"{self.learning_rate}"
            )
        if not self.name or not all(c.isalnum() or c in "-_." for c in self.name):
            raise ValueError(
                f"name must consist of letters, digits, '-', '_' and '.', but is "
                f"{self.name!r}: a folder will be called so"
            )
        self._check_byzantine()
        self._check_known()
        if self.stop_below:
            confidence, rounds = stop_rule(self.stop_below)
            object.__setattr__(self, "stop_below", f"{confidence!r}:{rounds}")

    def _check_byzantine(self):
        if not 0 <= self.num_byzantine <= self.num_workers:
            raise ValueError(
                f"num_byzantine must lie in [0, {self.num_workers}], the number of "
                f"workers, but is {self.num_byzantine}"
            )
        ids = self.byzantine_ids
        if not ids:
            return
        if len(set(ids)) < len(ids) or not all(0 <= i < self.num_workers for i in ids):
            raise ValueError(
                f"byzantine_ids must be distinct and lie in [0, {self.num_workers}), "
                f"but are {list(ids)}"
            )
        object.__setattr__(self, "num_byzantine", len(ids))

    def _check_known(self):
        workers, trusted = self.num_workers, self.trusted
        if not 0 <= trusted < workers:
            raise ValueError(
                f"trusted must lie in [0, {workers}), less than the number of workers, "
                f"but is {trusted}"
            )
        others = workers - trusted
        if named := [i for i in self.byzantine_ids if i >= others]:
            raise ValueError(
                f"byzantine_ids names {', '.join(map(str, named))}, but the last "
                f"{trusted} of the {workers} workers are trusted; name others"
            )
        if self.num_byzantine > others:
            raise ValueError(
                f"num_byzantine must be at most {others}, the workers that are not "
                f"trusted, but is {self.num_byzantine}"
            )
        if self.root_examples < 0 or (self.root_examples and not trusted):
            raise ValueError(
                "root_examples must be 0, or a number of examples with trusted >= 1, "
                f"but is {self.root_examples} with trusted {trusted}"
            )
        for name in ("stakes", "shares"):
            values = getattr(self, name)
            if isinstance(values, str):
                if values != "examples":
                    raise ValueError(
                        f"{name} must be one number for each worker, or examples, but "
                        f"is {values!r}"
                    )
            elif values and len(values) != workers:
                raise ValueError(
                    f"{name} must have a number for each of the {workers} workers, but "
                    f"has {len(values)}"
                )
            elif not all(0 <= value < float("inf") for value in values):
                raise ValueError(
                    f"{name} must be finite and not negative, but are {list(values)}"
                )
        known = ("trusted", "stakes", "shares")
        given = [name for name in known if getattr(self, name)]
        if not set(self.withheld) <= set(given):
            raise ValueError(
                "withheld must name some of what is given of trusted, stakes and "
                f"shares ({', '.join(given) or 'nothing'}), but is "
                f"{', '.join(self.withheld)}"
            )
        in_order = tuple(name for name in given if name in self.withheld)
        object.__setattr__(self, "withheld", in_order)


def _check_type(name, value, annotation):
    """Refuse a value that its annotation does not allow (JSON is untyped)."""
    if not _fits(value, annotation):
        kind = getattr(annotation, "__name__", str(annotation))
        raise ValueError(f"{name} must be of type {kind}, but is {value!r}")


def _fits(value, annotation):
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, arguments[0]) for v in value)
    if origin is types.UnionType:
        return any(_fits(value, kind) for kind in arguments)
    if annotation is float:
        return type(value) in (int, float)
    return type(value) is annotation


def to_json(config) -> str:
    """Write a configuration as JSON.

    Args:
        config: a dataclass of plain values, such as an `Experiment`.

    Returns:
        Indented JSON text, one key a field.

    Examples:
        >>> from_json(Experiment, to_json(Experiment(rounds=7))).rounds
        7
    """
    return json.dumps(_fields(config), indent=2) + "\n"


def from_json(kind, text: str):
    """Read a configuration from JSON.

    Args:
        kind: the dataclass, such as `Experiment`.
        text: what `to_json` wrote; fields left out keep their defaults.

    Returns:
        An instance of `kind`.

    Raises:
        ValueError: the text is not a JSON object, or a field is unknown or has the
            wrong type.

    Examples:
        >>> from_json(Experiment, '{"rounds": 5}').rounds
        5
    """
    if not isinstance(kind, type) or not hasattr(kind, "__dataclass_fields__"):
        raise ValueError(f"kind must be a dataclass such as Experiment, not {kind!r}")
    try:
        values = json.loads(text.removeprefix("\ufeff"))  # some editors write it
    except json.JSONDecodeError as error:
        raise ValueError(f"not a JSON configuration: {error}") from None
    if not isinstance(values, dict):
        raise ValueError("a configuration must be a JSON object of fields")
    known = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - known):
        raise ValueError(
            f"unknown fields {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    return kind(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    )


def fingerprint(config) -> str:
    """Hash of everything in a configuration that changes its result.

    The name is left out, and where files lie is not in a configuration at all. Numbers
    in names, as in dirichlet:1, count by their value.

    Args:
        config: a dataclass of plain values, such as an `Experiment`.

    Returns:
        Eight hexadecimal digits.

    Examples:
        >>> fingerprint(Experiment()) == fingerprint(Experiment(name="mine"))
        True
        >>> fingerprint(Experiment()) == fingerprint(Experiment(seed=1))
        False
    """
    values: typing.Any = _canonical(_fields(config))
    values.pop("name", None)
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# Left out where they are what they were when there was no other, so that hashes stay.
_NEWER = {
    name: getattr(Experiment, name)
    for name in (
        *("worker", "optimizer", "schedule"),
        *("trusted", "root_examples", "stakes", "shares", "withheld", "stop_below"),
    )
}


def _canonical(values):
    """The fields, with the numbers in the names of their choices written alike."""
    from signfd_jax.experiments._choices import canonical
    from signfd_jax.experiments.registry import REGISTRIES

    def of_field(name, value):
        if isinstance(value, dict):
            return {
                n: of_field(n, v)
                for n, v in value.items()
                if n not in _NEWER or v != _NEWER[n]
            }
        if isinstance(value, tuple | list):
            return [of_field(name.removesuffix("s"), v) for v in value]
        if isinstance(value, str) and name in REGISTRIES:
            return canonical(REGISTRIES[name], value)
        return value

    return of_field("", values)


def _fields(config) -> dict[str, typing.Any]:
    if isinstance(config, type) or not hasattr(config, "__dataclass_fields__"):
        raise ValueError(
            f"config must be a dataclass such as Experiment(), not {config!r}"
        )
    return dataclasses.asdict(config)

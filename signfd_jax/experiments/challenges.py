"""Challenges of the leaderboard: frozen, hashed lists of experiments.

A `Challenge` is a file `NAME.json` of the leaderboard's folder, as `freeze` writes it.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

from signfd_jax.experiments._processes import console
from signfd_jax.experiments._storage import files
from signfd_jax.experiments.config import Experiment, from_json, to_json
from signfd_jax.experiments.grid import Grid, cells

__all__ = ["Challenge", "check_challenge", "freeze", "names", "read_challenge"]


@dataclasses.dataclass(frozen=True)
class Challenge:
    """What every entry of one table is trained with and attacked by.

    Attributes:
        about: what it is, in one line for readers.
        base: what its cells have in common; its `name` is the challenge's, and an entry
            takes the place of its `decoder`.
        attacks: attacks, as `Grid` has them; none is the unattacked cell.
        num_byzantine: numbers of Byzantine workers.
        splits: splits of the data.
        version: its version; a challenge that is changed gets the next one.
        sha256: hash of all the other fields as they stand in the file; "" before it is
            frozen.
    """

    about: str
    base: Experiment
    attacks: tuple[str, ...]
    num_byzantine: tuple[int, ...]
    splits: tuple[str, ...] = ("iid",)
    version: int = 1
    sha256: str = ""

    def cells(self, entry: str) -> list[Experiment]:
        """The experiments of an entry, each once."""
        grid = Grid(
            base=self.base,
            decoders=(entry,),
            attacks=self.attacks,
            num_byzantine=self.num_byzantine,
            splits=self.splits,
            batch_sizes=(self.base.batch_size,),
        )
        return cells(grid)


def freeze(challenge: Challenge) -> str:
    """Write a challenge with its hash, as its file must have it.

    Args:
        challenge: the challenge; a hash that it has is not looked at.

    Returns:
        Indented JSON. The hash is the SHA-256 of the other fields, written as JSON with
        sorted keys and without spaces.

    Raises:
        ValueError: it is no challenge.

    Examples:
        >>> challenge = Challenge("Inversion.", Experiment(), ("sign_inversion",), (7,))
        >>> len(json.loads(freeze(challenge))["sha256"])
        64
    """
    check_challenge(challenge)
    challenge.cells(challenge.base.decoder)
    fields = json.loads(to_json(challenge))
    fields["sha256"] = _hash(fields)
    return json.dumps(fields, indent=2) + "\n"


def _hash(fields):
    """The hash of all fields but the hash."""
    fields = {name: value for name, value in fields.items() if name != "sha256"}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def names(folder: str | Path) -> list[str]:
    """The challenges of a leaderboard's folder.

    Args:
        folder: the folder.

    Returns:
        Their names, sorted; where there are none, it raises a `ValueError`.

    Examples:
        >>> folder = getfixture("tmp_path")
        >>> _ = (folder / "tiny.json").write_text("{}")
        >>> names(folder)
        ['tiny']
    """
    folder = files.expanded(folder)
    if found := sorted(path.stem for path in folder.glob("*.json")):
        return found
    raise ValueError(
        f"there is no leaderboard in {folder}: call signfd in a checkout of "
        "signfd_jax, or give its folder benchmarks/leaderboard as --folder"
    )


def read_challenge(folder: str | Path, name: str) -> Challenge:
    """Read a challenge, and see that it is as it was frozen.

    Args:
        folder: the leaderboard's folder.
        name: the challenge's name.

    Returns:
        The `Challenge`.

    Raises:
        ValueError: there is none of that name, it is damaged, or its hash is not that
            of its fields.

    Examples:
        >>> challenge = Challenge("Inversion.", Experiment(), ("sign_inversion",), (7,))
        >>> folder = getfixture("tmp_path")
        >>> _ = (folder / "digits.json").write_text(freeze(challenge))
        >>> read_challenge(folder, "digits").num_byzantine
        (7,)
    """
    known = names(folder)
    if name not in known:
        raise ValueError(console.unknown("challenge", name, known))
    path = files.expanded(folder) / f"{name}.json"
    fields = files.read_json(path)
    if (found := _hash(fields)) != fields.get("sha256"):
        raise ValueError(
            f"{path} is not the challenge that was frozen: its fields have the hash "
            f"{found[:12]}, but sha256 is {str(fields.get('sha256'))[:12]}; a changed "
            "challenge is a new file with a new name or version"
        )
    try:
        base = from_json(Experiment, json.dumps(fields.pop("base", None)))
        lists = {name for name, value in fields.items() if isinstance(value, list)}
        fields |= {name: tuple(fields[name]) for name in lists}
        challenge = Challenge(**(fields | {"base": base}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no challenge: {error}") from None
    if base.name != name:
        raise ValueError(f"{path} holds the challenge {base.name}: rename the file")
    return challenge


def check_challenge(challenge: Challenge) -> None:
    """Refuse what is no challenge.

    Args:
        challenge: what should be one.

    Raises:
        ValueError: it is none.

    Examples:
        >>> check_challenge(Challenge("Nobody lies.", Experiment(), ("none",), (0,)))
    """
    if not isinstance(challenge, Challenge):
        raise ValueError(
            f"challenge must be a Challenge(), but is {type(challenge).__name__}"
        )

"""The command: compare everything, print, and write what was asked for."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, NoReturn

import tyro

from benchmarks import parity
from benchmarks.parity._compare import D, F, M, Peer, difference
from benchmarks.parity._imports import MissingLibrary, versions_of
from benchmarks.parity.backfed import BACKFED
from benchmarks.parity.blades import BLADES
from benchmarks.parity.byzfl import BYZFL
from benchmarks.parity.byzpy import BYZPY
from benchmarks.parity.flpoison import FLPOISON
from signfd_jax.experiments._processes import console
from signfd_jax.experiments._storage.run_folder import environment, write_atomically

PEERS = (BYZFL, BYZPY, BLADES, FLPOISON, BACKFED)


@dataclasses.dataclass(frozen=True)
class Options:
    """What to compare, and what to write."""

    clones: Path | None = None
    """The folder with the clones of Blades, fedlib, FLPoison and BackFed. Without it
    ByzFL and ByzPy alone are compared."""
    draws: int = 5
    """Draws of the rows."""
    tolerance: float = 1e-5
    """Largest difference allowed, relative to the largest number compared."""
    json: Path | None = None
    """Write the result here."""


def load_all(clones: Path | None) -> list[tuple[Peer, Any, dict[str, str]]]:
    """Each library that is to be compared, what it has, and its versions.

    Raises:
        MissingLibrary: one is not there.
    """
    peers = [peer for peer in PEERS if clones is not None or not peer.clones]
    for peer in peers:
        for folder, file in peer.clones:
            assert clones is not None
            if not (clones / folder / file).is_file():
                raise MissingLibrary(
                    f"{peer.name} is not in {clones}: it needs {clones / folder}/{file}"
                    "; python -m benchmarks.parity --help says what to clone"
                )
    return [(peer, *peer.load(clones or Path())) for peer in peers]


def compare(peer: Peer, library: Any, options: Options) -> list[dict[str, Any]]:
    """Compare one library, and print a line for each name."""
    found = []
    for name, pair in peer.pairs.items():
        largest = difference(library, pair, options.draws)
        agrees = largest <= options.tolerance
        found.append(
            {
                "name": name,
                "largest_difference": largest,
                "agrees": agrees,
                "definition": pair.definition,
            }
        )
        mark = "" if agrees else "  TOO LARGE"
        print(f"{name:34}{largest:.1e}{mark:12}  {pair.definition or 'the same'}")
    for name, reason in peer.not_compared.items():
        print(f"{name:34}not compared           {reason}")
    return found


def _refuse(reason: object) -> NoReturn:
    """Say why in one line, and leave."""
    print(f"parity: {reason}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    """Compare everything, print, and write what was asked for."""
    options = tyro.cli(Options, description=parity.__doc__)
    if options.draws < 1:
        _refuse(f"--draws is {options.draws}, but nothing is compared without a draw")
    try:
        loaded = load_all(options.clones)
    except MissingLibrary as error:
        _refuse(error)
    peers = []
    for peer, library, versions in loaded:
        title = ", ".join(f"{part} {version}" for part, version in versions.items())
        print(f"{peer.name} ({title})")
        print(f"{'':34}largest difference   definition")
        compared = compare(peer, library, options)
        peers.append(
            {
                "name": peer.name,
                "versions": versions,
                "compared": compared,
                "not_compared": peer.not_compared,
            }
        )
        print()
    every = [entry for peer in peers for entry in peer["compared"]]
    largest = max(entry["largest_difference"] for entry in every)
    print(f"{len(every)} compared; the largest difference is {largest:.1e}")
    if options.json is not None:
        result = {
            "about": (parity.__doc__ or "").split("\n\n")[1],
            "workers": M,
            "coordinates": D,
            "byzantine": F,
            "draws": options.draws,
            "tolerance": options.tolerance,
            "largest_difference": largest,
            "peers": peers,
            "they_import": versions_of("torch", "scikit-learn", "scipy", "hdbscan"),
            "environment": environment(),
        }
        write_atomically(options.json, json.dumps(result, indent=1) + "\n")
    if not all(entry["agrees"] for entry in every):
        sys.exit(1)


if __name__ == "__main__":
    with console.steady():  # results are kept, wherever they are printed
        main()

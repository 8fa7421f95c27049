"""What a run tells of its workers: verdicts as they change, `workers.csv`, and halts.

Everything is read from the state of all seeds, so that a run that goes on from a
checkpoint writes and says what it would have.

Shapes: `S` seeds, `M` workers, `K` of them a committee.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from signfd_jax.decoders import VERDICTS, CorrelationDefenseState, verdicts
from signfd_jax.experiments._engine.prepare import byzantine_mask
from signfd_jax.experiments._stop_rule import stop_rule
from signfd_jax.experiments._storage import files
from signfd_jax.experiments._storage import run_folder as records
from signfd_jax.experiments.config import Experiment

COLUMNS = (
    *("seed", "worker", "byzantine", "verdict", "since", "duplicate_of"),
    *("confidence", "correlation", "error", "rounds", "weight"),
)
"""Those of `workers.csv`."""

_HONEST, _DUPLICATE = VERDICTS.index("honest"), VERDICTS.index("duplicate")
_NAMED = {
    VERDICTS.index("inverted"): "read backwards",
    VERDICTS.index("uninformative"): "uninformative",
    _DUPLICATE: "duplicates",
}
_EVENTS = 20  # at one test: of more only the number is said


class Halted(RuntimeError):
    """A run halted, as its `stop_below` says; what was done is kept."""


def said_by(state: Any) -> CorrelationDefenseState | None:
    """What the server's decoder remembers, on the host; None: it gives no verdicts."""
    found = optax.tree.get_all_with_path(state.opt_state, "decoder_state")
    known = [s for _, s in found if isinstance(s, CorrelationDefenseState)]
    return known[0] if len(known) == 1 else None


def record(said: CorrelationDefenseState | None, listed: bool) -> list[dict[str, Any]]:
    """What a line of `metrics.jsonl` has of the verdicts, for each seed."""
    if said is None:
        return []
    confidence = np.asarray(said.cd_verdict.confidence)
    found = [{"confidence": float(value)} for value in confidence]
    if listed:
        kinds = np.asarray(verdicts(_small(said)).kind)
        found = [
            line | {"verdicts": [VERDICTS[kind] for kind in of_seed]}
            for line, of_seed in zip(found, kinds, strict=True)
        ]
    return found


def _small(said):
    """The same on the host, without what no verdict needs."""
    return jax.tree.map(
        np.asarray, said._replace(cd_mean=(), cd_strength=(), cd_committee=())
    )


def halted_in(state: Any) -> list[int | None]:
    """The round in which each seed halted, or None; [] where none ever does."""
    found: Any = optax.tree.get(state.opt_state, "halted_in")
    return [] if found is None else [int(n) or None for n in np.asarray(found)]


def check_halted(config: Experiment, state: Any) -> None:
    """Raise `Halted` if any seed has."""
    halted = [
        f"{_of_seed(config, s)}in round {number}"
        for s, number in enumerate(halted_in(state))
        if number is not None
    ]
    if halted:
        confidence, rounds = stop_rule(config.stop_below)
        raise Halted(
            f"halted {', '.join(halted)}: the decoder's confidence was below "
            f"{confidence:g} for {rounds} rounds; the parameters are those of that "
            "round, and the same command stops here again: see who lies by signfd "
            "show, and trust a worker (--trusted) or choose another --stop-below"
        )


def _of_seed(config, s):
    return f"seed {config.seed + s}: " if config.seeds > 1 else ""


class Told:
    """What was said of the workers until now; `tell` says what is new.

    A worker is named once when it is read backwards, found uninformative or found a
    duplicate, and once more when it is read as it is again.
    """

    def __init__(self, config: Experiment, state: Any, listed: bool):
        """Take the verdicts of a state as said."""
        self._config, self._listed = config, listed
        self._kinds = _kinds(said_by(state))

    def tell(self, said: CorrelationDefenseState | None) -> list[str]:
        """The lines on what has changed since the last state."""
        before, now = self._kinds, _kinds(said)
        self._kinds = now
        if said is None or before is None or now is None:
            return []
        changed = (now != before) & (_is_named(now) | _is_named(before))
        listed = self._listed and changed.sum() <= _EVENTS
        lines = []
        for s in range(len(now)):
            kept = jax.tree.map(lambda leaf, s=s: np.asarray(leaf)[s], said.cd_verdict)
            lines += self._of_seed(s, before[s], now[s], kept, listed)
        return lines

    def _of_seed(self, s, before, now, kept, listed):
        named = _is_named(now) & (now != before)
        cleared = (now == _HONEST) & _is_named(before)
        front = _of_seed(self._config, s)
        if not listed:
            numbers = {
                what: int((named & (now == kind)).sum())
                for kind, what in _NAMED.items()
            }
            numbers["read as they are again"] = int(cleared.sum())
            said = [
                f"{number} are {what}" for what, number in numbers.items() if number
            ]
            return [f"{front}of the workers, {', '.join(said)} now"] if said else []
        return [
            f"{front}{_sentence(m, now[m], kept)}"
            for m in np.flatnonzero(named | cleared)
        ]


def _is_named(kinds):
    return np.isin(kinds, list(_NAMED))


def _kinds(said):
    # Not those of `verdicts`: who is absent for a while is not named anew.
    # A copy: the next round consumes the state.
    return None if said is None else np.array(said.cd_verdict.kind, copy=True)


def _sentence(worker, kind, kept):
    since = f"since round {kept.since[worker]}"
    if kind == _HONEST:
        return f"worker {worker} is read as it is again, {since}"
    what = _NAMED[kind]
    if kind == _DUPLICATE:
        what = f"a duplicate of worker {kept.copied[worker]}"
    return f"worker {worker} has been {what} {since}"


def write(
    folder: Path, config: Experiment, said: CorrelationDefenseState | None, listed: bool
) -> None:
    """Write `workers.csv`, and the first seed's correlations, as they are now.

    They replace what an earlier test has written. The correlations, in
    `correlations.npz`, are for the figure: `mean` float32 `[K, M]`, and `committee`.
    """
    if said is None:
        return
    found = jax.tree.map(np.asarray, verdicts(_small(said)))
    weights = np.asarray(said.cd_weights)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for s in range(config.seeds):
        seed = config.seed + s
        lies = byzantine_mask(config, seed)
        for m in range(config.num_workers):
            kind, since, other, *numbers = (leaf[s, m] for leaf in found)
            words = VERDICTS[kind], since or "", other if other >= 0 else ""
            numbers = [f"{number:.6g}" for number in (*numbers, weights[s, m])]
            writer.writerow([seed, m, int(lies[m]), *words, *numbers])
    records.write_atomically(folder / "workers.csv", text.getvalue())
    if listed:
        arrays = io.BytesIO()
        mean, committee = said.cd_mean, said.cd_committee
        np.savez(arrays, mean=np.asarray(mean)[0], committee=np.asarray(committee)[0])
        records.write_atomically(folder / "correlations.npz", arrays.getvalue())


def read(folder: Path) -> list[dict[str, str]]:
    """The rows of `workers.csv`; [] where there is none."""
    path = folder / "workers.csv"
    if not path.is_file():
        return []
    rows = list(csv.DictReader(files.read_text(path).splitlines()))
    if any(
        None in row or None in row.values() or tuple(row) != COLUMNS for row in rows
    ):
        raise ValueError(
            f"{path} is damaged; it is written again where the run goes on"
        )
    return rows


def correlations(folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """The first seed's correlations `[K, M]` and its committee, or None."""
    path = folder / "correlations.npz"
    if not path.is_file():
        return None
    with np.load(path) as arrays:
        return arrays["mean"], arrays["committee"]


def of_first_seed(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The workers of the first seed, in their order."""
    return [row for row in rows if row["seed"] == rows[0]["seed"]]

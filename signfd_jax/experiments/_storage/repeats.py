"""Whether a run that was repeated came out the same."""

import itertools
import json
from pathlib import Path

from signfd_jax.experiments._storage import files
from signfd_jax.experiments._storage import run_folder as records


def difference(earlier: str | Path, later: str | Path) -> str:
    """Compare the records of two runs, bit for bit."""
    earlier, later = Path(earlier), Path(later)
    both = [_lines(folder / "metrics.jsonl") for folder in (earlier, later)]
    changes = records.changes(*(_environment(folder) for folder in (earlier, later)))
    elsewhere = f" (that one had {changes})" if changes else ""
    for one, other in itertools.zip_longest(*both):
        if one is None or other is None:
            shorter = earlier if one is None else later
            return f"as far as they go the same: {shorter} has fewer tests{elsewhere}"
        if one != other:
            rounds = json.loads(other)["round"]
            return f"differs from {earlier} from round {rounds} on{elsewhere}"
    return f"bit for bit the run in {earlier}{elsewhere}"


def _lines(path):
    return files.read_text(path).splitlines() if path.exists() else []


def _environment(folder):
    path = folder / "environment.json"
    return files.read_json(path) if path.exists() else {}

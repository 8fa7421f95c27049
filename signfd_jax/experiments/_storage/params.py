"""The model that a run leaves, and the names and hashes of a tree's arrays.

Shapes: `S` seeds lead every leaf.
"""

import contextlib
import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from signfd_jax.experiments._storage import files
from signfd_jax.experiments._storage import run_folder as records

_DTYPES = "dtypes.json"


def save_params(folder: str | Path, params: Any) -> str:
    """Write the model of a finished run as `params.npz`, whole or not at all.

    NumPy's files know NumPy's dtypes alone. Arrays of others, such as bfloat16, are
    written as their bits, and `dtypes.json` in the file says what they are.
    """
    arrays = _by_name(to_numpy(params))
    dtypes = {n: a.dtype.name for n, a in arrays.items() if not _is_known(a.dtype)}
    if dtypes:
        arrays |= {
            name: arrays[name].view(f"u{arrays[name].itemsize}") for name in dtypes
        }
        arrays[_DTYPES] = np.array(json.dumps(dtypes))
    content = io.BytesIO()
    np.savez(content, **arrays)
    records.write_atomically(Path(folder) / "params.npz", content.getvalue())
    return digest(params)


def load_params(folder: str | Path, seed: int = 0) -> dict[str, Any]:
    """Read the model that a run trained, ready for `model.apply`.

    Args:
        folder: the run's folder.
        seed: which of its seeds, counted from the run's first: 0 to S - 1.

    Returns:
        Nested dict of NumPy arrays.

    Raises:
        ValueError: the run has not finished, or has no such seed.

    Examples:
        >>> folder = getfixture("tmp_path")
        >>> _ = save_params(folder, {"bias": jnp.arange(6.0).reshape(2, 3)})
        >>> print(load_params(folder, seed=1)["bias"])
        [3. 4. 5.]
    """
    path = files.expanded(folder) / "params.npz"
    if not path.is_file():
        raise ValueError(f"there is no {path}: the run has not finished")
    tree: dict[str, Any] = {}
    with _archive(path) as archive:
        arrays = dict(archive.items())
        dtypes = json.loads(str(arrays.pop(_DTYPES, "{}")))
        for name, array in arrays.items():
            if name in dtypes:
                array = array.view(jnp.dtype(dtypes[name]))
            if not 0 <= seed < len(array):
                raise ValueError(
                    f"seed must lie in [0, {len(array)}), but is {seed}: it is counted "
                    "from the run's first"
                )
            *parents, last = name.split("/")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = array[seed]
    return tree


@contextlib.contextmanager
def _archive(path):
    """The arrays of a file, which is closed even where it holds none."""
    with path.open("rb") as file:
        try:
            arrays = np.load(file)
        except (ValueError, EOFError, zipfile.BadZipFile):
            raise ValueError(f"{path} holds no arrays; the file is damaged") from None
        yield arrays


def digest(tree: Any) -> str:
    """SHA-256 of the names, shapes, dtypes and bits of a tree's leaves."""
    arrays = to_numpy(tree)
    found = hashlib.sha256(json.dumps(leaves(arrays), sort_keys=True).encode())
    for _, array in sorted(_by_name(arrays).items()):
        found.update(array.tobytes())
    return found.hexdigest()


def leaves(tree: Any) -> dict[str, list[Any]]:
    """Shape and dtype of the arrays in a tree."""
    return {
        name: [list(leaf.shape), leaf.dtype.name]
        for name, leaf in _by_name(tree).items()
    }


def to_numpy(tree: Any) -> Any:
    """Copy a tree off the devices; JAX keys become their data."""

    def copy(leaf):
        leaf = jax.random.key_data(leaf) if is_key(leaf) else leaf
        return jnp.copy(leaf) if is_split(leaf) else np.array(leaf, copy=True)

    return jax.tree.map(copy, tree)


def is_split(leaf: Any) -> bool:
    """Tell arrays that this process has only a part of."""
    return isinstance(leaf, jax.Array) and not (
        leaf.is_fully_addressable or leaf.is_fully_replicated
    )


def is_key(leaf: Any) -> bool:
    """Tell JAX keys from other arrays."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _is_known(dtype):
    """Whether NumPy reads such an array as it wrote it."""
    return np.dtype(dtype.str) == dtype


def _by_name(tree):
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in found:
            raise ValueError(
                f"two leaves are called {name}, and one would be lost; leave '/' out "
                "of the names of parameters"
            )
        found[name] = leaf
    return found

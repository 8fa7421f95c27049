"""The data sets that need no download: those of scikit-learn, and Python's own texts.

`BUNDLED` makes them, by their name.
"""

import functools
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from signfd_jax.data._own import every_fifth, from_arrays
from signfd_jax.data._text import python_docs
from signfd_jax.data.dataset import Dataset

# The file of each in scikit-learn, and the lines of its head.
_FILES = {
    "digits": ("digits.csv.gz", 0),
    "breast_cancer": ("breast_cancer.csv", 1),
    "wine": ("wine_data.csv", 1),
}


def table(name: str) -> np.ndarray:
    """Rows of features and a label, as `sklearn.datasets.load_...` reads them."""
    # Importing scikit-learn takes two seconds, reading its file a hundredth of one.
    file, head = _FILES[name]
    found = importlib.util.find_spec("sklearn")
    if found is not None and found.origin is not None:
        path = Path(found.origin).parent / "datasets" / "data" / file
        if path.exists():
            return np.loadtxt(path, delimiter=",", skiprows=head)
    from sklearn import datasets

    return np.column_stack(getattr(datasets, f"load_{name}")(return_X_y=True))


def _digits():
    rows = table("digits")
    inputs = rows[:, :-1].astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = rows[:, -1].astype(np.int32)
    is_test = every_fifth(labels)
    train, test = ((inputs[i], labels[i]) for i in (~is_test, is_test))
    scaled = train[0] / 16
    mean = np.array([scaled.mean()], np.float32)
    std = np.array([scaled.std()], np.float32)
    return Dataset("digits", 10, 16.0, *train, *test, mean, std)


def _tabular(name):
    rows = table(name)
    return from_arrays(rows[:, :-1], rows[:, -1].astype(np.int32), name=name)


BUNDLED: Mapping[str, Callable[[], Dataset]] = {
    "digits": _digits,
    "breast_cancer": functools.partial(_tabular, "breast_cancer"),
    "wine": functools.partial(_tabular, "wine"),
    "python_docs": python_docs,
}

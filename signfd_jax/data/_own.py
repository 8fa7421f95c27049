"""Data sets of the user's own: arrays, a file of them, or a saved Hugging Face set.

Shapes: `n` training and `k` test examples.
"""

import importlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from signfd_jax.data.dataset import DataError, Dataset

_WANTED = "it needs arrays inputs [n, ...] and labels [n], as np.savez writes them"


def from_arrays(
    inputs: Any,
    labels: Any,
    test_inputs: Any = None,
    test_labels: Any = None,
    *,
    writers: Any = None,
    name: str = "arrays",
) -> Dataset:
    """Make a data set of arrays.

    Without test examples, every fifth example of each class, in the order given, is
    one. Inputs that are uint8 or float are standardised, each channel (the last axis)
    by its mean and standard deviation over the training examples; uint8 is divided by
    255 first. Other integers, such as tokens, reach the model as they are. Images
    without channels, `[n, height, width]`, get one.

    Args:
        inputs: float, uint8 or integer `[n, ...]`, finite.
        labels: integers `[n]`, from 0; the classes are those up to the largest.
        test_inputs: `[k, ...]`, like `inputs`.
        test_labels: integers `[k]`.
        writers: integers `[n]` from 0, who wrote each of `inputs`, for the split by
            writer; None: it is not known.
        name: what the data set is called.

    Returns:
        A `Dataset`.

    Raises:
        DataError: the arrays are not so; it says which.

    Examples:
        >>> mine = from_arrays(np.random.rand(10, 3), [0, 1] * 5)
        >>> mine.train_inputs.shape, mine.test_inputs.shape, mine.num_classes
        ((8, 3), (2, 3), 2)
    """
    if not isinstance(name, str):
        raise DataError(f"name must be a text, but is {name!r}")
    inputs, labels = _checked(name, "inputs", inputs, "labels", labels)
    if writers is not None:
        writers = _counted(name, "writers", writers, "inputs", len(inputs))
    if (test_inputs is None) != (test_labels is None):
        raise DataError(f"{name}: test_inputs and test_labels come together, or not")
    if test_inputs is None:
        held_out = every_fifth(labels)
        test_inputs, test_labels = inputs[held_out], labels[held_out]
        inputs, labels = inputs[~held_out], labels[~held_out]
        writers = None if writers is None else writers[~held_out]
    else:
        test_inputs, test_labels = _checked(
            name, "test_inputs", test_inputs, "test_labels", test_labels
        )
    if not len(inputs) or not len(test_inputs):
        raise DataError(
            f"{name}: of each class every fifth example is for tests, but no class has "
            "five; give more, or test_inputs and test_labels"
        )
    if test_inputs.shape[1:] != inputs.shape[1:] or test_inputs.dtype != inputs.dtype:
        raise DataError(
            f"{name}: test_inputs are {test_inputs.dtype} {list(test_inputs.shape[1:])}"
            f" each, but inputs {inputs.dtype} {list(inputs.shape[1:])}"
        )
    scale = 255.0 if inputs.dtype == np.uint8 else 1.0
    classes = int(max(labels.max(), test_labels.max())) + 1
    arrays = (inputs, labels, test_inputs, test_labels)
    return Dataset(name, classes, scale, *arrays, *_moments(inputs, scale), writers)


def every_fifth(labels: np.ndarray) -> np.ndarray:
    """Which examples are for tests: every fifth of each class, in their order."""
    order = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[order], labels[order])
    chosen = np.empty(len(labels), bool)
    chosen[order] = (np.arange(len(labels)) - first) % 5 == 4
    return chosen


def _checked(name, what, inputs, whose, labels):
    """The arrays as they are kept, or what is wrong with them."""
    inputs = np.asarray(inputs)
    if inputs.dtype.kind not in "fiub" or inputs.ndim < 2:
        raise DataError(
            f"{name}: {what} must be numbers [n, ...], but are {inputs.dtype} of shape "
            f"{list(inputs.shape)}"
        )
    labels = _counted(name, whose, labels, what, len(inputs))
    if inputs.dtype.kind == "f" and not np.isfinite(inputs).all():
        raise DataError(f"{name}: {what} must be finite, but some are NaN or infinite")
    if inputs.dtype.kind == "f":
        inputs = inputs.astype(np.float32)
    elif inputs.dtype != np.uint8:
        inputs = inputs.astype(np.int32)
    if inputs.ndim == 3 and inputs.dtype != np.int32:
        inputs = inputs[..., None]
    return inputs, labels


def _counted(name, whose, values, what, number):
    """A class or a writer of each example, as int32."""
    values = np.asarray(values)
    if values.dtype.kind not in "iu" or values.shape != (number,):
        raise DataError(
            f"{name}: {whose} must be an integer for each of {number} {what}, but "
            f"are {values.dtype} of shape {list(values.shape)}"
        )
    if values.size and not 0 <= values.min() <= values.max() < 2**31:
        raise DataError(f"{name}: {whose} must count from 0; one is {values.min()}")
    return values.astype(np.int32)


def _moments(inputs, scale):
    """Mean and standard deviation of each channel; a constant one stays at 0."""
    channels = inputs.shape[-1]
    if inputs.dtype == np.int32:
        return np.zeros(channels, np.float32), np.ones(channels, np.float32)
    values = inputs.reshape(-1, channels)
    mean = values.mean(axis=0, dtype=np.float64) / scale
    std = values.std(axis=0, dtype=np.float64) / scale
    return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)


def read_npz(path: Path) -> Dataset:
    """Read a file of NumPy arrays."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        raise DataError(f"{path} is no file of arrays ({error}): {_WANTED}") from None
    known = {"inputs", "labels", "test_inputs", "test_labels", "writers"}
    if not {"inputs", "labels"} <= set(arrays) <= known:
        raise DataError(
            f"{path} holds {', '.join(arrays) or 'nothing'}: {_WANTED}, and, if you "
            "like, test_inputs and test_labels, and writers"
        )
    return from_arrays(**arrays, name=path.stem)


def is_saved_set(path: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote this folder."""
    return any(
        (path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")
    )


def read_saved_set(path: Path) -> Dataset:
    """Read a folder of Hugging Face `datasets`: one column of labels, one of inputs."""
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError:
        raise DataError(
            f"{path} is a folder of Hugging Face datasets: pip install datasets"
        ) from None
    found: Any = datasets.load_from_disk(str(path))
    parts = dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}
    if "train" not in parts:
        raise DataError(f"{path} has no part called train, but {', '.join(parts)}")
    columns = parts["train"].column_names
    labels = [name for name in ("label", "labels") if name in columns]
    rest = [name for name in columns if name not in labels]
    if len(labels) != 1 or len(rest) != 1:
        raise DataError(
            f"{path} has the columns {', '.join(columns)}; it needs one called label "
            "and one of inputs: keep these with select_columns"
        )

    def arrays(part):
        rows = part.with_format("numpy")
        try:
            inputs = np.stack([np.asarray(row) for row in rows[rest[0]][:]])
        except ValueError:
            raise DataError(f"{path}: the {rest[0]} are not of one size") from None
        return inputs, np.asarray(rows[labels[0]][:])

    test = arrays(parts["test"]) if "test" in parts else ()
    return from_arrays(*arrays(parts["train"]), *test, name=path.name)

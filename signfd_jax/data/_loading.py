"""A data set by its name, from wherever it is.

`DATASETS` are the names, `VARYING` those of what is not the same everywhere.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from signfd_jax.data._bundled import BUNDLED
from signfd_jax.data._download import DOWNLOADS, Download, fetch
from signfd_jax.data._files import read
from signfd_jax.data._own import is_saved_set, read_npz, read_saved_set
from signfd_jax.data._places import FILES, local_folder
from signfd_jax.data.dataset import DataError, Dataset

DATASETS: tuple[str, ...] = (*BUNDLED, *FILES)
"""Names that `load` knows."""

VARYING: frozenset[str] = frozenset({"python_docs"})
"""Names of those that another version of Python has otherwise."""


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    downloads: Mapping[str, Download] = DOWNLOADS,
) -> Dataset:
    """Load a data set, checked by file size, number of examples and range of labels.

    The files are sought in `data_dir`, or else in the folder that the environment
    variable `SIGNFD_DATA` names, unless it is empty. Whichever is given must hold them:
    nothing else is tried. With neither, they are downloaded once into the user's cache.

    `digits`, `breast_cancer` and `wine` are bundled with scikit-learn, `python_docs`
    with Python; they need neither. Of the first three every fifth example of each
    class, in the stored order, is a test example; the split never changes. Each column
    of a table is standardised by its training examples. Of what a writer wrote, the
    last fifth is for tests.

    A name that ends in `.npz` is a file of your own, with arrays `inputs` and `labels`;
    one that is a folder of Hugging Face `datasets` (`save_to_disk`) has a column
    `label` and one of inputs. `from_arrays` says what becomes of them.

    Args:
        name: one of `DATASETS`, or a path.
        data_dir: folder with one subfolder for each data set, as in the table of
            `signfd_jax.data`.
        progress: show a progress bar while downloading.
        downloads: where to download from: mirrors of your own, say.

    Returns:
        A `Dataset` of NumPy arrays.

    Raises:
        DataError: the name is unknown, or not among the `downloads`; the files are
            missing, truncated or corrupt; the download failed.

    Examples:
        >>> digits = load("digits")
        >>> digits.train_inputs.shape, digits.test_inputs.shape
        ((1442, 8, 8, 1), (355, 8, 8, 1))

    References:
        LeCun, Cortes and Burges, [MNIST](http://yann.lecun.com/exdb/mnist/); Xiao,
        Rasul and Vollgraf, [Fashion-MNIST](https://arxiv.org/abs/1708.07747);
        Krizhevsky, [CIFAR](https://www.cs.toronto.edu/~kriz/cifar.html), 2009;
        Karpathy, [char-rnn](https://github.com/karpathy/char-rnn), 2015, whose excerpts
        of Shakespeare's plays these are; Wolberg et al., [breast cancer](
        https://doi.org/10.24432/C5DW2B), 1995; Aeberhard and Forina, [wine](
        https://doi.org/10.24432/C5PC7J), 1992.
    """
    check_name(name)
    if name not in DATASETS:
        path = Path(os.path.expanduser(name))
        try:
            return read_npz(path) if path.suffix == ".npz" else read_saved_set(path)
        except OSError as error:
            raise DataError(f"cannot read {name}: {error}") from error
    if name in BUNDLED:
        return BUNDLED[name]()
    if not isinstance(downloads, Mapping) or name not in downloads:
        raise DataError(
            f"downloads must be a table, such as DOWNLOADS, that says where {name!r} "
            "lies"
        )
    if data_dir is None:
        data_dir = os.environ.get("SIGNFD_DATA") or None
    try:
        if data_dir is not None:
            # Where nobody is called so, "~" stays, and no folder is called so either.
            folder = local_folder(name, Path(os.path.expanduser(data_dir)))
        else:
            folder = fetch(name, downloads[name], progress=progress)
        return read(name, folder)
    except OSError as error:
        raise DataError(f"cannot read {name}: {error}") from error


def check_name(name: str) -> None:
    """Refuse what is neither a data set's name nor the path of one.

    Args:
        name: as `load` takes it.

    Raises:
        DataError: it is neither.

    Examples:
        >>> check_name("digits")
    """
    if isinstance(name, str) and name not in DATASETS:
        path = Path(os.path.expanduser(name))
        if path.is_file() if path.suffix == ".npz" else is_saved_set(path):
            return
        if path.suffix == ".npz":
            raise DataError(f"there is no file {name}")
    if name not in DATASETS:
        raise DataError(
            f"unknown data set {name!r}; known are {', '.join(DATASETS)}, a file .npz "
            "and a folder of Hugging Face datasets"
        )

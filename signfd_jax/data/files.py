"""The files of the data sets: which there are, where they are sought, what is in them.

Shapes: `n` examples. `FILES` has what is known of them, by the data set's name.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from signfd_jax.data.dataset import DataError, Dataset

__all__ = ["FILES", "FileSet", "is_complete", "local_folder", "read", "wanted"]


class FileSet(NamedTuple):
    """The local form of a data set.

    Attributes:
        folders: names that its folder may have.
        train: names of the files of training examples.
        test: names of the files of test examples.
        num_train: number of training examples.
        num_test: number of test examples.
        num_classes: number of classes.
        mean: mean of each channel, of inputs between 0 and 1.
        std: standard deviation of the same.
    """

    folders: tuple[str, ...]
    train: tuple[str, ...]
    test: tuple[str, ...]
    num_train: int
    num_test: int
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


_IDX = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    *(60_000, 10_000, 10),
)
FILES: dict[str, FileSet] = {
    "mnist": FileSet(("mnist",), *_IDX, mean=(0.1307,), std=(0.3081,)),
    "fashion_mnist": FileSet(("fashion_mnist",), *_IDX, mean=(0.2860,), std=(0.3530,)),
    "cifar10": FileSet(
        ("cifar10", "cifar-10-batches-bin"),
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        ("test_batch.bin",),
        *(50_000, 10_000, 10),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
    "cifar100": FileSet(
        ("cifar100", "cifar-100-binary"),
        ("train.bin",),
        ("test.bin",),
        *(50_000, 10_000, 100),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
}
"""Of every data set that is read from files."""


# ------------------------------------------------------------------ finding the files


def wanted(name: str) -> str:
    """Say which folder and files a data folder should hold.

    Args:
        name: a key of `FILES`.

    Returns:
        A phrase.

    Examples:
        >>> wanted("cifar100")
        'cifar100/ with train.bin, test.bin'
    """
    files = FILES[name]
    gz = "" if name.startswith("cifar") else " (or .gz)"
    return f"{files.folders[0]}/ with {', '.join(files.train + files.test)}{gz}"


def local_folder(name: str, data_dir: Path) -> Path:
    """Find the folder of a data set in a data folder.

    Args:
        name: a key of `FILES`.
        data_dir: the data folder.

    Returns:
        The folder that holds the first of its files; the others are not looked for.

    Raises:
        DataError: there is none.

    Examples:
        >>> data_dir = getfixture("tmp_path")
        >>> (data_dir / "cifar-100-binary").mkdir()
        >>> (data_dir / "cifar-100-binary" / "train.bin").touch()
        >>> local_folder("cifar100", data_dir).name
        'cifar-100-binary'
    """
    if not data_dir.is_dir():
        raise DataError(
            f"the data folder {data_dir} does not exist; for {name} it must hold "
            f"{wanted(name)}"
        )
    files = FILES[name]
    for folder in files.folders:
        if _found(data_dir / folder, files.train[0]):
            return data_dir / folder
    raise DataError(
        f"the data folder {data_dir} holds no {name}; put there {wanted(name)}"
    )


def _found(folder, file):
    """The file in the folder, plain or gzipped; None if there is neither."""
    paths = (folder / file, folder / f"{file}.gz")
    return next((path for path in paths if path.is_file()), None)


def is_complete(files: FileSet, folder: Path) -> bool:
    """Whether all files of a CIFAR set lie in a folder, and have their sizes.

    Args:
        files: a value of `FILES`.
        folder: where they should be.

    Returns:
        True if nothing is left to unpack.

    Examples:
        >>> is_complete(FILES["cifar10"], getfixture("tmp_path"))
        False
    """
    record = _label_bytes(files) + 3072
    for names, num in ((files.train, files.num_train), (files.test, files.num_test)):
        for path in (folder / name for name in names):
            size = num // len(names) * record
            if not (path.is_file() and path.stat().st_size == size):
                return False
    return True


# ------------------------------------------------------------------ reading the files


def read(name: str, folder: Path) -> Dataset:
    """Read a data set, and check file sizes, number of examples and range of labels.

    Args:
        name: a key of `FILES`.
        folder: where its files are.

    Returns:
        A `Dataset` of NumPy arrays.

    Raises:
        DataError: a file is missing, truncated or corrupt.
        OSError: a file cannot be read.

    Examples:
        >>> read("mnist", getfixture("tmp_path"))
        Traceback (most recent call last):
        signfd_jax.data.dataset.DataError: ...: put it there
    """
    files = FILES[name]
    read_files = _read_cifar if name.startswith("cifar") else _read_idx
    train = read_files(files, folder, files.train, files.num_train)
    test = read_files(files, folder, files.test, files.num_test)
    mean, std = (np.array(x, np.float32) for x in (files.mean, files.std))
    return Dataset(name, files.num_classes, 255.0, *train, *test, mean, std)


def _content(folder, file):
    """Path and uncompressed bytes of one file."""
    path = _found(folder, file)
    if path is None:
        raise DataError(f"{folder / file} is missing: put it there")
    if path.suffix != ".gz":
        return path, path.read_bytes()
    try:
        return path, gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is not a sound gzip file ({error}); fetch it again"
        ) from error


def _read_idx(files, folder, names, num):
    inputs = _idx(folder, names[0], (num, 28, 28))
    labels = _idx(folder, names[1], (num,))
    return inputs[..., None], _checked_labels(folder / names[1], labels, files)


def _idx(folder, name, shape):
    """Array of one IDX file: two zero bytes, type 8, rank, the lengths, the bytes."""
    path, content = _content(folder, name)
    start = 4 + 4 * len(shape)
    header = np.array([0x0800 + len(shape), *shape], ">u4").tobytes()
    if content[:4] != header[:4]:
        raise DataError(
            f"{path} is no IDX file of bytes in {len(shape)} dimensions: it begins "
            f"with {content[:4].hex() or 'nothing'}, not {header[:4].hex()}; fetch it "
            "again"
        )
    if len(content) >= start and content[:start] != header:
        found = tuple(np.frombuffer(content, ">u4", len(shape), 4).tolist())
        raise DataError(f"{path} announces an array {found}, not {shape}")
    _check_size(path, content, start + math.prod(shape))
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _label_bytes(files):
    return 2 if files.num_classes == 100 else 1  # the coarse label comes first


def _read_cifar(files, folder, names, num):
    start, records = _label_bytes(files), []
    for name in names:
        path, content = _content(folder, name)
        _check_size(path, content, num // len(names) * (start + 3072))
        content = np.frombuffer(content, np.uint8).reshape(-1, start + 3072)
        _checked_labels(path, content[:, start - 1], files)
        records.append(content)
    records = np.concatenate(records)
    planes = records[:, start:].reshape(-1, 3, 32, 32)
    inputs = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return inputs, records[:, start - 1].astype(np.int32)


def _check_size(path, content, size):
    if len(content) != size:
        wrong = "truncated" if len(content) < size else "too long"
        raise DataError(
            f"{path} is {wrong}: {len(content):,} bytes of data, not {size:,}; fetch "
            "it again"
        )


def _checked_labels(path, labels, files):
    if labels.max() >= files.num_classes:
        raise DataError(
            f"{path} has a label {labels.max()}; labels must be below "
            f"{files.num_classes}"
        )
    return labels.astype(np.int32)

"""The files of the data sets: what is in them, and whether it is sound.

Shapes: `n` examples.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from signfd_jax.data import _pickled as pickled
from signfd_jax.data._places import FILES, found
from signfd_jax.data._text import from_texts, speeches
from signfd_jax.data.dataset import DataError, Dataset


def read(name: str, folder: Path) -> Dataset:
    """Read a data set, and check file sizes, number of examples and range of labels."""
    files = FILES[name]
    if not files.test:
        return _read_play(name, folder)
    read_files = _read_cifar if name.startswith("cifar") else _read_idx
    train = read_files(files, folder, files.train, files.num_train)
    test = read_files(files, folder, files.test, files.num_test)
    mean, std = (np.array(x, np.float32) for x in (files.mean, files.std))
    return Dataset(name, files.num_classes, 255.0, *train, *test, mean, std)


def _content(folder, file):
    """Path and uncompressed bytes of one file."""
    path = found(folder, file)
    if path is None:
        raise DataError(f"{folder / file} is missing: put it there")
    if file.endswith(".bin") and path.suffix == "":
        return path, pickled.records(path)
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


def _read_cifar(files, folder, names, num):
    start, records = files.label_bytes, []
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


def _read_play(name, folder):
    """The speeches of a play: 80 characters at a time, as LEAF has them."""
    files = FILES[name]
    path, content = _content(folder, files.train[0])
    _check_size(path, content, files.num_train)
    try:
        said = speeches(content.decode("ascii"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is no text in ASCII ({error}); fetch it again"
        ) from None
    if not said:
        raise DataError(
            f"{path} has no speeches, each a name with a colon and the lines below it; "
            "fetch it again"
        )
    return from_texts(said, context=80, name=name)


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

"""Load the data sets: from a folder, or downloaded once into the user's cache.

Shapes: `n` examples; images `[n, height, width, channels]`, uint8 as stored; labels
int32 `[n]` in `[0, num_classes)`.

| name | training, test | image | where it comes from |
|---|---|---|---|
| `digits` | 1442, 355 | 8 x 8 x 1 | bundled with scikit-learn: no download |
| `mnist` | 60,000, 10,000 | 28 x 28 x 1 | `mnist/`, IDX files, gzipped or not |
| `fashion_mnist` | 60,000, 10,000 | 28 x 28 x 1 | `fashion_mnist/`, likewise |
| `cifar10` | 50,000, 10,000 | 32 x 32 x 3 | `cifar10/` or `cifar-10-batches-bin/` |
| `cifar100` | 50,000, 10,000 | 32 x 32 x 3 | `cifar100/` or `cifar-100-binary/` |

The folders are those of a data folder, given by hand or by the variable `SIGNFD_DATA`;
the CIFAR files in them have the binary layout. `DATASETS` lists the names, `DOWNLOADS`
the sources.
"""

import dataclasses
import gzip
import math
import os
import shutil
import tarfile
import tempfile
import textwrap
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pooch

__all__ = [
    "DATASETS",
    "DOWNLOADS",
    "DataError",
    "Dataset",
    "Download",
    "load",
    "standardise",
]


class DataError(ValueError):
    """A data set is missing or damaged; the message is one line, with the remedy."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training and test examples, as stored; a pytree, so that it can enter a jit.

    Attributes:
        name: its name in `DATASETS`; static under jit, as are the next two.
        num_classes: number of classes.
        scale: the stored value that stands for 1.
        train_inputs: uint8 `[n, height, width, channels]`.
        train_labels: int32 `[n]`, in `[0, num_classes)`.
        test_inputs: uint8 `[k, ...]`, as `train_inputs`.
        test_labels: int32 `[k]`, as `train_labels`.
        mean: float32 `[channels]`, mean of the inputs divided by `scale`.
        std: float32 `[channels]`, standard deviation of the same.
    """

    name: str = dataclasses.field(metadata={"static": True})
    num_classes: int = dataclasses.field(metadata={"static": True})
    scale: float = dataclasses.field(metadata={"static": True})
    train_inputs: np.ndarray | jax.Array
    train_labels: np.ndarray | jax.Array
    test_inputs: np.ndarray | jax.Array
    test_labels: np.ndarray | jax.Array
    mean: np.ndarray | jax.Array
    std: np.ndarray | jax.Array


class Download(NamedTuple):
    """Where the files of a data set lie on the internet.

    Attributes:
        base_url: what comes before a file's name, with its last slash.
        md5: hash of each file, by its name.
    """

    base_url: str
    md5: Mapping[str, str]


class _Files(NamedTuple):
    """The local form of a data set; training files, test files."""

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
_FILES = {
    "mnist": _Files(("mnist",), *_IDX, mean=(0.1307,), std=(0.3081,)),
    "fashion_mnist": _Files(("fashion_mnist",), *_IDX, mean=(0.2860,), std=(0.3530,)),
    "cifar10": _Files(
        ("cifar10", "cifar-10-batches-bin"),
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        ("test_batch.bin",),
        *(50_000, 10_000, 10),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
    "cifar100": _Files(
        ("cifar100", "cifar-100-binary"),
        ("train.bin",),
        ("test.bin",),
        *(50_000, 10_000, 100),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
}

DATASETS: tuple[str, ...] = ("digits", *_FILES)
"""Names that `load` knows."""

DOWNLOADS: Mapping[str, Download] = {
    "mnist": Download(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion_mnist": Download(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "cifar10": Download(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
    ),
    "cifar100": Download(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"},
    ),
}
"""The public mirrors, with the hashes that the data sets' authors publish."""


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

    `digits` is bundled with scikit-learn and needs neither. Every fifth example of each
    class, in the stored order, is a test example; the split never changes.

    Args:
        name: one of `DATASETS`.
        data_dir: folder with one subfolder for each data set (see the module's table).
        progress: show a progress bar while downloading.
        downloads: where to download from: mirrors of your own, say.

    Returns:
        A `Dataset` of NumPy arrays.

    Raises:
        DataError: the name is unknown; the files are missing, truncated or corrupt; the
            download failed.

    Examples:
        >>> digits = load("digits")
        >>> digits.train_inputs.shape, digits.test_inputs.shape
        ((1442, 8, 8, 1), (355, 8, 8, 1))

    References:
        LeCun, Cortes and Burges, [MNIST](http://yann.lecun.com/exdb/mnist/); Xiao,
        Rasul and Vollgraf, [Fashion-MNIST](https://arxiv.org/abs/1708.07747);
        Krizhevsky, [CIFAR](https://www.cs.toronto.edu/~kriz/cifar.html), 2009.
    """
    if name not in DATASETS:
        raise DataError(f"unknown data set {name!r}; known are {', '.join(DATASETS)}")
    if name == "digits":
        return _digits()
    if data_dir is None:
        data_dir = os.environ.get("SIGNFD_DATA") or None
    if data_dir is not None:
        folder = _local_folder(name, Path(data_dir).expanduser())
    else:
        folder = _download(name, downloads[name], progress)
    try:
        return _read(name, folder)
    except OSError as error:
        raise DataError(f"cannot read {name}: {error}") from error


def standardise(inputs: jax.Array | np.ndarray, dataset: Dataset) -> jax.Array:
    r"""Turn stored inputs into a network's: $(x / \text{scale} - \mu) / \sigma$.

    It is done batch by batch on the device, so that only uint8 is kept and gathered.

    Args:
        inputs: uint8 `[..., channels]`.
        dataset: whose `mean`, `std` and `scale` to use.

    Returns:
        float32, shaped like `inputs`.

    Examples:
        >>> digits = load("digits")
        >>> print(standardise(digits.train_inputs, digits).std())
        1.0
    """
    shape = (1,) * (inputs.ndim - 1) + (-1,)
    mean, std = (jnp.reshape(x, shape) for x in (dataset.mean, dataset.std))
    return (jnp.asarray(inputs).astype(jnp.float32) / dataset.scale - mean) / std


def _digits():
    from sklearn.datasets import load_digits  # slow to import, and only used here

    inputs, labels = load_digits(return_X_y=True)
    inputs = inputs.reshape(-1, 8, 8, 1).astype(np.uint8)
    labels = labels.astype(np.int32)
    order = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[order], np.arange(10))
    is_test = np.empty(len(labels), bool)
    is_test[order] = (np.arange(len(labels)) - first[labels[order]]) % 5 == 4
    train, test = ((inputs[i], labels[i]) for i in (~is_test, is_test))
    scaled = train[0] / 16
    mean = np.array([scaled.mean()], np.float32)
    std = np.array([scaled.std()], np.float32)
    return Dataset("digits", 10, 16.0, *train, *test, mean, std)


# ------------------------------------------------------------------ finding the files


def _found(folder, file):
    """The file in the folder, plain or gzipped; None if there is neither."""
    paths = (folder / file, folder / f"{file}.gz")
    return next((path for path in paths if path.is_file()), None)


def _wanted(name):
    """The folder and files that a data folder should hold, in words."""
    files = _FILES[name]
    gz = "" if name.startswith("cifar") else " (or .gz)"
    return f"{files.folders[0]}/ with {', '.join(files.train + files.test)}{gz}"


def _local_folder(name, data_dir):
    if not data_dir.is_dir():
        raise DataError(
            f"the data folder {data_dir} does not exist; for {name} it must hold "
            f"{_wanted(name)}"
        )
    files = _FILES[name]
    for folder in files.folders:
        if _found(data_dir / folder, files.train[0]):
            return data_dir / folder
    raise DataError(
        f"the data folder {data_dir} holds no {name}; put there {_wanted(name)}"
    )


def _download(name, download, progress):
    """The cache folder of the data set, its files fetched unless they are there."""
    files = _FILES[name]
    folder = Path(pooch.os_cache("signfd_jax")) / files.folders[0]
    pooch.get_logger().setLevel("WARNING")  # the bar says enough
    try:
        for file, md5 in download.md5.items():
            is_archive = file.endswith(".tar.gz")
            if is_archive and _is_unpacked(files, folder):
                continue
            downloader: Any = pooch.HTTPDownloader(progressbar=progress, timeout=30)
            path = pooch.retrieve(
                download.base_url + file,
                known_hash=f"md5:{md5}",
                fname=file,
                path=folder,
                downloader=downloader,
            )
            if is_archive:
                _unpack(Path(path), files.train + files.test)
    except (OSError, ValueError, tarfile.TarError) as error:
        reason = str(error).partition(" with url: ")[0]
        reason = textwrap.shorten(reason, 200, placeholder=" ...")
        raise DataError(
            f"could not download {name}: put {_wanted(name)} into a folder and name "
            f"that folder by --data-dir (data_dir=) or SIGNFD_DATA ({reason})"
        ) from error
    return folder


def _is_unpacked(files, folder):
    record = _label_bytes(files) + 3072
    for names, num in ((files.train, files.num_train), (files.test, files.num_test)):
        for path in (folder / name for name in names):
            size = num // len(names) * record
            if not (path.is_file() and path.stat().st_size == size):
                return False
    return True


def _unpack(archive, names):
    """Copy the named files out of the archive to beside it, then delete it.

    Only the content of regular files is taken, and written under names of ours: no
    path, link or permission in the archive has any effect.
    """
    with tarfile.open(archive) as tar:
        members = {Path(m.name).name: m for m in tar if m.isfile()}
        for name in names:
            if name not in members:
                raise DataError(f"{archive.name} holds no {name}")
            content = tar.extractfile(members[name])
            assert content is not None  # members are regular files
            with tempfile.NamedTemporaryFile(dir=archive.parent, delete=False) as file:
                shutil.copyfileobj(content, file)
            os.replace(file.name, archive.parent / name)
    archive.unlink(missing_ok=True)


# ------------------------------------------------------------------ reading the files


def _read(name, folder):
    files = _FILES[name]
    read = _read_cifar if name.startswith("cifar") else _read_idx
    train = read(files, folder, files.train, files.num_train)
    test = read(files, folder, files.test, files.num_test)
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

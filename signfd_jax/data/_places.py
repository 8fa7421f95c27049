"""Where the files of the data sets lie, under our names, torchvision's and Kaggle's.

`FILES` has what is known of them, by the data set's name.
"""

import gzip
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from signfd_jax.data.dataset import DataError


class FileSet(NamedTuple):
    """The local form of a data set.

    Attributes:
        folders: names that its folder may have.
        train: names of the files of training examples.
        test: names of the files of test examples.
        num_train: number of training examples; of a text, of its bytes.
        num_test: number of test examples; of a text, and below, nothing.
        num_classes: number of classes.
        mean: mean of each channel, of inputs between 0 and 1.
        std: standard deviation of the same.
    """

    folders: tuple[str, ...]
    train: tuple[str, ...]
    test: tuple[str, ...]
    num_train: int
    num_test: int = 0
    num_classes: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def label_bytes(self) -> int:
        """Bytes of labels before each image of CIFAR; a coarse one comes first."""
        return 2 if self.num_classes == 100 else 1


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
    "shakespeare": FileSet(
        ("shakespeare", "tinyshakespeare", "tiny_shakespeare"),
        ("input.txt",),
        (),
        num_train=1_115_394,
    ),
}
"""Of every data set that is read from files."""


def wanted(name: str) -> str:
    """Say which folder and files a data folder should hold."""
    files = FILES[name]
    gz = "" if name.startswith("cifar") else " (or .gz)"
    return f"{files.folders[0]}/ with {', '.join(files.train + files.test)}{gz}"


# What others add to a set's name, small letters and digits alone.
_SUFFIXES = "(dataset|data|batchesbin|batchespy|binary|python)?"
# The files of both are called alike, so that their first labels must tell them apart.
_FIRST_LABELS = {"mnist": [5, 0, 4, 1, 9], "fashion_mnist": [9, 0, 0, 3, 0]}


def local_folder(name: str, data_dir: Path) -> Path:
    """Find the folder of a data set in a data folder.

    It may be called as another library calls it, lie in a folder of its own name, or
    be the data folder itself.
    """
    if not data_dir.is_dir():
        wrong = "is no folder" if data_dir.exists() else "does not exist"
        raise DataError(
            f"the data folder {data_dir} {wrong}; for {name} it must hold "
            f"{wanted(name)}"
        )
    files = FILES[name]
    ours = [data_dir / folder for folder in files.folders]
    for folder in [*ours, *_called(name, data_dir)]:
        if found(folder, files.train[0]):
            return folder
    for folder in (data_dir, data_dir / "raw"):
        if found(folder, files.train[0]) and _is_of(name, folder):
            return folder
    content = ", ".join(sorted(path.name for path in data_dir.iterdir())) or "nothing"
    content = textwrap.shorten(content, 100, placeholder=" ...")
    raise DataError(
        f"the data folder {data_dir} holds no {name}, but {content}; put there "
        f"{wanted(name)}"
    )


def _called(name, folder, depth=3) -> Iterator[Path]:
    """Folders that are called like the set, whoever wrote it, and those inside them."""
    for path in sorted(folder.iterdir()) if depth else ():
        if _is_called(name, path.name) and path.is_dir():
            yield path
            yield path / "raw"
            yield from _called(name, path, depth - 1)


def _is_called(name, text):
    plain = re.sub("[^a-z0-9]", "", text.lower())
    return re.fullmatch(name.replace("_", "") + _SUFFIXES, plain) is not None


def _is_of(name, folder):
    """Whether files that lie about are those of the set, and not of one like it."""
    parents = folder.absolute().parts[-2:]
    if name not in _FIRST_LABELS or any(_is_called(name, part) for part in parents):
        return True
    path = found(folder, FILES[name].train[1])
    if path is None:
        return False
    opened = gzip.open(path) if path.suffix == ".gz" else path.open("rb")
    with opened as file:
        return list(file.read(13)[8:]) == _FIRST_LABELS[name]


def found(folder: Path, file: str) -> Path | None:
    """Find a file, plain or gzipped, under any of its names."""
    names = dict.fromkeys(
        (file, file.replace("-idx", ".idx"), file.removesuffix(".bin"))
    )
    for name in names:
        for path in (folder / name, folder / f"{name}.gz", folder / name / name):
            if path.is_file():
                return path
    return None


def is_complete(files: FileSet, folder: Path) -> bool:
    """Whether all files of a CIFAR set lie in a folder, and have their sizes."""
    record = files.label_bytes + 3072
    for names, num in ((files.train, files.num_train), (files.test, files.num_test)):
        for path in (folder / name for name in names):
            size = num // len(names) * record
            if not (path.is_file() and path.stat().st_size == size):
                return False
    return True

"""Data sets downloaded once into the user's cache, their hashes checked.

`DOWNLOADS` has the sources, by the data set's name.
"""

import os
import shutil
import tarfile
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pooch

from signfd_jax.data._places import FILES, is_complete, wanted
from signfd_jax.data.dataset import DataError


class Download(NamedTuple):
    """Where the files of a data set lie on the internet.

    Attributes:
        base_url: what comes before a file's name, with its last slash.
        md5: hash of each file, by its name.
    """

    base_url: str
    md5: Mapping[str, str]


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
    "shakespeare": Download(
        "https://raw.githubusercontent.com/karpathy/char-rnn/"
        "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/",
        {"input.txt": "6fb458f1232090904fb40fe944165e91"},
    ),
}
"""The public mirrors, with the hashes that the data sets' authors publish; of
`shakespeare`, which has none, that of the file in this commit."""


def users_cache() -> Path:
    """The folder of what this library keeps for the user, as the platform has it."""
    return Path(pooch.os_cache("signfd_jax"))


def fetch(name: str, download: Download, *, progress: bool = True) -> Path:
    """Download the files of a data set, unless the user's cache has them."""
    files = FILES[name]
    folder = users_cache() / files.folders[0]
    if not folder.is_absolute():
        raise DataError(
            f"there is no home to download {name} to (HOME and XDG_CACHE_HOME are not "
            f"set): put {wanted(name)} into a folder and name that folder by "
            "--data-dir (data_dir=) or SIGNFD_DATA"
        )
    pooch.get_logger().setLevel("WARNING")  # the bar says enough
    try:
        for file, md5 in download.md5.items():
            is_archive = file.endswith(".tar.gz")
            if is_archive and is_complete(files, folder):
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
            f"could not download {name}: put {wanted(name)} into a folder and name "
            f"that folder by --data-dir (data_dir=) or SIGNFD_DATA ({reason})"
        ) from error
    return folder


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

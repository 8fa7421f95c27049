"""Loading: from folders and a local server, sound files and damaged ones."""

import functools
import gc
import gzip
import hashlib
import http.server
import io
import os
import pickle
import re
import shutil
import tarfile
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pooch
import pytest
import sklearn.datasets

from signfd_jax import data
from signfd_jax.data import _bundled as bundled
from signfd_jax.data._places import FILES

NAMES = ["mnist", "fashion_mnist", "cifar10", "cifar100", "shakespeare"]
# Two speak long enough to be in both parts; the third is on stage and silent.
SPEECHES = [
    ("HAMLET", "To be, or not to be: that is the question.\n" * 4 + "Words."),
    ("OPHELIA", "I shall the effect of this good lesson keep. " * 12),
    ("GHOST", ""),
    ("HAMLET", "Alas, poor Yorick! I knew him, Horatio. " * 8),
]
PLAY = "\n\n".join(f"{name}:\n{speech}".strip() for name, speech in SPEECHES) + "\n"


@pytest.fixture(autouse=True)
def small_sets(monkeypatch, tmp_path):
    """Every set has 20 training and 10 test examples; nothing leaves this machine."""
    for name in NAMES:
        small = FILES[name]._replace(num_train=20, num_test=10)
        if name == "shakespeare":
            small = FILES[name]._replace(num_train=len(PLAY))
        monkeypatch.setitem(FILES, name, small)
    monkeypatch.delenv("SIGNFD_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)


def idx(array):
    header = np.array([0x0800 + array.ndim, *array.shape], ">u4")
    return header.tobytes() + array.astype(np.uint8).tobytes()


def examples(name, num, seed):
    """Random images, channels last, and labels with all classes' extremes."""
    rng = np.random.default_rng(seed)
    shape = (32, 32, 3) if "cifar" in name else (28, 28, 1)
    classes = 100 if name == "cifar100" else 10
    labels = rng.integers(0, classes, num)
    labels[:2] = 0, classes - 1
    return rng.integers(0, 256, (num, *shape)), labels


def contents(name):
    """The files of a small set by name, uncompressed."""
    if name == "shakespeare":
        return {"input.txt": PLAY.encode()}
    files = {}
    for part, names, num in (("train", 0, 20), ("t10k", 1, 10)):
        images, labels = examples(name, num, seed=names)
        if "cifar" not in name:
            files[f"{part}-images-idx3-ubyte"] = idx(images[..., 0])
            files[f"{part}-labels-idx1-ubyte"] = idx(labels)
            continue
        planes = images.transpose(0, 3, 1, 2).reshape(num, -1)
        columns = [labels[:, None], planes]
        if name == "cifar100":
            columns.insert(0, labels[:, None] // 5)
        records = np.concatenate(columns, axis=1).astype(np.uint8)
        names = (FILES[name].train, FILES[name].test)[names]
        for file, rows in zip(names, np.split(records, len(names)), strict=True):
            files[file] = rows.tobytes()
    return files


def write(folder, name, subfolder=None, compress=False):
    folder = folder / (subfolder or FILES[name].folders[0])
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in contents(name).items():
        if compress:
            (folder / f"{file}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / file).write_bytes(content)
    return folder


def check(dataset, name):
    assert dataset.name == name
    if name == "shakespeare":
        return check_play(dataset)
    for part, num, seed in (("train", 20, 0), ("test", 10, 1)):
        images, labels = examples(name, num, seed)
        inputs = getattr(dataset, f"{part}_inputs")
        assert inputs.dtype == np.uint8
        np.testing.assert_array_equal(inputs, images)
        assert getattr(dataset, f"{part}_labels").dtype == np.int32
        np.testing.assert_array_equal(getattr(dataset, f"{part}_labels"), labels)
    assert dataset.num_classes == (100 if name == "cifar100" else 10)
    assert dataset.mean.shape == dataset.std.shape == dataset.train_inputs.shape[-1:]


def check_play(dataset):
    """Each speaker's speeches in their order, 80 characters at a time."""
    said = {"HAMLET": "", "OPHELIA": ""}
    for name, speech in SPEECHES:
        if speech:
            said[name] += speech.strip() + "\n"
    parts = {"train": [], "test": []}
    for writer, text in enumerate(said.values()):
        border = len(text) - len(text) // 5
        for part, rest in (("train", text[:border]), ("test", text[border:])):
            while len(rest) > 80:
                parts[part].append((rest[:80], rest[1:81], writer))
                rest = rest[80:]
    assert all(parts.values())
    for part, rows in parts.items():
        for row, found, label in zip(
            rows,
            getattr(dataset, f"{part}_inputs"),
            getattr(dataset, f"{part}_labels"),
            strict=True,
        ):
            assert (decoded(found), decoded(label)) == row[:2]
    assert dataset.writers.tolist() == [row[2] for row in parts["train"]]


def decoded(tokens):
    return "".join("\n" if token == 95 else chr(32 + token) for token in tokens)


def error_of(*args, **options):
    with pytest.raises(data.DataError) as caught:
        data.load(*args, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_reads_a_folder(name, compress, tmp_path):
    write(tmp_path, name, compress=compress)
    check(data.load(name, data_dir=tmp_path), name)
    check(data.load(name, data_dir=str(tmp_path)), name)


@pytest.mark.parametrize(
    ("name", "folder"),
    [("cifar10", "cifar-10-batches-bin"), ("cifar100", "cifar-100-binary")],
)
def test_reads_the_folder_of_the_archive(name, folder, tmp_path):
    write(tmp_path, name, folder)
    (tmp_path / name).mkdir()  # an empty one of the other name does not hide it
    check(data.load(name, data_dir=tmp_path), name)


def pickled(folder, name, keys):
    """The Python version of a small set, as its authors pickled it with Python 2."""
    folder.mkdir(parents=True)
    for file, content in contents(name).items():
        rows = np.frombuffer(content, np.uint8)
        rows = rows.reshape(-1, len(keys) + 3072)
        table = {key: rows[:, i].tolist() for i, key in enumerate(keys)}
        table |= {b"data": rows[:, len(keys) :], b"filenames": [b"a.png"] * len(rows)}
        path = folder / file.removesuffix(".bin")
        path.write_bytes(pickle.dumps(table, protocol=2))


def under_other_names(name, folder, rename=str, nested=False):
    """The files of a set in a folder of somebody else's, under his names."""
    folder.mkdir(parents=True)
    for file, content in contents(name).items():
        path = folder / rename(file)
        if nested:
            path.mkdir()
            path = path / rename(file)
        path.write_bytes(content)


def kaggle(file):
    return file.replace("-idx", ".idx")


LAYOUTS = {
    "mnist": [
        lambda root: under_other_names("mnist", root / "MNIST" / "raw"),
        lambda root: under_other_names("mnist", root / "mnist-dataset", kaggle),
        lambda root: under_other_names("mnist", root / "mnist", kaggle, nested=True),
        lambda root: under_other_names("mnist", root / "mnist" / "MNIST" / "raw"),
    ],
    "fashion_mnist": [
        lambda root: under_other_names("fashion_mnist", root / "FashionMNIST" / "raw"),
        lambda root: under_other_names("fashion_mnist", root / "fashion-mnist"),
    ],
    "cifar10": [
        lambda root: pickled(root / "cifar-10-batches-py", "cifar10", [b"labels"]),
        lambda root: pickled(
            root / "cifar10" / "cifar-10-batches-py", "cifar10", ["labels"]
        ),
        lambda root: under_other_names(
            "cifar10", root / "cifar10/cifar-10-batches-bin"
        ),
    ],
    "shakespeare": [
        lambda root: under_other_names("shakespeare", root / "tinyshakespeare"),
        lambda root: under_other_names("shakespeare", root / "Shakespeare dataset"),
    ],
    "cifar100": [
        lambda root: pickled(
            root / "cifar-100-python", "cifar100", [b"coarse_labels", b"fine_labels"]
        ),
    ],
}


@pytest.mark.parametrize(
    ("name", "lay"), [(name, lay) for name in LAYOUTS for lay in LAYOUTS[name]]
)
def test_reads_what_others_lay_down(name, lay, tmp_path):
    for other in set(NAMES) - {name}:  # which are not taken for it
        LAYOUTS[other][0](tmp_path)
    lay(tmp_path / "theirs")
    check(data.load(name, data_dir=tmp_path / "theirs"), name)
    others = tmp_path / "theirs"
    shutil.rmtree(others)
    assert f"holds no {name}, but" in error_of(name, data_dir=tmp_path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("inside", ["", "raw"])
def test_folder_of_the_set_itself(name, inside, tmp_path):
    folder = write(tmp_path, name, f"{name}/{inside}")
    check(data.load(name, data_dir=tmp_path / name), name)
    check(data.load(name, data_dir=folder), name)


def test_folder_of_no_name_is_known_by_its_labels(tmp_path):
    """MNIST and Fashion-MNIST call their files alike."""
    folder = write(tmp_path, "mnist", "archive")
    labels = folder / "train-labels-idx1-ubyte"
    header, rest = labels.read_bytes()[:8], labels.read_bytes()[13:]
    for name, other, first in (
        ("mnist", "fashion_mnist", [5, 0, 4, 1, 9]),
        ("fashion_mnist", "mnist", [9, 0, 0, 3, 0]),
    ):
        labels.write_bytes(header + bytes(first) + rest)
        assert data.load(name, data_dir=folder).train_labels[:5].tolist() == first
        assert f"holds no {other}, but t10k-" in error_of(other, data_dir=folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        pickle.dumps({b"labels": [1], b"data": [2]}),
        pickle.dumps([1, 2]),
        pickle.dumps({b"labels": [300], b"data": np.zeros((1, 3072), np.uint8)}),
        b"cos\nsystem\n(S'touch struck'\ntR.",
    ],
)
def test_unsound_pickles_are_named_and_run_nothing(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickled(tmp_path / "cifar-10-batches-py", "cifar10", [b"labels"])
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(content)
    assert f"{path} is not a sound file" in error_of("cifar10", data_dir=tmp_path)
    assert not (tmp_path / "struck").exists()


def test_places_that_are_none(tmp_path, monkeypatch):
    message = error_of("mnist", data_dir="~nobody-is-called-so/data")
    assert "~nobody-is-called-so/data does not exist" in message
    (tmp_path / "mnist.zip").touch()
    message = error_of("mnist", data_dir=tmp_path / "mnist.zip")
    assert "mnist.zip is no folder" in message
    assert "holds no mnist, but mnist.zip" in error_of("mnist", data_dir=tmp_path)
    monkeypatch.setattr(pooch, "os_cache", lambda name: f"~/.cache/{name}")
    assert "there is no home to download mnist to" in error_of("mnist")
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "sets", "mnist")
    check(data.load("mnist", data_dir="~/sets"), "mnist")


def test_environment_names_the_folder_and_the_argument_wins(tmp_path, monkeypatch):
    write(tmp_path / "full", "mnist")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("SIGNFD_DATA", str(tmp_path / "full"))
    check(data.load("mnist"), "mnist")
    assert "holds no mnist" in error_of("mnist", data_dir=tmp_path / "empty")
    monkeypatch.setenv("SIGNFD_DATA", str(tmp_path / "empty"))
    assert "holds no mnist" in error_of("mnist")
    check(data.load("mnist", data_dir=tmp_path / "full"), "mnist")


@pytest.mark.parametrize("name", NAMES)
def test_explicit_folder_never_falls_through_to_the_cache(name, tmp_path):
    write(tmp_path / "cache" / "signfd_jax", name)
    (tmp_path / "empty").mkdir()
    message = error_of(name, data_dir=tmp_path / "empty")
    assert str(tmp_path / "empty") in message
    assert all(file in message for file in contents(name))
    message = error_of(name, data_dir=tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'} does not exist" in message


def other_header(content, position, value):
    return content[:position] + bytes([value]) + content[position + 1 :]


DAMAGES = [
    # file, what happens to its content, what the message says
    ("train-images-idx3-ubyte", lambda x: x[:-1], r"truncated: 15,695 .* not 15,696"),
    ("train-images-idx3-ubyte", lambda x: x + b"0", "too long"),
    ("train-images-idx3-ubyte", lambda x: x[:6], "truncated"),
    ("train-images-idx3-ubyte", lambda x: b"", "no IDX file"),
    ("train-images-idx3-ubyte", lambda x: b"<html>" + x, "no IDX file"),
    (
        "train-images-idx3-ubyte",
        lambda x: other_header(x, 7, 19),
        r"\(19, 28, 28\), not",
    ),
    (
        "train-labels-idx1-ubyte",
        lambda x: other_header(x, 7, 21),
        r"\(21,\), not \(20,",
    ),
    ("t10k-labels-idx1-ubyte", lambda x: x[:-1] + b"\x0a", "label 10; .* below 10"),
    ("t10k-labels-idx1-ubyte", None, "is missing"),
    ("t10k-images-idx3-ubyte", None, "is missing"),
]


@pytest.mark.parametrize(("file", "damage", "says"), DAMAGES)
def test_damaged_idx_files_are_named(file, damage, says, tmp_path):
    path = write(tmp_path, "mnist") / file
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    message = error_of("mnist", data_dir=tmp_path)
    assert file in message
    assert re.search(says, message)


@pytest.mark.parametrize(
    "damage",
    [
        lambda x: x[:-9],
        lambda x: b"no gzip " + x,
        lambda x: x[:200] + bytes(50) + x[250:],
        lambda x: b"",
    ],
)
def test_damaged_gzip_is_named(damage, tmp_path):
    path = write(tmp_path, "mnist", compress=True) / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    message = error_of("mnist", data_dir=tmp_path)
    assert path.name in message


@pytest.mark.parametrize(
    ("name", "position", "value"), [("cifar10", 0, 10), ("cifar100", 1, 100)]
)
def test_damaged_cifar_files_are_named(name, position, value, tmp_path):
    path = write(tmp_path, name) / FILES[name].train[-1]
    content = path.read_bytes()
    path.write_bytes(other_header(content, position, value))
    message = error_of(name, data_dir=tmp_path)
    assert path.name in message
    assert f"label {value}" in message
    path.write_bytes(content[:-1])
    message = error_of(name, data_dir=tmp_path)
    assert path.name in message
    assert "truncated" in message


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda x: x[:-1], "truncated"),
        (lambda x: x + b"!", "too long"),
        (lambda x: b"\xff" + x[1:], "no text in ASCII"),
        (lambda x: x.replace(b":", b";"), "has no speeches"),
        (lambda x: x.replace(b"a", b"\n\n"), "too long"),
    ],
)
def test_damaged_plays_are_named(damage, says, tmp_path):
    path = write(tmp_path, "shakespeare") / "input.txt"
    path.write_bytes(damage(path.read_bytes()))
    message = error_of("shakespeare", data_dir=tmp_path)
    assert str(path) in message
    assert says in message


def test_unreadable_file_is_one_line(tmp_path):
    path = write(tmp_path, "mnist") / "t10k-images-idx3-ubyte"
    path.unlink()
    path.symlink_to(tmp_path)
    assert "t10k-images-idx3-ubyte" in error_of("mnist", data_dir=tmp_path)


# ----------------------------------------------------------------------- downloading


@pytest.fixture
def server(tmp_path):
    """A folder that is served on this machine, its URL, and the paths asked for."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}/", asked
        running.shutdown()
        thread.join()


def serve(server, name, archive_folder="some-folder"):
    """Put a set on the server as its authors publish it; the `downloads` to it."""
    folder, url, _ = server
    files = {f"{file}.gz": gzip.compress(x) for file, x in contents(name).items()}
    if name == "shakespeare":
        files = contents(name)
    if "cifar" in name:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as tar:
            for file, content in contents(name).items():
                member = tarfile.TarInfo(f"{archive_folder}/{file}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        files = {f"{name}.tar.gz": stream.getvalue()}
    for file, content in files.items():
        (folder / file).write_bytes(content)
    md5 = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
    return {name: data.Download(url, md5)}


@pytest.mark.parametrize("name", NAMES)
def test_downloads_once(name, server, tmp_path, capfd):
    downloads = serve(server, name)
    check(data.load(name, downloads=downloads), name)
    assert len(server[2]) == len(downloads[name].md5)
    assert "100%" in capfd.readouterr().err  # the progress bar
    check(data.load(name, downloads=downloads), name)
    assert len(server[2]) == len(downloads[name].md5)
    left = {path.name for path in tmp_path.glob("cache/signfd_jax/*/*")}
    assert left == {f"{file}.gz" for file in contents(name)} or left == set(
        contents(name)
    )


def test_no_bar_where_none_is_wanted(server, capfd):
    downloads = serve(server, "mnist")
    data.load("mnist", progress=False, downloads=downloads)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_damaged_cache_is_fetched_again(name, server, tmp_path):
    downloads = serve(server, name)
    data.load(name, downloads=downloads)
    path = sorted(tmp_path.glob("cache/signfd_jax/*/*"))[0]
    path.write_bytes(path.read_bytes()[:-1])
    check(data.load(name, downloads=downloads), name)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_download_with_another_hash_is_refused(name, server, tmp_path):
    downloads = serve(server, name)
    for file in downloads[name].md5:
        path = server[0] / file
        path.write_bytes(path.read_bytes() + b"more")
    message = error_of(name, downloads=downloads)
    assert "does not match" in message
    assert "SIGNFD_DATA" in message
    assert not list(tmp_path.glob("cache/signfd_jax/*/*"))


# Pooch leaves the connection of a refused request to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_failed_download_says_which_files_to_put_where(server):
    downloads = serve(server, "mnist")
    (server[0] / "t10k-images-idx3-ubyte.gz").unlink()
    message = error_of("mnist", downloads=downloads)
    assert "404" in message
    gc.collect()
    gone = {"mnist": downloads["mnist"]._replace(base_url="http://127.0.0.1:1/")}
    message = error_of("mnist", downloads=gone)
    assert "mnist/" in message
    assert all(file in message for file in contents("mnist"))
    assert "--data-dir" in message
    assert "SIGNFD_DATA" in message


def test_archive_writes_nothing_but_the_wanted_files(server, tmp_path):
    downloads = serve(server, "cifar10", archive_folder="../../..")
    archive = server[0] / "cifar10.tar.gz"
    content = tarfile.open(archive)
    with content, tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as evil:
        for member in content:
            evil.addfile(member, content.extractfile(member))
        link = tarfile.TarInfo("data_batch_1.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        evil.addfile(link)
        evil.addfile(tarfile.TarInfo("other.bin"))
    archive.write_bytes((tmp_path / "evil.tar.gz").read_bytes())
    md5 = {archive.name: hashlib.md5(archive.read_bytes()).hexdigest()}
    downloads = {"cifar10": downloads["cifar10"]._replace(md5=md5)}
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    check(data.load("cifar10", downloads=downloads), "cifar10")
    after = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    assert after == before
    written = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert written == set(contents("cifar10"))


def test_archive_without_a_file_is_refused(server):
    downloads = serve(server, "cifar100")
    wanted = FILES["cifar100"]._replace(test=("more.bin",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FILES, "cifar100", wanted)
        assert "holds no more.bin" in error_of("cifar100", downloads=downloads)


def test_every_set_that_is_not_bundled_has_a_download():
    assert set(data.DOWNLOADS) == set(data.DATASETS) - set(bundled.BUNDLED)
    for name, download in data.DOWNLOADS.items():
        assert all(len(bytes.fromhex(md5)) == 16 for md5 in download.md5.values())
        if "mnist" in name:
            files = FILES[name].train + FILES[name].test
            assert set(download.md5) == {f"{file}.gz" for file in files}


# -------------------------------------------------------- digits, names, standardising


def test_digits_are_split_by_class():
    digits = data.load("digits")
    both = np.concatenate([digits.train_labels, digits.test_labels])
    assert len(both) == 1797
    counts = np.bincount(both)
    np.testing.assert_array_equal(np.bincount(digits.test_labels), counts // 5)
    images = np.concatenate([digits.train_inputs, digits.test_inputs])
    assert images.dtype == np.uint8
    assert images.max() == digits.scale == 16
    assert len(np.unique(images.reshape(1797, -1), axis=0)) == 1797  # none is in both
    again = data.load("digits")
    np.testing.assert_array_equal(again.test_inputs, digits.test_inputs)


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "wine"])
def test_tables_are_those_of_scikit_learn(name, monkeypatch):
    """Read from its file, or by its function where that is not found."""
    load = getattr(sklearn.datasets, f"load_{name}")
    expected = np.column_stack(load(return_X_y=True))
    monkeypatch.setattr(sklearn.datasets, f"load_{name}", None)
    found = bundled.table(name)
    monkeypatch.undo()
    monkeypatch.setattr(bundled.Path, "exists", lambda path: False)
    for table in (found, bundled.table(name)):
        np.testing.assert_array_equal(table, expected)


@pytest.mark.parametrize("name", ["breast_cancer", "wine"])
def test_tables_are_standardised_by_what_is_trained_on(name):
    table = getattr(sklearn.datasets, f"load_{name}")()
    dataset = data.load(name)
    assert dataset.num_classes == len(table.target_names)
    assert len(dataset.train_labels) + len(dataset.test_labels) == len(table.target)
    np.testing.assert_array_equal(
        np.bincount(dataset.test_labels), np.bincount(table.target) // 5
    )
    both = [dataset.train_inputs, dataset.test_inputs]
    np.testing.assert_allclose(
        np.sort(np.concatenate(both), axis=0), np.sort(table.data, axis=0), rtol=1e-6
    )
    seen = np.asarray(data.standardise(dataset.train_inputs, dataset))
    np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(seen.std(axis=0), 1, rtol=1e-4)
    unseen = np.asarray(data.standardise(dataset.test_inputs, dataset))
    assert abs(unseen.mean(axis=0)).max() > 0.01  # its own moments would make it 0


def test_digits_need_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SIGNFD_DATA", str(tmp_path / "nowhere"))
    assert data.load("digits").name == "digits"


def test_unknown_name_lists_the_known():
    message = error_of("minst")
    assert "minst" in message
    assert all(name in message for name in data.DATASETS)


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10"])
def test_standardise_is_its_formula(name, tmp_path):
    if name != "digits":
        write(tmp_path, name)
    dataset = data.load(name, data_dir=tmp_path)
    inputs = dataset.test_inputs[:6].reshape(2, 3, *dataset.test_inputs.shape[1:])
    scaled = inputs.astype(np.float64) / (16 if name == "digits" else 255)
    mean, std = {
        "digits": (
            np.mean(dataset.train_inputs / 16),
            np.std(dataset.train_inputs / 16),
        ),
        "mnist": (0.1307, 0.3081),
        "cifar10": (np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])),
    }[name]
    outputs = data.standardise(inputs, dataset)
    assert outputs.dtype == jnp.float32
    np.testing.assert_allclose(outputs, (scaled - mean) / std, rtol=1e-5, atol=1e-6)


def test_dataset_enters_a_jit():
    digits = data.load("digits")

    @jax.jit
    def first(dataset):
        assert dataset.name == "digits"  # static
        return data.standardise(dataset.train_inputs[:2], dataset)

    np.testing.assert_allclose(
        first(digits), data.standardise(digits.train_inputs[:2], digits), rtol=1e-6
    )


@pytest.mark.skipif("SIGNFD_DATA" not in os.environ, reason="needs SIGNFD_DATA")
def test_the_real_mnist(monkeypatch):
    monkeypatch.undo()  # the real sizes and folder
    mnist = data.load("mnist")
    assert mnist.train_inputs.shape == (60_000, 28, 28, 1)
    assert mnist.test_inputs.shape == (10_000, 28, 28, 1)
    scaled = mnist.train_inputs / 255
    np.testing.assert_allclose(scaled.mean(), mnist.mean, atol=5e-5)
    np.testing.assert_allclose(scaled.std(), mnist.std, atol=5e-5)
    np.testing.assert_array_equal(mnist.train_labels[:5], [5, 0, 4, 1, 9])

"""Data sets of the user's own: arrays, files of them, and saved sets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from signfd_jax import data


def of_classes(*sizes):
    """Labels of classes of these sizes, shuffled, and inputs that tell them apart."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.random.default_rng(0).permutation(labels)
    return np.arange(len(labels) * 2.0).reshape(-1, 2), labels


@given(st.lists(st.integers(0, 14), min_size=1, max_size=4).filter(lambda s: s[-1] > 4))
def test_every_fifth_example_of_each_class_is_for_tests(sizes):
    inputs, labels = of_classes(*sizes)
    found = data.from_arrays(inputs, labels)
    kept, held = [], []
    for label in range(len(sizes)):
        for place, row in enumerate(inputs[labels == label].tolist()):
            (held if place % 5 == 4 else kept).append((row, label))
    for rows, (there, of_class) in (
        (kept, (found.train_inputs, found.train_labels)),
        (held, (found.test_inputs, found.test_labels)),
    ):
        pairs = list(zip(there.tolist(), of_class.tolist(), strict=True))
        assert sorted(pairs) == sorted(rows)
    assert found.num_classes == len(sizes)


def test_channels_are_standardised_and_constant_ones_are_nothing():
    rng = np.random.default_rng(0)
    inputs = rng.normal(5, [1, 2, 0], (50, 4, 4, 3))
    found = data.from_arrays(inputs, np.arange(50) % 2)
    values = np.asarray(data.standardise(found.train_inputs, found))
    np.testing.assert_allclose(values.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(values.std(axis=(0, 1, 2)), [1, 1, 0], atol=1e-5)


def test_bytes_are_parts_of_255_and_tokens_stay():
    labels = np.arange(20) % 2
    grey = np.random.default_rng(0).integers(0, 256, (20, 3, 3), np.uint8)
    images = data.from_arrays(grey, labels)
    assert images.train_inputs.shape == (16, 3, 3, 1)
    assert images.train_inputs.dtype == np.uint8
    values = np.asarray(data.standardise(images.train_inputs, images))
    np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=1e-5)
    tokens = data.from_arrays(np.arange(140).reshape(20, 7), labels)
    kept = data.standardise(tokens.train_inputs, tokens)
    assert kept.dtype == np.int32
    np.testing.assert_array_equal(kept, tokens.train_inputs)


GOOD = (np.ones((20, 3)), np.arange(20) % 2)


@pytest.mark.parametrize(
    ("arrays", "wrong"),
    [
        ((np.ones(20), GOOD[1]), r"inputs must be numbers \[n, ...\]"),
        ((np.full((20, 3), "a"), GOOD[1]), "inputs must be numbers"),
        ((GOOD[0], GOOD[1] / 2), "labels must be an integer for each of 20"),
        ((GOOD[0], GOOD[1][:-1]), r"of shape \[19\]"),
        ((GOOD[0], GOOD[1] - 1), "count from 0; one is -1"),
        ((GOOD[0] * np.nan, GOOD[1]), "NaN or infinite"),
        ((*GOOD, GOOD[0]), "come together"),
        ((*GOOD, GOOD[0][:, :2], GOOD[1]), r"float32 \[2\] each, but inputs"),
        ((GOOD[0][:3], GOOD[1][:3]), "no class has five"),
        ((*GOOD, GOOD[0][:0], GOOD[1][:0]), "no class has five|give more"),
    ],
)
def test_what_is_wrong_with_arrays_is_said(arrays, wrong):
    with pytest.raises(data.DataError, match=wrong) as error:
        data.from_arrays(*arrays, name="mine")
    assert str(error.value).startswith("mine: ")


def test_a_file_of_arrays_is_a_data_set(tmp_path):
    inputs, labels = of_classes(10, 20)
    np.savez(tmp_path / "my.npz", inputs=inputs, labels=labels)
    found = data.load(str(tmp_path / "my.npz"))
    assert (found.name, found.num_classes, len(found.test_labels)) == ("my", 2, 6)
    np.savez(
        tmp_path / "split.npz",
        **{"inputs": inputs, "labels": labels},
        **{"test_inputs": inputs[:4], "test_labels": labels[:4]},
    )
    found = data.load(str(tmp_path / "split.npz"))
    assert (len(found.train_labels), len(found.test_labels)) == (30, 4)


@pytest.mark.parametrize(
    ("content", "wrong"),
    [
        (None, "there is no file"),
        (b"", "is no file of arrays"),
        (b"not a zip file", "is no file of arrays"),
        ({"x": GOOD[0]}, "holds x: it needs arrays inputs"),
        ({"inputs": GOOD[0], "labels": GOOD[1], "y": GOOD[1]}, "holds inputs, labels"),
        ({"inputs": np.array([{}] * 20), "labels": GOOD[1]}, "is no file of arrays"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, content, wrong):
    path = tmp_path / "my.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    with pytest.raises(data.DataError, match=wrong) as error:
        data.load(str(path))
    assert "my.npz" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_saved_set_of_hugging_face_is_a_data_set(tmp_path):
    datasets = pytest.importorskip("datasets")
    inputs, labels = of_classes(10, 20)
    rows = datasets.Dataset.from_dict({"x": inputs.tolist(), "label": labels.tolist()})
    rows.save_to_disk(str(tmp_path / "one"))
    found = data.load(str(tmp_path / "one"))
    same = data.from_arrays(inputs, labels)
    np.testing.assert_allclose(found.train_inputs, same.train_inputs)
    np.testing.assert_array_equal(found.test_labels, same.test_labels)
    parts = datasets.DatasetDict({"train": rows, "test": rows.select(range(4))})
    parts.save_to_disk(str(tmp_path / "two"))
    found = data.load(str(tmp_path / "two"))
    assert (len(found.train_labels), len(found.test_labels)) == (30, 4)
    rows.add_column("y", labels.tolist()).save_to_disk(str(tmp_path / "three"))
    with pytest.raises(data.DataError, match="keep these with select_columns"):
        data.load(str(tmp_path / "three"))

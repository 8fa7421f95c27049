"""Texts by their writers: what an example is, which are for tests, whose they are."""

import string
import sys

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from signfd_jax import data

LETTERS = st.text(string.printable[:95] + "\n", max_size=90)


def decoded(tokens):
    return "".join("\n" if token == 95 else chr(32 + token) for token in tokens)


@given(st.lists(LETTERS, min_size=1, max_size=4), st.integers(1, 9))
def test_examples_are_the_text_by_a_loop(texts, context):
    wanted = {"train": [], "test": []}
    for writer, text in enumerate(texts):
        border = len(text) - len(text) // 5
        for part, piece in (("train", text[:border]), ("test", text[border:])):
            while len(piece) > context:
                wanted[part].append((piece[: context + 1], writer))
                piece = piece[context:]
    texts = dict(zip("abcd", texts, strict=False))
    if not wanted["train"] or not wanted["test"]:
        with pytest.raises(data.DataError, match=f"has more than {context} characters"):
            data.from_texts(texts, context=context)
        return
    found = data.from_texts(texts, context=context)
    for part, rows in wanted.items():
        inputs, labels = (getattr(found, f"{part}_{x}") for x in ("inputs", "labels"))
        assert inputs.dtype == labels.dtype == np.int32
        assert [decoded(row) for row in inputs] == [text[:-1] for text, _ in rows]
        assert [decoded(row) for row in labels] == [text[1:] for text, _ in rows]
    assert found.writers.tolist() == [writer for _, writer in wanted["train"]]
    assert found.num_classes == 96


def test_other_characters_have_a_place_too():
    found = data.from_texts({"a": "\u00e9\t\x7f~ \u201c" * 9}, context=6)
    assert decoded(found.train_inputs[0]) == "? ~~ ?"


def test_tokens_reach_the_model_as_they_are():
    found = data.from_texts({"a": "abc" * 90, "b": "xyz" * 90})
    tokens = data.standardise(found.train_inputs, found)
    np.testing.assert_array_equal(tokens, found.train_inputs)
    assert jax.jit(lambda dataset: dataset.writers.sum())(found) == found.writers.sum()


def test_python_docs_do_not_test_what_is_trained_on():
    found = data.load("python_docs")
    assert len(np.unique(found.writers)) > 50
    trained = {row.tobytes() for row in found.train_inputs}
    shared = np.mean([row.tobytes() in trained for row in found.test_inputs])
    assert shared < 0.01
    again = data.load("python_docs")
    np.testing.assert_array_equal(again.train_inputs, found.train_inputs)


def test_a_python_without_its_documentation_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(data.DataError, match="without its documentation") as error:
        data.load("python_docs")
    assert "\n" not in str(error.value)


def test_writers_of_arrays_follow_their_examples(tmp_path):
    inputs = np.arange(60.0).reshape(30, 2)
    labels, writers = np.arange(30) % 3, np.arange(30) // 7
    np.savez(tmp_path / "my.npz", inputs=inputs, labels=labels, writers=writers)
    for found in (
        data.from_arrays(inputs, labels, writers=writers),
        data.load(str(tmp_path / "my.npz")),
    ):
        assert found.writers.dtype == np.int32
        whose = dict(zip(inputs[:, 0].tolist(), writers.tolist(), strict=True))
        rows = found.train_inputs[:, 0].tolist()
        assert [whose[row] for row in rows] == found.writers.tolist()
    assert data.from_arrays(inputs, labels).writers is None
    whole = data.from_arrays(inputs, labels, inputs[:2], labels[:2], writers=writers)
    np.testing.assert_array_equal(whole.writers, writers)

"""Texts as a data set: characters, those that follow them, and who wrote them.

Shapes: `n` training windows, `T` characters in each.
"""

import re
from collections.abc import Mapping

import numpy as np

from signfd_jax._checks import check_size
from signfd_jax.data.dataset import DataError, Dataset

CHARACTERS = 96
"""Printable ASCII, from the space on, and then the line break."""


def from_texts(
    texts: Mapping[str, str], *, context: int = 32, name: str = "texts"
) -> Dataset:
    """Make a data set of texts: at each of T characters, which one comes next.

    An example is T characters in a row, and its labels are the T characters that are
    one place on. There are 96 characters: printable ASCII, from the space (0) to the
    tilde (94), and the line break (95). All others become question marks, and control
    characters spaces. The last fifth of each text is for tests. What is left at the end
    of a part and fills no example is not used.

    Args:
        texts: what each writer wrote, by the writer's name. Who wrote no more than T
            characters to train on is left out.
        context: T, characters in an example.
        name: what the data set is called.

    Returns:
        A `Dataset` of inputs and labels int32 `[n, T]`, with its `writers`: the
        positions of the names in `texts`.

    Raises:
        DataError: the texts are none, or too short.
        ValueError: `context` is below 1.

    Examples:
        >>> found = from_texts({"ann": "la " * 50, "bob": "do re mi " * 50})
        >>> found.train_inputs.shape, found.num_classes, set(found.writers.tolist())
        ((14, 32), 96, {0, 1})

    References:
        Texts by their writers are from the Shakespeare set in Caldas et al., [LEAF: A
        Benchmark for Federated Settings](https://arxiv.org/abs/1812.01097), 2018, where
        the character after the last one alone is predicted.
    """
    check_size("context", context)
    if not isinstance(name, str):
        raise DataError(f"name must be a text, but is {name!r}")
    if not isinstance(texts, Mapping) or not all(
        isinstance(text, str) for text in texts.values()
    ):
        raise DataError(
            f"{name}: texts must be a table from each writer's name to a text, but is "
            f"{type(texts).__name__}"
        )
    nothing = np.zeros((0, context + 1), np.int32)
    train, test, writers = [nothing], [nothing], [np.zeros(0, np.int32)]
    for writer, text in enumerate(texts.values()):
        tokens = _tokens(text)
        border = len(tokens) - len(tokens) // 5
        train.append(_windows(tokens[:border], context))
        test.append(_windows(tokens[border:], context))
        writers.append(np.full(len(train[-1]), writer, np.int32))
    train, test = np.concatenate(train), np.concatenate(test)
    if not len(train) or not len(test):
        raise DataError(
            f"{name}: none of {len(texts)} texts has more than {context} characters in "
            "its last fifth, which is for tests; give longer ones, or a smaller context"
        )
    (inputs, labels), (test_inputs, test_labels) = map(_shifted, (train, test))
    return Dataset(
        *(name, CHARACTERS, 1.0, inputs, labels, test_inputs, test_labels),
        *(np.zeros(context, np.float32), np.ones(context, np.float32)),
        np.concatenate(writers),
    )


def _shifted(windows):
    """Inputs and labels: all characters but the last, and all but the first."""
    return (np.ascontiguousarray(part) for part in (windows[:, :-1], windows[:, 1:]))


def _tokens(text):
    """The characters as numbers, int32 `[length]`."""
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int32)
    return np.where(codes == ord("\n"), CHARACTERS - 1, np.clip(codes, 32, 126) - 32)


def _windows(tokens, context):
    """T + 1 characters each, of which the last is the next one's first."""
    starts = np.arange(0, len(tokens) - context, context)[:, None]
    return tokens[starts + np.arange(context + 1)]


def speeches(play: str) -> dict[str, str]:
    """What each character of a play says: a name, a colon, and the speech below."""
    said = {}
    for name, speech in re.findall(r"^(.+):\n(.+(?:\n.+)*)", play, re.MULTILINE):
        said[name] = f"{said.get(name, '')}{speech}\n"
    return said


def python_docs() -> Dataset:
    """The topics of Python's `help()`, each a writer of its own.

    A paragraph that stands in several topics is kept in the shortest of them alone, so
    that what is trained on is not tested on.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError(
            "this Python has come without its documentation (pydoc_data): install all "
            "of its standard library, or take another data set"
        ) from None
    texts, seen = {}, set()
    for topic in sorted(topics, key=lambda topic: len(topics[topic])):
        paragraphs = topics[topic].strip().split("\n\n")
        new = [p for p in dict.fromkeys(paragraphs) if p.strip() not in seen]
        seen.update(p.strip() for p in paragraphs)
        texts[topic] = "\n\n".join(new)
    return from_texts(texts, name="python_docs")

"""The Python version of CIFAR, which torchvision and Kaggle have: pickled arrays."""

import pickle
from pathlib import Path

import numpy as np

from signfd_jax.data.dataset import DataError

__all__ = ["records"]

_LABELS = ("coarse_labels", "fine_labels", "labels")


class _Arrays(pickle.Unpickler):
    """Reads arrays and plain values; runs nothing that a file may ask for."""

    _known = {  # noqa: RUF012
        "_reconstruct": np.empty(0).__reduce__()[0],
        "_frombuffer": np.empty(0).__reduce_ex__(5)[0],
        "ndarray": np.ndarray,
        "dtype": np.dtype,
        "encode": lambda text, _: text.encode("latin1"),
    }

    def find_class(self, module, name):
        if module.split(".")[0] in ("numpy", "_codecs") and name in self._known:
            return self._known[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def records(path: Path) -> bytes:
    r"""Read a file of the Python version as the binary version has it.

    Args:
        path: the file, such as `data_batch_1` or `train`.

    Returns:
        Of each image, its labels and its 3072 bytes.

    Raises:
        DataError: it is no such file.
        OSError: it cannot be read.

    Examples:
        >>> path = getfixture("tmp_path") / "test_batch"
        >>> table = {"labels": [7], "data": np.zeros((1, 3072), np.uint8)}
        >>> _ = path.write_bytes(pickle.dumps(table, protocol=2))
        >>> records(path)[:2]
        b'\x07\x00'
    """
    with path.open("rb") as file:
        try:
            table = _Arrays(file, encoding="bytes").load()
            table = {k.decode() if isinstance(k, bytes) else k: table[k] for k in table}
            columns = [table[name] for name in _LABELS if name in table]
            columns = [np.array(column, np.uint8)[:, None] for column in columns]
            return np.concatenate([*columns, table["data"]], axis=1).tobytes()
        except OSError:
            raise
        except Exception as error:  # a damaged file may lead to any
            raise DataError(
                f"{path} is not a sound file of CIFAR's Python version "
                f"({type(error).__name__}: {error}); fetch it again"
            ) from None

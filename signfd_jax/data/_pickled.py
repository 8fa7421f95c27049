"""The Python version of CIFAR, which torchvision and Kaggle have: pickled arrays."""

import pickle
from pathlib import Path

import numpy as np

from signfd_jax.data.dataset import DataError

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
    r"""Read a file of the Python version as the binary version has it."""
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

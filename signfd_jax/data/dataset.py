"""What a data set is, and how its inputs become a network's.

Shapes: `n` training and `k` test examples.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["DataError", "Dataset", "standardise"]


class DataError(ValueError):
    """A data set is missing or damaged; the message is one line, with the remedy."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training and test examples, as stored; a pytree, so that it can enter a jit.

    Attributes:
        name: its name, of `DATASETS` or your own; static under jit, like the next two.
        num_classes: number of classes.
        scale: the stored value that stands for 1.
        train_inputs: uint8 `[n, height, width, channels]`; others may be float32 or
            int32 `[n, ...]`.
        train_labels: int32 `[n]`, in `[0, num_classes)`; of texts `[n, T]`, a
            label for each character.
        test_inputs: uint8 `[k, ...]`, as `train_inputs`.
        test_labels: int32 `[k]` or `[k, T]`, as `train_labels`.
        mean: float32 `[channels]`, mean of the inputs divided by `scale`.
        std: float32 `[channels]`, standard deviation of the same.
        writers: int32 `[n]`, who wrote each training example, from 0; None where that
            is not known.
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
    writers: np.ndarray | jax.Array | None = None


def standardise(inputs: jax.Array | np.ndarray, dataset: Dataset) -> jax.Array:
    r"""Turn stored inputs into a network's: $(x / \text{scale} - \mu) / \sigma$.

    It is done batch by batch on the device, so that only uint8 is kept and gathered.
    int32, such as tokens, stays as it is.

    Args:
        inputs: uint8, float32 or int32 `[..., channels]`.
        dataset: whose `mean`, `std` and `scale` to use.

    Returns:
        float32, or int32 of int32, shaped like `inputs`.

    Raises:
        ValueError: `inputs` is no array of that data set's channels, or `dataset` is no
            `Dataset`.

    Examples:
        >>> from signfd_jax.data import load
        >>> digits = load("digits")
        >>> print(standardise(digits.train_inputs, digits).std())
        1.0
    """
    if not isinstance(dataset, Dataset):
        raise ValueError(f"dataset must be a Dataset, but is {type(dataset).__name__}")
    channels = dataset.mean.shape[-1]
    if getattr(inputs, "shape", ())[-1:] != (channels,):
        raise ValueError(
            f"inputs must be an array [..., {channels}], but is "
            f"{type(inputs).__name__} of shape {np.shape(inputs)}"
        )
    if inputs.dtype == jnp.int32:
        return jnp.asarray(inputs)
    shape = (1,) * (inputs.ndim - 1) + (-1,)
    mean, std = (jnp.reshape(x, shape) for x in (dataset.mean, dataset.std))
    return (jnp.asarray(inputs).astype(jnp.float32) / dataset.scale - mean) / std

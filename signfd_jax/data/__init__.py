"""Load the data sets: from a folder, or downloaded once into the user's cache.

Start with `load`. The file `partition` shares the examples out to workers, and
`batches` draws what each of them sees in a round.

Shapes: `n` examples; images `[n, height, width, channels]`, uint8 as stored; rows of
tables float32 `[n, columns]`; texts int32 `[n, T]`, a number for each character; labels
int32 `[n]` in `[0, num_classes)`, of texts `[n, T]`.

| name | training, test | an example | where it comes from |
|---|---|---|---|
| `digits` | 1442, 355 | 8 x 8 x 1 | bundled with scikit-learn: no download |
| `breast_cancer` | 456, 113 | 30 columns, 2 classes | likewise |
| `wine` | 144, 34 | 13 columns, 3 classes | likewise |
| `python_docs` | 9289, 2290 | 32 characters | the topics of `help()` in Python 3.11 |
| `mnist` | 60,000, 10,000 | 28 x 28 x 1 | `mnist/`, IDX files, gzipped or not |
| `fashion_mnist` | 60,000, 10,000 | 28 x 28 x 1 | `fashion_mnist/`, likewise |
| `cifar10` | 50,000, 10,000 | 32 x 32 x 3 | `cifar10/` or `cifar-10-batches-bin/` |
| `cifar100` | 50,000, 10,000 | 32 x 32 x 3 | `cifar100/` or `cifar-100-binary/` |
| `shakespeare` | 10,127, 2434 | 80 characters | `shakespeare/input.txt` |

The folders are those of a data folder, given by hand or by the variable `SIGNFD_DATA`.
They may also be as torchvision and Kaggle leave them: `MNIST/raw/`,
`FashionMNIST/raw/`, `cifar-10-batches-py/`, `cifar-100-python/`, files such as
`train-images.idx3-ubyte`, or the files in the data folder itself. `DATASETS` lists the
names, `DOWNLOADS` the sources. `from_arrays` and `from_texts` make a data set of your
own.

Each topic of Python's `help()` is a writer, and so is each speaker in the excerpts of
Shakespeare's plays: two speakers of one name are one. Another version of Python has
other topics. `VARYING` are the names of such data sets, which are not the same
everywhere: a run keeps their hash, and does not go on with others.
"""

from signfd_jax.data._download import DOWNLOADS, Download
from signfd_jax.data._loading import DATASETS, VARYING, check_name, load
from signfd_jax.data._own import from_arrays
from signfd_jax.data._text import from_texts
from signfd_jax.data.dataset import DataError, Dataset, standardise

__all__ = [
    "DATASETS",
    "DOWNLOADS",
    "VARYING",
    "DataError",
    "Dataset",
    "Download",
    "check_name",
    "from_arrays",
    "from_texts",
    "load",
    "standardise",
]

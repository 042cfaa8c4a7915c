"""The interface of the readers of folders, arrays and records: random access to encoded examples.

Decoding is in `decode`, caching in `cache`, pipelines in `pipeline`.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from simclr_tf.images import UNLABELLED

if TYPE_CHECKING:
    from simclr_tf.data.headers import Headers
    from simclr_tf.data.index_cache import IndexCache


def as_text(name: str | bytes) -> str:
    """Returns a name as text that can be encoded.

    Bytes that are not valid UTF-8 become backslash escapes.

    Args:
      name: bytes, or a file name as Python's `os` functions return it.
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def describe_path(path: str | os.PathLike) -> str:
    """Returns a path in quotes, and where it leads if it is relative."""
    path = os.fspath(path)
    whole = f" ({os.path.abspath(path)!r})" if not os.path.isabs(path) else ""
    return f"{path!r}{whole}"


def describe_labels(class_names: list[str] | None, labelled: bool) -> str:
    """Returns a few words about labels, such as "10 classes"."""
    if not labelled:
        return "no labels"
    return f"{len(class_names)} classes" if class_names else "labels without class names"


class Example(NamedTuple):
    """One example as it is stored.

    Attributes:
      id: name of the example within its data set.
      image: an encoded image file, or uint8 [height, width, 3].
      label: class index, `UNLABELLED` where there is none.
    """

    id: str
    image: bytes | np.ndarray
    label: int = UNLABELLED


class Decoded(NamedTuple):
    """One example, decoded.

    Attributes:
      image: uint8 [side, side, 3].
      extent: height and width, in pixels, of the image in the upper left corner of that square.
      label: class index, `UNLABELLED` where there is none.
      id: name of the example within its data set, UTF-8.
    """

    image: np.ndarray
    extent: np.ndarray
    label: int
    id: bytes


class Examples(Protocol):
    """Random access to the examples of one split.

    Attributes:
      class_names: names by class index, or None.
      labelled: whether the examples have labels; some may still be `UNLABELLED`.
      description: one line about splits and labels.
      skipped_suffixes: numbers of files left out, by suffix.
    """

    class_names: list[str] | None
    labelled: bool
    description: str
    skipped_suffixes: dict[str, int]

    def __len__(self) -> int: ...

    def id(self, index: int) -> str:
        """Returns a name of the example, which may turn out to be unreadable."""
        ...

    def __getitem__(self, index: int) -> Example:
        """Reads one example; raises `CorruptImageError` where it cannot be read."""
        ...

    def labels(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Returns labels without decoding images.

        Args:
          indices: of the examples, int64 [n]; None stands for all.

        Returns:
          int64 [n], `UNLABELLED` where there is none or it cannot be read.
        """
        ...


class ExamplesInFiles(Examples, Protocol):
    """Examples that can be read and decoded inside tf.data, by TensorFlow's kernels."""

    def headers(self, indices: np.ndarray, cache: IndexCache | None = None) -> Headers:
        """Reads the headers of the images at `indices`, int64 [n]; errors are left for later.

        Those that a cache has are not read.
        """
        ...

    def ids(self, indices: np.ndarray) -> list[bytes]:
        """Returns the ids that `__getitem__` returns, UTF-8, after `headers` has read these."""
        ...

    def fetch(self, indices: tf.Tensor) -> tf.Tensor:
        """Returns what `contents` needs, strings [m], of the examples at int64 [m], in a graph."""
        ...

    def contents(self, fetched: tf.Tensor) -> tf.Tensor:
        """Returns the encoded image, a string scalar, of one string of `fetch`, in a graph."""
        ...


def are_in_files(examples: Examples) -> bool:
    """Whether examples are `ExamplesInFiles`; of wrapped ones, those within decide."""
    within = getattr(examples, "wrapped", examples)
    return are_in_files(within) if within is not examples else hasattr(examples, "fetch")


def shards_of(examples: Examples) -> np.ndarray | None:
    """Returns where the shards begin of examples that are read shard by shard.

    Returns:
      The index of the first example of each shard, and the number of examples, int64 [shards + 1];
      None where examples are read in any order.
    """
    if isinstance(examples, Subset):
        shards = shards_of(examples.wrapped)
        if shards is None or (np.diff(examples.indices) < 0).any():
            return None
        return np.unique(np.searchsorted(examples.indices, shards))
    within = getattr(examples, "wrapped", None)
    return shards_of(within) if within else getattr(examples, "shards", None)


class Subset:
    """The examples at `indices`, int64 [n], in that order."""

    def __init__(self, examples: Examples, indices: np.ndarray):
        self.wrapped = self._examples = examples
        self.indices = indices
        self.class_names = examples.class_names
        self.labelled = examples.labelled
        self.description = examples.description
        self.skipped_suffixes = examples.skipped_suffixes

    def __len__(self) -> int:
        return len(self.indices)

    def id(self, index: int) -> str:
        """Returns a name of the example, which may turn out to be unreadable."""
        return self._examples.id(int(self.indices[index]))

    def __getitem__(self, index: int) -> Example:
        return self._examples[int(self.indices[index])]

    def labels(self, indices: np.ndarray | None = None) -> np.ndarray:
        """Returns labels without decoding images, int64 [n]."""
        return self._examples.labels(self.indices if indices is None else self.indices[indices])

    def headers(self, indices: np.ndarray, cache: IndexCache | None = None) -> Headers:
        """As `ExamplesInFiles.headers`."""
        return self._examples.headers(self.indices[indices], cache)

    def ids(self, indices: np.ndarray) -> list[bytes]:
        """As `ExamplesInFiles.ids`."""
        return self._examples.ids(self.indices[indices])

    def fetch(self, indices: tf.Tensor) -> tf.Tensor:
        """As `ExamplesInFiles.fetch`."""
        return self._examples.fetch(tf.gather(self._index_tensor, indices))

    def contents(self, fetched: tf.Tensor) -> tf.Tensor:
        """As `ExamplesInFiles.contents`."""
        return self._examples.contents(fetched)

    @functools.cached_property
    def _index_tensor(self) -> tf.Tensor:
        with tf.init_scope(), tf.device("CPU:0"):
            return tf.constant(self.indices)

"""Images that are byte ranges of larger files, such as TFRecord files and tar archives."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from simclr_tf.data.examples import describe_path
from simclr_tf.data.pipeline import python_op
from simclr_tf.errors import ArgumentError, CorruptImageError


class Names:
    """Many short strings in one, which takes a fraction of the memory of a list.

    Args:
      names: text; bytes that are not valid UTF-8 as Python's `os` functions return them.
    """

    def __init__(self, names: Iterable[str]):
        encoded = [os.fsencode(name) for name in names]
        self._stop = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._text = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._stop)

    def __getitem__(self, index: int) -> str:
        start = int(self._stop[index - 1]) if index else 0
        return os.fsdecode(self._text[start : int(self._stop[index])])

    @classmethod
    def of_arrays(cls, text: np.ndarray, stop: np.ndarray) -> Names:
        """Returns the names that `arrays` describes."""
        names = cls(())
        names._text, names._stop = text.tobytes(), stop.astype(np.int64)
        return names

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns all names in one, uint8 [bytes], and where each ends, int64 [n]."""
        return np.frombuffer(self._text, np.uint8), self._stop

    def tensors(self) -> list[tf.Tensor]:
        """Returns all names in one string, and the start and the length of each in bytes."""
        length = np.diff(self._stop, prepend=0)
        with tf.init_scope(), tf.device("CPU:0"):
            columns = self._text, self._stop - length, length
            return [tf.constant(column) for column in columns]


def matching_files(kind: str, pattern: str, split: str) -> list[str]:
    """Returns the sorted paths of the files that match a pattern with `*`, `?` and `**`.

    Args:
      kind: of the data set, such as "tar:GLOB", for messages.
      pattern: of paths.
      split: `train` or `all`, which both stand for all files.

    Raises:
      ArgumentError: no file matches, or another split.
    """
    if split not in ("train", "all"):
        raise ArgumentError(
            f"split must be train or all, both of them all files that match; got {split!r}. "
            "Take slices, such as all[:90%] and all[90%:], or a GLOB for each split."
        )
    pattern = os.path.expanduser(pattern)
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    if not paths:
        raise ArgumentError(
            f"{kind} needs at least one file that matches; none does for "
            f"{describe_path(pattern)}. Correct the pattern."
        )
    return paths


def read_range(path: str, offset: int, length: int) -> bytes:
    """Reads a part of a file.

    Raises:
      CorruptImageError: it cannot be read, or the file is shorter.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            content = os.pread(file.fileno(), length, offset)
    except OSError as error:
        raise CorruptImageError(f"cannot be read: {error.strerror}") from error
    if len(content) < length:
        raise CorruptImageError("the file ends within the image")
    return content


def fetch_ranges(read, indices: tf.Tensor) -> tf.Tensor:
    """Reads images in a graph, many in one call of Python.

    Args:
      read: maps an index to the bytes of its image; may raise `CorruptImageError`.
      indices: int64 [m].

    Returns:
      Strings [m], empty where an image cannot be read, so that it cannot be decoded either.
    """

    def read_or_empty(index: int) -> bytes:
        try:
            return read(index)
        except CorruptImageError:
            return b""

    def call(indices):
        return np.array([read_or_empty(int(index)) for index in indices], object)

    contents = python_op(call, np.array([], object), [indices], tf.string)
    return tf.ensure_shape(contents, indices.shape)

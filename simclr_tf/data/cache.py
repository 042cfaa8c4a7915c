"""Decoded images in memory, which TensorFlow uses without a copy.

`Cache` decodes all examples of a split at once; `CacheOnDemand` keeps those that have been read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from simclr_tf import _keras
from simclr_tf.data.examples import UNLABELLED, Decoded

_CHUNK = 64  # examples that a thread decodes per task
_ALIGNMENT_BYTES = 64  # what TensorFlow asks of memory that it does not copy


class Cache:
    """Decoded examples in memory.

    Args:
      num_examples: n.
      side: of the images, pixels.
      read: reads and decodes example i, called from several threads; where it returns None, the
        image stays black and the label `UNLABELLED`.

    Attributes:
      images: uint8 [n, side, side, 3], read-only.
      extents: int32 [n, 2], the height and width of each image in the upper left of its square.
      labels: int64 [n].
      ids: bytes [n], an array of objects.
      images_tensor, extents_tensor, labels_tensor, ids_tensor: the same as tensors on the CPU.
        Pipelines capture these: nothing is copied into a graph, which holds at most 2 GB.
    """

    def __init__(self, num_examples: int, side: int, read: Callable[[int], Decoded | None]):
        self.images = _aligned_zeros([num_examples, side, side, 3])
        self.extents = np.zeros([num_examples, 2], np.int32)
        self.labels = np.full(num_examples, UNLABELLED, np.int64)
        self.ids = np.full(num_examples, b"", object)
        self._fill(read)
        with tf.device("CPU:0"):
            self.images_tensor = _keras.shared_tensor(self.images)
            self.extents_tensor = tf.constant(self.extents)
            self.labels_tensor = tf.constant(self.labels)
            self.ids_tensor = tf.constant(self.ids)
        self.images.flags.writeable = False  # the tensor uses its memory

    def _fill(self, read: Callable[[int], Decoded | None]) -> None:
        total = len(self.images)

        def fill_chunk(start: int) -> None:
            for index in range(start, min(start + _CHUNK, total)):
                example = read(index)
                if example is not None:
                    self.images[index], self.extents[index] = example.image, example.extent
                    self.labels[index], self.ids[index] = example.label, example.id

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                list(pool.map(fill_chunk, range(0, total, _CHUNK)))
            except BaseException:  # an interrupt must not wait for the whole set
                pool.shutdown(cancel_futures=True)
                raise


class CacheOnDemand:
    """Decoded images in memory, of the examples that have been read so far.

    Memory is occupied as it fills. Pipelines read the tensors while `store` writes the arrays: a
    row is not used before `filled` says so, and does not change afterwards.

    Args:
      num_examples: n.
      side: of the images, pixels.

    Attributes:
      images: uint8 [n, side, side, 3].
      extents: int32 [n, 2].
      filled: bool [n].
      images_tensor, extents_tensor: views of `images` and `extents`, tensors on the CPU.
    """

    def __init__(self, num_examples: int, side: int):
        self.images = _aligned_zeros([num_examples, side, side, 3])
        self.extents = _aligned_zeros([num_examples, 2], np.int32)
        self.filled = np.zeros(num_examples, bool)
        with tf.device("CPU:0"):
            self.images_tensor = _keras.shared_tensor(self.images)
            self.extents_tensor = _keras.shared_tensor(self.extents)

    def store(self, indices: np.ndarray, images: np.ndarray, extents: np.ndarray) -> None:
        """Keeps the images at `indices`, int64 [m], that are not there yet."""
        new = ~self.filled[indices]
        rows = indices[new]
        self.images[rows], self.extents[rows] = images[new], extents[new]
        self.filled[rows] = True


def _aligned_zeros(shape: list[int], dtype=np.uint8) -> np.ndarray:
    """Zeros at an address that TensorFlow can use as it is."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + _ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT_BYTES
    return memory[start : start + size].view(dtype).reshape(shape)

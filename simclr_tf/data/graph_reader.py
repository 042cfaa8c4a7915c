"""`GraphReader`: tf.data pipelines that read and decode image files without Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from simclr_tf.data.cache import CacheOnDemand
from simclr_tf.data.decode_ops import FROM_MEMORY
from simclr_tf.data.examples import Decoded
from simclr_tf.data.pipeline import decoded, python_op

_FETCHED = 64  # examples whose paths or contents are looked up at a time


class GraphReader(NamedTuple):
    """How examples in files are read and decoded inside tf.data.

    Attributes:
      fetch: maps indices, int64 [m], to strings [m]: paths, or contents of files.
      decode: maps an index, its string, its way and its extent to (square, extent), as
        `decode_ops.decoder`; raises where it cannot be decoded.
      way, extent: of the `decode_ops.Plan` of all examples, tensors [n] and [n, 2].
      label: int64 [n], a tensor.
      report: called with the indices that could not be decoded, NumPy int64 [m]; raises where
        these are too many.
      memory: keeps what has been decoded, for later epochs; None decodes it again.
    """

    fetch: Callable
    decode: Callable
    way: tf.Tensor
    extent: tf.Tensor
    label: tf.Tensor
    report: Callable[[np.ndarray], None]
    memory: CacheOnDemand | None = None

    def endless_batches(
        self, order: tf.Tensor, start: tf.Tensor, size: int, by_python: Callable, side: int
    ) -> tf.data.Dataset:
        """Batches of examples in order, again and again; unreadable ones are left out.

        What two passes leave out is read a third time and more by `by_python`, which raises where
        nothing can be read: without it, the pipeline would search for ever.

        Args:
          order: indices of the examples, int64 [n].
          start: position in `order`, repeated, to start from.
          size: examples per batch.
          by_python, side: as `read` and `side` for `decoded`.

        Returns:
          A dataset of batches of `Decoded`, without ids.
        """
        stop = 2 * tf.size(order, tf.int64)
        again = decoded(tf.data.Dataset.from_tensor_slices(order).repeat(), by_python, side)
        again = again.map(lambda each: (stop, each.image, each.extent, each.label))
        examples = self._examples(order, start, stop).concatenate(again)
        batches = examples.batch(size, drop_remainder=True)
        batches = batches.map(lambda positions, *columns: (positions[-1] + 1, positions, *columns))
        return self._reported(batches, order, start, stop).map(_without_ids)

    def batches(self, order: tf.Tensor, size: int) -> tf.data.Dataset:
        """Batches of all examples once, in order; unreadable ones are left out.

        Args:
          order: indices of the examples, int64 [n].
          size: examples per batch, fewer in the last.

        Returns:
          A dataset of (indices int64 [B], `Decoded` without ids).
        """
        start, stop = tf.constant(0, tf.int64), tf.size(order, tf.int64)
        batches = self._examples(order, start, stop).batch(size)
        end = tf.data.Dataset.from_tensors(stop)  # an empty batch: what the last one lacks
        end = end.map(lambda stop: (stop, *_empty(batches.element_spec)))
        batches = batches.map(lambda positions, *columns: (positions[-1] + 1, positions, *columns))
        batches = self._reported(batches.concatenate(end), order, start, stop)
        batches = batches.filter(lambda positions, *_: tf.size(positions) > 0)

        def with_indices(positions, *columns):
            return tf.gather(order, positions), _without_ids(positions, *columns)

        return batches.map(with_indices)

    def _examples(self, order, start, stop) -> tf.data.Dataset:
        """(position, square, extent, label) of what can be decoded of order[start:stop]."""

        def fetch(positions):
            index = tf.gather(order, positions % tf.size(order, tf.int64))
            columns = self.way, self.extent, self.label
            way, extent, label = (tf.gather(column, index) for column in columns)
            fetched = self.fetch(index)
            if self.memory:
                way = self._unless_in_memory(index, way)
            return positions, label, index, fetched, way, extent

        def decode(position, label, *row):
            return position, *self.decode(*row), label

        dataset = tf.data.Dataset.range(start, stop).batch(_FETCHED)
        dataset = dataset.map(fetch, tf.data.AUTOTUNE, deterministic=True).unbatch()
        return dataset.map(decode, tf.data.AUTOTUNE, deterministic=True).ignore_errors()

    def _unless_in_memory(self, index: tf.Tensor, way: tf.Tensor) -> tf.Tensor:
        def call(index, way):
            return np.where(self.memory.filled[index], np.uint8(FROM_MEMORY), way)

        way = python_op(call, np.zeros(0, np.uint8), [index, way], tf.uint8)
        return tf.ensure_shape(way, index.shape)

    def _stored(self, order, stop, positions, images, extents) -> tf.Tensor:
        """Keeps a batch in memory, but for what `by_python` has read."""

        def call(indices, in_order, images, extents):
            self.memory.store(indices[in_order], images[in_order], extents[in_order])
            return np.int64(0)

        indices = tf.gather(order, positions % tf.size(order, tf.int64))
        inputs = [indices, positions < stop, images, extents]
        return tf.ensure_shape(python_op(call, np.int64(0), inputs, tf.int64), [])

    def _reported(self, batches, order, start, stop) -> tf.data.Dataset:
        """Reports the examples that are missing before the end of each batch.

        Args:
          batches: a dataset of (end position, positions [B], ...).
          order, start, stop: positions `start` to `stop` of `order`, repeated, are wanted.

        Returns:
          A dataset of (positions [B], ...).
        """

        def call(indices, present):
            present = present[(present >= 0) & (present < len(indices))]
            self.report(np.delete(indices, present))
            return np.int64(0)

        def report(expected, end, positions):
            missing = tf.range(expected, tf.maximum(expected, tf.minimum(end, stop)))
            indices = tf.gather(order, missing % tf.size(order, tf.int64))
            return python_op(call, np.int64(0), [indices, positions - expected], tf.int64)

        def check(expected, batch):
            end, positions, *columns = batch
            done = tf.cond(
                tf.equal(end - expected, tf.size(positions, tf.int64)),
                lambda: tf.constant(0, tf.int64),
                lambda: tf.ensure_shape(report(expected, end, positions), []),
            )
            after = [done]
            if self.memory:
                after.append(self._stored(order, stop, positions, *columns[:2]))
            with tf.control_dependencies(after):
                return tf.identity(end), (positions, *columns)

        return batches.scan(start, check)


def _without_ids(positions, image, extent, label):
    return Decoded(image, extent, label, tf.fill(tf.shape(label), ""))


def _empty(spec: tuple) -> tuple:
    """Batches of no example."""
    return tuple(tf.zeros([0, *each.shape[1:]], each.dtype) for each in spec)

"""tf.data pipelines over the indices of examples: the order of an epoch, resuming, decoding.

Nothing here knows where examples come from; `Source` passes the function that reads one.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from simclr_tf import _keras
from simclr_tf.data.examples import UNLABELLED, Decoded
from simclr_tf.errors import ArgumentError

SHUFFLE_BUFFER = 10_000  # examples
_QUIET_SECONDS = 0.05  # without a call for this long, the buffers of the pipelines are full
_PATIENCE_SECONDS = 5.0


class ReplicaSlice(NamedTuple):
    """The slice of every batch that one worker reads.

    A batch is divided into `replicas` equal micro-batches, one for each replica; the worker reads
    those of the replicas `first` to `first + count - 1`. A training step therefore sees the same
    images for any number of workers.

    Attributes:
      first: index of the worker's first replica, 0 or more.
      count: number of replicas of the worker, 1 or more.
      replicas: number of replicas of all workers.

    Example:

    >>> source = simclr_tf.data.load("shapes", "test[:20]")
    >>> first_of_two = simclr_tf.data.ReplicaSlice(first=0, count=1, replicas=2)
    >>> source.epochs(batch_size=8, seed=0, replica_slice=first_of_two).element_spec.shape
    TensorShape([4, 32, 32, 3])
    """

    first: int
    count: int
    replicas: int

    def check(self, batch_size: int) -> None:
        """Raises `ArgumentError` where a batch of `batch_size` has no such slice."""
        if batch_size % self.replicas:
            raise ArgumentError(
                f"batch_size must be divisible by the {self.replicas} replicas; got {batch_size}."
            )
        if self.first < 0 or self.count < 1 or self.first + self.count > self.replicas:
            raise ArgumentError(
                "a ReplicaSlice needs first >= 0, count >= 1 and first + count <= replicas; "
                f"got {self}."
            )

    def rows(self, order: tf.Tensor, steps: int, batch_size: int) -> tf.Tensor:
        """Returns the indices of full batches, [steps, count, batch_size / replicas].

        Args:
          order: indices in the order of an epoch, [n].
          steps: full batches in the epoch.
          batch_size: of the whole batch.
        """
        shape = [steps, self.replicas, batch_size // self.replicas]
        order = tf.reshape(order[: steps * batch_size], shape)
        return order[:, self.first : self.first + self.count]

    def remainder(self, order: tf.Tensor, steps: int, batch_size: int) -> tf.Tensor:
        """Returns this worker's indices of those after the last full batch, [m]."""
        order = order[steps * batch_size :]
        replica = tf.range(tf.size(order)) % self.replicas
        return order[(replica >= self.first) & (replica < self.first + self.count)]


WHOLE_BATCH = ReplicaSlice(0, 1, 1)


def epoch_order(
    num_examples: int,
    seed: int,
    epoch: tf.Tensor,
    shuffle: bool,
    shards: tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns the indices of all examples in the order of an epoch, int64 [num_examples].

    Args:
      num_examples: n.
      seed, epoch: what a shuffled order depends on.
      shuffle: False gives 0 to n - 1.
      shards: indices of the first example of each shard, and n at the end, int64 [shards + 1]. The
        shards are then shuffled, and their examples in a buffer of `SHUFFLE_BUFFER`: none moves by
        as many positions. None shuffles all examples evenly.
    """
    order = tf.range(num_examples, dtype=tf.int64)
    if not shuffle:
        return order
    seeds = tf.stack([tf.constant(seed, tf.int64), epoch])
    if shards is None:
        return _keras.stateless_shuffle(order, seeds)
    number = _keras.stateless_shuffle(tf.range(tf.size(shards) - 1), seeds)
    starts, stops = tf.gather(shards, number), tf.gather(shards, number + 1)
    order = tf.ragged.range(starts, stops, row_splits_dtype=tf.int64).values
    delay = tf.random.stateless_uniform([num_examples], seeds, dtype=tf.float64, alg="philox")
    delay *= min(SHUFFLE_BUFFER, num_examples)
    keys = tf.range(num_examples, dtype=tf.float64) + delay
    return tf.gather(order, tf.argsort(keys, stable=True))


def index_batches(rows: tf.Tensor, done: tf.Tensor) -> tf.data.Dataset:
    """Batches of indices, for examples in memory.

    Args:
      rows: from `ReplicaSlice.rows`, [steps, count, size].
      done: steps to skip.

    Returns:
      A dataset of int64 [size].
    """
    return tf.data.Dataset.from_tensor_slices(tf.reshape(rows[done:], [-1, rows.shape[-1]]))


def decoded_batches(
    rows: tf.Tensor,
    remainder: tf.Tensor,
    done: tf.Tensor,
    read: Callable,
    side: int,
    reader=None,
) -> tf.data.Dataset:
    """Batches of decoded examples of one epoch, always as many as the epoch has steps.

    An unreadable example is replaced by the next one of the epoch's order, and at the end of the
    order by those from its start.

    Args:
      rows, remainder: from `ReplicaSlice`.
      done: steps to skip.
      read, side: as for `decoded`.
      reader: a `GraphReader`, for examples in files; None calls `read` for each example.

    Returns:
      A dataset of batches of `Decoded`, with a `reader` without ids.
    """
    steps, count, size = rows.shape
    indices = tf.concat([tf.reshape(rows, [-1]), remainder], axis=0)
    start = done * count * size
    if reader:
        dataset = reader.endless_batches(indices, start, size, read, side)
    else:
        dataset = tf.data.Dataset.from_tensor_slices(indices).repeat().skip(start)
        dataset = decoded(dataset, read, side).batch(size, drop_remainder=True)
    return dataset.take((steps - done) * count)


def decoded(
    indices: tf.data.Dataset, read: Callable[[int], Decoded | None], side: int
) -> tf.data.Dataset:
    """Examples decoded in parallel, in the order of `indices`; unreadable ones are left out.

    Args:
      indices: a dataset of int64 scalars.
      read: reads and decodes one example; returns None where it is unreadable.
      side: of the images, pixels.

    Returns:
      A dataset of `Decoded`.
    """
    nothing = Decoded(
        np.zeros([side, side, 3], np.uint8), np.zeros(2, np.int32), np.int64(UNLABELLED), b""
    )

    def read_marked(index):
        example = read(int(index))
        image, extent, label, example_id = example or nothing
        return image, np.asarray(extent, np.int32), np.int64(label), example_id, example is not None

    def read_op(index):
        types = [tf.uint8, tf.int32, tf.int64, tf.string, tf.bool]
        *example, readable = python_op(read_marked, (*nothing, True), [index], types)
        shapes = [side, side, 3], [2], [], []
        example = [tf.ensure_shape(each, shape) for each, shape in zip(example, shapes)]
        return *example, tf.ensure_shape(readable, [])

    # Named: AutoGraph cannot tell two lambdas on one line apart, and warns about it.
    def is_readable(*example):
        return example[-1]

    def without_mark(*example):
        return Decoded(*example[:-1])

    dataset = indices.map(read_op, tf.data.AUTOTUNE, deterministic=True)
    return dataset.filter(is_readable).map(without_mark)


# An iterator that is still alive when the interpreter shuts down (a global of a script, a frame
# held by a traceback) waits for its calls of Python functions, and these wait for an interpreter
# that runs no thread any more: the process hangs. So before that, when the interpreter is about to
# exit, calls return at once and are waited for.

_lock = threading.Lock()
_in_flight = 0
_last_call = 0.0
_exiting = False


def python_op(function: Callable, at_exit, inputs: list[tf.Tensor], types):
    """`tf.numpy_function` that returns `at_exit` once the interpreter is about to exit."""

    def call(*arguments):
        global _in_flight, _last_call
        with _lock:
            _in_flight += 1
        try:
            return at_exit if _exiting else function(*arguments)
        finally:
            with _lock:
                _in_flight -= 1
                _last_call = time.monotonic()

    return tf.numpy_function(call, inputs, types)


@atexit.register
def _wait_for_calls() -> None:
    """Waits until the pipelines, which nothing reads from any more, have filled their buffers."""
    global _exiting
    _exiting = True
    give_up = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < give_up:
        with _lock:
            quiet = not _in_flight and time.monotonic() - _last_call > _QUIET_SECONDS
        if quiet:
            return
        time.sleep(0.005)

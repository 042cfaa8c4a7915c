"""The share of the time in which training waits for data, as a callback."""

from __future__ import annotations

import time

import numpy as np
import tensorflow as tf

from simclr_tf._keras import StepCallback

_EVERY_CALLS = 50  # on an accelerator, calls between two that are timed


class DataWait(StepCallback):
    """Adds `data_wait` to the logs of an epoch: the share of the time spent waiting for batches.

    A step on a CPU ends before the next batch is asked for, and every wait counts. An accelerator
    still computes when Python asks for more; there, of every 50th call of the step, the wait is
    counted that begins when the device has ended its work. The first step of an epoch is left out,
    since it fills buffers; an epoch of a single step has no share.

    Args:
      accelerator: whether the steps run on one; None: whether there is a GPU or a TPU.

    Example:

    >>> wait = simclr_tf.training.DataWait()
    >>> model = simclr_tf.SimCLR(encoder)
    >>> model.compile("sgd")
    >>> history = model.fit(wait.watch(dataset), verbose=0, callbacks=[wait]).history
    >>> 0.0 <= history["data_wait"][0] <= 1.0
    True
    """

    def __init__(self, accelerator=None):
        super().__init__()
        if accelerator is None:
            accelerator = bool(tf.config.list_logical_devices("GPU"))
            accelerator = accelerator or bool(tf.config.list_logical_devices("TPU"))
        self._accelerator = accelerator
        self._asked = self._waited = 0.0
        self._first = None  # the first wait since it was set to None
        self._start()

    def watch(self, dataset):
        """Returns a `tf.data.Dataset` of the same elements, whose waits are timed.

        It must be what `fit` is given: stages after it would be timed as well, and `prefetch` hides
        what it waits for.

        Args:
          dataset: any `tf.data.Dataset`.
        """
        # `zip` asks its inputs in their order. The time is Python's, since the determinism of
        # TensorFlow forbids `tf.timestamp`.
        clock = tf.data.Dataset.range(2**62).map(
            lambda i: tf.numpy_function(self._ask, [i], tf.int64)
        )

        def note(begun, batch):
            with tf.control_dependencies([tf.numpy_function(self._receive, [begun], tf.int64)]):
                return tf.nest.map_structure(tf.identity, batch)

        watched = tf.data.Dataset.zip((clock, dataset)).map(note)
        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False  # it would hide the waits
        return watched.with_options(options)

    def _ask(self, index):
        self._asked = time.perf_counter()
        return np.int64(index)

    def _receive(self, index):
        wait = time.perf_counter() - self._asked
        self._waited += wait
        self._first = wait if self._first is None else self._first
        return np.int64(index)

    def _start(self):
        self._calls_of_epoch, self._timed_from = 0, None
        self._share_of, self._share_in = 0.0, 0.0  # seconds of waiting, seconds

    @property
    def share(self):
        """The share of the epoch so far, float in [0, 1]; None where nothing is timed yet."""
        if not self._share_in:
            return None
        return min(1.0, self._share_of / self._share_in)

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clock."""
        super().on_epoch_begin(epoch, logs)
        self._start()

    def on_steps_end(self, steps, logs):
        """Counts the waits since the last call; on an accelerator, of some calls."""
        self._calls_of_epoch += 1
        if not self._accelerator:
            self._count(self._waited)
            self._time_from(steps)
        elif self._timed_from is not None:
            _wait_for_device(logs)
            # With steps_per_execution, the waits after the first overlap with the device's work.
            self._count((self._first or 0.0) * (steps - self._timed_from[1]))
            self._timed_from = None
        elif self._calls_of_epoch % _EVERY_CALLS == 1:
            _wait_for_device(logs)
            self._time_from(steps)

    def _time_from(self, steps):
        self._timed_from = time.perf_counter(), steps
        self._waited, self._first = 0.0, None

    def _count(self, seconds):
        if self._timed_from is not None:
            self._share_of += seconds
            self._share_in += time.perf_counter() - self._timed_from[0]

    def on_epoch_end(self, epoch, logs=None):
        """Writes into the logs that the callbacks after this one read."""
        if self.share is not None:
            logs["data_wait"] = self.share


def _wait_for_device(logs):
    """Returns when the step has been computed: its logs are read."""
    for value in (logs or {}).values():
        float(value)

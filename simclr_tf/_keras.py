"""Where Keras 2 and Keras 3 differ.

The only place that touches private or undocumented TensorFlow and Keras API.
"""

from __future__ import annotations

import tensorflow as tf
from tensorflow import keras


class StepCallback(keras.callbacks.Callback):
    """A base class for callbacks that act every few steps, with logs as they are on the device.

    Keras 2 converts the logs of every step to NumPy, and so waits for the device, as soon as one
    callback has a batch hook and does not set `_supports_tf_logs`. This class sets it, has the
    batch hook, and calls `on_steps_end` only when it is due.

    Args:
      every_steps: steps of an epoch between two calls.
    """

    def __init__(self, every_steps=1):
        super().__init__()
        self._supports_tf_logs = True
        self._call_every_steps, self._calls = every_steps, 0

    def on_epoch_begin(self, epoch, logs=None):
        """Counts the steps from 0 again."""
        self._calls = 0

    def on_train_batch_end(self, batch, logs=None):
        """Calls `on_steps_end` when due; with steps_per_execution, `batch` advances by more."""
        calls = (batch + 1) // self._call_every_steps
        if calls != self._calls:
            self._calls = calls
            self.on_steps_end(batch + 1, logs)

    def on_steps_end(self, steps, logs):
        """Acts after `steps` steps of this epoch, counted from the start of this `fit`."""
        raise NotImplementedError


def build_with_metrics(model, spec):
    """Creates the variables of a compiled model, its optimizer and its metrics ahead of `fit`.

    Keras 2 creates those of the metrics in the first step, too late to restore them.

    Args:
      model: a compiled `keras.Model`.
      spec: `element_spec` of the dataset it will be trained on.
    """
    batch = tf.nest.map_structure(lambda each: tf.zeros([1, *each.shape[1:]], each.dtype), spec)
    x, y, weights = keras.utils.unpack_x_y_sample_weight(batch)
    if not model.built:
        model(x, training=False)
    if hasattr(model.optimizer, "build"):
        model.optimizer.build(model.trainable_variables)
    if y is None or getattr(model, "loss", None) is None:
        return  # its metrics, where it has some, are its own

    @tf.function
    def update():
        tf.distribute.get_strategy().run(update_replica)

    def update_replica():
        predictions = model(x, training=False)
        model.compute_loss(x, y, predictions, weights)
        model.compute_metrics(x, y, predictions, weights)

    update()
    model.reset_metrics()

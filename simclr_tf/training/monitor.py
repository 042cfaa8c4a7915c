"""Callbacks that watch a run: its throughput, and alarms about its loss."""

from __future__ import annotations

import math
import time

from tensorflow import keras

from simclr_tf.errors import TrainingError
from simclr_tf.training.callbacks import steps_taken


class Throughput(keras.callbacks.Callback):
    """Adds `images_per_second` and `learning_rate` to the logs of an epoch.

    The time is that of the training steps, without probes and checkpoints.

    Args:
      batch_size: images a step.
    """

    def __init__(self, batch_size):
        super().__init__()
        self.batch_size = batch_size

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clock."""
        self._start = time.perf_counter()
        self._first_step = steps_taken(self.model)

    def on_epoch_end(self, epoch, logs=None):
        """Writes into the logs that the callbacks after this one see."""
        seconds = time.perf_counter() - self._start
        steps = steps_taken(self.model) - self._first_step
        logs["learning_rate"] = _learning_rate(self.model.optimizer)
        logs["images_per_second"] = steps * self.batch_size / seconds


def _learning_rate(optimizer):
    """The rate as it is now; TensorFlow Addons' optimizers give the schedule itself."""
    rate = optimizer.learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        rate = rate(optimizer.iterations)
    return float(rate.numpy())


class Alarms(keras.callbacks.Callback):
    """Stops at a loss that is not finite; says so when an epoch ends where chance is.

    Args:
      global_batch_size: N; a loss of ln(2N - 1) is what embeddings that are all alike have.
      log: called with a line of text.
      every_steps: how often the running mean of the loss is read.
    """

    def __init__(self, global_batch_size, log=print, every_steps=20):
        super().__init__()
        self.chance = math.log(2 * global_batch_size - 1)
        self.log, self.every_steps = log, every_steps
        self._last_read = None

    def on_train_batch_end(self, batch, logs=None):
        """Reads the loss now and then."""
        if batch // self.every_steps != self._last_read:  # batch need not move by 1
            self._last_read = batch // self.every_steps
            self._check(logs["loss"])

    def on_epoch_end(self, epoch, logs=None):
        """Reads the mean of the epoch."""
        self._check(logs["loss"])
        if epoch > 0 and logs["loss"] > self.chance - 0.05:
            self.log(
                f"warning: after epoch {epoch + 1} the loss is {logs['loss']:.3f}, and chance is "
                f"ln(2N - 1) = {self.chance:.3f}: nothing is learnt. Lower the learning rate, "
                "lengthen the warm-up, or look at the views."
            )

    def _check(self, loss):
        if not math.isfinite(loss):
            step = steps_taken(self.model)
            raise TrainingError(
                f"the loss is {loss} by step {step}. Lower --learning_rate, lengthen "
                "--warmup_epochs, or take --precision=float32, in another --run_dir."
            )

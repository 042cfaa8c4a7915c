"""Callbacks that watch a run: its throughput, and alarms about its loss."""

from __future__ import annotations

import math
import time

from tensorflow import keras

from simclr_tf._keras import StepCallback
from simclr_tf.errors import NonFiniteError, check_number
from simclr_tf.training.callbacks import steps_taken


class Throughput(keras.callbacks.Callback):
    """Adds `images_per_second` and `learning_rate` to the logs of an epoch.

    The time is that of the training steps, without the callbacks that act at the end of an epoch.

    Args:
      batch_size: images per step, over all replicas.

    Example:

    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4)])
    >>> model.compile(keras.optimizers.SGD(0.1), "mse")
    >>> watch = simclr_tf.training.Throughput(batch_size=4)
    >>> history = model.fit(images / 255, labels, 4, verbose=0, callbacks=[watch]).history
    >>> sorted(history)
    ['images_per_second', 'learning_rate', 'loss']
    """

    def __init__(self, batch_size):
        super().__init__()
        self.batch_size = batch_size

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clock."""
        self._start = time.perf_counter()
        self._first_step = steps_taken(self.model)

    def on_epoch_end(self, epoch, logs=None):
        """Writes into the logs that the callbacks after this one read."""
        seconds = time.perf_counter() - self._start
        steps = steps_taken(self.model) - self._first_step
        logs["learning_rate"] = _learning_rate(self.model.optimizer)
        logs["images_per_second"] = steps * self.batch_size / seconds


def _learning_rate(optimizer):
    """The current rate; the optimizers of TensorFlow Addons return the schedule itself."""
    rate = optimizer.learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        rate = rate(optimizer.iterations)
    return float(rate.numpy())


class Alarms(StepCallback):
    """Ends the run when the loss is not finite; warns when the model has learnt nothing.

    Args:
      chance_loss: the loss of a model that has learnt nothing, 0 or more, such as ln(2N - 1) for
        NT-Xent with a batch of N images, or ln(C) for C classes. A warning is logged, once, when an
        epoch ends at that loss. None: no warning.
      log: called with a line of text.
      every_steps: steps between two readings of the running mean of the loss.
      warm_up_epochs: epochs without that warning.

    Raises:
      errors.NonFiniteError: from `fit`, at a loss that is not finite.

    Example:

    >>> alarms = simclr_tf.training.Alarms(chance_loss=np.log(4))
    >>> alarms.on_epoch_end(1, {"loss": 1.39})
    warning: after epoch 2 the loss is 1.390, no better than chance (1.386). Lower ...
    """

    def __init__(self, chance_loss=None, log=print, every_steps=20, warm_up_epochs=1):
        super().__init__(every_steps)
        if chance_loss is not None:
            check_number("chance_loss", chance_loss, at_least=0)
        self.chance_loss, self.log = chance_loss, log
        self.warm_up_epochs, self._warned = warm_up_epochs, False

    def on_steps_end(self, steps, logs):
        """Checks the running mean of the loss."""
        self._check(logs["loss"])

    def on_epoch_end(self, epoch, logs=None):
        """Checks the mean loss of the epoch."""
        loss = float(logs["loss"])
        self._check(loss)
        if self.chance_loss is None or self._warned or epoch < self.warm_up_epochs:
            return
        if loss > self.chance_loss - 0.05:
            self._warned = True
            self.log(
                f"warning: after epoch {epoch + 1} the loss is {loss:.3f}, no better than chance "
                f"({self.chance_loss:.3f}). Lower the learning rate, lengthen the warm-up, or look "
                "at the images that the model is trained on."
            )

    def _check(self, loss):
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"the loss must be finite; it is {float(loss)} at step {steps_taken(self.model)}. "
                "Lower learning_rate, lengthen warmup_epochs, or use precision=float32, in another "
                "run_dir."
            )

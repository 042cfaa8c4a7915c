"""The loss scale of float16: a callback that reports it, and the steps that it skipped.

In float16 the loss is multiplied by a scale, so that small gradients do not become 0. Where a
gradient overflows, Keras skips the step and halves the scale.
"""

from __future__ import annotations

from absl import logging
from tensorflow import keras

from simclr_tf import _keras
from simclr_tf._keras import StepCallback
from simclr_tf.distribute import sum_over_replicas


class LossScale(StepCallback):
    """Adds `loss_scale` to the logs of an epoch; logs a line if steps were skipped in it.

    For a model whose optimizer has no dynamic loss scale it does nothing. The number of skipped
    steps is `skipped_steps` in the logs of `SimCLR`.

    Args:
      log: called with a line of text; None: absl's `logging.warning`.

    Example:

    >>> keras.mixed_precision.set_global_policy("mixed_float16")
    >>> model = simclr_tf.SimCLR(encoder)
    >>> model.compile("sgd")
    >>> callback = simclr_tf.models.LossScale(log=print)
    >>> history = model.fit(dataset, verbose=0, callbacks=[callback]).history
    warning: epoch 1: float16 skipped 2 of 2 steps, whose gradients were not finite; the loss ...
    >>> history["skipped_steps"], history["loss_scale"]
    ([2.0], [8192.0])
    """

    def __init__(self, log=None):
        super().__init__()
        self.log = log or logging.warning
        self.steps_before = 0  # of the first epoch, in an earlier `fit` that was interrupted
        self._steps = 0

    def on_epoch_begin(self, epoch, logs=None):
        """Counts the steps of the epoch."""
        super().on_epoch_begin(epoch, logs)
        self._steps = self.steps_before

    def on_steps_end(self, steps, logs):
        """Counts, without a look at the device."""
        self._steps = self.steps_before + steps

    def on_epoch_end(self, epoch, logs=None):
        """Writes into the logs that the callbacks after this one read."""
        self.steps_before = 0
        if not _keras.scales_dynamically(self.model.optimizer):
            return
        scale = float(_keras.loss_scale(self.model.optimizer).numpy())
        logs["loss_scale"] = scale
        skipped = round(float(logs.get("skipped_steps", 0)))
        if skipped:
            self.log(_message(epoch + 1, skipped, self._steps, scale))


def _message(epoch, skipped, steps, scale):
    now = f"{scale:,.0f}" if scale >= 1 else f"{scale:.3g}"
    line = (
        f"epoch {epoch}: float16 skipped {skipped:,} of {steps:,} steps, whose gradients were not "
        f"finite; the loss scale is now {now}."
    )
    if skipped < steps:
        return line
    return f"warning: {line} Nothing was learnt. If this continues, use bfloat16 or float32."


def descend(optimizer, gradients, variables, skipped_steps=None, gradient_norm=None):
    """Updates variables by the gradients of a scaled loss, unless the loss scale skips the step.

    Args:
      optimizer: of the model.
      gradients: of `_keras.scale_loss(optimizer, loss)`, one per variable.
      variables: to update.
      skipped_steps: a `SkippedSteps` that counts, for an optimizer that `scales_dynamically`; None
        for another.
      gradient_norm: a `GradientNorm` that measures them, or None.
    """
    gradients = _keras.unscale_gradients(optimizer, gradients)
    if gradient_norm is not None:
        gradient_norm.update_state(sum_over_replicas(gradients), _keras.scale_left(optimizer))
    gradients = _keras.with_overflow_of_any_replica(optimizer, gradients)
    scale = None if skipped_steps is None else _keras.loss_scale(optimizer)
    optimizer.apply_gradients(zip(gradients, variables))
    if skipped_steps is not None:
        skipped_steps.update_state(_keras.was_skipped(optimizer, scale))


def with_loss_scale(callbacks):
    """Returns the callbacks of a call of `fit` with a `LossScale`, unless there is one.

    Args:
      callbacks: None, a callback, a list of them, or a `keras.callbacks.CallbackList`, which is
        returned as it is.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return callbacks
    listed = callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]
    listed = [callback for callback in listed if callback is not None]
    if any(isinstance(callback, LossScale) for callback in listed):
        return listed
    return [LossScale(), *listed]  # first, so that the others find its entry in the logs

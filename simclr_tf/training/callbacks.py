"""What watches a run during `fit`: probes, logs, alarms, the schedule of view sizes.

Each works with any `SimCLR.fit`; the command line puts them together in `jobs`. What a run
resumes from is in `checkpoints.py`.
"""

from __future__ import annotations

import json
import math
import pathlib
import time

from tensorflow import keras

from simclr_tf.augment import RandomView
from simclr_tf.errors import ArgumentError, TrainingError
from simclr_tf.evaluate import extract_features, knn_accuracy


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
        self._first_step = _steps_taken(self.model)

    def on_epoch_end(self, epoch, logs=None):
        """Writes into the logs that the callbacks after this one see."""
        seconds = time.perf_counter() - self._start
        steps = _steps_taken(self.model) - self._first_step
        logs["learning_rate"] = _learning_rate(self.model.optimizer)
        logs["images_per_second"] = steps * self.batch_size / seconds


def _steps_taken(model):
    return int(model.optimizer.iterations.numpy())  # a mirrored variable knows numpy alone


def _learning_rate(optimizer):
    """The rate as it is now; TensorFlow Addons' optimizers give the schedule itself."""
    rate = optimizer.learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        rate = rate(optimizer.iterations)
    return float(rate.numpy())


class KNNProbe(keras.callbacks.Callback):
    """Adds `knn_accuracy` to the logs: k nearest neighbours on frozen h (Wu et al., 2018).

    Args:
      train, test: tf.data of labelled dict batches, see `evaluate.extract_features`.
      every_epochs: how often; the last epoch always.
      k: neighbours, weighted by exp(cosine / 0.1).
      epochs: of the run; None is those of the call of `fit`.
      probe_encoder: an encoder outside the strategy; it gets the weights of the model's encoder and
        is probed in its place. None probes the model's own.
      probes: False for a worker that only takes part in reading the weights.
    """

    def __init__(
        self, train, test, every_epochs=1, k=200, epochs=None, probe_encoder=None, probes=True
    ):
        super().__init__()
        self.train, self.test, self.every_epochs, self.k = train, test, every_epochs, k
        self.epochs, self.probe_encoder, self.probes = epochs, probe_encoder, probes

    def on_epoch_end(self, epoch, logs=None):
        """Probes and writes into the logs."""
        last = epoch + 1 == (self.epochs or self.params["epochs"]) or self.model.stop_training
        if not last and (epoch + 1) % self.every_epochs:
            return
        encoder = self.model.encoder
        if self.probe_encoder is not None:
            self.probe_encoder.set_weights(encoder.get_weights())
            encoder = self.probe_encoder
        if not self.probes:
            return
        train = extract_features(encoder, self.train)
        test = extract_features(encoder, self.test)
        logs["knn_accuracy"] = knn_accuracy(train.h, train.labels, test.h, test.labels, k=self.k)


class JSONLines(keras.callbacks.Callback):
    """Appends one JSON object per epoch to a file.

    `epoch` counts from 1, `step` is the optimizer's; the rest is the logs of the epoch.
    """

    def __init__(self, path):
        super().__init__()
        self.path = pathlib.Path(path)

    def on_epoch_end(self, epoch, logs=None):
        """Writes the line in one piece."""
        row = {"epoch": epoch + 1, "step": _steps_taken(self.model)}
        row.update((name, float(value)) for name, value in logs.items())
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


class Alarms(keras.callbacks.Callback):
    """Stops at a loss that is not finite; says so when an epoch ends where chance is.

    Args:
      global_batch_size: N; a loss of ln(2N - 1) is what embeddings that are all alike have.
      say: called with a line of text.
      every_steps: how often the running mean of the loss is read.
    """

    def __init__(self, global_batch_size, say=print, every_steps=20):
        super().__init__()
        self.chance = math.log(2 * global_batch_size - 1)
        self.say, self.every_steps = say, every_steps
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
            self.say(
                f"warning: after epoch {epoch + 1} the loss is {logs['loss']:.3f}, and chance is "
                f"ln(2N - 1) = {self.chance:.3f}: nothing is learnt. Lower the learning rate, "
                "lengthen the warm-up, or look at the views."
            )

    def _check(self, loss):
        if not math.isfinite(loss):
            step = _steps_taken(self.model)
            raise TrainingError(
                f"the loss is {loss} by step {step}. Lower --learning_rate, lengthen "
                "--warmup_epochs, or take --precision=float32, in another --run_dir."
            )


class StopAtStep(keras.callbacks.Callback):
    """Ends training when the optimizer has taken `total_steps`."""

    def __init__(self, total_steps):
        super().__init__()
        self.total_steps = total_steps

    def on_train_batch_end(self, batch, logs=None):
        """Compares after every step."""
        if _steps_taken(self.model) >= self.total_steps:
            self.model.stop_training = True


class ViewSizes(keras.callbacks.Callback):
    """Makes the views of the early epochs smaller: fewer pixels, more epochs an hour.

    Args:
      sizes: list of (side in pixels, share of the epochs at which it ends), ends rising to 1.
      view: the `RandomView` whose other arguments are kept.
      epochs: of the run; None is those of the call of `fit`.
    """

    def __init__(self, sizes, view, epochs=None):
        super().__init__()
        check_view_sizes(sizes)
        self.sizes, self.view, self.epochs = list(sizes), view, epochs

    def size_at(self, epoch):
        """Side of the views in pixels in an epoch counted from 0."""
        for size, end in self.sizes:
            if epoch < round(end * (self.epochs or self.params["epochs"])):
                return size
        return self.sizes[-1][0]

    def on_epoch_begin(self, epoch, logs=None):
        """Changes the views and has Keras trace the step anew."""
        size = self.size_at(epoch)
        if self.model.augment.size != size:
            config = self.view.get_config()
            # Blur and strength are those of the final size.
            config.update(size=size, blur=self.view.blurring is not None)
            self.model.augment = RandomView(**config)
            self.model.train_function = None
            self.model.make_train_function()


def check_view_sizes(sizes):
    """Raises ValueError unless sizes are [(side, end share), ...] with ends rising to 1."""
    ends = [end for _, end in sizes]
    if not sizes or ends != sorted(ends) or ends[-1] != 1.0 or min(side for side, _ in sizes) < 1:
        raise ArgumentError(
            "view sizes must be side:end pairs, sides of 1 pixel or more, ends rising to 1; "
            f"got {sizes}. For example 16:0.5,24:0.8,32:1."
        )

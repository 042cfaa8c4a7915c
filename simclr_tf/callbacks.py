"""What watches a run during `fit`: probes, logs, alarms, checkpoints, the schedule of view sizes.

Each works with any `SimCLR.fit`; the command line puts them together in `jobs.py`.
"""

from __future__ import annotations

import json
import math
import pathlib
import time

import tensorflow as tf
from tensorflow import keras

from simclr_tf.augment import RandomView
from simclr_tf.evaluate import extract_features, knn_accuracy


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says what happened and what to do."""


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
        self._first_step = int(self.model.optimizer.iterations)

    def on_epoch_end(self, epoch, logs=None):
        """Writes into the logs that the callbacks after this one see."""
        seconds = time.perf_counter() - self._start
        steps = int(self.model.optimizer.iterations) - self._first_step
        logs["learning_rate"] = _learning_rate(self.model.optimizer)
        logs["images_per_second"] = steps * self.batch_size / seconds


def _learning_rate(optimizer):
    """The rate as it is now; TensorFlow Addons' optimizers give the schedule itself."""
    rate = optimizer.learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        rate = rate(optimizer.iterations)
    return float(rate)


class KNNProbe(keras.callbacks.Callback):
    """Adds `knn_accuracy` to the logs: k nearest neighbours on frozen h (Wu et al., 2018).

    Args:
      train, test: tf.data of labelled dict batches, see `evaluate.extract_features`.
      every_epochs: how often; the last epoch always.
      k: neighbours, weighted by exp(cosine / 0.1).
    """

    def __init__(self, train, test, every_epochs=1, k=200):
        super().__init__()
        self.train, self.test, self.every_epochs, self.k = train, test, every_epochs, k

    def on_epoch_end(self, epoch, logs=None):
        """Probes and writes into the logs."""
        last = epoch + 1 == self.params["epochs"] or self.model.stop_training
        if not last and (epoch + 1) % self.every_epochs:
            return
        train = extract_features(self.model.encoder, self.train)
        test = extract_features(self.model.encoder, self.test)
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
        row = {"epoch": epoch + 1, "step": int(self.model.optimizer.iterations)}
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
            step = int(self.model.optimizer.iterations)
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
        if int(self.model.optimizer.iterations) >= self.total_steps:
            self.model.stop_training = True


class Checkpoints(keras.callbacks.Callback):
    """Saves model, optimizer and epoch after each epoch; `restore` reads the last whole one.

    Args:
      directory: where; the last two are kept.
      model: the compiled and built `SimCLR`.
    """

    def __init__(self, directory, model):
        super().__init__()
        if hasattr(model.optimizer, "build"):  # so that its slots are there to be restored
            model.optimizer.build(model.trainable_variables)
        self.epoch = tf.Variable(0, dtype=tf.int64, trainable=False, name="epoch")
        self.checkpoint = tf.train.Checkpoint(
            model=model,
            optimizer=model.optimizer,
            epoch=self.epoch,
            image_size=tf.Variable(model.image_shape[0], trainable=False, name="image_size"),
        )
        self.manager = tf.train.CheckpointManager(self.checkpoint, str(directory), max_to_keep=2)

    def restore(self):
        """Restores the newest checkpoint; returns the epochs done, 0 where there is none."""
        if self.manager.latest_checkpoint is None:
            return 0
        status = self.checkpoint.restore(self.manager.latest_checkpoint)
        status.assert_existing_objects_matched()
        return int(self.epoch)

    def on_epoch_end(self, epoch, logs=None):
        """Saves, unless the last update has spoilt the weights."""
        spoilt = [w.name for w in self.model.trainable_weights if not _is_finite(w)]
        if spoilt:
            raise TrainingError(
                f"{spoilt[0]} is no longer finite after epoch {epoch + 1}. Lower --learning_rate, "
                "or take --precision=float32, in another --run_dir."
            )
        self.epoch.assign(epoch + 1)
        self.manager.save(checkpoint_number=epoch + 1)


def _is_finite(weight):
    return bool(tf.reduce_all(tf.math.is_finite(weight)))


def epochs_kept(directory):
    """Epochs done at the newest checkpoint of a directory; 0 where there is none."""
    newest = tf.train.latest_checkpoint(str(directory))
    if newest is None:
        return 0
    return int(tf.train.load_checkpoint(newest).get_tensor("epoch/.ATTRIBUTES/VARIABLE_VALUE"))


def restore_encoder(directory, build):
    """The encoder of the newest checkpoint and the side of its images.

    Args:
      directory: of the checkpoints.
      build: side of the images in pixels -> a built encoder of the checkpoint's kind.

    Returns:
      (encoder, image_size), or None where there is no checkpoint.
    """
    newest = tf.train.latest_checkpoint(str(directory))
    if newest is None:
        return None
    reader = tf.train.load_checkpoint(newest)
    image_size = int(reader.get_tensor("image_size/.ATTRIBUTES/VARIABLE_VALUE"))
    encoder = build(image_size)
    whole = tf.train.Checkpoint(model=tf.train.Checkpoint(encoder=encoder))
    whole.restore(newest).expect_partial().assert_existing_objects_matched()
    return encoder, image_size


class ViewSizes(keras.callbacks.Callback):
    """Makes the views of the early epochs smaller: fewer pixels, more epochs an hour.

    Args:
      sizes: list of (side in pixels, share of the epochs at which it ends), ends rising to 1.
      view: the `RandomView` whose other arguments are kept.
    """

    def __init__(self, sizes, view):
        super().__init__()
        check_view_sizes(sizes)
        self.sizes, self.view = list(sizes), view

    def size_at(self, epoch):
        """Side of the views in pixels in an epoch counted from 0."""
        for size, end in self.sizes:
            if epoch < round(end * self.params["epochs"]):
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
        raise ValueError(
            "view sizes must be side:end pairs, sides of 1 pixel or more, ends rising to 1; "
            f"got {sizes}. For example 16:0.5,24:0.8,32:1."
        )

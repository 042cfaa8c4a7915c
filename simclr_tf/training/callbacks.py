"""Callbacks of a run: the kNN probe, metrics as JSON lines, the last step, view sizes.

Throughput and alarms are in `monitor`, checkpoints in `checkpoints`.
"""

from __future__ import annotations

import json
import math
import pathlib

from tensorflow import keras

from simclr_tf._keras import StepCallback
from simclr_tf.augment import RandomView
from simclr_tf.encoders.fine_tuning import copy_weights
from simclr_tf.errors import ArgumentError
from simclr_tf.evaluate import extract_features, knn_accuracy


def steps_taken(model):
    """Updates that the optimizer of a compiled model has made, int.

    Example:

    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4)])
    >>> model.compile("sgd", "mse")
    >>> simclr_tf.training.callbacks.steps_taken(model)
    0
    """
    return int(model.optimizer.iterations.numpy())  # int() of a mirrored variable is an error


class KNNProbe(keras.callbacks.Callback):
    """Adds `knn_accuracy` to the logs: k nearest neighbours on frozen h (Wu et al., 2018).

    Args:
      train, test: tf.data of labelled dict batches, see `evaluate.extract_features`.
      every_epochs: epochs between two probes; the last epoch is always probed.
      k: neighbours, weighted by exp(cosine / 0.1).
      epochs: epochs of the run; None: those of the call of `fit`.
      probe_encoder: an encoder outside the strategy, which receives the weights of the model's
        encoder and is probed instead; None: the model's own is probed.
      probes: False for a worker that only takes part in reading the weights.

    Example:

    >>> data = tf.data.Dataset.from_tensor_slices({"image": images, "label": labels}).batch(4)
    >>> probe = simclr_tf.training.KNNProbe(data, data, k=1, epochs=1)
    >>> probe.set_model(simclr_tf.SimCLR(encoder))
    >>> logs = {}
    >>> probe.on_epoch_end(0, logs)
    >>> logs
    {'knn_accuracy': 1.0}
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
        encoder = getattr(self.model, "inference_encoder", self.model.encoder)
        if self.probe_encoder is not None:
            copy_weights(encoder, self.probe_encoder)
            encoder = self.probe_encoder
        if not self.probes:
            return
        train = extract_features(encoder, self.train)
        test = extract_features(encoder, self.test)
        logs["knn_accuracy"] = knn_accuracy(train.h, train.labels, test.h, test.labels, k=self.k)


class JSONLines(keras.callbacks.Callback):
    """Appends one JSON object per epoch to a file.

    `epoch` counts from 1, `step` is the optimizer's; the other keys are the logs of the epoch.

    Args:
      path: the file, in a directory that exists.

    Example:

    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4)])
    >>> model.compile("sgd", "mse")
    >>> lines = simclr_tf.training.JSONLines("metrics.jsonl")
    >>> _ = model.fit(images / 255, labels, batch_size=4, verbose=0, callbacks=[lines])
    >>> print(open("metrics.jsonl").read())
    {"epoch": 1, "step": 2, "loss": ...}
    """

    def __init__(self, path):
        super().__init__()
        self.path = pathlib.Path(path)

    def on_epoch_end(self, epoch, logs=None):
        """Appends the line of the epoch."""
        row = {"epoch": epoch + 1, "step": steps_taken(self.model)}
        row.update((name, float(value)) for name, value in logs.items())
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


class StopAtStep(StepCallback):
    """Ends training when the optimizer has made `total_steps` updates.

    Args:
      total_steps: updates, counted over all calls of `fit`.

    Example:

    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4)])
    >>> model.compile("sgd", "mse")
    >>> stop = simclr_tf.training.StopAtStep(3)
    >>> _ = model.fit(images / 255, labels, 4, epochs=5, verbose=0, callbacks=[stop])
    >>> int(model.optimizer.iterations)
    3
    """

    def __init__(self, total_steps):
        super().__init__()
        self.total_steps = total_steps

    def on_epoch_begin(self, epoch, logs=None):
        """Reads how many updates there have been."""
        super().on_epoch_begin(epoch, logs)
        self._steps_before = steps_taken(self.model)

    def on_steps_end(self, steps, logs):
        """Reads the optimizer's counter, which waits for the device, only at the end of the run."""
        due = self._steps_before + steps >= self.total_steps
        if due and steps_taken(self.model) >= self.total_steps:
            self.model.stop_training = True


class ViewSizes(keras.callbacks.Callback):
    """Makes the views of the early epochs smaller: fewer pixels, more epochs per hour.

    Args:
      sizes: list of (side in pixels, fraction of the epochs at which it ends), fractions rising
        to 1.
      view: the `RandomView` whose other arguments are kept.
      epochs: epochs of the run; None: those of the call of `fit`.

    Raises:
      ValueError: sides below 1 pixel, or fractions that do not rise to 1.

    Example:

    >>> view = simclr_tf.RandomView(32)
    >>> sizes = simclr_tf.training.ViewSizes([(16, 0.5), (24, 0.8), (32, 1)], view, epochs=10)
    >>> [sizes.size_at(epoch) for epoch in (0, 4, 5, 8)]
    [16, 16, 24, 32]
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
        """Replaces the views and has Keras trace the step again."""
        size = self.size_at(epoch)
        if self.model.augment.size != size:
            config = self.view.get_config()
            # Blur and strength are those of the final size.
            config.update(size=size, blur=self.view.blurring is not None)
            self.model.augment = RandomView(**config)
            self.model.make_train_function(force=True)


def check_view_sizes(sizes):
    """Raises ValueError unless sizes are [(side, end fraction), ...] with ends rising to 1.

    Example:

    >>> simclr_tf.training.callbacks.check_view_sizes([(16, 0.5), (32, 1.0)])
    """
    ends = [end for _, end in sizes]
    finite = all(math.isfinite(number) for pair in sizes for number in pair)
    rising = finite and ends == sorted(ends) and ends[-1:] == [1.0]
    if not rising or min(side for side, _ in sizes) < 1:
        raise ArgumentError(
            "view_sizes must be side:end pairs, sides of 1 pixel or more, ends rising to 1; "
            f"got {sizes}. For example 16:0.5,24:0.8,32:1."
        )

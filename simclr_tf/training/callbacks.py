"""Callbacks of a run: metrics as JSON lines, the last step, view sizes, milestones.

Throughput and alarms are in `monitor`, probes in `probes`, checkpoints in `checkpoints`.
"""

from __future__ import annotations

import json
import math
import pathlib
import re

from tensorflow import keras

from simclr_tf._keras import StepCallback
from simclr_tf.augment import RandomView
from simclr_tf.errors import ArgumentError


def steps_taken(model):
    """Updates that the optimizer of a compiled model has made, int.

    Example:

    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4)])
    >>> model.compile("sgd", "mse")
    >>> simclr_tf.training.callbacks.steps_taken(model)
    0
    """
    return int(model.optimizer.iterations.numpy())  # int() of a mirrored variable is an error


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

    def epoch_cost(self, epoch):
        """Pixels of a view in an epoch, to which the time of a step is roughly proportional."""
        return self.size_at(epoch) ** 2

    def on_epoch_begin(self, epoch, logs=None):
        """Replaces the views and has Keras trace the step again."""
        size = self.size_at(epoch)
        if self.model.augment.size != size:
            self.model.augment = self.view_of(size)
            self.model.make_train_function(force=True)

    def view_of(self, size):
        """The `RandomView` of a size: blur and strength are those of `view`."""
        config = {**self.view.get_config(), "size": size, "blur": self.view.blurring is not None}
        return RandomView(**config)


class Milestones(keras.callbacks.Callback):
    """Stops training where a metric has not reached a value by an epoch.

    Training ends after that epoch, whose checkpoint and metrics are written like those of any
    other, and a line says so.

    Args:
      milestones: str, "METRIC>=VALUE@EPOCH" or "METRIC<=VALUE@EPOCH", several joined by commas,
        such as "knn_accuracy>=0.4@10,loss<=5@20": in epoch 10, counted from 1, or one before it,
        the kNN accuracy was 0.4 or more. The metrics are the keys of the logs.
      rows: list of dicts, the epochs of a run that is resumed, as in metrics.jsonl.
      log: called with the line.

    Attributes:
      missed: the line, str; None while no milestone was missed.

    Raises:
      ArgumentError: another text.

    Example:

    >>> milestones = simclr_tf.training.Milestones("loss<=0.5@2")
    >>> milestones.set_model(simclr_tf.SimCLR(encoder))
    >>> for epoch in range(2):
    ...     milestones.on_epoch_end(epoch, {"loss": 4.9})
    stopped: milestone loss<=0.5@2 was missed; the best loss of 2 epochs is 4.9.
    """

    def __init__(self, milestones, rows=(), log=print):
        super().__init__()
        self.milestones, self.log, self.missed = parse_milestones(milestones), log, None
        self._rows = list(rows)

    def check(self):
        """Looks at the epochs so far; returns `missed`."""
        for name, sign, value, epoch in self.milestones:
            if not self._rows or self._rows[-1]["epoch"] < epoch:
                continue
            values = [row[name] for row in self._rows if name in row and row["epoch"] <= epoch]
            best = (max if sign == ">=" else min)(values, default=None)
            reached = best is not None and (best >= value if sign == ">=" else best <= value)
            if not reached:
                found = f"no epoch has {name}"
                if best is not None:
                    found = f"the best {name} of {epoch} epochs is {best:.4g}"
                self.missed = (
                    f"stopped: milestone {name}{sign}{value:g}@{epoch} was missed; {found}."
                )
                break
        return self.missed

    def on_epoch_end(self, epoch, logs=None):
        """Stops training if a milestone was missed."""
        row = {"epoch": epoch + 1, **{name: float(value) for name, value in logs.items()}}
        self._rows = [*(r for r in self._rows if r["epoch"] <= epoch), row]
        if self.check():
            self.model.stop_training = True
            self.log(self.missed)


def parse_milestones(text):
    """Milestones of a text, a list of (metric, ">=" or "<=", value, epoch); raises ArgumentError.

    Example:

    >>> simclr_tf.training.callbacks.parse_milestones("knn_accuracy>=0.4@10")
    [('knn_accuracy', '>=', 0.4, 10)]
    """
    found = []
    for each in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*(>=|<=)\s*([-+.\de]+)@(\d+)\s*", each)
        try:
            name, sign, value, epoch = match.groups()
            value, epoch = float(value), int(epoch)
        except (AttributeError, ValueError):
            epoch = 0
        if epoch < 1 or not math.isfinite(value):
            raise ArgumentError(
                "milestones must be METRIC>=VALUE@EPOCH or METRIC<=VALUE@EPOCH, joined by commas; "
                f"got {text!r}. For example 'knn_accuracy>=0.4@10', in quotes in a shell."
            )
        found.append((name, sign, value, epoch))
    return found


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

"""Finds the step that made a loss or a weight NaN or infinite, and keeps what it was computed from.

While a run goes on, only a copy of its state is kept in memory, every 100 steps. Where the loss is
no longer finite, the steps since that copy are taken again, one at a time.
"""

from __future__ import annotations

import json
import math
import shutil
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from simclr_tf import _atomic, _keras

EVERY_STEPS = 100


class StateCopies(_keras.StepCallback):
    """Keeps a copy of the variables of a model and of its optimizer in memory.

    A copy is made at the start of an epoch and every `every_steps` within it, if all is finite.

    Args:
      every_steps: steps between two copies within an epoch.

    Attributes:
      steps_before: of the first epoch, in an earlier `fit` that was interrupted.
      position: (epoch, step) from 0 of the copy; None before there is one.
    """

    def __init__(self, every_steps=EVERY_STEPS):
        super().__init__()
        self.every_steps = every_steps
        self.position, self._values, self.steps_before = None, None, 0
        self._last = 0

    def on_epoch_begin(self, epoch, logs=None):
        """Makes a copy."""
        super().on_epoch_begin(epoch, logs)
        self._epoch, self._first = epoch, self.steps_before
        self.steps_before = 0
        self._copy(0)

    def on_steps_end(self, steps, logs):
        """Makes a copy when due."""
        if steps - self._last >= self.every_steps and math.isfinite(float(logs["loss"])):
            self._copy(steps)

    def _copy(self, steps):
        self._last = steps
        values = [variable.numpy() for variable in variables_of(self.model)]
        if all(map(_is_finite, values)):
            self._values, self.position = values, (self._epoch, self._first + steps)

    def restore(self):
        """Assigns the copy to the variables."""
        for variable, value in zip(variables_of(self.model), self._values):
            variable.assign(value)


def variables_of(model):
    """The `tf.Variable`s of a compiled model and of its optimizer, a list."""
    optimizer = model.optimizer.variables
    optimizer = optimizer() if callable(optimizer) else optimizer  # of TensorFlow Addons
    return _keras.tf_variables([*model.weights, *optimizer])


class NonFiniteStep(NamedTuple):
    """A step whose loss is not finite, or after which a weight is not.

    Attributes:
      epoch, step: of the step, both from 0; `step` within the epoch.
      optimizer_step: updates before it.
      loss: its loss, float.
      weights: list of arrays, the weights of the model before it.
      batch: what `train_step` is given, as arrays; of all replicas.
    """

    epoch: int
    step: int
    optimizer_step: int
    loss: float
    weights: list
    batch: Any


def find_step(model, copies, batches_of, stream, steps_per_epoch, strategy):
    """Takes the steps since the copy again; returns the first `NonFiniteStep`, or None.

    Args:
      model: the compiled model.
      copies: `StateCopies` of it.
      batches_of: (epoch, step) -> the dataset that `fit` is given from there on.
      stream: (epoch, step) -> the batches of all replicas from there on.
      steps_per_epoch: int.
      strategy: of the model.
    """
    epoch, first = copies.position
    with strategy.scope():
        copies.restore()

    @tf.function(autograph=False)  # as Keras calls it
    def take(batch):
        strategy.run(model.train_step, args=(batch,))

    batches = iter(batches_of(epoch, first))
    for step in range(first, min(steps_per_epoch, first + 2 * copies.every_steps)):
        before = [weight.numpy() for weight in _keras.tf_variables(model.weights)]
        taken = int(model.optimizer.iterations.numpy())
        model.reset_metrics()
        take(next(batches))
        loss = float(next(m for m in model.metrics if m.name == "loss").result())
        after = [weight.numpy() for weight in _keras.tf_variables(model.weights)]
        if not (math.isfinite(loss) and all(map(_is_finite, after))):
            batch = tf.nest.map_structure(np.asarray, next(iter(stream(epoch, step))))
            return NonFiniteStep(epoch, step, taken, loss, before, batch)
    return None


def write_step(path, found, metadata):
    """Writes a `NonFiniteStep` to a directory, in place of one that is there.

    The files are step.json, batch.npz and weights.npz.

    Args:
      path: of the directory.
      found: `NonFiniteStep`.
      metadata: dict of name -> number, such as {"image_size": 32}.
    """
    about = {
        "epoch": found.epoch + 1,
        "step": found.step + 1,
        "optimizer_step": found.optimizer_step,
        "loss": str(found.loss),
        **{name: int(value) for name, value in metadata.items()},
    }
    if path.exists():
        shutil.rmtree(path)
    with _atomic.atomic_path(path, parents=False) as temporary:
        temporary.mkdir()
        np.savez(temporary / "batch.npz", **_columns(found.batch))
        weights = {f"{index:05}": value for index, value in enumerate(found.weights)}
        np.savez(temporary / "weights.npz", **weights)
        (temporary / "step.json").write_text(json.dumps(about) + "\n")


def read_step(path):
    """What `write_step` has written: a `NonFiniteStep` and the dict of step.json."""
    about = json.loads((path / "step.json").read_text())
    with np.load(path / "weights.npz") as file:
        weights = [file[name] for name in sorted(file)]
    with np.load(path / "batch.npz") as file:
        batch = {name: file[name] for name in file}
    numbered = [batch[name] for name in sorted(batch) if name.isdigit()]
    batch = tuple(numbered) if numbered else batch
    step = NonFiniteStep(
        about["epoch"] - 1,
        about["step"] - 1,
        about["optimizer_step"],
        float(about["loss"]),
        weights,
        batch,
    )
    return step, about


def _columns(batch):
    """The arrays of a batch by name; of a tuple, by position."""
    if isinstance(batch, dict):
        return batch
    if isinstance(batch, (tuple, list)):
        return {f"{index:03}": column for index, column in enumerate(tf.nest.flatten(batch))}
    return {"image": batch}


def _is_finite(values):
    return values.dtype.kind not in "fV" or bool(np.isfinite(values.astype(np.float32)).all())

"""Checkpoints that a run resumes from: model, optimizer, metrics, and the position in the data.

TensorFlow writes a checkpoint under a temporary name and renames it; one that is damaged all the
same (a full disk, a power cut) is skipped, and the checkpoint before it is read.
"""

from __future__ import annotations

import errno
import os
import pathlib
import re
import shutil
import tempfile
from typing import NamedTuple

import tensorflow as tf

from simclr_tf import _keras
from simclr_tf.errors import NonFiniteError, TrainingError

_MAX_TO_KEEP = 2
_ABSENT_BEFORE = ("gradient_norm",)  # metrics that runs of earlier versions do not have


class Checkpoints(_keras.StepCallback):
    """Saves at the end of every epoch and every `every_steps` within one; keeps the last two.

    A position is (epochs done, steps done of the next epoch).

    Args:
      directory: where to save, on storage that all workers share.
      model: a compiled `keras.Model` whose variables and metrics have been created.
      steps_per_epoch: int, of the run.
      every_steps: steps between two checkpoints within an epoch; None: none within an epoch.
      writes: False for a worker that only takes part in reading the variables.
      log: called with a line of text where a checkpoint cannot be read.
      metadata: dict of name -> number or array that the checkpoints hold besides, such as
        {"image_size": 32}.

    Raises:
      errors.TrainingError: from `fit`, where the weights are not finite or cannot be written.

    Example:

    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> saver = simclr_tf.training.Checkpoints("checkpoints", model, steps_per_epoch=1)
    >>> _ = model.fit(np.ones([4, 2]), np.ones([4, 1]), verbose=0, callbacks=[saver])
    >>> saver.restore()
    (1, 0)
    """

    def __init__(
        self,
        directory,
        model,
        steps_per_epoch,
        every_steps=None,
        writes=True,
        log=print,
        metadata=None,
    ):
        super().__init__()
        if hasattr(model.optimizer, "build"):  # creates its slots, so that they can be restored
            model.optimizer.build(model.trainable_variables)
        self.directory, self.log = pathlib.Path(directory), log
        self.steps_per_epoch, self.every_steps = steps_per_epoch, every_steps
        self.epoch = tf.Variable(0, dtype=tf.int64, trainable=False, name="epoch")
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")  # of the next one
        self.metadata = {
            name: tf.Variable(value, trainable=False, name=name)
            for name, value in (metadata or {}).items()
        }
        self._metrics = model.metrics
        self._saved = {
            "model": _keras.trackable_model(model),
            "optimizer": _keras.trackable(model.optimizer),
            "epoch": self.epoch,
            "step": self.step,
            **self.metadata,
            **{metric.name: _keras.trackable(metric) for metric in model.metrics},
        }
        self.checkpoint = tf.train.Checkpoint(**self._saved)
        self._scratch = None if writes else tempfile.TemporaryDirectory(prefix="simclr_tf-")
        self._last_number = None
        self._resumed = None
        self._steps_before = 0  # of this epoch, before this call of fit

    def restore(self):
        """Restores the latest checkpoint that can be read.

        Returns:
          (epochs done, steps done of the next epoch); (0, 0) without a checkpoint.

        Raises:
          TrainingError: there are checkpoints, and none can be read.
        """
        self._remove_unfinished()
        if _read_latest(self.directory, self._read, self.log) is None:
            return 0, 0
        metrics = [[variable.numpy() for variable in metric.variables] for metric in self._metrics]
        self._resumed = int(self.epoch.numpy()), int(self.step.numpy()), metrics
        return self._resumed[:2]

    def _remove_unfinished(self):
        """Removes what an interrupted save has left."""
        if self._scratch is None:
            for path in self.directory.glob("ckpt-*_temp"):
                shutil.rmtree(path, ignore_errors=True)

    def _read(self, prefix):
        _check_keras(prefix)
        keys = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
        absent = {*_ABSENT_BEFORE} - {key.partition("/")[0] for key in keys}
        saved = {name: thing for name, thing in self._saved.items() if name not in absent}
        tf.train.Checkpoint(**saved).read(prefix).assert_existing_objects_matched()
        return True

    def on_epoch_begin(self, epoch, logs=None):
        """Continues the running metrics of an epoch that was interrupted."""
        super().on_epoch_begin(epoch, logs)
        self._steps_before = 0
        if self._resumed and self._resumed[0] == epoch:
            _, self._steps_before, metrics = self._resumed
            if self._steps_before:
                _assign_metrics(self.model.metrics, metrics)
        self._resumed = None
        self._position = epoch, self._steps_before
        self._saved_step = self._steps_before

    def on_steps_end(self, steps, logs):
        """Saves every `every_steps`, except at the last step of an epoch, whose end is saved."""
        step = self._steps_before + steps
        self._position = self._position[0], step
        due = self.every_steps and step // self.every_steps > self._saved_step // self.every_steps
        if due and step < self.steps_per_epoch:
            self.save()

    def on_epoch_end(self, epoch, logs=None):
        """Saves."""
        self._position = epoch + 1, 0
        self.save()

    def save(self):
        """Saves the current state, unless the last update has made the weights non-finite."""
        epoch, step = self._position
        _check_finite(self.model, epoch + (step > 0))
        self.epoch.assign(epoch)
        self.step.assign(step)
        self._saved_step = step
        number = epoch * self.steps_per_epoch + step
        if number == self._last_number:
            return
        try:
            self._write(number)
        except (tf.errors.UnavailableError, tf.errors.AbortedError):
            raise  # another worker is gone; nothing is wrong with the directory
        except tf.errors.OpError as error:
            self._remove_unfinished()
            raise TrainingError(
                f"the checkpoint of step {number} cannot be written to {self.directory} "
                f"({_first_line(error)}). Make room or put it back; the same command resumes from "
                "the checkpoint before it."
            ) from error
        self._last_number = number

    def _write(self, number):
        if self._scratch:
            self.checkpoint.write(str(pathlib.Path(self._scratch.name) / "ckpt"))
            return
        if self._last_number is None:
            self.directory.mkdir(parents=True, exist_ok=True)
        elif not self.directory.exists():
            # TensorFlow would make it again, without the rest of the run.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.directory))
        self.checkpoint.write(str(self.directory / f"ckpt-{number}"))
        self._keep_latest(number)

    def _keep_latest(self, number):
        """Lists the latest checkpoints for TensorFlow and removes the others.

        Not by TensorFlow's CheckpointManager, which trusts a list that a crash may have damaged.
        """
        found = [n for n in numbers(self.directory) if n <= number]
        lines = [f'model_checkpoint_path: "ckpt-{number}"']  # what tf.train.latest_checkpoint reads
        lines += [f'all_model_checkpoint_paths: "ckpt-{n}"' for n in found[-_MAX_TO_KEEP:]]
        (self.directory / "checkpoint").write_text("\n".join(lines) + "\n")
        for old in found[:-_MAX_TO_KEEP]:
            for path in sorted(self.directory.glob(f"ckpt-{old}.*"), reverse=True):  # index first
                path.unlink()


def _assign_metrics(metrics, values):
    for metric, row in zip(metrics, values):
        for variable, value in zip(metric.variables, row):
            variable.assign(value)


def _check_finite(model, epoch):
    """Raises NonFiniteError if a weight of the model is NaN or infinite."""
    for weight in model.trainable_weights:
        if not bool(tf.reduce_all(tf.math.is_finite(weight))):
            raise NonFiniteError(
                f"weights must be finite; {_keras.variable_name(weight)} is not in epoch {epoch}. "
                "Lower learning_rate, or use precision=float32, in another run_dir."
            )


def _check_keras(prefix):
    """Raises TrainingError for a checkpoint of the other Keras, whose variables have other keys."""
    names = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
    of_keras_3 = any(name.startswith("optimizer/values/") for name in names)
    if of_keras_3 == _keras.IS_KERAS_2:
        this, other = (2, 3) if _keras.IS_KERAS_2 else (3, 2)
        raise TrainingError(
            f"{prefix} was written with Keras {other}, and this is Keras {this}, which cannot read "
            "it. Use the TensorFlow that the run began with; its export works with both."
        )


def _first_line(error):
    """TensorFlow's message without the position in the graph and the path."""
    line = re.sub(r"\{\{.*?\}\}|\[Op:\w+\]", "", str(getattr(error, "message", error)))
    return line.strip().partition("\n")[0].rpartition("; ")[2].strip()[:150]


def numbers(directory):
    """Steps at which a directory holds checkpoints, ascending, by the names of its files.

    Example:

    >>> tf.train.Checkpoint(x=tf.Variable(1)).write("some/ckpt-20")
    'some/ckpt-20'
    >>> simclr_tf.training.checkpoints.numbers("some")
    [20]
    """
    names = (path.name for path in pathlib.Path(directory).glob("ckpt-*.index"))
    found = (re.fullmatch(r"ckpt-(\d+)\.index", name) for name in names)
    return sorted(int(match.group(1)) for match in found if match)


def _read_latest(directory, read, log=lambda text: None):
    """The result of `read` for the latest checkpoint that it can read; None without checkpoints.

    Args:
      read: path without suffix -> a result; raises what TensorFlow does where files are damaged.
      log: called with a line of text for each checkpoint that is skipped.
    """
    found = numbers(directory)
    for number in reversed(found):
        prefix = str(pathlib.Path(directory) / f"ckpt-{number}")
        try:
            return read(prefix)
        except (tf.errors.OpError, IndexError, ValueError) as error:  # IndexError: it is cut off
            log(f"{prefix} cannot be read ({_first_line(error)}); trying the one before it.")
    if found:
        raise TrainingError(
            f"none of the {len(found)} checkpoints in {directory} can be read. Put back a copy of "
            "them, or start again in another run_dir."
        )
    return None


def _number_in(reader, name):
    return int(reader.get_tensor(f"{name}/.ATTRIBUTES/VARIABLE_VALUE"))


def _position_in(reader):
    return _number_in(reader, "epoch"), _number_in(reader, "step")


def latest_position(directory):
    """Position of the latest checkpoint: (epochs done, steps done of the next epoch), or (0, 0).

    Example:

    >>> simclr_tf.training.checkpoints.latest_position("a directory without checkpoints")
    (0, 0)
    """

    def read(prefix):
        return _position_in(tf.train.load_checkpoint(prefix))

    return _read_latest(directory, read) or (0, 0)


class RestoredSubmodels(NamedTuple):
    """Submodels of a run with the weights of a checkpoint.

    Attributes:
      submodels: dict of submodel by its attribute's name in the model that was trained.
      image_size: side in pixels of the images that the run was trained on.
      position: (epochs done, steps done of the next epoch).

    Example:

    >>> restored = simclr_tf.training.checkpoints.RestoredSubmodels({}, 32, (5, 0))
    >>> restored.position[0]
    5
    """

    submodels: dict
    image_size: int
    position: tuple


def restore_submodels(directory, build, log=print):
    """Restores submodels, such as the encoder, from the latest checkpoint that can be read.

    Args:
      directory: the directory of the checkpoints, which must hold "image_size" as metadata.
      build: side of the images in pixels -> dict of built submodels by their attribute's name in
        the model that was trained, such as "encoder" and "projection_head".
      log: called with a line of text where a checkpoint cannot be read.

    Returns:
      A `RestoredSubmodels`, or None without a checkpoint.

    Example:

    >>> build = lambda image_size: {"encoder": encoder}
    >>> simclr_tf.training.checkpoints.restore_submodels("no checkpoints here", build)
    """

    def read(prefix):
        _check_keras(prefix)
        reader = tf.train.load_checkpoint(prefix)
        image_size = _number_in(reader, "image_size")
        submodels = build(image_size)
        states = {name: _keras.trackable(submodel) for name, submodel in submodels.items()}
        root = tf.train.Checkpoint(model=tf.train.Checkpoint(**states))
        root.read(prefix).expect_partial().assert_existing_objects_matched()
        return RestoredSubmodels(submodels, image_size, _position_in(reader))

    return _read_latest(directory, read, log)

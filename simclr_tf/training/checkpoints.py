"""What a killed run resumes from: model, optimizer, and the place in the data and its metrics.

TensorFlow writes a checkpoint beside its place and renames it; one that is damaged all the same
(a full disk, a power cut) is passed over for the one before it. SIGTERM saves one more.
"""

from __future__ import annotations

import errno
import os
import pathlib
import re
import shutil
import tempfile

import tensorflow as tf
from tensorflow import keras

from simclr_tf.errors import TrainingError

_KEPT = 2


class Checkpoints(keras.callbacks.Callback):
    """Saves at the end of every epoch, and within one every `every_steps`; keeps the last two.

    Args:
      directory: where, on storage that all workers share.
      model: the compiled and built `SimCLR`.
      steps_per_epoch: of the run.
      every_steps: steps between two checkpoints within an epoch; None is none there.
      writes: False for a worker that takes part, as sharing variables asks for, and leaves nothing.
      log: called with a line of text where a checkpoint cannot be read.
    """

    def __init__(self, directory, model, steps_per_epoch, every_steps=None, writes=True, log=print):
        super().__init__()
        if hasattr(model.optimizer, "build"):  # so that its slots are there to be restored
            model.optimizer.build(model.trainable_variables)
        self.directory, self.log = pathlib.Path(directory), log
        self.steps_per_epoch, self.every_steps = steps_per_epoch, every_steps
        self.epoch = tf.Variable(0, dtype=tf.int64, trainable=False, name="epoch")
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")  # of the next one
        self.checkpoint = tf.train.Checkpoint(
            model=model,
            optimizer=model.optimizer,
            epoch=self.epoch,
            step=self.step,
            image_size=tf.Variable(model.image_shape[0], trainable=False, name="image_size"),
            **{metric.name: metric for metric in model.metrics},
        )
        self._elsewhere = None if writes else tempfile.TemporaryDirectory(prefix="simclr_tf-")
        self._written = None  # number of the last one
        self._resumed = None
        self._steps_before = 0  # of this epoch, before this call of fit

    def restore(self):
        """Restores the newest checkpoint that can be read.

        Returns:
          (epochs done, steps done of the next); (0, 0) where there is no checkpoint.

        Raises:
          TrainingError: there are checkpoints, and none can be read.
        """
        self._clear()
        if _newest_first(self.directory, self._read, self.log) is None:
            return 0, 0
        metrics = [metric.get_weights() for metric in self.checkpoint.model.metrics]
        self._resumed = int(self.epoch.numpy()), int(self.step.numpy()), metrics
        return self._resumed[:2]

    def _clear(self):
        """Removes what a save that was cut off has left."""
        if self._elsewhere is None:
            for path in self.directory.glob("ckpt-*_temp"):
                shutil.rmtree(path, ignore_errors=True)

    def _read(self, prefix):
        self.checkpoint.read(prefix).assert_existing_objects_matched()
        return True

    def on_epoch_begin(self, epoch, logs=None):
        """Goes on with the running metrics of an epoch that was left within."""
        self._steps_before = 0
        if self._resumed and self._resumed[0] == epoch:
            _, self._steps_before, metrics = self._resumed
            if self._steps_before:
                for metric, values in zip(self.model.metrics, metrics):
                    metric.set_weights(values)
        self._resumed = None
        self._position = epoch, self._steps_before
        self._saved = self._steps_before

    def on_train_batch_end(self, batch, logs=None):
        """Saves where `every_steps` have gone by, but not twice at the end of an epoch."""
        epoch, _ = self._position
        step = self._steps_before + batch + 1
        self._position = epoch, step
        due = self.every_steps and step // self.every_steps > self._saved // self.every_steps
        if due and step < self.steps_per_epoch:
            self.save()

    def on_epoch_end(self, epoch, logs=None):
        """Saves."""
        self._position = epoch + 1, 0
        self.save()

    def save(self):
        """Saves where the run stands, unless the last update has spoilt the weights."""
        epoch, step = self._position
        spoilt = [w.name for w in self.model.trainable_weights if not _is_finite(w)]
        if spoilt:
            raise TrainingError(
                f"{spoilt[0]} is no longer finite in epoch {epoch + (step > 0)}. Lower "
                "--learning_rate, or take --precision=float32, in another --run_dir."
            )
        self.epoch.assign(epoch)
        self.step.assign(step)
        self._saved = step
        number = epoch * self.steps_per_epoch + step
        if number == self._written:
            return
        try:
            self._write(number)
        except (tf.errors.UnavailableError, tf.errors.AbortedError):
            raise  # another worker is gone; nothing is wrong with the directory
        except tf.errors.OpError as error:
            self._clear()
            raise TrainingError(
                f"the checkpoint of step {number} cannot be written to {self.directory} "
                f"({_first_line(error)}). Make room or put it back; the same command resumes from "
                "the checkpoint before it."
            ) from error
        self._written = number

    def _write(self, number):
        if self._elsewhere:
            self.checkpoint.write(str(pathlib.Path(self._elsewhere.name) / "ckpt"))
            return
        if self._written is None:
            self.directory.mkdir(parents=True, exist_ok=True)
        elif not self.directory.exists():
            # TensorFlow would make it again, without the rest of the run.
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.directory))
        self.checkpoint.write(str(self.directory / f"ckpt-{number}"))
        # Not TensorFlow's CheckpointManager: it goes by a list that a crash may leave garbled.
        found = [n for n in numbers(self.directory) if n <= number]
        lines = [f'model_checkpoint_path: "ckpt-{number}"']  # what tf.train.latest_checkpoint reads
        lines += [f'all_model_checkpoint_paths: "ckpt-{n}"' for n in found[-_KEPT:]]
        (self.directory / "checkpoint").write_text("\n".join(lines) + "\n")
        for old in found[:-_KEPT]:
            for path in sorted(self.directory.glob(f"ckpt-{old}.*"), reverse=True):  # index first
                path.unlink()


def _is_finite(weight):
    return bool(tf.reduce_all(tf.math.is_finite(weight)))


def _first_line(error):
    """What TensorFlow says, without the place in its graph and the path, which we say ourselves."""
    line = re.sub(r"\{\{.*?\}\}|\[Op:\w+\]", "", str(getattr(error, "message", error)))
    return line.strip().partition("\n")[0].rpartition("; ")[2].strip()[:150]


def numbers(directory):
    """The steps at which there are checkpoints in a directory, rising, as their files say it."""
    names = (path.name for path in pathlib.Path(directory).glob("ckpt-*.index"))
    found = (re.fullmatch(r"ckpt-(\d+)\.index", name) for name in names)
    return sorted(int(match.group(1)) for match in found if match)


def _newest_first(directory, read, log=lambda text: None):
    """What `read` gives of the newest checkpoint that it can read; None where there is none.

    Args:
      read: path without ending -> a result; raises what TensorFlow does where files are damaged.
      log: told of each that is passed over.
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
            "them, or begin again in another --run_dir."
        )
    return None


def latest_position(directory):
    """(epochs, steps of the next one) at the newest checkpoint; (0, 0) where there is none."""

    def read(prefix):
        reader = tf.train.load_checkpoint(prefix)
        return tuple(
            int(reader.get_tensor(f"{name}/.ATTRIBUTES/VARIABLE_VALUE"))
            for name in ("epoch", "step")
        )

    return _newest_first(directory, read) or (0, 0)


def restore_parts(directory, build, log=print):
    """Parts of the model in the newest checkpoint that can be read, and the side of its images.

    Args:
      directory: of the checkpoints.
      build: side of the images in pixels -> dict of built parts by their names in `SimCLR`,
        "encoder" and "projection_head".
      log: called with a line of text where a checkpoint cannot be read.

    Returns:
      (parts, image_size), or None where there is no checkpoint.
    """

    def read(prefix):
        reader = tf.train.load_checkpoint(prefix)
        image_size = int(reader.get_tensor("image_size/.ATTRIBUTES/VARIABLE_VALUE"))
        parts = build(image_size)
        whole = tf.train.Checkpoint(model=tf.train.Checkpoint(**parts))
        whole.read(prefix).expect_partial().assert_existing_objects_matched()
        return parts, image_size

    return _newest_first(directory, read, log)

"""The resumable loop: trains any compiled Keras model and survives interruptions.

What it survives, and how that was tested, is in docs/reliability.md.
"""

from __future__ import annotations

import contextlib
import math
import pathlib
import sys
from typing import NamedTuple

import tensorflow as tf
from tensorflow import keras

from simclr_tf import _keras, distribute
from simclr_tf.data import ReplicaSlice
from simclr_tf.errors import NonFiniteError, PreemptedError, TrainingError, TryAgainError
from simclr_tf.models import LossScale
from simclr_tf.training.callbacks import JSONLines, StopAtStep
from simclr_tf.training.checkpoints import Checkpoints, latest_position
from simclr_tf.training.data_wait import DataWait
from simclr_tf.training.monitor import Alarms, Throughput
from simclr_tf.training.nonfinite import StateCopies, find_step, write_step
from simclr_tf.training.preemption import StopOnSignal
from simclr_tf.training.progress import Progress
from simclr_tf.training.run_monitor import RunMonitor


class Steps(NamedTuple):
    """The length of a run in steps.

    Attributes:
      per_epoch: steps per epoch.
      total: steps of the whole run; the last epoch may be shorter than the others.

    Example:

    >>> simclr_tf.training.Steps(per_epoch=10, total=25).epochs
    3
    """

    per_epoch: int
    total: int

    @property
    def epochs(self):
        """Epochs, the last of which may be shorter."""
        return math.ceil(self.total / self.per_epoch)


def train(model, stream, steps, directory, **options):
    """Trains a compiled model in a run directory; the same call again resumes an interrupted run.

    Args:
      model, stream, steps, directory, **options: arguments of `ResumableLoop`.

    Returns:
      The model, trained for `steps.total` steps.

    Raises:
      errors.PreemptedError: SIGTERM came; the state is saved.
      errors.NonFiniteError: the loss or a weight is not finite; the step is kept in the run
        directory, as `simclr-tf replay` reads it.
      errors.TrainingError: a checkpoint cannot be read or written.

    Example:

    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4)])
    >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> data = tf.data.Dataset.from_tensor_slices((images / 255, labels)).batch(4).repeat()
    >>> steps = simclr_tf.training.Steps(per_epoch=2, total=4)
    >>> run = simclr_tf.training.RunDirectory("run")
    >>> def stream(epoch, step, replica_slice):
    ...     return data.skip(step)
    >>> _ = simclr_tf.training.train(model, stream, steps, run, batch_size=4, verbose=0)
    >>> simclr_tf.training.checkpoints.latest_position(run.checkpoints)
    (2, 0)
    """
    ResumableLoop(model, stream, steps, directory, **options).run()
    return model


class ResumableLoop:
    """The calls of `fit` that make up a run, from its latest checkpoint to its end.

    Creating one restores the latest checkpoint of the run directory; `run` trains. Every epoch
    appends a line to metrics.jsonl and writes TensorBoard events. In float16 the line has the loss
    scale and, for a `SimCLR`, the number of steps that it skipped. Of several processes, only the
    chief writes. The caller holds the lock of the directory (`RunDirectory.locked`).

    Args:
      model: a compiled `keras.Model`, made in the scope of `strategy`.
      stream: a function of (epoch, step, replica_slice) to a `tf.data.Dataset` of batches, from
        that step of that epoch (both from 0) on, which does not end before the run does. The same
        arguments must return the same batches. `replica_slice` is None for whole batches; with
        several replicas it is a `data.ReplicaSlice`, and every step takes `count` elements, each
        the part of the batch for one replica.
      steps: `Steps`.
      directory: a `RunDirectory`.
      batch_size: images per step, over all replicas.
      strategy: a `tf.distribute.Strategy`; None: the current one.
      callbacks: Keras callbacks that may write into the logs of an epoch, before these are saved.
      metadata: dict of name -> number that the checkpoints hold besides, see `Checkpoints`.
      checkpoint_every_steps: steps between checkpoints within an epoch; None: none there.
      chance_loss: the loss of a model that has learnt nothing, see `Alarms`.
      warm_up_epochs: epochs without a warning about that loss.
      log: called with a line of text.
      verbose: 0: nothing is shown; 1: a progress bar on stdout and a line per epoch (`Progress`);
        2: the lines alone; None: 1 where stdout is a terminal, else 2.

    Attributes:
      position: (epochs done, steps done of the next epoch) of the checkpoint that was restored.
      chief: whether this process writes.

    Raises:
      errors.TrainingError: there are checkpoints, and none can be read.

    Example:

    >>> model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(4)])
    >>> model.compile("sgd", "mse")
    >>> data = tf.data.Dataset.from_tensor_slices((images / 255, labels)).batch(4).repeat()
    >>> loop = simclr_tf.training.ResumableLoop(
    ...     model, lambda epoch, step, replicas: data.skip(step),
    ...     simclr_tf.training.Steps(per_epoch=2, total=4),
    ...     simclr_tf.training.RunDirectory("other_run"), batch_size=4)
    >>> loop.position, loop.finished
    ((0, 0), False)
    """

    def __init__(
        self,
        model,
        stream,
        steps,
        directory,
        *,
        batch_size,
        strategy=None,
        callbacks=(),
        metadata=None,
        checkpoint_every_steps=None,
        chance_loss=None,
        warm_up_epochs=1,
        log=print,
        verbose=None,
    ):
        self.model, self.stream, self.steps, self.directory = model, stream, steps, directory
        self.strategy = strategy or tf.distribute.get_strategy()
        self.chief = distribute.is_chief(self.strategy)
        self.log = log if self.chief else lambda text: None
        self.verbose = (1 if sys.stdout.isatty() else 2) if verbose is None else verbose
        monitors = [each for each in callbacks if isinstance(each, RunMonitor)]
        for monitor in monitors:  # adds a metric, which is then saved too
            monitor.set_model(model)
        with self.strategy.scope():
            _keras.build_with_metrics(model, self._element_spec())
            self._checkpoints = Checkpoints(
                directory.checkpoints,
                model,
                steps.per_epoch,
                checkpoint_every_steps,
                writes=self.chief,
                log=self.log,
                metadata=metadata,
            )
            self.position = self._checkpoints.restore()
        self._loss_scale, self._data_wait = LossScale(self.log), DataWait()
        self._copies, self._metadata = StateCopies(), metadata or {}
        self._progress = self._progress_of(batch_size, chance_loss, callbacks)
        several = distribute.is_many_processes(self.strategy)
        agree = distribute.any_worker(self.strategy) if several else None
        self._stop = StopOnSignal(self._checkpoints.save, agree)
        if monitors:  # which warn of that loss themselves
            chance_loss = None
        watching = [
            Throughput(batch_size),
            StopAtStep(steps.total),
            self._loss_scale,
            self._data_wait,
            Alarms(chance_loss, self.log, warm_up_epochs=warm_up_epochs),
        ]
        shown = [self._progress] if self.chief and self.verbose else []
        if not several:  # reading the state would need all workers
            watching.insert(0, self._copies)
        self._callbacks = [
            *(*watching, *callbacks, *shown),
            *(*self._writers(), self._checkpoints, self._stop),
        ]

    @property
    def finished(self):
        """Whether the checkpoint that was restored is that of the end of the run."""
        return self.position[0] >= self.steps.epochs

    def run(self):
        """Trains from `position` to the end of the run; see `train` for what it raises."""
        if self.chief:
            self.directory.path.mkdir(parents=True, exist_ok=True)
            self.directory.truncate_metrics(self.position[0])
        if self.finished:
            self.log(
                f"{self.directory.path} holds all {self.steps.epochs} epochs; nothing is left to "
                "train."
            )
            return
        epoch, step = self.position
        if step >= self.steps.per_epoch:  # saved after the last step of an epoch
            epoch, step = epoch + 1, 0
        if self.position > (0, 0):
            within = f" and {step} steps" if step else ""
            self.log(f"resuming after epoch {epoch}{within}.")
        with self._stop.listening():
            if step:  # Keras has one number of steps for all epochs of a call
                self._fit(epoch, step, epoch + 1)
                epoch += 1
            if epoch < self.steps.epochs:
                self._fit(epoch, 0, self.steps.epochs)

    def _progress_of(self, batch_size, chance_loss, callbacks):
        columns = [metric.name for metric in self.model.metrics]
        columns += [name for callback in callbacks for name in getattr(callback, "logged", ())]
        costs = [each.epoch_cost for each in callbacks if hasattr(each, "epoch_cost")]
        return Progress(
            self.steps.epochs,
            self.steps.per_epoch,
            batch_size,
            chance_loss,
            columns,
            self._data_wait,
            terminal=self.verbose == 1,
            log=self.log,
            epoch_cost=costs[0] if costs else None,
        )

    def _writers(self):
        if not self.chief:
            return []
        board = keras.callbacks.TensorBoard(str(self.directory.logs), write_graph=False)
        return [JSONLines(self.directory.metrics), board]

    def _fit(self, epoch, step, last_epoch):
        for each in (self._loss_scale, self._progress, self._copies):
            each.steps_before = step
        try:
            self._call_fit(epoch, step, last_epoch)
        except NonFiniteError as error:
            raise type(error)(f"{error}{self._keep_nonfinite_step()}") from error

    def _keep_nonfinite_step(self):
        """Writes the step that was not finite; returns a sentence about it."""
        if self._copies.position is None:
            return ""
        self.log("taking the last steps again, to find the one that is not finite ...")
        found = find_step(
            self.model,
            self._copies,
            self._dataset,
            lambda epoch, step: self.stream(epoch, step, None),
            self.steps.per_epoch,
            self.strategy,
        )
        if found is None:
            return " The last steps were taken again, and were finite this time."
        path = self.directory.nonfinite_step
        write_step(path, found, self._metadata)
        return (
            f" Batch, seed and weights of step {found.step + 1} of epoch {found.epoch + 1} are in "
            f"{path}; `simclr-tf replay` computes it again."
        )

    def _call_fit(self, epoch, step, last_epoch):
        self.model.fit(
            self._dataset(epoch, step),
            epochs=last_epoch,
            initial_epoch=epoch,
            steps_per_epoch=self.steps.per_epoch - step,
            callbacks=self._callbacks,
            shuffle=False,  # Keras 3 warns where it cannot
            verbose=0,
        )

    def _dataset(self, epoch, step):
        """Training batches from there on; each process reads its own slice of them."""
        replicas = self.strategy.num_replicas_in_sync
        if replicas == 1:
            return self._data_wait.watch(self.stream(epoch, step, None))

        def of_process(context):
            count = replicas // context.num_input_pipelines
            first = context.input_pipeline_id * count
            return self.stream(epoch, step, ReplicaSlice(first, count, replicas))

        return self.strategy.distribute_datasets_from_function(of_process)

    def _element_spec(self):
        replicas = self.strategy.num_replicas_in_sync
        replica_slice = None if replicas == 1 else ReplicaSlice(0, 1, replicas)
        return self.stream(0, 0, replica_slice).element_spec


def describe_latest(directory):
    """The position that a run directory resumes from, in words.

    Example:

    >>> simclr_tf.training.loop.describe_latest(simclr_tf.training.RunDirectory("runs/a"))
    'runs/a keeps 0 whole epochs'
    """
    epochs, steps = latest_position(directory.checkpoints)
    within = f" and {steps} steps" if steps else ""
    return f"{directory.path} keeps {epochs} whole epochs{within}"


@contextlib.contextmanager
def report_interruptions(directory, log=print):
    """Adds to an interruption what the run directory keeps and that the same command resumes.

    Args:
      directory: the `RunDirectory`.
      log: called with a line of text after Ctrl-C.

    Raises:
      errors.TryAgainError: SIGTERM came, or another worker of the cluster is gone.

    Example:

    >>> run = simclr_tf.training.RunDirectory("runs/a")
    >>> with simclr_tf.training.loop.report_interruptions(run):
    ...     raise simclr_tf.errors.PreemptedError("stopped by SIGTERM; the state is saved.")
    Traceback (most recent call last):
    simclr_tf.errors.TryAgainError: stopped by SIGTERM; ... the same command resumes there.
    """
    try:
        yield
    except KeyboardInterrupt:
        log(f"\nstopped; {describe_latest(directory)}. The same command resumes there.")
        raise
    except PreemptedError as stop:
        raise TryAgainError(
            f"{stop} {describe_latest(directory)}; the same command resumes there."
        ) from stop
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        raise TryAgainError(
            f"another worker no longer answers; {describe_latest(directory)}. "
            "Start the same command again on all workers."
        ) from error


@contextlib.contextmanager
def report_unwritable(directory):
    """Turns a failure to write to the run directory into an error that names what it keeps.

    Raises:
      errors.TrainingError: the disk is full, the directory is gone, and the like.

    Example:

    >>> with simclr_tf.training.loop.report_unwritable(simclr_tf.training.RunDirectory("runs/a")):
    ...     raise OSError(28, "No space left on device", "runs/a/metrics.jsonl")
    Traceback (most recent call last):
    simclr_tf.errors.TrainingError: runs/a/metrics.jsonl cannot be written (No space left ...
    """
    try:
        yield
    except OSError as error:
        path = pathlib.Path(str(error.filename or directory.path))
        if directory.path.absolute() not in (path.absolute(), *path.absolute().parents):
            raise  # another file: not a matter of the run directory
        raise TrainingError(
            f"{path} cannot be written ({error.strerror or error}); {describe_latest(directory)}. "
            "Make room or put it back; the same command resumes there."
        ) from error

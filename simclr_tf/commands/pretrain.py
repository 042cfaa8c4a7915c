"""`simclr-tf pretrain`: trains an encoder in a run directory, or goes on with it."""

from __future__ import annotations

import contextlib
import math
import sys

import numpy as np
import tensorflow as tf
from tensorflow import keras

from simclr_tf import data, devices, distribute, errors, optimizers, report
from simclr_tf.commands.build import (
    build_encoder,
    build_model,
    load,
    log,
    prepare_process,
    report_unreadable,
)
from simclr_tf.export import export_encoder
from simclr_tf.training import callbacks, monitor, preemption, run_directory
from simclr_tf.training.checkpoints import Checkpoints, latest_position


def pretrain(options, flags, free_flags=()):
    """Trains an encoder and fills the run directory; the same call again resumes.

    Args:
      options: attributes named as the flags of `simclr-tf pretrain`.
      flags: dict of flag name to its text, for flags.cfg.
      free_flags: names of flags that may change when a run is resumed.

    Returns:
      The `run_directory.RunDirectory`.

    Raises:
      errors.UsageError, ValueError, errors.TrainingError, OSError: with a message for the user.
    """
    directory = run_directory.RunDirectory(options.run_dir)
    try:
        _pretrain(options, flags, free_flags, directory)
    except KeyboardInterrupt:
        log(f"\nstopped; {_describe_latest(directory)}. The same command resumes there.")
        raise
    except errors.PreemptedError as stop:
        raise errors.TryAgainError(
            f"{stop} {_describe_latest(directory)}; the same command resumes there."
        ) from stop
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        raise errors.TryAgainError(
            f"another worker no longer answers; {_describe_latest(directory)}. "
            "Give the same command again on all workers."
        ) from error
    return directory


def _describe_latest(directory):
    """What a resumed run begins with, in words."""
    epochs, steps = latest_position(directory.checkpoints)
    return f"{directory.path} keeps {epochs} whole epochs" + (
        f" and {steps} steps" if steps else ""
    )


def _pretrain(options, flags, free_flags, directory):
    directory.check_resumable(flags, free_flags)
    strategy = prepare_process(options)
    train, test = load_sources(options)
    steps = steps_of(options, train, strategy.num_replicas_in_sync)
    with strategy.scope():
        model = build_model(options, train.image_size)
        model.compile(
            optimizer=build_optimizer(options, steps),
            steps_per_execution=options.steps_per_execution
            or devices.steps_per_execution(steps.per_epoch, steps.total),
        )
    if distribute.is_chief(strategy):
        with directory.locked(), _writing(directory):
            directory.check_resumable(flags, free_flags)  # again: now nobody else writes there
            directory.write_flags(flags)
            _train(options, directory, strategy, model, train, test, steps)
            report.write_report(directory, run_directory.read_metrics(directory.metrics), flags)
    else:
        _train(options, directory, strategy, model, train, test, steps)
    if distribute.is_many_processes(strategy):  # who leaves early is taken for lost
        distribute.any_worker(strategy)(False)


def _train(options, directory, strategy, model, train, test, steps):
    """Trains from where the directory stands, and exports; only the chief writes."""
    chief = distribute.is_chief(strategy)
    probe_encoder = None
    if (
        strategy.num_replicas_in_sync > 1
    ):  # outside the strategy, where reading weights needs no other replica
        probe_encoder = build_encoder(options, train.image_size)
    with strategy.scope():
        checkpoints = Checkpoints(
            directory.checkpoints,
            model,
            steps.per_epoch,
            options.checkpoint_every_steps,
            writes=chief,
            log=log if chief else _nothing,
        )
        position = checkpoints.restore()
    if chief:
        directory.truncate_metrics(position[0])
    if position[0] < steps.epochs:
        with report_unreadable(train, test, directory=directory if chief else None):
            if chief:
                _announce(options, train, model, steps, position)
                draw_views(directory, train, model)
            fit_loop = _Fit(
                options, directory, strategy, model, train, test, checkpoints, steps, probe_encoder
            )
            fit_loop.run_from(position)
    elif chief:
        log(f"{directory.path} holds all {steps.epochs} epochs; nothing is left to train.")
    if probe_encoder is not None:
        probe_encoder.set_weights(model.encoder.get_weights())
    if chief and not directory.export.exists():
        export_encoder(probe_encoder or model.encoder, directory.export, model.image_shape)


@contextlib.contextmanager
def _writing(directory):
    """Says in one line that the directory can no longer be written, and what it keeps."""
    try:
        yield
    except OSError as error:
        raise errors.TrainingError(
            f"{error.filename or directory.path} cannot be written ({error.strerror}); "
            f"{_describe_latest(directory)}. Make room or put it back; the same command "
            "resumes there."
        ) from error


class Steps:
    """How long a run is: steps an epoch, epochs, steps in all, warm-up steps."""

    def __init__(self, per_epoch, epochs, total, warmup):
        self.per_epoch, self.epochs, self.total, self.warmup = per_epoch, epochs, total, warmup


def steps_of(options, train, replicas=1):
    """The `Steps` of a run; raises UsageError for sizes that do not fit each other."""
    if options.view_sizes:
        callbacks.check_view_sizes(options.view_sizes)
    batch_size = options.batch_size
    if batch_size % replicas:
        below = batch_size // replicas * replicas
        raise errors.UsageError(
            f"--batch_size must be divisible by the {replicas} replicas; got {batch_size}. "
            f"Try {below or replicas} or {below + replicas}."
        )
    views, micro = 2 * batch_size // replicas, options.micro_batch_size
    if micro and (micro % 2 or views % micro):
        below = max(n for n in range(2, max(2, min(micro, views)) + 1, 2) if views % n == 0)
        raise errors.UsageError(
            f"--micro_batch_size must be even and divide the {views} views of a batch; got {micro}."
            f" Try {below}."
        )
    per_epoch = train.steps_per_epoch(batch_size)
    total = options.train_steps or per_epoch * options.epochs
    epochs = math.ceil(total / per_epoch)
    if options.warmup_epochs is None:
        warmup = min(10 * per_epoch, total // 10)
    else:
        warmup = round(options.warmup_epochs * per_epoch)
    if warmup >= total:
        raise errors.UsageError(
            f"--warmup_epochs must be shorter than the run of {total / per_epoch:.4g} epochs; "
            f"got {options.warmup_epochs:.4g}. Leave it out to take a tenth of the run."
        )
    return Steps(per_epoch, epochs, total, warmup)


def load_sources(options):
    """The training split, and the test split for the probe (None without labels)."""
    train = load(options, options.train_split)
    test = None
    if train.labelled and options.probe_every_epochs >= 0:
        try:
            test = load(options, options.test_split, train.image_size)
        except ValueError as error:
            log(f"no kNN probe during training, since --test_split cannot be read: {error}")
    if test is not None and not test.labelled:
        log("no kNN probe during training, since --test_split has no labels.")
        test = None
    return train, test


def build_optimizer(options, steps):
    """The optimizer with its schedule."""
    peak = optimizers.scale_learning_rate(
        options.learning_rate, options.batch_size, options.learning_rate_scaling
    )
    schedule = optimizers.WarmupCosine(peak, steps.total, steps.warmup)
    return optimizers.by_name(
        options.optimizer, schedule, weight_decay=options.weight_decay, momentum=options.momentum
    )


def _announce(options, train, model, steps, position):
    policy = keras.mixed_precision.global_policy().name
    parameters = sum(int(np.prod(w.shape)) for w in model.encoder.trainable_weights)
    log(
        f"{train.num_examples:,} images of {train.image_size} pixels from {options.dataset} "
        f"({options.train_split}), {len(train.corrupt)} unreadable; "
        f"{model.encoder.name} with {parameters:,} parameters; {policy}; "
        f"{steps.epochs} epochs of {steps.per_epoch} steps of {options.batch_size} images."
    )
    if position > (0, 0):
        within = f" and {position[1]} steps" if position[1] else ""
        log(f"resuming after epoch {position[0]}{within}.")


def draw_views(directory, train, model, rows=6, columns=8):
    """Writes RUN_DIR/views.png: images of the training set and views of each."""
    batch = next(iter(train.epochs(min(rows, train.num_examples), seed=0)))
    images, extent = (batch["image"], batch["extent"]) if train.whole_side else (batch, None)
    views = [model.augment(images, seed=column, extent=extent) for column in range(columns)]
    report.draw_views(images.numpy(), [view.numpy() for view in views], directory.views)


class _Fit:
    """The calls of `fit` that make up a run, and what watches them."""

    def __init__(
        self, options, directory, strategy, model, train, test, checkpoints, steps, probe_encoder
    ):
        self.options, self.strategy, self.model = options, strategy, model
        self.train, self.steps = train, steps
        self.chief = distribute.is_chief(strategy)
        agree = distribute.any_worker(strategy) if distribute.is_many_processes(strategy) else None
        self.stop = preemption.StopOnSignal(checkpoints.save, agree)
        self.callbacks = [
            monitor.Throughput(options.batch_size),
            callbacks.StopAtStep(steps.total),
        ]
        if options.view_sizes:
            self.callbacks.append(
                callbacks.ViewSizes(options.view_sizes, model.augment, steps.epochs)
            )
        self.callbacks.append(monitor.Alarms(options.batch_size, log if self.chief else _nothing))
        if test is not None:
            self.callbacks.append(_probe(options, train, test, steps, probe_encoder, self.chief))
        if self.chief:
            self.callbacks += [
                callbacks.JSONLines(directory.metrics),
                keras.callbacks.TensorBoard(str(directory.logs), write_graph=False),
            ]
        self.callbacks += [checkpoints, self.stop]

    def run_from(self, position):
        """Trains from (epochs done, steps done of the next) to the end."""
        epoch, step = position
        with self.stop.listening():
            if step:  # Keras has one number of steps for all epochs of a call
                self._fit(epoch, step, epoch + 1)
                epoch += 1
            if epoch < self.steps.epochs:
                self._fit(epoch, 0, self.steps.epochs)

    def _fit(self, epoch, step, last_epoch):
        self.model.fit(
            self._stream(epoch, step),
            epochs=last_epoch,
            initial_epoch=epoch,
            steps_per_epoch=self.steps.per_epoch - step,
            callbacks=self.callbacks,
            verbose=(1 if sys.stdout.isatty() else 2) if self.chief else 0,
        )

    def _stream(self, epoch, step):
        """Training batches from there on; each worker reads its own part of them."""
        arguments = self.options.batch_size, self.options.seed, epoch, True, step
        replicas = self.strategy.num_replicas_in_sync
        if replicas == 1:
            return self.train.epochs(*arguments)

        def of_worker(context):
            count = replicas // context.num_input_pipelines
            share = data.ReplicaSlice(context.input_pipeline_id * count, count, replicas)
            return self.train.epochs(*arguments, share=share)

        return self.strategy.distribute_datasets_from_function(of_worker)


def _nothing(text):
    """For a worker that has nothing to log."""


def _probe(options, train, test, steps, probe_encoder, chief):
    batch_size, limit = options.batch_size, options.probe_examples
    every = options.probe_every_epochs or max(1, math.ceil(steps.epochs / 10))
    return callbacks.KNNProbe(
        train.batches(batch_size, limit),
        test.batches(batch_size, limit),
        every,
        epochs=steps.epochs,
        probe_encoder=probe_encoder,
        probes=chief,
    )

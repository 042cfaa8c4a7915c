"""What each command does, given its options as plain attributes; flags are read in `cli.py`.

pretrain, evaluate, embed and export, and the parts that they share: the model of the options, the
encoder of a run.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import types

import numpy as np
import tensorflow as tf
from tensorflow import keras

from simclr_tf import (
    callbacks,
    checkpoints,
    data,
    distribute,
    embeddings,
    encoders,
    evaluate,
    optimizers,
    progress,
    report,
    run,
)
from simclr_tf.augment import RandomView
from simclr_tf.export import export_encoder, export_tflite, load_exported
from simclr_tf.model import SimCLR
from simclr_tf.projection import ProjectionHead


def say(text):
    """A line for the person who started the command; results go to stdout, this to stderr."""
    print(text, file=sys.stderr, flush=True)


# -- pretrain --------------------------------------------------------------------------------


def pretrain(options, flags, free_flags=()):
    """Trains an encoder and fills the run directory; the same call again resumes.

    Args:
      options: attributes named as the flags of `simclr-tf pretrain`.
      flags: dict of flag name to its text, for flags.cfg.
      free_flags: names of flags that may change when a run is resumed.

    Returns:
      The `run.RunDirectory`.

    Raises:
      run.UsageError, ValueError, callbacks.TrainingError, OSError: with a message for the user.
    """
    directory = run.RunDirectory(options.run_dir)
    try:
        _pretrain(options, flags, free_flags, directory)
    except KeyboardInterrupt:
        say(f"\nstopped; {_kept(directory)}. The same command resumes there.")
        raise
    except checkpoints.PreemptedError as stop:
        raise run.TryAgainError(
            f"{stop} {_kept(directory)}; the same command resumes there."
        ) from stop
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        raise run.TryAgainError(
            f"another worker no longer answers; {_kept(directory)}. Give the same command again on "
            "all workers."
        ) from error
    return directory


def _kept(directory):
    """What a resumed run begins with, in words."""
    epochs, steps = checkpoints.place_kept(directory.checkpoints)
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
            or distribute.steps_per_execution(steps.per_epoch, steps.total),
        )
    if distribute.is_chief(strategy):
        with directory.held(), _writing(directory):
            directory.check_resumable(flags, free_flags)  # again: now nobody else writes there
            directory.create(flags)
            _train(options, directory, strategy, model, train, test, steps)
            report.write_report(directory, run.read_metrics(directory.metrics), flags)
    else:
        _train(options, directory, strategy, model, train, test, steps)
    if distribute.is_many_processes(strategy):  # who leaves early is taken for lost
        distribute.any_worker(strategy)(False)


def _train(options, directory, strategy, model, train, test, steps):
    """Trains from where the directory stands, and exports; only the chief writes."""
    chief = distribute.is_chief(strategy)
    twin = None
    if strategy.num_replicas_in_sync > 1:  # outside the strategy, where reading asks no one else
        twin = build_encoder(options, train.image_size)
    with strategy.scope():
        keeper = checkpoints.Checkpoints(
            directory.checkpoints,
            model,
            steps.per_epoch,
            options.checkpoint_every_steps,
            writes=chief,
            say=say if chief else _nothing,
        )
        place = keeper.restore()
    if chief:
        directory.keep_epochs(place[0])
    if place[0] < steps.epochs:
        with _reading(train, test, directory=directory if chief else None):
            if chief:
                _announce(options, train, model, steps, place)
                draw_views(directory, train, model)
            run_parts = _Fit(options, directory, strategy, model, train, test, keeper, steps, twin)
            run_parts.from_place(place)
    elif chief:
        say(f"{directory.path} holds all {steps.epochs} epochs; nothing is left to train.")
    if twin is not None:
        twin.set_weights(model.encoder.get_weights())
    if chief and not directory.export.exists():
        export_encoder(twin or model.encoder, directory.export, model.image_shape)


@contextlib.contextmanager
def _writing(directory):
    """Says in one line that the directory can no longer be written, and what it keeps."""
    try:
        yield
    except OSError as error:
        raise callbacks.TrainingError(
            f"{error.filename or directory.path} cannot be written ({error.strerror}); "
            f"{_kept(directory)}. Make room or put it back; the same command resumes there."
        ) from error


@contextlib.contextmanager
def _reading(*sources, directory=None):
    """Says in one line what tf.data wraps in many; lists what could not be read, come what may."""
    sources = [source for source in sources if source is not None]
    try:
        yield
    except tf.errors.OpError:
        for source in sources:
            source.check_corrupt()
        raise
    finally:
        if directory is not None:
            directory.list_corrupt([row for source in sources for row in source.corrupt])


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
        raise run.UsageError(
            f"--batch_size must be divisible by the {replicas} replicas; got {batch_size}. "
            f"Try {below or replicas} or {below + replicas}."
        )
    views, micro = 2 * batch_size // replicas, options.micro_batch_size
    if micro and (micro % 2 or views % micro):
        below = max(n for n in range(2, max(2, min(micro, views)) + 1, 2) if views % n == 0)
        raise run.UsageError(
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
        raise run.UsageError(
            f"--warmup_epochs must be shorter than the run of {total / per_epoch:.4g} epochs; "
            f"got {options.warmup_epochs:.4g}. Leave it out to take a tenth of the run."
        )
    return Steps(per_epoch, epochs, total, warmup)


def prepare_process(options, strategy=None):
    """Seeds, determinism and precision of this process; returns the strategy.

    strategy: its name, in place of the options'.
    """
    keras.utils.set_random_seed(options.seed)
    if options.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = distribute.strategy_by_name(strategy or options.strategy, options.tpu)
    keras.mixed_precision.set_global_policy(distribute.precision_policy(options.precision))
    return strategy


def load_sources(options):
    """The training split, and the test split for the probe (None without labels)."""
    train = _load(options, options.train_split)
    test = None
    if train.labelled and options.probe_every_epochs >= 0:
        try:
            test = _load(options, options.test_split, train.image_size)
        except ValueError as error:
            say(f"no kNN probe during training, since --test_split cannot be read: {error}")
    if test is not None and not test.labelled:
        say("no kNN probe during training, since --test_split has no labels.")
        test = None
    return train, test


def _load(options, split, image_size=None):
    return data.load(
        options.dataset,
        split,
        data_dir=options.data_dir,
        image_size=image_size or options.image_size,
        source_size=options.source_size,
        max_corrupt_share=options.max_corrupt_share,
        cache_bytes=round(options.cache_gigabytes * 2**30),
    )


def build_encoder(options, image_size):
    """The encoder that the options name, built for square images of that side."""
    name = options.encoder
    if name == "resnet":
        name = f"resnet{options.resnet_depth}"
    return encoders.by_name(
        name, image_size, width=options.width, sk_ratio=options.sk_ratio, stem=options.stem
    )


def build_head(options):
    """The projection head that the options name; it is built with its first h."""
    return ProjectionHead(
        options.projection_hidden_dim, options.projection_dim, options.projection_layers
    )


def build_model(options, image_size):
    """The `SimCLR` that the options name, built for square images of that side."""
    blur = {"auto": "auto", "yes": True, "no": False}[options.blur]
    view = RandomView.for_size(
        image_size,
        options.color_jitter_strength,
        area=(options.min_crop_area, 1.0),
        drop_probability=options.color_drop_probability,
        blur=blur,
    )
    model = SimCLR(
        build_encoder(options, image_size),
        build_head(options),
        augment=view,
        temperature=options.temperature,
        micro_batch_size=options.micro_batch_size,
        seed=options.seed,
    )
    model.build((None, image_size, image_size, 3))
    return model


def build_optimizer(options, steps):
    """The optimizer with its schedule."""
    peak = optimizers.scale_learning_rate(
        options.learning_rate, options.batch_size, options.learning_rate_scaling
    )
    schedule = optimizers.WarmupCosine(peak, steps.total, steps.warmup)
    return optimizers.by_name(
        options.optimizer, schedule, weight_decay=options.weight_decay, momentum=options.momentum
    )


def _announce(options, train, model, steps, place):
    policy = keras.mixed_precision.global_policy().name
    parameters = sum(int(np.prod(w.shape)) for w in model.encoder.trainable_weights)
    say(
        f"{train.num_examples:,} images of {train.image_size} pixels from {options.dataset} "
        f"({options.train_split}), {len(train.corrupt)} unreadable; "
        f"{model.encoder.name} with {parameters:,} parameters; {policy}; "
        f"{steps.epochs} epochs of {steps.per_epoch} steps of {options.batch_size} images."
    )
    if place > (0, 0):
        within = f" and {place[1]} steps" if place[1] else ""
        say(f"resuming after epoch {place[0]}{within}.")


def draw_views(directory, train, model, rows=6, columns=8):
    """Writes RUN_DIR/views.png: images of the training set and views of each."""
    batch = next(iter(train.epochs(min(rows, train.num_examples), seed=0)))
    images, extent = (batch["image"], batch["extent"]) if train.whole_side else (batch, None)
    views = [model.augment(images, seed=column, extent=extent) for column in range(columns)]
    report.draw_views(images.numpy(), [view.numpy() for view in views], directory.views)


class _Fit:
    """The calls of `fit` that make up a run, and what watches them."""

    def __init__(self, options, directory, strategy, model, train, test, keeper, steps, twin):
        self.options, self.strategy, self.model = options, strategy, model
        self.train, self.steps = train, steps
        self.chief = distribute.is_chief(strategy)
        agree = distribute.any_worker(strategy) if distribute.is_many_processes(strategy) else None
        self.stop = checkpoints.StopOnSignal(keeper.save, agree)
        self.watchers = [
            callbacks.Throughput(options.batch_size),
            callbacks.StopAtStep(steps.total),
        ]
        if options.view_sizes:
            self.watchers.append(
                callbacks.ViewSizes(options.view_sizes, model.augment, steps.epochs)
            )
        self.watchers.append(callbacks.Alarms(options.batch_size, say if self.chief else _nothing))
        if test is not None:
            self.watchers.append(_probe(options, train, test, steps, twin, self.chief))
        if self.chief:
            self.watchers += [
                callbacks.JSONLines(directory.metrics),
                keras.callbacks.TensorBoard(str(directory.logs), write_graph=False),
            ]
        self.watchers += [keeper, self.stop]

    def from_place(self, place):
        """Trains from (epochs done, steps done of the next) to the end."""
        epoch, step = place
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
            callbacks=self.watchers,
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
            share = data.Share(context.input_pipeline_id * count, count, replicas)
            return self.train.epochs(*arguments, share=share)

        return self.strategy.distribute_datasets_from_function(of_worker)


def _nothing(text):
    """For a worker that has nothing to say."""


def _probe(options, train, test, steps, twin, chief):
    batch_size, limit = options.batch_size, options.probe_examples
    every = options.probe_every_epochs or max(1, math.ceil(steps.epochs / 10))
    return callbacks.KNNProbe(
        train.batches(batch_size, limit),
        test.batches(batch_size, limit),
        every,
        epochs=steps.epochs,
        twin=twin,
        probes=chief,
    )


# -- a finished run --------------------------------------------------------------------------


def encoder_of_run(options):
    """The trained encoder of a run and the side of its images; raises as `parts_of_run`."""
    parts, image_size = parts_of_run(
        options, lambda image_size: {"encoder": build_encoder(options, image_size)}
    )
    return parts["encoder"], image_size


def parts_of_run(options, build):
    """Trained parts of a run's model, and the side of its images.

    Args:
      options: those of the run's `pretrain`.
      build: see `checkpoints.restore_parts`.

    Raises:
      run.UsageError: there is no run, or it has no checkpoint yet.
    """
    directory = run.RunDirectory(options.run_dir)
    restored = checkpoints.restore_parts(directory.checkpoints, build, say)
    if restored is None:
        raise run.UsageError(
            f"--run_dir must hold a run with a checkpoint; {directory.path} has none yet. "
            "Let `simclr-tf pretrain` finish an epoch."
        )
    return restored


def evaluate_run(options, trained):
    """Prints a table of accuracies and one JSON line; returns its dict.

    Args:
      options: attributes named as the flags of `simclr-tf evaluate`.
      trained: the options of the run's `pretrain`.
    """
    prepare_process(trained, strategy="one")
    encoder, image_size = encoder_of_run(trained)
    train = _labelled(_load(trained, options.train_split or trained.train_split, image_size))
    test = _labelled(_load(trained, options.test_split or trained.test_split, image_size))
    protocols = ["knn", "linear"] if options.protocol == "all" else [options.protocol]
    rows = []
    for name, features_of in _contenders(options, trained, encoder, image_size):
        rows.append({"features": name, **_scores(options, protocols, features_of, train, test)})
        _print_row(rows[-1], protocols, header=len(rows) == 1)
    result = _summary(options, protocols, rows, train, test)
    print(json.dumps(result), flush=True)
    return result


def _labelled(source):
    if not source.labelled:
        raise run.UsageError(
            f"evaluation needs labels; {source.name} ({source.split}) has none. "
            "Put the images into class folders, or use `simclr-tf embed`."
        )
    return source


def _contenders(options, trained, encoder, image_size):
    if options.baselines:
        yield "raw pixels", evaluate.pixel_features
        keras.utils.set_random_seed(trained.seed)
        yield "random encoder", build_encoder(trained, image_size)
    yield "trained encoder", encoder


def _scores(options, protocols, features_of, train, test):
    """Accuracies of one encoder: {"knn": ..., "knn_10": ..., "linear": ...}."""
    with _reading(train, test):
        train_h = evaluate.extract_features(features_of, train.batches(options.batch_size))
        test_h = evaluate.extract_features(features_of, test.batches(options.batch_size))
    pair = (train_h.h, train_h.labels, test_h.h, test_h.labels)
    scores = {}
    if "knn" in protocols:
        scores["knn"] = evaluate.knn_accuracy(
            *pair, k=options.knn_k, temperature=options.knn_temperature
        )
        scores["knn_10"] = evaluate.knn_accuracy(*pair, k=10, weighted=False)
    if "linear" in protocols:
        scores["linear"] = evaluate.linear_probe(*pair, seed=0).accuracy
    return scores


_HEADINGS = {"knn": "kNN weighted", "knn_10": "kNN k=10", "linear": "linear"}


def _print_row(row, protocols, header):
    keys = [key for key in _HEADINGS if key in row]
    if header:
        print(f"{'features':<18}" + "".join(f"{_HEADINGS[key]:>14}" for key in keys))
    cells = "".join(f"{100 * row[key]:>12.2f} %" for key in keys)
    print(f"{row['features']:<18}{cells}", flush=True)


def _summary(options, protocols, rows, train, test):
    trained = rows[-1]
    result = {
        "protocol": options.protocol,
        "accuracy": trained[protocols[-1]],
        **{key: trained[key] for key in _HEADINGS if key in trained},
        "train_examples": train.num_examples,
        "test_examples": test.num_examples,
        "test_split": test.split,
    }
    if "knn" in protocols:
        result.update(k=options.knn_k, temperature=options.knn_temperature)
    for row in rows[:-1]:
        result[row["features"].replace(" ", "_")] = {k: row[k] for k in _HEADINGS if k in row}
    return result


def embed(options, trained=None):
    """Writes the embeddings of a data set with ids and, where there are some, labels.

    Read, embedded and written a batch at a time: neither the images nor the embeddings are ever in
    memory together.

    Args:
      options: attributes named as the flags of `simclr-tf embed`.
      trained: the options of the run's `pretrain`; None takes the encoder at options.saved_model.
    """
    encoder, source = _run_to_embed(options, trained) if trained else _export_to_embed(options)
    count = 0
    with _reading(source), _ended_by_sigterm(), embeddings.Writer(options.output) as file:
        with progress.counted(source.num_examples, say) as done:
            for features in evaluate.stream_features(encoder, source.batches(options.batch_size)):
                file.write(features)
                done(len(features.h))
                count += len(features.h)
    say(
        f"wrote {count:,} embeddings of {features.h.shape[1]} numbers to {options.output}"
        + _left_out(source)
    )


def _run_to_embed(options, trained):
    """The encoder of a run, and the images for it, those of the run where nothing else is asked."""
    prepare_process(trained, strategy="one")
    encoder, image_size = encoder_of_run(trained)
    return encoder, _source_to_embed(options, trained, options.image_size or image_size)


def _export_to_embed(options):
    """An exported encoder and the images for it."""
    encoder = load_exported(options.saved_model)
    image_size = options.image_size or encoder.image_size
    if image_size is None:
        raise run.UsageError(
            f"{options.saved_model} does not say what size of images it takes. Give --image_size."
        )
    defaults = types.SimpleNamespace(train_split="train", source_size=None, data_dir=None)
    defaults.max_corrupt_share = 0.01
    return encoder, _source_to_embed(options, defaults, image_size)


def _source_to_embed(options, defaults, image_size):
    name, share = options.dataset or defaults.dataset, options.max_corrupt_share
    # What is in memory anyway is read fastest from there; a file is read once and not kept.
    in_memory = name == "shapes" or name.startswith("npz:")
    return data.load(
        name,
        options.split or defaults.train_split,
        data_dir=options.data_dir or defaults.data_dir,
        image_size=image_size,
        source_size=defaults.source_size,
        max_corrupt_share=defaults.max_corrupt_share if share is None else share,
        **({} if in_memory else {"cache_bytes": 0}),
    )


@contextlib.contextmanager
def _ended_by_sigterm():
    """While it lasts, SIGTERM is an exception, which leaves nothing half-written behind."""

    def stop(number, frame):
        raise run.TryAgainError("stopped by SIGTERM; nothing is written. Give the command again.")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _left_out(source):
    if not source.corrupt:
        return ""
    example_id, reason = source.corrupt[0]
    return f"; left out, since unreadable: {len(source.corrupt)}, such as {example_id} ({reason})"


def export(options, trained):
    """Writes the encoder of a run as a SavedModel or a TensorFlow Lite file."""
    if options.precision == "int8" and options.format != "tflite":
        raise run.UsageError("--precision=int8 is for --format=tflite; got --format=saved_model.")
    prepare_process(trained, strategy="one")
    parts, image_size = parts_of_run(trained, lambda side: _encoder_and_head(trained, side))
    arguments = {
        "image_shape": (image_size, image_size, 3),
        "normalize": options.normalize,
        "layer": options.layer,
        "head": parts["projection_head"],
        "precision": options.precision,
    }
    if options.format == "tflite":
        if options.precision == "int8":
            arguments["examples"] = _examples(trained, image_size, options.examples)
        path = export_tflite(parts["encoder"], options.output, **arguments)
    else:
        path = export_encoder(parts["encoder"], options.output, **arguments)
    say(f"wrote the encoder to {path}")


def _encoder_and_head(options, image_size):
    encoder, head = build_encoder(options, image_size), build_head(options)
    head.build(encoder.compute_output_shape((None, image_size, image_size, 3)))
    return {"encoder": encoder, "projection_head": head}


def _examples(trained, image_size, count):
    """Training images for the ranges of int8, uint8 [count, H, W, 3]."""
    source = _load(trained, trained.train_split, image_size)
    with _reading(source):
        batches = [batch["image"].numpy() for batch in source.batches(64, limit=count)]
    return np.concatenate(batches)

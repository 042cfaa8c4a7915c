"""`simclr-tf finetune`: trains a pretrained encoder with labels in a run directory; it resumes."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow import keras

from simclr_tf import devices, distribute, errors, evaluate, optimizers, report
from simclr_tf.commands.build import (
    DataOptions,
    counted,
    load,
    log,
    prepare_process,
    report_unreadable,
)
from simclr_tf.commands.data_set_scores import check_disjoint
from simclr_tf.commands.pretrained import load_pretrained
from simclr_tf.encoders.fine_tuning import copy_weights
from simclr_tf.evaluate.finetune import build_classifier, build_optimizer, score
from simclr_tf.export import export_classifier, load_exported
from simclr_tf.images import UNLABELLED
from simclr_tf.models.classifier import crop_and_flip
from simclr_tf.training import ResumableLoop, RunDirectory, Steps
from simclr_tf.training.loop import report_interruptions, report_unwritable
from simclr_tf.training.run_directory import read_metrics


def finetune(options, invocation):
    """Fine-tunes in a run directory, prints a table and one JSON line, and returns its dict.

    With --from_scratch, the same network without pretraining is then trained on the same labels,
    in RUN_DIR/from_scratch. The same call again resumes.

    Args:
      options: attributes named as the flags of `simclr-tf finetune`.
      invocation: `flags`, dict of flag name to its text; `resumable`, names of flags that may
        change when a run is resumed; `trained`, the options of the run at --pretrained, or None.

    Raises:
      errors.Error: with a message for the user.
    """
    images = _data_options(options, invocation.trained)
    flags = {**invocation.flags, **_given(images)}
    directory = RunDirectory(options.run_dir)

    def check():
        directory.check_resumable(flags, invocation.resumable, "finetune")

    check()
    strategy = prepare_process(options)
    task = _task(options, images, invocation.trained, strategy)
    if not distribute.is_chief(strategy):
        result = _run(options, strategy, task, directory)
    else:
        with directory.locked(), report_unwritable(directory):
            check()  # again: now it is locked
            directory.check_same_data(task.train.num_examples, task.train.digest)
            directory.write_flags(flags, "finetune")
            result = _run(options, strategy, task, directory)
            rows = read_metrics(directory.metrics)
            report.write_report(directory, rows, flags, "finetune")
        _print(result, directory)
    if distribute.is_many_processes(strategy):
        # A worker that exits early looks like a crash to the others: wait for all.
        distribute.any_worker(strategy)(False)
    return result


class _Task(NamedTuple):
    """What is trained on what.

    Attributes:
      encoder: the pretrained encoder.
      projection_head: the pretrained `ProjectionHead`, or None.
      image_size: side of the images, pixels.
      train, test: `data.Source`s.
      class_names: list of C strings.
      batch_size: images per step.
      steps: `Steps`.
    """

    encoder: Any
    projection_head: Any
    image_size: int
    train: Any
    test: Any
    class_names: list
    batch_size: int
    steps: Steps


def _data_options(options, trained):
    if not options.dataset and not getattr(trained, "dataset", None):
        raise errors.UsageError("finetune needs --dataset where --pretrained is not a run.")
    return DataOptions.of(options, trained)


def _given(images):
    """The flags that select the data, resolved: the pretrained run may be gone later."""
    names = ("dataset", "data_dir", "train_split", "test_split")
    values = {name: getattr(images, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _task(options, images, trained, strategy):
    found = load_pretrained(
        options.pretrained, "pretrained", trained, options.image_size, bool(options.head_layer)
    )
    image_size = found.image_size
    few = {"label_fraction": options.label_fraction, "labels_per_class": options.labels_per_class}
    if few == {"label_fraction": None, "labels_per_class": None}:
        few["label_fraction"] = 1.0  # every example that has a label
    few["label_seed"] = options.seed
    train = load(images, images.train_split, "--train_split", image_size, **few)
    test = load(images, images.test_split, "--test_split", image_size)
    if not test.labelled:
        raise errors.UsageError(
            f"--test_split must have labels; {test.name} ({test.split}) has none. Pass another."
        )
    check_disjoint(train, test)
    names = train.class_names
    if not names:
        names = [str(index) for index in range(int(train.labels().max()) + 1)]
    batch_size = evaluate.even_batch_size(
        train.num_examples, options.batch_size, strategy.num_replicas_in_sync
    )
    per_epoch = train.steps_per_epoch(batch_size)
    epochs = options.epochs or evaluate.default_epochs(train.num_examples)
    steps = Steps(per_epoch, per_epoch * epochs)
    return _Task(
        found.encoder, found.projection_head, image_size, train, test, names, batch_size, steps
    )


def _run(options, strategy, task, directory):
    """Trains what is asked for; returns the dict of the JSON line, on the chief."""
    scores = _train(options, strategy, task, directory)
    result = {"protocol": "finetune", **scores}
    if options.from_scratch:
        scratch = RunDirectory(directory.path / "from_scratch")
        keras.utils.set_random_seed(options.seed)  # the same start after an interruption
        for name, value in _train(options, strategy, task, scratch, from_scratch=True).items():
            result[f"{name}_from_scratch"] = value
    return {**result, **_summary(options, task)}


def _train(options, strategy, task, directory, from_scratch=False):
    """Trains from the latest checkpoint, exports and scores; returns the scores, on the chief."""
    with strategy.scope():
        classifier = _build(options, task, from_scratch)
        rate = optimizers.scale_learning_rate(
            options.learning_rate, task.batch_size, options.learning_rate_scaling
        )
        schedule = optimizers.WarmupCosine(rate, task.steps.total)
        classifier.compile(
            build_optimizer(options.optimizer, schedule, options.weight_decay),
            steps_per_execution=options.steps_per_execution
            or devices.steps_per_execution(task.steps.per_epoch, task.steps.total),
        )
    loop = _loop(options, strategy, task, directory, classifier)
    record = directory if loop.chief else None
    with report_interruptions(directory, log), report_unreadable(task.train, directory=record):
        if loop.chief and not loop.finished:
            _announce(options, task, classifier, from_scratch)
        loop.run()
    if strategy.num_replicas_in_sync > 1:
        # Outside the strategy, where reading weights needs no other replica.
        copy = _build(options, task, from_scratch)
        copy_weights(classifier, copy)
        classifier = copy
    if not loop.chief:
        return {}
    if not directory.export.exists():
        export_classifier(classifier, directory.export, task.class_names)
    # The numbers are those of the export, which computes in float32, as `evaluate` and servers do.
    return _score(load_exported(directory.export), task.test)


def _build(options, task, from_scratch):
    return build_classifier(
        task.encoder,
        len(task.class_names),
        task.image_size,
        task.projection_head,
        keep_weights=not from_scratch,
        head_layer=options.head_layer,
        train_from=None if from_scratch else options.train_from,  # random layers are not frozen
        augment=crop_and_flip(task.image_size, options.min_crop_area),
        label_smoothing=options.label_smoothing,
        seed=options.seed,
    )


def _loop(options, strategy, task, directory, classifier):
    def stream(epoch, step, replica_slice):
        of_replica = {} if replica_slice is None else {"replica_slice": replica_slice}
        return task.train.epochs(
            task.batch_size, options.seed, epoch, True, step, labels=True, **of_replica
        )

    return ResumableLoop(
        classifier,
        stream,
        task.steps,
        directory,
        batch_size=task.batch_size,
        strategy=strategy,
        metadata={"image_size": task.image_size},
        checkpoint_every_steps=options.checkpoint_every_steps,
        chance_loss=math.log(len(task.class_names)),
        warm_up_epochs=math.ceil(task.steps.epochs / 2),
        log=log,
    )


def _labels_of(source, class_names):
    """A function of labels of a `data.Source` to those of a classifier with these class names."""
    names = source.class_names
    if not names or list(names) == list(class_names):
        return None
    if not set(names) & set(class_names):
        raise errors.UsageError(
            f"--dataset must have classes of the classifier, such as {class_names[0]!r}; "
            f"{source.name} has {names[0]!r} and others. Pass another data set."
        )
    known = {name: index for index, name in enumerate(class_names)}
    table = np.array([known.get(name, len(class_names)) for name in names])
    return lambda labels: table[labels]


def _announce(options, task, classifier, from_scratch):
    log(task.train.description)
    what = "the same network from scratch" if from_scratch else options.pretrained
    parameters = sum(int(np.prod(w.shape)) for w in classifier.trainable_weights)
    log(
        f"{what}: {counted(parameters, 'parameter')} to train on "
        f"{counted(task.train.num_examples, 'label')} of "
        f"{len(task.class_names):,} classes; "
        f"{keras.mixed_precision.global_policy().name}; {counted(task.steps.epochs, 'epoch')} of "
        f"{counted(task.steps.per_epoch, 'step')} of {counted(task.batch_size, 'image')}."
    )


def _summary(options, task):
    labels = task.test.labels()
    return {
        "labels": task.train.num_examples,
        "label_fraction": options.label_fraction,
        "labels_per_class": options.labels_per_class,
        "classes": len(task.class_names),
        "dataset": task.train.name,
        "train_split": task.train.split,
        "test_split": task.test.split,
        "test_examples": task.test.num_examples,
        "test_unlabelled": int(np.sum(labels == UNLABELLED)),
        "pretrained": options.pretrained,
        "run_dir": options.run_dir,
        "settings": {
            "image_size": task.image_size,
            "crop": "centre square",
            "head_layer": options.head_layer,
            "train_from": options.train_from,
            "epochs": task.steps.epochs,
            "batch_size": task.batch_size,
            "optimizer": options.optimizer,
            "learning_rate": options.learning_rate,
            "learning_rate_scaling": options.learning_rate_scaling,
            "schedule": "cosine",
            "weight_decay": options.weight_decay,
            "label_smoothing": options.label_smoothing,
            "min_crop_area": options.min_crop_area,
            "seed": options.seed,
        },
    }


_HEADINGS = {
    "accuracy": "top-1",
    "top_5_accuracy": "top-5",
    "mean_per_class_accuracy": "mean per class",
}


def _print(result, directory):
    print(f"{counted(result['labels'], 'label'):<18}" + _row(_HEADINGS.values()))
    for name, suffix in (("fine-tuned", ""), ("from scratch", "_from_scratch")):
        if f"accuracy{suffix}" in result:
            print(f"{name:<18}" + _row(f"{100 * result[key + suffix]:.2f} %" for key in _HEADINGS))
    print(f"run: {directory.path}\nclassifier: {directory.export}")
    print(json.dumps(result), flush=True)


def _row(cells):
    return "".join(f"{cell:>16}" for cell in cells)


def _score(exported, test, batch_size=256):
    """Scores of the export of a classifier on a `data.Source`, a dict."""

    def logits(images):
        return tf.cast(exported.classify(images)["logits"], tf.float32)

    labels_of = _labels_of(test, exported.class_names)
    with report_unreadable(test):
        return score(logits, test.batches(batch_size), labels_of=labels_of)[1]


# -- `simclr-tf evaluate` of what was fine-tuned ----------------------------------------------


def is_classifier(encoder):
    """Whether an encoder is the export of a fine-tuned classifier."""
    return bool(getattr(encoder, "class_names", None))


def evaluate_classifier(options, trained, loaded):
    """Prints the accuracy of a fine-tuned classifier and one JSON line; returns its dict.

    Args:
      options: attributes named as the flags of `simclr-tf evaluate`.
      trained: the options of its run, or None.
      loaded: a `LoadedEncoder` with the export of the classifier.
    """
    images, class_names = DataOptions.of(options, trained), loaded.encoder.class_names
    test = load(images, images.test_split, "--test_split", loaded.image_size)
    if not test.labelled:
        raise errors.UsageError(
            f"evaluation needs labels; {test.name} ({test.split}) has none. "
            "Put the images into class folders, or use `simclr-tf embed`."
        )
    scores = _score(loaded.encoder, test, options.batch_size)
    print(f"{'':<18}" + _row(_HEADINGS.values()))
    print(f"{'fine-tuned':<18}" + _row(f"{100 * scores[key]:.2f} %" for key in _HEADINGS))
    result = {
        "protocol": "classifier",
        **scores,
        "classes": len(class_names),
        "dataset": test.name,
        "test_split": test.split,
        "test_examples": test.num_examples,
        "test_unlabelled": int(np.sum(test.labels() == UNLABELLED)),
        "settings": {"image_size": loaded.image_size, "crop": "centre square"},
        "encoder_source": loaded.source,
        "encoder_path": loaded.path,
    }
    print(json.dumps(result), flush=True)
    return result

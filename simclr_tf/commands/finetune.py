"""`simclr-tf finetune`: trains a pretrained encoder with labels in a run directory; it resumes."""

from __future__ import annotations

import functools
import json
import math
from typing import Any, NamedTuple

import numpy as np
from tensorflow import keras

from simclr_tf import devices, evaluate, optimizers
from simclr_tf.commands.build import counted, load, log, report_unreadable
from simclr_tf.commands.classifiers import (
    data_options,
    export_and_score,
    in_run_directory,
    load_test,
    print_scores,
)
from simclr_tf.commands.data_set_scores import check_disjoint
from simclr_tf.commands.pretrained import load_pretrained
from simclr_tf.encoders.fine_tuning import copy_weights
from simclr_tf.evaluate.finetune import build_classifier, build_optimizer
from simclr_tf.images import UNLABELLED
from simclr_tf.models.classifier import crop_and_flip
from simclr_tf.training import ResumableLoop, RunDirectory, Steps
from simclr_tf.training.loop import report_interruptions


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
    images = data_options("finetune", options, invocation.trained, "pretrained")
    return in_run_directory(
        "finetune",
        options,
        invocation,
        images,
        task_of=lambda strategy: _task(options, images, invocation.trained, strategy),
        run=functools.partial(_run, options),
        show=_print,
    )


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
    test = load_test(images, image_size)
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
    peak = options.learning_rate
    if from_scratch and options.learning_rate_from_scratch is not None:
        peak = options.learning_rate_from_scratch
    with strategy.scope():
        classifier = _build(options, task, from_scratch)
        rate = optimizers.scale_learning_rate(peak, task.batch_size, options.learning_rate_scaling)
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
    return export_and_score(classifier, directory.export, task.class_names, task.test)


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
            "learning_rate_from_scratch": options.learning_rate_from_scratch,
            "learning_rate_scaling": options.learning_rate_scaling,
            "schedule": "cosine",
            "weight_decay": options.weight_decay,
            "label_smoothing": options.label_smoothing,
            "min_crop_area": options.min_crop_area,
            "seed": options.seed,
        },
    }


def _print(result, directory):
    rows = {"fine-tuned": result}
    if "accuracy_from_scratch" in result:
        end = "_from_scratch"
        rows["from scratch"] = {
            name.removesuffix(end): value for name, value in result.items() if name.endswith(end)
        }
    print_scores(counted(result["labels"], "label"), rows)
    print(f"run: {directory.path}\nclassifier: {directory.export}")
    print(json.dumps(result), flush=True)

"""`simclr-tf distill`: trains a student on a fine-tuned teacher's soft labels; it resumes."""

from __future__ import annotations

import functools
import json
import math
from typing import Any, NamedTuple

import numpy as np
from tensorflow import keras

from simclr_tf import devices, errors, optimizers
from simclr_tf.commands.build import build_encoder, counted, load, log, report_unreadable
from simclr_tf.commands.classifiers import (
    data_options,
    export_and_score,
    in_run_directory,
    is_classifier,
    load_test,
    print_scores,
    score_exported,
)
from simclr_tf.commands.data_set_scores import check_disjoint
from simclr_tf.commands.pretrained import initialise, load_pretrained
from simclr_tf.encoders.fine_tuning import copy_weights
from simclr_tf.evaluate.finetune import build_optimizer
from simclr_tf.export import load_exported
from simclr_tf.images import UNLABELLED
from simclr_tf.models.classifier import Classifier, crop_and_flip
from simclr_tf.models.distillation import Distillation
from simclr_tf.training import ResumableLoop, RunDirectory, Steps
from simclr_tf.training.checkpoints import numbers
from simclr_tf.training.loop import report_interruptions


def distill(options, invocation):
    """Distills in a run directory, prints a table and one JSON line, and returns its dict.

    The same call again resumes.

    Args:
      options: attributes named as the flags of `simclr-tf distill`.
      invocation: `flags`, dict of flag name to its text; `resumable`, names of flags that may
        change when a run is resumed; `runs`, the options of the runs at --teacher and --init_from.

    Raises:
      errors.Error: with a message for the user.
    """
    images = data_options("distill", options, invocation.trained, "teacher")
    return in_run_directory(
        "distill",
        options,
        invocation,
        images,
        task_of=lambda strategy: _task(options, images, invocation, strategy),
        run=functools.partial(_run, options),
        show=_print,
    )


class _Task(NamedTuple):
    """What is trained on what.

    Attributes:
      teacher: the export of a classifier.
      start: function of a new student that copies the weights at --init_from into it.
      image_size: side of the student's images, pixels.
      train, test: `data.Source`s.
      steps: `Steps`.
    """

    teacher: Any
    start: Any
    image_size: int
    train: Any
    test: Any
    steps: Steps


def _task(options, images, invocation, strategy):
    teacher = _load_teacher(options, invocation.trained)
    size = options.image_size or teacher.image_size
    train = load(images, images.train_split, "--train_split", size, **_labels(options))
    if options.label_weight and not train.labelled:
        raise errors.UsageError(
            f"--label_weight above 0 needs labels; {train.name} ({train.split}) has none. Leave it "
            "out."
        )
    test = load_test(images, size)
    check_disjoint(train, test)
    replicas = strategy.num_replicas_in_sync
    if options.batch_size % replicas:
        raise errors.UsageError(
            f"--batch_size must be divisible by the {replicas} replicas; got {options.batch_size}. "
            f"Try {options.batch_size // replicas * replicas or replicas}."
        )
    per_epoch = train.steps_per_epoch(options.batch_size)
    steps = Steps(per_epoch, options.train_steps or per_epoch * options.epochs)
    return _Task(teacher, _start(options, invocation), size, train, test, steps)


def _labels(options):
    """Arguments of `data.load`: which examples keep their labels."""
    few = {"label_fraction": options.label_fraction, "labels_per_class": options.labels_per_class}
    if few == {"label_fraction": None, "labels_per_class": None}:
        return {}
    return {**few, "label_seed": options.seed, "keep_unlabelled": True}


def _start(options, invocation):
    path, run = options.init_from, invocation.runs.get("init_from")
    if not path or numbers(RunDirectory(options.run_dir).checkpoints):
        return lambda student: None
    found = load_pretrained(path, "init_from", run)
    return lambda student: initialise(student, found, path, run)


def _load_teacher(options, trained):
    path = RunDirectory(options.teacher).export if trained else options.teacher
    if trained and trained.command == "pretrain":
        raise errors.UsageError(
            f"--teacher must be a fine-tuned classifier; {options.teacher} is a run of pretrain. "
            "Fine-tune it with `simclr-tf finetune`."
        )
    if trained and not path.exists():
        raise errors.UsageError(
            f"--teacher must be a run that has ended; {path} is not there yet. Start the same "
            f"`simclr-tf {trained.command}` again."
        )
    with errors.renamed_arguments(path="--teacher"):
        teacher = load_exported(path)
    if not is_classifier(teacher):
        raise errors.UsageError(
            f"--teacher must be a fine-tuned classifier; {path} is an encoder. Fine-tune it with "
            "`simclr-tf finetune`."
        )
    return teacher


def _run(options, strategy, task, directory):
    """Trains from the latest checkpoint, exports and scores; returns the dict, on the chief."""
    keras.utils.set_random_seed(options.seed)  # whatever was loaded before
    with strategy.scope():
        student = _build_student(options, task)
        task.start(student)
        model = Distillation(
            student,
            lambda images: task.teacher.classify(images)["logits"],
            options.distillation_temperature,
            options.label_weight,
        )
        model.build((None, task.image_size, task.image_size, 3))
        model.compile(
            _optimizer(options, task.steps),
            steps_per_execution=options.steps_per_execution
            or devices.steps_per_execution(task.steps.per_epoch, task.steps.total),
        )
    loop = _loop(options, strategy, task, directory, model)
    record = directory if loop.chief else None
    with report_interruptions(directory, log), report_unreadable(task.train, directory=record):
        if loop.chief and not loop.finished:
            _announce(options, task, student)
        loop.run()
    if strategy.num_replicas_in_sync > 1:
        # Outside the strategy, where reading weights needs no other replica.
        copy = _build_student(options, task)
        copy_weights(student, copy)
        student = copy
    if not loop.chief:
        return {}
    scores = export_and_score(student, directory.export, task.teacher.class_names, task.test)
    of_teacher = score_exported(task.teacher, task.test)
    result = {"protocol": "distill", **scores}
    result.update({f"{name}_of_teacher": value for name, value in of_teacher.items()})
    return {**result, **_summary(options, task)}


def _build_student(options, task):
    student = Classifier(
        build_encoder(options, task.image_size),
        len(task.teacher.class_names),
        augment=crop_and_flip(task.image_size, options.min_crop_area),
        seed=options.seed,
    )
    student.build((None, task.image_size, task.image_size, 3))
    return student


def _optimizer(options, steps):
    rate = optimizers.scale_learning_rate(
        options.learning_rate, options.batch_size, options.learning_rate_scaling
    )
    schedule = optimizers.WarmupCosine(rate, steps.total)
    return build_optimizer(options.optimizer, schedule, options.weight_decay)


def _loop(options, strategy, task, directory, model):
    def stream(epoch, step, replica_slice):
        of_replica = {} if replica_slice is None else {"replica_slice": replica_slice}
        labels = {"labels": True} if options.label_weight else {}
        return task.train.epochs(
            options.batch_size, options.seed, epoch, True, step, **labels, **of_replica
        )

    return ResumableLoop(
        model,
        stream,
        task.steps,
        directory,
        batch_size=options.batch_size,
        strategy=strategy,
        metadata={"image_size": task.image_size},
        checkpoint_every_steps=options.checkpoint_every_steps,
        chance_loss=math.log(len(task.teacher.class_names)),
        warm_up_epochs=math.ceil(task.steps.epochs / 2),
        log=log,
    )


def _announce(options, task, student):
    log(task.train.description)
    parameters = sum(int(np.prod(w.shape)) for w in student.trainable_weights)
    log(
        f"{student.encoder.name} with {counted(parameters, 'parameter')} learns from "
        f"{options.teacher} on {counted(task.train.num_examples, 'image')}; "
        f"{keras.mixed_precision.global_policy().name}; {counted(task.steps.epochs, 'epoch')} of "
        f"{counted(task.steps.per_epoch, 'step')} of {counted(options.batch_size, 'image')}."
    )


def _summary(options, task):
    labels = int(np.sum(task.train.labels() != UNLABELLED)) if options.label_weight else 0
    return {
        "labels": labels,
        "classes": len(task.teacher.class_names),
        "dataset": task.train.name,
        "train_split": task.train.split,
        "train_examples": task.train.num_examples,
        "test_split": task.test.split,
        "test_examples": task.test.num_examples,
        "test_unlabelled": int(np.sum(task.test.labels() == UNLABELLED)),
        "teacher": options.teacher,
        "init_from": options.init_from,
        "run_dir": options.run_dir,
        "settings": {
            "image_size": task.image_size,
            "crop": "centre square",
            "encoder": options.encoder,
            "resnet_depth": options.resnet_depth if options.encoder == "resnet" else None,
            "width": options.width,
            "feature_dim": options.feature_dim,
            "distillation_temperature": options.distillation_temperature,
            "label_weight": options.label_weight,
            "epochs": task.steps.epochs,
            "batch_size": options.batch_size,
            "optimizer": options.optimizer,
            "learning_rate": options.learning_rate,
            "learning_rate_scaling": options.learning_rate_scaling,
            "schedule": "cosine",
            "weight_decay": options.weight_decay,
            "min_crop_area": options.min_crop_area,
            "seed": options.seed,
        },
    }


def _print(result, directory):
    end = "_of_teacher"
    teacher = {n.removesuffix(end): value for n, value in result.items() if n.endswith(end)}
    print_scores("", {"teacher": teacher, "student": result})
    print(f"run: {directory.path}\nclassifier: {directory.export}")
    print(json.dumps(result), flush=True)

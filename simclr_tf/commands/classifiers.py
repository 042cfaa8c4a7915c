"""What `finetune` and `distill` share: a classifier that is trained in a run directory and scored.

Also how `evaluate` scores one.
"""

from __future__ import annotations

import json

import numpy as np
import tensorflow as tf

from simclr_tf import distribute, errors, report
from simclr_tf.commands.build import DataOptions, load, prepare_process, report_unreadable
from simclr_tf.commands.run_page import details_of, samples_of
from simclr_tf.evaluate.finetune import score
from simclr_tf.export import export_classifier, load_exported
from simclr_tf.images import UNLABELLED
from simclr_tf.training import RunDirectory
from simclr_tf.training.loop import report_unwritable
from simclr_tf.training.run_directory import read_metrics

_REPORT_EXAMPLES = 500  # images of each split; `simclr-tf report` can show more


def in_run_directory(command, options, invocation, images, task_of, run, show):
    """Trains in RUN_DIR, which only one process writes, and returns the dict of the JSON line.

    Args:
      command: its name.
      options: attributes named as its flags.
      invocation: as for the command.
      images: the `DataOptions`.
      task_of: function of the strategy to what is trained on what, with `train`, a `data.Source`.
      run: function (strategy, task, directory) to the result, a dict.
      show: function (result, directory) that prints it.
    """
    flags = {**invocation.flags, **_given(images)}
    directory = RunDirectory(options.run_dir)

    def check():
        directory.check_resumable(flags, invocation.resumable, command, invocation.defaults)

    check()
    strategy = prepare_process(options)
    task = task_of(strategy)
    if not distribute.is_chief(strategy):
        result = run(strategy, task, directory)
    else:
        with directory.locked(), report_unwritable(directory):
            check()  # again: now it is locked
            directory.check_same_data(task.train.num_examples, task.train.digest)
            with directory.started(flags, command):
                result = run(strategy, task, directory)
                _write_report(options, directory, flags, command, task)
        show(result, directory)
    if distribute.is_many_processes(strategy):
        # A worker that exits early looks like a crash to the others: wait for all.
        distribute.any_worker(strategy)(False)
    return result


def _write_report(options, directory, flags, command, task):
    """Writes the page of a run that has ended."""
    samples, classes = None, None
    try:
        exported = load_exported(directory.export)
        classes, classify = len(exported.class_names), classifier_of(exported, task.test)
        samples, note = samples_of(
            exported, task.train, task.test, _REPORT_EXAMPLES, classify=classify
        )
    except errors.Error as error:  # the run itself has ended well
        note = f"Without images: {error}"
    details = details_of(directory, options, command, "finished", classes)
    rows = read_metrics(directory.metrics)
    report.write_report(directory, rows, flags, command, samples=samples, note=note, **details)


def data_options(command, options, trained, flag):
    """The `DataOptions` of a command; `trained` are the options of the run at `flag`, or None."""
    if not options.dataset and not getattr(trained, "dataset", None):
        raise errors.UsageError(f"{command} needs --dataset where --{flag} is not a run.")
    return DataOptions.of(options, trained)


def _given(images):
    """The flags that select the data, resolved: the run that they are from may be gone later."""
    names = ("dataset", "data_dir", "train_split", "test_split")
    values = {name: getattr(images, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def load_test(images, image_size):
    """The test split, a `data.Source` with labels."""
    test = load(images, images.test_split, "--test_split", image_size)
    if not test.labelled:
        raise errors.UsageError(
            f"--test_split must have labels; {test.name} ({test.split}) has none. Pass another."
        )
    return test


def export_and_score(classifier, path, class_names, test):
    """Exports a classifier unless that is done; returns the scores of the export, a dict.

    They are those that `evaluate` and servers get: the export computes in float32.
    """
    if not path.exists():
        export_classifier(classifier, path, class_names)
    return score_exported(load_exported(path), test)


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


def score_exported(exported, test, batch_size=256):
    """Scores of the export of a classifier on a `data.Source`, a dict."""

    def logits(images):
        return tf.cast(exported.classify(images)["logits"], tf.float32)

    labels_of = _labels_of(test, exported.class_names)
    with report_unreadable(test):
        return score(logits, test.batches(batch_size), labels_of=labels_of)[1]


_HEADINGS = {
    "accuracy": "top-1",
    "top_5_accuracy": "top-5",
    "mean_per_class_accuracy": "mean per class",
}


def print_scores(first, rows):
    """Prints a table of scores.

    Args:
      first: heading of the first column.
      rows: dict of a name to its scores, a dict.
    """
    print(f"{first:<18}" + _row(_HEADINGS.values()))
    for name, scores in rows.items():
        print(f"{name:<18}" + _row(f"{100 * scores[key]:.2f} %" for key in _HEADINGS))


def _row(cells):
    return "".join(f"{cell:>16}" for cell in cells)


# -- `simclr-tf evaluate` of what was fine-tuned ----------------------------------------------


def is_classifier(encoder):
    """Whether an encoder is the export of a fine-tuned classifier."""
    return bool(getattr(encoder, "class_names", None))


def classifier_of(exported, source):
    """A function of images to classes of a `data.Source`; None where its classes are others."""
    if not is_classifier(exported) or list(source.class_names or []) != list(exported.class_names):
        return None

    def classify(images):
        return np.argmax(exported.classify(images)["logits"], axis=1)

    return classify


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
    scores = score_exported(loaded.encoder, test, options.batch_size)
    print_scores("", {"classifier": scores})
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

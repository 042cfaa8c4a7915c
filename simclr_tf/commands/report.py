"""`simclr-tf report`: the page of a run, or of several side by side."""

from __future__ import annotations

import os
import pathlib
import types

from simclr_tf import errors
from simclr_tf.commands.build import DataOptions, build_augmentation, load, load_encoder, log
from simclr_tf.commands.classifiers import classifier_of, is_classifier
from simclr_tf.commands.run_page import details_of, head_for_similarities, samples_of
from simclr_tf.report import RunPage, write_page
from simclr_tf.training import RunDirectory
from simclr_tf.training.run_directory import read_flags, read_metrics

_MAX_BYTES = 5 * 2**20  # that a mail takes
_MIN_EXAMPLES = 50


def report_runs(options, invocation):
    """Writes the page and prints its path; returns it.

    Args:
      options: attributes named as the flags of `simclr-tf report`.
      invocation: `runs`, the options of the runs by their paths.

    Raises:
      errors.StorageError: the page cannot be written.
    """
    runs = invocation.runs
    path = pathlib.Path(options.output or RunDirectory(next(iter(runs))).report)
    examples = options.examples
    if examples and len(runs) > 2:  # so that the page stays small
        examples = max(_MIN_EXAMPLES, min(examples, 1000 // len(runs)))
    names, sources = _names(list(runs)), {}
    pages = []
    for (run_dir, trained), name in zip(runs.items(), names):
        log(f"reading {run_dir}")
        pages.append(_page(options, run_dir, trained, name, examples, sources))
    with errors.storage_errors(path):
        write_page(pages, path)
    if path.stat().st_size > _MAX_BYTES:
        log(
            f"warning: {path} has {path.stat().st_size / 2**20:.1f} MB. Pass a smaller --examples, "
            "or fewer runs."
        )
    print(f"report: {path}")
    return path


def _names(paths):
    """Names of the runs: the last part of their paths, or the whole paths where two are equal."""
    names = [os.path.basename(os.path.abspath(path)) for path in paths]
    return names if len(set(names)) == len(names) else paths


def _page(options, run_dir, trained, name, examples, sources):
    directory = RunDirectory(run_dir)
    samples, note, classes = None, "", None
    if examples:
        try:
            samples, note, classes = _samples(options, trained, examples, sources)
        except errors.Error as error:
            note = f"Without images: {error}"
            log(f"{run_dir}: {note}")
    return RunPage(
        name,
        read_metrics(directory.metrics),
        read_flags(directory.flags),
        str(directory.flags),
        trained.command,
        views=directory.views if directory.views.exists() else None,
        samples=samples,
        note=note,
        **details_of(directory, trained, trained.command, classes=classes),
    )


def _samples(options, trained, examples, sources):
    """(`Samples` or None, a note, number of classes of a classifier or None)."""
    loaded = load_encoder(types.SimpleNamespace(image_size=None), trained, projection_head=True)
    train, test = _sources(options, trained, loaded.image_size, sources)
    if trained.command == "pretrain":
        samples, note = samples_of(
            loaded.encoder,
            train,
            test,
            examples,
            augment=build_augmentation(trained, loaded.image_size),
            head=head_for_similarities(trained, loaded.projection_head),
        )
        return samples, note, None
    names = loaded.encoder.class_names if is_classifier(loaded.encoder) else None
    classify = classifier_of(loaded.encoder, train)
    samples, note = samples_of(loaded.encoder, train, test, examples, classify=classify)
    return samples, note, names and len(names)


def _sources(options, trained, image_size, sources):
    """The training split, and the test split or None; each is loaded once for all runs."""
    images = DataOptions.of(options, trained)
    key = (images, image_size)
    if key not in sources:
        train = load(images, images.train_split, "--train_split", image_size)
        test = None
        try:
            test = load(images, images.test_split, "--test_split", image_size)
        except (errors.ArgumentError, errors.StorageError) as error:
            log(f"without --test_split, which cannot be read: {error}")
        sources[key] = train, test if test is not None and test.labelled else None
    return sources[key]

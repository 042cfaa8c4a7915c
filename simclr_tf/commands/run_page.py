"""What the page of a run shows: shared by `report` and the commands that train."""

from __future__ import annotations

import inspect
import json
import math
import types

import tensorflow as tf

from simclr_tf import errors
from simclr_tf.augment import RandomView
from simclr_tf.commands.build import chance_loss, report_unreadable
from simclr_tf.models import MoCo
from simclr_tf.report import collect_samples
from simclr_tf.training.records import record_of

_WITHOUT_Z = ("looc",)  # whose projection head has several embedding spaces


def details_of(directory, options, command="pretrain", state=None, classes=None):
    """Attributes of a `report.RunPage` from the files and the options of a run, a dict.

    Args:
      directory: its `RunDirectory`.
      options: its options.
      command: name of its command.
      state: that of the run; None: as its files tell.
      classes: number of classes of `finetune` or `distill`; None: not known.
    """
    record = record_of(directory.path)
    return {
        "state": state or record.state,
        "planned_epochs": record.planned_epochs,
        "error": record.error if (state or record.state) == "failed" else None,
        "batch_size": options.batch_size,
        "chance_loss": _chance_loss(options, command, classes),
        "environment": _environment(directory),
    }


def _environment(directory):
    try:
        return json.loads(directory.environment.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a run of an earlier version, or a file that was changed
        return None


def _chance_loss(options, command, classes):
    if command != "pretrain":
        return math.log(classes) if classes else None
    if options.method == "looc":
        return chance_loss(
            options, types.SimpleNamespace(kept=(options.kept or "color").split(","))
        )
    if options.method == "moco":
        size = inspect.signature(MoCo.__init__).parameters["queue_size"].default
        given = options.queue_size if options.queue_size is not None else size
        model = types.SimpleNamespace(
            queue_size=given, in_batch_negatives=bool(options.in_batch_negatives)
        )
        return chance_loss(options, model)
    return chance_loss(options, None)


def samples_of(encoder, train, test, examples, *, augment=None, head=None, classify=None):
    """`Samples` of an encoder and a data set, and a note on why there are none.

    Args:
      encoder: as for `report.collect_samples`.
      train, test: `data.Source`s; None for no test split.
      examples: maximum number of images of each split; 0: none.
      augment: the augmentation of the views, or a list of one for each view; None: no views.
      head: the projection head; None: similarities are those of h.
      classify: function of images to class indices; None.

    Returns:
      (`Samples` or None, str).
    """
    if not examples:
        return None, ""
    embed = None
    if head is not None:

        def embed(views):
            return tf.cast(head(encoder(views, training=False), training=False), tf.float32)

    try:
        with report_unreadable(train, test):
            samples = collect_samples(
                encoder,
                train,
                test,
                views=None if augment is None else _views(augment),
                embed=embed,
                classify=classify,
                examples=examples,
            )
    except errors.Error as error:
        return None, f"Without images: {error}"
    return samples, ""


def _views(augment):
    families = augment if isinstance(augment, (list, tuple)) else [augment]
    families = [_not_compiled(each) for each in families]

    def views(images, view):
        return families[view % len(families)](images, seed=view)

    return views


def _not_compiled(view):
    """The same view without XLA, which would take longer to compile than to draw it once."""
    if type(view) is not RandomView:
        return view
    return RandomView(**{**view.get_config(), "jit_compile": False})


def head_for_similarities(options, head):
    """The projection head whose z the similarities are of; None: they are those of h."""
    return None if options.method in _WITHOUT_Z else head

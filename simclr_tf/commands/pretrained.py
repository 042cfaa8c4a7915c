"""Weights to train further: those of a run, of an export, or official ones.

`finetune` trains it with labels (--pretrained); `pretrain` and `distill` start a new run from its
weights (--init_from).
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from simclr_tf import errors, pretrained
from simclr_tf.commands.build import build_encoder_and_head, counted, log, submodels_of_run
from simclr_tf.encoders.fine_tuning import copy_weights
from simclr_tf.encoders.whitening import without_whitening
from simclr_tf.export import load_trainable
from simclr_tf.export.functional import set_weights_of_functional
from simclr_tf.models import MoCo, SimCLR
from simclr_tf.training import RunDirectory
from simclr_tf.training.checkpoints import numbers


class Pretrained(NamedTuple):
    """A trained encoder whose weights are to be trained further.

    Attributes:
      encoder: a built `keras.Model` from float32 images to h.
      projection_head: a built `ProjectionHead`; None where there is none.
      image_size: side of its images, pixels.
      is_functional: whether the encoder is the functional copy of an export.
    """

    encoder: Any
    projection_head: Any
    image_size: int
    is_functional: bool


def load_pretrained(path, flag, trained=None, image_size=None, projection_head=True):
    """Loads a run, an export, or a SavedModel or checkpoint of the official SimCLR code.

    Args:
      path: the value of the flag.
      flag: name of the flag, such as "pretrained", for messages.
      trained: the options of the run at `path`; None where it is not a run.
      image_size: side of the images in pixels; None for that of what is loaded.
      projection_head: whether official weights must have a head that this package has.

    Returns:
      A `Pretrained`.

    Raises:
      errors.UsageError: the run has no checkpoint yet.
      errors.ArgumentError: there is nothing of the three at `path`, or it cannot be read.
    """
    if trained and trained.command == "pretrain":
        if not numbers(RunDirectory(path).checkpoints):
            raise errors.UsageError(
                f"--{flag} must hold a run with a checkpoint; {path} has none yet. Let "
                "`simclr-tf pretrain` finish an epoch."
            )
        restored = submodels_of_run(trained, lambda side: build_encoder_and_head(trained, side))
        encoder, head = (restored.submodels[name] for name in ("encoder", "projection_head"))
        return Pretrained(encoder, head, image_size or restored.image_size, False)
    with errors.renamed_arguments(path=f"--{flag}"):
        if trained or _is_export(path):  # a run of a classifier has an export
            encoder, size = load_trainable(RunDirectory(path).export if trained else path)
            return Pretrained(encoder, None, image_size or size, True)
        found = pretrained.from_official(path, image_size, projection_head)
    return Pretrained(found.encoder, found.projection_head, found.encoder.built_shape[1], False)


def _is_export(path):
    """Whether a directory holds an export of this package, itself or in numbered versions."""
    inside = sorted(os.listdir(path)) if os.path.isdir(path) else []
    return any(
        os.path.isfile(os.path.join(path, each, "encoder.json"))
        for each in ("", *(name for name in inside if name.isdecimal()))
    )


def initialise(model, found, path, trained=None):
    """Copies what --init_from names into a new model; logs what is copied.

    Args:
      model: a built `SimCLR`, `MoCo` or `Classifier`.
      found: the `Pretrained`.
      path: the value of --init_from.
      trained: the options of the run there, or None.

    Raises:
      errors.UsageError: the encoder there is another one than the model's.
    """
    encoder = without_whitening(found.encoder) if found.is_functional else found.encoder
    try:
        if found.is_functional:
            set_weights_of_functional(model.encoder, encoder, model.image_shape)
        else:
            copy_weights(encoder, model.encoder)
    except ValueError as error:
        raise errors.UsageError(
            f"--init_from must hold an encoder like the new one, {_described(model.encoder)}; "
            f"{path} has {_described(encoder)}. {_advice(trained)}"
        ) from error
    head, ours = found.projection_head, model.projection_head
    same_head = None not in (head, ours) and _shapes(head) == _shapes(ours)
    if same_head:
        copy_weights(head, ours)
    if isinstance(model, MoCo):
        model.reset_momentum_encoder()
    if isinstance(model, SimCLR):
        model.reset_weight_average()
    what = "encoder and projection head" if same_head else "encoder"
    rest = "" if same_head or ours is None else "; the projection head starts at random weights"
    log(f"the weights of the {what} are those of {path}{rest}.")


def _shapes(model):
    return [tuple(weight.shape) for weight in model.weights]


def _described(encoder):
    parameters = counted(encoder.count_params(), "parameter")
    return f"{encoder.name} with {len(encoder.weights)} weights ({parameters})"


def _advice(trained):
    if trained is None or trained.command == "finetune":
        return "Pass the flags of that encoder, such as --resnet_depth and --width."
    names = ("encoder", "resnet_depth", "width", "sk_ratio", "stem", "feature_dim")
    values = {name: getattr(trained, name) for name in names}
    given = " ".join(f"--{name}={value}" for name, value in values.items() if value is not None)
    return f"Pass its flags: {given}."

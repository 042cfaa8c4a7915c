"""Fine-tuning: a copy of an encoder is trained with a linear layer on labels, and scored once.

The model that is trained is `models.Classifier`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow import keras

from simclr_tf import _keras
from simclr_tf.encoders import validate as validate_encoder
from simclr_tf.errors import ArgumentError, check_number
from simclr_tf.evaluate.features import check_features, extract_features, without_unlabelled
from simclr_tf.evaluate.linear import column_of
from simclr_tf.evaluate.linear_on_views import training_set
from simclr_tf.evaluate.scores import mean_per_class_accuracy, top_k_accuracy
from simclr_tf.images import UNLABELLED, unpack
from simclr_tf.models.classifier import Classifier
from simclr_tf.optimizers import WarmupCosine, scale_learning_rate

_FEW_LABELS = 50  # per class; 1% of ImageNet has 13, 10% has 128
_MIN_STEPS = 500


class FineTuned(NamedTuple):
    """The result of `finetune`, after its last epoch.

    Attributes:
      accuracy: float in [0, 1], top-1 on the test set.
      top_5_accuracy: float in [0, 1].
      mean_per_class_accuracy: float in [0, 1].
      classes: int64 [C], the labels of the training set, ascending.
      predicted: int64 [m], the labels predicted for the test examples, those without a label
        included.
      classifier: the `models.Classifier`; column c of its logits is class `classes[c]`.

    Example:

    >>> data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)
    >>> result = simclr_tf.evaluate.finetune(encoder, data, data, epochs=1)
    >>> result.classifier(images).shape, result.predicted.shape
    (TensorShape([8, 4]), (8,))
    """

    accuracy: float
    top_5_accuracy: float
    mean_per_class_accuracy: float
    classes: np.ndarray
    predicted: np.ndarray
    classifier: Classifier


def finetune(
    encoder,
    train,
    test,
    epochs=None,
    batch_size=256,
    learning_rate=0.05,
    train_from=None,
    from_scratch=False,
    augment=None,
    image_size=None,
    seed=0,
    verbose=0,
):
    """Trains a copy of an encoder and a linear layer on labelled images, and scores it once.

    The protocol of SimCLR (arXiv:2002.05709, appendix B.5): all weights are trained, the linear
    layer from 0; SGD with Nesterov momentum 0.9, the rate `learning_rate` x batch / 256, no
    warm-up, no weight decay; crops and flips are the only augmentation. The rate decays to 0 by a
    cosine, as in appendix B.8. The score is that of the last epoch, on the centre square of every
    test image. The encoder that is passed does not change.

    Args:
      encoder: a `keras.Model` from images [B, H, W, 3], float32 in [0, 1], to h [B, D], that Keras
        can make again from its config.
      train: a `data.Source` with labels, such as `data.load(..., label_fraction=0.01)`; or a finite
        `tf.data.Dataset` of batches with labels in a form that `images.unpack` accepts. Examples
        labelled -1 do not count.
      test: the same. Every labelled example is scored.
      epochs: int, at least 1. None is 60 below 50 labels per class and 30 from there on, the
        paper's for 1% and 10% of ImageNet, and as many as 500 steps take, if that is more.
      batch_size: int, at least 1, where `train` or `test` is a `data.Source`, and at most the
        number of its examples. A dataset has its own batches.
      learning_rate: float above 0, for a batch of 256.
      train_from: name of a layer of the encoder, or the beginning of one, such as "group3": all
        layers before it are frozen, batch normalisation in inference mode. None trains all.
      from_scratch: bool; True replaces the weights of the copy by new random ones first (the
        baseline without pretraining).
      augment: as in `models.Classifier`.
      image_size: int, side in pixels of the test images; None for that of the `data.Source`, or of
        the images.
      seed: int of the order of a `data.Source` and of the views.
      verbose: as in `keras.Model.fit`.

    Returns:
      A `FineTuned`.

    Raises:
      ArgumentError: no labels, labels of a single class, an argument out of range, or an encoder
        that cannot be copied; and as `extract_features`.

    Example:

    >>> data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4)
    >>> result = simclr_tf.evaluate.finetune(encoder, data, data, epochs=1, from_scratch=True)
    >>> 0.0 <= result.accuracy <= result.top_5_accuracy <= 1.0
    True
    """
    _check_settings(train, epochs, batch_size, learning_rate)
    data = training_set(train, batch_size, seed)
    size = image_size or data.image_size
    network = _copy(encoder, size, from_scratch)
    if train_from is not None:
        _freeze_before(network, train_from)
    labelled = _number_of_labels(train)
    epochs = epochs or _default_epochs(labelled, len(data.classes), data.steps)
    rate = scale_learning_rate(learning_rate, data.batch_size, "linear")
    schedule = WarmupCosine(rate, total_steps=epochs * data.steps)
    model = Classifier(network, len(data.classes), augment, seed)
    model.build((None, size, size, 3))
    model.compile(optimizer=keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True))
    model.fit(
        _batches(train, data, seed), epochs=epochs, steps_per_epoch=data.steps, verbose=verbose
    )
    batches = test.batches(batch_size) if hasattr(test, "batches") else test
    return _score(extract_features(model, batches, size), data.classes, model)


def _check_settings(train, epochs, batch_size, learning_rate):
    if not isinstance(train, tf.data.Dataset) and not hasattr(train, "epochs"):
        raise ArgumentError(
            f"train must be a data.Source or a tf.data.Dataset; got {type(train).__name__}. "
            "Wrap arrays with tf.data.Dataset.from_tensor_slices((images, labels)).batch(256)."
        )
    if epochs is not None:
        check_number("epochs", epochs, at_least=1, whole=True, hint="None chooses it.")
    check_number("batch_size", batch_size, at_least=1, whole=True)
    check_number("learning_rate", learning_rate, above=0, hint="The paper's is 0.05.")


def _copy(encoder, image_size, from_scratch):
    """A model of the same architecture, with the same weights or new random ones."""
    validate_encoder(encoder, image_size)  # which also builds it
    try:
        copy = type(encoder).from_config(encoder.get_config())
        validate_encoder(copy, image_size)
    except (AttributeError, NotImplementedError, TypeError) as error:
        raise ArgumentError(
            "encoder must be a keras.Model that can be made again from its config; "
            f"{type(encoder).__name__} cannot ({error}). Give the class get_config and from_config."
        ) from error
    for layer, other in zip(_keras.all_layers(encoder), _keras.all_layers(copy)):
        other.trainable = layer.trainable  # the order of `get_weights` depends on it
    if not from_scratch:
        copy.set_weights(encoder.get_weights())
    for layer in _keras.all_layers(copy):  # Keras 3 does not pass it on to all of them
        layer.trainable = True
    return copy


def _freeze_before(network, name):
    """Freezes the layers before the first whose name begins with `name`."""
    names = [layer.name for layer in network.layers]
    found = [i for i, each in enumerate(names) if each.startswith(name)]
    if not found:
        raise ArgumentError(
            f"train_from must be the beginning of the name of a layer of the encoder, which are "
            f"{', '.join(names)}; got {name!r}."
        )
    for layer in network.layers[: found[0]]:
        layer.trainable = False


def _number_of_labels(train):
    if hasattr(train, "labels"):
        labels = np.asarray(train.labels())
    else:
        labels = np.concatenate([np.ravel(unpack(batch).labels) for batch in train])
    return int(np.sum(labels != UNLABELLED))


def _default_epochs(labels, classes, steps):
    epochs = 60 if labels / classes < _FEW_LABELS else 30
    return max(epochs, math.ceil(_MIN_STEPS / steps))


def _batches(train, data, seed):
    """Endless batches of images and the columns of their classes."""
    if hasattr(train, "epochs"):
        batches = train.epochs(data.batch_size, seed, labels=True)
    else:
        batches = train.repeat()

    def with_columns(*batch):
        batch = unpack(batch[0] if len(batch) == 1 else batch)
        labels = tf.cast(batch.labels, tf.int64)
        columns = tf.searchsorted(data.classes, labels, out_type=tf.int64)
        found = {"image": batch.images, "label": tf.where(labels < 0, labels, columns)}
        return found if batch.extents is None else {**found, "extent": batch.extents}

    return batches.map(with_columns)


def _score(features, classes, model):
    logits, labels = check_features(features.h, features.labels, "test")
    without_unlabelled(logits, labels, "test")  # raises where nothing could be scored
    predicted = classes[logits.argmax(axis=1)]
    scored = labels != UNLABELLED
    return FineTuned(
        accuracy=float(np.mean(predicted[scored] == labels[scored])),
        top_5_accuracy=top_k_accuracy(logits[scored], column_of(labels[scored], classes), 5),
        mean_per_class_accuracy=mean_per_class_accuracy(predicted[scored], labels[scored]),
        classes=classes,
        predicted=predicted,
        classifier=model,
    )

"""Fine-tuning with few or many labels: the schedules of the papers, and what the result scores.

The network and its training step are `models.Classifier`. `simclr-tf finetune` trains the same in a
run directory, where it can be interrupted.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from simclr_tf import optimizers
from simclr_tf.encoders import validate
from simclr_tf.encoders.fine_tuning import copy_encoder, copy_weights
from simclr_tf.errors import ArgumentError, check_number
from simclr_tf.evaluate.features import check_features, check_finite, extract_features
from simclr_tf.evaluate.linear import check_classes
from simclr_tf.evaluate.scores import mean_per_class_accuracy, top_k_accuracy
from simclr_tf.images import UNLABELLED, check_images, class_indices, unpack
from simclr_tf.models.classifier import Classifier, crop_and_flip

OPTIMIZERS = ("nesterov", "lars", "adamw")
_LABELS_OF_ONE_PERCENT = 12811  # of ImageNet, for which SimCLR fine-tunes for 60 epochs
_EPOCHS_OF_ONE_PERCENT = 60
_FEWEST_EPOCHS = 30  # SimCLR's for 10 %, and SimCLRv2's for all labels


class FineTuned(NamedTuple):
    """The result of `finetune`, after its last epoch.

    Attributes:
      accuracy: float in [0, 1], top-1 on the test set.
      top_5_accuracy: float in [0, 1].
      mean_per_class_accuracy: float in [0, 1].
      loss: float, mean cross-entropy on the crops of the last epoch.
      predicted: int64 [m], the labels predicted for the test examples, those without a label
        included.
      classifier: the trained `Classifier`; its encoder is a copy.

    Example:

    >>> result = simclr_tf.evaluate.finetune(encoder, (images, labels), (images, labels), epochs=2)
    >>> result.predicted.shape, result.classifier.num_classes
    ((8,), 4)
    """

    accuracy: float
    top_5_accuracy: float
    mean_per_class_accuracy: float
    loss: float
    predicted: np.ndarray
    classifier: Any


def finetune(
    encoder,
    train,
    test,
    projection_head=None,
    head_layer=0,
    train_from=None,
    epochs=None,
    batch_size=256,
    optimizer="nesterov",
    learning_rate=0.05,
    learning_rate_scaling="linear",
    weight_decay=0.0,
    label_smoothing=0.0,
    min_crop_area=0.08,
    image_size=None,
    from_scratch=False,
    seed=0,
    verbose=0,
):
    """Trains a copy of an encoder and a linear layer on labelled images, and scores it once.

    The defaults are those of SimCLR (arXiv:2002.05709, appendix B.5): Nesterov momentum 0.9, a
    cosine decay to 0, no warm-up, no regularisation, random crops and flips, a rate of 0.05 x batch
    / 256. The epochs scale with the number of labels: 60 for 1 % of ImageNet and 30 for 10 % become
    `default_epochs`. The score is that of the last epoch, on the centre square of every labelled
    test image. The given encoder and head do not change.

    Args:
      encoder: a `keras.Model` from images [B, H, W, 3], float32 in [0, 1], to h [B, D]; functional,
        or one whose config rebuilds it.
      train: labelled images: a `data.Source` (`data.load(..., label_fraction=0.01)` picks few
        labels), read in another order in each epoch; a finite `tf.data.Dataset` of batches in any
        form that `images.unpack` accepts; or two arrays (images, labels). Labels are integers from
        0 to C - 1, -1 for examples that do not count, or one-hot.
      test: the same.
      projection_head: a built `ProjectionHead`, if `head_layer` is above 0.
      head_layer: 0 puts the logits on h, 1 on the head's first hidden layer (SimCLRv2).
      train_from: first block of the encoder to train, such as "group3"; see `Classifier`.
      epochs: int, at least 1; None is `default_epochs` of the number of labelled images.
      batch_size: int, at least 1: the largest batch; see `even_batch_size`. A dataset has its own
        batches.
      optimizer: "nesterov", "lars" (both with momentum 0.9) or "adamw".
      learning_rate: float above 0, the rate before scaling.
      learning_rate_scaling: "sqrt": rate x sqrt(batch); "linear": rate x batch / 256; or "none".
      weight_decay: float, 0 or more; biases and normalisation parameters take none.
      label_smoothing: float in [0, 1).
      min_crop_area: float in (0, 1], minimum area of a crop as a fraction of the image.
      image_size: int, side in pixels of the crops and of the test images; None for that of the
        `data.Source`, or of the images.
      from_scratch: True trains the same network, all of it, from random weights (of Keras's global
        generator): the baseline without pretraining.
      seed: int of the order of the images and of the crops.
      verbose: as in `fit`.

    Returns:
      A `FineTuned`.

    Raises:
      ArgumentError: no labels, labels of a single class, an argument out of range, or an encoder
        that cannot be copied; and as `extract_features`.

    Example:

    >>> train = simclr_tf.data.load("shapes", "train[:400]", labels_per_class=2)
    >>> test = simclr_tf.data.load("shapes", "test[:20]")
    >>> result = simclr_tf.evaluate.finetune(encoder, train, test, epochs=2)
    >>> 0.0 <= result.accuracy <= result.top_5_accuracy <= 1.0
    True
    """
    settings = (optimizer, learning_rate, weight_decay, label_smoothing, min_crop_area)
    _check_settings(*settings, epochs, batch_size, image_size)
    data = _labelled_images(train, batch_size, seed)
    size = image_size or data.image_size
    epochs = epochs or default_epochs(data.num_labels)
    classifier = build_classifier(
        encoder,
        data.num_classes,
        size,
        projection_head,
        keep_weights=not from_scratch,
        head_layer=head_layer,
        train_from=None if from_scratch else train_from,
        augment=crop_and_flip(size, min_crop_area),
        label_smoothing=label_smoothing,
        seed=seed,
    )
    rate = optimizers.scale_learning_rate(learning_rate, data.batch_size, learning_rate_scaling)
    schedule = optimizers.WarmupCosine(rate, total_steps=epochs * data.steps)
    classifier.compile(build_optimizer(optimizer, schedule, weight_decay))
    options = {"epochs": epochs, "steps_per_epoch": data.steps, "verbose": verbose}
    history = classifier.fit(data.dataset, shuffle=False, **options).history
    predicted, scores = score(classifier, _batches(test, batch_size), size)
    return FineTuned(
        **scores, loss=float(history["loss"][-1]), predicted=predicted, classifier=classifier
    )


def default_epochs(num_labels):
    """Epochs of fine-tuning for a number of labelled images: 60 x 2 ** -log10(n / 12,811).

    That is SimCLR's 60 for 1 % of ImageNet (12,811 images) and its 30 for 10 %, at least 30; ten
    times fewer labels are seen twice as often.

    Args:
      num_labels: int, at least 1.

    Example:

    >>> [simclr_tf.evaluate.default_epochs(n) for n in (500, 12811, 128116, 1281167)]
    [159, 60, 30, 30]
    """
    check_number("num_labels", num_labels, at_least=1, whole=True)
    tens = math.log10(num_labels / _LABELS_OF_ONE_PERCENT)
    return max(_FEWEST_EPOCHS, round(_EPOCHS_OF_ONE_PERCENT * 2.0**-tens))


def even_batch_size(num_examples, largest=256, replicas=1):
    """The largest batch of at most `largest` that divides an epoch with the smallest remainder.

    500 examples in batches of 256 would be a single step; they become two of 250.

    Args:
      num_examples: int, at least 1.
      largest: int, at least 1.
      replicas: int, by which the result is divisible where it can be.

    Example:

    >>> simclr_tf.evaluate.even_batch_size(500), simclr_tf.evaluate.even_batch_size(60)
    (250, 60)
    """
    batch_size = num_examples // math.ceil(num_examples / min(largest, num_examples))
    return max(batch_size // replicas * replicas, replicas)


def _check_settings(
    optimizer,
    learning_rate,
    weight_decay,
    label_smoothing,
    min_crop_area,
    epochs,
    batch_size,
    image_size=None,
):
    """Raises `ArgumentError` for settings of `finetune` out of range."""
    if optimizer not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
        raise ArgumentError(f"optimizer must be one of {known}; got {optimizer!r}.")
    check_number("learning_rate", learning_rate, above=0, hint="Try 0.05.")
    check_number("min_crop_area", min_crop_area, above=0, at_most=1, hint="The paper's is 0.08.")
    check_number("weight_decay", weight_decay, at_least=0)
    check_number("label_smoothing", label_smoothing, at_least=0, below=1, hint="Try 0.1.")
    check_number("batch_size", batch_size, at_least=1, whole=True)
    for name, value in (("epochs", epochs), ("image_size", image_size)):
        if value is not None:
            check_number(name, value, at_least=1, whole=True)


def build_optimizer(name, learning_rate, weight_decay=0.0):
    """An optimizer of `OPTIMIZERS`, with momentum 0.9 and no decay of biases and norms."""
    if name == "nesterov":
        return optimizers.by_name("sgd", learning_rate, weight_decay, 0.9, nesterov=True)
    return optimizers.by_name(name, learning_rate, weight_decay)


def build_classifier(
    encoder, num_classes, image_size, projection_head=None, keep_weights=True, **arguments
):
    """Returns a built `Classifier` of copies of an encoder and a head.

    It belongs to the `tf.distribute` strategy in whose scope it is made.

    Args:
      encoder: a built `keras.Model`.
      num_classes, projection_head: as in `Classifier`.
      image_size: side of the images in pixels.
      keep_weights: False leaves the weights of the copies at random initial values.
      **arguments: of `Classifier`.
    """
    image_shape = (image_size, image_size, 3)
    width = validate(encoder, image_size)
    encoder = copy_encoder(encoder, image_shape, keep_weights)
    if projection_head is not None and projection_head.built:
        head = type(projection_head).from_config(projection_head.get_config())
        head.build((None, width))
        if keep_weights:
            copy_weights(projection_head, head)
        projection_head = head
    classifier = Classifier(encoder, num_classes, projection_head, **arguments)
    classifier.build((None, *image_shape))
    return classifier


def score(classify, batches, image_size=None, labels_of=None):
    """Scores a classifier on labelled batches.

    Args:
      classify: a `Classifier`, or another function of images, as `extract_features` takes it, to
        logits [B, C].
      batches: labelled batches in any form that `extract_features` accepts.
      image_size: as there.
      labels_of: function of the labels of the batches, int64 [m], to classes of the classifier; any
        number from C on stands for a class that it does not know. None: they are the same.

    Returns:
      (predicted, scores): int64 [m], and a dict of "accuracy", "top_5_accuracy" and
      "mean_per_class_accuracy".

    Raises:
      ArgumentError: there is no label; and as `extract_features`.
    """
    logits, labels = extract_features(classify, batches, image_size)[:2]
    logits, labels = check_features(logits, labels, "test")
    scored = labels != UNLABELLED
    if not scored.any():
        raise ArgumentError(
            f"test must hold a label; all {len(labels)} examples are unlabelled. Use a split that "
            "has labels."
        )
    predicted, known = logits.argmax(axis=1), labels[scored]
    known = known if labels_of is None else labels_of(known)
    return predicted, {
        "accuracy": float(np.mean(predicted[scored] == known)),
        "top_5_accuracy": top_k_accuracy(logits[scored], known, 5),
        "mean_per_class_accuracy": mean_per_class_accuracy(predicted[scored], known),
    }


class _LabelledImages(NamedTuple):
    """Labelled images as `fit` takes them.

    Attributes:
      dataset: a `tf.data.Dataset`.
      steps: batches in an epoch.
      batch_size: examples in the largest batch.
      num_labels: examples with a label.
      num_classes: the largest label + 1.
      image_size: side of the images, pixels.
    """

    dataset: tf.data.Dataset
    steps: int
    batch_size: int
    num_labels: int
    num_classes: int
    image_size: int


def _labelled_images(train, batch_size, seed):
    if hasattr(train, "epochs"):  # a data.Source
        if not train.labelled:
            raise ArgumentError(f"train must have labels; {train!r} has none. Pass other data.")
        labels, size = train.labels(), train.image_size
        batch_size = even_batch_size(train.num_examples, batch_size, _replicas())
        steps = train.steps_per_epoch(batch_size)
        dataset = train.epochs(batch_size, seed, labels=True)
    elif isinstance(train, tf.data.Dataset):
        check_finite(train)
        labels, sizes = [], []
        for batch in map(unpack, train):
            check_images(batch.images)
            labels.append(_labels(batch.labels))
            sizes.append(batch.images.shape[1])
        steps, batch_size, size = len(labels), max(map(len, labels), default=0), (sizes or [0])[0]
        labels, dataset = np.concatenate(labels or [[]]), train.repeat()
    else:
        images, labels = _arrays(train, "train")
        batch_size = even_batch_size(len(images), batch_size, _replicas())
        steps, size = len(images) // batch_size, images.shape[1]
        dataset = tf.data.Dataset.from_tensor_slices((images, labels))
        dataset = dataset.shuffle(len(images), seed).repeat()
        dataset = dataset.batch(batch_size, drop_remainder=True)
    num_classes = int(check_classes(labels).max()) + 1
    return _LabelledImages(
        dataset, steps, batch_size, int(np.sum(labels != UNLABELLED)), num_classes, size
    )


def _replicas():
    return tf.distribute.get_strategy().num_replicas_in_sync


def _batches(test, batch_size):
    """Batches of a test set in any form that `finetune` accepts."""
    if hasattr(test, "batches"):
        return test.batches(batch_size)
    if isinstance(test, tf.data.Dataset):
        return test
    arrays = _arrays(test, "test")
    starts = range(0, len(arrays[0]), batch_size)
    return [tuple(each[i : i + batch_size] for each in arrays) for i in starts]


def _arrays(data, name):
    """(images [n, H, W, 3], labels int64 [n]) of two arrays."""
    if not isinstance(data, tuple) or len(data) != 2 or not hasattr(data[0], "shape"):
        raise ArgumentError(
            f"{name} must be a data.Source, a tf.data.Dataset of batches, or two arrays (images, "
            f"labels); got a {type(data).__name__}."
        )
    images, labels = data[0], _labels(data[1])
    check_images(images)
    if len(images) != len(labels) or not len(labels):
        raise ArgumentError(
            f"{name} must hold one label for each image, and at least one; got {len(images)} "
            f"images and {len(labels)} labels."
        )
    return images, labels


def _labels(labels):
    if labels is None:
        raise ArgumentError("train must have labels; got a batch without. Add them.")
    return class_indices(labels)

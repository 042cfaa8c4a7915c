"""Linear evaluation as the paper trains it: a linear layer on crops and flips, by gradient descent.

The encoder is frozen and in inference mode. Logistic regression on stored features, which takes a
small part of the time, is in linear.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow import keras

from simclr_tf import augment
from simclr_tf.augment.random import fold_in
from simclr_tf.errors import ArgumentError, check_number
from simclr_tf.evaluate.features import (
    check_features,
    check_finite,
    extract_features,
    inference,
    without_unlabelled,
)
from simclr_tf.evaluate.linear import check_classes, column_of
from simclr_tf.evaluate.scores import mean_per_class_accuracy, top_k_accuracy
from simclr_tf.images import UNLABELLED, check_images, check_range, class_indices, unpack
from simclr_tf.optimizers import LARS, WarmupCosine, scale_learning_rate


class LinearClassifier(NamedTuple):
    """The result of `linear_classifier`, after its last epoch.

    Attributes:
      accuracy: float in [0, 1], top-1 on the test set.
      top_5_accuracy: float in [0, 1].
      mean_per_class_accuracy: float in [0, 1].
      loss: float, mean cross-entropy on the crops of the last epoch.
      classes: int64 [C], the labels of the training set, ascending.
      predicted: int64 [m], the labels predicted for the test examples, those without a label
        included.
      kernel: float32 [D, C].
      bias: float32 [C].

    Example:

    >>> data = [(images, labels)]
    >>> result = simclr_tf.evaluate.linear_classifier(encoder, data, data, epochs=2)
    >>> result.kernel.shape, result.classes.tolist()
    ((8, 4), [0, 1, 2, 3])
    """

    accuracy: float
    top_5_accuracy: float
    mean_per_class_accuracy: float
    loss: float
    classes: np.ndarray
    predicted: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray


def linear_classifier(
    encoder,
    train,
    test,
    epochs=90,
    batch_size=256,
    optimizer="nesterov",
    learning_rate=0.1,
    min_crop_area=0.08,
    image_size=None,
    seed=0,
    verbose=0,
):
    """Trains a linear layer on random crops and flips of the training images, and scores it once.

    The protocol of SimCLR (arXiv:2002.05709, appendix B.6): softmax cross-entropy on h of the
    frozen encoder, weights that start at 0, no weight decay, no warm-up, the rate `learning_rate` x
    batch / 256 with a cosine decay to 0 over all epochs. Random crops (resized, bicubic) and flips
    are the only augmentation. The score is that of the last epoch, on the centre square of every
    test image. The same input and seed return the same result.

    In the scope of a `tf.distribute` strategy, replicas share each batch and the result is the
    same up to rounding.

    Args:
      encoder: a `keras.Model` from images [B, H, W, 3], float32 in [0, 1], to h [B, D], or another
        callable that works within a `tf.function`.
      train: a `data.Source` with labels, read in another order in each epoch; or a finite
        `tf.data.Dataset`, or another iterable that can be read again, of batches with labels in any
        form that `images.unpack` accepts. The last batch may be smaller. Examples labelled -1 do
        not count.
      test: the same. Every labelled example is scored.
      epochs: int, at least 1; 90 in the paper.
      batch_size: int, at least 1, where `train` or `test` is a `data.Source`, and at most the
        number of its examples. It must be divisible by the number of replicas. A dataset has its
        own batches.
      optimizer: "nesterov" (momentum 0.9), or "lars" (momentum 0.9).
      learning_rate: float above 0, for a batch of 256.
      min_crop_area: float in (0, 1], minimum area of a crop as a fraction of the image.
      image_size: int, side in pixels of the crops and of the test images; None for that of the
        `data.Source`, or of the images.
      seed: int of the order of a `data.Source` and of the crops.
      verbose: 1 shows a progress bar, 0 shows nothing.

    Returns:
      A `LinearClassifier`.

    Raises:
      ArgumentError: no labels, labels of a single class, or an argument out of range; and as
        `extract_features`.

    Example:

    >>> data = [(images[:5], labels[:5]), (images[5:], labels[5:])]
    >>> result = simclr_tf.evaluate.linear_classifier(encoder, data, data, epochs=3)
    >>> 0.0 <= result.accuracy <= result.top_5_accuracy <= 1.0
    True
    """
    _check_settings(epochs, batch_size, optimizer, learning_rate, min_crop_area, image_size)
    data = training_set(train, batch_size, seed)
    image_size = image_size or data.image_size
    rate = scale_learning_rate(learning_rate, data.batch_size, "linear")
    rate = WarmupCosine(rate, total_steps=epochs * data.steps)
    view = augment.Compose(
        [augment.RandomCropResize(image_size, (min_crop_area, 1.0)), augment.RandomFlip()]
    )
    trainer = _Trainer(encoder, data, view, lambda: _OPTIMIZERS[optimizer](rate), seed)
    bar = keras.utils.Progbar(epochs, unit_name="epoch", verbose=verbose)
    for epoch in range(epochs):
        loss = trainer.train(epoch)
        bar.add(1, values=[("loss", loss)])
    kernel, bias = (np.asarray(weight) for weight in trainer.layer.get_weights())
    batches = test.batches(batch_size) if hasattr(test, "batches") else test
    features = extract_features(encoder, batches, image_size)
    return _score(features, kernel, bias, data.classes, loss)


def _check_settings(epochs, batch_size, optimizer, learning_rate, min_crop_area, image_size):
    check_number("epochs", epochs, at_least=1, whole=True, hint="The paper trains for 90.")
    check_number("batch_size", batch_size, at_least=1, whole=True)
    check_number("learning_rate", learning_rate, above=0, hint="The paper's is 0.1.")
    check_number("min_crop_area", min_crop_area, above=0, at_most=1, hint="The paper's is 0.08.")
    if image_size is not None:
        check_number("image_size", image_size, at_least=1, whole=True)
    if optimizer not in _OPTIMIZERS:
        known = ", ".join(_OPTIMIZERS)
        raise ArgumentError(f"optimizer must be one of {known}; got {optimizer!r}.")


_OPTIMIZERS = {
    "nesterov": lambda rate: keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
    "lars": lambda rate: LARS(rate, momentum=0.9, weight_decay=0.0),
}


def _score(features, kernel, bias, classes, loss):
    h, labels = check_features(features.h, features.labels, "test")
    without_unlabelled(h, labels, "test")  # raises where nothing could be scored
    logits = h @ kernel + bias  # [m, C]
    predicted = classes[logits.argmax(axis=1)]
    scored = labels != UNLABELLED
    columns = column_of(labels[scored], classes)
    return LinearClassifier(
        accuracy=float(np.mean(predicted[scored] == labels[scored])),
        top_5_accuracy=top_k_accuracy(logits[scored], columns, 5),
        mean_per_class_accuracy=mean_per_class_accuracy(predicted[scored], labels[scored]),
        loss=loss,
        classes=classes,
        predicted=predicted,
        kernel=kernel,
        bias=bias,
    )


class TrainingSet(NamedTuple):
    """A training set and the batches that it is read in.

    Attributes:
      epoch: number of the epoch -> an iterable of its batches.
      steps: batches in an epoch.
      batch_size: examples in the largest batch.
      classes: int64 [C], its labels, ascending.
      image_size: side of the images, pixels.
    """

    epoch: Callable
    steps: int
    batch_size: int
    classes: np.ndarray
    image_size: int


def training_set(train, batch_size, seed):
    """Returns the `TrainingSet` of a `data.Source` or of batches that can be read again."""
    if hasattr(train, "epochs"):  # a data.Source
        batch_size = min(batch_size, train.num_examples)
        steps = train.steps_per_epoch(batch_size)

        def epoch(number):
            return train.epochs(batch_size, seed, number, labels=True).take(steps)

        classes = check_classes(train.labels())
        return TrainingSet(epoch, steps, batch_size, classes, train.image_size)
    check_finite(train)
    labels, image_size = [], None
    for batch in map(unpack, train):
        if batch.labels is None:
            raise ArgumentError("train must have labels; got a batch without. Add them.")
        labels.append(class_indices(batch.labels))
        image_size = image_size or batch.images.shape[1]
    if not labels:
        raise ArgumentError("train must hold at least one image; got none.")
    classes = check_classes(np.concatenate(labels))
    return TrainingSet(lambda _: train, len(labels), max(map(len, labels)), classes, image_size)


class _Columns(NamedTuple):
    """A batch to train on, padded to a fixed number of rows.

    Attributes:
      images: [B, H, W, 3], uint8 or float.
      classes: int64 [B], columns of the linear layer.
      weights: float32 [B]: 1, or 0 for padding and examples without a label.
      extents: int32 [B, 2], or None; see `images.Batch`.
    """

    images: Any
    classes: Any
    weights: Any
    extents: Any


def _columns(batch, classes, size):
    """Returns the `_Columns` of a `Batch`, with `size` rows."""
    images = tf.convert_to_tensor(batch.images)
    check_images(images)
    check_range(images)
    labels = class_indices(batch.labels)
    columns = column_of(labels, classes)  # -1 for those without a label
    weights = (columns >= 0).astype(np.float32)
    extents = None if batch.extents is None else tf.cast(batch.extents, tf.int32)
    rows = np.minimum(np.arange(size), len(labels) - 1)  # padding repeats the last image
    if len(labels) < size:
        weights = np.where(np.arange(size) < len(labels), weights[rows], 0).astype(np.float32)
        images, columns = tf.gather(images, rows), columns[rows]
        extents = None if extents is None else tf.gather(extents, rows)
    return _Columns(images, np.maximum(columns, 0), weights, extents)


class _Trainer:
    """Trains a linear layer on views of a training set, one epoch after the other.

    Attributes:
      layer: a `keras.layers.Dense`.
    """

    def __init__(self, encoder, data, view, make_optimizer, seed):
        self._encode, self._data, self._view = inference(encoder), data, view
        self._seed, self._steps_done = augment.as_seed(seed), 0
        self._strategy = tf.distribute.get_strategy()
        dim = self._encode(tf.zeros([1, view.output_size(0), view.output_size(0), 3])).shape[-1]
        with self._strategy.scope():
            self.layer = keras.layers.Dense(
                len(data.classes), kernel_initializer="zeros", dtype="float32", name="linear"
            )
            self.layer.build((None, dim))
            self._optimizer = make_optimizer()
            self._optimizer.build(self.layer.trainable_variables)
        self._distributed_step = tf.function(self._step, reduce_retracing=True)

    def train(self, epoch):
        """Trains on one epoch and returns the mean loss over its examples, a float."""
        replicas = self._strategy.num_replicas_in_sync
        size = -(-self._data.batch_size // replicas) * replicas
        loss = weight = 0.0
        for batch in self._data.epoch(epoch):
            columns = _columns(unpack(batch), self._data.classes, size)
            total = float(columns.weights.sum())
            seed = fold_in(self._seed, self._steps_done)
            loss += float(self._distributed_step(self._split(columns), tf.constant(total), seed))
            weight, self._steps_done = weight + total, self._steps_done + 1
        return loss / weight

    def _split(self, columns):
        """The same rows as per-replica values."""
        replicas = self._strategy.num_replicas_in_sync
        columns = _Columns(*(None if x is None else tf.convert_to_tensor(x) for x in columns))
        if replicas == 1:
            return columns
        share = len(columns.weights) // replicas

        def slice_of(column):
            return self._strategy.experimental_distribute_values_from_function(
                lambda context: column[context.replica_id_in_sync_group * share :][:share]
            )

        return _Columns(*(None if column is None else slice_of(column) for column in columns))

    def _step(self, columns, total, seed):
        """Updates the layer; returns the loss summed over the examples of all replicas."""
        losses = self._strategy.run(self._replica_step, args=(columns, total, seed))
        return self._strategy.reduce("SUM", losses, axis=None)

    def _replica_step(self, columns, total, seed):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        first_row = replica * tf.shape(columns.weights)[0]
        views = augment.call_view(self._view, columns.images, seed, first_row, columns.extents)
        h = tf.stop_gradient(self._encode(views))  # [b, D]
        weights = self.layer.trainable_variables
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(columns.classes, self.layer(h))
            loss = tf.reduce_sum(losses * columns.weights)
            # The gradients of the replicas are summed.
            mean = tf.math.divide_no_nan(loss, total)
        gradients = tape.gradient(mean, weights)
        self._optimizer.apply_gradients(zip(gradients, weights))
        return loss

"""Extracts features: h, label and id of every example of a dataset.

The encoder is frozen and in inference mode. Classifiers of the features are in knn.py and
linear.py.
"""

import inspect
from typing import NamedTuple, Optional

import numpy as np
import tensorflow as tf
from tensorflow import keras

from simclr_tf.errors import ArgumentError
from simclr_tf.images import (
    UNLABELLED,
    as_float,
    centre_square,
    check_images,
    check_range,
    class_indices,
    unpack,
)


class Features(NamedTuple):
    """The output of an encoder for n examples, in the order of the dataset.

    Attributes:
      h: float32 [n, D], the outputs of the encoder.
      labels: int64 [n], -1 where an example has none; or None where the dataset has none.
      ids: [n], strings or integers as in the dataset, or None where the dataset has none.

    Example:

    >>> simclr_tf.evaluate.Features(h, labels).ids is None
    True
    """

    h: np.ndarray
    labels: Optional[np.ndarray] = None
    ids: Optional[np.ndarray] = None


def extract_features(encoder, dataset, image_size=None, verbose=0):
    """Computes the features of every example of a dataset, once and in order.

    The result is held in memory; `stream_features` yields the same features batch by batch.

    Args:
      encoder: a `keras.Model`, or any callable from images [B, H, W, 3], float32 in [0, 1], to
        [B, D]. The output of a `SimCLR` model is h. See `stream_features`.
      dataset: a finite `tf.data.Dataset`, or another iterable, of batches. See `stream_features`.
      image_size: int, pixels, the side of the centre square that images are cut and resized to;
        None leaves them as they are.
      verbose: 1 shows a progress bar, 0 shows nothing.

    Returns:
      `Features` of the whole dataset.

    Raises:
      ArgumentError: as `stream_features`.

    Example:

    >>> features = simclr_tf.evaluate.extract_features(encoder, [(images, labels)])
    >>> features.h.shape, features.labels.shape
    ((8, 8), (8,))
    """
    bar = keras.utils.Progbar(_num_batches(dataset), unit_name="batch", verbose=verbose)
    parts = []
    for features in stream_features(encoder, dataset, image_size):
        parts.append(features)
        bar.add(1)
    return Features(
        *(None if column[0] is None else np.concatenate(column) for column in zip(*parts))
    )


def stream_features(encoder, dataset, image_size=None):
    """Yields the features of a dataset batch by batch, in bounded memory.

    The encoder runs in inference mode and none of its variables changes: batch normalisation uses
    its moving statistics. A partial batch is padded to the size of the largest batch so far, so
    that the encoder is not traced again, and the padding is dropped from the result.

    Args:
      encoder: a `keras.Model`, or any callable from images [B, H, W, 3], float32 in [0, 1], to
        [B, D]. The output of a `SimCLR` model is h. A callable with an argument `training` is
        called with `training=False`.
      dataset: a finite `tf.data.Dataset`, or another iterable, of batches in any form that
        `images.unpack` accepts: images alone; tuples (images, labels) or (images, labels, ids);
        dicts with "image" and optionally "label", "id" and "extent". Images are [B, H, W, 3],
        uint8, or float in [0, 1]; labels are integers [B], or one-hot [B, C], which is converted.
      image_size: int, pixels: the side of the centre square that images of another size are cut
        and resized to, exactly as an exported encoder does (`images.centre_square`). None leaves
        images as they are; batches with "extent" need it, as their images are padded.

    Yields:
      `Features` of each batch. `labels` and `ids` are None for all batches or for none.

    Raises:
      ArgumentError: an endless or empty dataset; images of another shape, dtype or range; labels
        that are neither integers [B] nor one-hot; labels or ids in some batches only; batches with
        "extent" without an `image_size`; an encoder that does not map images to vectors.

    Example:

    >>> stream = simclr_tf.evaluate.stream_features(encoder, [images[:5], images[5:]])
    >>> [features.h.shape for features in stream]
    [(5, 8), (3, 8)]
    """
    check_finite(dataset)
    encode = inference(encoder)
    num_images = num_batches = padded_size = 0
    first = None
    for batch in dataset:
        batch = unpack(batch)
        images = _images(batch, image_size)
        padded_size = max(padded_size, len(images))
        h = np.asarray(encode(_pad(images, padded_size)))
        if h.ndim != 2 or len(h) != padded_size:
            raise ArgumentError(
                f"encoder must map images to vectors [{padded_size}, D]; got shape {h.shape}. "
                "Pool its feature map, for instance with GlobalAveragePooling2D."
            )
        h = h[: len(images)].astype(np.float32)
        features = Features(h, _labels(batch.labels), _ids(batch.ids))
        first = first or features
        num_images, num_batches = num_images + len(images), num_batches + 1
        _check_columns(features, first, num_batches)
        yield features
    if not num_images:
        raise ArgumentError("dataset must hold at least one image; got none.")


def pixel_features(images):
    """Returns the pixels of images as features, for a baseline without an encoder.

    Use it in place of an encoder: `extract_features(pixel_features, dataset)`.

    Args:
      images: [B, H, W, 3], uint8, or float in [0, 1].

    Returns:
      float32 [B, H * W * 3] in [0, 1].

    Raises:
      ArgumentError: images of another shape, dtype or range.

    Example:

    >>> simclr_tf.evaluate.pixel_features(images).shape
    TensorShape([8, 3072])
    """
    images = tf.convert_to_tensor(images)
    if tf.executing_eagerly():
        check_range(images)
    images = as_float(images)
    return tf.reshape(images, [tf.shape(images)[0], -1])


def check_features(h, labels, name):
    """Converts features and labels to arrays and checks them.

    Args:
      h: float [n, D].
      labels: integers [n], or one-hot [n, C].
      name: "train" or "test", the prefix of the arguments' names in messages.

    Returns:
      (float32 [n, D], int64 [n]).

    Raises:
      ArgumentError: no examples, no labels, labels that are not integers, unequal lengths, NaN or
        infinite features.
    """
    h = np.asarray(h, np.float32)
    if h.ndim != 2 or not h.size:
        raise ArgumentError(
            f"{name}_h must be [n, D] with n and D of 1 or more; got shape {h.shape}. "
            "Pass the h of extract_features."
        )
    if labels is None:
        raise ArgumentError(
            f"{name}_labels must be given; got None. Use a dataset that has labels."
        )
    labels = class_indices(labels, f"{name}_labels")
    if labels.shape != h.shape[:1]:
        raise ArgumentError(
            f"{name}_labels must be integers, one for each of the {len(h)} rows of {name}_h; "
            f"got {len(labels)}. Pass the labels of extract_features."
        )
    bad_rows = int((~np.isfinite(h).all(axis=1)).sum())
    if bad_rows:
        raise ArgumentError(
            f"{name}_h must be finite; {bad_rows} of {len(h)} rows hold NaN or infinity. "
            "Check the encoder: its training may have diverged."
        )
    return h, labels


def check_pair(train_h, train_labels, test_h, test_labels):
    """Checks both sets with `check_features` and that D is the same; returns four arrays."""
    train_h, train_labels = check_features(train_h, train_labels, "train")
    test_h, test_labels = check_features(test_h, test_labels, "test")
    check_same_width(train_h, test_h)
    return train_h, train_labels, test_h, test_labels


def without_unlabelled(h, labels, name):
    """Leaves out the rows whose label is -1, which stands for an example without a label.

    Args:
      h: float [n, D].
      labels: int64 [n].
      name: "train" or "test", the prefix of the arguments' names in messages.

    Returns:
      (h, labels) of the labelled rows.

    Raises:
      ArgumentError: there is none.
    """
    labelled = labels != UNLABELLED
    if not labelled.any():
        raise ArgumentError(
            f"{name}_labels must hold a label; all {len(labels)} are {UNLABELLED}, which stands "
            "for unlabelled. Use a split that has labels."
        )
    return (h, labels) if labelled.all() else (h[labelled], labels[labelled])


def check_same_width(train_h, test_h):
    """Raises ArgumentError unless both sets have the same number of features."""
    if train_h.shape[1] != test_h.shape[1]:
        raise ArgumentError(
            "train_h and test_h must have the same number of features; "
            f"got {train_h.shape[1]} and {test_h.shape[1]}. Compute both with one encoder."
        )


def inference(encoder):
    """Returns a function from images to the encoder's float32 output in inference mode."""
    if not isinstance(encoder, keras.layers.Layer):
        # Not compiled: it may use NumPy, or be a tf.function or a loaded SavedModel.
        arguments = {"training": False} if _takes_training(encoder) else {}
        return lambda images: tf.cast(encoder(images, **arguments), tf.float32)

    @tf.function(reduce_retracing=True)
    def encode(images):
        return tf.cast(encoder(images, training=False), tf.float32)

    return encode


def _takes_training(function):
    try:
        return "training" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some built-in callables have no signature
        return False


def check_finite(dataset):
    """Raises ArgumentError for a `tf.data.Dataset` that is known to be endless."""
    cardinality = getattr(dataset, "cardinality", None)
    if cardinality and cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ArgumentError(
            "dataset must end; got an endless one. Remove .repeat(), or add .take(n)."
        )


def _check_columns(features, first, num_batches):
    """Raises ArgumentError where only one of the first and the latest batch has labels or ids."""
    for name, value, wanted in zip(("label", "id"), features[1:], first[1:]):
        if (value is None) != (wanted is None):
            num_with = num_batches - 1 if value is None else 1
            raise ArgumentError(
                f'"{name}" must be in every batch or in none; got it in '
                f"{num_with} of {num_batches}. Add it to all batches, or remove it."
            )


def _num_batches(dataset):
    """Returns the number of batches, or None where it is unknown until the end."""
    try:
        return len(dataset)
    except TypeError:
        return None


def _labels(labels):
    return None if labels is None else class_indices(labels)


def _ids(ids):
    if ids is None:
        return None
    ids = np.asarray(ids)
    if ids.dtype.kind in "OS":  # TensorFlow returns strings as bytes
        ids = np.array([i.decode("utf-8", "replace") if isinstance(i, bytes) else i for i in ids])
    return ids


def _images(batch, image_size):
    """Returns the images of a `Batch` as float32 [B, H, W, 3] in [0, 1], checked and resized."""
    images = tf.convert_to_tensor(batch.images)
    check_images(images)
    check_range(images)
    if batch.extents is not None:
        return _without_padding(images, np.asarray(batch.extents), image_size)
    return as_float(images) if image_size is None else centre_square(images, image_size)


def _without_padding(images, extents, image_size):
    """Cuts the centre square out of the part of each image that its extent declares."""
    if image_size is None:
        raise ArgumentError(
            'image_size must be given where a batch has "extent", as its images are padded; '
            "got None. Pass the size that the encoder takes."
        )
    squares = [
        centre_square(image[None, :height, :width], image_size)
        for image, (height, width) in zip(images, extents)
    ]
    return tf.concat(squares, axis=0)


def _pad(images, size):
    """Appends black images to a batch [B, H, W, 3] so that it has `size` of them."""
    missing = size - len(images)
    return tf.pad(images, [[0, missing], [0, 0], [0, 0], [0, 0]]) if missing else images
